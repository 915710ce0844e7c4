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
    /// Fails where the library's version, as a number, is below `oldest`, which people write as `needed`.
    pub(crate) fn at_least(&self, version: usize, oldest: usize, needed: &str) -> Result<()> {
        if version >= oldest {
            return Ok(());
        }
        let (library, found, needed) = (self.path.clone(), self.version.clone(), needed.to_owned());
        Err(Error::OldLibrary { library, found, needed })
    }

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
    open_by(wanted, &|name| std::env::var_os(name))
}

fn open_by(wanted: &Wanted, env: Env) -> Result<Loaded> {
    let mut tried = Vec::new();
    if let Some(found) = open_in(&own_folders(env), wanted, wanted.names, &mut tried) {
        return Ok(found);
    }
    let folders = if wanted.packaged { package_folders(env, &mut tried) } else { Vec::new() };
    // A preferred version in a package before an older one of the system.
    for name in wanted.names {
        if let Some(found) = open_file(Path::new(name), &mut tried) {
            return Ok(found);
        }
        if let Some(found) = open_in(&folders, wanted, &[name], &mut tried) {
            return Ok(found);
        }
    }
    Err(Error::NoLibrary { library: wanted.library, tried, hint: wanted.hint })
}

fn open_in(folders: &[PathBuf], wanted: &Wanted, names: &[&str], tried: &mut Vec<String>) -> Option<Loaded> {
    for folder in folders {
        let mut any = false;
        for name in names {
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
            tried.push(format!("{} (not there)", folder.join(names.first().unwrap_or(&"")).display()));
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
            // What the loader says is the cause of what `libloading` says.
            let why = std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string);
            let file = file.display().to_string();
            let why = why.strip_prefix(&format!("{file}: ")).unwrap_or(&why);
            tried.push(format!("{file} ({why})"));
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

/// Existing folders of toolkits and Python packages, in the order in which they are searched; a toolkit that is named and not
/// there is told.
fn package_folders(env: Env, tried: &mut Vec<String>) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let libraries = |toolkit: &Path| [toolkit.join("lib64"), toolkit.join("targets/x86_64-linux/lib")];
    for name in ["CUDA_HOME", "CUDA_PATH"] {
        let Some(toolkit) = env(name).filter(|v| !v.is_empty()).map(PathBuf::from) else { continue };
        let places = libraries(&toolkit);
        if !places.iter().any(|p| p.is_dir()) {
            tried.push(format!("{name}={} (no toolkit: there is no lib64 in it)", toolkit.display()));
        }
        folders.extend(places);
    }
    folders.extend(libraries(Path::new("/usr/local/cuda")));
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
    let mut prefixes: Vec<PathBuf> =
        ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(env).map(PathBuf::from).collect();
    let python = env("PATH")
        .and_then(|path| std::env::split_paths(&path).map(|p| p.join("python3")).find(|p| p.exists()));
    if let Some(python) = python {
        // An environment's `python3` is a link to the one it was made with; both have packages.
        for file in [Some(python.clone()), python.canonicalize().ok()].into_iter().flatten() {
            let prefix = file.parent().and_then(Path::parent);
            prefixes.extend(prefix.map(Path::to_path_buf));
            // pyenv's is a script that chooses one of its versions.
            prefixes.extend(prefix.map_or(Vec::new(), |root| chosen_by_pyenv(root, env)));
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

/// The versions of Python that pyenv has in `root`: the chosen ones first.
fn chosen_by_pyenv(root: &Path, env: Env) -> Vec<PathBuf> {
    let all = subfolders(&root.join("versions"), "");
    let chosen = env("PYENV_VERSION").map(|v| v.to_string_lossy().into_owned());
    let chosen = chosen.or_else(|| std::fs::read_to_string(root.join("version")).ok()).unwrap_or_default();
    let names: Vec<&str> = chosen.split([':', '\n', ' ']).filter(|n| !n.is_empty()).collect();
    let is_chosen = |p: &PathBuf| p.file_name().is_some_and(|n| names.iter().any(|c| n == *c));
    let (mut first, rest): (Vec<_>, Vec<_>) = all.into_iter().partition(is_chosen);
    first.extend(rest);
    first
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
        assert!(open_in(&folders, &NOWHERE, NOWHERE.names, &mut tried).is_none());
        assert_eq!(tried.len(), 2, "{tried:?}");
        // With the loader's own words, which say what is wrong.
        assert!(
            tried[0].contains("libphalanx-none.so.1 (")
                && tried[0].contains("file too short")
                && tried[1].ends_with("(not there)"),
            "{tried:?}"
        );
    }

    /// The C library's file as this process has it.
    fn libc() -> PathBuf {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let file =
            maps.lines().filter_map(|l| l.split_whitespace().nth(5)).find(|f| f.contains("/libc.so.6"));
        PathBuf::from(file.unwrap())
    }

    #[test]
    fn a_newer_version_of_a_package_comes_before_an_older_one_of_the_system() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("lib/python3.12/site-packages/nvidia/x/lib");
        fs::create_dir_all(&folder).unwrap();
        let env = |name: &str| (name == "VIRTUAL_ENV").then(|| root.path().into());
        // The system has the older one.
        let wanted = Wanted { names: &["libphalanx-none.so.2", "libc.so.6"], ..NOWHERE };
        assert_eq!(open_by(&wanted, &env).unwrap().path, "libc.so.6");
        // One that cannot be loaded is passed over.
        let newer = folder.join("libphalanx-none.so.2");
        fs::write(&newer, "text").unwrap();
        assert_eq!(open_by(&wanted, &env).unwrap().path, "libc.so.6");
        fs::remove_file(&newer).unwrap();
        std::os::unix::fs::symlink(libc(), &newer).unwrap();
        assert_eq!(Path::new(&open_by(&wanted, &env).unwrap().path), newer);
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
            "pyenv/shims",
            "pyenv/versions/3.9.1/lib/python3.9/site-packages/nvidia/cublas/lib",
            "pyenv/versions/3.8.2/lib/python3.8/site-packages/nvidia/cublas/lib",
        ] {
            fs::create_dir_all(at(p)).unwrap();
        }
        fs::write(at("pyenv/shims/python3"), "#!/bin/sh").unwrap();
        fs::write(at("pyenv/version"), "3.9.1\n").unwrap();
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
        let mut tried = Vec::new();
        let found = package_folders(&env, &mut tried);
        assert!(tried.is_empty(), "{tried:?}");
        let ours: Vec<_> = found.iter().filter_map(|f| f.strip_prefix(root.path()).ok()).collect();
        let wanted = [
            "toolkit/lib64",
            "env/lib/python3.12/site-packages/nvidia/cu13/lib",
            "env/lib/python3.12/site-packages/nvidia/cublas/lib",
            "opt/lib/python3.11/site-packages/nvidia/cudnn/lib",
            "home/.local/lib/python3.10/site-packages/nvidia/nccl/lib",
        ];
        assert_eq!(ours, wanted.map(Path::new));
        // pyenv's python3 is a script beside its versions; a toolkit that is not there is told.
        let env = |name: &str| match name {
            "PATH" => Some(at("pyenv/shims").into_os_string()),
            "CUDA_PATH" => Some(at("nowhere").into_os_string()),
            _ => None,
        };
        let found = package_folders(&env, &mut tried);
        let ours: Vec<_> = found.iter().filter_map(|f| f.strip_prefix(root.path()).ok()).collect();
        let of =
            |v: &str, p: &str| format!("pyenv/versions/{v}/lib/python{p}/site-packages/nvidia/cublas/lib");
        assert_eq!(ours, [of("3.9.1", "3.9"), of("3.8.2", "3.8")].map(PathBuf::from));
        assert!(tried[0].starts_with("CUDA_PATH=") && tried[0].contains("no toolkit"), "{tried:?}");
    }

    #[test]
    fn a_library_that_is_too_old_is_named_with_the_one_that_is_needed() {
        let loaded = |version: &str| Loaded {
            library: Library::this(),
            path: "/x/libcudnn.so.9".into(),
            version: version.into(),
        };
        loaded("9.1.0").at_least(90_100, 90_000, "9.0").unwrap();
        let e = loaded("8.9.7").at_least(8907, 90_000, "9.0").unwrap_err().to_string();
        assert!(e.contains("/x/libcudnn.so.9 is version 8.9.7, and 9.0 or newer is needed"), "{e}");
    }

    #[test]
    fn own_folders_are_split_at_colons() {
        let env = |_: &str| Some(OsString::from("/a::/b"));
        assert_eq!(own_folders(&env), [PathBuf::from("/a"), PathBuf::from("/b")]);
        assert!(own_folders(&|_| None).is_empty());
    }
}
