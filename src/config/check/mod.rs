//! The mirror of a file into [`Config`], reporting everything that is wrong with it.
//!
//! Every check returns a value even where it reports, so that the ones after it can run; whoever
//! called drops the configuration when the report has problems.

mod access;
mod args;
mod fits;
mod flags;
mod memory;
mod models;
mod own_server;
mod replicas;
mod source;
mod tenants;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZero,
};

use super::{
    Config, EventsConfig,
    file::{EventsText, File, LogTable, NodeLimits, given},
    path::KeyPath,
    report::{Report, Section},
    unit_text::is_zero,
};

pub(crate) use models::default_engine;
pub(crate) use source::{Context, is_preset};

/// Resolves a file. The result means nothing when `report` has problems afterwards.
pub(crate) fn check(file: &File, context: &Context<'_>, report: &mut Report) -> Config {
    let listen = listen(file, report);
    let tenant_defaults = tenants::defaults(file, report);
    let tenants = tenants::tenants(file, report);
    let auth = access::auth(file, listen, &tenants, report);
    let mut models = models::models(file, context, report);
    replicas::join(file, &mut models, report);
    memory::check_gpu_memory(file, &models, report);
    let under_base = |dir: &std::path::PathBuf| context.base.join(dir);
    Config {
        listen,
        workers: workers(file, report),
        auth,
        limits: limits(&file.limits, report.section(KeyPath::of("limits"))),
        models,
        gpu: file.gpu,
        tenants,
        tenant_defaults,
        events: events(&file.log, context, report),
        keep_usage: Some(file.log.keep_usage).filter(|keep| !keep.is_zero()),
        log_level: log_level(file, report),
        data_dir: file.data_dir.as_ref().map(under_base),
        state_dir: file.state_dir.as_ref().map(under_base),
    }
}

fn listen(file: &File, report: &mut Report) -> SocketAddr {
    let text = match file.listen.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => file.listen.clone(),
    };
    text.parse().unwrap_or_else(|_| {
        let message = format!("{text:?} is not an address to listen on");
        report
            .problem(&KeyPath::of("listen"), message)
            .help(r#"write an IP address and a port, such as "127.0.0.1:8000" or "[::1]:8000""#);
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8000)
    })
}

fn workers(file: &File, report: &mut Report) -> usize {
    const MOST: usize = 64;
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    let workers = file.workers.unwrap_or((processors / 4).clamp(1, 4));
    if !(1..=MOST).contains(&workers) {
        let message = format!("has to be 1 to {MOST}");
        report.problem(&KeyPath::of("workers"), message);
    }
    workers
}

fn log_level(file: &File, report: &mut Report) -> String {
    const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
    let filter = file.log_level.to_lowercase();
    // The filter takes any bare word for the name of a module: `verbose` would silence everything.
    let is_level = |part: &str| LEVELS.contains(&part.trim()) || part.contains('=');
    let reads = tracing_subscriber::EnvFilter::builder()
        .parse(&filter)
        .is_ok();
    if !reads || !filter.split(',').all(is_level) {
        let help =
            r#"write error, warn, info, debug or trace, or a filter such as "info,kvwarden=debug""#;
        let message = format!("{filter:?} is not a log level");
        report
            .problem(&KeyPath::of("log_level"), message)
            .help(help);
    }
    filter
}

/// Several lines about every model have to fit, or the log says nothing.
fn events(log: &LogTable, context: &Context<'_>, report: &mut Report) -> Option<EventsConfig> {
    const SMALLEST: u64 = 1 << 20;
    let max_size = log.max_size;
    if max_size < SMALLEST {
        let key = KeyPath::of("log").key("max_size");
        report.problem(&key, "it has to be at least 1MiB");
    }
    let export = match log.events.as_ref()? {
        EventsText::Kept(false) => return None,
        EventsText::Kept(true) => None,
        EventsText::Exported(file) => Some(context.base.join(file)),
    };
    Some(EventsConfig { export, max_size })
}

fn limits(limits: &NodeLimits, mut section: Section<'_>) -> NodeLimits {
    /// Zero is a choice in the others: cut at once, end with it, only tenants of the file.
    const POSITIVE: [&str; 9] = [
        "max_in_flight",
        "max_body",
        "body_timeout",
        "queue_timeout",
        "stream_idle_timeout",
        "stall_timeout",
        "start_stall_timeout",
        "broken_pause",
        "client_stall_timeout",
    ];
    let mut limits = limits.clone();
    let max_body = limits.max_body;
    // Whatever one body may be, one has to fit.
    if !section.stands("max_bodies_per_tenant") {
        limits.max_bodies_per_tenant = limits.max_bodies_per_tenant.max(max_body);
    }
    if !section.stands("max_bodies") {
        limits.max_bodies = limits.max_bodies.max(limits.max_bodies_per_tenant);
    }
    for (key, limit) in [
        ("max_bodies", limits.max_bodies),
        ("max_bodies_per_tenant", limits.max_bodies_per_tenant),
    ] {
        if limit < max_body {
            section
                .problem(key, "is less than limits.max_body")
                .help("a body of limits.max_body would never fit");
        }
    }
    let given = given(&limits);
    for key in POSITIVE {
        section.positive(key, !given.get(key).is_some_and(is_zero));
    }
    limits
}
