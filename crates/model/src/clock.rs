//! Time as an argument: the program takes the system's clock, a test takes its own.

use chrono::{DateTime, SubsecRound, Utc};

/// Where "now" comes from. To the microsecond, as the store keeps it: what is told at once is what is read later.
pub trait Clock: Send + Sync + 'static {
    fn now(&self) -> DateTime<Utc>;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> DateTime<Utc> {
        Utc::now().trunc_subsecs(6)
    }
}
