use kvwarden_policy::lifecycle::SleepLevel;

use super::*;

fn launch(kind: EngineKind, flags: EngineFlags) -> Launch {
    Launch {
        kind,
        program: PathBuf::from("/env/bin/engine"),
        build: "1".to_owned(),
        prefix: Vec::new(),
        model: "/models/m".to_owned(),
        served_name: "m".to_owned(),
        flags,
        footprint: None,
        gpus: Vec::new(),
        cores: 64,
        kv_dir: PathBuf::from("/state/kv/m"),
        start_timeout: Duration::from_secs(1),
        stop_grace: Duration::from_secs(1),
    }
}

fn started(launch: &Launch) -> Command {
    started_on(launch, &[])
}

fn started_on(launch: &Launch, gpus: &[String]) -> Command {
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
            gpus,
        },
        ours,
    )
}

fn flags() -> EngineFlags {
    EngineFlags {
        capacity: Capacity::of_engine(4, 2048, None),
        max_model_len: None,
        dtype: None,
        tensor_parallel: 1,
        gpu_memory_utilization: None,
        threads: None,
        kv_cache_bytes: None,
        kv_cpu_bytes: None,
        kv_ssd_bytes: None,
        levels: SleepLevels::default(),
        own: None,
        extra_args: Vec::new(),
        env: BTreeMap::new(),
    }
}

fn children() -> impl Iterator<Item = EngineKind> {
    let kinds = EngineKind::ALL.into_iter();
    let is_ours = |kind: &EngineKind| *kind != EngineKind::Command;
    kinds
        .filter(|kind| kind.dialect().is_started())
        .filter(is_ours)
}

