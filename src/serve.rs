//! The wiring: actors first, then the server, then signals and the order of the end. Nothing here
//! runs once per request.

use std::{
    fs::File,
    io::{self, Write as _},
    sync::Arc,
    time::Duration,
};

use actix::Addr;
use actix_rt::Arbiter;
use actix_web::{App, HttpServer, dev::ServerHandle, middleware::from_fn, web};
use anyhow::Context as _;
use kvwarden_actors::{
    Ledger, Router, Witness,
    gpu::{
        engine::EngineKind,
        orphans::{self, Orphan},
    },
    model::ModelState,
    protocol::Drain,
};
use kvwarden_policy::{ModelId, lifecycle::State};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::Instant,
};

use crate::{
    config::Config,
    events::EventLog,
    http::{self, Shared, admin::Overview, upstream::Engines},
    layout::Layout,
    metrics::Metrics,
    prepare,
    reload::{Reloader, Source},
    remember, roster,
    usage::{self, UsageLog},
    watch::{self, Watch},
};

/// How often the end of a drain is looked for.
const LOOK: Duration = Duration::from_millis(50);

/// After its grace an engine is killed; by this much later it must be gone.
const KILL_MARGIN: Duration = Duration::from_secs(10);

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// When the address is taken or the system refuses what serving needs.
pub fn run(config: &Config, source: Source, layout: &Layout) -> anyhow::Result<()> {
    raise_descriptor_limit();
    make_private_dirs(layout)?;
    let _only_one = lock(layout)?;
    actix_web::rt::System::new().block_on(serve(config, source, layout))
}

async fn serve(config: &Config, source: Source, layout: &Layout) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    let control = Arbiter::new();
    let configured = config.models.iter().map(|model| model.engine_name.clone());
    let orphans = orphans::survey(&layout.run(), &configured.collect()).await?;
    let running: Vec<ModelId> = orphans.iter().map(Orphan::engine).collect();
    let metrics = Arc::new(Metrics::register());
    let events = open_events(config, &metrics)?;
    let witness: Arc<dyn Witness> = Arc::new(Watch::new(&metrics, events.clone()));
    let usage = open_usage(config, layout, &metrics)?;
    let ledger: Arc<dyn Ledger> = match &usage {
        Some(usage) => usage.clone(),
        None => Arc::new(()),
    };
    let router = roster::start(config, layout, orphans, &control, &witness, ledger);
    let shared = Shared::new(config, router.clone(), metrics, events.clone());
    let shared = Arc::new(shared);
    let reloader = Reloader::new(
        source,
        layout.clone(),
        witness,
        shared.clone(),
        config.clone(),
    );
    let reloader = web::Data::new(reloader);
    let (server, handle) = listen(config, shared, reloader.clone())?;
    let server = actix_web::rt::spawn(server);
    tracing::info!(listen = %config.listen, models = config.models.len(), "serving");

    prepare::what_lacks(config, &router, &running, layout).await?;
    let remembering = actix_web::rt::spawn(remember::keep(router.clone(), layout.clone()));
    let describing = events
        .clone()
        .map(|events| actix_web::rt::spawn(watch::describe(router.clone(), events)));
    let greeting = actix_web::rt::spawn(greet(config.clone(), router.clone()));

    signals.end_or_reload(&reloader).await;
    let config = &reloader.running().await;
    greeting.abort();
    remembering.abort();
    drain(config, &router, &mut signals).await;
    remember::save(&router, layout).await;
    handle.stop(true).await;
    server.await??;
    if let Some(describing) = describing {
        describing.abort();
    }
    if let Some(events) = events {
        watch::end(&router, events).await;
    }
    if let Some(usage) = usage {
        actix_web::rt::task::spawn_blocking(move || usage.close()).await?;
    }
    control.stop();
    Ok(())
}

fn open_usage(
    config: &Config,
    layout: &Layout,
    metrics: &Metrics,
) -> anyhow::Result<Option<Arc<UsageLog>>> {
    let Some(keep) = config.keep_usage else {
        return Ok(None);
    };
    let log = UsageLog::open(usage::path(&layout.state), keep, metrics.usage.clone())?;
    Ok(Some(Arc::new(log)))
}

fn open_events(config: &Config, metrics: &Metrics) -> anyhow::Result<Option<Arc<EventLog>>> {
    let Some(config) = &config.events else {
        return Ok(None);
    };
    let log = EventLog::open(config, metrics.events_dropped.clone());
    let log = log.with_context(|| format!("cannot write {}", config.path.display()))?;
    Ok(Some(Arc::new(log)))
}

