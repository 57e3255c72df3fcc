#!/usr/bin/env bash
# Downloads the wheels of wheels.txt, on any machine with pip. What is larger than a piece is split,
# for hosts that take files of a limited size; run.sh joins it again.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
readonly here PIECE=${PIECE:-52M}

if [ $# -lt 1 ]; then
    echo "usage: fetch_wheels.sh DIR [--hopper]   (--hopper: without what an H100 or H200 never loads)" >&2
    exit 2
fi
mkdir -p "$1"
dir=$(cd "$1" && pwd)

# pip matches these tags exactly, so each is named that a wheel may have.
platforms=(--platform manylinux1_x86_64 --platform manylinux2014_x86_64)
for glibc in 5 12 17 24 26 27 28 31 34 35; do
    platforms+=(--platform "manylinux_2_${glibc}_x86_64")
done
python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
    --implementation cp --abi cp312 --abi abi3 --abi none "${platforms[@]}" \
    --dest "$dir" --requirement "$here/wheels.txt"

cd "$dir"
# FlashAttention 2, which Hopper replaces by 3, and vLLM's other frontend: more than half of the wheel.
if [ "${2:-}" = --hopper ]; then
    zip --quiet --delete vllm-*.whl 'vllm/vllm_flash_attn/_vllm_fa2_C*' vllm/vllm-rs
fi
sha256sum ./*.whl >SHA256SUMS
for wheel in *.whl; do
    if [ "$(stat --format %s "$wheel")" -gt "$(numfmt --from iec "$PIECE")" ]; then
        split --bytes "$PIECE" --numeric-suffixes --suffix-length 2 "$wheel" "$wheel.part"
        rm "$wheel"
    fi
done
du --summarize --human-readable .
