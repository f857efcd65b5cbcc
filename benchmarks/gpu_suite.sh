#!/usr/bin/env bash
# Everything that a CUDA machine with torch >= 2.11 can measure, in one command and under 8 minutes:
#
#     OUT=folder bash benchmarks/gpu_suite.sh
#
# Builds the extension into the checkout, runs the tests on the device (compute-sanitizer on a small case where it
# is installed), and writes the benchmarks' JSON and every step's log to $OUT, with index.json over all: each step's
# limit, seconds and exit code (124 or 137: it ran out of time, and its JSON holds the rows so far; null: no time was
# left to begin it). No network is needed. The steps are independent, what matters most comes first: one that fails
# is told at the end, and the others still run. The limits add up to less than BUDGET seconds, and no step outlasts
# what is left of it. Exit status: how many failed.
set -uo pipefail
cd "$(dirname "$0")/.."
: "${OUT:?name a folder for the results in OUT}"
mkdir -p "$OUT"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" MMIF_CUDA=1
PYTHON=${PYTHON:-python3} DEVICE=${DEVICE:-cuda} BUDGET=${BUDGET:-480}
LAST_WORDS=2 # seconds between asking a step to end and ending it
# Compile for the card that is here: five architectures would take minutes.
TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$(timeout 10 nvidia-smi --query-gpu=compute_cap --format=csv,noheader \
  2>/dev/null | head -n 1)}
export TORCH_CUDA_ARCH_LIST
failed=() steps=

index() { # index true|false: whether the suite has ended
  {
    printf '{"what": "gpu_suite.sh", "card": "%s", "device": "%s", ' "$TORCH_CUDA_ARCH_LIST" "$DEVICE"
    printf '"budget_s": %d, "seconds": %d, "finished": %s,\n' "$BUDGET" "$SECONDS" "$1"
    printf ' "steps": [\n  %s\n]}\n' "$steps"
  } >"$OUT/index.tmp"
  mv "$OUT/index.tmp" "$OUT/index.json"
}

step() { # step NAME SECONDS COMMAND...
  local name=$1 limit=$2 begin=$SECONDS left=$((BUDGET - SECONDS - LAST_WORDS - 1)) code=null json=null
  shift 2
  echo "== $name: $*"
  if ((left < limit)); then limit=$left; fi
  if ((limit > 0)); then
    timeout -k "$LAST_WORDS" "$limit" "$@" >"$OUT/$name.log" 2>&1 </dev/null
    code=$?
    tail -n 4 "$OUT/$name.log"
  fi
  if [ "$code" != 0 ]; then failed+=("$name"); fi
  if [ -s "$OUT/$name.json" ]; then json="\"$name.json\""; fi
  steps+="${steps:+,$'\n  '}{\"name\": \"$name\", \"exit\": $code, \"seconds\": $((SECONDS - begin)), "
  steps+="\"limit_s\": $limit, \"json\": $json}"
  index false
  echo "== $name took $((SECONDS - begin)) s, exit $code"
}

bench() { # bench NAME SECONDS SCRIPT ARGUMENTS...: its JSON goes to $OUT/NAME.json
  local name=$1 limit=$2 script=$3
  shift 3
  rm -f "$OUT/$name.json"
  step "$name" "$limit" "$PYTHON" "benchmarks/$script" "$@" --json "$OUT/$name.json"
}

step nvidia_smi 5 nvidia-smi
step build 100 "$PYTHON" setup.py build_ext --inplace
step tests 50 "$PYTHON" -m pytest -q -k "cuda" tests/test_window_attention.py tests/test_fusion_loss.py \
  tests/test_fusion_loss_op.py tests/test_cuda_device.py
bench network 30 bench_network.py --device "$DEVICE" --size 256 --mode eager cuda-graph
bench latency 50 bench_latency.py --runtime torch,cuda-graph --precision fp32 --size 256 --batch 1 8 --cold 1 \
  --repeats 60 --trace "$OUT/latency.trace.json" --plot "$OUT/latency.png"
bench attention 60 bench_ops.py --device "$DEVICE" --op attention --scale 4 1 \
  --dtype bfloat16 float16 float32
bench loss 30 bench_ops.py --device "$DEVICE" --op loss --scale 1 4
bench step 15 bench_ops.py --device "$DEVICE" --op step --batch 6
bench attention_batch 20 bench_ops.py --device "$DEVICE" --op attention --dtype float16 --scale 2 --batch 64
bench network_compile 30 bench_network.py --device "$DEVICE" --size 256 --mode compile --dtype float16 --batch 1 64
bench network_512 15 bench_network.py --device "$DEVICE" --size 512 --mode eager cuda-graph --batch 1 32
if command -v compute-sanitizer >/dev/null; then
  step sanitizer 25 compute-sanitizer --error-exitcode 9 "$PYTHON" -m pytest -q -x \
    -k "cuda and twice_plain and float16" tests/test_window_attention.py
fi
index true
echo "in $SECONDS s; failed: ${failed[*]:-none}"
exit "${#failed[@]}"
