//! What engines really say when they fail.

use super::{Exit, FailureClass, FailureClass::*, cause_in, classify, describe};

fn code(code: i32) -> Exit {
    Exit {
        code: Some(code),
        ..Exit::default()
    }
}

fn signal(signal: i32) -> Exit {
    Exit {
        signal: Some(signal),
        ..Exit::default()
    }
}

/// Lines as engines print them, prefixes included; [run] marks the ones seen in runs that were
/// made to fail, the others are from the sources or from issues.
const LINES: &[(&str, FailureClass)] = &[
    // vLLM
    (
        "(EngineCore_DP0 pid=17374) ERROR 09-28 15:47:24 [core.py:718] ValueError: Free memory on device (3.22/4.0 GiB) on startup is less than desired GPU memory utilization (0.9, 3.6 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes.",
        OutOfMemory,
    ),
    (
        "ERROR 05-23 09:31:47 [core.py:396] ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing the engine.",
        KvTooSmall,
    ),
    (
        "(EngineCore pid=81) ValueError: To serve at least one request with the model's max seq len (131072), (16.0 GiB KV cache is needed, which is larger than the available KV cache memory (3.1 GiB).",
        KvTooSmall,
    ),
    (
        "RuntimeError: CUDA out of memory occurred when warming up sampler with 1024 dummy requests. Please try lowering `max_num_seqs` or `gpu_memory_utilization`",
        OutOfMemory,
    ),
    (
        "(EngineCore pid=412) ERROR 11-20 08:11:02 [core.py:1104] RuntimeError: NCCL error: unhandled system error (run with NCCL_DEBUG=INFO for details)",
        Nccl,
    ),
    (
        "(EngineCore pid=9) ValueError: Following weights were not initialized from checkpoint: {'lm_head.weight'}",
        BadModel,
    ),
    ("vllm: error: unrecognized arguments: --bogus-flag", BadFlag), // [run]
    (
        "huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name' or 'namespace/repo_name': '/nonexistent/model'. Use `repo_type` argument if needed.", // [run]
        BadModel,
    ),
    (
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig",
        BadFlag,
    ),
    (
        "  Value error, Model architectures ['FooForCausalLM'] are not supported for now. [type=value_error]",
        BadModel,
    ),
    (
        "RuntimeError: Failed to infer device type, please set the environment variable `VLLM_LOGGING_LEVEL=DEBUG` to turn on verbose logging to help debug the issue.",
        Driver,
    ),
    (
        "ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', 8000): address already in use",
        PortInUse,
    ),
    // SGLang
    (
        "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static. Current value: mem_fraction_static=0.2",
        OutOfMemory,
    ),
    (
        "RuntimeError: alloc_req_slots runs out of memory. Please set a smaller number for `--max-running-requests`.",
        OutOfMemory,
    ),
    (
        "sglang serve: error: the following arguments are required: --model-path/--model", // [run]
        BadFlag,
    ),
    (
        "OSError: Repo id must be in the form 'repo_name' or 'namespace/repo_name': '/nonexistent/model'. Use `repo_type` argument if needed.", // [run]
        BadModel,
    ),
    (
        "ValueError: port is used by a process already. process.name()=python' pid=81",
        PortInUse,
    ),
    (
        "[2025-11-20 08:11:02] Port is already in use. dist_init_port=30512 port_base=30513 detokenizer_port=30514 nccl_port=30515 scheduler_input_port=30516",
        PortInUse,
    ),
    // llama.cpp
    (
        "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 144817.04 MiB on device 0: cudaMalloc failed: out of memory",
        OutOfMemory,
    ),
    (
        "llama_model_load: error loading model: unable to allocate CUDA0 buffer",
        OutOfMemory,
    ),
    (
        "ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 437944320",
        OutOfMemory,
    ),
    (
        "0.00.005.478 E gguf_init_from_file: failed to open GGUF file 'missing.gguf' (No such file or directory)", // [run]
        BadModel,
    ),
    (
        "0.00.012.916 E srv          init: exiting due to model loading error", // [run]
        BadModel,
    ),
    ("error: invalid argument: --bogus-flag", BadFlag),
    (
        "gguf_init_from_file_impl: invalid magic characters: '<htm', expected 'GGUF'",
        BadModel,
    ),
    (
        "llama_model_load: error loading model: error loading model architecture: unknown model architecture: 'foo'",
        BadModel,
    ),
    ("Illegal instruction (core dumped)", Unsupported),
    (
        "couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 8080",
        PortInUse,
    ),
    // PyTorch, CUDA, NCCL
    (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.69 GiB of which 1.21 GiB is free.",
        OutOfMemory,
    ),
    (
        "RuntimeError: [enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 68719476736 bytes.",
        OutOfMemory,
    ),
    ("MemoryError", OutOfMemory),
    (
        "torch.distributed.DistNetworkError: The server socket has failed to listen on any local network address. port: 29500, useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use",
        PortInUse,
    ),
    (
        "torch.distributed.DistBackendError: NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, unhandled cuda error (run with NCCL_DEBUG=INFO for details), NCCL version 2.27.3",
        Nccl,
    ),
    (
        "RuntimeError: CUDA error: device-side assert triggered",
        Gpu,
    ),
    (
        "RuntimeError: CUDA error: CUDA driver version is insufficient for CUDA runtime version",
        Driver,
    ),
    (
        "RuntimeError: The NVIDIA driver on your system is too old (found version 12020). Please update your GPU driver",
        Driver,
    ),
    (
        "RuntimeError: CUDA error: no kernel image is available for execution on the device",
        Driver,
    ),
    (
        "vllm.third_party.pynvml.NVMLError_LibRmVersionMismatch: Driver/library version mismatch",
        Driver,
    ),
    (
        "vllm.third_party.pynvml.NVMLError_GpuIsLost: GPU is lost",
        Gpu,
    ),
    (
        "NVRM: Xid (PCI:0000:65:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
        Gpu,
    ),
    (
        "[rank1]:[E1120 ProcessGroupNCCL.cpp:688] [Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=5, OpType=ALLREDUCE)",
        Nccl,
    ),
    (
        "RuntimeError: Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver from http://www.nvidia.com/Download/index.aspx",
        Driver,
    ),
    (
        "ImportError: libcuda.so.1: cannot open shared object file: No such file or directory",
        Driver,
    ),
    // transformers, huggingface_hub
    (
        "Cannot access gated repo for url https://huggingface.co/meta-llama/Llama-3.2-1B-Instruct/resolve/main/config.json.",
        BadModel,
    ),
    (
        "OSError: /models/empty does not appear to have a file named config.json. Checkout 'https://huggingface.co//models/empty/tree/main' for available files.",
        BadModel,
    ),
    (
        "OSError: nobody/nothing is not a local folder and is not a valid model identifier listed on 'https://huggingface.co/models'",
        BadModel,
    ),
    // a broken environment
    ("ModuleNotFoundError: No module named 'vllm'", NotInstalled),
    (
        "llama-server: error while loading shared libraries: libgomp.so.1: cannot open shared object file: No such file or directory",
        NotInstalled,
    ),
];

