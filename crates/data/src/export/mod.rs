//! Export: a set as files that other programs read, for each split WebDataset tars or a folder for each class.
//!
//! Everything is written into a folder beside the one that was asked for, synced at once, and renamed when it is
//! complete.

mod files;
mod place;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};

use files::files_of;
use place::{ClassFolders, Place, Tars};
use serde::Serialize;

use crate::import::splits_of;
use crate::{Error, Record, Result, Source};

/// What an exported set looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ExportFormat {
    /// Tars with the files of each sample side by side, and `classes.txt`.
    Webdataset,
    /// A folder for each class.
    Folder,
}

/// What is to be exported.
#[derive(Debug, Clone)]
pub struct ExportRequest {
    /// The set: a folder, or an embedded set's name.
    pub set: PathBuf,
    /// The folder to make; it must not be there, or be empty.
    pub out: PathBuf,
    /// What to write.
    pub format: ExportFormat,
    /// About how many bytes a tar holds.
    pub tar_bytes: u64,
}

/// One exported split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExportedSplit {
    /// `train` or `val`; None where the set has no splits.
    pub split: Option<String>,
    /// Its folder.
    pub dir: PathBuf,
    /// Samples.
    pub records: u64,
    /// Bytes of their files.
    pub bytes: u64,
    /// Tars; 0 for folders.
    pub tars: u32,
}

/// What [`export`] did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExportReport {
    /// What was written.
    pub format: ExportFormat,
    /// The splits.
    pub splits: Vec<ExportedSplit>,
}

impl fmt::Display for ExportReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, s) in self.splits.iter().enumerate() {
            let newline = if i > 0 { "\n" } else { "" };
            let tars = if s.tars > 0 { format!(" in {} tars", s.tars) } else { String::new() };
            write!(
                f,
                "{newline}{}  {} samples, {:.1} MB{tars}",
                s.dir.display(),
                s.records,
                s.bytes as f64 / 1e6
            )?;
        }
        Ok(())
    }
}

/// Writes a set as files. Keys are the samples' ids: eight digits, so unique and in order.
///
/// Fails with [`Error::Usage`] when `out` holds something, when the folder beside it that is written to is somebody else's,
/// or when a folder for each class is asked of a set without labels; with [`Error::Io`], for instance on a full disk: then
/// nothing is left behind.
pub fn export(request: &ExportRequest) -> Result<ExportReport> {
    let out = &request.out;
    if request.tar_bytes == 0 {
        return Err(Error::usage("--shard-mb", "must be above 0"));
    }
    if out.is_file() {
        return Err(Error::usage(out.display().to_string(), "is a file; name a new folder"));
    }
    if let Some(name) = first_in(out) {
        let problem = format!("is there already and not empty: it holds {name:?}; name a new folder");
        return Err(Error::usage(out.display().to_string(), problem));
    }
    let splits = splits_of(&request.set)?;
    let stage = Stage::new(out)?;
    let mut report = ExportReport { format: request.format, splits: Vec::new() };
    for (split, set) in splits {
        let place = |root: &Path| split.map_or_else(|| root.to_owned(), |s| root.join(s));
        let dir = place(&stage.dir);
        std::fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
        let (bytes, tars) = match request.format {
            ExportFormat::Webdataset => all(&*set, Tars::new(&dir, request.tar_bytes, set.schema())?)?,
            ExportFormat::Folder => all(&*set, ClassFolders::new(&dir, &*set)?)?,
        };
        let (split, dir) = (split.map(str::to_owned), place(out));
        report.splits.push(ExportedSplit { split, dir, records: set.len(), bytes, tars });
    }
    stage.finish(out)?;
    Ok(report)
}

/// Every sample's files, put where they belong; the bytes and tars written.
fn all(set: &dyn Source, mut place: impl Place) -> Result<(u64, u32)> {
    let (mut record, mut bytes) = (Record::default(), 0);
    for id in 0..set.len() {
        set.read(id, &mut record)?;
        let sample = files_of(set.schema(), &record).map_err(|cause| Error::Sample {
            set: set.name().to_owned(),
            sample: id,
            cause: Box::new(cause),
        })?;
        bytes += sample.files.iter().map(|(_, content)| content.len() as u64).sum::<u64>();
        place.put(&format!("{id:08}"), &sample)?;
    }
    Ok((bytes, place.finish()?))
}

/// Something that a folder holds; the first of all names, so that two calls say the same.
fn first_in(dir: &Path) -> Option<String> {
    let names = std::fs::read_dir(dir).ok()?.flatten();
    names.map(|entry| entry.file_name().to_string_lossy().into_owned()).min()
}

/// What says that a folder is an export that has not come to its end, and nothing of the user's.
const MARK: &str = ".phalanx-export";

/// The folder that is renamed at the end, and removed if there is none.
struct Stage {
    dir: PathBuf,
}

impl Stage {
    fn new(out: &Path) -> Result<Self> {
        let Some(name) = out.file_name() else {
            return Err(Error::usage(out.display().to_string(), "is no name for a new folder"));
        };
        let mut name = name.to_owned();
        name.push(".part");
        let dir = out.with_file_name(name);
        // What an export that was killed has left; a folder of the same name that is none stays.
        if dir.join(MARK).exists() {
            std::fs::remove_dir_all(&dir).map_err(Error::io("remove", &dir))?;
        } else if let Some(name) = first_in(&dir) {
            let problem = format!(
                "is needed for what is not yet complete, and holds {name:?}; remove it, or name another folder to export to"
            );
            return Err(Error::usage(dir.display().to_string(), problem));
        }
        std::fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
        let mark = dir.join(MARK);
        let stage = Stage { dir };
        std::fs::write(&mark, b"").map_err(Error::io("create", mark))?;
        Ok(stage)
    }

    fn finish(self, out: &Path) -> Result<()> {
        crate::files::remove_file(&self.dir.join(MARK))?;
        // One sync of the file system instead of one for each of a million files.
        let folder = std::fs::File::open(&self.dir).map_err(Error::io("read", &self.dir))?;
        rustix::fs::syncfs(&folder).map_err(|e| Error::io("sync", &self.dir)(e.into()))?;
        std::fs::rename(&self.dir, out).map_err(Error::io("rename a temporary folder to", out))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Gone already after a rename.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
