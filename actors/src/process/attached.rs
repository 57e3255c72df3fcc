//! A server that somebody else runs: nothing to start, only to see whether it answers.

use std::{sync::Arc, time::Duration};

use kvwarden_policy::{failure::FailureClass, lifecycle::SleepLevels};

use super::task::{EngineTask, Orders};
use crate::engine::{Attached, Endpoint, EngineEnd, EngineKind, News, probe::Probe};

/// How often it is asked.
const INTERVAL: Duration = Duration::from_secs(5);
/// Unanswered questions in a row that count as an outage; one may be a hiccup.
const MAX_MISSED: u32 = 3;

/// Watches the server until it is given up or stops answering.
pub(super) async fn watch(
    task: &EngineTask,
    orders: &mut Orders,
    attached: &Attached,
) -> EngineEnd {
    let endpoint = Endpoint {
        model: task.spawn.engine.clone(),
        kind: EngineKind::Attach,
        generation: task.spawn.generation,
        base: attached.base.clone(),
        api_key: attached.api_key.clone(),
        served_name: attached.served_name.clone(),
        levels: SleepLevels::default(),
        canary: None,
    };
    let probe = Probe::new(&endpoint);
    let (mut missed, mut is_ready) = (0, false);
    loop {
        let answers = tokio::select! {
            answers = probe.lists_models() => answers,
            _ = orders.recv() => return EngineEnd::new(FailureClass::Stopped, "stopped"),
        };
        match answers {
            Ok(()) if is_ready => missed = 0,
            Ok(()) => {
                is_ready = true;
                task.tell(News::Ready(Arc::new(endpoint.clone())));
            }
            Err(reason) => {
                missed += 1;
                if missed >= MAX_MISSED || !is_ready {
                    return EngineEnd::new(FailureClass::Crashed, reason);
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            _ = orders.recv() => return EngineEnd::new(FailureClass::Stopped, "stopped"),
        }
    }
}