/// What engines that work also log.
const HARMLESS: &[&str] = &[
    "WARNING [parallel.py:746] Address already in use. Retrying with a new port.",
    "warning: failed to mlock 827228160-byte buffer (after previously locking 0 bytes): Cannot allocate memory",
    "WARNING [_custom_ops.py:20] Failed to import from vllm._C with ModuleNotFoundError(\"No module named 'vllm._C'\")",
    "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
    "server_args=ServerArgs(model_path='/m', trust_remote_code=True, port=30000)",
    "ERROR: 1 validation error for ChatCompletionRequest",
    "INFO: 127.0.0.1:50442 - \"POST /v1/chat/completions HTTP/1.1\" 200 OK",
    "",
];

fn tail(lines: &[&str]) -> Vec<String> {
    lines.iter().map(ToString::to_string).collect()
}

#[test]
fn every_known_sentence_names_its_class() {
    for (line, class) in LINES {
        let found = classify(code(1), &tail(&[line]), false);
        assert_eq!(found, *class, "{line}");
        assert_eq!(cause_in(line), Some(*class), "{line}");
    }
}

#[test]
fn what_working_engines_log_names_nothing() {
    for line in HARMLESS {
        assert_eq!(cause_in(line), None, "{line}");
        assert_eq!(classify(code(1), &tail(&[line]), false), Crashed);
    }
}

#[test]
fn the_cause_wins_over_what_follows_from_it() {
    let llama = tail(&[
        "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 45108.64 MiB on device 0: cudaMalloc failed: out of memory",
        "llama_model_load: error loading model: unable to allocate CUDA0 buffer",
        "srv load_model: failed to load model, 'm.gguf'",
    ]);
    assert_eq!(classify(code(1), &llama, false), OutOfMemory);
    let vllm = tail(&[
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig",
        "  Value error, Invalid repository ID or local directory specified: '/x'",
    ]);
    assert_eq!(classify(code(1), &vllm, false), BadModel);
}

#[test]
fn a_stop_we_asked_for_is_no_failure() {
    let oom = tail(&["torch.OutOfMemoryError: CUDA out of memory."]);
    assert_eq!(classify(code(1), &oom, true), Stopped);
    assert_eq!(classify(signal(9), &[], true), Stopped);
}

#[test]
fn exit_status_decides_when_the_log_says_nothing() {
    assert_eq!(classify(signal(9), &[], false), Killed);
    assert_eq!(classify(code(137), &[], false), Killed);
    assert_eq!(classify(code(127), &[], false), NotInstalled);
    assert_eq!(classify(signal(11), &[], false), Crashed);
    assert_eq!(classify(signal(4), &[], false), Unsupported);
    assert_eq!(classify(code(132), &[], false), Unsupported);
    assert_eq!(classify(code(0), &[], false), Crashed);
    assert_eq!(classify(Exit::default(), &[], false), Crashed);
}

