use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use crate::{Error, Result};

/// A flag that Ctrl-C, SIGTERM and SIGUSR1 set: the run then stops after its step, with a checkpoint.
/// Further signals set it again and change nothing, so an impatient second Ctrl-C cannot spoil the
/// checkpoint that the first one asked for.
pub fn stop_on_signals() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGUSR1] {
        signal_hook::flag::register(signal, stop.clone()).map_err(|cause| Error::Signal { signal, cause })?;
    }
    Ok(stop)
}

/// Prints `text` when Ctrl-C or SIGTERM ends the process, which they still do: for work that goes on where it was interrupted
/// without any care of its own.
pub fn tell_on_signals(text: &'static str) -> Result<()> {
    let fail = |cause| Error::Signal { signal: SIGINT, cause };
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(fail)?;
    let tell = move || {
        if let Some(signal) = signals.forever().next() {
            // A standard error that is closed is no reason to stay.
            let _ = writeln!(std::io::stderr(), "{text}");
            let _ = signal_hook::low_level::emulate_default_handler(signal);
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(tell).map(drop).map_err(fail)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn a_signal_sets_the_flag_and_the_process_goes_on() {
        let stop = stop_on_signals().unwrap();
        assert!(!stop.load(Ordering::SeqCst));
        for _ in 0..2 {
            signal_hook::low_level::raise(SIGUSR1).unwrap();
            assert!(stop.load(Ordering::SeqCst));
        }
    }
}
