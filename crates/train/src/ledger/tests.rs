use phalanx_data::{Order, shard_positions, step_positions};

use super::*;

fn header(attempt: u32, rank: u32, world_size: u32, first_step: u64) -> Header {
    Header {
        attempt,
        rank,
        world_size,
        first_step,
        seed: 5,
        samples: 23,
        data: "d1".into(),
        global_batch: 6,
        virtual_shards: 4,
        order: OrderKind::Full,
    }
}

fn line(step: u64, epoch: u64, shard: u32, ids: Vec<u64>) -> Line {
    Line { step, epoch, shard, ids, replaced: Vec::new(), quarantined: Vec::new() }
}

/// Writes what an attempt on `world` ranks does from `first` to `end`.
fn attempt(run: &Path, world: u32, first: u64, end: u64) {
    let number = next_attempt(run).unwrap();
    for rank in 0..world {
        let h = header(number, rank, world, first);
        let mut ledger = Ledger::create(run, &h).unwrap();
        for step in first..end {
            let epoch = step / 4;
            let order = Order::new(5, epoch, 23);
            for shard in 4 * rank / world..4 * (rank + 1) / world {
                let at = shard_positions(step_positions(23, 6, step % 4), 4, u64::from(shard));
                ledger.add(&line(step, epoch, shard, at.map(|p| order.at(p)).collect())).unwrap();
            }
        }
        ledger.sync().unwrap();
    }
}

#[test]
fn crashes_and_resizes_leave_each_sample_once() {
    let dir = tempfile::tempdir().unwrap();
    attempt(dir.path(), 2, 0, 5);
    attempt(dir.path(), 3, 3, 6);
    attempt(dir.path(), 1, 6, 10);
    let proof = verify(dir.path()).unwrap();
    assert_eq!(
        (proof.attempts, proof.steps, proof.whole_epochs, proof.samples, proof.superseded_steps),
        (3, 10, 2, 23 * 2 + 12, 2)
    );
    assert_eq!((proof.samples_in_last_epoch, proof.world_sizes), (12, vec![2, 3, 1]));
}

fn spoil(change: impl FnOnce(&mut Vec<String>)) -> String {
    let dir = tempfile::tempdir().unwrap();
    attempt(dir.path(), 2, 0, 8);
    let path = files(dir.path()).unwrap().remove(1);
    let mut lines: Vec<String> = fs::read_to_string(&path).unwrap().lines().map(String::from).collect();
    change(&mut lines);
    fs::write(&path, lines.join("\n") + "\n").unwrap();
    verify(dir.path()).unwrap_err().to_string()
}

#[test]
fn planted_omissions_and_repeats_are_found() {
    let edit = |lines: &mut Vec<String>, at: usize, f: &dyn Fn(&mut Line)| {
        let mut line: Line = serde_json::from_str(&lines[at]).unwrap();
        f(&mut line);
        lines[at] = serde_json::to_string(&line).unwrap();
    };
    let omitted = spoil(|l| edit(l, 5, &|line| line.ids.truncate(line.ids.len() - 1)));
    assert!(omitted.contains("missing at step 2"), "{omitted}");
    let repeated = spoil(|l| {
        let other: Line = serde_json::from_str(&l[1]).unwrap();
        edit(l, 3, &|line| line.ids.push(other.ids[0]));
    });
    assert!(repeated.contains("consumed twice"), "{repeated}");
    let swapped = spoil(|l| edit(l, 3, &|line| line.ids[0] = 999));
    assert!(swapped.contains("999 does not belong"), "{swapped}");
    let gone = spoil(|l| drop(l.remove(4)));
    assert!(gone.contains("no line of shard"), "{gone}");
    let doubled = spoil(|l| l.push(l[4].clone()));
    assert!(doubled.contains("computed twice"), "{doubled}");
    let garbage = spoil(|l| l[2] = "{\"step\":".into());
    assert!(garbage.contains("line 3"), "{garbage}");
}

#[test]
fn fates_of_bad_samples_are_counted_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    attempt(dir.path(), 2, 0, 8);
    let edit = |at: usize, f: &dyn Fn(&mut Line)| {
        let path = files(dir.path()).unwrap().remove(0);
        let text = fs::read_to_string(&path).unwrap();
        let mut lines: Vec<String> = text.lines().map(String::from).collect();
        let mut line: Line = serde_json::from_str(&lines[at]).unwrap();
        f(&mut line);
        lines[at] = serde_json::to_string(&line).unwrap();
        fs::write(&path, lines.join("\n") + "\n").unwrap();
    };
    let by = |line: &Line, id| substitutes(5, line.epoch, id, 23).nth(1).unwrap();
    edit(3, &|line| line.replaced = vec![[line.ids[0], by(line, line.ids[0])]]);
    edit(4, &|line| line.quarantined = line.ids.clone());
    let proof = verify(dir.path()).unwrap();
    assert_eq!((proof.whole_epochs, proof.replaced, proof.samples), (2, 1, 46));
    assert!(proof.quarantined > 0 && proof.to_string().contains("1 replaced"), "{proof}");
    edit(3, &|line| line.replaced[0][1] = line.ids[0]);
    assert!(verify(dir.path()).unwrap_err().to_string().contains("cannot have been replaced"));
    edit(3, &|line| line.replaced = vec![[999, 1]]);
    assert!(verify(dir.path()).unwrap_err().to_string().contains("sample 999 is said"));
    edit(3, &|line| (line.replaced, line.quarantined) = (vec![], vec![line.ids[0]; 2]));
    assert!(verify(dir.path()).unwrap_err().to_string().contains("or two"));
}

