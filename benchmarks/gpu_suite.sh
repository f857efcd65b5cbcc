#!/usr/bin/env bash
# Everything that a CUDA machine with torch >= 2.11 can measure, in one command and under 10 minutes:
#
#     OUT=folder bash benchmarks/gpu_suite.sh
#
# Builds the extension into the checkout, runs the tests on the device (compute-sanitizer on a small case where it
# is installed), and writes the benchmarks' JSON and every step's log to $OUT. No network is needed. The steps are
# independent: one that fails is told at the end, and the others still run. Exit status: how many failed.
set -uo pipefail
cd "$(dirname "$0")/.."
: "${OUT:?name a folder for the results in OUT}"
mkdir -p "$OUT"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" MMIF_CUDA=1
PYTHON=${PYTHON:-python3}
# Compile for the card that is here: five architectures would take minutes.
TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$("$PYTHON" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')}
export TORCH_CUDA_ARCH_LIST
failed=()

step() {  # step NAME SECONDS COMMAND...
  local name=$1 limit=$2 begin=$SECONDS
  shift 2
  echo "== $name: $*"
  timeout "$limit" "$@" >"$OUT/$name.log" 2>&1 || failed+=("$name")
  tail -n 4 "$OUT/$name.log"
  echo "== $name took $((SECONDS - begin)) s"
}

bench() {  # bench NAME SECONDS SCRIPT ARGUMENTS...: its JSON goes to $OUT/NAME.json
  local name=$1 limit=$2 script=$3
  shift 3
  step "$name" "$limit" "$PYTHON" "benchmarks/$script" "$@" --json "$OUT/$name.json"
}

nvidia-smi >"$OUT/nvidia-smi.log" 2>&1
step build 240 "$PYTHON" setup.py build_ext --inplace
step tests 150 "$PYTHON" -m pytest -q -k "cuda" tests/test_window_attention.py tests/test_fusion_loss.py \
  tests/test_fusion_loss_op.py tests/test_cuda_device.py
if command -v compute-sanitizer >/dev/null; then
  step sanitizer 90 compute-sanitizer --error-exitcode 9 "$PYTHON" -m pytest -q -x \
    -k "cuda and twice_plain and float16" tests/test_window_attention.py
fi
bench ops_cuda 150 bench_ops.py --device cuda --op attention loss --dtype float32 float16 bfloat16 --scale 1 2 4
bench ops_cuda_batch 60 bench_ops.py --device cuda --op attention --dtype float16 --scale 2 --batch 64
bench step_cuda 60 bench_ops.py --device cuda --op step --batch 6
bench network_cuda 150 bench_network.py --device cuda --size 256
bench network_cuda_512 90 bench_network.py --device cuda --size 512 --mode eager cuda-graph --batch 1 32
bench latency_cuda 120 bench_latency.py --runtime torch,torch-compile,cuda-graph --precision fp32 --size 256 512 \
  --trace "$OUT/latency_cuda.trace.json" --plot "$OUT/latency_cuda.png"
echo "in $SECONDS s; failed: ${failed[*]:-none}"
exit "${#failed[@]}"
