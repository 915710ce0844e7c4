//! Runs on shard sets: damaged records under every policy, orders, staging; on any number of ranks, over interruptions.

// Helpers of tests may panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use common::{hashes, request, run};
use phalanx_data::{
    Codec, Record, Sample, SampleField, SetInfo, ShardSet, ShardWriter, Source, Split, open, repair, seal,
};
use phalanx_train::bad::BadLine;
use phalanx_train::faults::Faults;
use phalanx_train::report::Summary;
use phalanx_train::run::TrainRequest;
use phalanx_train::{Error, ledger};

/// Writes the digits as shard sets, `train` in five shards and `val` in two.
fn shard_digits(dir: &Path) -> String {
    shard_digits_as(dir, "digits", |_| ())
}

/// As [`shard_digits`], as sets of other names, and with changed names of classes.
fn shard_digits_as(dir: &Path, called: &str, change: impl Fn(&mut Vec<String>)) -> String {
    for (split, name, shards) in [(Split::Train, "train", 5), (Split::Test, "val", 2)] {
        let digits = open("digits", split).unwrap();
        let to = dir.join(name);
        fs::create_dir_all(&to).unwrap();
        let schema = digits.schema();
        let mut classes = schema.classes.clone();
        change(&mut classes);
        let info = SetInfo {
            name: format!("{called}-{name}"),
            fields: schema.fields.clone(),
            classes,
            meta: Default::default(),
        };
        let (mut record, mut summaries) = (Record::default(), Vec::new());
        for number in 0..shards {
            let mut writer = ShardWriter::create(&to, number, &info).unwrap();
            let [from, end] = [number, number + 1].map(|n| digits.len() * u64::from(n) / u64::from(shards));
            for id in from..end {
                digits.read(id, &mut record).unwrap();
                let image = &record.fields[0];
                let fields = [SampleField { codec: Codec::Raw, shape: &image.shape, bytes: &image.bytes }];
                let label = digits.label(id).unwrap();
                writer.add(&Sample { key: &format!("{id:05}"), label, fields: &fields }).unwrap();
            }
            summaries.push(writer.finish().unwrap());
        }
        seal(&to, &info, &summaries).unwrap();
    }
    dir.display().to_string()
}

/// A run on the set in `dir`: on its training split, evaluated on the other.
fn on(dir: &str, out: &Path, ranks: u32, settings: &[&str]) -> TrainRequest {
    let mut request = request(out, ranks, settings);
    request.config.data.train = dir.into();
    request.config.data.eval = None;
    request
}

/// Flips a bit in each of these records, and returns where: flipped again, they are whole.
fn damage(set: &Path, ids: &[u64]) -> Vec<(PathBuf, u64)> {
    let index = ShardSet::open(set).unwrap();
    let place = |&id: &u64| {
        let entry = index.entry(id).unwrap();
        (set.join(format!("shard-{:05}.dat", entry.shard)), entry.offset + 9)
    };
    let places: Vec<_> = ids.iter().map(place).collect();
    flip(&places);
    places
}

fn flip(places: &[(PathBuf, u64)]) {
    for (path, at) in places {
        let file = File::options().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, *at).unwrap();
        file.write_all_at(&[byte[0] ^ 4], *at).unwrap();
    }
}

/// Runs in pieces, some of which are killed, on different numbers of ranks.
fn in_pieces(mut request: TrainRequest) -> Summary {
    for (world, steps, fault) in [
        (3, Some(7), None),
        (2, None, Some("rank=1,step=13,kind=panic")),
        (8, Some(22), None),
        (4, None, None),
    ] {
        (request.ranks, request.max_steps) = (world, steps);
        request.faults = Faults::parse(&fault.map(String::from).into_iter().collect::<Vec<_>>()).unwrap();
        match (run(&request), fault) {
            (Ok(summary), None) if summary.status == "finished" => return summary,
            (Ok(_), None) | (Err(Error::Panic { .. }), Some(_)) => {}
            (other, _) => panic!("{other:?}"),
        }
    }
    panic!("it has not come to its end");
}

