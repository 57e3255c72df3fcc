//! How an engine ended: the class and the sentence, from what its shim says of it.

use std::time::Duration;

use kvwarden_policy::failure::{self, FailureClass};

use super::shim::ShimExit;
use crate::engine::{EngineEnd, Launch};

/// What an engine that does not work gets between SIGTERM and SIGKILL: time to give back what the
/// kernel does not, such as files in /dev/shm.
const BROKEN_GRACE: Duration = Duration::from_secs(2);

/// How long an engine may take to end for this reason.
pub(super) fn grace(class: FailureClass, launch: &Launch) -> Duration {
    use FailureClass::{Canary, Hung, StartStalled};
    if matches!(class, Canary | Hung | StartStalled) {
        BROKEN_GRACE.min(launch.stop_grace)
    } else {
        launch.stop_grace
    }
}

/// The end of an engine that never served.
pub(super) fn of_start(exit: ShimExit, log_tail: Vec<String>) -> EngineEnd {
    EngineEnd {
        class: exit.class,
        reason: describe(exit, &log_tail),
        log_tail,
    }
}

/// The end of one that served. Classes that forbid another start are read from the engine's output,
/// which a prompt can reach if the engine logs requests. Once it served, its model and flags were
/// evidently fine.
pub(super) fn of_service(exit: ShimExit, log_tail: Vec<String>) -> EngineEnd {
    let class = if exit.class.is_permanent() {
        FailureClass::Crashed
    } else {
        exit.class
    };
    of_start(ShimExit { class, ..exit }, log_tail)
}

/// The same, with what an operator can do about it.
pub(super) fn with_advice(end: EngineEnd) -> EngineEnd {
    let reason = match end.class.advice() {
        Some(advice) => format!("{}; {advice}", end.reason),
        None => end.reason,
    };
    EngineEnd { reason, ..end }
}

fn describe(exit: ShimExit, tail: &[String]) -> String {
    let class = exit.class;
    let how = match (exit.code, exit.signal) {
        (_, Some(signal)) => format!("killed by signal {signal}"),
        (Some(code), None) => format!("exited with code {code}"),
        (None, None) => "ended".to_owned(),
    };
    // Crashes and kills are told by the exit status already.
    let says_more = !matches!(
        class,
        FailureClass::Crashed | FailureClass::Killed | FailureClass::Stopped
    );
    let what = if says_more {
        format!(": {class}")
    } else {
        String::new()
    };
    // vLLM's last line only says that the cause is above.
    let cause = tail
        .iter()
        .find(|line| failure::cause_in(line) == Some(class));
    let last = tail.iter().rev().find(|line| !line.trim().is_empty());
    cause.or(last).map_or_else(
        || format!("{how}{what}"),
        |line| format!("{how}{what} ({})", line.trim()),
    )
}
