//! The side that takes over.

use std::{
    collections::BTreeSet,
    fs::File,
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
    process::Stdio,
    time::Duration,
};

use kvwarden_actors::process::{leadership::InUse, orphans};
use tokio::{
    process::Command,
    sync::watch,
    time::{Instant, sleep},
};

use super::{
    ANSWER, PROTOCOL, Reply, Request, TakeoverError, channel::Channel, predecessor::Handles,
    socket, unexpected,
};
use crate::{http::socket::bind, layout::Layout};

/// The flag of `kvwarden serve` that makes a successor.
pub const FLAG: &str = "--takeover";

/// How long the one that serves may take to listen: it may have begun a moment ago.
const OPENING: Duration = Duration::from_secs(5);

/// Pause between two attempts to connect.
const PAUSE: Duration = Duration::from_millis(50);

/// What is left of a takeover: the kvwarden that serves until now has let go of nothing yet.
pub struct Handover {
    channel: Channel,
    in_use: watch::Sender<InUse>,
}

/// Takes over what the one that serves holds. Nothing of it changes before this returns.
///
/// # Errors
/// Why it goes on serving.
pub async fn take(
    layout: &Layout,
    listen: SocketAddr,
    in_use: watch::Sender<InUse>,
) -> Result<(Handles, Handover), TakeoverError> {
    let channel = connect(layout).await?;
    channel
        .say(&Request::Hello {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })
        .await?;
    let (offer, files) = channel.hear_with(ANSWER).await?;
    let (theirs, version) = match offer {
        Reply::Offer { listen, version } => (listen, version),
        Reply::Refused { reason } => return Err(TakeoverError::Refused(reason)),
        other @ (Reply::Wait { .. } | Reply::Yours | Reply::Farewell | Reply::Using { .. }) => {
            return Err(unexpected(&other));
        }
    };
    tracing::info!(from = version, listen = %theirs, "taking over");
    let handles = handles(files, theirs, listen)?;
    orphans::inspect(&layout.run()).map_err(TakeoverError::Engines)?;
    channel.say(&Request::Take).await?;
    loop {
        match channel.hear(ANSWER).await? {
            Reply::Yours => return Ok((handles, Handover { channel, in_use })),
            Reply::Wait { reason } => tracing::info!(reason, "waiting to take over"),
            Reply::Refused { reason } => return Err(TakeoverError::Refused(reason)),
            other @ (Reply::Offer { .. } | Reply::Farewell | Reply::Using { .. }) => {
                return Err(unexpected(&other));
            }
        }
    }
}

async fn connect(layout: &Layout) -> Result<Channel, TakeoverError> {
    let path = socket(layout);
    let begun = Instant::now();
    loop {
        match Channel::connect(&path).await {
            Ok(channel) => return Ok(channel),
            Err(_) if begun.elapsed() < OPENING => sleep(PAUSE).await,
            Err(source) => return Err(TakeoverError::Absent { path, source }),
        }
    }
}

/// What was handed over, or a socket of our own where the configuration says another address.
fn handles(
    files: Vec<OwnedFd>,
    theirs: SocketAddr,
    listen: SocketAddr,
) -> Result<Handles, TakeoverError> {
    let files: Result<[OwnedFd; 2], _> = files.try_into();
    let [listener, lock] = files.map_err(|files| {
        TakeoverError::Nonsense(format!("{} open files instead of 2", files.len()))
    })?;
    let listener = if theirs == listen {
        TcpListener::from(listener)
    } else {
        bind(listen).map_err(|source| TakeoverError::Listen { listen, source })?
    };
    Ok(Handles {
        listener,
        lock: File::from(lock),
    })
}

// === impl Handover ===

impl Handover {
    /// Says that everything is ready, and waits until the other has let go.
    ///
    /// # Errors
    /// It did not, so it goes on serving and this process must not.
    pub async fn finish(self) -> Result<(), TakeoverError> {
        let Self { channel, in_use } = self;
        channel.say(&Request::Serving).await?;
        let last: Reply = channel.hear(ANSWER).await?;
        if last != Reply::Farewell {
            return Err(unexpected(&last));
        }
        // Ends when the predecessor does, or with this process.
        drop(actix_web::rt::spawn(listen_to(channel, in_use)));
        Ok(())
    }
}

/// Passes on which engines the predecessor uses, until it is gone.
async fn listen_to(channel: Channel, in_use: watch::Sender<InUse>) {
    while let Ok(Reply::Using { engines }) = channel.hear(Duration::MAX).await {
        in_use.send_replace(Some(engines));
    }
    in_use.send_replace(Some(BTreeSet::new()));
    tracing::info!("the kvwarden before this one has ended");
}

/// Starts a successor of this process: the program and the arguments that this one was started with,
/// found anew, so that a newer binary at the same place is taken.
pub fn start() {
    let mut args = std::env::args_os();
    let program = args.next().unwrap_or_else(|| "kvwarden".into());
    let mut command = Command::new(program);
    command
        .args(args.filter(|arg| arg != FLAG))
        .arg(FLAG)
        .stdin(Stdio::null())
        // It is to beat for whoever the service manager takes for the main process.
        .env_remove("WATCHDOG_PID");
    match command.spawn() {
        Ok(mut successor) => {
            tracing::info!(pid = successor.id(), "a successor was started");
            // Ends with it or with this process.
            drop(actix_web::rt::spawn(async move {
                if let Ok(status) = successor.wait().await {
                    tracing::error!(%status, "the successor ended; this process goes on");
                }
            }));
        }
        Err(error) => tracing::error!(%error, "no successor could be started"),
    }
}
