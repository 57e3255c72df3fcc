//! The end of serving: answers that run get their time, and people see how it goes.

use std::{io::IsTerminal as _, time::Duration};

use actix::Addr;
use indicatif::ProgressBar;
use kvwarden_actors::{
    Overview, Router,
    overview::OverviewError,
    protocol::{Drain, Resign},
};
use tokio::time::Instant;

use crate::{
    config::Config,
    http::{Shared, server::Server},
    serve::{signals::Signals, systemd, takeover::predecessor::Successor},
};

/// How often the end of a drain is looked for.
const LOOK: Duration = Duration::from_millis(50);

/// After its grace an engine is killed; by this much later it must be gone.
const KILL_MARGIN: Duration = Duration::from_secs(10);

/// How long engines have to end when everything is to end at once. Then their shims see to it.
const HURRY: Duration = Duration::from_secs(5);

/// For clients that read the end of their answer slowly.
const LINGER: Duration = Duration::from_secs(2);

/// How long connections that a client keeps open are kept after a takeover. Each is closed by the
/// answer to its next request; what is still open then is idle, and closed as it is.
const FAREWELL: Duration = Duration::from_secs(2);

/// How often a log is told how far it is.
const TELL: Duration = Duration::from_secs(5);

/// Lets running answers end, then engines.
pub async fn stop(config: &Config, router: &Addr<Router>, signals: &mut Signals) {
    let mut deadline = Instant::now() + config.limits.drain_timeout;
    router.do_send(Drain { deadline });
    let graces = config.models.iter().map(|model| model.stop_grace);
    let mut margin = graces.max().unwrap_or_default() + KILL_MARGIN;
    let mut progress = Progress::new();
    tracing::info!("stopping; a second signal hurries it");
    systemd::stopping();
    loop {
        tokio::select! {
            () = signals.stop() => {
                tracing::warn!("stopping at once");
                (deadline, margin) = (Instant::now(), HURRY);
                router.do_send(Drain { deadline });
            }
            () = tokio::time::sleep(LOOK) => {}
        }
        let now = match Overview::of(router).await {
            Ok(now) => now,
            Err(error @ OverviewError::Timeout { .. }) if Instant::now() <= deadline + margin => {
                tracing::warn!(%error, "stopping goes on without knowing what is left");
                continue;
            }
            Err(error) => return tracing::error!(%error, "shims will end the engines"),
        };
        let left = Left::of(&now, deadline);
        let is_over = left.requests() == 0 || Instant::now() > deadline;
        if left.engines == 0 && is_over {
            return;
        }
        if Instant::now() > deadline + margin {
            return tracing::error!(engines = ?now.gpu.engines, "engines left; their shims end them");
        }
        progress.tell("stopping", &left);
    }
}

/// Lets running answers end and tells the successor which engines they use. Engines are not touched.
pub async fn leave(
    config: &Config,
    shared: &Shared,
    server: &Server,
    signals: &mut Signals,
    mut successor: Successor,
) {
    let deadline = Instant::now() + config.limits.drain_timeout;
    let router = &shared.router;
    router.do_send(Resign);
    server.pause();
    // Not at once: a connection that was just accepted may not have sent its request yet.
    let mut ended = std::pin::pin!(async {
        tokio::time::sleep(FAREWELL).await;
        server.stop().await;
    });
    let mut progress = Progress::new();
    tracing::info!("another process serves now; this one ends with its last answer");
    while Instant::now() < deadline {
        match Overview::of(router).await {
            Ok(now) => {
                successor.tell(&now.models).await;
                progress.tell("handed over", &Left::of(&now, deadline));
            }
            // No answer is cut for that; the successor keeps to what it heard last.
            Err(error @ OverviewError::Timeout { .. }) => {
                tracing::warn!(%error, "the other process is not told what is still used");
            }
            Err(error @ OverviewError::Ended(_)) => {
                return tracing::error!(%error, "nothing is left to wait for");
            }
        }
        tokio::select! {
            () = &mut ended => return,
            () = signals.stop() => break,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
    tracing::warn!("answers are cut off");
    shared.cut_streams();
    let _ = tokio::time::timeout(LINGER, ended).await;
}

/// Closes what is open, with a little time for clients that are slow to read.
pub async fn close(server: &Server) {
    let _ = tokio::time::timeout(LINGER, server.stop()).await;
}

/// What there is to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Left {
    running: usize,
    waiting: usize,
    engines: usize,
    seconds: u64,
}

// === impl Left ===

impl Left {
    fn of(now: &Overview, deadline: Instant) -> Self {
        let models = now.models.iter();
        let rest = deadline.saturating_duration_since(Instant::now());
        Self {
            running: models.clone().map(|model| model.running).sum(),
            waiting: models.map(|model| model.waiting).sum(),
            engines: now.gpu.engines.len(),
            seconds: rest.as_secs(),
        }
    }

    fn requests(&self) -> usize {
        self.running + self.waiting
    }
}

/// One line that changes on a terminal; elsewhere a line in the log now and then.
struct Progress {
    bar: Option<ProgressBar>,
    told: Option<Instant>,
}

// === impl Progress ===

impl Progress {
    fn new() -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        Self {
            bar: is_terminal.then(ProgressBar::new_spinner),
            told: None,
        }
    }

    fn tell(&mut self, doing: &str, left: &Left) {
        let Left {
            running,
            waiting,
            engines,
            seconds,
        } = left;
        if let Some(bar) = &self.bar {
            bar.set_message(format!(
                "{doing}: {running} requests run, {waiting} wait, {engines} engines; {seconds} s left"
            ));
            return bar.tick();
        }
        if self.told.is_none_or(|told| told.elapsed() >= TELL) {
            self.told = Some(Instant::now());
            tracing::info!(running, waiting, engines, seconds, "{doing}");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
