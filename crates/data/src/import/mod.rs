//! Data sets as others distribute them: each importer turns a source into a [`Listing`] of its samples (keys, labels,
//! and where the bytes lie), sorted, without reading the samples themselves. Packing reads them later, in its
//! own order and from any thread or rank, with one positioned read each.

#[cfg(test)]
mod archive_tests;
mod cifar;
mod csv;
mod folder;
mod imagenet;
mod listing;
mod mat;
mod npy;
mod read;
mod set;
#[cfg(test)]
mod table_tests;
mod tar;
#[cfg(test)]
pub(crate) mod tests;
mod webdataset;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use listing::LeftOut;
pub use listing::{Import, Listing};
pub(crate) use listing::{Layout, Listed, Part, Store};
pub(crate) use read::Reader;
use serde::Serialize;
pub(crate) use set::splits_of;

use crate::{Error, Result};

/// What a source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// ImageNet as distributed: a folder with the tar of class tars, the validation tar and its ground truth.
    Imagenet,
    /// A folder for each class, perhaps below `train` and `val`.
    Folder,
    /// Tars with the files of each sample side by side: `key.jpg`, `key.cls`, `key.txt`, `key.json`, `key.NAME.npy`.
    Webdataset,
    /// A set that training could open: IDX files, an embedded set, a set of shards.
    Set,
    /// The binary version of CIFAR-10 or CIFAR-100.
    Cifar,
    /// A table with the columns `file` and `label` or `labels`, `target` and `text`, and the files.
    Csv,
    /// None: images are computed; see [`crate::Synth`].
    Synth,
}

impl Format {
    /// The name on the command line and in a set's description.
    pub const fn name(self) -> &'static str {
        match self {
            Format::Imagenet => "imagenet",
            Format::Folder => "folder",
            Format::Webdataset => "webdataset",
            Format::Set => "set",
            Format::Cifar => "cifar",
            Format::Csv => "csv",
            Format::Synth => "synth",
        }
    }
}

/// What is to be imported.
#[derive(Debug, Clone, Default)]
pub struct ImportRequest {
    /// A folder, a file, or the name of an embedded set.
    pub source: PathBuf,
    /// What it is; found out when left out.
    pub format: Option<Format>,
    /// ImageNet: the validation labels, instead of those found beside the tars. CSV: none.
    pub ground_truth: Option<PathBuf>,
    /// The classes' names: ImageNet's synset words, or one name a line in the order of the labels.
    pub class_names: Option<PathBuf>,
    /// CSV: the folder that the column `file` counts from, instead of the table's.
    pub root: Option<PathBuf>,
}

/// Lists the samples of a source. The same source gives the same listing wherever it lies.
///
/// Fails with [`Error::Usage`] when it is none of the known formats, with [`Error::Format`] when something in it
/// cannot be (an archive with links, a table with a broken quote, two samples of one name), and with [`Error::Io`].
pub fn import(request: &ImportRequest) -> Result<Import> {
    let format = match request.format {
        Some(format) => format,
        None => guess(&request.source)?,
    };
    check_options(request, format)?;
    let mut import = match format {
        Format::Imagenet => imagenet::import(request)?,
        Format::Folder => folder::import(request)?,
        Format::Webdataset => webdataset::import(request)?,
        Format::Set => set::import(request)?,
        Format::Cifar => cifar::import(request)?,
        Format::Csv => csv::import(request)?,
        Format::Synth => {
            return Err(Error::usage("--format", "synthetic sets have no source; see `phalanx data synth`"));
        }
    };
    import.meta.insert("source_format".into(), format.name().into());
    for (split, listing) in &import.splits {
        if listing.is_empty() {
            let split = split.map_or(String::new(), |s| format!(" in {s}"));
            let hints = listing.warnings.iter().map(|w| format!("; {w}")).collect::<String>();
            let problem = format!("there is no sample{split} for the format {}{hints}", format.name());
            return Err(Error::format(&listing.path, problem));
        }
    }
    Ok(import)
}

/// Fails on an option that would do nothing.
fn check_options(request: &ImportRequest, format: Format) -> Result<()> {
    use Format::{Cifar, Csv, Folder, Imagenet, Webdataset};
    for (option, given, of) in [
        ("--ground-truth", request.ground_truth.is_some(), &[Imagenet][..]),
        ("--root", request.root.is_some(), &[Csv]),
        ("--class-names", request.class_names.is_some(), &[Imagenet, Folder, Webdataset, Cifar, Csv]),
    ] {
        if given && !of.contains(&format) {
            let known: Vec<_> = of.iter().map(|f| f.name()).collect();
            let problem =
                format!("is for {}, and {} is {}", known.join(", "), request.source.display(), format.name());
            return Err(Error::usage(option, problem));
        }
    }
    Ok(())
}