fn lines(out: &Path) -> Vec<BadLine> {
    let text = fs::read_to_string(out.join("quarantine.jsonl")).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn shards_and_orders_give_one_hash_for_any_world_and_any_interruption() {
    let tmp = tempfile::tempdir().unwrap();
    let set = shard_digits(&tmp.path().join("set"));
    let out = |name: &str| tmp.path().join(name);
    // A set is its samples, wherever they lie.
    let embedded = hashes(&run(&request(&out("embedded"), 2, &[])).unwrap());
    let sharded = run(&on(&set, &out("sharded"), 3, &["loader.threads=auto"])).unwrap();
    assert_eq!(hashes(&sharded), embedded);
    assert_eq!((sharded.bad_records, sharded.bytes_read), (0, 2 * 1442 * 72));
    assert!(sharded.bound.is_some());

    let blocked = ["loader.order={ blocked = { block = 50, window = 4 } }"];
    let mut first = None;
    for world in [1, 2, 3, 8] {
        let out = out(&format!("blocked-{world}"));
        let got = hashes(&run(&on(&set, &out, world, &blocked)).unwrap());
        assert_eq!(*first.get_or_insert(got.clone()), got, "on {world} ranks");
        assert_eq!(ledger::verify(&out).unwrap().whole_epochs, 2);
    }
    assert_ne!(first, Some(embedded), "it is another order");
    let cut = out("blocked-cut");
    assert_eq!(Some(hashes(&in_pieces(on(&set, &cut, 1, &blocked)))), first);
    assert_eq!(ledger::verify(&cut).unwrap().whole_epochs, 2);
    // The order is part of what a run is.
    let e = run(&on(&set, &cut, 2, &[])).unwrap_err();
    assert!(e.to_string().contains("loader.order"), "{e}");
}

#[test]
fn bad_records_are_made_up_for_alike_on_all_ranks_and_every_sample_is_accounted_for() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("set");
    let set = shard_digits(&dir);
    let bad = [0, 17, 600, 601, 602, 1441];
    damage(&dir.join("train"), &bad);
    damage(&dir.join("val"), &[3]);
    for policy in ["substitute", "quarantine"] {
        let policy_is = format!("loader.bad_records={policy}");
        let settings = [&*policy_is];
        let mut first = None;
        let check = |summary: &Summary, out: &Path| {
            assert_eq!(summary.bad_records, 12, "twice in two epochs");
            let eval = summary.eval.as_ref().unwrap();
            assert_eq!((eval.samples, eval.bad_records), (354, 1));
            let proof = ledger::verify(out).unwrap();
            let fates = if policy == "substitute" { (12, 0) } else { (0, 12) };
            assert_eq!((proof.replaced, proof.quarantined), fates);
            assert_eq!((proof.whole_epochs, proof.samples), (2, 2 * 1442));
            let lines = lines(out);
            let mut ids: Vec<_> = lines.iter().map(|l| (l.epoch, l.id)).collect();
            ids.sort_unstable();
            assert!(ids.into_iter().eq([0, 1].iter().flat_map(|&e| bad.iter().map(move |&id| (e, id)))));
            for line in lines {
                assert_eq!(line.substitute.is_some(), policy == "substitute");
                assert!(line.reason.contains("CRC32C"), "{}", line.reason);
            }
        };
        for world in [1, 2, 3, 8] {
            let out = tmp.path().join(format!("{policy}-{world}"));
            let summary = run(&on(&set, &out, world, &settings)).unwrap();
            check(&summary, &out);
            let got = hashes(&summary);
            assert!(summary.eval.unwrap().top1_error < 0.4);
            assert_eq!(*first.get_or_insert(got.clone()), got, "{policy} on {world} ranks");
        }
        let out = tmp.path().join(format!("{policy}-cut"));
        let summary = in_pieces(on(&set, &out, 1, &settings));
        check(&summary, &out);
        assert_eq!(Some(hashes(&summary)), first, "{policy} in pieces");
    }
}

/// The device crops and mirrors images of bytes, of whole records and of those that take a bad one's place.
#[test]
fn images_that_cross_as_bytes_give_the_same_run() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("set");
    let set = shard_digits(&dir);
    damage(&dir.join("train"), &[0, 17, 600, 601, 602, 1441]);
    let (pad, flip) = ("{ name = \"pad-and-crop\", padding = 2 }", "{ name = \"flip\" }");
    let (cut, mix) = ("{ name = \"random-crop\", size = 7 }", "{ name = \"mixup\" }");
    for (n, (rows, policy, ranks)) in [
        (&[pad, flip][..], "substitute", 1),
        (&[cut, flip, mix], "quarantine", 3),
        (&["{ name = \"vertical-flip\" }", flip], "substitute", 2),
    ]
    .into_iter()
    .enumerate()
    {
        let of = |pixels: &str| {
            let rows = format!("loader.transforms=[{}]", rows.join(", "));
            let (pixels_are, policy) =
                (format!("loader.pixels={pixels}"), format!("loader.bad_records={policy}"));
            let out = tmp.path().join(format!("{n}-{pixels}"));
            let request = on(&set, &out, ranks, &["train.epochs=1", &rows, &pixels_are, &policy]);
            let summary = run(&request).unwrap();
            (hashes(&summary), summary.bad_records, summary.train_loss.to_bits())
        };
        assert_eq!(of("bytes"), of("floats"), "{rows:?}");
    }
}

