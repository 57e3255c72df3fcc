"""What is shown, one function a step. Each returns its figures; one that needs a GPU says so instead."""
import json
import os
import signal
import statistics
import subprocess
import time
from pathlib import Path

import configs
from server import Server, call, until

NO_GPU = "skipped: no GPU"
START = 400  # s: an engine's first start on a slow disk; a usual one takes 40 s

# The engine's own calls for each rung, as kvwarden makes them (actors/src/gpu/rungs.rs).
DOWN = {
    "parked": ["/pause?mode=wait", "/release_kv_cache_memory"],
    "l1": ["/sleep?level=1&mode=wait"],
    "l2": ["/sleep?level=2&mode=wait"],
}
UP = {
    "parked": ["/wake_up?tags=kv_cache"],
    "l1": ["/wake_up"],
    "l2": ["/wake_up?tags=weights", "/collective_rpc", "/wake_up?tags=kv_cache"],
}
VERBS = {"parked": "park", "l1": "sleep", "l2": "deep-sleep"}

HOLD_MEMORY = """
import torch, time
held = torch.ones(2 << 30, dtype=torch.uint8, device="cuda")
torch.cuda.synchronize()
print("ready", flush=True)
time.sleep(60)
"""


def step(limit, keeps_engine=False):
    """`limit` tells how long it may take; `keeps_engine`, that it goes on with the bench's engine."""

    def mark(function):
        function.limit = limit
        function.keeps_engine = keeps_engine
        return function

    return mark


# === a. what is here


@step(lambda args: 120)
def doctor(args):
    said = subprocess.run([args.kvwarden, "doctor", "--json"], check=False, capture_output=True, text=True)
    figures = {"doctor": json.loads(said.stdout)}
    config = '[[models]]\nid = "s"\nengine = "sim"\npreset = "tiny"\n'
    with Server(args.kvwarden, args.keep + "/doctor", config) as server:
        until(30, "a reading", lambda: server.status()["gpu"]["devices"]["state"] != "not_yet")
        devices = server.devices()
        figures["kvwarden"] = server.status()["version"]
        figures["devices"] = devices or NO_GPU
        figures["foreign_process"] = foreign_process(args, server) if devices else NO_GPU
    figures["versions"] = versions(args)
    return figures


def foreign_process(args, server):
    """Another program's memory is seen by its pid, and seen to be gone when it is killed."""

    def seen(pid):
        for device in server.devices():
            for process in device["processes"]:
                if process["pid"] == pid:
                    return {"uuid": device["uuid"], "process_bytes": process["used"], "device_bytes": device["used"]}
        return None

    used = server.devices()[0]["used"]
    python = args.venv / "bin/python"
    holder = subprocess.Popen([python, "-c", HOLD_MEMORY], stdout=subprocess.PIPE)
    try:
        holder.stdout.readline()
        begin = time.monotonic()
        found = until(10, "the process to be seen", lambda: seen(holder.pid))
        found["seen_after_s"] = time.monotonic() - begin
    finally:
        holder.kill()
        holder.wait()
    begin = time.monotonic()
    until(10, "the process to be gone", lambda: not seen(holder.pid))
    until(10, "its memory to be back", lambda: server.devices()[0]["used"] < used + (256 << 20))
    return found | {"device_bytes_before": used, "gone_after_s": time.monotonic() - begin}


def versions(args):
    if args.dry_gpu:
        return {"torch": NO_GPU, "vllm": "the CPU build"}
    tell = (
        "import json, torch; from importlib.metadata import version; print(json.dumps({'torch': torch.__version__,"
        "'cuda': torch.version.cuda, 'vllm': version('vllm'), 'gpu': torch.cuda.get_device_name()}))"
    )
    return json.loads(subprocess.check_output([args.venv / "bin/python", "-c", tell]))


# === b to d. the floods


def floods(arms):
    """Calibration, the arms, and the start of the one engine that serves them all."""
    return lambda args: START + 60 + arms * (args.seconds + 30)


def bench(args, name, command, arms):
    out = args.out / name
    common = ["--arms", arms, "--duration", f"{args.seconds}s", "--out", out]
    kept = ["--keep-engine", args.keep + "/bench"]
    run = [args.kvwarden, "bench", *command, *configs.bench(args), *common, *kept]
    subprocess.run(run, check=True)
    summary = json.loads((out / "summary.json").read_text())
    figures = {key: summary[key] for key in ("engine", "capacities", "flood", "bucket_rpm", "window")}
    figures["arms"] = [
        {
            "arm": arm["arm"],
            "quiet_ttft_ms": arm["quiet"]["ttft"],
            "x_solo": arm["quiet_p99_over_solo"],
            "quiet": f"{arm['quiet']['ok']}/{arm['quiet']['sent']}",
            "tokens_per_s": arm["tokens_per_s"],
            "kept": arm["throughput_kept"],
            "noisy_refused": 1 - arm["noisy"]["ok"] / arm["noisy"]["sent"] if arm["arm"] == "bucket" else None,
            "warnings": arm["warnings"],
        }
        for arm in summary["arms"]
    ]
    return figures


@step(floods(4), keeps_engine=True)
def hero(args):
    return bench(args, "hero", ["reproduce-hero"], "solo,fifo,bucket,fair")


@step(floods(3), keeps_engine=True)
def decode_flood(args):
    command = ["fairness", "--shape", "decode", "--flood", "2x"]
    return bench(args, "decode_flood", command, "solo,fifo,fair")


@step(floods(3), keeps_engine=True)
def prefill_flood(args):
    command = ["fairness", "--shape", "prefill", "--flood", "2x"]
    return bench(args, "prefill_flood", command, "solo,fifo,fair")


