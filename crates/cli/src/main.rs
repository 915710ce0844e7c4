//! The `phalanx` binary: it reads the command line, calls a room and turns its answer into an exit
//! code. No logic lives here.

mod args;
mod commands;
mod packing;
mod world;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let args = match args::Args::try_parse() {
        Ok(args) => args,
        Err(e) => {
            let code = if e.use_stderr() { 2 } else { 0 };
            // A closed standard output is no reason to fail.
            let _ = e.print();
            return ExitCode::from(code);
        }
    };
    match commands::run(args) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            report(&format!("{e:#}"));
            ExitCode::from(commands::exit_code(&e))
        }
    }
}

/// Prints an error; a standard error that is closed is no reason for another one.
fn report(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "error: {text}");
}
