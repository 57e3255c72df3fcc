//! Watches a start: what its processes and its log have done so far. What to make of that decides
//! [`policy::startup`](kvwarden_policy::startup).

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use kvwarden_policy::startup::{Sign, Startup, Traces, Verdict};
use tokio::time::{Instant, interval};

use super::tree::{ProcessId, Table};

/// How often is looked; sooner where little patience is allowed.
const LOOK: Duration = Duration::from_secs(5);
const SOONEST: Duration = Duration::from_millis(100);
/// Looks within the time that nothing may move.
const LOOKS: u32 = 20;

/// Comes back once nothing has moved for as long as `patience` in the tree below `shim`, which is
/// where orphans of the engine come to. What moved last, if anything did.
pub(crate) async fn stalled(patience: Duration, shim: ProcessId, log: PathBuf) -> Option<Sign> {
    let mut startup = Startup::new(Instant::now().into_std(), patience);
    let mut looks = interval((patience / LOOKS).clamp(SOONEST, LOOK));
    loop {
        looks.tick().await;
        let log = log.clone();
        // Off the actors' thread: a thousand processes take some ten milliseconds.
        let seen = tokio::task::spawn_blocking(move || traces(shim, &log)).await;
        let Ok(Ok(seen)) = seen else { continue };
        if let Verdict::Stalled { last } = startup.look(Instant::now().into_std(), seen) {
            return last;
        }
    }
}

/// What a process and all below it have done so far.
///
/// # Errors
/// `/proc` can't be read.
pub fn traces(root: ProcessId, log: &Path) -> io::Result<Traces> {
    let table = Table::read()?;
    Ok(Traces {
        log: fs::metadata(log).map_or(0, |log| log.len()),
        ..table.traces(root)
    })
}

/// What is said of a start in which nothing has moved for so long.
#[must_use]
pub fn reason(patience: Duration, last: Option<Sign>) -> String {
    let last = last.map_or("nothing ever did".to_owned(), |sign| {
        format!("what moved last was {sign}")
    });
    format!("its log, CPU time and files stood still for {patience:?}; {last}")
}
