//! Is the clock sane? With a wrong one, downloads fail at TLS and logs mislead.

use std::time::{Duration, SystemTime};

use super::Check;
use crate::terminal;

const NAME: &str = "clock";

/// File times may come from another machine, whose clock is a little ahead.
const SLACK: Duration = Duration::from_hours(24);

/// Beyond this, certificates of today have long expired.
const LIFETIME: Duration = Duration::from_hours(24 * 365 * 20);

const FIX: &str = "timedatectl set-ntp true";

/// 2025, before there was this program. Reproducible packages give files a date of 1970 or 1980.
const FIRST: Duration = Duration::from_secs(1_735_689_600);

/// `program`: when this program was put here.
pub(super) fn sane(now: SystemTime, program: Option<SystemTime>) -> Check {
    let first = SystemTime::UNIX_EPOCH + FIRST;
    let program = program.map_or(first, |program| program.max(first));
    let behind = program.duration_since(now).unwrap_or_default();
    if behind > SLACK {
        let finding = format!(
            "it is {} before this program's date",
            terminal::seconds(behind.as_secs_f64())
        );
        return Check::problem(NAME, finding, FIX);
    }
    if now.duration_since(program).unwrap_or_default() > LIFETIME {
        let finding = "it is more than 20 years after this program's date";
        return Check::problem(NAME, finding, FIX);
    }
    Check::ok(NAME, "it agrees with this program's date")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::State;

    #[test]
    fn clock_before_the_program_or_far_after_it_is_wrong() {
        let program = SystemTime::UNIX_EPOCH + Duration::from_hours(500_000);
        let state = |now| sane(now, Some(program)).state;
        assert_eq!(state(program + SLACK), State::Ok);
        assert_eq!(state(program - SLACK), State::Ok);
        assert_eq!(state(SystemTime::UNIX_EPOCH), State::Problem);
        assert_eq!(state(program + LIFETIME + SLACK), State::Problem);
    }

    #[test]
    fn program_of_no_date_is_of_2025() {
        let today = SystemTime::UNIX_EPOCH + Duration::from_hours(500_000);
        for program in [None, Some(SystemTime::UNIX_EPOCH)] {
            assert_eq!(sane(today, program).state, State::Ok);
            assert_eq!(sane(SystemTime::UNIX_EPOCH, program).state, State::Problem);
        }
    }
}
