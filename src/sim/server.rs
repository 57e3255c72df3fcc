//! The process: from arguments to exit.

use std::{
    env,
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
    time::Duration,
};

use actix_web::{App, HttpServer, dev::ServerHandle, middleware::from_fn, web};
use anyhow::Context as _;
use kvwarden_policy::simulation::engine::{BLOCK_TOKENS, Batch};
use tokio::{
    net::TcpSocket,
    signal::unix::{SignalKind, signal},
    time::{sleep, timeout},
};

use super::{
    app,
    args::SimArgs,
    engine::Engine,
    faults,
    handle::{Control, Handle},
    http,
    memory::Memory,
    stats::Board,
};

/// Connections the kernel holds until they are accepted.
const BACKLOG: u32 = 2048;
/// uvicorn's default, which vLLM keeps.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// How often is looked whether it may go on.
const POLL: Duration = Duration::from_millis(20);
/// How long the last events have to reach their clients at the end.
const FLUSH: Duration = Duration::from_millis(100);
/// When the end is forced, whatever hangs.
const EXIT_WITHIN: Duration = Duration::from_millis(700);

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// When the limits fit together badly, the port is taken, or memory is "missing" by
/// `--fault-oom-at-start`.
pub fn run(mut args: SimArgs) -> anyhow::Result<()> {
    args.faults = args.faults.now();
    if let Some(how_long) = args.faults.fault_log_flood {
        std::thread::spawn(move || faults::flood(how_long));
    }
    if args.faults.fault_oom_at_start {
        faults::print_out_of_memory();
        anyhow::bail!("the engine could not start: out of memory");
    }
    actix_web::rt::System::new().block_on(serve(args))
}

async fn serve(args: SimArgs) -> anyhow::Result<()> {
    let limits = args.limits()?;
    let kv_tokens = u64::from(limits.kv_blocks) * u64::from(BLOCK_TOKENS);
    let memory = Memory::new(
        args.preset,
        kv_tokens,
        args.faults.fault_sleep_frees_nothing,
    );
    let board = Board::new(limits.kv_blocks, memory);
    let (handle, commands) = Handle::new();
    let app = app::App {
        names: args.served_model_name.clone().into(),
        api_key: api_key(),
        max_model_len: limits.max_model_len,
        front_end: args.preset.front_end,
        seed: args.seed,
        created: app::unix_now(),
        requests: Arc::new(AtomicU64::new(0)),
        engine: handle.clone(),
        board: board.clone(),
    };
    let batch = Batch::new(limits, args.preset.model)?;
    let engine = Engine::new(batch, board, args.faults.clone());
    let listener = listen(&args).await?;
    tracing::info!(
        preset = args.preset.name,
        source = args.preset.source,
        "serving"
    );

    // The factory runs in the worker's thread: the engine is started there, beside the handlers, so
    // that a token never crosses threads.
    let seat = Arc::new(Mutex::new(Some((engine, commands))));
    let server = HttpServer::new(move || {
        let taken = seat.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((engine, commands)) = taken {
            actix_web::rt::spawn(engine.run(commands));
        }
        App::new()
            .app_data(web::Data::new(app.clone()))
            .wrap(from_fn(http::guard))
            .configure(http::routes)
    })
    .workers(1)
    .keep_alive(KEEP_ALIVE)
    .tcp_nodelay(true)
    // Else a client that hangs up while it waits for its first byte is not noticed.
    .h1_allow_half_closed(false)
    .disable_signals()
    .listen(listener)?
    .run();

    let stopper = actix_web::rt::spawn(stop_on_signal(
        server.handle(),
        handle,
        args.faults.fault_ignore_sigterm,
    ));
    tokio::select! {
        ended = server => ended.context("the server failed"),
        stopped = stopper => stopped?,
    }
}

/// Binds the port at once, and accepts connections when the slow start is over: until then they are
/// refused, as by vLLM while it loads.
async fn listen(args: &SimArgs) -> anyhow::Result<TcpListener> {
    let address = SocketAddr::new(args.host, args.port);
    if let Some(file) = &args.faults.fault_wait_for {
        while !file.exists() {
            sleep(POLL).await;
        }
    }
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket
        .bind(address)
        .with_context(|| format!("cannot listen on {address}"))?;
    if let Some(delay) = args.faults.fault_slow_start {
        sleep(delay).await;
    }
    let listener = socket
        .listen(BACKLOG)
        .with_context(|| format!("cannot listen on {address}"))?;
    Ok(listener.into_std()?)
}

/// As vLLM without `--shutdown-timeout`: running streams end with `abort`, then the process does.
async fn stop_on_signal(server: ServerHandle, engine: Handle, ignore: bool) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    loop {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if !ignore {
            break;
        }
        tracing::warn!("ignoring a signal, as --fault-ignore-sigterm asks");
    }
    let ending = async {
        // An engine that hangs doesn't answer; its clients are cut off below.
        drop(timeout(FLUSH, engine.control(Control::Shutdown)).await);
        sleep(FLUSH).await;
        server.stop(false).await;
    };
    drop(timeout(EXIT_WITHIN, ending).await);
    Ok(())
}

fn api_key() -> Option<Arc<str>> {
    let key = env::var("VLLM_API_KEY").ok()?;
    (!key.is_empty()).then(|| key.into())
}
