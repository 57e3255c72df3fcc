//! The wiring: actors leaf first, then the server, then signals and the order of the end. Nothing
//! here runs once per request.

use std::{
    fs::{File, TryLockError},
    io::Write as _,
    net::TcpListener,
    sync::Arc,
    time::Duration,
};

use actix::{Actor as _, Addr};
use actix_rt::Arbiter;
use actix_web::{App, HttpServer, middleware::from_fn, web};
use anyhow::Context as _;
use kvwarden_actors::{
    Gpu, Ledger, Model, Router, Tenant, Witness,
    gpu::{
        self,
        charge::{Charge, Lodged},
        engine::EngineKind,
        orphans::{self, Orphan},
    },
    model::{self, ModelState},
    protocol::Roster,
    router::{ModelEntry, Unnamed},
    tenant,
};
use kvwarden_policy::{
    ModelId,
    lifecycle::State,
    residency,
    scheduling::{Bounds, FairSettings, Group, Settings, TenantBounds},
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{task::JoinHandle, time::Instant};

use crate::{
    config::{Config, GroupConfig, ModelConfig, TenantLimits},
    drain,
    events::EventLog,
    http::{self, Shared, admin::Overview, upstream::Engines},
    layout::Layout,
    metrics::Metrics,
    prepare,
    remember::{self, Memory},
    signals::{Signals, Wish},
    systemd,
    takeover::{
        incumbent::{Door, Heir, Holdings, Incumbent},
        successor::{self, Predecessor},
    },
    usage::{self, UsageLog},
    watch::{self, Watch},
};

/// Requests that wait for one model, in bytes: a thousand of a megabyte.
const MAX_WAITING_BYTES: u64 = 1 << 30;

/// How often it is looked whether everything is ready.
const LOOK: Duration = Duration::from_millis(50);

/// Serves until SIGTERM or SIGINT, or until another process has taken over.
///
/// # Errors
/// When the address is taken or the system refuses what serving needs.
pub fn run(config: &Config, layout: &Layout, takes_over: bool) -> anyhow::Result<()> {
    raise_descriptor_limit();
    make_private_dirs(layout)?;
    actix_web::rt::System::new().block_on(serve(config, layout, takes_over))
}

async fn serve(config: &Config, layout: &Layout, takes_over: bool) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    let (told, lodged) = tokio::sync::watch::channel(None);
    let (holdings, predecessor) = move_in(config, layout, takes_over, told).await?;
    let (charge, mandate) = Charge::new(lodged);
    let control = Arbiter::new();
    let configured = config.models.iter().map(|model| model.engine_name.clone());
    let orphans = orphans::survey(&layout.run(), &configured.collect(), &charge).await?;
    let running: Vec<ModelId> = orphans.iter().map(Orphan::engine).collect();
    let metrics = Arc::new(Metrics::register());
    let events = open_events(config, &metrics)?;
    let witness = Arc::new(Watch::new(&metrics, events.clone()));
    let usage = open_usage(config, layout, &metrics)?;
    let ledger: Arc<dyn Ledger> = match &usage {
        Some(usage) => usage.clone(),
        None => Arc::new(()),
    };
    let router = start_actors(config, layout, orphans, &control, &charge, witness, ledger)?;
    let (actors, log) = (router.clone(), events.clone());
    let shared = Arc::new(Shared::new(config, actors, metrics, log, charge.clone()));
    let listener = holdings.listener.try_clone()?;
    if let Some(predecessor) = predecessor {
        predecessor.relieve().await?;
    }
    let server = listen(config, shared.clone(), listener)?;
    let handle = server.handle();
    // Ends with the handle's doing.
    drop(actix_web::rt::spawn(server));
    systemd::ready();
    tracing::info!(listen = %config.listen, models = config.models.len(), "serving");

    let roster = router.send(Roster).await?;
    let wanted = to_prepare(config, &roster.models, &running);
    let patience = config.limits.start_stall_timeout;
    prepare::spawn(wanted, layout.clone(), patience)?;
    let tasks = look_after(config, layout, &router, events.as_ref(), charge);
    let incumbent = Incumbent {
        holdings: &holdings,
        router: &router,
        mandate: &mandate,
        events: events.as_deref(),
        layout,
    };
    let heir = until_the_end(&incumbent, &mut signals).await;
    tasks.iter().for_each(JoinHandle::abort);
    if let Some(heir) = heir {
        // Whoever comes after the heir finds the state directory free.
        drop(holdings);
        drain::leave(config, &shared, &handle, &mut signals, heir).await;
    } else {
        drain::stop(config, &router, &mut signals).await;
        remember::save(&router, layout).await;
        drain::close(&handle).await;
        if let Some(events) = events {
            watch::end(&router, events).await;
        }
    }
    if let Some(usage) = usage {
        actix_web::rt::task::spawn_blocking(move || usage.close()).await?;
    }
    control.stop();
    Ok(())
}

