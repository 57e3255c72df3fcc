//! What a simulated engine does wrong on purpose, so that its supervisor can be tested.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::Args;

/// Fault switches. Without any of them the engine is well.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Faults")]
pub struct Faults {
    /// Be well once this file exists: what else goes wrong does so only in starts before that.
    #[arg(long, value_name = "FILE")]
    pub fault_until: Option<PathBuf>,
    /// Do nothing, bind no port either, before this file exists.
    #[arg(long, value_name = "FILE")]
    pub fault_wait_for: Option<PathBuf>,
    /// Print lines as fast as they go for this long after the start.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub fault_log_flood: Option<Duration>,
    /// Refuse connections for this long after the start (`5s`, `250ms`); the port is bound at once.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub fault_slow_start: Option<Duration>,
    /// Die in the middle of the N-th request.
    #[arg(long, value_name = "N")]
    pub fault_crash_after: Option<u64>,
    /// The exit code of that death.
    #[arg(
        long,
        value_name = "CODE",
        default_value_t = 1,
        requires = "fault_crash_after"
    )]
    pub fault_crash_code: u8,
    /// Stop working for ever in the middle of the N-th request; `/health` goes on saying 200.
    #[arg(long, value_name = "N")]
    pub fault_hang_after: Option<u64>,
    /// Print a CUDA out-of-memory trace and exit with 1 instead of starting.
    #[arg(long)]
    pub fault_oom_at_start: bool,
    /// Go on after SIGTERM and SIGINT.
    #[arg(long)]
    pub fault_ignore_sigterm: bool,
    /// Sleep without giving memory back.
    #[arg(long)]
    pub fault_sleep_frees_nothing: bool,
    /// Wake with weights that are not the model's.
    #[arg(long)]
    pub fault_wake_garbles: bool,
    /// Never answer when asked to wake.
    #[arg(long)]
    pub fault_wake_hangs: bool,
}

/// How an engine fails in the middle of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    Crash { code: u8 },
    Hang,
}

// === impl Faults ===

impl Faults {
    /// Those of this start.
    pub(super) fn now(self) -> Self {
        if self.fault_until.as_deref().is_some_and(Path::exists) {
            return Self::default();
        }
        self
    }

    /// Whether something fails in the middle of the `nth` request, counted from 1.
    pub(super) fn during(&self, nth: u64) -> Option<Failure> {
        if self.fault_crash_after == Some(nth) {
            let code = self.fault_crash_code;
            return Some(Failure::Crash { code });
        }
        (self.fault_hang_after == Some(nth)).then_some(Failure::Hang)
    }
}

/// Prints until the time is over; whoever reads must keep up.
pub(super) fn flood(how_long: Duration) {
    const LINE: &str = "INFO: all is well, and I say so (simulated by --fault-log-flood)\n";
    let lines = LINE.repeat(1000);
    let end = now() + how_long;
    while now() < end {
        complain(&lines);
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a process of its own, in real time"
)]
fn now() -> Instant {
    Instant::now()
}

/// The last words of vLLM when the weights don't fit, shortened.
pub(super) fn print_out_of_memory() {
    const TRACE: &str = "\
ERROR [core.py] EngineCore failed to start.
ERROR [core.py] Traceback (most recent call last):
ERROR [core.py]   File \"vllm/v1/engine/core.py\", in run_engine_core
ERROR [core.py] torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 224.00 MiB. GPU 0 has a total capacity of 79.25 GiB of which 102.19 MiB is free. (simulated by --fault-oom-at-start)
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
";
    complain(TRACE);
}

/// Ends the process the way a dying EngineCore takes its API server along.
pub(super) fn crash(code: u8) -> ! {
    complain("ERROR [core.py] EngineCore died unexpectedly. (simulated by --fault-crash-after)\n");
    process::exit(i32::from(code))
}

fn complain(text: &str) {
    // Nobody is left to tell when stderr is gone.
    drop(std::io::stderr().write_all(text.as_bytes()));
}
/// `5s`, `250ms` or plain seconds.
pub(super) fn duration(text: &str) -> anyhow::Result<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits
        .parse()
        .context("expected a whole number of s or ms")?;
    match &text[digits.len()..] {
        "s" | "" => Ok(Duration::from_secs(number)),
        "ms" => Ok(Duration::from_millis(number)),
        unit => bail!("unknown unit {unit:?}, expected s or ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("5s").unwrap(), Duration::from_secs(5));
        assert_eq!(duration("250ms").unwrap(), Duration::from_millis(250));
        assert_eq!(duration("2").unwrap(), Duration::from_secs(2));
        assert!(duration("5m").is_err() && duration("s").is_err());
    }
}
