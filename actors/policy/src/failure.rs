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
    /// What is left beside the weights holds no request of the longest kind.
    KvTooSmall,
    /// Its port was taken by another process.
    PortInUse,
    /// The model's files are missing, gated or unreadable.
    BadModel,
    /// It did not know a flag or a flag's value.
    BadFlag,
    /// There is no GPU driver, or none that fits.
    Driver,
    /// The GPU failed: an error of CUDA, of its memory, or it is gone.
    Gpu,
    /// GPUs could not talk to each other.
    Nccl,
    /// This CPU lacks an instruction that it was built for.
    Unsupported,
    /// The engine or its environment could not be installed or started at all.
    NotInstalled,
    /// What it needs could not be downloaded; that is tried again.
    Download,
    /// It was starting, and then nothing moved any more.
    StartStalled,
    /// It went on starting and never came to an end.
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
            Self::KvTooSmall => "its KV cache is too small",
            Self::Driver => "no fitting GPU driver",
            Self::Gpu => "GPU error",
            Self::Nccl => "GPUs could not talk to each other",
            Self::Unsupported => "this CPU can't run it",
            Self::NotInstalled => "it is not installed",
            Self::Download => "its download failed",
            Self::StartStalled => "start stalled",
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
        match self {
            Self::KvTooSmall
            | Self::BadModel
            | Self::BadFlag
            | Self::Driver
            | Self::Unsupported
            | Self::NotInstalled => true,
            Self::Stopped
            | Self::OutOfMemory
            | Self::PortInUse
            | Self::Gpu
            | Self::Nccl
            | Self::Download
            | Self::StartStalled
            | Self::StartTimeout
            | Self::Canary
            | Self::Hung
            | Self::Killed
            | Self::Crashed => false,
        }
    }

    /// What an operator can do about it, where that follows from the class.
    #[must_use]
    pub fn advice(self) -> Option<&'static str> {
        Some(match self {
            Self::OutOfMemory => "lower `gpu_memory_utilization`, `kv_cache` or `max_model_len`",
            Self::KvTooSmall => {
                "lower `max_model_len`, or raise `kv_cache` or `gpu_memory_utilization`"
            }
            Self::BadModel => "check the model's name or path, and HF_TOKEN if it is gated",
            Self::BadFlag => "check the model's `extra_args` against the engine's version",
            Self::Driver => "install a GPU driver that fits; `kvwarden doctor` shows what is here",
            Self::Gpu => "look for Xid in the kernel's log; `kvwarden doctor` shows the GPUs",
            Self::Unsupported => "use a build of the engine for this CPU",
            Self::NotInstalled => "try `kvwarden engine install`, or check `executable`",
            Self::Download => "check the network",
            Self::StartStalled => {
                "see its log; `limits.start_stall_timeout` is how long it may stand still"
            }
            Self::StartTimeout => "see its log; `start_timeout` is how long it may take",
            Self::Stopped
            | Self::PortInUse
            | Self::Nccl
            | Self::Canary
            | Self::Hung
            | Self::Killed
            | Self::Crashed => return None,
        })
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
        FailureClass::KvTooSmall,
        &[
            "No available memory for the cache blocks",
            "larger than the available KV cache memory",
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
            "Port is already in use. dist_init_port=",
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
            "Following weights were not initialized from checkpoint",
            "invalid magic characters",
            "unknown model architecture",
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
            "CUDA driver version is insufficient",
            "Found no NVIDIA driver",
            "NVIDIA driver on your system is too old",
            "no CUDA-capable device",
            "No CUDA GPUs are available",
            "Failed to infer device type",
            "Driver/library version mismatch",
            "NVMLLibraryMismatch",
            "Driver Not Loaded",
            "libcuda.so.1: cannot open shared object",
            "no kernel image is available for execution",
            "provided PTX was compiled with an unsupported toolchain",
        ],
    ),
    (
        FailureClass::Nccl,
        &[
            "NCCL error",
            "ncclUnhandledCudaError",
            "ncclSystemError",
            "ncclInternalError",
            "ncclRemoteError",
            "Watchdog caught collective operation timeout",
        ],
    ),
    (
        FailureClass::Gpu,
        &[
            "GPU is lost",
            "fallen off the bus",
            "NVRM: Xid",
            "uncorrectable ECC error",
            "CUDA error",
            "CUDA driver error",
            "HIP error",
            "CUDA_ERROR_",
            "CUDA driver initialization failed",
            "failed to initialize CUDA",
            "Failed to initialize NVML",
            "NVMLError",
            "illegal memory access was encountered",
            "CUBLAS_STATUS_",
        ],
    ),
    (
        FailureClass::Unsupported,
        &["Illegal instruction", "illegal hardware instruction"],
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

const SIGILL: i32 = 4;
const SIGKILL: i32 = 9;
/// A shell adds this to the signal that its child died by.
const BY_SIGNAL: i32 = 128;
/// How a shell reports that it could not execute a program, or found none.
const SHELL_NOT_EXECUTABLE: i32 = 126;
const SHELL_NOT_FOUND: i32 = 127;

/// How an engine's main process ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exit {
    /// Its exit code, if it exited.
    pub code: Option<i32>,
    /// The signal, if one killed it.
    pub signal: Option<i32>,
    /// The kernel killed a process of its tree because memory ran out.
    pub is_oom_killed: bool,
}

/// Why an engine ended: its exit, the last lines of its output, oldest first, and whether we had
/// told it to stop.
#[must_use]
pub fn classify(exit: Exit, log_tail: &[String], asked_to_stop: bool) -> FailureClass {
    if asked_to_stop {
        return FailureClass::Stopped;
    }
    if exit.is_oom_killed {
        return FailureClass::OutOfMemory;
    }
    if let Some(class) = first_sign(log_tail) {
        return class;
    }
    let of_shell = |code: i32| (code > BY_SIGNAL).then(|| code - BY_SIGNAL);
    let signal = exit.signal.or(exit.code.and_then(of_shell));
    match (exit.code, signal) {
        (Some(SHELL_NOT_EXECUTABLE | SHELL_NOT_FOUND), _) => FailureClass::NotInstalled,
        (_, Some(SIGILL)) => FailureClass::Unsupported,
        (_, Some(SIGKILL)) if !log_tail.iter().any(|line| line.contains(OWN_SIGKILL)) => {
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
    use super::{Exit, FailureClass, FailureClass::*, classify, names_a_cause};

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
            assert!(names_a_cause(line), "{line}");
        }
    }

    #[test]
    fn what_working_engines_log_names_nothing() {
        for line in HARMLESS {
            assert!(!names_a_cause(line), "{line}");
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
}
