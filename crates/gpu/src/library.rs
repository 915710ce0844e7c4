//! Where NVIDIA's libraries are: the driver comes with the system, the others with a toolkit or as Python packages.

use std::ffi::{CString, OsString};
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use crate::{Error, Result};

/// A library to look for.
pub(crate) struct Wanted {
    /// What it is called in messages.
    pub(crate) library: &'static str,
    /// File names, the preferred first.
    pub(crate) names: &'static [&'static str],
    /// Beginning of the names of files in the same folder that it opens by name itself: they are loaded first.
    pub(crate) parts: Option<&'static str>,
    /// Whether it comes with a toolkit or as a Python package; the driver does not.
    pub(crate) packaged: bool,
    /// How to get it.
    pub(crate) hint: &'static str,
}

/// A loaded library. It stays loaded for the life of the process.
pub(crate) struct Loaded {
    library: Library,
    /// The path or name by which it was opened.
    pub(crate) path: String,
    /// Its version, for messages; filled after loading.
    pub(crate) version: String,
}

impl Loaded {
    /// Address of a function.
    pub(crate) fn symbol(&self, name: &'static str) -> Result<usize> {
        let missing = || Error::MissingFunction {
            library: self.path.clone(),
            version: self.version.clone(),
            function: name,
        };
        let c_name = CString::new(name).map_err(|_| missing())?;
        // SAFETY: the address is only carried on as a number; who turns it into a function says its type.
        let found = unsafe { self.library.get::<*mut std::ffi::c_void>(c_name.as_bytes_with_nul()) };
        let address = found.map(|s| s.into_raw() as usize).map_err(|_| missing())?;
        if address == 0 { Err(missing()) } else { Ok(address) }
    }
}

/// Finds and loads a library.
pub(crate) fn open(wanted: &Wanted) -> Result<Loaded> {
    let mut tried = Vec::new();
    let own = own_folders(&|name| std::env::var_os(name));
    if let Some(found) = open_in(&own, wanted, &mut tried) {
        return Ok(found);
    }
    for name in wanted.names {
        if let Some(found) = open_file(Path::new(name), &mut tried) {
            return Ok(found);
        }
    }
    if wanted.packaged {
        let folders = package_folders(&|name| std::env::var_os(name));
        if let Some(found) = open_in(&folders, wanted, &mut tried) {
            return Ok(found);
        }
    }
    Err(Error::NoLibrary { library: wanted.library, tried, hint: wanted.hint })
}

fn open_in(folders: &[PathBuf], wanted: &Wanted, tried: &mut Vec<String>) -> Option<Loaded> {
    for folder in folders {
        let mut any = false;
        for name in wanted.names {
            let file = folder.join(name);
            if !file.exists() {
                continue;
            }
            any = true;
            if let Some(parts) = wanted.parts {
                load_parts(folder, parts);
            }
            if let Some(found) = open_file(&file, tried) {
                return Some(found);
            }
        }
        if !any {
            tried.push(format!("{} (not there)", folder.join(wanted.names[0]).display()));
        }
    }
    None
}

fn open_file(file: &Path, tried: &mut Vec<String>) -> Option<Loaded> {
    // SAFETY: NVIDIA's libraries and the tests' stand-ins for them have no initialisers with preconditions.
    match unsafe { Library::open(Some(file), RTLD_NOW | RTLD_GLOBAL) } {
        Ok(library) => {
            let path = file.display().to_string();
            Some(Loaded { library, path, version: String::from("unknown") })
        }
        Err(e) => {
            tried.push(format!("{} ({e})", file.display()));
            None
        }
    }
}

/// Loads the files of `folder` whose names begin with `parts`, and keeps them. Failures show when they are used.
fn load_parts(folder: &Path, parts: &str) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(parts) {
            // SAFETY: as in `open_file`.
            if let Ok(part) = unsafe { Library::open(Some(entry.path()), RTLD_NOW | RTLD_GLOBAL) } {
                std::mem::forget(part);
            }
        }
    }
}

/// Reads an environment variable; a parameter so that tests need not change the process's.
type Env<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// The folders of `PHALANX_CUDA_PATH`.
fn own_folders(env: Env) -> Vec<PathBuf> {
    env("PHALANX_CUDA_PATH")
        .map(|v| std::env::split_paths(&v).filter(|p| !p.as_os_str().is_empty()).collect())
        .unwrap_or_default()
}

/// Existing folders of toolkits and Python packages, in the order in which they are searched.
fn package_folders(env: Env) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let mut toolkits: Vec<PathBuf> =
        ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(|n| env(n)).map(PathBuf::from).collect();
    toolkits.push(PathBuf::from("/usr/local/cuda"));
    for t in toolkits {
        folders.extend([t.join("lib64"), t.join("targets/x86_64-linux/lib")]);
    }
    for site in site_packages(env) {
        let mut packages = subfolders(&site.join("nvidia"), "");
        // Those of a new CUDA version (`cu13`) before the single ones of an old (`cublas`, …).
        packages.sort_by_key(|p| (!p.ends_with("cu13"), p.clone()));
        folders.extend(packages.into_iter().map(|p| p.join("lib")));
    }
    folders.retain(|f| f.is_dir());
    let mut unique = Vec::with_capacity(folders.len());
    for f in folders {
        if !unique.contains(&f) {
            unique.push(f);
        }
    }
    unique
}

