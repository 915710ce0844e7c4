//! Chores of the repository: `cargo run -p xtask -- COMMAND`.
//!
//! They are written in Rust so that a contributor needs nothing but the toolchain that builds
//! Phalanx, and so that the rules themselves have tests.

mod check;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};

const HELP: &str = "\
Usage: cargo run -p xtask -- COMMAND

Commands:
  check [STEP...]   the single gate, every step in order, or only the steps named:
                    fmt, clippy, tidy, test, doc
  tidy              the rules that no compiler checks: dependency arrows, file lengths, rooms of
                    `unsafe`, documents that name files, machine paths, large files

PHALANX_SLOW=1 makes `test` run the tests named slow_* as well.
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("xtask: {e:#}");
            ExitCode::from(2)
        }
    }
}

/// Runs a command; `false` when a check failed.
fn run(args: &[String]) -> Result<bool> {
    let root = root()?;
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["tidy"] => tidy::run(&root),
        ["check", steps @ ..] => check::run(&root, steps),
        [] | ["help" | "--help" | "-h"] => {
            print!("{HELP}");
            Ok(true)
        }
        other => anyhow::bail!("no command `{}`\n\n{HELP}", other.join(" ")),
    }
}

/// The repository's root: the folder above this crate.
fn root() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(here.parent().context("xtask lies in no repository")?.to_owned())
}
