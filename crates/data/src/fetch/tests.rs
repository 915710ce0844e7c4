use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use sha2::{Digest, Sha256};

use super::*;
use crate::files::hex;
use crate::{Kind, Split};

const STEMS: [&str; 4] = [
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
];

/// A set of three training images and one test image, 2 by 2.
fn contents() -> [Vec<u8>; 4] {
    let images =
        |n: u8| [&[0, 0, 8, 3, 0, 0, 0, n, 0, 0, 0, 2, 0, 0, 0, 2][..], &vec![n; n as usize * 4]].concat();
    let labels = |l: &[u8]| [&[0, 0, 8, 1, 0, 0, 0, l.len() as u8][..], l].concat();
    [images(3), labels(&[0, 1, 0]), images(1), labels(&[1])]
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    e.write_all(bytes).unwrap();
    e.finish().unwrap()
}

/// Directories and digests for one test.
struct Scene {
    root: tempfile::TempDir,
    digests: [String; 4],
}

impl Scene {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        for dir in ["source", "bin", "package"] {
            fs::create_dir(root.path().join(dir)).unwrap();
        }
        Scene { root, digests: contents().map(|c| hex(&Sha256::digest(c))) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Puts the good files into `dir`, packed or not.
    fn fill(&self, dir: &str, packed: bool) {
        for (stem, content) in STEMS.iter().zip(contents()) {
            let (name, bytes) =
                if packed { (format!("{stem}.gz"), gz(&content)) } else { (stem.to_string(), content) };
            fs::write(self.path(dir).join(name), bytes).unwrap();
        }
    }

    /// A program of that name, as a script.
    fn program(&self, name: &str, script: &str) {
        let path = self.path("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn fetch(&self, from: Option<&str>) -> Result<Report> {
        let lengths = contents().map(|c| c.len() as u64);
        let wanted = |i: usize| Wanted { stem: STEMS[i], bytes: lengths[i], sha256: &self.digests[i] };
        let package = self.path("package");
        let set = Set {
            name: "tiny",
            files: [wanted(0), wanted(1), wanted(2), wanted(3)],
            classes: &["no", "yes"],
            package: Some((package.to_str().unwrap(), "dataset-tiny")),
            npm: Some("tiny-data@1.0.0"),
            mirrors: &["http://one.invalid/tiny/", "http://two.invalid/"],
        };
        let from = from.map(|f| self.path(f));
        fetch_set(&set, &self.path("out"), from.as_deref(), Some(self.path("bin").into()))
    }

    /// What is in the output directory; only whole files may be.
    fn check(&self) {
        let out = self.path("out");
        let mut names: Vec<_> =
            fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        let mut expected = [&STEMS[..], &["classes.txt"]].concat();
        expected.sort();
        assert_eq!(names, expected);
        for (stem, content) in STEMS.iter().zip(contents()) {
            assert_eq!(fs::read(out.join(stem)).unwrap(), content);
        }
        let set = crate::open(out.to_str().unwrap(), Split::Test).unwrap();
        assert_eq!((set.len(), &set.schema().classes[..]), (1, &["no".to_owned(), "yes".to_owned()][..]));
    }
}

fn origins(report: &Report) -> Vec<Option<&str>> {
    report.files.iter().map(|f| f.origin.as_deref()).collect()
}

#[test]
fn from_a_folder_and_again() {
    for packed in [false, true] {
        let scene = Scene::new();
        scene.fill("source", packed);
        let report = scene.fetch(Some("source")).unwrap();
        scene.check();
        assert_eq!(origins(&report), [scene.path("source").to_str(); 4]);
        assert_eq!(report.files[1].path, scene.path("out").join(STEMS[1]));
        // A second run needs no origin, and finds one damaged file and one cut short.
        fs::remove_dir_all(scene.path("source")).unwrap();
        assert_eq!(origins(&scene.fetch(Some("source")).unwrap()), [None; 4]);
        fs::create_dir(scene.path("source")).unwrap();
        scene.fill("source", packed);
        let out = scene.path("out");
        let mut bent = fs::read(out.join(STEMS[0])).unwrap();
        bent[20] ^= 1;
        fs::write(out.join(STEMS[0]), bent).unwrap();
        fs::write(out.join(STEMS[3]), &contents()[3][..5]).unwrap();
        let again = scene.fetch(Some("source")).unwrap();
        let named = scene.path("source");
        assert_eq!(origins(&again), [named.to_str(), None, None, named.to_str()]);
        scene.check();
    }
}

#[test]
fn packed_files_in_place_are_good_enough() {
    let scene = Scene::new();
    fs::create_dir(scene.path("out")).unwrap();
    scene.fill("out", true);
    assert_eq!(origins(&scene.fetch(None).unwrap()), [None; 4]);
}

#[test]
fn damaged_folders_are_refused_and_leave_nothing() {
    for (bytes, expected) in [
        (contents()[2][..9].to_vec(), "has 9 of 20 bytes"),
        ([&contents()[2][..], &[0]].concat(), "is larger than the 20 bytes"),
        (vec![7; 20], "has the SHA-256"),
    ] {
        let scene = Scene::new();
        scene.fill("source", false);
        fs::write(scene.path("source").join(STEMS[2]), bytes).unwrap();
        let error = scene.fetch(Some("source")).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(expected) && text.contains(STEMS[2]) && text.contains("source"), "{text}");
        assert_eq!(error.kind(), Kind::Data);
        assert!(!scene.path("out").join(STEMS[2]).exists());
        assert!(fs::read_dir(scene.path("out")).unwrap().all(|e| e.unwrap().path().extension().is_none()));
    }
    let scene = Scene::new();
    let text = scene.fetch(Some("nowhere")).unwrap_err().to_string();
    assert!(text.contains("nowhere: train-images-idx3-ubyte: there is no such directory"), "{text}");
    assert!(!text.contains("npm"), "--from is the only origin: {text}");
}

#[test]
fn the_system_package_comes_first() {
    let scene = Scene::new();
    scene.fill("package", true);
    scene.program("npm", "exit 3");
    let report = scene.fetch(None).unwrap();
    assert!(report.attempts.is_empty() && report.files[0].origin.as_ref().unwrap().contains("dataset-tiny"));
    scene.check();
}

#[test]
fn npm_packages_are_unpacked() {
    for packed in [false, true] {
        let scene = Scene::new();
        scene.fill("source", packed);
        let mut tar =
            tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
        tar.append_dir_all("package/data", scene.path("source")).unwrap();
        let archive = scene.path("tiny.archive");
        fs::write(&archive, tar.into_inner().unwrap().finish().unwrap()).unwrap();
        let script =
            "[ \"$1 $2\" = 'pack tiny-data@1.0.0' ] && cp 'ARCHIVE' tiny-data-1.0.0.tgz && echo tiny";
        scene.program("npm", &script.replace("ARCHIVE", archive.to_str().unwrap()));
        let report = scene.fetch(None).unwrap();
        assert_eq!(origins(&report), [Some("npm package tiny-data@1.0.0"); 4]);
        assert_eq!(report.attempts.len(), 1);
        scene.check();
    }
}

#[test]
fn mirrors_are_asked_through_curl_or_wget() {
    for (tool, flag) in [("curl", "--output"), ("wget", "-O")] {
        let scene = Scene::new();
        scene.fill("source", true);
        // Only the second mirror answers, and only with what it has.
        let script = "while [ $# -gt 1 ]; do [ \"$1\" = FLAG ] && out=\"$2\"; shift; done\n\
                      case \"$1\" in http://two.invalid/*) cp \"SOURCE/${1##*/}\" \"$out\";;\n\
                      *) echo 'could not resolve host' >&2; exit 6;; esac";
        let script = script.replace("FLAG", flag).replace("SOURCE", scene.path("source").to_str().unwrap());
        scene.program(tool, &script);
        let report = scene.fetch(None).unwrap();
        assert_eq!(origins(&report), [Some("http://two.invalid/"); 4]);
        let attempts = report.attempts.join("\n");
        assert!(attempts.contains("could not resolve host") && attempts.contains(tool), "{attempts}");
        scene.check();
    }
}

#[test]
fn every_failed_attempt_is_listed() {
    let scene = Scene::new();
    scene.program("npm", "echo 'E404 no such package' >&2; exit 1");
    // Answers with a page instead of the file.
    scene.program(
        "curl",
        "for a; do [ \"$last\" = --output ] && out=$a; last=$a; done; echo '<html>not found</html>' > \"$out\"",
    );
    let error = scene.fetch(None).unwrap_err();
    let text = error.to_string();
    for part in
        ["dataset-tiny", "npm failed (exit status: 1): E404", "one.invalid", "two.invalid", "gzip", "--from"]
    {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    let text = Scene::new().fetch(None).unwrap_err().to_string();
    assert!(text.contains("npm is not installed") && text.contains("neither curl nor wget"), "{text}");
    // The set's directory holds no leftovers.
    assert_eq!(fs::read_dir(scene.path("out")).unwrap().count(), 0);
}

#[test]
fn unwritable_and_full_directories_end_it_at_once() {
    let scene = Scene::new();
    scene.fill("source", false);
    fs::write(scene.path("out"), "a file").unwrap();
    let error = scene.fetch(Some("source")).unwrap_err();
    assert!(matches!(error, Error::Io { doing: "create", .. }), "{error}");
    fs::remove_file(scene.path("out")).unwrap();

    fs::create_dir(scene.path("out")).unwrap();
    let temporary = scene.path("out").join(format!("{}.{}.tmp", STEMS[0], std::process::id()));
    std::os::unix::fs::symlink("/dev/full", &temporary).unwrap();
    let error = scene.fetch(Some("source")).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("cannot write") && text.contains("No space left"), "{text}");
    assert!(!temporary.exists() && !scene.path("out").join(STEMS[0]).exists());
}

#[test]
fn unknown_sets_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let error = fetch("fasion-mnist", &dir.path().join("out"), None).unwrap_err();
    assert!(error.to_string().contains("did you mean \"fashion-mnist\"?") && error.kind() == Kind::Usage);
    assert!(!dir.path().join("out").exists());
}