#[test]
fn every_engine_listens_on_loopback_and_its_key_is_in_no_argument() {
    for kind in children() {
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
fn engine_has_one_name_in_every_place() {
    for kind in EngineKind::ALL {
        assert_eq!(EngineKind::named(kind.name()), Some(kind));
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        assert!(kind.name().starts_with(kind.family()));
    }
    assert_eq!(EngineKind::named("vllm_cpu"), None);
}

#[test]
fn engines_see_no_foreign_secret_but_find_their_gpu() {
    let command = started(&launch(EngineKind::Vllm, flags()));
    assert!(!command.env.contains_key("AWS_SECRET_ACCESS_KEY"));
    assert_eq!(command.env["CUDA_VISIBLE_DEVICES"], "1");
}

#[test]
fn engine_sees_the_gpus_it_was_given_and_no_other() {
    let visible = |kind| {
        let launch = launch(kind, flags());
        let command = started_on(&launch, &["0".to_owned(), "2".to_owned()]);
        command.env["CUDA_VISIBLE_DEVICES"].clone()
    };
    assert_eq!(visible(EngineKind::Vllm), "0,2");
    assert_eq!(visible(EngineKind::Sglang), "0,2");
    assert_eq!(visible(EngineKind::VllmCpu), "1");
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
fn vllm_with_a_cache_of_fixed_size_starts_beside_others() {
    let flags = EngineFlags {
        kv_cache_bytes: Some(1 << 30),
        ..flags()
    };
    let line = started(&launch(EngineKind::Vllm, flags)).args.join(" ");
    assert!(line.contains("--gpu-memory-utilization 0.01"), "{line}");
}

#[test]
fn vllm_on_a_cpu_is_told_its_cache_in_whole_gibibytes_and_needs_no_hub() {
    let flags = EngineFlags {
        kv_cache_bytes: Some(3 << 29),
        ..flags()
    };
    let command = started(&launch(EngineKind::VllmCpu, flags));
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

fn started_on_cores(kind: EngineKind, cores: u32, threads: Option<u32>) -> Command {
    let flags = EngineFlags { threads, ..flags() };
    started(&Launch {
        cores,
        ..launch(kind, flags)
    })
}

fn variable<'c>(command: &'c Command, name: &str) -> Option<&'c str> {
    command.env.get(name).map(String::as_str)
}

#[test]
fn vllm_on_few_cores_computes_where_it_schedules_and_leaves_one_to_others() {
    for (cores, threads) in [(1, "1"), (2, "1"), (4, "3")] {
        let command = started_on_cores(EngineKind::VllmCpu, cores, None);
        let line = command.args.join(" ");
        assert!(
            line.contains("--distributed-executor-backend uni"),
            "{line}"
        );
        assert_eq!(
            variable(&command, "VLLM_ENABLE_V1_MULTIPROCESSING"),
            Some("0")
        );
        assert_eq!(
            variable(&command, "VLLM_CPU_OMP_THREADS_BIND"),
            Some("nobind")
        );
        assert_eq!(variable(&command, "OMP_NUM_THREADS"), Some(threads));
    }
    let many = started_on_cores(EngineKind::VllmCpu, 5, None);
    assert!(!many.args.iter().any(|arg| arg.starts_with("--distributed")));
    for name in [
        "VLLM_ENABLE_V1_MULTIPROCESSING",
        "VLLM_CPU_OMP_THREADS_BIND",
        "OMP_NUM_THREADS",
    ] {
        assert_eq!(variable(&many, name), None);
    }
}

#[test]
fn engines_on_few_cores_leave_one_of_them_to_others() {
    let sglang = |cores| started_on_cores(EngineKind::SglangCpu, cores, None);
    assert_eq!(variable(&sglang(2), "OMP_NUM_THREADS"), Some("1"));
    assert_eq!(variable(&sglang(8), "OMP_NUM_THREADS"), None);
    let llamacpp = |cores| {
        started_on_cores(EngineKind::LlamaCpp, cores, None)
            .args
            .join(" ")
    };
    assert!(llamacpp(2).contains("--threads 1 --threads-batch 1"));
    assert!(!llamacpp(8).contains("--threads"));
}

#[test]
fn author_chooses_threads_however_many_cores_there_are() {
    for cores in [2, 64] {
        for kind in [EngineKind::VllmCpu, EngineKind::SglangCpu] {
            let command = started_on_cores(kind, cores, Some(7));
            assert_eq!(variable(&command, "OMP_NUM_THREADS"), Some("7"));
        }
        let line = started_on_cores(EngineKind::LlamaCpp, cores, Some(7))
            .args
            .join(" ");
        assert!(line.contains("--threads 7"), "{line}");
    }
}

#[test]
fn author_undoes_what_few_cores_ask_for() {
    let flags = EngineFlags {
        extra_args: ["--distributed-executor-backend", "mp"]
            .map(str::to_owned)
            .to_vec(),
        env: BTreeMap::from([("VLLM_ENABLE_V1_MULTIPROCESSING".to_owned(), "1".to_owned())]),
        ..flags()
    };
    let command = started(&Launch {
        cores: 2,
        ..launch(EngineKind::VllmCpu, flags)
    });
    assert!(
        command
            .args
            .ends_with(&["--distributed-executor-backend".to_owned(), "mp".to_owned()])
    );
    assert_eq!(
        variable(&command, "VLLM_ENABLE_V1_MULTIPROCESSING"),
        Some("1")
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

fn kv_below() -> EngineFlags {
    EngineFlags {
        kv_cpu_bytes: Some(4 << 30),
        kv_ssd_bytes: Some(20 << 30),
        ..flags()
    }
}

#[test]
fn vllm_sends_kv_through_host_memory_to_files() {
    let command = started(&launch(EngineKind::Vllm, kv_below()));
    let at = command
        .args
        .iter()
        .position(|arg| arg == "--kv-transfer-config");
    let config: serde_json::Value = serde_json::from_str(&command.args[at.unwrap() + 1]).unwrap();
    let tiers = &config["kv_connector_extra_config"];
    assert_eq!(tiers["cpu_bytes_to_use"], 4_u64 << 30);
    assert_eq!(tiers["secondary_tiers"][0]["root_dir"], "/state/kv/m");
    // Files of an earlier process are found by names that it would choose too.
    assert_eq!(command.env["PYTHONHASHSEED"], "0");
}

#[test]
fn sglang_keeps_its_files_within_the_limit_by_itself() {
    let command = started(&launch(EngineKind::Sglang, kv_below()));
    let line = command.args.join(" ");
    assert!(
        line.ends_with(
            "--enable-hierarchical-cache --hicache-size 5 --hicache-storage-backend file"
        ),
        "{line}"
    );
    let limit = &command.env["SGLANG_HICACHE_FILE_BACKEND_MAX_SIZE"];
    assert_eq!(limit, &(20_u64 << 30).to_string());
}

#[test]
fn llamacpp_saves_slots_where_there_is_a_budget_for_them() {
    let line = started(&launch(EngineKind::LlamaCpp, kv_below()))
        .args
        .join(" ");
    assert!(
        line.ends_with("--cache-ram 4096 --slot-save-path /state/kv/m"),
        "{line}"
    );
}

#[test]
fn sleep_is_prepared_only_where_it_is_allowed_and_frees_something() {
    let prepared = |kind, levels: &[SleepLevel]| {
        let levels = levels.iter().copied().collect();
        let command = started(&launch(kind, EngineFlags { levels, ..flags() }));
        let dev_mode = command.env.contains_key("VLLM_SERVER_DEV_MODE");
        (command.args.join(" "), dev_mode)
    };
    let (line, dev_mode) = prepared(EngineKind::Vllm, &[SleepLevel::L2]);
    assert!(line.contains("--enable-sleep-mode") && dev_mode, "{line}");
    for (kind, levels) in [
        (EngineKind::VllmCpu, &[SleepLevel::L2][..]),
        (EngineKind::Vllm, &[]),
    ] {
        let (line, dev_mode) = prepared(kind, levels);
        assert!(!line.contains("sleep") && !dev_mode, "{line}");
    }
    let (line, _) = prepared(EngineKind::Sglang, &[SleepLevel::Parked]);
    assert!(line.ends_with("--enable-memory-saver"), "{line}");
    let (line, _) = prepared(EngineKind::Sglang, &[SleepLevel::Parked, SleepLevel::L1]);
    assert!(line.ends_with("--enable-weights-cpu-backup"), "{line}");
    let (line, _) = prepared(EngineKind::SglangCpu, &[SleepLevel::Parked, SleepLevel::L1]);
    assert!(!line.contains("memory-saver"), "{line}");
}

#[test]
fn sglang_keeps_our_order_and_throws_nothing_out_for_it() {
    let line = started(&launch(EngineKind::Sglang, flags())).args.join(" ");
    let order = "--enable-priority-scheduling --schedule-low-priority-values-first \
                 --disable-priority-preemption";
    assert!(line.contains(order), "{line}");
    assert!(EngineKind::Sglang.dialect().quirks.orders_by_priority);
}

fn own(command: &[&str], env: &[(&str, &str)]) -> Launch {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let env = env.iter();
    let flags = EngineFlags {
        own: Some(Box::new(OwnServer {
            command: words(command),
            stop: words(&["docker", "stop", "kvw-{port}"]),
            ..OwnServer::default()
        })),
        env: env
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        ..flags()
    };
    launch(EngineKind::Command, flags)
}

#[test]
fn authors_command_is_told_what_kvwarden_decides() {
    let launch = own(
        &[
            "serve",
            "--port={port}",
            "{host}",
            "{model}",
            "{source}",
            "{devices}",
            "{\"a\": 1}",
        ],
        &[("API_KEY", "{key}")],
    );
    let command = started_on(&launch, &["0".to_owned(), "2".to_owned()]);
    let expected = [
        "--port=4000",
        "127.0.0.1",
        "m",
        "/models/m",
        "0,2",
        "{\"a\": 1}",
    ];
    assert_eq!(command.args, expected);
    assert_eq!(command.env["API_KEY"], "secret");
    assert_eq!(command.env["PATH"], "/bin");
}

#[test]
fn own_server_under_another_name_does_not_serve_alike() {
    let one = own(&["serve", "{port}"], &[]);
    let other = Launch {
        served_name: "other".to_owned(),
        ..one.clone()
    };
    assert_ne!(one.fingerprint(), other.fingerprint());
}

#[test]
fn server_that_asks_for_devices_is_one_on_gpus() {
    assert!(own(&["serve", "--gpus={devices}"], &[]).uses_gpu());
    assert!(own(&["serve"], &[("GPUS", "{devices}")]).uses_gpu());
    assert!(!own(&["serve", "{port}"], &[]).uses_gpu());
}

#[test]
fn what_ends_a_server_names_the_same_start() {
    let start = Start {
        port: 4000,
        key: "secret",
        gpus: &[],
    };
    let stop = own(&["serve"], &[]).stop_command(start, []).unwrap();
    assert_eq!(stop.program, PathBuf::from("docker"));
    assert_eq!(stop.args, ["stop", "kvw-4000"]);
    assert!(
        launch(EngineKind::Vllm, flags())
            .stop_command(start, [])
            .is_none()
    );
}
