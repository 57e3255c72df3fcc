//! The proxies that are compared, and how each is set up: one worker, no log of requests, and
//! otherwise as its own guide sets it up in front of one server.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::Context as _;
use nix::sys::resource::{Resource, getrlimit};

use crate::install;

/// More than any load has at once: who waits is measured by [`crate::growth`] alone.
pub(crate) const MAX_CONCURRENT: u32 = 32_768;

/// What requests go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Peer {
    /// Nothing: the backend itself.
    Direct,
    Nginx,
    Haproxy,
    VllmRouter,
    SglangRouter,
    Litellm,
    /// The Python program that had the name before.
    KvwardenPython,
    Portkey,
    /// Asks the engine as the client asked.
    Kvwarden,
    /// Puts an unstreamed answer together from a stream, as llama.cpp needs it.
    KvwardenAssembled,
}

/// What a proxy is started with.
#[derive(Debug)]
pub(crate) struct Setting<'a> {
    /// A directory of its own.
    pub(crate) dir: &'a Path,
    pub(crate) port: u16,
    /// The port of the backend.
    pub(crate) backend: u16,
    /// The port at which an engine says that it was started.
    pub(crate) engines: u16,
    /// Models of the program to measure, where it is attached to them.
    pub(crate) models: u32,
    /// Requests that each of them takes at once.
    pub(crate) max_concurrent: u32,
    /// Tenants of the program to measure, as its configuration has them.
    pub(crate) tenants: &'a str,
    /// The program to measure.
    pub(crate) kvwarden: &'a Path,
}

impl Peer {
    pub(crate) const ALL: [Self; 10] = [
        Self::Direct,
        Self::Nginx,
        Self::Haproxy,
        Self::VllmRouter,
        Self::SglangRouter,
        Self::Litellm,
        Self::KvwardenPython,
        Self::Portkey,
        Self::Kvwarden,
        Self::KvwardenAssembled,
    ];

    /// Its name in tables, with the version that is installed.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Nginx => "nginx",
            Self::Haproxy => "HAProxy",
            Self::VllmRouter => "vllm-router",
            Self::SglangRouter => "sglang-router",
            Self::Litellm => "LiteLLM",
            Self::KvwardenPython => "kvwarden (Python)",
            Self::Portkey => "Portkey",
            Self::Kvwarden => "kvwarden",
            Self::KvwardenAssembled => "kvwarden, assembled",
        }
    }

    /// The headers that it needs besides the usual ones.
    pub(crate) fn headers(self, backend: u16) -> String {
        match self {
            Self::Portkey => format!(
                "x-portkey-provider: openai\r\nx-portkey-custom-host: http://127.0.0.1:{backend}/v1\r\nauthorization: Bearer k\r\n"
            ),
            Self::Litellm => "authorization: Bearer k\r\n".to_owned(),
            Self::Direct
            | Self::Nginx
            | Self::Haproxy
            | Self::VllmRouter
            | Self::SglangRouter
            | Self::KvwardenPython
            | Self::Kvwarden
            | Self::KvwardenAssembled => String::new(),
        }
    }

    /// Installs it, writes its configuration and says how it is started.
    pub(crate) fn command(self, setting: &Setting<'_>) -> anyhow::Result<Option<Command>> {
        let mut command = match self {
            Self::Direct => return Ok(None),
            Self::Nginx => nginx(setting)?,
            Self::Haproxy => haproxy(setting)?,
            Self::VllmRouter => vllm_router(setting)?,
            Self::SglangRouter => sglang_router(setting)?,
            Self::Litellm => litellm(setting)?,
            Self::KvwardenPython => kvwarden_python(setting)?,
            Self::Portkey => portkey(setting)?,
            Self::Kvwarden => kvwarden(setting, &attached(setting))?,
            Self::KvwardenAssembled => kvwarden(setting, &llamacpp(setting)?)?,
        };
        let log = fs::File::create(setting.dir.join("log"))?;
        command.stdout(log.try_clone()?).stderr(log);
        Ok(Some(command))
    }
}

/// A port that nobody has.
pub(crate) fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

