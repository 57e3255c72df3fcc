//! The order in which serving begins and ends: actors first, then the HTTP server, then signals.
//! Nothing here runs once per request.
//!
//! Imports run one way: [`signals`], [`systemd`], [`history`], [`observer`], [`greeting`] and
//! [`prepare`] know none of their siblings; [`wiring`] and [`takeover`] know those, [`reload`] and
//! [`drain`] know these too, and this module knows all of them.

pub mod drain;
mod greeting;
pub mod history;
pub mod observer;
pub mod prepare;
pub mod reload;
pub mod signals;
pub mod systemd;
pub mod takeover;
pub mod wiring;

use std::{
    fs::{File, TryLockError},
    sync::Arc,
};

use actix::Addr;
use actix_rt::Arbiter;
use anyhow::Context as _;
use kvwarden_actors::{
    EngineObserver, Ledger, Router,
    process::{
        leadership::{InUse, Leadership},
        orphans::{self, Orphan},
    },
};
use kvwarden_policy::ModelId;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::task::JoinHandle;

use self::{
    observer::Observer,
    reload::{Reloader, Source},
    signals::{Signal, Signals},
    takeover::{
        predecessor::{Handles, Listener, Predecessor, Successor},
        successor::{self, Handover},
    },
};
use crate::{
    config::Config,
    http::{
        self, Shared,
        server::{Server, Site},
    },
    journal::{self, Journal, events::EventLog},
    layout::Layout,
    metrics::Metrics,
};

/// Serves until SIGTERM or SIGINT, or until another process has taken over.
///
/// # Errors
/// When the address is taken or the system refuses what serving needs.
pub fn run(
    config: &Config,
    source: Source,
    layout: &Layout,
    takes_over: bool,
) -> anyhow::Result<()> {
    raise_descriptor_limit();
    make_private_dirs(layout)?;
    actix_web::rt::System::new().block_on(serve(config, source, layout, takes_over))
}

async fn serve(
    config: &Config,
    source: Source,
    layout: &Layout,
    takes_over: bool,
) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    let (in_use_sender, in_use) = tokio::sync::watch::channel(None);
    let (handles, handover) = acquire(config, layout, takes_over, in_use_sender).await?;
    let (leadership, leadership_handle) = Leadership::new(in_use);
    let control = Arbiter::new();
    let configured = config.models.iter().map(|model| model.engine_name.clone());
    let orphans = orphans::survey(&layout.run(), &configured.collect(), &leadership).await?;
    let running: Vec<ModelId> = orphans.iter().map(Orphan::engine).collect();
    let metrics = Arc::new(Metrics::register());
    let journal = open_journal(config, layout, &metrics)?;
    let events = journal.as_ref().and_then(Journal::events);
    let own_observer = Arc::new(Observer::new(&metrics, events.clone()));
    let observer: Arc<dyn EngineObserver> = own_observer.clone();
    let router = wiring::start(
        config,
        layout,
        orphans,
        &control,
        leadership.clone(),
        &observer,
        ledger(journal.as_ref()),
    );
    let (actors, log, lead) = (router.clone(), events.clone(), leadership.clone());
    let shared = Arc::new(Shared::new(config, actors, metrics, log, lead));
    let (dirs, running_config) = (layout.clone(), config.clone());
    let reloader = Reloader::new(source, dirs, observer, shared.clone(), running_config);
    let reloader = Arc::new(reloader);
    let listener = handles.listener.try_clone()?;
    if let Some(handover) = handover {
        handover.finish().await?;
    }
    let site = Site {
        shared: shared.clone(),
        reload: reloader.clone(),
    };
    let server = Server::start(listener, &control.handle(), config.workers, &site)?;
    systemd::ready();
    tracing::info!(listen = %config.listen, models = config.models.len(), "serving");

    prepare::what_lacks(config, &router, &running, layout).await?;
    let tasks = look_after(config, layout, &router, events.as_ref(), leadership);
    let predecessor = Predecessor {
        handles: &handles,
        router: &router,
        leadership: &leadership_handle,
        layout,
    };
    let successor = until_the_end(&predecessor, &mut signals, &reloader).await;
    let config = &reloader.running().await;
    tasks.iter().for_each(JoinHandle::abort);
    let close: fn(Journal) = if let Some(successor) = successor {
        // Whoever serves after the successor finds the state directory free.
        drop(handles);
        own_observer.relieve();
        drain::leave(config, &shared, &server, &mut signals, successor).await;
        Journal::close
    } else {
        end(config, layout, &shared, &server, &mut signals).await;
        Journal::close_and_export
    };
    if let Some(journal) = journal {
        actix_web::rt::task::spawn_blocking(move || close(journal)).await?;
    }
    control.stop();
    Ok(())
}

