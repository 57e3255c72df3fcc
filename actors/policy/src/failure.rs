//! Why an engine ended, read from its exit status and its last words.
//!
//! Engines report what went wrong in prose, so [`SIGNS`] is a table of sentences: taken from the
//! sources of vLLM 0.32, SGLang 0.5.23, llama.cpp, PyTorch, transformers and `huggingface_hub`, and
//! from runs that were made to fail. A new sentence is a new row and a new line in the tests.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The class of a failure: what an operator has to look at, and whether trying again can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// It ended because we asked it to.
    Stopped,
    /// Not enough GPU or host memory.
    OutOfMemory,
    /// Its port was taken by another process.
    PortInUse,
    /// The model's files are missing, gated or unreadable.
    BadModel,
    /// It did not know a flag or a flag's value.
    BadFlag,
    /// The GPU's driver or CUDA refused to work.
    Driver,
    /// The engine or its environment could not be installed or started at all.
    NotInstalled,
    /// It did not become ready in time.
    StartTimeout,
    /// It answered, but not like an engine that works.
    Canary,
    /// It served, and then nothing moved any more.
    Hung,
    /// Killed from outside: SIGKILL that was not ours, such as the kernel's OOM killer.
    Killed,
    /// It ended by itself and left no known sign.
    Crashed,
}

impl fmt::Display for FailureClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stopped => "stopped",
            Self::OutOfMemory => "out of memory",
            Self::PortInUse => "its port was taken",
            Self::BadModel => "the model could not be loaded",
            Self::BadFlag => "it did not accept its flags",
            Self::Driver => "GPU driver error",
            Self::NotInstalled => "it is not installed",
            Self::StartTimeout => "it did not start in time",
            Self::Canary => "it gave no first token",
            Self::Hung => "it hung",
            Self::Killed => "killed from outside",
            Self::Crashed => "crashed",
        })
    }
}

impl FailureClass {
    /// Trying again with the same configuration can't help.
    #[must_use]
    pub fn is_permanent(self) -> bool {
        matches!(self, Self::BadModel | Self::BadFlag | Self::NotInstalled)
    }
}

/// Sentences that name a cause. An earlier row wins over a later one, wherever they stand in the
/// log: one failure prints several (llama.cpp says `failed to load model` after every out of
/// memory), and the rows go from the cause to the symptom.
///
/// A sentence must not be one that a working engine logs. So not `out of memory` (advice), not
/// `Address already in use` (vLLM warns so and takes the next port), not `Cannot allocate memory`
/// (llama.cpp warns so of mlock), not every `validation error` (a client's bad request is one).
const SIGNS: &[(FailureClass, &[&str])] = &[
    (
        FailureClass::OutOfMemory,
        &[
            "CUDA out of memory",
            "HIP out of memory",
            "CUDA error: out of memory",
            "CUDA_ERROR_OUT_OF_MEMORY",
            "cudaErrorMemoryAllocation",
            "[CUDA]: out of memory",
            "'out of memory'", // NCCL: Cuda failure 2 'out of memory'
            "cudaMalloc failed: out of memory",
            "OutOfMemoryError",
            "MemoryError",
            "CUBLAS_STATUS_ALLOC_FAILED",
            "DefaultCPUAllocator: can't allocate memory",
            "DefaultCPUAllocator: not enough memory",
            "No available memory for the cache blocks",
            "larger than the available KV cache memory",
            "Free memory on device",
            "Not enough memory. Please try to",
            "Prefill out of memory",
            "Decode out of memory",
            "alloc_req_slots runs out of memory",
            "failed to allocate buffer",
            "failed to allocate CPU buffer",
            "failed to allocate CUDA",
            "failed to allocate compute",
            "unable to allocate CPU buffer",
            "unable to allocate CUDA",
            "unable to allocate backend buffer",
            "std::bad_alloc",
            "[Errno 12]",
        ],
    ),
    (
        FailureClass::PortInUse,
        &[
            "[Errno 98]",
            "EADDRINUSE",
            "os error 98",
            "couldn't bind HTTP server socket",
            "is used by a process already",
        ],
    ),
    (
        FailureClass::BadModel,
        &[
            "does not appear to have a file named",
            "is not a local folder and is not a valid model identifier",
            "Repository Not Found for url",
            "RepositoryNotFoundError",
            "GatedRepoError",
            "Cannot access gated repo",
            "is a gated repository",
            "trying to access a gated repo",
            "Repo id must be in the form",
            "Revision Not Found for url",
            "Can't load the configuration of",
            "Invalid repository ID or local directory",
            "no config file found",
            "Error no file named",
            "Cannot find any model weights",
            "are not supported for now", // vLLM: Model architectures [..]
            "Error while deserializing header",
            "SafetensorError",
            "failed to open GGUF file",
            "failed to load model",
            "error loading model",
            "exiting due to model loading error",
        ],
    ),
    (
        FailureClass::BadFlag,
        &[
            "error: unrecognized arguments",
            "error: argument ",
            "error: the following arguments are required",
            "error: ambiguous option",
            "error: invalid argument",
            "error while handling argument",
            "error: unexpected argument '",
            "error: invalid value '",
            "validation error for ModelConfig",
            "validation errors for ModelConfig",
            "validation error for VllmConfig",
            "validation error for CacheConfig",
            "validation error for SchedulerConfig",
            "validation error for ParallelConfig",
            "`trust_remote_code=True`",
        ],
    ),
    (
        FailureClass::Driver,
        &[
            "CUDA error",
            "HIP error",
            "CUDA_ERROR_",
            "CUDA driver version is insufficient",
            "Found no NVIDIA driver",
            "NVIDIA driver on your system is too old",
            "CUDA driver initialization failed",
            "no CUDA-capable device",
            "No CUDA GPUs are available",
            "failed to initialize CUDA",
            "Failed to infer device type",
            "NCCL error",
            "GPU is lost",
            "uncorrectable ECC error",
            "Failed to initialize NVML",
            "Driver/library version mismatch",
            "NVMLError",
            "illegal memory access was encountered",
            "CUBLAS_STATUS_NOT_INITIALIZED",
            "libcuda.so.1: cannot open shared object",
        ],
    ),
    (
        FailureClass::NotInstalled,
        &[
            "ModuleNotFoundError: No module named",
            "error while loading shared libraries",
            "cannot open shared object file",
            "command not found",
            "bad interpreter",
            "Exec format error",
        ],
    ),
];

