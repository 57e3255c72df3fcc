#!/usr/bin/env bash
# Proves kvwarden's headline on a host with an NVIDIA GPU and no network; with --dry-gpu the same
# steps on a CPU. README.md beside this file says what each step shows and what the host must have.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
readonly here
# This folder may be a checkout's.
export PYTHONDONTWRITEBYTECODE=1

usage() {
    cat <<EOF
usage: run.sh --kvwarden BINARY --out DIR [--wheels DIR] [options]
       run.sh --list

  --kvwarden BINARY  release build of kvwarden
  --out DIR          where results, the model and vLLM's environment go
  --wheels DIR       wheels from fetch_wheels.sh, whole or in pieces
  --dry-gpu          on a CPU: vLLM's CPU build and a tiny model; what needs a GPU says so
  --only STEP        this step alone (repeat for several)
  --resume           leave out steps that have their result already
  --seconds N        how long each arm of the floods sends [default: 60; 8 with --dry-gpu]
  --python PYTHON    the host's Python that holds torch [default: python3]
  --list             print the steps
EOF
}

wheels='' kvwarden='' out='' python=python3 seconds='' dry=0
args=()
while [ $# -gt 0 ]; do
    case $1 in
        --wheels) wheels=$2; shift ;;
        --kvwarden) kvwarden=$2; shift ;;
        --out) out=$2; shift ;;
        --python) python=$2; shift ;;
        --seconds) seconds=$2; shift ;;
        --only) args+=(--only "$2"); shift ;;
        --resume) args+=(--resume) ;;
        --dry-gpu) dry=1 ;;
        --list) exec "$python" "$here/proof.py" --list ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
    shift
done
if [ -z "$kvwarden" ] || [ -z "$out" ] || { [ $dry = 0 ] && [ -z "$wheels" ]; }; then
    usage >&2
    exit 2
fi

# Pieces of a large wheel are joined beside it, and everything is checked against its sum.
join_pieces() {
    local first whole
    for first in "$1"/*.whl.part00; do
        [ -e "$first" ] || continue
        whole=${first%.part00}
        [ -e "$whole" ] || cat "$whole".part?? >"$whole"
    done
    (cd "$1" && sha256sum --quiet --check SHA256SUMS)
}

torch() {
    "$1" -c 'import torch; print(torch.__version__, torch.__file__, torch.cuda.is_available())'
}

# vLLM goes into an environment of its own that sees everything the host's Python has. The host's may
# be such an environment itself, and those do not nest: so it is named in a .pth file.
install_vllm() {
    local venv=$1 before after site
    before=$(torch "$python")
    if [ ! -e "$venv/installed" ]; then
        join_pieces "$wheels"
        "$python" -m venv --without-pip --clear "$venv"
        site=$("$venv/bin/python" -c 'import site; print(site.getsitepackages()[0])')
        "$python" - >"$site/host.pth" <<'PY'
import site
for path in site.getsitepackages():
    print(f"import site; site.addsitedir({path!r})")
PY
        "$python" -m pip --python "$venv/bin/python" install --quiet --no-index --no-deps \
            --no-cache-dir --no-compile "$wheels"/*.whl
        cp -r "$here"/park/* "$site"
        touch "$venv/installed"
    fi
    after=$(torch "$venv/bin/python")
    if [ "$before" != "$after" ]; then
        echo "torch changed: $before is now $after" >&2
        exit 1
    fi
    case $after in
        *True) echo "torch as it was: $after" ;;
        *) echo "torch sees no CUDA: $after" >&2; exit 1 ;;
    esac
}

mkdir -p "$out"
out=$(cd "$out" && pwd)
if [ $dry = 1 ]; then
    args+=(--dry-gpu)
else
    install_vllm "$out/venv"
    args+=(--venv "$out/venv")
fi
if [ -n "$seconds" ]; then args+=(--seconds "$seconds"); fi
exec "$python" "$here/proof.py" --kvwarden "$(realpath "$kvwarden")" --out "$out" "${args[@]}"
