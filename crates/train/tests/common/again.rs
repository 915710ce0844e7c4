//! Tests that run again in a process of their own, whose environment tells the stand-ins something.

use std::process::Command;

const MARK: &str = "PHALANX_TEST_AGAIN";

/// Whether this is that process.
pub(crate) fn is_again() -> bool {
    std::env::var_os(MARK).is_some()
}

/// Runs test `name` again in a process with other settings. True in that process: there the test goes on.
pub(crate) fn with_settings(name: &str, settings: &[(&str, &str)]) -> bool {
    if !is_again() {
        again(name, settings);
    }
    is_again()
}

/// Runs test `name` in a process with other settings, and wants it to pass.
pub(crate) fn again(name: &str, settings: &[(&str, &str)]) {
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args([name, "--exact", "--ignored", "--nocapture"]).env(MARK, "1").envs(settings.iter().copied());
    let out = again.output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && text.contains("1 passed"), "{settings:?}: {text}");
}