fn nginx(setting: &Setting<'_>) -> anyhow::Result<Command> {
    let root = install::debian("nginx-debian", &["nginx"])?;
    let Setting {
        dir, port, backend, ..
    } = setting;
    let at = dir.display();
    let config = format!(
        "daemon off; worker_processes 1; worker_rlimit_nofile 65536; pid {at}/pid; error_log {at}/error.log;
events {{ worker_connections 32768; }}
http {{
    access_log off; client_max_body_size 64m; client_body_buffer_size 2m; keepalive_requests 1000000000;
    client_body_temp_path {at}/b; proxy_temp_path {at}/p; fastcgi_temp_path {at}/f; uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;
    upstream engine {{ server 127.0.0.1:{backend}; keepalive 1024; keepalive_requests 1000000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=16384;
        location / {{
            proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection \"\";
            proxy_buffering off; proxy_read_timeout 600s;
        }}
    }}
}}
"
    );
    let file = dir.join("nginx.conf");
    fs::write(&file, config)?;
    let mut command = Command::new(root.join("usr/sbin/nginx"));
    command.arg("-p").arg(dir).arg("-c").arg(file);
    Ok(command)
}

fn haproxy(setting: &Setting<'_>) -> anyhow::Result<Command> {
    let libraries = [
        "liblua5.3-0",
        "libopentracing-c-wrapper0",
        "libopentracing1",
    ];
    let packages = [&["haproxy"], libraries.as_slice()].concat();
    let root = install::debian("haproxy-debian", &packages)?;
    let Setting {
        dir, port, backend, ..
    } = setting;
    // It does not start if it may not have two descriptors for each.
    let connections = (getrlimit(Resource::RLIMIT_NOFILE)?.0 - 200) / 2;
    let config = format!(
        "global
    nbthread 1
    maxconn {connections}
defaults
    mode http
    timeout connect 5s
    timeout client 600s
    timeout server 600s
    http-reuse always
    option http-no-delay
frontend api
    bind 127.0.0.1:{port} backlog 16384
    default_backend engine
backend engine
    server one 127.0.0.1:{backend} pool-max-conn -1
"
    );
    let file = dir.join("haproxy.cfg");
    fs::write(&file, config)?;
    let mut command = Command::new(root.join("usr/sbin/haproxy"));
    let machine = format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    command
        .arg("-f")
        .arg(file)
        .env("LD_LIBRARY_PATH", root.join(machine));
    Ok(command)
}

fn vllm_router(setting: &Setting<'_>) -> anyhow::Result<Command> {
    let root = install::pypi("vllm-router-0.1.17", &["vllm-router==0.1.17"])?;
    let mut command = Command::new(root.join("bin/vllm-router"));
    router_args(&mut command, setting)?;
    Ok(command)
}

fn sglang_router(setting: &Setting<'_>) -> anyhow::Result<Command> {
    let root = install::pypi("sglang-router-0.3.2", &["sglang-router==0.3.2"])?;
    let mut command = Command::new(root.join("bin/sglang-router"));
    command.arg("launch");
    router_args(&mut command, setting)?;
    Ok(command)
}

/// The two routers have one ancestor.
fn router_args(command: &mut Command, setting: &Setting<'_>) -> anyhow::Result<()> {
    let worker = format!("http://127.0.0.1:{}", setting.backend);
    let metrics = free_port()?.to_string();
    command.args(["--worker-urls", &worker, "--host", "127.0.0.1"]);
    command.args([
        "--port",
        &setting.port.to_string(),
        "--policy",
        "round_robin",
    ]);
    command.args(["--prometheus-port", &metrics, "--log-level", "error"]);
    command.args([
        "--max-concurrent-requests",
        "32768",
        "--request-timeout-secs",
        "600",
    ]);
    Ok(())
}

