use super::*;
use crate::AbortKind;

fn call(number: u64, what: &str, done: bool) -> LastCall {
    LastCall {
        number,
        kind: "collective".into(),
        what: what.into(),
        begun: Duration::from_millis(3200),
        done,
    }
}

fn talk(number: u64, done: bool) -> LastCall {
    LastCall { kind: "control call".into(), ..call(number, "barrier", done) }
}

fn whom(pid: u32) -> Whom {
    Whom { host: "n1".into(), pid }
}

fn last(pid: u32, place: &str, step: Option<u64>, calls: &[LastCall]) -> Word {
    let since = Duration::from_millis(3100 + u64::from(pid % 7));
    Word::Last(Status { whom: whom(pid), place: place.into(), step, since, calls: calls.to_vec() })
}

fn silent(how: Option<&str>, seen: Option<(&str, Option<u64>)>) -> Word {
    Word::None {
        whom: Some(whom(9)),
        how: how.map(Into::into),
        ago: Duration::from_millis(3100),
        seen: seen.map(|(place, step)| (place.into(), step)),
    }
}

fn told_by(rank: u32, words: &[Word]) -> String {
    report(&AbortReason::new(rank, AbortKind::Communication, "something"), words)
}

#[test]
fn a_hung_loader_is_seen_and_waited_for() {
    let sums = "waiting for sums";
    let words = [
        last(10, sums, Some(38), &[call(6, "sum of 4 f32", true), call(7, "sum of 9 f32", false)]),
        last(1100, "in the loader", Some(38), &[call(6, "sum of 4 f32", true)]),
        last(12, sums, Some(38), &[call(7, "sum of 9 f32", false)]),
    ];
    assert_eq!(
        told_by(0, &words),
        "\
where the ranks are:
> rank 0  (n1, pid 10)    waiting for sums at step 38, for 3.1 s  collective 7 (sum of 9 f32), begun 3.2 s ago
  rank 1  (n1, pid 1100)  in the loader at step 38, for 3.1 s     collective 6 (sum of 4 f32), done
  rank 2  (n1, pid 12)    waiting for sums at step 38, for 3.1 s  collective 7 (sum of 9 f32), begun 3.2 s ago
who waits for whom:
  ranks 0, 2 wait in collective 7 for rank 1
"
    );
}

#[test]
fn who_gave_no_answer_is_told_with_its_last_place() {
    let words = [
        last(10, "in forward and backward", None, &[]),
        silent(Some("no sign of life for 3.0 s"), Some(("in the loader", Some(38)))),
        silent(None, None),
        Word::Absent,
        Word::Left(Some(whom(14))),
    ];
    assert_eq!(
        told_by(1, &words),
        "\
where the ranks are:
  rank 0  (n1, pid 10)  in forward and backward, for 3.1 s  no call yet
> rank 1  (n1, pid 9)   no answer, no sign of life for 3.0 s; last seen 3.1 s ago, in the loader at step 38
  rank 2  (n1, pid 9)   no answer; last seen 3.1 s ago
  rank 3                had not joined yet
  rank 4  (n1, pid 14)  had left in good order
"
    );
}

#[test]
fn all_sorts_of_missing_ranks_are_waited_for() {
    let open = [call(5, "sum", false)];
    let words = [
        last(10, "waiting for sums", Some(2), &open),
        silent(None, None),
        silent(None, None),
        silent(None, None),
        Word::Absent,
        Word::Left(None),
        last(11, "in a checkpoint", Some(2), &[talk(9, false)]),
    ];
    let told = told_by(0, &words);
    let waits = "  rank 0 waits in collective 5 for rank 6, and for ranks 1-3, which gave no answer, and for \
                 rank 5, which had left, and for rank 4, which had not joined\n";
    assert!(told.contains(waits), "{told}");
    let waits = "  rank 6 waits in control call 9 for rank 0, and for ranks 1-3, which gave no answer, and \
                 for rank 5,";
    assert!(told.contains(waits), "{told}");
}

#[test]
fn ranks_in_different_calls_wait_for_those_behind() {
    // Several sums may be under way at once: the first that somebody has not begun counts.
    let words = [
        last(0, "p", Some(1), &[call(3, "a", false), call(4, "b", false), call(5, "c", false)]),
        last(1, "p", Some(1), &[call(3, "a", false), call(4, "b", false)]),
        last(2, "p", Some(1), &[call(3, "a", false)]),
    ];
    let told = told_by(0, &words);
    assert!(told.contains("  ranks 0, 1 wait in collective 4 for rank 2\n"), "{told}");
    assert!(told.contains("  all ranks have begun collective 3, which has not ended on rank 2\n"), "{told}");
    assert!(!told.contains("what differs"), "{told}");
}

