//! What the service manager is told, if one asked for it (`sd_notify(3)`).

use std::time::Duration;

use actix::Addr;
use kvwarden_actors::{Overview, Router};
use kvwarden_policy::lifecycle::State;
use sd_notify::NotifyState;

/// How often the line that `systemctl status` shows is renewed, unless the watchdog asks for more.
const INTERVAL: Duration = Duration::from_secs(5);

/// Clients can connect.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// Something changes, and [`ready`] follows.
pub fn reloading() {
    // From version 253 on, systemd wants to know when.
    let mut states = vec![NotifyState::Reloading];
    states.extend(NotifyState::monotonic_usec_now());
    tell(&states);
}

/// This is the end.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// One line for people.
pub fn status(line: &str) {
    tell(&[NotifyState::Status(line)]);
}

/// Another process is the service now; none, where the kernel does not tell which.
pub fn main_pid(pid: Option<i32>) {
    if let Some(pid) = pid.and_then(|pid| pid.try_into().ok()) {
        tell(&[NotifyState::MainPid(pid)]);
    }
}

/// Shows what is served, and feeds the watchdog: every beat proves that all actors answered. For as
/// long as it is polled.
pub async fn attend(router: Addr<Router>) {
    // Twice in its time, as sd_watchdog_enabled(3) asks.
    let beat = sd_notify::watchdog_enabled().map_or(INTERVAL, |usual| (usual / 2).min(INTERVAL));
    loop {
        // An actor that is stuck makes this an error, and the watchdog bites.
        if let Ok(now) = Overview::of(&router).await {
            status(&describe(&now));
            tell(&[NotifyState::Watchdog]);
        }
        tokio::time::sleep(beat).await;
    }
}

fn describe(now: &Overview) -> String {
    let states = now.models.iter().map(|model| model.state);
    let serving = states.filter(|state| *state == State::Ready).count();
    let running: usize = now.models.iter().map(|model| model.running).sum();
    let waiting: usize = now.models.iter().map(|model| model.waiting).sum();
    format!(
        "{serving} of {} models serve; {running} requests run, {waiting} wait",
        now.models.len()
    )
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager can't be told");
    }
}