fn litellm(setting: &Setting<'_>) -> anyhow::Result<Command> {
    let root = install::pypi("litellm-1.106.12", &["litellm[proxy]==1.106.12"])?;
    let Setting {
        dir, port, backend, ..
    } = setting;
    let config = format!(
        "model_list:
  - model_name: m
    litellm_params: {{ model: openai/m, api_base: \"http://127.0.0.1:{backend}/v1\", api_key: k }}
litellm_settings: {{ telemetry: false, num_retries: 0 }}
general_settings: {{ dangerously_permit_weak_or_unset_master_key: true }}
"
    );
    let file = dir.join("litellm.yaml");
    fs::write(&file, config)?;
    let mut command = Command::new(root.join("bin/litellm"));
    command
        .arg("--config")
        .arg(file)
        .args(["--host", "127.0.0.1", "--port", &port.to_string()]);
    command
        .args(["--num_workers", "1", "--telemetry", "False"])
        .env("LITELLM_LOG", "ERROR");
    command.env("LITELLM_LOCAL_MODEL_COST_MAP", "True");
    Ok(command)
}

fn kvwarden_python(setting: &Setting<'_>) -> anyhow::Result<Command> {
    let root = install::pypi("kvwarden-0.1.6", &["kvwarden==0.1.6"])?;
    let Setting {
        dir, port, backend, ..
    } = setting;
    // Neither its rate limit nor its bounds are what is measured.
    let config = format!(
        "host: 127.0.0.1
port: {port}
max_concurrent: 32768
admission_queue_size: 32768
log_level: ERROR
models: [{{ model_id: m, engine: vllm, port: {backend} }}]
tenant_defaults: {{ max_concurrent_requests: 32768, rate_limit_rpm: 1000000000 }}
"
    );
    let file = dir.join("kvwarden.yaml");
    fs::write(&file, config)?;
    let mut command = Command::new(root.join("bin/kvwarden"));
    command.arg("serve").arg("--config").arg(file);
    command
        .env("KVWARDEN_DEV_SKIP_ENGINE_LAUNCH", "1")
        .env("KVWARDEN_ENGINE_LOG_DIR", dir)
        .env("HOME", dir);
    Ok(command)
}

fn portkey(setting: &Setting<'_>) -> anyhow::Result<Command> {
    let root = install::npm("portkey-1.15.2", "@portkey-ai/gateway@1.15.2")?;
    let mut command = Command::new("node");
    command.arg(root.join("node_modules/@portkey-ai/gateway/build/start-server.js"));
    command
        .arg(format!("--port={}", setting.port))
        .arg("--headless")
        .env("NODE_ENV", "production");
    Ok(command)
}

fn kvwarden(setting: &Setting<'_>, models: &str) -> anyhow::Result<Command> {
    let Setting {
        dir, port, tenants, ..
    } = setting;
    let config = format!(
        "listen = \"127.0.0.1:{port}\"
log_level = \"warn\"
data_dir = \"{dir}/data\"
state_dir = \"{dir}/state\"
[limits]
max_in_flight = 65536
orphan_grace = \"2m\"
{tenants}{models}",
        dir = dir.display(),
    );
    let file = dir.join("kvwarden.toml");
    fs::write(&file, config)?;
    let mut command = Command::new(setting.kvwarden);
    command
        .arg("serve")
        .arg("--config")
        .arg(file)
        .stdin(Stdio::null());
    Ok(command)
}

fn attached(setting: &Setting<'_>) -> String {
    let Setting {
        backend,
        max_concurrent,
        ..
    } = setting;
    let models = (0..setting.models).map(|n| {
        format!(
            "[[models]]
id = \"{}\"
engine = \"attach\"
url = \"http://127.0.0.1:{backend}\"
max_concurrent = {max_concurrent}
queue_size = 100000
",
            model(n)
        )
    });
    models.collect()
}

/// The name of a model; the first is `m`, which all peers know.
pub(crate) fn model(n: u32) -> String {
    match n {
        0 => "m".to_owned(),
        n => format!("m{n}"),
    }
}

/// The name of a tenant.
pub(crate) fn tenant(n: u32) -> String {
    format!("tenant-{n}")
}

/// llama.cpp's server is this program, which has the backend listen where llama.cpp should.
fn llamacpp(setting: &Setting<'_>) -> anyhow::Result<String> {
    let weights = setting.dir.join("empty.gguf");
    fs::write(
        &weights,
        [b"GGUF".as_slice(), &3_u32.to_le_bytes(), &[0; 16]].concat(),
    )?;
    let program = std::env::current_exe().context("where is this program?")?;
    Ok(format!(
        "[[models]]\nid = \"m\"\nengine = \"llamacpp\"\nsource = \"{}\"\nexecutable = \"{}\"\nmax_concurrent = 32768\nkv_ssd = \"0B\"\nenv = {{ {} = \"{}\" }}\n",
        weights.display(),
        program.display(),
        crate::engine::ENGINES,
        setting.engines
    ))
}