#[test]
fn a_call_that_all_have_begun_waits_for_nobody() {
    let words = [last(0, "p", None, &[call(3, "a", false)]), last(1, "p", None, &[call(3, "a", true)])];
    let told = told_by(0, &words);
    assert!(told.contains("  all ranks have begun collective 3, which has not ended on rank 0\n"), "{told}");
}

#[test]
fn the_first_difference_of_each_kind_is_told() {
    let words = [
        last(0, "p", None, &[call(6, "sum of 4 f32", true), call(7, "sum of 9 f32", false), talk(1, true)]),
        last(1, "p", None, &[call(6, "sum of 4 f32", true), call(7, "sum of 8 f32", false), talk(1, true)]),
        last(2, "p", None, &[call(7, "sum of 9 f32", false), call(8, "sum of 1 f32", false)]),
        last(3, "p", None, &[call(7, "sum of 9 f32", false), call(8, "sum of 2 f32", false)]),
    ];
    let told = told_by(1, &words);
    let differs =
        "what differs:\n  collective 7: ranks 0, 2, 3 began sum of 9 f32; rank 1 began sum of 8 f32\n";
    assert!(told.ends_with(differs), "{told}");
}

#[test]
fn many_differences_are_cut_short() {
    let words: Vec<Word> =
        (0..7).map(|n| last(n, "p", None, &[call(1, &format!("sum {n}"), false)])).collect();
    let told = told_by(0, &words);
    assert!(told.contains("rank 3 began sum 3; and 3 more\n"), "{told}");
}

#[test]
fn many_ranks_share_lines() {
    let mut words: Vec<Word> =
        (0..1000).map(|n| last(n, "waiting for sums", Some(5), &[call(57, "sum of 9 f32", false)])).collect();
    words[64] = last(64, "in the loader", Some(5), &[call(56, "sum of 9 f32", true)]);
    words[700] = silent(Some("its connection closed"), Some(("in the optimizer", Some(4))));
    words[701] = words[700].clone();
    assert_eq!(
        told_by(64, &words),
        "\
where the ranks are:
  ranks 0-63, 65-699, 702-999                waiting for sums at step 5, for up to 3.1 s  collective 57 (sum of 9 f32), \
begun up to 3.2 s ago
> rank 64                      (n1, pid 64)  in the loader at step 5, for 3.1 s           collective 56 (sum of 9 f32), \
done
  ranks 700, 701                             no answer, its connection closed; last seen up to 3.1 s ago, in the \
optimizer at step 4
who waits for whom:
  ranks 0-63, 65-699, 702-999 wait in collective 57 for rank 64, and for ranks 700, 701, which gave no answer
"
    );
}

#[test]
fn up_to_32_ranks_have_a_line_each() {
    let words: Vec<Word> = (0..33).map(|n| last(n, "starting", None, &[])).collect();
    assert_eq!(told_by(0, &words[..32]).lines().count(), 33);
    assert_eq!(told_by(0, &words).lines().count(), 3);
    // The rank that failed need not be one of them.
    assert_eq!(told_by(99, &words).lines().count(), 2);
    assert_eq!(told_by(0, &[]), "");
}

#[test]
fn one_rank_s_line_stands_for_itself() {
    let Word::Last(status) = last(4, "in the loader", Some(3), &[talk(2, true)]) else { unreachable!() };
    let told = line(7, &status);
    let expected =
        "rank 7 (n1, pid 4) was in the loader at step 3, for 3.1 s; control call 2 (barrier), done";
    assert_eq!(told, expected);
}

#[test]
fn times_and_ranks_read_well() {
    let told =
        [0, 49, 999, 1000, 3140, 99_940, 100_000, 7_200_000].map(|ms| seconds(Duration::from_millis(ms)));
    assert_eq!(told, ["0 ms", "49 ms", "999 ms", "1.0 s", "3.1 s", "99.9 s", "100 s", "7200 s"]);
    let told = |of: &[u32]| ranks(&of.iter().copied().collect());
    assert_eq!(told(&[3]), "rank 3");
    assert_eq!(told(&[3, 4]), "ranks 3, 4");
    assert_eq!(told(&[0, 1, 2, 3, 5, 7, 8]), "ranks 0-3, 5, 7, 8");
}
