#!/usr/bin/env python3
"""Start SGLang's server with its API key taken from the environment.

sglang.launch_server accepts the key only as --api-key, and every user of a machine can
read the command line of every process. This passes all its arguments through and adds the
key inside the process, where no /proc/*/cmdline shows it. The variable is removed before
any child is made, so scheduler and detokenizer, which do not need it, do not inherit it.

Two more things it does for SGLang: it keeps the key out of the log, where the server
prints all its settings, and it refuses a port that is taken; SGLang notices that only after
loading the model, and then neither serves nor exits.

usage: sglang_launch.py [arguments of sglang.launch_server]      env: KVWARDEN_ENGINE_KEY
"""
import argparse
import logging
import os
import runpy
import socket
import sys

KEY_VARIABLE = "KVWARDEN_ENGINE_KEY"


def keep_out_of_logs(secret):
    make_record = logging.getLogRecordFactory()

    def redacted(*args, **kwargs):
        record = make_record(*args, **kwargs)
        message = record.getMessage()
        if secret in message:
            record.msg, record.args = message.replace(secret, "***"), ()
        return record

    logging.setLogRecordFactory(redacted)


def require_free_port():
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=30000)
    args, _ = parser.parse_known_args()
    try:
        family, kind, _, _, address = socket.getaddrinfo(args.host, args.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            # As the server itself does, so that connections in TIME_WAIT are no obstacle.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        sys.exit(f"sglang_launch: cannot listen on {args.host}:{args.port}: {error}")


def main():
    require_free_port()
    key = os.environ.pop(KEY_VARIABLE, "")
    if key:
        keep_out_of_logs(key)
        sys.argv += ["--api-key", key]
    # alter_sys: SGLang's children are spawned, and must find its module, not this file, as __main__.
    runpy.run_module("sglang.launch_server", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