/// What is done beside serving, until it is aborted.
fn look_after(
    config: &Config,
    layout: &Layout,
    router: &Addr<Router>,
    events: Option<&Arc<EventLog>>,
    charge: Charge,
) -> Vec<JoinHandle<()>> {
    use actix_web::rt::spawn;
    let remembering = remember::keep(router.clone(), layout.clone(), charge);
    let describing = events.map(|events| watch::describe(router.clone(), events.clone()));
    let mut tasks = vec![
        spawn(remembering),
        spawn(greet(config.clone(), router.clone())),
        spawn(systemd::attend(router.clone())),
    ];
    tasks.extend(describing.map(spawn));
    tasks
}

/// What it takes to serve: of our own, or of the one that serves until now.
async fn move_in(
    config: &Config,
    layout: &Layout,
    takes_over: bool,
    told: tokio::sync::watch::Sender<Lodged>,
) -> anyhow::Result<(Holdings, Option<Predecessor>)> {
    let Some(lock) = lock(layout)? else {
        anyhow::ensure!(
            takes_over,
            "another kvwarden serves with the state directory {}; take over from it with --takeover, \
             or give this one its own with KVWARDEN_STATE_DIR",
            layout.state.display()
        );
        let (holdings, predecessor) = successor::take(layout, config.listen, told).await?;
        return Ok((holdings, Some(predecessor)));
    };
    let listener = http::socket::bind(config.listen).with_context(|| {
        format!(
            "cannot listen on {}; is another server there? Choose one with --port",
            config.listen
        )
    })?;
    Ok((Holdings { listener, lock }, None))
}

