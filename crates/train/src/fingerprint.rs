//! What a run's bits depend on besides its configuration: compared across ranks at the start, and with
//! the checkpoint at resume.

use std::collections::BTreeMap;

use phalanx_data::{Codec, FieldSpec, Kind, Record, Role, Source};
use phalanx_host::Isa;

use crate::machine::Machine;
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

/// The fingerprint of this process on a rank's device: on a GPU its kind and the libraries are part of it.
pub fn of(machine: &Machine, isa: Isa) -> Fingerprint {
    let mut facts = cpu(isa);
    if let Some(gpu) = machine.gpu() {
        let info = gpu.info();
        let version = |(major, minor): (u32, u32)| format!("{major}.{minor}");
        facts.insert("device".into(), info.name.clone());
        facts.insert("compute_capability".into(), version(info.compute));
        facts.insert("driver".into(), version(info.driver));
        for (library, version) in phalanx_gpu::versions() {
            facts.insert(library.into(), version);
        }
    }
    facts
}

/// Adds what decodes image files, where one of the sets has some.
pub(crate) fn add_decoder(facts: &mut Fingerprint, sets: &[&dyn Source]) {
    let mut record = Record::default();
    for set in sets.iter().filter(|set| !set.is_empty()) {
        // Images that vary in size are files; of others the first says it. One that cannot be read says so later.
        let varies = set.schema().fields.iter().any(|f| f.role == Role::Image && f.variable);
        let read = varies || set.read(0, &mut record).is_ok();
        if varies || read && record.fields.iter().any(|f| f.codec != Codec::Raw) {
            facts.insert("decoder".into(), phalanx_data::decoder());
        }
    }
}

/// A fingerprint as a table, to be compared across ranks.
pub(crate) fn table(f: &Fingerprint) -> toml::Table {
    f.iter().map(|(k, v)| (k.clone(), v.clone().into())).collect()
}

/// Samples whose labels, and whose contents, stand for a whole set that has no root: enough to tell one set from another
/// that was put in its place, few enough for any size.
const LABELS: u64 = 1 << 16;
const RECORDS: u64 = 16;
/// Sets of no more bytes than this are compared as a whole.
const SMALL: u64 = 64 << 20;

/// What tells a run's data sets from others, wherever they lie: compared across ranks at the start, and with the
/// checkpoint at resume.
pub(crate) fn of_sets(train: &dyn Source, eval: &dyn Source) -> Result<toml::Table> {
    let sets = [("train", train), ("eval", eval)];
    sets.into_iter().map(|(key, set)| Ok((key.to_owned(), of_set(set)?.into()))).collect()
}

/// The training set's part of [`of_sets`], in short: what the ledger's files name the set by.
pub(crate) fn of_training(sets: &toml::Table) -> String {
    let mut hash = blake3::Hasher::new();
    hash.update(sets.get("train").map(toml::Value::to_string).unwrap_or_default().as_bytes());
    brief(&hash)
}

/// What tells one data set from another. Views of a set are told apart by the configuration that makes them.
fn of_set(set: &dyn Source) -> Result<toml::Table> {
    let schema = set.schema();
    let field = |f: &FieldSpec| format!("{}: {:?} {} {:?}", f.name, f.role, f.dtype, f.shape);
    let fields: Vec<String> = schema.fields.iter().map(field).collect();
    let classes = schema.classes.iter().fold(blake3::Hasher::new(), |mut hash, class| {
        hash.update(&(class.len() as u64).to_le_bytes()).update(class.as_bytes());
        hash
    });
    let mut facts = toml::Table::new();
    let mut tell = |key: &str, fact: toml::Value| facts.insert(key.to_owned(), fact);
    tell("samples", i64::try_from(set.len()).unwrap_or(i64::MAX).into());
    tell("fields", fields.into());
    tell("classes", format!("{} ({})", schema.classes.len(), brief(&classes)).into());
    match set.shard_set() {
        Some(shards) => {
            tell("root", blake3::Hash::from(shards.root()).to_hex().to_string().into());
            // The root is of all records; those in quarantine are not trained on.
            let left_out = shards.left_out().fold(blake3::Hasher::new(), |mut hash, id| {
                hash.update(&id.to_le_bytes());
                hash
            });
            let told = match shards.quarantined() {
                0 => "none".to_owned(),
                n => format!("{n} ({})", brief(&left_out)),
            };
            tell("quarantined", told.into());
        }
        None => {
            tell("labels", brief(&labels(set)?).into());
            tell("records", brief(&records(set)?).into());
        }
    }
    Ok(facts)
}

