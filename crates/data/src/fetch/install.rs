//! Verified, atomic writing.

use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::Wanted;
use crate::files::{Temporary, hex};
use crate::{Error, Result, idx};

/// Who is to blame when a file could not be put in place.
pub(super) enum Failure {
    /// The origin: try the next one.
    Origin(String),
    /// The directory it should go to: no other origin would help.
    Here(Error),
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
    let mut out = Temporary::unique(&path).map_err(Failure::Here)?;
    verified(input, wanted, |bytes| out.write(bytes))?;
    out.rename_to(&path).map_err(Failure::Here)?;
    Ok(path)
}