/// Comes back when it is time to end, with the heir if there is one.
async fn until_the_end(incumbent: &Incumbent<'_>, signals: &mut Signals) -> Option<Heir> {
    let mut door = Door::open(incumbent.layout);
    loop {
        let caller = tokio::select! {
            caller = door.knock() => caller,
            wish = signals.next() => match wish {
                Wish::Stop => return None,
                Wish::Succeed => {
                    successor::start();
                    continue;
                }
            },
        };
        let handed_over = tokio::select! {
            handed_over = incumbent.hand_over(caller) => handed_over,
            () = signals.stop() => return None,
        };
        match handed_over {
            Ok(heir) => return Some(heir),
            Err(error) => {
                tracing::warn!(%error, "not handed over; this process goes on");
                systemd::main_pid(i32::try_from(std::process::id()).ok());
                systemd::ready();
            }
        }
    }
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

/// Actors leaf first: each is given the addresses of those below it.
fn start_actors(
    config: &Config,
    layout: &Layout,
    orphans: Vec<Orphan>,
    control: &Arbiter,
    charge: &Charge,
    witness: Arc<dyn Witness>,
    ledger: Arc<dyn Ledger>,
) -> anyhow::Result<Addr<Router>> {
    let params = gpu::Params {
        // The file may be replaced by an upgrade while this process runs.
        shim: "/proc/self/exe".into(),
        run_dir: layout.run(),
        log_dir: layout.logs(),
        memory: config.gpu_memory,
        residency: residency::Settings {
            max_wait: config.max_wait,
            ..residency::Settings::default()
        },
        orphan_grace: config.limits.orphan_grace,
        start_stall_timeout: config.limits.start_stall_timeout,
        max_saved_kv: config.limits.max_saved_kv,
        charge: charge.clone(),
        witness: witness.clone(),
    };
    let gpu = Gpu::start_in_arbiter(&control.handle(), |_| Gpu::new(params).inheriting(orphans));
    let config = config.clone();
    let memory = Memory::load(layout);
    let below = gpu.clone();
    let router = Router::start_in_arbiter(&control.handle(), move |ctx| {
        let me = actix::AsyncContext::address(ctx).downgrade();
        let unnamed = Unnamed {
            limits: tenant_limits(&config.tenant_defaults, None),
            at_most: config.limits.max_unnamed_tenants,
            ledger: ledger.clone(),
        };
        let mut router = Router::new(below.clone(), unnamed);
        for tenant in &config.tenants {
            let limits = tenant_limits(&tenant.limits, tenant.group.as_ref());
            let actor = Tenant::named(tenant.id.clone(), limits, me.clone(), ledger.clone());
            let actor = actor.start();
            router.add_tenant(tenant.id.clone(), actor);
        }
        for model in config.models.iter().filter(|model| !model.is_replica()) {
            let params = model_params(model, &config, &memory, witness.clone());
            let names = params.names.clone();
            let engines = params.engines.iter();
            let engines = engines.map(|(engine, _)| engine.clone()).collect();
            let addr = Model::new(params, me.clone(), below.clone()).start();
            router.add_model(ModelEntry {
                id: model.id.clone(),
                names,
                engines,
                addr,
            });
        }
        router
    });
    gpu.do_send(gpu::Meet(router.downgrade()));
    Ok(router)
}

fn tenant_limits(limits: &TenantLimits, group: Option<&GroupConfig>) -> tenant::Limits {
    // Names of tenants hold no spaces, so none is also the name of a group.
    let group = group.map(|group| Group {
        name: format!("group {}", group.name).into(),
        weight: group.weight,
    });
    let unbounded = TenantBounds::default();
    tenant::Limits {
        priority: limits.priority,
        weight: limits.weight,
        group,
        tiers: limits.service_tiers,
        requests: limits
            .rate_limit_rpm
            .map(|rpm| (rpm, limits.rate_limit_burst.unwrap_or(rpm))),
        tokens_per_minute: limits.tokens_per_minute,
        tokens_per_day: limits.tokens_per_day,
        concurrency: limits.max_concurrent_requests,
        queued: TenantBounds {
            requests: limits.max_queued_requests.unwrap_or(unbounded.requests),
            bytes: limits.max_queued_bytes.unwrap_or(unbounded.bytes),
        },
    }
}

/// Every engine, with the actor of its model: those are in the order of the configuration.
fn to_prepare(
    config: &Config,
    models: &[Addr<Model>],
    running: &[ModelId],
) -> Vec<prepare::Wanted> {
    let first = config.models.iter().filter(|model| !model.is_replica());
    let engines = first.zip(models).flat_map(|(model, actor)| {
        let engines = config.models.iter().filter(|engine| engine.id == model.id);
        engines
            .enumerate()
            .map(|(replica, engine)| prepare::Wanted {
                is_running: running.contains(&engine.engine_name),
                config: engine.clone(),
                actor: actor.clone(),
                replica,
            })
    });
    engines.collect()
}

fn model_params(
    model: &ModelConfig,
    config: &Config,
    memory: &Memory,
    witness: Arc<dyn Witness>,
) -> model::Params {
    let engines: Vec<&ModelConfig> = config
        .models
        .iter()
        .filter(|engine| engine.id == model.id)
        .collect();
    let names = [model.id.to_string()]
        .into_iter()
        .chain(model.aliases.clone());
    model::Params {
        id: model.id.clone(),
        names: names.collect(),
        engines: engines
            .iter()
            .map(|engine| (engine.engine_name.clone(), engine.engine))
            .collect(),
        scheduling: Settings {
            discipline: model.scheduling,
            bounds: Bounds {
                requests: model.queue_size,
                bytes: MAX_WAITING_BYTES,
            },
            max_in_flight: usize::try_from(model.flags.capacity.sequences).unwrap_or(usize::MAX),
            fair: FairSettings {
                long_prompt_tokens: model.long_prompt_tokens,
                ..FairSettings::new(model.flags.capacity)
            },
        },
        queue_timeout: config.limits.queue_timeout,
        stall_timeout: config.limits.stall_timeout,
        broken_pause: config.limits.broken_pause,
        autostart: model.autostart,
        is_pinned: model.residency.pinned,
        idle_ttl: model.residency.idle_ttl,
        rate: memory
            .rates
            .get(model.id.as_str())
            .cloned()
            .unwrap_or_default(),
        costs: engines
            .iter()
            .map(|engine| memory.costs.get(engine.engine_name.as_str()).copied())
            .collect(),
        witness,
    }
}

fn listen(
    config: &Config,
    shared: Arc<Shared>,
    listener: TcpListener,
) -> anyhow::Result<actix_web::dev::Server> {
    let stall_timeout = config.limits.client_stall_timeout;
    let server = HttpServer::new(move || {
        App::new()
            .app_data(web::Data::new(shared.clone()))
            .app_data(web::Data::new(Engines::new()))
            .wrap(from_fn(http::identify))
            .configure(http::routes)
    })
    .on_connect(move |connection, _| http::socket::tame(connection, stall_timeout))
    // Streams are many small writes: with Nagle's algorithm each could wait 40 ms.
    .tcp_nodelay(true)
    // Otherwise a client that hangs up while its request is queued goes unnoticed.
    .h1_allow_half_closed(false)
    // Longer than the idle time of common clients and proxies, so that they close first.
    .keep_alive(Duration::from_secs(90))
    .client_request_timeout(Duration::from_secs(10))
    .disable_signals()
    // After a takeover answers go on while the server is shut down; when it is enough we decide.
    .shutdown_timeout(config.limits.drain_timeout.as_secs() + 1)
    .listen(listener)?
    .run();
    Ok(server)
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
