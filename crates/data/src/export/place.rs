//! Where the files of samples go.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::files::{Files, safe_name};
use crate::{Error, Result, Schema, Source, idx};

/// Something that takes samples one after the other.
pub(super) trait Place {
    /// Puts a sample's files where they belong.
    fn put(&mut self, key: &str, sample: &Files<'_>) -> Result<()>;
    /// The number of tars written.
    fn finish(self) -> Result<u32>;
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes).map_err(Error::io("write", path))
}

/// Tars `000000.tar`, `000001.tar` and so on.
pub(super) struct Tars {
    dir: PathBuf,
    most: u64,
    open: Option<(tar::Builder<BufWriter<File>>, PathBuf)>,
    bytes: u64,
    count: u32,
}

impl Tars {
    /// In `dir`, of about `most` bytes, with a list of the classes beside them.
    pub(super) fn new(dir: &Path, most: u64, schema: &Schema) -> Result<Self> {
        if !schema.classes.is_empty() {
            // A name is a line.
            let lines: String = schema.classes.iter().map(|c| c.replace(['\n', '\r'], " ") + "\n").collect();
            write(&dir.join(idx::CLASSES), lines.as_bytes())?;
        }
        Ok(Tars { dir: dir.to_owned(), most, open: None, bytes: 0, count: 0 })
    }

    fn close(&mut self) -> Result<()> {
        let Some((tar, path)) = self.open.take() else { return Ok(()) };
        let written = tar.into_inner().and_then(|mut out| out.flush());
        written.map_err(Error::io("write", path))
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        if self.open.is_none() {
            let path = self.dir.join(format!("{:06}.tar", self.count));
            let file = File::create(&path).map_err(Error::io("create", &path))?;
            self.open = Some((tar::Builder::new(BufWriter::with_capacity(1 << 20, file)), path));
            (self.bytes, self.count) = (0, self.count + 1);
        }
        let Some((tar, path)) = &mut self.open else { return Ok(()) };
        // No times and no owners: the same set gives the same bytes.
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(0);
        self.bytes += 512 + (bytes.len() as u64).next_multiple_of(512);
        tar.append_data(&mut header, name, bytes).map_err(Error::io("write", &*path))
    }
}

impl Place for Tars {
    fn put(&mut self, key: &str, sample: &Files<'_>) -> Result<()> {
        if self.bytes >= self.most {
            self.close()?;
        }
        for (ending, bytes) in &sample.files {
            self.append(&format!("{key}.{ending}"), bytes)?;
        }
        match sample.label {
            Some(label) => self.append(&format!("{key}.cls"), label.to_string().as_bytes()),
            None => Ok(()),
        }
    }

    fn finish(mut self) -> Result<u32> {
        self.close()?;
        Ok(self.count)
    }
}

/// A folder for each class.
pub(super) struct ClassFolders {
    folders: Vec<PathBuf>,
}

impl ClassFolders {
    /// In `dir`. The folders' names sort in the order of the labels, so that whoever reads them gets the same ones: where
    /// the classes' names do not, a number is put before them.
    pub(super) fn new(dir: &Path, set: &dyn Source) -> Result<Self> {
        let classes = &set.schema().classes;
        if classes.is_empty() {
            let problem =
                "a folder for each class needs labels, and the set has none; export it as webdataset";
            return Err(Error::usage(set.name(), problem));
        }
        let folders = folder_names(classes).into_iter().map(|name| dir.join(name)).collect::<Vec<_>>();
        for folder in &folders {
            std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        }
        Ok(ClassFolders { folders })
    }
}

/// One distinct name for each class; they are sorted.
pub(super) fn folder_names(classes: &[String]) -> Vec<String> {
    let names: Vec<String> = classes.iter().map(|c| safe_name(c)).collect();
    if names.windows(2).all(|pair| pair[0] < pair[1]) {
        return names;
    }
    let digits = (classes.len() - 1).to_string().len();
    names.iter().enumerate().map(|(i, name)| format!("{i:0digits$} {name}")).collect()
}

impl Place for ClassFolders {
    fn put(&mut self, key: &str, sample: &Files<'_>) -> Result<()> {
        let label = sample.label.and_then(|l| usize::try_from(l).ok());
        let Some(folder) = label.and_then(|l| self.folders.get(l)) else {
            return Err(Error::field("label", format!("{:?} of sample {key} is no class", sample.label)));
        };
        for (ending, bytes) in &sample.files {
            write(&folder.join(format!("{key}.{ending}")), bytes)?;
        }
        Ok(())
    }

    fn finish(self) -> Result<u32> {
        Ok(0)
    }
}
