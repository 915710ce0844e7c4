//! The single gate: what has to pass before a change lands.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::tidy;

/// Leaves the slow tests out unless `PHALANX_SLOW` asks for them.
const NOT_SLOW: &str = "not test(/(^|::)slow_/)";

/// The gate's steps, cheapest first.
const STEPS: [&str; 5] = ["fmt", "clippy", "tidy", "test", "doc"];

/// Runs `wanted`, or all steps when it is empty. Every step runs, whatever the ones before it said.
pub(crate) fn run(root: &Path, wanted: &[&str]) -> Result<bool> {
    if let Some(unknown) = wanted.iter().find(|w| !STEPS.contains(w)) {
        bail!("no step `{unknown}`; there are {}", STEPS.join(", "));
    }
    let mut failed = Vec::new();
    for step in STEPS.into_iter().filter(|s| wanted.is_empty() || wanted.contains(s)) {
        let start = Instant::now();
        eprintln!("xtask: {step}");
        let passed = match step {
            "tidy" => tidy::run(root)?,
            _ => {
                let features = features();
                let features: Vec<&str> = features.iter().map(String::as_str).collect();
                command(root, &arguments(step, slow(), nextest(root), &features))?
            }
        };
        eprintln!(
            "xtask: {step} {} in {:.1} s",
            if passed { "passed" } else { "failed" },
            start.elapsed().as_secs_f64()
        );
        if !passed {
            failed.push(step);
        }
    }
    if !failed.is_empty() {
        eprintln!("xtask: failed: {}", failed.join(", "));
    }
    Ok(failed.is_empty())
}

/// What a step hands to cargo.
fn arguments<'a>(step: &str, slow: bool, nextest: bool, features: &[&'a str]) -> Vec<&'a str> {
    let with = |first: &[&'a str], rest: &[&'a str]| [first, features, rest].concat();
    match (step, nextest) {
        ("fmt", _) => vec!["fmt", "--all", "--check"],
        ("clippy", _) => with(&["clippy", "--workspace", "--all-targets"], &["--", "-D", "warnings"]),
        ("doc", _) => with(&["test", "--workspace", "--doc"], &[]),
        (_, true) => {
            let mut args = with(&["nextest", "run", "--workspace", "--no-fail-fast"], &[]);
            args.extend(["--config-file", "tests/nextest.toml"]);
            if !slow {
                args.extend(["-E", NOT_SLOW]);
            }
            args
        }
        (_, false) => {
            let mut args = with(&["test", "--workspace", "--no-fail-fast"], &[]);
            // What nextest runs: no benchmarks, and no doc tests, which are a step of their own.
            args.extend(["--lib", "--bins", "--tests", "--examples"]);
            if !slow {
                args.extend(["--", "--skip", "slow_"]);
            }
            args
        }
    }
}

/// Build features that `PHALANX_FEATURES` names, for cargo: those that need more than a Rust toolchain.
fn features() -> Vec<String> {
    let named = std::env::var("PHALANX_FEATURES").unwrap_or_default();
    let all: Vec<String> =
        named.split([',', ' ']).filter(|f| !f.is_empty()).map(|f| format!("phalanx/{f}")).collect();
    if all.is_empty() { Vec::new() } else { vec!["--features".into(), all.join(",")] }
}

fn slow() -> bool {
    std::env::var_os("PHALANX_SLOW").is_some_and(|v| v == "1")
}

/// Whether `cargo nextest` is installed. It is optional: it runs tests in parallel processes and ends
/// the ones that hang.
fn nextest(root: &Path) -> bool {
    let quiet = Stdio::null;
    cargo(root)
        .args(["nextest", "--version"])
        .stdout(quiet())
        .stderr(quiet())
        .status()
        .is_ok_and(|s| s.success())
}

fn command(root: &Path, args: &[&str]) -> Result<bool> {
    let status =
        cargo(root).args(args).status().with_context(|| format!("cargo {} did not start", args.join(" ")))?;
    Ok(status.success())
}

fn cargo(root: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marked_tests_run_only_when_asked_for() {
        for nextest in [false, true] {
            let says = |slow| arguments("test", slow, nextest, &[]).iter().any(|a| a.contains("slow_"));
            assert!(says(false) && !says(true));
        }
    }

    #[test]
    fn features_reach_cargo_before_its_separator() {
        let features = ["--features", "phalanx/mpi"];
        for step in ["clippy", "test", "doc"] {
            let args = arguments(step, false, false, &features);
            let at = |w: &str| args.iter().position(|a| *a == w);
            assert!(
                at("--features").is_some() && at("--").is_none_or(|s| at("phalanx/mpi") < Some(s)),
                "{args:?}"
            );
        }
        assert!(!arguments("fmt", false, false, &features).contains(&"--features"));
    }

    #[test]
    fn an_unknown_step_is_refused_before_anything_runs() {
        let error = run(Path::new("/nonexistent"), &["fmt", "spell"]).unwrap_err().to_string();
        assert!(error.contains("spell") && error.contains("clippy"), "{error}");
    }
}
