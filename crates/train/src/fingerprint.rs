//! What a run's bits depend on besides its configuration: compared across ranks at the start, and with
//! the checkpoint at resume.

use std::collections::BTreeMap;

use phalanx_host::Isa;

use crate::{Error, Result};

/// Named facts about this machine and build.
pub type Fingerprint = BTreeMap<String, String>;

/// The fingerprint of this process on the CPU.
pub fn cpu(isa: Isa) -> Fingerprint {
    let facts = [
        ("isa", isa.name()),
        ("arch", std::env::consts::ARCH),
        ("device", "cpu"),
        ("phalanx", env!("CARGO_PKG_VERSION")),
    ];
    facts.map(|(k, v)| (k.to_owned(), v.to_owned())).into()
}

/// One line, for comparing across ranks.
pub fn line(f: &Fingerprint) -> String {
    f.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" ")
}

/// Fails, naming the first fact that differs, when a checkpoint was written under another fingerprint.
pub fn check_resume(here: &Fingerprint, saved: &Fingerprint, allow: bool) -> Result<Option<String>> {
    let keys: std::collections::BTreeSet<_> = here.keys().chain(saved.keys()).collect();
    let get = |f: &Fingerprint, k: &str| f.get(k).cloned().unwrap_or_else(|| "unknown".into());
    let Some(key) = keys.into_iter().find(|k| here.get(*k) != saved.get(*k)) else { return Ok(None) };
    let text = format!(
        "the fingerprint differs from the checkpoint's: {key} is {:?} here and was {:?} there; the run would \
         go on with other bits",
        get(here, key),
        get(saved, key)
    );
    match allow {
        true => Ok(Some(text)),
        false => {
            Err(Error::config("fingerprint", format!("{text} (--allow-fingerprint-change accepts that)")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_instruction_set_is_named_and_can_be_allowed() {
        let (a, b) = (cpu(Isa::Portable), cpu(Isa::Avx2));
        assert_eq!(check_resume(&a, &a, false).unwrap(), None);
        let e = check_resume(&a, &b, false).unwrap_err();
        assert!(e.to_string().contains("isa is \"portable\" here and was \"avx2\""), "{e}");
        assert_eq!(e.exit_code(), 2);
        assert!(check_resume(&a, &b, true).unwrap().unwrap().contains("other bits"));
    }
}
