//! Why an engine ended, read from its exit status and its last words.
//!
//! Engines report what went wrong in prose, so [`SIGNS`] is a table of sentences: taken from the
//! sources of vLLM 0.32, SGLang 0.5.23, llama.cpp, PyTorch, transformers and `huggingface_hub`, and
//! from runs that were made to fail. A new sentence is a new row and a new line in the tests.
//! [`describe`] makes one sentence of an end, with the line of the output that explains it.

mod explain;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use explain::{Weight, describe, weigh};

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
            "is less than requested memory for kv", // vLLM on a CPU
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
            "Cannot find an appropriate cached snapshot folder",
            "no model file at ", // our launcher of llama.cpp
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
/// (`launch_phase_sigquit_handler` in its engine.py), so that signal is no kill from outside. What it
/// says while it starts and once it serves.
const OWN_SIGKILL: &[&str] = &[
    "Received sigquit from a child process",
    "It usually means one child failed",
];

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

impl Exit {
    /// The signal that killed it, or the process that a shell reports on.
    fn signal(self) -> Option<i32> {
        let of_shell = |code: i32| (code > BY_SIGNAL).then(|| code - BY_SIGNAL);
        self.signal.or(self.code.and_then(of_shell))
    }
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
    match (exit.code, exit.signal()) {
        (Some(SHELL_NOT_EXECUTABLE | SHELL_NOT_FOUND), _) => FailureClass::NotInstalled,
        (_, Some(SIGILL)) => FailureClass::Unsupported,
        (_, Some(SIGKILL)) if !kills_itself(log_tail) => FailureClass::Killed,
        (_, _) => FailureClass::Crashed,
    }
}

fn kills_itself(lines: &[String]) -> bool {
    let says_so = |line: &String| OWN_SIGKILL.iter().any(|sign| line.contains(sign));
    lines.iter().any(says_so)
}

/// The cause that a line names, if it names one. A log tail keeps such a line even when later ones
/// push it out: vLLM prints the traceback of the core that failed, then a longer one of its API
/// server that says `See root cause above`.
#[must_use]
pub fn cause_in(line: &str) -> Option<FailureClass> {
    first_sign(&[line])
}

fn first_sign(lines: &[impl AsRef<str>]) -> Option<FailureClass> {
    let said = |sign: &&str| lines.iter().any(|line| line.as_ref().contains(*sign));
    SIGNS
        .iter()
        .find_map(|(class, signs)| signs.iter().any(said).then_some(*class))
}

#[cfg(test)]
mod tests;