#[test]
fn worker_killed_for_want_of_memory_is_told_whatever_the_others_say_of_it() {
    let exit = Exit {
        is_oom_killed: true,
        ..code(1)
    };
    let said = tail(&["RuntimeError: NCCL error: remote process exited"]);
    assert_eq!(classify(exit, &said, false), OutOfMemory);
    assert_eq!(classify(exit, &said, true), Stopped);
}

#[test]
fn what_trying_again_cannot_mend_comes_with_advice() {
    let permanent = LINES.iter().filter(|(_, class)| class.is_permanent());
    assert!(permanent.clone().count() > 10);
    for (line, class) in permanent {
        assert!(class.advice().is_some(), "{class:?}: {line}");
    }
}

#[test]
fn sglang_killing_itself_is_not_killed_from_outside() {
    let own = "[2025-11-22 16:23:41] Received sigquit from a child process. It usually means the child failed.";
    assert_eq!(classify(signal(9), &tail(&[own]), false), Crashed);
}

/// What engines printed when they were made to fail, from a file of `corpus/`: first how they ended,
/// their class and the sentence that is shown, then the output.
struct Sample {
    exit: Exit,
    class: String,
    sentence: String,
    lines: Vec<String>,
}

fn sample(text: &str) -> Sample {
    let (head, log) = text.split_once("\n---\n").expect("a head and a log");
    let field = |name: &str| {
        let line = head.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|value| value.strip_prefix(": "))
    };
    let number = |name| field(name).map(|value| value.parse().expect("a number"));
    Sample {
        exit: Exit {
            code: number("code"),
            signal: number("signal"),
            is_oom_killed: false,
        },
        class: field("class").expect("a class").to_owned(),
        sentence: field("sentence").expect("a sentence").to_owned(),
        lines: log.lines().map(str::to_owned).collect(),
    }
}

#[test]
fn sentence_names_the_line_that_explains_in_every_log_of_the_corpus() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/src/failure/corpus");
    let mut wrong = Vec::new();
    let mut count = 0;
    for entry in std::fs::read_dir(dir).expect("the corpus") {
        let path = entry.expect("an entry").path();
        let sample = sample(&std::fs::read_to_string(&path).expect("a sample"));
        let class = classify(sample.exit, &sample.lines, false);
        let name = serde_json::to_value(class).expect("a class");
        let sentence = describe(sample.exit, class, &sample.lines);
        if sentence != sample.sentence || name != sample.class {
            wrong.push(format!("{}\n  {name}: {sentence}", path.display()));
        }
        count += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count >= 30, "{count} samples");
}

fn shown(exit: Exit, lines: &[&str]) -> String {
    let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
    describe(exit, classify(exit, &lines, false), &lines)
}

#[test]
fn signal_by_which_a_worker_died_is_named() {
    let lines = [
        "(EngineCore pid=1) ERROR 11-30 20:59:44 [multiproc_executor.py:315] Worker proc VllmWorker-0 died unexpectedly (exit code: -4), shutting down executor.",
        "(EngineCore pid=1) ERROR 11-30 20:59:44 [core.py:1512] RuntimeError: Executor failed.",
        "/path/multiprocessing/resource_tracker.py:254: UserWarning: resource_tracker: There appear to be 1 leaked shared_memory objects to clean up at shutdown",
        "  warnings.warn('resource_tracker: There appear to be %d '",
    ];
    assert_eq!(
        shown(code(0), &lines),
        "exited with code 0 (Worker proc VllmWorker-0 died unexpectedly (exit code: -4), shutting down \
         executor.); -4 is SIGILL: the CPU refused an instruction"
    );
}

#[test]
fn exception_of_the_worker_explains_more_than_that_it_died() {
    let lines = [
        "(Worker pid=2) ERROR 11-30 20:59:44 [multiproc_executor.py:953] Traceback (most recent call last):",
        "(Worker pid=2) ERROR 11-30 20:59:44 [multiproc_executor.py:953]     raise ValueError(text)",
        "(Worker pid=2) ERROR 11-30 20:59:44 [multiproc_executor.py:953] ValueError: no kernel for head size 7",
        "(EngineCore pid=1) ERROR 11-30 20:59:44 [multiproc_executor.py:315] Worker proc VllmWorker-0 died unexpectedly (exit code: 1), shutting down executor.",
    ];
    assert_eq!(
        shown(code(1), &lines),
        "exited with code 1 (ValueError: no kernel for head size 7)"
    );
}

#[test]
fn progress_and_warnings_explain_nothing() {
    let lines = [
        "could not read vocabulary",
        "Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:01<00:01,  1.10s/it]",
        "W1130 20:54:32.955000 20409 torch/_library/triton.py:53] Triton not available",
        "INFO:     Shutting down",
    ];
    assert_eq!(
        shown(code(1), &lines),
        "exited with code 1 (could not read vocabulary)"
    );
    assert_eq!(shown(code(1), &lines[1..]), "exited with code 1");
}