/// What a source looks like.
fn guess(source: &Path) -> Result<Format> {
    let unknown = |problem: &str| Err(Error::usage(format!("{}", source.display()), problem));
    if source.to_str().is_some_and(|name| crate::embedded_names().contains(&name)) {
        return Ok(Format::Set);
    }
    let Ok(meta) = std::fs::metadata(source) else { return unknown("there is no such folder or file") };
    let ends = |name: &str, end: &str| name.to_ascii_lowercase().ends_with(end);
    if !meta.is_dir() {
        let name = source.to_string_lossy();
        return match () {
            () if ends(&name, ".csv") => Ok(Format::Csv),
            () if ends(&name, ".tar") => Ok(Format::Webdataset),
            () => unknown("is no folder, no .csv and no .tar; say what it is with --format"),
        };
    }
    let names = visible(source)?;
    let any = |test: &dyn Fn(&str) -> bool| names.iter().any(|(name, _)| test(name));
    // Of an unfit folder its importer says more.
    let splits = split_folders(source).map(|s| s.folders).unwrap_or_default();
    let train = splits.iter().find(|(split, _)| *split == Some(TRAIN)).or(splits.first());
    let inside = train.filter(|(split, _)| split.is_some()).map(|(_, dir)| visible(dir)).transpose()?;
    let inside = inside.unwrap_or_default();
    Ok(match () {
        () if any(&|n| n == "dataset.rkyv" || n.contains("idx3-ubyte")) => Format::Set,
        () if inside.iter().any(|(n, _)| n == "dataset.rkyv") => Format::Set,
        () if any(&|n| imagenet::is_train_tar(n) || imagenet::is_val_tar(n)) => Format::Imagenet,
        () if cifar::root(source).is_some() => Format::Cifar,
        () if any(&|n| ends(n, ".tar")) => Format::Webdataset,
        () if inside.iter().any(|(n, _)| ends(n, ".tar")) => Format::Webdataset,
        () if names.iter().any(|(_, is_dir)| *is_dir) => Format::Folder,
        () => {
            return unknown(
                "holds no class folders, tars, IDX or CIFAR files that are known; say what it is with --format \
                 (a table of files: name the .csv itself)",
            );
        }
    })
}

/// The names in a folder that are text, sorted, and whether each is a folder; links are followed.
fn names_in(dir: &Path) -> Result<Vec<(String, bool)>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io("read", dir))? {
        let entry = entry.map_err(Error::io("read", dir))?;
        let name = entry.file_name().into_string().map_err(|name| {
            Error::format(dir, format!("the name {:?} is not UTF-8", name.to_string_lossy()))
        })?;
        let kind = entry.file_type().map_err(Error::io("read", entry.path()))?;
        // A link that leads nowhere is no folder; whoever needs it as a file says so.
        let is_dir = kind.is_dir() || (kind.is_symlink() && entry.path().is_dir());
        names.push((name, is_dir));
    }
    names.sort_unstable();
    Ok(names)
}

/// Those of [`names_in`] that are no litter.
fn visible(dir: &Path) -> Result<Vec<(String, bool)>> {
    let mut names = names_in(dir)?;
    names.retain(|(name, _)| !is_litter(name));
    Ok(names)
}

/// Names of classes from a file, one a line; None where there is no such file.
fn lines_of(path: &Path) -> Result<Option<Vec<String>>> {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let lines = text.trim_start_matches('\u{feff}').lines();
            Ok(Some(lines.map(|l| l.trim_end().to_owned()).filter(|l| !l.is_empty()).collect()))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) if e.kind() == std::io::ErrorKind::InvalidData => {
            Err(Error::format(path, "is not UTF-8 text"))
        }
        Err(e) => Err(Error::io("read", path)(e)),
    }
}

/// The place of each name in a list of classes, by which labels are told; fails on one that is there twice.
fn places<'a>(path: &Path, names: &'a [String]) -> Result<HashMap<&'a str, usize>> {
    let mut places = HashMap::with_capacity(names.len());
    for (i, name) in names.iter().enumerate() {
        if let Some(first) = places.insert(name.as_str(), i) {
            let problem = format!(
                "the class {name:?} is there twice, as number {first} and {i} of the list of classes; which one a label means is not known"
            );
            return Err(Error::format(path, problem));
        }
    }
    Ok(places)
}

