"""The one table at the end, from the steps' own files."""
import json


def write(out, names, is_dry):
    """`summary.json` and `summary.md`; the exit code tells whether every step that ran measured."""
    files = {name: out / f"{name}.json" for name in names}
    results = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    (out / "summary.json").write_text(json.dumps({"dry": is_dry, "steps": results}, indent=1) + "\n")
    title = "# kvwarden without a GPU: every step on a CPU" if is_dry else "# kvwarden on a GPU"
    lines = [title, "", "| step | state | s | figures |", "|---|---|---|---|"]
    for name in names:
        result = results.get(name, {"state": "not run"})
        took, told = result.get("seconds", "-"), "; ".join(cells(name, result))
        lines.append(f"| {name} | {result['state']} | {took} | {told} |")
    floods = [name for name in ("hero", "decode_flood", "prefill_flood") if "figures" in results.get(name, {})]
    for name in floods:
        lines += ["", f"## {name}", "", *arms(results[name]["figures"])]
    text = "\n".join(lines) + "\n"
    (out / "summary.md").write_text(text)
    print("\n" + text)
    return int(any(result["state"] == "failed" for result in results.values()))


def cells(name, result):
    figures = result.get("figures")
    if figures is None:
        return [result.get("why", "-").replace("\n", " ")[:300]]
    return CELLS.get(name, flood)(figures)


def doctor(figures):
    devices, foreign = figures["devices"], figures["foreign_process"]
    bad = [check["name"] for check in figures["doctor"]["checks"] if check.get("state") in ("problem", "warning")]
    yield f"doctor ok: {figures['doctor']['ok']}" + (f", remarks on {', '.join(bad)}" if bad else "")
    if isinstance(devices, str):
        yield f"NVML {devices}"
        return
    yield from (f"{device['name']} {device['uuid']}, {gib(device['total'])}" for device in devices)
    gone = f"gone {foreign['gone_after_s']:.2f} s after its kill"
    yield f"a foreign process: {gib(foreign['process_bytes'])} by pid, {gone}"
    yield ", ".join(f"{name} {version}" for name, version in figures["versions"].items())


def flood(figures):
    yield from (one["how"] for one in figures["capacities"])


def rungs(figures):
    yield figures["engine"]
    for name, rung in figures["rungs"].items():
        if "kvwarden" not in rung:
            yield f"{name}: {rung if isinstance(rung, str) else rung['failed']}"
            continue
        both = (rung[who] for who in ("kvwarden", "engine_itself"))
        ours, own = (f"{ms(took['down_s'])} down, {ms(took['up_s'])} up" for took in both)
        yield f"{name} {ours} (engine itself {own})"
    yield f"cold start {figures['cold_start_s']:.1f} s"
    yield f"switch to first token p50 {ms(figures['switch']['to_first_token_s']['p50'])}"


def kv_offload(figures):
    yield figures["engine"]
    for name in ("cold", "again", "after_sleep", "after_stop"):
        seen = figures[name]
        if isinstance(seen, str):
            yield f"{name}: {seen}"
        else:
            yield f"{name}: {seen['cached_tokens']} of {seen['prompt_tokens']} cached, {ms(seen['ttft_s'])}"


def leaks(figures):
    before, after = figures["before"], figures["after"]
    yield figures["engine"]
    yield f"{figures['switches']['count']} switches, {figures['switches']['starts_meanwhile']} new starts"
    for what in ("processes", "descriptors"):
        yield f"{what} {before[what]} before, {after[what]} after"
    if isinstance(before["device_bytes"], str):
        yield f"NVML {before['device_bytes']}"
    else:
        devices = zip(before["device_bytes"], after["device_bytes"], strict=True)
        yield from (f"device {gib(was)} before, {gib(now)} after" for was, now in devices)


CELLS = {"doctor": doctor, "rungs": rungs, "kv_offload": kv_offload, "leaks": leaks}


def arms(figures):
    yield f"{figures['engine']}, window {json.dumps(figures['window'])}"
    yield ""
    yield "| arm | quiet TTFT p50 ms | p99 ms | x solo | quiet ok/sent | tokens/s | kept | refused |"
    yield "|---|---|---|---|---|---|---|---|"
    for arm in figures["arms"]:
        ttft = arm["quiet_ttft_ms"]
        ratio, kept, refused = (show(arm[key]) for key in ("x_solo", "kept", "noisy_refused"))
        quiet = f"{quantile(ttft['p50'])} | {quantile(ttft['p99'])} | {ratio} | {arm['quiet']}"
        yield f"| {arm['arm']} | {quiet} | {arm['tokens_per_s']:.0f} | {kept} | {refused} |"


def quantile(value):
    return "-" if value["ms"] is None else f"{'>= ' * value['at_least']}{value['ms']:.1f}"


def show(value):
    return "-" if value is None else f"{value:.2f}"


def gib(count):
    return f"{count / 2**30:.2f} GiB"


def ms(seconds):
    return f"{seconds * 1e3:.0f} ms"