/// Ends engines with their last answers, and keeps what is known of them.
async fn end(
    config: &Config,
    layout: &Layout,
    shared: &Shared,
    server: &Server,
    signals: &mut Signals,
) {
    drain::stop(config, &shared.router, signals).await;
    history::save(&shared.router, layout).await;
    drain::close(server).await;
    if let Some(events) = &shared.events {
        observer::describe_once(&shared.router, events).await;
    }
}

/// What is done beside serving, until it is aborted.
fn look_after(
    config: &Config,
    layout: &Layout,
    router: &Addr<Router>,
    events: Option<&Arc<EventLog>>,
    leadership: Leadership,
) -> Vec<JoinHandle<()>> {
    use actix_web::rt::spawn;
    let remembering = history::keep(router.clone(), layout.clone(), leadership);
    let describing = events.map(|events| observer::describe(router.clone(), events.clone()));
    let mut tasks = vec![
        spawn(remembering),
        spawn(greeting::greet(config.clone(), router.clone())),
        spawn(systemd::attend(router.clone())),
    ];
    tasks.extend(describing.map(spawn));
    tasks
}

/// Nothing is kept if the configuration says so.
fn open_journal(
    config: &Config,
    layout: &Layout,
    metrics: &Metrics,
) -> anyhow::Result<Option<Journal>> {
    let events = config.events.as_ref();
    if config.keep_usage.is_none() && events.is_none() {
        return Ok(None);
    }
    let settings = journal::Settings {
        path: journal::path(&layout.state),
        keep_usage: config.keep_usage,
        max_events: events.map(|events| events.max_size),
        export: events.and_then(|events| events.export.clone()),
    };
    let counts = metrics.usage.clone();
    Journal::open(settings, counts, metrics.events_dropped.clone()).map(Some)
}

fn ledger(journal: Option<&Journal>) -> Arc<dyn Ledger> {
    journal.map_or_else(|| Arc::new(()) as Arc<dyn Ledger>, Journal::ledger)
}

/// What it takes to serve: of our own, or of the one that serves until now.
async fn acquire(
    config: &Config,
    layout: &Layout,
    takes_over: bool,
    in_use: tokio::sync::watch::Sender<InUse>,
) -> anyhow::Result<(Handles, Option<Handover>)> {
    let Some(lock) = lock(layout)? else {
        anyhow::ensure!(
            takes_over,
            "another kvwarden serves with the state directory {}; take over from it with --takeover, \
             or give this one its own with KVWARDEN_STATE_DIR",
            layout.state.display()
        );
        let (handles, handover) = successor::take(layout, config.listen, in_use).await?;
        return Ok((handles, Some(handover)));
    };
    let listener = http::socket::bind(config.listen).with_context(|| {
        format!(
            "cannot listen on {}; is another server there? Choose one with --port",
            config.listen
        )
    })?;
    Ok((Handles { listener, lock }, None))
}

/// Comes back when it is time to end, with the successor if there is one.
async fn until_the_end(
    predecessor: &Predecessor<'_>,
    signals: &mut Signals,
    reloader: &Reloader,
) -> Option<Successor> {
    let mut listener = Listener::open(predecessor.layout);
    loop {
        let channel = tokio::select! {
            channel = listener.accept() => channel,
            signal = signals.next() => match signal {
                Signal::Stop => return None,
                Signal::Reload => {
                    // What came of it is told by it.
                    drop(reloader.reload().await);
                    continue;
                }
                Signal::HandOver => {
                    successor::start();
                    continue;
                }
            },
        };
        let handed_over = tokio::select! {
            handed_over = predecessor.hand_over(channel) => handed_over,
            () = signals.stop() => return None,
        };
        match handed_over {
            Ok(successor) => return Some(successor),
            Err(error) => {
                tracing::warn!(%error, "not handed over; this process goes on");
                systemd::main_pid(i32::try_from(std::process::id()).ok());
                systemd::ready();
            }
        }
    }
}

/// Every stream needs two descriptors, and the usual soft limit is 1024.
pub(crate) fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// The lock of the state directory, unless another process has it: two servers would take each
/// other's engines for leftovers.
fn lock(layout: &Layout) -> anyhow::Result<Option<File>> {
    let path = layout.state.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error).context("cannot lock the state directory"),
    }
}

/// Sockets to shims and engines' logs are nobody else's.
fn make_private_dirs(layout: &Layout) -> anyhow::Result<()> {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
    for dir in [&layout.state, &layout.run(), &layout.logs()] {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .and_then(|()| std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700)))
            .with_context(|| {
                format!(
                    "cannot make {} private; set KVWARDEN_STATE_DIR",
                    dir.display()
                )
            })?;
    }
    Ok(())
}
