//! SGLang (`sglang.launch_server`), through a launcher that reads the key from the environment:
//! SGLang itself takes it from argv only, which every user of the machine can read.

use std::{collections::BTreeMap, path::Path};

use kvwarden_policy::lifecycle::Rung;

use super::{Args, Launch, Start};

pub(super) fn args(launch: &Launch, start: Start<'_>) -> Vec<String> {
    let flags = &launch.flags;
    let args = Args::default()
        .pair("--model-path", &launch.model)
        .pair("--host", "127.0.0.1")
        .pair("--port", start.port)
        .pair("--served-model-name", &launch.served_name)
        .pair("--max-running-requests", flags.capacity.engine_sequences())
        .word("--enable-metrics")
        // What queues inside stays in the order of our own queue: lower first, as the tags are. They
        // differ by thousands, which must not make it throw out what runs.
        .word("--enable-priority-scheduling")
        .word("--schedule-low-priority-values-first")
        .word("--disable-priority-preemption")
        .pair("--default-priority-value", 0)
        // `usage.prompt_tokens_details.cached_tokens`: what a prompt really cost.
        .word("--enable-cache-report")
        .maybe("--context-length", flags.max_model_len)
        .maybe("--dtype", flags.dtype.as_ref());
    if flags.cpu {
        return args
            .pair("--device", "cpu")
            .pair("--attention-backend", "torch_native")
            .pair("--sampling-backend", "pytorch")
            .word("--disable-overlap-schedule")
            .pair("--max-total-tokens", SGLANG_CPU_KV_TOKENS)
            .0;
    }
    let parallel = Some(flags.tensor_parallel).filter(|n| *n > 1);
    let args = args
        .maybe("--tp-size", parallel)
        .maybe("--mem-fraction-static", flags.gpu_memory_utilization)
        .flag_if("--enable-memory-saver", flags.may_sleep())
        .flag_if(
            "--enable-weights-cpu-backup",
            flags.rungs.contains(Rung::L1),
        );
    let Some(host) = flags.kv_cpu_bytes else {
        return args.0;
    };
    // It counts in whole decimal gigabytes.
    args.word("--enable-hierarchical-cache")
        .pair("--hicache-size", host.div_ceil(1_000_000_000))
        .maybe(
            "--hicache-storage-backend",
            flags.kv_ssd_bytes.map(|_| "file"),
        )
        .0
}

/// Without a GPU SGLang sizes its KV cache from all of the machine's memory; this many tokens are
/// 0.7 GiB for a 135M model.
pub const SGLANG_CPU_KV_TOKENS: u32 = 32_768;

pub(super) fn env(launch: &Launch, start: Start<'_>) -> BTreeMap<String, String> {
    let mut env = BTreeMap::from([("KVWARDEN_ENGINE_KEY".to_owned(), start.key.to_owned())]);
    if Path::new(&launch.model).is_absolute() {
        env.insert("HF_HUB_OFFLINE".to_owned(), "1".to_owned());
    }
    if launch.flags.cpu {
        env.insert("SGLANG_USE_CPU_ENGINE".to_owned(), "1".to_owned());
        let threads = launch.threads().map(|threads| threads.to_string());
        env.extend(threads.map(|threads| ("OMP_NUM_THREADS".to_owned(), threads)));
    }
    if let Some(bytes) = launch.flags.kv_ssd_bytes {
        // It keeps to the limit by itself.
        let dir = launch.kv_dir.display().to_string();
        env.insert("SGLANG_HICACHE_FILE_BACKEND_STORAGE_DIR".to_owned(), dir);
        let size = bytes.to_string();
        env.insert("SGLANG_HICACHE_FILE_BACKEND_MAX_SIZE".to_owned(), size);
    }
    env
}