fn brief(hash: &blake3::Hasher) -> String {
    hash.finalize().to_hex()[..16].to_owned()
}

/// `n` samples from all over a set, or all.
fn spread(set: &dyn Source, n: u64) -> impl Iterator<Item = u64> {
    let (n, len) = (n.min(set.len()), set.len());
    (0..n).map(move |i| (u128::from(i) * u128::from(len) / u128::from(n)) as u64)
}

fn labels(set: &dyn Source) -> Result<blake3::Hasher> {
    let mut hash = blake3::Hasher::new();
    for id in spread(set, LABELS) {
        let Some(label) = set.label(id)? else { break };
        hash.update(&label.to_le_bytes());
    }
    Ok(hash)
}

fn records(set: &dyn Source) -> Result<blake3::Hasher> {
    let (mut hash, mut record) = (blake3::Hasher::new(), Record::default());
    let each: usize = set.schema().fields.iter().map(FieldSpec::sample_bytes).sum();
    let all = set.len().saturating_mul(each as u64) <= SMALL;
    for id in spread(set, if all { set.len() } else { RECORDS }) {
        match set.read(id, &mut record) {
            Ok(()) => record.fields.iter().for_each(|field| {
                hash.update(&field.bytes);
            }),
            // What becomes of a bad record is the loader's to say, once it is needed.
            Err(e) if e.kind() == Kind::Data => {
                hash.update(b"bad");
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(hash)
}

/// Fails, naming the first fact that differs, when a checkpoint was written under another fingerprint. `no_gpu` ends
/// the remark that it is the CPU here.
pub fn check_resume(
    here: &Fingerprint,
    saved: &Fingerprint,
    no_gpu: &str,
    allow: bool,
) -> Result<Option<String>> {
    let keys: std::collections::BTreeSet<_> = here.keys().chain(saved.keys()).collect();
    let get = |f: &Fingerprint, k: &str| f.get(k).cloned().unwrap_or_else(|| "unknown".into());
    let Some(key) = keys.into_iter().find(|k| here.get(*k) != saved.get(*k)) else { return Ok(None) };
    // A GPU on one side alone is the difference, and not the first of the facts that come with it.
    let devices = [saved, here].map(|f| get(f, "device"));
    let text = match devices.each_ref().map(|d| &**d) {
        ["cpu", gpu] if gpu != "cpu" => format!("the checkpoint is of the CPU; here it is {gpu}"),
        [gpu, "cpu"] if gpu != "cpu" => format!("the checkpoint is of {gpu}; here it is the CPU{no_gpu}"),
        _ => format!(
            "the fingerprint differs from the checkpoint's: {key} is {:?} here and was {:?} there",
            get(here, key),
            get(saved, key)
        ),
    };
    let text = format!("{text}; the run would go on with other bits");
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
    use phalanx_data::{Split, open};

    #[test]
    fn one_set_is_told_from_another() {
        let of = |split| of_set(&*open("digits", split).unwrap()).unwrap();
        let (train, test) = (of(Split::Train), of(Split::Test));
        assert_eq!(train, of(Split::Train));
        for key in ["samples", "labels", "records"] {
            assert_ne!(train[key], test[key], "{key}");
        }
    }

    #[test]
    fn another_instruction_set_is_named_and_can_be_allowed() {
        let (a, b) = (cpu(Isa::Portable), cpu(Isa::Avx2));
        assert_eq!(check_resume(&a, &a, "", false).unwrap(), None);
        let e = check_resume(&a, &b, "", false).unwrap_err();
        assert!(e.to_string().contains("isa is \"portable\" here and was \"avx2\""), "{e}");
        assert_eq!(e.exit_code(), 2);
        assert!(check_resume(&a, &b, "", true).unwrap().unwrap().contains("other bits"));
        let mut gpu = a.clone();
        gpu.extend([("compute_capability", "9.0"), ("device", "H200")].map(|(k, v)| (k.into(), v.into())));
        let said = |here, saved| check_resume(here, saved, " (why)", false).unwrap_err().to_string();
        assert!(said(&a, &gpu).contains("the checkpoint is of H200; here it is the CPU (why); "));
        assert!(said(&gpu, &a).contains("the checkpoint is of the CPU; here it is H200; "));
    }
}
