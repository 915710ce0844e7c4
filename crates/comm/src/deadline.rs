use std::time::{Duration, Instant};

/// The moment after which a wait gives up; or never.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    at: Option<Instant>,
    allowed: Duration,
}

impl Deadline {
    /// `allowed` from now. A time past the clock's end is taken as never.
    pub fn after(allowed: Duration) -> Self {
        Deadline { at: Instant::now().checked_add(allowed), allowed }
    }

    /// No deadline; for waits that something else is sure to end.
    pub const fn never() -> Self {
        Deadline { at: None, allowed: Duration::MAX }
    }

    /// The time that was allowed when the deadline was made.
    pub fn allowed(&self) -> Duration {
        self.allowed
    }

    /// The time that is left: `None` without a deadline, zero once it has passed.
    pub fn remaining(&self) -> Option<Duration> {
        self.at.map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// Whether the moment has passed.
    pub fn expired(&self) -> bool {
        self.remaining().is_some_and(|left| left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_passes_and_never_does_not() {
        assert!(Deadline::after(Duration::ZERO).expired());
        let later = Deadline::after(Duration::from_secs(60));
        assert!(!later.expired() && later.remaining() <= Some(Duration::from_secs(60)));
        assert_eq!(Deadline::never().remaining(), None);
        assert!(!Deadline::after(Duration::MAX).expired());
    }
}