#[test]
fn attempts_that_count_are_on_the_same_data() {
    let dir = tempfile::tempdir().unwrap();
    attempt(dir.path(), 2, 0, 5);
    attempt(dir.path(), 2, 4, 8);
    let edit = |number: usize, from: &str, to: &str| {
        for path in &files(dir.path()).unwrap()[2 * number..2 * number + 2] {
            let text = fs::read_to_string(path).unwrap();
            assert!(text.contains(from), "{text}");
            fs::write(path, text.replacen(from, to, 1)).unwrap();
        }
    };
    assert_eq!(verify(dir.path()).unwrap().data, "d1");
    edit(1, "\"data\":\"d1\"", "\"data\":\"d2\"");
    let e = verify(dir.path()).unwrap_err().to_string();
    assert!(e.contains("attempt 2 is of another run than attempt 1: data is d2 there and d1 here"), "{e}");
    // Of a version that did not tell it.
    edit(1, "\"data\":\"d2\",", "");
    verify(dir.path()).unwrap();
    // What was begun again on other data left nothing behind.
    edit(0, "\"data\":\"d1\"", "\"data\":\"d3\"");
    attempt(dir.path(), 1, 0, 8);
    assert_eq!(verify(dir.path()).unwrap().data, "d1");
}

#[test]
fn a_ledger_of_another_order_is_another_run_s() {
    let dir = tempfile::tempdir().unwrap();
    attempt(dir.path(), 1, 0, 4);
    let path = files(dir.path()).unwrap().remove(0);
    let text = fs::read_to_string(&path).unwrap();
    assert!(!text.contains("order"), "{text}");
    let blocked = text.replacen("\"virtual_shards\":4", "\"virtual_shards\":4,\"order\":{\"blocked\":{}}", 1);
    fs::write(&path, blocked).unwrap();
    assert!(verify(dir.path()).unwrap_err().to_string().contains("does not belong"));
}

#[test]
fn a_torn_last_line_is_what_a_kill_leaves_and_a_lost_file_is_not() {
    let dir = tempfile::tempdir().unwrap();
    attempt(dir.path(), 2, 0, 4);
    let path = files(dir.path()).unwrap().remove(0);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text + "{\"step\":4,\"ep").unwrap();
    assert_eq!(verify(dir.path()).unwrap().whole_epochs, 1);
    fs::remove_file(path).unwrap();
    assert!(verify(dir.path()).unwrap_err().to_string().contains("ran on 2"));
    assert!(verify(&dir.path().join("x")).unwrap_err().to_string().contains("is this a run directory"));
}

#[test]
fn a_start_that_died_before_its_first_step_spoils_nothing() {
    let dir = tempfile::tempdir().unwrap();
    attempt(dir.path(), 2, 0, 4);
    // Rank 1 of attempt 2 had not come so far; rank 0 of attempt 3 had not written a line.
    drop(Ledger::create(dir.path(), &header(2, 0, 3, 4)).unwrap());
    fs::write(dir_of(dir.path()).join("attempt-0003-rank-00000.jsonl"), "{\"att").unwrap();
    attempt(dir.path(), 4, 4, 8);
    let proof = verify(dir.path()).unwrap();
    assert_eq!((proof.steps, proof.whole_epochs, proof.world_sizes), (8, 2, vec![2, 3, 4]));
    for rank in 0..2 {
        fs::remove_file(dir_of(dir.path()).join(format!("attempt-0001-rank-0000{rank}.jsonl"))).unwrap();
    }
    assert!(verify(dir.path()).unwrap_err().to_string().contains("attempt 1 has no files"));
}

#[test]
fn a_run_from_another_run_s_checkpoint_proves_what_it_did_itself() {
    let dir = tempfile::tempdir().unwrap();
    attempt(dir.path(), 2, 6, 12);
    let proof = verify(dir.path()).unwrap();
    assert_eq!((proof.first_step, proof.steps, proof.whole_epochs, proof.samples), (6, 12, 1, 11 + 23));
    assert!(proof.to_string().contains("begun at step 6"), "{proof}");
}
