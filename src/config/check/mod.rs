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
mod replicas;
mod source;
mod tenants;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use super::{
    Config, Environment, EventsConfig, Limits,
    file::{self, File},
    path::KeyPath,
    report::{Report, Section},
    unit_text::{DurationText, SizeText},
};

pub(crate) use models::default_engine;
pub(crate) use source::is_preset;

/// Where the API listens if nobody says otherwise.
pub(crate) const DEFAULT_LISTEN: &str = "127.0.0.1:8000";

/// Longest model name; hub ids stay below 100.
pub(crate) const LONGEST_MODEL_NAME: usize = 128;

/// A quarter of a year: what bills are about.
const DEFAULT_KEEP_USAGE: Duration = Duration::from_secs(90 * 86_400);

/// What the checks may look at besides the file.
pub(crate) struct Context<'a> {
    /// The directory that paths in the file start from.
    pub(crate) base: &'a Path,
    /// Environment variables.
    pub(crate) env: &'a Environment,
    /// Whether there is anybody to make room for.
    pub(crate) has_several_models: bool,
}

/// Resolves a file. The result means nothing when `report` has problems afterwards.
pub(crate) fn check(file: &File, context: &Context<'_>, report: &mut Report) -> Config {
    let listen = listen(file, report);
    let tenant_defaults = tenants::defaults(&file.tenant_defaults, report);
    let tenants = tenants::tenants(file, &tenant_defaults, report);
    let auth = access::auth(file, listen, &tenants, report);
    let mut models = models::models(file, context, report);
    replicas::join(file, &mut models, report);
    let gpu_memory = memory::gpu_memory(file, &models, report);
    let under_base = |dir: &std::path::PathBuf| context.base.join(dir);
    Config {
        listen,
        auth,
        limits: limits(&file.limits, report.section(KeyPath::of("limits"))),
        models,
        gpu_memory,
        max_wait: file.gpu.max_wait.map(|text| text.0),
        prefetch: file.gpu.prefetch.unwrap_or(true),
        tenants,
        tenant_defaults,
        events: events(&file.log, context, report),
        keep_usage: keep_usage(&file.log),
        log_level: log_level(file, report),
        data_dir: file.data_dir.as_ref().map(under_base),
        state_dir: file.state_dir.as_ref().map(under_base),
    }
}

fn listen(file: &File, report: &mut Report) -> SocketAddr {
    let text = file.listen.as_deref().unwrap_or(DEFAULT_LISTEN);
    let text = match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => text.to_owned(),
    };
    text.parse().unwrap_or_else(|_| {
        let message = format!("{text:?} is not an address to listen on");
        report
            .problem(&KeyPath::of("listen"), message)
            .help(r#"write an IP address and a port, such as "127.0.0.1:8000" or "[::1]:8000""#);
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8000)
    })
}

fn log_level(file: &File, report: &mut Report) -> String {
    const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
    let filter = file.log_level.as_deref().unwrap_or("info").to_lowercase();
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

fn keep_usage(log: &file::Log) -> Option<Duration> {
    let keep = log.keep_usage.map_or(DEFAULT_KEEP_USAGE, |text| text.0);
    Some(keep).filter(|keep| !keep.is_zero())
}

/// Two lines about every model have to fit in either file, or it says nothing.
fn events(log: &file::Log, context: &Context<'_>, report: &mut Report) -> Option<EventsConfig> {
    const SMALLEST: u64 = 1 << 20;
    let max_size = log.max_size.map_or(256 << 20, |text| text.0);
    if max_size < SMALLEST {
        let key = KeyPath::of("log").key("max_size");
        report.problem(&key, "it has to be at least 1MiB");
    }
    let path = context.base.join(log.events.as_ref()?);
    Some(EventsConfig { path, max_size })
}

fn limits(limits: &file::Limits, mut section: Section<'_>) -> Limits {
    let size = |value: Option<SizeText>, default: usize| {
        value.map_or(default, |SizeText(bytes)| {
            usize::try_from(bytes).unwrap_or(usize::MAX)
        })
    };
    let max_body = size(limits.max_body, 32 << 20);
    // Whatever one body may be, one has to fit.
    let per_tenant = size(limits.max_bodies_per_tenant, (256 << 20).max(max_body));
    let max_bodies = size(limits.max_bodies, (2 << 30).max(per_tenant));
    for (key, limit) in [
        ("max_bodies", max_bodies),
        ("max_bodies_per_tenant", per_tenant),
    ] {
        if limit < max_body {
            section
                .problem(key, "is less than limits.max_body")
                .help("a body of limits.max_body would never fit");
        }
    }
    let max_in_flight = limits.max_in_flight.unwrap_or(16_384);
    section.positive("max_in_flight", max_in_flight > 0);
    section.positive("max_body", max_body > 0);
    let or = |value: Option<DurationText>, default| {
        value.map_or(Duration::from_secs(default), |DurationText(value)| value)
    };
    let mut positive = |key, value, default| {
        let value = or(value, default);
        section.positive(key, !value.is_zero());
        value
    };
    Limits {
        max_in_flight,
        max_body,
        max_bodies,
        max_bodies_per_tenant: per_tenant,
        body_timeout: positive("body_timeout", limits.body_timeout, 30),
        queue_timeout: positive("queue_timeout", limits.queue_timeout, 300),
        stream_idle_timeout: positive("stream_idle_timeout", limits.stream_idle_timeout, 120),
        stall_timeout: positive("stall_timeout", limits.stall_timeout, 20),
        start_stall_timeout: positive("start_stall_timeout", limits.start_stall_timeout, 180),
        broken_pause: positive("broken_pause", limits.broken_pause, 300),
        client_stall_timeout: positive("client_stall_timeout", limits.client_stall_timeout, 30),
        // Zero is a choice in these: cut at once, end with it, only tenants of the file.
        drain_timeout: or(limits.drain_timeout, 30),
        orphan_grace: or(limits.orphan_grace, 30),
        max_unnamed_tenants: limits.max_unnamed_tenants.unwrap_or(1024),
        max_saved_kv: limits.max_saved_kv.map_or(16 << 30, |text| text.0),
    }
}

/// Whether a name can stand in URLs, headers and metrics as it is.
pub(crate) fn is_name(name: &str, longest: usize) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._:@/-".contains(c);
    (1..=longest).contains(&name.len()) && name.chars().all(allowed)
}

fn check_name(key: &KeyPath, name: &str, of: &str, longest: usize, report: &mut Report) {
    if !is_name(name, longest) {
        report
            .problem(key, format!("{name:?} cannot name a {of}"))
            .help(format!(
                "use 1 to {longest} of the characters A-Z a-z 0-9 . _ : @ / -"
            ));
    }
}
