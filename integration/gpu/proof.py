#!/usr/bin/env python3
"""The steps of the proof: their order and their bounds, each in a process of its own, and the table.

Every step leaves DIR/STEP.json as soon as it ends, whether it measured or failed, so that
a run that is cut off still tells something and `--resume` goes on after it.
"""
import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import report
import steps

BY_NAME = {step.__name__: step for step in steps.ALL}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--kvwarden", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--venv", type=Path)
    parser.add_argument("--dry-gpu", action="store_true")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--only", action="append", choices=BY_NAME, default=[])
    parser.add_argument("--seconds", type=int)
    parser.add_argument("--keep", help=argparse.SUPPRESS)
    parser.add_argument("--inside", choices=BY_NAME, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.seconds is None:
        args.seconds = 8 if args.dry_gpu else 60
    return args


def write(path, content):
    """Whole or not at all: a cut run must not leave half a result."""
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(content, indent=1) + "\n")
    unfinished.rename(path)


def inside(args):
    """One step, in the process that was made for it."""
    step = BY_NAME[args.inside]
    result = {"step": args.inside, "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    begin = time.monotonic()
    try:
        result |= {"state": "ok", "figures": step(args)}
    except (OSError, ValueError, LookupError, RuntimeError, subprocess.SubprocessError) as error:
        traceback.print_exc()
        result |= {"state": "failed", "why": f"{type(error).__name__}: {error}"}
    result["seconds"] = round(time.monotonic() - begin, 1)
    write(args.out / f"{args.inside}.json", result)


def run(name, args):
    """A step within its time; a late one is ended with all that it started."""
    limit = BY_NAME[name].limit(args)
    print(f"=== {name}, at most {limit} s", flush=True)
    command = [sys.executable, __file__, *sys.argv[1:], "--inside", name, "--keep", args.keep]
    child = subprocess.Popen(command, start_new_session=True)
    try:
        child.wait(limit)
    except subprocess.TimeoutExpired:
        end(child)
        why = f"not done in {limit} s"
        write(args.out / f"{name}.json", {"step": name, "state": "failed", "why": why})
    except KeyboardInterrupt:
        end(child)
        raise


def end(child):
    """SIGTERM ends servers, and they end their engines."""
    os.killpg(child.pid, signal.SIGTERM)
    try:
        child.wait(45)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def main():
    args = arguments()
    if args.list:
        print("\n".join(BY_NAME))
        return 0
    if args.inside:
        inside(args)
        return 0
    chosen = [name for name in BY_NAME if not args.only or name in args.only]
    if args.resume:
        chosen = [name for name in chosen if not (args.out / f"{name}.json").exists()]
    # Short, for the path of a Unix socket in it ends at 107 bytes.
    with tempfile.TemporaryDirectory(prefix="kvw-gpu-") as args.keep:
        for name in chosen:
            if not BY_NAME[name].keeps_engine:
                steps.end_kept_engine(args.keep)
            run(name, args)
        steps.end_kept_engine(args.keep)
    return report.write(args.out, BY_NAME, args.dry_gpu)


if __name__ == "__main__":
    sys.exit(main())
