use super::*;

fn launch(kind: EngineKind, flags: EngineFlags) -> Launch {
    Launch {
        kind,
        program: PathBuf::from("/env/bin/engine"),
        prefix: Vec::new(),
        model: "/models/m".to_owned(),
        served_name: "m".to_owned(),
        flags,
        start_timeout: Duration::from_secs(1),
        stop_grace: Duration::from_secs(1),
    }
}

fn started(launch: &Launch) -> Command {
    let ours = [
        ("PATH", "/bin"),
        ("AWS_SECRET_ACCESS_KEY", "leak"),
        ("CUDA_VISIBLE_DEVICES", "1"),
    ];
    let ours = ours.map(|(name, value)| (name.to_owned(), value.to_owned()));
    launch.command(
        Start {
            port: 4000,
            key: "secret",
        },
        ours,
    )
}

fn flags() -> EngineFlags {
    EngineFlags {
        cpu: false,
        capacity: Capacity::of_engine(4, 2048, None),
        max_model_len: None,
        dtype: None,
        tensor_parallel: 1,
        gpu_memory_utilization: None,
        threads: None,
        kv_cache_bytes: None,
        extra_args: Vec::new(),
        env: BTreeMap::new(),
    }
}

const CHILDREN: [EngineKind; 4] = [
    EngineKind::Vllm,
    EngineKind::Sglang,
    EngineKind::LlamaCpp,
    EngineKind::Sim,
];

#[test]
fn every_engine_listens_on_loopback_and_its_key_is_in_no_argument() {
    for kind in CHILDREN {
        let command = started(&launch(kind, flags()));
        let line = command.args.join(" ");
        assert!(
            line.contains("--host 127.0.0.1 --port 4000"),
            "{kind:?}: {line}"
        );
        assert!(!line.contains("secret"), "{kind:?}: {line}");
        assert!(
            command.env.values().any(|value| value == "secret"),
            "{kind:?}"
        );
    }
}

#[test]
fn engines_see_no_foreign_secret_but_find_their_gpu() {
    let command = started(&launch(EngineKind::Vllm, flags()));
    assert!(!command.env.contains_key("AWS_SECRET_ACCESS_KEY"));
    assert_eq!(command.env["CUDA_VISIBLE_DEVICES"], "1");
}

#[test]
fn vllm_on_gpus_gets_its_share_of_them() {
    let flags = EngineFlags {
        tensor_parallel: 2,
        gpu_memory_utilization: Some(0.5),
        max_model_len: Some(8192),
        ..flags()
    };
    let line = started(&launch(EngineKind::Vllm, flags)).args.join(" ");
    assert!(line.starts_with("serve /models/m "), "{line}");
    assert!(line.contains("--max-model-len 8192"), "{line}");
    assert!(
        line.ends_with("--tensor-parallel-size 2 --gpu-memory-utilization 0.5"),
        "{line}"
    );
}

#[test]
fn vllm_on_a_cpu_is_told_its_cache_in_whole_gibibytes_and_needs_no_hub() {
    let flags = EngineFlags {
        cpu: true,
        kv_cache_bytes: Some(3 << 29),
        ..flags()
    };
    let command = started(&launch(EngineKind::Vllm, flags));
    assert_eq!(command.env["VLLM_CPU_KVCACHE_SPACE"], "2");
    assert_eq!(command.env["HF_HUB_OFFLINE"], "1");
    assert!(
        !command
            .args
            .iter()
            .any(|arg| arg == "--gpu-memory-utilization")
    );
}

#[test]
fn vllm_has_room_beyond_its_sequences_and_keeps_our_order() {
    let line = started(&launch(EngineKind::Vllm, flags())).args.join(" ");
    assert!(
        line.contains("--max-num-seqs 5 --max-num-batched-tokens 2048"),
        "{line}"
    );
    assert!(
        line.contains("--long-prefill-token-threshold 512"),
        "{line}"
    );
    assert!(line.contains("--scheduling-policy priority"), "{line}");
}

#[test]
fn llamacpp_context_is_per_sequence_times_sequences() {
    let flags = EngineFlags {
        max_model_len: Some(2048),
        threads: Some(1),
        ..flags()
    };
    let line = started(&launch(EngineKind::LlamaCpp, flags)).args.join(" ");
    assert!(
        line.contains("--ctx-size 10240 --threads 1 --threads-batch 1"),
        "{line}"
    );
}

#[test]
fn extra_arguments_and_environment_have_the_last_word() {
    let flags = EngineFlags {
        extra_args: vec!["--enable-lora".to_owned()],
        env: BTreeMap::from([("VLLM_NO_USAGE_STATS".to_owned(), "0".to_owned())]),
        ..flags()
    };
    let command = started(&launch(EngineKind::Vllm, flags));
    assert_eq!(
        command.args.last().map(String::as_str),
        Some("--enable-lora")
    );
    assert_eq!(command.env["VLLM_NO_USAGE_STATS"], "0");
}

#[test]
fn sglang_keeps_our_order_and_throws_nothing_out_for_it() {
    let line = started(&launch(EngineKind::Sglang, flags())).args.join(" ");
    let order = "--enable-priority-scheduling --schedule-low-priority-values-first \
                 --disable-priority-preemption";
    assert!(line.contains(order), "{line}");
    assert!(EngineKind::Sglang.orders_by_priority());
}