/// A split's name, and where it lies; without a name it is all of the source.
type SplitFolder = (Option<&'static str>, PathBuf);

/// The names that `--class-names` gives, or those of `classes.txt` in the folder, or else in that of its first split that has one.
fn class_names(request: &ImportRequest, dir: &Path, splits: &[SplitFolder]) -> Result<Option<Vec<String>>> {
    match &request.class_names {
        Some(path) => match lines_of(path)? {
            Some(lines) => Ok(Some(lines)),
            None => Err(Error::format(path, "is not there")),
        },
        None => {
            let named = splits.iter().filter(|(split, _)| split.is_some()).map(|(_, dir)| &**dir);
            let mut found =
                std::iter::once(dir).chain(named).map(|dir| lines_of(&dir.join(crate::idx::CLASSES)));
            found.find_map(Result::transpose).transpose()
        }
    }
}

/// The parts of a folder that are sets, and what the user should know of the rest.
struct Splits {
    folders: Vec<SplitFolder>,
    warnings: Vec<String>,
}

/// What people call the two splits, in any case; of several for evaluation the first counts.
const CALLED: [(&str, &[&str]); 2] =
    [(TRAIN, &["train", "training"]), (VAL, &["val", "valid", "validation", "dev", "test", "testing"])];

/// The splits of a folder: those for training and evaluation when both are there; one alone where nothing else is there and it
/// holds folders or archives, so is no class; else the folder itself.
///
/// Fails when two folders are meant for training.
fn split_folders(dir: &Path) -> Result<Splits> {
    let names = visible(dir)?;
    let folders = || names.iter().filter(|(_, is_dir)| *is_dir).map(|(name, _)| name.as_str());
    let called = |names: &'static [&str]| -> Vec<&str> {
        let of = |wanted: &&str| folders().filter(|f| f.eq_ignore_ascii_case(wanted)).collect::<Vec<_>>();
        names.iter().flat_map(of).collect()
    };
    let [train, eval] = CALLED.map(|(_, names)| called(names));
    let whole = || Splits { folders: vec![(None, dir.to_owned())], warnings: Vec::new() };
    if let [one, two, ..] = train[..] {
        return Err(Error::format(dir, format!("holds two folders for training, {one:?} and {two:?}")));
    }
    let found: Vec<_> = [(TRAIN, train.first()), (VAL, eval.first())]
        .into_iter()
        .filter_map(|(split, folder)| Some((split, *folder?)))
        .collect();
    if let [(_, only)] = found[..] {
        let holds = |(name, is_dir): &(String, bool)| *is_dir || extension(name) == "tar";
        let others = |(name, is_dir): &(String, bool)| {
            name != only && (*is_dir || is_image(name) || extension(name) == "tar")
        };
        if names.iter().any(others) || !visible(&dir.join(only))?.iter().any(holds) {
            return Ok(whole());
        }
    }
    if found.is_empty() {
        return Ok(whole());
    }
    let rest = folders().filter(|f| !found.iter().any(|(_, known)| known == f));
    let mut warnings: Vec<_> =
        rest.map(|f| format!("left out the folder {f:?}, which `data pack` takes by itself")).collect();
    let mut beside = LeftOut::default();
    for (name, _) in names.iter().filter(|(n, is_dir)| !is_dir && (is_image(n) || extension(n) == "tar")) {
        beside.add("files beside the splits", name);
    }
    warnings.extend(beside.warnings());
    let folders = found.iter().map(|(split, folder)| (Some(*split), dir.join(folder))).collect();
    Ok(Splits { folders, warnings })
}

/// Names that systems leave among files: hidden ones, AppleDouble's twins (RFC 1740), what zip adds on a Mac.
fn is_litter(name: &str) -> bool {
    name.split('/').any(|part| part.starts_with('.') || part == "__MACOSX" || part == "Thumbs.db")
}

/// The folder of what is trained on.
pub(crate) const TRAIN: &str = "train";
/// The folder of what is evaluated on.
pub(crate) const VAL: &str = "val";

/// Whether a file's name is that of an image that can be read.
fn is_image(name: &str) -> bool {
    !is_litter(name) && matches!(extension(name).as_str(), "jpg" | "jpeg" | "png")
}

/// The lower-case ending of a file's name, without its dot; empty where there is none.
fn extension(name: &str) -> String {
    let base = name.rsplit('/').next().unwrap_or(name);
    base.rsplit_once('.').map_or(String::new(), |(_, end)| end.to_ascii_lowercase())
}
