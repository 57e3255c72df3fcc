//! The side that serves and hands over.

use std::{
    collections::BTreeSet,
    fs::File,
    net::TcpListener,
    os::fd::{AsFd as _, BorrowedFd},
    time::Duration,
};

use actix::Addr;
use kvwarden_actors::{
    Overview, Router, model::ModelState, overview::OverviewError,
    process::leadership::LeadershipHandle,
};
use kvwarden_policy::ModelId;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::Instant;
use tokio_seqpacket::UnixSeqpacketListener;

use super::{
    ANSWER, PROTOCOL, Reply, Request, TakeoverError,
    channel::{self, Channel},
    quiescence::{Hindrance, hindrance},
    socket, unexpected,
};
use crate::{
    layout::Layout,
    serve::{history, systemd},
};

/// How long it waits for a moment in which nothing changes and nobody waits.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often it looks for that moment.
const LOOK: Duration = Duration::from_millis(50);

/// How often the successor hears what it waits for.
const TELL: Duration = Duration::from_secs(2);

/// How long the successor may take to build itself up. Processes of engines that ended badly are
/// given ten seconds to die in it.
const BUILD: Duration = Duration::from_secs(30);

/// What makes a process the one that serves here.
pub struct Handles {
    /// Where clients connect.
    pub listener: TcpListener,
    /// Held while nobody else may serve with this state directory.
    pub lock: File,
}

/// Where successors connect.
pub struct Listener(Option<UnixSeqpacketListener>);

/// This process, and what it takes to hand over.
pub struct Predecessor<'a> {
    /// What is handed over.
    pub handles: &'a Handles,
    /// The actors.
    pub router: &'a Addr<Router>,
    /// What takes the leadership over engines from them.
    pub leadership: &'a LeadershipHandle,
    /// Where state is written for the last time.
    pub layout: &'a Layout,
}

/// The process that has taken over.
pub struct Successor {
    channel: Channel,
    told: Option<BTreeSet<ModelId>>,
}

/// While it exists, this process looks on; dropped, it decides again.
struct Resigned<'a>(Option<&'a LeadershipHandle>);

// === impl Listener ===

impl Listener {
    /// Listens. If it can't, serving goes on all the same.
    #[must_use]
    pub fn open(layout: &Layout) -> Self {
        let listener = channel::listen(&socket(layout));
        if let Err(error) = &listener {
            tracing::warn!(%error, "nobody will be able to take over");
        }
        Self(listener.ok())
    }

    /// The next process that wants to take over.
    pub(in crate::serve) async fn accept(&mut self) -> Channel {
        let Some(listener) = &mut self.0 else {
            return std::future::pending().await;
        };
        match channel::accept(listener).await {
            Ok(channel) => channel,
            Err(error) => {
                tracing::warn!(%error, "nobody will be able to take over");
                self.0 = None;
                std::future::pending().await
            }
        }
    }
}

// === impl Predecessor ===