/// SGLang's launcher kills itself with SIGKILL when one of its processes fails
/// (`launch_phase_sigquit_handler` in its engine.py), so that signal is no kill from outside.
const OWN_SIGKILL: &str = "Received sigquit from a child process";

const SIGKILL: i32 = 9;
/// How a shell reports a child that died by SIGKILL, could not be executed, or was not found.
const SHELL_SIGKILL: i32 = 137;
const SHELL_NOT_EXECUTABLE: i32 = 126;
const SHELL_NOT_FOUND: i32 = 127;

/// Why an engine ended: `code` or `signal` from `wait`, the last lines of its output, oldest
/// first, and whether we had told it to stop.
#[must_use]
pub fn classify(
    code: Option<i32>,
    signal: Option<i32>,
    log_tail: &[String],
    asked_to_stop: bool,
) -> FailureClass {
    if asked_to_stop {
        return FailureClass::Stopped;
    }
    if let Some(class) = first_sign(log_tail) {
        return class;
    }
    match (code, signal) {
        (Some(SHELL_NOT_EXECUTABLE | SHELL_NOT_FOUND), _) => FailureClass::NotInstalled,
        (Some(SHELL_SIGKILL), _) | (_, Some(SIGKILL))
            if !log_tail.iter().any(|line| line.contains(OWN_SIGKILL)) =>
        {
            FailureClass::Killed
        }
        (_, _) => FailureClass::Crashed,
    }
}

/// Whether a line names a cause. A log tail keeps such a line even when later ones push it out:
/// vLLM prints the traceback of the core that failed, then a longer one of its API server that
/// says `See root cause above`.
#[must_use]
pub fn names_a_cause(line: &str) -> bool {
    first_sign(&[line]).is_some()
}

fn first_sign(lines: &[impl AsRef<str>]) -> Option<FailureClass> {
    let said = |sign: &&str| lines.iter().any(|line| line.as_ref().contains(*sign));
    SIGNS
        .iter()
        .find_map(|(class, signs)| signs.iter().any(said).then_some(*class))
}

#[cfg(test)]
mod tests {
    use super::{FailureClass, FailureClass::*, classify, names_a_cause};

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
            OutOfMemory,
        ),
        (
            "(EngineCore pid=81) ValueError: To serve at least one request with the model's max seq len (131072), (16.0 GiB KV cache is needed, which is larger than the available KV cache memory (3.1 GiB).",
            OutOfMemory,
        ),
        (
            "RuntimeError: CUDA out of memory occurred when warming up sampler with 1024 dummy requests. Please try lowering `max_num_seqs` or `gpu_memory_utilization`",
            OutOfMemory,
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
            "RuntimeError: NCCL error: unhandled system error (run with NCCL_DEBUG=INFO for details)",
            Driver,
        ),
        (
            "RuntimeError: CUDA error: device-side assert triggered",
            Driver,
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
            let found = classify(Some(1), None, &tail(&[line]), false);
            assert_eq!(found, *class, "{line}");
            assert!(names_a_cause(line), "{line}");
        }
    }

    #[test]
    fn what_working_engines_log_names_nothing() {
        for line in HARMLESS {
            assert!(!names_a_cause(line), "{line}");
            assert_eq!(classify(Some(1), None, &tail(&[line]), false), Crashed);
        }
    }

    #[test]
    fn the_cause_wins_over_what_follows_from_it() {
        let llama = tail(&[
            "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 45108.64 MiB on device 0: cudaMalloc failed: out of memory",
            "llama_model_load: error loading model: unable to allocate CUDA0 buffer",
            "srv load_model: failed to load model, 'm.gguf'",
        ]);
        assert_eq!(classify(Some(1), None, &llama, false), OutOfMemory);
        let vllm = tail(&[
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig",
            "  Value error, Invalid repository ID or local directory specified: '/x'",
        ]);
        assert_eq!(classify(Some(1), None, &vllm, false), BadModel);
    }

    #[test]
    fn a_stop_we_asked_for_is_no_failure() {
        let oom = tail(&["torch.OutOfMemoryError: CUDA out of memory."]);
        assert_eq!(classify(Some(1), None, &oom, true), Stopped);
        assert_eq!(classify(None, Some(9), &[], true), Stopped);
    }

    #[test]
    fn exit_status_decides_when_the_log_says_nothing() {
        assert_eq!(classify(None, Some(9), &[], false), Killed);
        assert_eq!(classify(Some(137), None, &[], false), Killed);
        assert_eq!(classify(Some(127), None, &[], false), NotInstalled);
        assert_eq!(classify(None, Some(11), &[], false), Crashed);
        assert_eq!(classify(Some(0), None, &[], false), Crashed);
        assert_eq!(classify(None, None, &[], false), Crashed);
    }

    #[test]
    fn sglang_killing_itself_is_not_killed_from_outside() {
        let own = "[2025-11-22 16:23:41] Received sigquit from a child process. It usually means the child failed.";
        assert_eq!(classify(None, Some(9), &tail(&[own]), false), Crashed);
    }
}
