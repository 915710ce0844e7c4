//! Programs that the launcher runs: how they end, and which signals reach them. One test, because signals are
//! sent to the whole process.
#![allow(clippy::unwrap_used)]

use phalanx_launch::{Error, Line};

fn line(program: &str, args: &[&str]) -> Line {
    Line { program: program.into(), args: args.iter().map(|a| (*a).to_owned()).collect() }
}

/// Sends TERM to the launcher, and HUP when the first signal comes back; the second one ends it.
const TRAP: &str = r#"
n=0
trap 'n=$((n + 1)); [ $n = 1 ] && kill -HUP $PPID; [ $n = 2 ] && exit 75' USR1
trap 'exit 3' TERM HUP
kill -TERM $PPID
while :; do sleep 0.01; done"#;

/// Sends TERM to the launcher, and hears only the second signal, as a program that was still starting.
const DEAF: &str = r#"
n=0
trap 'n=$((n + 1)); [ $n = 2 ] && exit 75' USR1
kill -TERM $PPID
while :; do sleep 0.01; done"#;

/// Sends INT to the launcher before it listens itself.
const NOT_YET: &str = "kill -INT $PPID; while :; do sleep 0.01; done";

#[test]
fn the_end_of_the_program_is_the_answer_and_every_signal_arrives_as_one() {
    let ends =
        [("exit 0", 0), ("exit 75", 75), ("kill -KILL $$", 137), ("kill -USR1 $$", 138), ("exit 138", 138)];
    for (script, code) in ends.into_iter().chain([(TRAP, 75), (DEAF, 75), (NOT_YET, 75)]) {
        assert_eq!(line("sh", &["-c", script]).run().unwrap(), code, "{script}");
    }
    let e = line("/no/such", &["train", "a b"]).run().unwrap_err();
    assert!(matches!(e, Error::Start { .. }) && e.exit_code() == 2, "{e}");
    let text = e.to_string();
    assert!(text.starts_with("cannot start /no/such: No such file"), "{text}");
    assert!(text.ends_with("tried: /no/such train 'a b'"), "{text}");
}