#[test]
fn a_bad_record_ends_all_ranks_where_it_must_and_the_run_goes_on_with_another_policy() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("set");
    let set = shard_digits(&dir);
    damage(&dir.join("train"), &[600]);
    let out = tmp.path().join("run");
    let e = run(&on(&set, &out, 3, &[])).unwrap_err();
    assert!(e.exit_code() == 3 && e.to_string().contains("sample 600 of digits-train"), "{e}");
    let summary = run(&on(&set, &out, 2, &["loader.bad_records=substitute"])).unwrap();
    assert_eq!((summary.status.as_str(), summary.bad_records), ("finished", 2));
    assert_eq!(ledger::verify(&out).unwrap().replaced, 2);
}

#[test]
fn too_many_bad_records_end_the_run_on_all_ranks_alike() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("set");
    let set = shard_digits(&dir);
    damage(&dir.join("train"), &(0..400).collect::<Vec<_>>());
    for (policy, ranks) in [("substitute", 3), ("quarantine", 2)] {
        let out = tmp.path().join(policy);
        let policy = format!("loader.bad_records={policy}");
        let settings = [&*policy, "loader.bad_limit=0.05"];
        let e = run(&on(&set, &out, ranks, &settings)).unwrap_err();
        let Error::BadRecords { bad, seen, .. } = e else { panic!("{e}") };
        assert!(bad > 10 && seen == 101 && e.exit_code() == 3, "{bad} of {seen}");
        // More may be bad: then it goes on.
        let settings = [&*policy, "loader.bad_limit=0.5"];
        let summary = run(&on(&set, &out, ranks, &settings)).unwrap();
        assert_eq!((summary.status.as_str(), summary.bad_records), ("finished", 800));
        assert_eq!(ledger::verify(&out).unwrap().whole_epochs, 2);
        assert_eq!(lines(&out).len(), 800);
    }
}

#[test]
fn a_few_are_too_many_of_an_epoch_and_all_of_an_evaluation() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("set");
    let set = shard_digits(&dir);
    damage(&dir.join("train"), &[1, 2, 700, 701, 1400]);
    let out = tmp.path().join("epoch");
    let settings = ["loader.bad_records=quarantine", "loader.bad_limit=0.002"];
    let e = run(&on(&set, &out, 2, &settings)).unwrap_err();
    let Error::BadRecords { bad: 5, seen: 1442, ref last, .. } = e else { panic!("{e}") };
    assert!(last.contains("CRC32C"), "{last}");
    // The epoch is kept, and with a higher limit the run goes on from there.
    assert!(out.join("checkpoints/step-00000015/COMPLETE").exists());
    let settings = ["loader.bad_records=quarantine", "loader.bad_limit=0.5"];
    let begin = TrainRequest { max_steps: Some(17), ..on(&set, &out, 2, &settings) };
    run(&begin).unwrap();
    // Nothing is learnt of what is evaluated on: there records may be left out between two starts.
    damage(&dir.join("val"), &[3]);
    repair(&dir.join("val"), 1, &|_| ()).unwrap();
    let summary = run(&on(&set, &out, 3, &settings)).unwrap();
    assert_eq!((summary.status.as_str(), summary.eval.unwrap().samples), ("finished", 354));
    assert_eq!(ledger::verify(&out).unwrap().quarantined, 10);
    let told = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    assert!(told.contains("other records of the evaluation set are left out"), "{told}");
    // An evaluation of nothing would tell an error of 0.
    let val = dir.join("val");
    damage(&val, &(0..ShardSet::open(&val).unwrap().len()).collect::<Vec<_>>());
    let out = tmp.path().join("evaluation");
    for limit in ["loader.bad_limit=0.01", "loader.bad_limit=1"] {
        let e = run(&on(&set, &out, 3, &["loader.bad_records=substitute", limit])).unwrap_err();
        let Error::BadRecords { bad: 354, seen: 354, .. } = e else { panic!("{e}") };
        assert_eq!(e.exit_code(), 3);
    }
}

