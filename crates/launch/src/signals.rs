use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};

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
