//! How an engine ended: the class and the sentence, from what its shim says of it.

use std::time::Duration;

use kvwarden_policy::failure::{self, Exit, FailureClass};

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

/// The end of an engine that never served. `recent` is how many of the last lines can explain it.
pub(super) fn of_start(exit: ShimExit, log_tail: Vec<String>, recent: Option<usize>) -> EngineEnd {
    let old = recent.map_or(0, |recent| log_tail.len().saturating_sub(recent));
    let ended = Exit {
        code: exit.code,
        signal: exit.signal,
        // That is told by the class.
        is_oom_killed: false,
    };
    EngineEnd {
        class: exit.class,
        reason: failure::describe(ended, exit.class, &log_tail[old..]),
        log_tail,
    }
}

/// The same of a server of the author's own, with what its author may have told it or us wrong. `code`
/// is what its main process exited with by itself.
pub(super) fn of_command(end: EngineEnd, code: Option<i32>, launch: &Launch) -> EngineEnd {
    use FailureClass::{Canary, StartStalled, StartTimeout};
    let hint = if launch.flags.own.is_none() {
        None
    } else if matches!(end.class, StartStalled | StartTimeout) {
        Some("it has to listen on the port that `{port}` stands for")
    } else if end.class == Canary {
        Some("its `probe` and `api` say what it is asked")
    } else {
        (code == Some(0))
            .then_some("its command has to stay in the foreground for as long as it serves")
    };
    let reason = match hint {
        Some(hint) => format!("{}; {hint}", end.reason),
        None => end.reason,
    };
    EngineEnd { reason, ..end }
}

/// The end of one that served. Classes that forbid another start are read from the engine's output,
/// which a prompt can reach if the engine logs requests. Once it served, its model and flags were
/// evidently fine.
pub(super) fn of_service(
    exit: ShimExit,
    log_tail: Vec<String>,
    recent: Option<usize>,
) -> EngineEnd {
    let class = if exit.class.is_permanent() {
        FailureClass::Crashed
    } else {
        exit.class
    };
    of_start(ShimExit { class, ..exit }, log_tail, recent)
}

/// The same, with what an operator can do about it.
pub(super) fn with_advice(end: EngineEnd) -> EngineEnd {
    let reason = match end.class.advice() {
        Some(advice) => format!("{}; {advice}", end.reason),
        None => end.reason,
    };
    EngineEnd { reason, ..end }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(class: FailureClass) -> ShimExit {
        ShimExit {
            code: Some(1),
            signal: None,
            class,
        }
    }

    #[test]
    fn line_from_long_ago_does_not_explain_an_end() {
        let tail = || vec!["ValueError: handled".to_owned(), "bye".to_owned()];
        let end = of_start(exit(FailureClass::Crashed), tail(), Some(1));
        assert_eq!(end.reason, "exited with code 1 (bye)");
        assert_eq!(end.log_tail, tail());
        let end = of_start(exit(FailureClass::Crashed), tail(), None);
        assert_eq!(end.reason, "exited with code 1 (ValueError: handled)");
    }

    #[test]
    fn engine_that_served_is_not_barred_by_what_its_output_says() {
        let tail = vec!["error: unrecognized arguments: --prompt".to_owned()];
        let end = of_service(exit(FailureClass::BadFlag), tail, None);
        assert_eq!(end.class, FailureClass::Crashed);
    }
}
