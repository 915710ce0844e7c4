//! Verified, atomic writing.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::Wanted;
use crate::{Error, Result, idx};

/// Who is to blame when a file could not be put in place.
pub(super) enum Failure {
    /// The origin: try the next one.
    Origin(String),
    /// The directory it should go to: no other origin would help.
    Here(Error),
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Feeds a reader's content to `sink` and compares size and digest with what is wanted.
fn verified(
    input: &mut dyn Read,
    wanted: &Wanted,
    mut sink: impl FnMut(&[u8]) -> Result<()>,
) -> std::result::Result<(), Failure> {
    let (mut hash, mut total, mut chunk) = (Sha256::new(), 0u64, vec![0; 1 << 18]);
    loop {
        let n = match input.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Failure::Origin(format!("after {total} bytes: {e}"))),
        };
        total += n as u64;
        if total > wanted.bytes {
            return Err(Failure::Origin(format!("is larger than the {} bytes it should have", wanted.bytes)));
        }
        hash.update(&chunk[..n]);
        sink(&chunk[..n]).map_err(Failure::Here)?;
    }
    if total < wanted.bytes {
        return Err(Failure::Origin(format!("has {total} of {} bytes", wanted.bytes)));
    }
    let found = hex(&hash.finalize());
    if found != wanted.sha256 {
        return Err(Failure::Origin(format!("has the SHA-256 {found} and should have {}", wanted.sha256)));
    }
    Ok(())
}

/// Whether the file at `path`, compressed or not, has the wanted content.
pub(super) fn intact(path: &Path, wanted: &Wanted) -> bool {
    idx::reader(path).is_ok_and(|(mut input, _)| verified(&mut *input, wanted, |_| Ok(())).is_ok())
}

/// Writes an origin's content to its place in `dir`, which is returned; nothing is there unless all of
/// it is.
pub(super) fn install(
    input: &mut dyn Read,
    wanted: &Wanted,
    dir: &Path,
) -> std::result::Result<PathBuf, Failure> {
    let path = dir.join(wanted.stem);
    let mut out = Temporary::create(&path).map_err(Failure::Here)?;
    verified(input, wanted, |bytes| out.write(bytes))?;
    out.rename_to(&path).map_err(Failure::Here)?;
    Ok(path)
}

/// Writes a small file whole or not at all.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut out = Temporary::create(path)?;
    out.write(bytes)?;
    out.rename_to(path)
}

/// A file under a temporary name, removed unless it is renamed.
struct Temporary {
    file: File,
    path: PathBuf,
}

impl Temporary {
    /// In the directory of `target`, with this process's id in its name.
    fn create(target: &Path) -> Result<Self> {
        let mut name = target.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.tmp", std::process::id()));
        let path = target.with_file_name(name);
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        Ok(Temporary { file, path })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(Error::io("write", &self.path))
    }

    /// Syncs, renames, and syncs the directory, so that a crash leaves the old state or the new one.
    fn rename_to(self, target: &Path) -> Result<()> {
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