/// Python's package folders: of the active environment, of the `python3` on the path, of the system and of the user.
fn site_packages(env: Env) -> Vec<PathBuf> {
    let mut prefixes: Vec<PathBuf> = env("VIRTUAL_ENV").map(PathBuf::from).into_iter().collect();
    let python = env("PATH")
        .and_then(|path| std::env::split_paths(&path).map(|p| p.join("python3")).find(|p| p.exists()));
    if let Some(python) = python {
        // An environment's `python3` is a link to the one it was made with; both have packages.
        for file in [Some(python.clone()), python.canonicalize().ok()].into_iter().flatten() {
            prefixes.extend(file.parent().and_then(Path::parent).map(Path::to_path_buf));
        }
    }
    prefixes.push(PathBuf::from("/usr/local"));
    prefixes.extend(env("HOME").map(|h| PathBuf::from(h).join(".local")));
    let mut sites = vec![];
    for prefix in prefixes {
        for version in subfolders(&prefix.join("lib"), "python3") {
            sites.extend([version.join("site-packages"), version.join("dist-packages")]);
        }
    }
    sites.push(PathBuf::from("/usr/lib/python3/dist-packages"));
    sites
}

/// Folders in `folder` whose names begin with `start`, sorted.
fn subfolders(folder: &Path, start: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().starts_with(start))
        .map(|e| e.path())
        .filter(|p| p.is_dir())
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const NOWHERE: Wanted = Wanted {
        library: "made-up library",
        names: &["libphalanx-none.so.2", "libphalanx-none.so.1"],
        parts: None,
        packaged: true,
        hint: "make one",
    };

    #[test]
    fn what_is_not_found_is_told_with_every_place_and_the_hint() {
        let Err(e) = open(&NOWHERE) else { panic!() };
        let text = e.to_string();
        assert!(text.starts_with("no made-up library: tried ") && text.ends_with("; make one"), "{text}");
        assert!(text.contains("libphalanx-none.so.2 (") && text.contains("libphalanx-none.so.1 ("), "{text}");
    }

    #[test]
    fn a_file_that_is_no_library_is_passed_over_and_told() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("libphalanx-none.so.1"), "text").unwrap();
        let mut tried = Vec::new();
        let folders = [folder.path().to_path_buf(), folder.path().join("none")];
        assert!(open_in(&folders, &NOWHERE, &mut tried).is_none());
        assert_eq!(tried.len(), 2, "{tried:?}");
        assert!(
            tried[0].contains("libphalanx-none.so.1 (") && tried[1].ends_with("(not there)"),
            "{tried:?}"
        );
    }

    #[test]
    fn a_missing_function_is_named_with_the_library_and_its_version() {
        let mut tried = Vec::new();
        let loaded = open_file(Path::new("libc.so.6"), &mut tried).unwrap();
        assert_ne!(loaded.symbol("strlen").unwrap(), 0);
        let e = loaded.symbol("cuMakeCoffee").unwrap_err().to_string();
        assert!(
            e.contains("libc.so.6") && e.contains("version unknown") && e.contains("cuMakeCoffee"),
            "{e}"
        );
    }

    #[test]
    fn packages_are_searched_in_the_environment_then_beside_python() {
        let root = tempfile::tempdir().unwrap();
        let at = |p: &str| root.path().join(p);
        for p in [
            "env/lib/python3.12/site-packages/nvidia/cublas/lib",
            "env/lib/python3.12/site-packages/nvidia/cu13/lib",
            "env/lib/python3.12/site-packages/nvidia/empty",
            "opt/lib/python3.11/site-packages/nvidia/cudnn/lib",
            "opt/bin",
            "path",
            "home/.local/lib/python3.10/site-packages/nvidia/nccl/lib",
            "toolkit/lib64",
        ] {
            fs::create_dir_all(at(p)).unwrap();
        }
        fs::write(at("opt/bin/python3.11"), "").unwrap();
        std::os::unix::fs::symlink(at("opt/bin/python3.11"), at("path/python3")).unwrap();
        let env = |name: &str| {
            let value = match name {
                "VIRTUAL_ENV" => at("env"),
                "PATH" => at("path"),
                "HOME" => at("home"),
                "CUDA_HOME" => at("toolkit"),
                _ => return None,
            };
            Some(value.into_os_string())
        };
        let found = package_folders(&env);
        let ours: Vec<_> = found.iter().filter_map(|f| f.strip_prefix(root.path()).ok()).collect();
        let wanted = [
            "toolkit/lib64",
            "env/lib/python3.12/site-packages/nvidia/cu13/lib",
            "env/lib/python3.12/site-packages/nvidia/cublas/lib",
            "opt/lib/python3.11/site-packages/nvidia/cudnn/lib",
            "home/.local/lib/python3.10/site-packages/nvidia/nccl/lib",
        ];
        assert_eq!(ours, wanted.map(Path::new));
    }

    #[test]
    fn own_folders_are_split_at_colons() {
        let env = |_: &str| Some(OsString::from("/a::/b"));
        assert_eq!(own_folders(&env), [PathBuf::from("/a"), PathBuf::from("/b")]);
        assert!(own_folders(&|_| None).is_empty());
    }
}