impl Predecessor<'_> {
    /// Hands over to who connected. Dropped before it returns, it has not.
    ///
    /// # Errors
    /// Why not; then everything is as it was.
    pub(in crate::serve) async fn hand_over(
        &self,
        channel: Channel,
    ) -> Result<Successor, TakeoverError> {
        self.offer(&channel).await?;
        systemd::reloading();
        let mut resigned = self.resign(&channel).await?;
        history::save(self.router, self.layout).await;
        channel.say(&Reply::Yours).await?;
        match channel.hear(BUILD).await {
            Ok(Request::Serving) => {}
            Ok(other) => return Err(unexpected(&other)),
            Err(why) => {
                // It may only be slow, and must not go on when we do.
                if let (TakeoverError::Silent(_), Some(pid)) = (&why, channel.peer()) {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
                return Err(why);
            }
        }
        // Before the farewell, since what the successor itself says counts only after it.
        systemd::main_pid(channel.peer());
        channel.say(&Reply::Farewell).await?;
        resigned.0 = None;
        Ok(Successor {
            channel,
            told: None,
        })
    }

    /// Shows what there is to have, and waits until the other side wants it.
    async fn offer(&self, channel: &Channel) -> Result<(), TakeoverError> {
        let hello: Request = channel.hear(ANSWER).await?;
        let Request::Hello {
            protocol: theirs, ..
        } = hello
        else {
            return Err(unexpected(&hello));
        };
        if theirs != PROTOCOL {
            let why = TakeoverError::Protocol { theirs };
            let reason = format!("it speaks version {PROTOCOL} of the takeover, not {theirs}");
            channel.say(&Reply::Refused { reason }).await?;
            return Err(why);
        }
        let Handles { listener, lock } = self.handles;
        let offer = Reply::Offer {
            listen: listener.local_addr()?,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let files: [BorrowedFd<'_>; 2] = [listener.as_fd(), lock.as_fd()];
        channel.say_with(&offer, &files).await?;
        let answer: Request = channel.hear(ANSWER).await?;
        if answer == Request::Take {
            Ok(())
        } else {
            Err(unexpected(&answer))
        }
    }

    /// Waits for a good moment, and from then on only looks on.
    async fn resign(&self, channel: &Channel) -> Result<Resigned<'_>, TakeoverError> {
        let deadline = Instant::now() + PATIENCE;
        let mut told = None;
        loop {
            let hindrance = match self.hindrance(deadline).await? {
                Some(hindrance) => hindrance,
                None => {
                    let resigned = self.look_on();
                    // Orders that were on their way have arrived by the second look.
                    self.hindrance(deadline).await?;
                    match self.hindrance(deadline).await? {
                        Some(hindrance) => hindrance,
                        None => return Ok(resigned),
                    }
                }
            };
            let reason = hindrance.to_string();
            if Instant::now() >= deadline {
                let refused = reason.clone();
                channel.say(&Reply::Refused { reason }).await?;
                return Err(TakeoverError::Refused(refused));
            }
            tell(channel, reason, &mut told).await?;
            tokio::time::sleep(LOOK).await;
        }
    }

    fn look_on(&self) -> Resigned<'_> {
        self.leadership.give_up();
        Resigned(Some(self.leadership))
    }

    /// What is in the way. That requests wait is so only until the deadline.
    async fn hindrance(&self, deadline: Instant) -> Result<Option<Hindrance>, TakeoverError> {
        let overview = Overview::of(self.router).await;
        let stuck = |error: OverviewError| TakeoverError::Refused(error.to_string());
        let found = hindrance(&overview.map_err(stuck)?.models);
        let is_late = Instant::now() >= deadline;
        Ok(found.filter(|found| !is_late || matches!(found, Hindrance::Changes(..))))
    }
}

/// Says now and then what is waited for; a successor that is gone is noticed by it.
async fn tell(
    channel: &Channel,
    reason: String,
    told: &mut Option<Instant>,
) -> Result<(), TakeoverError> {
    if told.is_some_and(|told| told.elapsed() < TELL) {
        return Ok(());
    }
    *told = Some(Instant::now());
    Ok(channel.say(&Reply::Wait { reason }).await?)
}

impl Drop for Resigned<'_> {
    fn drop(&mut self) {
        if let Some(leadership) = self.0 {
            leadership.take_back();
        }
    }
}

// === impl Successor ===

impl Successor {
    /// Tells it what is still used, if that has changed.
    pub async fn tell(&mut self, models: &[ModelState]) {
        let engines = used(models);
        if self.told.as_ref() == Some(&engines) {
            return;
        }
        self.told = Some(engines.clone());
        // If it is gone, nobody needs to know.
        let _ = self.channel.say(&Reply::Using { engines }).await;
    }
}

/// Engines that run requests, or will run those that wait.
fn used(models: &[ModelState]) -> BTreeSet<ModelId> {
    let engines = models.iter().flat_map(|model| {
        let is_used = |running: u64| running > 0 || model.waiting > 0;
        let engines = model.engines.iter();
        engines.filter(move |engine| is_used(engine.occupancy.running))
    });
    engines.map(|engine| engine.engine.clone()).collect()
}
