//! Files that are there whole or not at all.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Writes a small file whole or not at all, also when the disk is full or the process is killed.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut out = Temporary::unique(path)?;
    out.write(bytes)?;
    out.rename_to(path)
}

/// Whether what the system says of a read is about these bytes, as of a damaged block of a disk or a file that was cut, and not
/// about the file, the machine or the network: a file that is gone or may not be read, a server that does not answer, no memory
/// or no more open files.
pub(crate) fn is_of_bytes(e: &std::io::Error) -> bool {
    let damaged = e.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error());
    damaged || matches!(e.kind(), ErrorKind::UnexpectedEof | ErrorKind::InvalidData)
}

/// Removes a file, if it is there.
pub(crate) fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io("remove", path)(e)),
        _ => Ok(()),
    }
}

/// A file under a temporary name, removed unless it is renamed.
#[derive(Debug)]
pub(crate) struct Temporary {
    file: File,
    path: PathBuf,
}

impl Temporary {
    /// In the directory of `target`, with this process's id in its name: others may write the same file.
    pub(crate) fn unique(target: &Path) -> Result<Self> {
        Self::create(target, &format!(".{}.tmp", std::process::id()))
    }

    /// In the directory of `target`, under a name that the next process overwrites should this one be killed.
    pub(crate) fn fixed(target: &Path) -> Result<Self> {
        Self::create(target, TEMPORARY)
    }

    fn create(target: &Path, suffix: &str) -> Result<Self> {
        let mut name = target.file_name().unwrap_or_default().to_owned();
        name.push(suffix);
        let path = target.with_file_name(name);
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        Ok(Temporary { file, path })
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(Error::io("write", &self.path))
    }

    /// Syncs, renames, and syncs the directory, so that a crash leaves the old state or the new one.
    pub(crate) fn rename_to(self, target: &Path) -> Result<()> {
        self.file.sync_all().map_err(Error::io("sync", &self.path))?;
        std::fs::rename(&self.path, target).map_err(Error::io("rename a temporary file to", target))?;
        let dir = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // Some file systems cannot sync a directory; the file itself is safe by now.
        let _ = File::open(dir).and_then(|d| d.sync_all());
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Gone already after a rename.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// What the names of temporary files end in.
pub(crate) const TEMPORARY: &str = ".tmp";