#[test]
fn a_run_goes_on_with_the_data_that_it_began_with_wherever_they_lie() {
    let tmp = tempfile::tempdir().unwrap();
    let [dir, elsewhere, other] = ["set", "elsewhere", "other"].map(|name| tmp.path().join(name));
    let set = shard_digits(&dir);
    let whole = hashes(&run(&on(&set, &tmp.path().join("whole"), 2, &[])).unwrap());
    let out = tmp.path().join("run");
    let begin = |to: &str, steps| TrainRequest { max_steps: Some(steps), ..on(to, &out, 2, &[]) };
    run(&begin(&set, 7)).unwrap();
    fs::rename(&dir, &elsewhere).unwrap();
    // Another set in its place, with the same samples under another name.
    shard_digits_as(&dir, "others", |_| ());
    let refused = |to: &str, what: &str| {
        let e = run(&on(to, &out, 3, &[])).unwrap_err();
        assert!(e.exit_code() == 2 && e.to_string().contains(what), "{e} {}", e.exit_code());
    };
    refused(&set, "trained on other data: eval.root was");
    let there = elsewhere.display().to_string();
    run(&begin(&there, 12)).unwrap();
    // What is left out of a set changes what is trained on.
    let places = damage(&elsewhere.join("train"), &[600]);
    repair(&elsewhere.join("train"), 1, &|_| ()).unwrap();
    refused(&there, "train.quarantined was \"none\" there and is \"1 (");
    flip(&places);
    repair(&elsewhere.join("train"), 1, &|_| ()).unwrap();
    assert_eq!(hashes(&run(&on(&there, &out, 3, &[])).unwrap()), whole);
    assert_eq!(ledger::verify(&out).unwrap().whole_epochs, 2);
    // A class's number must mean the same in both sets.
    let named = |classes: &mut Vec<String>| classes.iter_mut().for_each(|c| c.insert_str(0, "class "));
    let ours = shard_digits_as(&tmp.path().join("ours"), "ours", named);
    let swapped = shard_digits_as(&other, "swapped", |classes| {
        named(classes);
        classes.swap(0, 1);
    });
    let mut request = TrainRequest { max_steps: Some(2), ..on(&ours, &tmp.path().join("swapped"), 2, &[]) };
    request.config.data.eval = Some(swapped);
    let e = run(&request).unwrap_err();
    let says = "class 0 is \"class 0\" in ours-train and \"class 1\" in swapped-val";
    assert!(e.exit_code() == 2 && e.to_string().contains(says), "{e}");
    assert!(!request.out.exists());
    // Numbers contradict no names.
    request.config.data.eval = Some(there);
    run(&request).unwrap();
}

#[test]
fn staged_files_are_read_and_nothing_else_changes() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("set");
    let set = shard_digits(&dir);
    let place = tmp.path().join("node");
    fs::create_dir(&place).unwrap();
    let out = |name: &str| tmp.path().join(name);
    let plain = hashes(&run(&on(&set, &out("plain"), 2, &[])).unwrap());
    let stage = format!("data.stage={}", place.display());
    let staged = |name: &str| -> (u64, u64) {
        let env = fs::read(out(name).join("env.json")).unwrap();
        let env: serde_json::Value = serde_json::from_slice(&env).unwrap();
        (env["staged"]["bytes"].as_u64().unwrap(), env["staged"]["copied"].as_u64().unwrap())
    };
    let all: u64 = ["train", "val"].iter().flat_map(|d| data_files(&dir.join(d))).map(|f| f.1).sum();
    assert_eq!(hashes(&run(&on(&set, &out("first"), 3, &[&stage])).unwrap()), plain);
    assert_eq!(staged("first"), (all, all));
    // Another run finds the copies, and what is damaged in the original does not matter to it.
    damage(&dir.join("train"), &[5, 700]);
    assert_eq!(hashes(&run(&on(&set, &out("second"), 2, &[&stage])).unwrap()), plain);
    assert_eq!(staged("second"), (all, 0));
    // A place that is none is told, and the run goes on; it may change between two starts.
    let nowhere = format!("data.stage={}", place.join("nowhere").display());
    let mut begun = on(&set, &out("none"), 2, &[&nowhere, "loader.bad_records=substitute"]);
    begun.max_steps = Some(3);
    run(&begun).unwrap();
    let metrics = fs::read_to_string(out("none").join("metrics.jsonl")).unwrap();
    assert!(metrics.contains("nothing is staged"), "{metrics}");
    assert_eq!(staged("none"), (0, 0));
}

fn data_files(dir: &Path) -> Vec<(PathBuf, u64)> {
    let entries = fs::read_dir(dir).unwrap().map(|e| e.unwrap());
    let dat = entries.filter(|e| e.path().extension().is_some_and(|x| x == "dat"));
    dat.map(|e| (e.path(), e.metadata().unwrap().len())).collect()
}