def end_kept_engine(keep):
    """The engine that the floods share makes room for what comes next."""
    for path in Path(keep, "bench/run").glob("*.json"):
        pid = (json.loads(path.read_text()).get("engine") or {}).get("pid", 0)
        process = Path(f"/proc/{pid}")
        if pid and process.exists():
            os.kill(pid, signal.SIGTERM)
            until(60, "the benched engine to end", lambda gone=process: not gone.exists())


# === e. two models that share the card


@step(lambda args: 120 if args.dry_gpu else 580)
def rungs(args):
    """Times of each rung, of the engine's own calls beside them, of a cold start, and of the switch."""
    figures = {"engine": "SIMULATED" if args.dry_gpu else "vllm", "rungs": {}}
    with Server(args.kvwarden, args.keep + "/rungs", configs.pair(args)) as server:
        figures["first_start_s"] = server.bring("a", "load", "ready", START)
        supported = server.model("a")["engines"][0]["rungs"]
        for rung in VERBS:
            figures["rungs"][rung] = times(server, rung) if rung in supported else "not supported by the engine"
        server.bring("a", "unload", "cold", 60)
        figures["cold_start_s"] = server.bring("a", "load", "ready", START)
        figures["switch"] = switches(server, 8, pause=1)
        figures["devices"] = server.devices() or NO_GPU
        figures["costs"] = server.status()["gpu"]["residents"]
    return figures


def times(server, rung, count=5):
    """p50 of going down and coming back, by kvwarden and by the engine's own calls."""
    ours, own = [], []
    try:
        for _ in range(count):
            down = server.bring("a", VERBS[rung], "asleep", 120, rung)
            held = [device["used"] for device in server.devices()]
            ours.append((down, server.bring("a", "load", "ready", 120)))
        endpoint = server.handover("a")
        for _ in range(count):
            own.append((direct(endpoint, DOWN[rung]), direct(endpoint, UP[rung])))
    except (OSError, RuntimeError) as error:
        model = server.model("a")
        return {"failed": str(error), "note": model["record"]["note"], "log": model["record"]["log_tail"]}
    return {"kvwarden": medians(ours), "engine_itself": medians(own), "device_bytes_asleep": held}


def direct(endpoint, calls):
    begin = time.monotonic()
    for path in calls:
        body = {"method": "reload_weights"} if path == "/collective_rpc" else {}
        call(endpoint["base"] + path, body, endpoint["api_key"], within=120)
    return time.monotonic() - begin


def medians(pairs):
    down, up = zip(*pairs, strict=True)
    total = statistics.median(map(sum, pairs))
    return {"down_s": statistics.median(down), "up_s": statistics.median(up), "both_s": total, "count": len(pairs)}


def switches(server, count, pause=0):
    """Requests to the two in turn: each makes the other give way, by the planner's own decision. The
    first two start and settle."""
    server.ask("b", "The sea is", within=START)
    server.ask("a", "The sea is", within=START)
    starts = sum(server.model(name)["record"]["starts"] for name in "ab")
    took = []
    for turn in range(count):
        time.sleep(pause)
        took.append(server.ask("ba"[turn % 2], "The sea is")["ttft_s"])
    return {
        "to_first_token_s": {"p50": statistics.median(took), "max": max(took)},
        "count": count,
        "starts_meanwhile": sum(server.model(name)["record"]["starts"] for name in "ab") - starts,
        "other_rests": {name: server.model(name).get("rung", "ready") for name in "ab"},
    }


# === f. KV that outlives its place


@step(lambda args: 200 if args.dry_gpu else 400)
def kv_offload(args):
    """A long prompt again: after nothing, after the engine slept, after it was stopped."""
    words = 250 if args.dry_gpu else 1500
    prompt = " ".join(f"Note {n}: the number is {n * 7 % 101}." for n in range(words // 6))
    figures = {"engine": "llamacpp" if args.dry_gpu else "vllm"}
    with Server(args.kvwarden, args.keep + "/offload", configs.offload(args)) as server:
        server.wait_for("a", "ready", START)
        figures["cold"] = server.ask("a", prompt)
        figures["again"] = server.ask("a", prompt)
        if "l1" in server.model("a")["engines"][0]["rungs"]:
            server.bring("a", "sleep", "asleep", 120, "l1")
            server.bring("a", "load", "ready", 120)
            figures["after_sleep"] = server.ask("a", prompt)
        else:
            figures["after_sleep"] = "not supported by the engine"
        server.bring("a", "unload", "cold", 120)
        server.bring("a", "load", "ready", START)
        figures["after_stop"] = server.ask("a", prompt)
    return figures


# === g. nothing is left behind


@step(lambda args: 120 if args.dry_gpu else 500)
def leaks(args):
    """Bytes of the device, processes and descriptors before and after 50 switches."""
    with Server(args.kvwarden, args.keep + "/leaks", configs.pair(args)) as server:
        settled = switches(server, 2)
        before = held(server)
        swapped = switches(server, 50)
        return {
            "engine": "SIMULATED" if args.dry_gpu else "vllm",
            "settling": settled, "switches": swapped, "before": before, "after": held(server),
        }


def held(server):
    """With `a` awake, asked last, and the driver's next reading here."""
    server.ask("a", "The sea is")
    time.sleep(2)
    return {
        "device_bytes": [device["used"] for device in server.devices()] or NO_GPU,
        "processes": len(server.tree()),
        "descriptors": server.descriptors(),
    }


ALL = [doctor, hero, decode_flood, prefill_flood, rungs, kv_offload, leaks]
