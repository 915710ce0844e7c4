//! The user's cache of compiled kernels. A file that is not as it was written is as good as none, and where
//! nothing can be written the compiler runs again in every process.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

/// What a cached file begins with; then the length (8 bytes, little endian), the BLAKE3 hash of the file's name and the
/// bytes, and the bytes.
const MAGIC: &[u8; 8] = b"PHXCUB02";
const HEADER: usize = 8 + 8 + blake3::OUT_LEN;

/// An unfinished file of this age is nobody's any more: to write one takes less than a second.
const STALE: Duration = Duration::from_secs(3600);

/// The folder: `PHALANX_CACHE`, else `phalanx/cubin` in the user's cache. `None` without a home.
pub(crate) fn folder(env: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let set = |name: &str| env(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(own) = set("PHALANX_CACHE") {
        return Some(own);
    }
    let user = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|h| h.join(".cache")))?;
    Some(user.join("phalanx").join("cubin"))
}

/// The file's name for everything that the result depends on.
pub(crate) fn file_name(key: &[&str]) -> String {
    let mut hash = blake3::Hasher::new();
    for part in key {
        // With its length, so that no two lists give the same bytes.
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    format!("{}.cubin", hash.finalize().to_hex())
}

/// The hash that says that these bytes belong to a file of this name.
fn seal(file: &Path, body: &[u8]) -> blake3::Hash {
    let mut hash = blake3::Hasher::new();
    hash.update(file.file_name().map_or(&[], |n| n.as_encoded_bytes()));
    hash.update(body);
    hash.finalize()
}

/// The cached bytes, if the file is whole.
pub(crate) fn read(file: &Path) -> Option<Vec<u8>> {
    let mut bytes = std::fs::read(file).ok()?;
    let header = bytes.get(..HEADER)?;
    let length = u64::from_le_bytes(header[8..16].try_into().ok()?);
    let body = &bytes[HEADER..];
    let whole = &header[..8] == MAGIC
        && body.len() as u64 == length
        && seal(file, body).as_bytes() == &header[16..HEADER];
    if !whole {
        return None;
    }
    bytes.drain(..HEADER);
    Some(bytes)
}

/// Writes the file in one step, as far as the folder allows.
pub(crate) fn write(file: &Path, body: &[u8]) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let Some(folder) = file.parent() else { return };
    if std::fs::create_dir_all(folder).is_err() {
        return;
    }
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
    bytes.extend_from_slice(seal(file, body).as_bytes());
    bytes.extend_from_slice(body);
    // Machines and containers that share the folder may share process numbers, too: the name tells the file, and a
    // file that somebody else is writing is left to them.
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = file.file_stem().map_or_else(Default::default, |n| n.to_string_lossy());
    let temporary = folder.join(format!(".{name}-{}-{count}.tmp", std::process::id()));
    let Ok(mut out) = std::fs::File::create_new(&temporary) else { return };
    if out.write_all(&bytes).and_then(|()| std::fs::rename(&temporary, file)).is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    sweep(folder, SystemTime::now());
}

/// Removes what processes that were killed have left half written.
fn sweep(folder: &Path, now: SystemTime) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let written = entry.metadata().and_then(|m| m.modified()).ok();
        let old = written.and_then(|w| now.duration_since(w).ok()).is_some_and(|age| age > STALE);
        if old && name.starts_with('.') && name.ends_with(".tmp") {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_comes_back_and_a_damaged_one_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a/b.cubin");
        write(&file, b"some code");
        assert_eq!(read(&file).unwrap(), b"some code");
        let good = std::fs::read(&file).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&file, &bad).unwrap();
            assert!(read(&file).is_none(), "byte {at}");
            std::fs::write(&file, &good[..at]).unwrap();
            assert!(read(&file).is_none(), "cut at {at}");
        }
        write(&file, b"some code");
        assert_eq!(read(&file).unwrap(), b"some code");
        let left: Vec<_> = std::fs::read_dir(folder.path().join("a")).unwrap().collect();
        assert_eq!(left.len(), 1, "no temporary is left");
    }

    #[test]
    fn what_was_left_half_written_is_removed_when_it_is_old() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let names = [".b-1-0.tmp", "other.tmp", ".hidden", "b.cubin"];
        for name in names {
            std::fs::write(at(name), "x").unwrap();
        }
        let old = std::fs::File::options().write(true).open(at(".b-1-0.tmp")).unwrap();
        old.set_modified(SystemTime::now() - 2 * STALE).unwrap();
        std::fs::write(at(".c-2-0.tmp"), "being written").unwrap();
        write(&at("d.cubin"), b"some code");
        let left = [at(".b-1-0.tmp"), at(".c-2-0.tmp"), at("d.cubin")].map(|f| f.exists());
        assert_eq!(left, [false, true, true]);
        sweep(folder.path(), SystemTime::now() + 2 * STALE);
        assert!(!at(".c-2-0.tmp").exists() && names[1..].iter().all(|n| at(n).exists()));
    }

    #[test]
    fn the_name_depends_on_every_part_and_where_it_ends() {
        let names = [&["a", "bc"][..], &["ab", "c"], &["abc"], &["a", "bc", ""]].map(file_name);
        for (i, a) in names.iter().enumerate() {
            assert!(names[..i].iter().all(|b| b != a));
        }
    }

    #[test]
    fn the_folder_is_ours_then_the_users() {
        let with = |pairs: &'static [(&str, &str)]| {
            folder(&move |n| pairs.iter().find(|p| p.0 == n).map(|p| OsString::from(p.1)))
        };
        assert_eq!(with(&[("PHALANX_CACHE", "/c"), ("HOME", "/h")]), Some(PathBuf::from("/c")));
        assert_eq!(
            with(&[("XDG_CACHE_HOME", "/x"), ("HOME", "/h")]),
            Some(PathBuf::from("/x/phalanx/cubin"))
        );
        assert_eq!(with(&[("HOME", "/h")]), Some(PathBuf::from("/h/.cache/phalanx/cubin")));
        assert_eq!(with(&[]), None);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let blocked = folder.path().join("file");
        std::fs::write(&blocked, "x").unwrap();
        write(&blocked.join("sub/x.cubin"), b"code");
        assert!(read(&blocked.join("sub/x.cubin")).is_none());
    }
}
