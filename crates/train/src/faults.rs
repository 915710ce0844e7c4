//! Planted failures (`--inject`), for users who want to see what happens and for the tests.

use std::str::FromStr;
use std::time::Duration;

use signal_hook::consts::{SIGKILL, SIGSTOP};

use crate::{Error, Result};

/// A kind of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The rank's thread panics.
    Panic,
    /// The rank's loss is not a number.
    Nan,
    /// The rank sleeps before the step.
    Slow(Duration),
    /// Writing the next checkpoint finds the disk full.
    DiskFull,
    /// The rank's process is killed (SIGKILL).
    Kill,
    /// The rank's process is stopped (SIGSTOP): it neither works nor ends.
    Stop,
    /// The rank's process exits at once with this code.
    Exit(u8),
    /// The rank starts a sum that does not fit the others'.
    Desync,
    /// A bit of a summed gradient flips on this rank: the replicas part.
    CorruptGradient,
    /// The rank's loader never gives its next batch.
    HangLoader,
}

/// The form of a specification.
const FORM: &str = "rank=R,step=S,kind=kill|stop|slow:MS|panic|nan|desync|corrupt-gradient|hang-loader|\
                    disk-full|exit:CODE";

/// One planted failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Planted {
    rank: u32,
    step: u64,
    fault: Fault,
}

/// All planted failures of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults(Vec<Planted>);

impl FromStr for Planted {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |problem: String| {
            Error::config(format!("--inject {text}"), format!("{problem}; the form is {FORM}"))
        };
        let (mut rank, mut step, mut fault) = (None, None, None);
        for part in text.split(',') {
            let (key, value) = part.split_once('=').ok_or_else(|| wrong(format!("{part:?} has no value")))?;
            let number = || value.parse::<u64>().map_err(|_| wrong(format!("{value:?} is no number")));
            match key.trim() {
                "rank" => rank = Some(u32::try_from(number()?).map_err(|_| wrong("no such rank".into()))?),
                "step" => step = Some(number()?),
                "kind" => {
                    fault = Some(match value.split_once(':').unwrap_or((value, "")) {
                        ("slow", ms) => {
                            let ms = ms.parse().map_err(|_| wrong(format!("{ms:?} is no number of ms")))?;
                            Fault::Slow(Duration::from_millis(ms))
                        }
                        ("exit", code) => {
                            let wrong = |_| wrong(format!("{code:?} is no exit code from 0 to 255"));
                            Fault::Exit(code.parse().map_err(wrong)?)
                        }
                        _ => match value {
                            "kill" => Fault::Kill,
                            "stop" => Fault::Stop,
                            "panic" => Fault::Panic,
                            "nan" => Fault::Nan,
                            "desync" => Fault::Desync,
                            "corrupt-gradient" => Fault::CorruptGradient,
                            "hang-loader" => Fault::HangLoader,
                            "disk-full" => Fault::DiskFull,
                            _ => return Err(wrong(format!("there is no kind {value:?}"))),
                        },
                    });
                }
                other => return Err(wrong(format!("there is no key {other:?}"))),
            }
        }
        match (rank, step, fault) {
            (Some(rank), Some(step), Some(fault)) => Ok(Planted { rank, step, fault }),
            _ => Err(wrong("rank, step and kind must all be given".into())),
        }
    }
}

impl Faults {
    /// Reads the values of all `--inject` options.
    pub fn parse(values: &[String]) -> Result<Self> {
        values.iter().map(|v| v.parse()).collect::<Result<_>>().map(Faults)
    }

    /// Checks that each failure can come to pass among `ranks` ranks.
    pub fn check(&self, ranks: u32) -> Result<()> {
        for p in &self.0 {
            let fail = |problem: String| Err(Error::config("--inject", problem));
            if p.rank >= ranks {
                return fail(format!("there is no rank {} of {ranks}; ranks count from 0", p.rank));
            }
            if p.rank > 0 && p.fault == Fault::DiskFull {
                return fail("disk-full is for rank 0, which alone writes checkpoints".into());
            }
        }
        Ok(())
    }

    /// Whether `fault` is planted on `rank` at `step`.
    pub fn hits(&self, rank: u32, step: u64, fault: Fault) -> bool {
        self.0.contains(&Planted { rank, step, fault })
    }

    /// Whether anything is planted on `rank` at `step`.
    pub fn any(&self, rank: u32, step: u64) -> bool {
        self.0.iter().any(|p| p.rank == rank && p.step == step)
    }

    /// Whether the checkpoint written at `step` finds the disk full: the first one from the planted
    /// step on.
    pub fn disk_full(&self, rank: u32, step: u64) -> bool {
        self.0.iter().any(|p| p.rank == rank && p.step <= step && p.fault == Fault::DiskFull)
    }

    /// Sleeps, panics or ends the process, when that is planted on `rank` at `step`.
    #[expect(clippy::panic, reason = "a panic is what was asked for")]
    pub fn before_step(&self, rank: u32, step: u64) {
        for p in self.0.iter().filter(|p| p.rank == rank && p.step == step) {
            match p.fault {
                Fault::Panic => std::panic::panic_any(format!("planted by --inject at step {step}")),
                Fault::Slow(time) => std::thread::sleep(time),
                // A process that may not signal itself has ended in another way.
                Fault::Kill => drop(signal_hook::low_level::raise(SIGKILL)),
                Fault::Stop => drop(signal_hook::low_level::raise(SIGSTOP)),
                Fault::Exit(code) => std::process::exit(code.into()),
                // Whoever does the work asks for these.
                Fault::Nan | Fault::DiskFull | Fault::Desync | Fault::CorruptGradient | Fault::HangLoader => {
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specifications_are_read_and_wrong_ones_explained() {
        let parse = |t: &str| Faults::parse(&[t.to_owned()]);
        let f = parse("rank=1,step=7,kind=slow:50").unwrap();
        assert!(f.hits(1, 7, Fault::Slow(Duration::from_millis(50))) && !f.hits(1, 6, Fault::Nan));
        assert!(f.check(2).is_ok());
        assert!(f.check(1).unwrap_err().to_string().contains("no rank 1 of 1"));
        let f = parse("rank=1,step=7,kind=disk-full").unwrap();
        assert!(f.check(2).unwrap_err().to_string().contains("rank 0"));
        let f = parse("kind=disk-full,rank=0,step=3").unwrap();
        assert!(!f.disk_full(0, 2) && f.disk_full(0, 3) && f.disk_full(0, 9) && !f.disk_full(1, 9));
        for (text, say) in [
            ("rank=1,step=2", "must all be given"),
            ("rank=x,step=2,kind=nan", "no number"),
            ("rank=0,step=2,kind=fire", "no kind"),
            ("rank=0,step=2,kind=slow:x", "number of ms"),
            ("rank=0,step=2,kind=exit:256", "no exit code"),
            ("rank=0,step=2,kind=kill:9", "no kind"),
            ("host=0,step=2,kind=nan", "no key"),
            ("nan", "no value"),
        ] {
            let e = parse(text).unwrap_err();
            assert!(e.to_string().contains(say) && e.exit_code() == 2, "{e}");
        }
    }
}