/// The server and the handle that ends it.
fn listen(
    config: &Config,
    shared: Arc<Shared>,
    reloader: web::Data<Reloader>,
) -> anyhow::Result<(actix_web::dev::Server, ServerHandle)> {
    let accepting = shared.clone();
    let server = HttpServer::new(move || {
        App::new()
            .app_data(web::Data::new(shared.clone()))
            .app_data(reloader.clone())
            .app_data(web::Data::new(Engines::new()))
            .wrap(from_fn(http::identify))
            .configure(http::routes)
    })
    .on_connect(move |connection, _| {
        http::socket::tame(connection, accepting.view().limits.client_stall_timeout);
    })
    // Streams are many small writes: with Nagle's algorithm each could wait 40 ms.
    .tcp_nodelay(true)
    // Otherwise a client that hangs up while its request is queued goes unnoticed.
    .h1_allow_half_closed(false)
    // Longer than the idle time of common clients and proxies, so that they close first.
    .keep_alive(Duration::from_secs(90))
    .client_request_timeout(Duration::from_secs(10))
    .disable_signals()
    // Answers are complete by then; this is for clients that read the end of theirs slowly.
    .shutdown_timeout(2)
    .bind(config.listen)
    .with_context(|| {
        format!(
            "cannot listen on {}; is another server there? Choose one with --port",
            config.listen
        )
    })?
    .run();
    let handle = server.handle();
    Ok((server, handle))
}

/// Lets running answers end, then engines, and says how it goes.
async fn drain(config: &Config, router: &Addr<Router>, signals: &mut Signals) {
    let begun = Instant::now();
    let mut deadline = begun + config.limits.drain_timeout;
    router.do_send(Drain { deadline });
    let grace = config
        .models
        .iter()
        .map(|model| model.stop_grace)
        .max()
        .unwrap_or_default();
    let mut told = begun;
    tracing::info!("stopping; a second signal hurries it");
    loop {
        tokio::select! {
            () = signals.next() => {
                tracing::warn!("stopping at once");
                deadline = Instant::now();
                router.do_send(Drain { deadline });
            }
            () = tokio::time::sleep(LOOK) => {}
        }
        let Ok(now) = Overview::of(router).await else {
            return tracing::error!("actors do not answer; shims will end the engines");
        };
        let is_idle = now
            .models
            .iter()
            .all(|model| model.waiting + model.running == 0);
        if now.gpu.engines.is_empty() && (is_idle || Instant::now() > deadline) {
            return;
        }
        if Instant::now() > deadline + grace + KILL_MARGIN {
            return tracing::error!(engines = ?now.gpu.engines, "engines left; their shims end them");
        }
        if told.elapsed() >= Duration::from_secs(1) {
            told = Instant::now();
            let running: usize = now.models.iter().map(|model| model.running).sum();
            let waiting: usize = now.models.iter().map(|model| model.waiting).sum();
            tracing::info!(
                running,
                waiting,
                engines = now.gpu.engines.len(),
                "stopping"
            );
        }
    }
}

/// Once everything is ready, says what to try.
async fn greet(config: Config, router: Addr<Router>) {
    let begun = Instant::now();
    loop {
        tokio::time::sleep(LOOK).await;
        let Ok(now) = Overview::of(&router).await else {
            return;
        };
        if !now.is_ready() {
            continue;
        }
        // One that serves is a better example than one that has to come first.
        let serves = |model: &&ModelState| model.state == State::Ready;
        let Some(model) = now.models.iter().find(serves).or(now.models.first()) else {
            return;
        };
        // Nobody is left to greet if stderr is closed.
        let _ = write!(
            anstream::stderr(),
            "{}",
            greeting(&config, model, begun.elapsed())
        );
        return;
    }
}

fn greeting(config: &Config, model: &ModelState, took: Duration) -> String {
    let tenant = config
        .tenants
        .iter()
        .find(|tenant| tenant.api_keys.is_empty());
    let who = match tenant {
        Some(tenant) => format!("-H 'X-Tenant-ID: {}' ", tenant.id),
        None if config.tenants.is_empty() => String::new(),
        None => "-H 'Authorization: Bearer YOUR_KEY' ".to_owned(),
    };
    let name = model
        .names
        .get(1)
        .or(model.names.first())
        .map_or("", String::as_str);
    let is_simulated = model.engine == EngineKind::Sim;
    let simulated = if is_simulated {
        "\n\n(simulated: the text is made up)"
    } else {
        ""
    };
    format!(
        "\nready after {:.1} s. Try:\n\n  curl http://{}/v1/chat/completions {who}\\\n    -H 'content-type: application/json' \\\n    -d '{{\"model\":\"{name}\",\"temperature\":0,\"messages\":[{{\"role\":\"user\",\"content\":\"Write one sentence about the sea.\"}}]}}'{simulated}\n\n",
        took.as_secs_f64(),
        config.listen,
    )
}

/// SIGTERM and SIGINT, and SIGHUP.
struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
        })
    }

    /// Comes back when it is time to end.
    async fn end_or_reload(&mut self, reloader: &Reloader) {
        loop {
            tokio::select! {
                _ = self.term.recv() => return,
                _ = self.int.recv() => return,
                // What came of it is told by it.
                _ = self.hup.recv() => drop(reloader.reload().await),
            }
        }
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
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

/// Two servers would take each other's engines for leftovers.
fn lock(layout: &Layout) -> anyhow::Result<File> {
    let path = layout.state.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
    file.try_lock().with_context(|| {
        format!(
            "another kvwarden serves with the state directory {}; give this one its own with KVWARDEN_STATE_DIR",
            layout.state.display()
        )
    })?;
    Ok(file)
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
