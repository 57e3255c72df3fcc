//! vLLM (`vllm serve`), its GPU and its CPU build.

use std::{collections::BTreeMap, path::Path};

use serde_json::{Value, json};

use super::{Args, EngineFlags, Launch, Start};

pub(super) fn args(launch: &Launch, start: Start<'_>) -> Vec<String> {
    let flags = &launch.flags;
    let args = dialect(
        Args::default().word("serve").word(&launch.model),
        launch,
        start,
    )
    // `usage.prompt_tokens_details.cached_tokens`: what a prompt really cost.
    .word("--enable-prompt-tokens-details")
    .maybe("--max-model-len", flags.max_model_len)
    .maybe("--dtype", flags.dtype.as_ref());
    if flags.cpu {
        // Without a GPU there are no graphs to capture, and compiling takes minutes.
        let backend = launch.has_few_cores().then_some("uni");
        return args
            .word("--enforce-eager")
            .maybe("--distributed-executor-backend", backend)
            .0;
    }
    let parallel = Some(flags.tensor_parallel).filter(|n| *n > 1);
    args.maybe("--tensor-parallel-size", parallel)
        .maybe("--gpu-memory-utilization", share(flags))
        .maybe("--kv-cache-memory-bytes", flags.kv_cache_bytes)
        .flag_if("--enable-sleep-mode", flags.may_sleep())
        .maybe("--kv-transfer-config", kv_tiers(launch))
        .0
}

/// With a KV cache of fixed size this decides nothing, and yet vLLM refuses to start where less than
/// it is free, as beside another model. Whether there is room our planner has decided by then.
fn share(flags: &EngineFlags) -> Option<f64> {
    let least = flags.kv_cache_bytes.map(|_| 0.01);
    flags.gpu_memory_utilization.or(least)
}

/// KV that leaves the device goes to host memory, and from there to files if it may. What
/// `--kv-offloading-size` stands for, which can't name a second tier.
fn kv_tiers(launch: &Launch) -> Option<Value> {
    let mut tiers = json!({ "cpu_bytes_to_use": launch.flags.kv_cpu_bytes? });
    if launch.flags.kv_ssd_bytes.is_some() {
        tiers["spec_name"] = "TieringOffloadingSpec".into();
        tiers["secondary_tiers"] = json!([{ "type": "fs", "root_dir": launch.kv_dir }]);
    }
    Some(json!({
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": tiers,
    }))
}

/// What vLLM and the simulated engine, which speaks like it, are both told after what they load.
pub(super) fn dialect(args: Args, launch: &Launch, start: Start<'_>) -> Args {
    let capacity = launch.flags.capacity;
    args.pair("--host", "127.0.0.1")
        .pair("--port", start.port)
        .pair("--served-model-name", &launch.served_name)
        .pair("--max-num-seqs", capacity.engine_sequences())
        .pair("--max-num-batched-tokens", capacity.step_tokens)
        // A step full of long prompts keeps room for a short one.
        .pair("--long-prefill-token-threshold", capacity.chunk_tokens)
        // What queues inside stays in the order of our own queue.
        .pair("--scheduling-policy", "priority")
}

pub(super) fn env(launch: &Launch, start: Start<'_>) -> BTreeMap<String, String> {
    const GIB: u64 = 1 << 30;
    // uvicorn's default of 5 s would close pooled connections under our feet.
    let mut env = BTreeMap::from([
        ("VLLM_API_KEY", start.key.to_owned()),
        ("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "75".to_owned()),
        ("VLLM_NO_USAGE_STATS", "1".to_owned()),
        ("DO_NOT_TRACK", "1".to_owned()),
    ]);
    if Path::new(&launch.model).is_absolute() {
        env.insert("HF_HUB_OFFLINE", "1".to_owned());
    }
    // Sleeping is asked for at endpoints that vLLM has in this mode only.
    if !launch.flags.cpu && launch.flags.may_sleep() {
        env.insert("VLLM_SERVER_DEV_MODE", "1".to_owned());
    }
    // By default the names of blocks begin with random bytes in each process, and files of an earlier
    // one would never be found.
    if !launch.flags.cpu && launch.flags.kv_ssd_bytes.is_some() {
        env.insert("PYTHONHASHSEED", "0".to_owned());
    }
    if launch.flags.cpu {
        let gib = launch
            .flags
            .kv_cache_bytes
            .map_or(1, |bytes| bytes.div_ceil(GIB));
        env.insert("VLLM_CPU_KVCACHE_SPACE", gib.to_string());
        // In a process of its own the worker is waited for by `sched_yield` in a loop, which on few
        // cores keeps others from waking up for seconds. The executor that has none is taken with this
        // variable only; the core stays a process beside the API server.
        if launch.has_few_cores() {
            env.insert("VLLM_ENABLE_V1_MULTIPROCESSING", "0".to_owned());
        }
        if let Some(threads) = launch.threads() {
            env.insert("OMP_NUM_THREADS", threads.to_string());
            // Else it binds one thread to each core, however many are asked for.
            env.insert("VLLM_CPU_OMP_THREADS_BIND", "nobind".to_owned());
        }
    }
    env.into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}
