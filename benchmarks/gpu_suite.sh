#!/usr/bin/env bash
# Measures everything that a CUDA machine with torch >= 2.11 can, in two calls of under 10 minutes each:
#
#     OUT=folder bash benchmarks/gpu_suite.sh first     correctness, device times, ncu, tests, sanitizers
#     OUT=folder bash benchmarks/gpu_suite.sh second    network, latency, training, diffusion, compiled rivals
#
# Each builds the extension (the second reuses the build if the machine is still there) and stops at once where
# there is no card or the kernels do not run on it. After every step $OUT holds three complete files of the part:
# PART.tar.gz (logs and rows), PART.json (each step's limit, seconds, exit code; 124 or 137: it ran out of time,
# and its JSON holds the rows so far; null: no time was left to start it) and PART.txt (the tables, also printed
# last). No network is needed. Steps are independent; failed ones are listed at the end. The limits of a part add
# up to less than BUDGET seconds, and no step outlasts the time left. Exit status: the number of failed steps.
#
# ONLY="network latency" runs these steps of the part and no others. MMIF_COMMIT names the commit where there is no
# .git. Any setuptools from 65 on builds.
set -uo pipefail
PYTHON=${PYTHON:-python3}
case $PYTHON in */*) PYTHON=$(cd "$(dirname "$PYTHON")" && pwd)/$(basename "$PYTHON") ;; esac
cd "$(dirname "$0")/.."
: "${OUT:?name a folder for the results in OUT}"
part=${1:-}
case $part in first | second) ;; *)
  echo "usage: OUT=folder bash benchmarks/gpu_suite.sh first|second" >&2
  exit 64
  ;;
esac
DEVICE=${DEVICE:-cuda} BUDGET=${BUDGET:-560}
LAST_WORDS=2 # seconds between asking a step to stop and killing it
LARGEST=12000000 # bytes of a file that goes into the archive, which must stay below 16 MiB
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 MMIF_CUDA=1
# A test that cannot run here counts as a failure, except those that need a second card.
export MMIF_MAY_SKIP='fewer than two CUDA devices'
# The toolkit's tools, if they are not on PATH.
PATH="$PATH:/usr/local/cuda/bin"
# Compile for this card only: all architectures would take minutes.
TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$(timeout 10 nvidia-smi --query-gpu=compute_cap --format=csv,noheader \
  2>/dev/null | head -n 1)}
export TORCH_CUDA_ARCH_LIST
failed=() steps=

index() { # index true|false: whether the part has ended
  {
    printf '{"what": "gpu_suite.sh", "part": "%s", "card": "%s", ' "$part" "$TORCH_CUDA_ARCH_LIST"
    printf '"device": "%s", "budget_s": %d, "seconds": %d, ' "$DEVICE" "$BUDGET" "$SECONDS"
    printf '"finished": %s,\n "steps": [\n  %s\n]}\n' "$1" "$steps"
  } >"$work/index.json"
}

pack() { # copies the results so far to $OUT: a part that is cut off loses only its last step
  index "$1"
  timeout 10 "$PYTHON" benchmarks/suite_summary.py "$work" >"$work/summary.txt" 2>&1
  # One file that is too large to come back would lose the others as well.
  find "$work" -type f -size -"${LARGEST}"c -printf '%P\n' | tar -czf "$OUT/.$part.tar.gz" -C "$work" -T -
  mv "$OUT/.$part.tar.gz" "$OUT/$part.tar.gz"
  cp "$work/index.json" "$OUT/$part.json"
  cp "$work/summary.txt" "$OUT/$part.txt"
}

step() { # step NAME SECONDS COMMAND...
  local name=$1 limit=$2 begin=$SECONDS left=$((BUDGET - SECONDS - LAST_WORDS - 1)) code=null json=null
  shift 2
  if [[ -n ${ONLY:-} && " preflight build kernels $ONLY " != *" $name "* ]]; then return; fi
  echo "== $name: $*"
  if ((left < limit)); then limit=$left; fi
  if ((limit > 0)); then
    timeout -k "$LAST_WORDS" "$limit" "$@" >"$work/$name.log" 2>&1 </dev/null
    code=$?
    tail -n 4 "$work/$name.log"
  fi
  if [ "$code" != 0 ]; then failed+=("$name"); fi
  if [ -s "$work/$name.json" ]; then json="\"$name.json\""; fi
  steps+="${steps:+,$'\n  '}{\"name\": \"$name\", \"exit\": $code, \"seconds\": $((SECONDS - begin)), "
  steps+="\"limit_s\": $limit, \"json\": $json}"
  if [ "$code" != null ]; then pack false; fi
  echo "== $name took $((SECONDS - begin)) s, exit $code"
  [ "$code" = 0 ]
}

bench() { # bench NAME SECONDS SCRIPT ARGUMENTS...: its JSON goes to NAME.json
  local name=$1 limit=$2 script=$3
  shift 3
  step "$name" "$limit" "$PYTHON" "benchmarks/$script" "$@" --json "$work/$name.json"
}

finish() {
  pack true
  cat "$work/summary.txt"
  echo "in $SECONDS s; failed: ${failed[*]:-none}"
  exit "${#failed[@]}"
}

# In a folder without pyproject.toml: setuptools before 77 refuse ours, and the extension needs only these files.
build() {
  mkdir -p build/card
  ln -sfn "$PWD/csrc" build/card/csrc
  ln -sfn "$PWD/setup.py" build/card/setup.py
  step build 60 env -C build/card "$PYTHON" setup.py build_ext --build-lib "$PWD"
}

step preflight 15 "$PYTHON" benchmarks/preflight.py --device "$DEVICE" || finish
build || finish
step kernels 10 "$PYTHON" benchmarks/preflight.py --device "$DEVICE" --built || finish

if [ "$part" = first ]; then
  plain="kernel eager sdpa"
  bench correct 40 check_kernels.py --device "$DEVICE"
  bench attention 45 bench_ops.py --device "$DEVICE" --op attention --scale 4 1 --rival $plain \
    --dtype bfloat16 float16 float32
  bench attention_batch 20 bench_ops.py --device "$DEVICE" --op attention --dtype bfloat16 --scale 2 --batch 64 \
    --rival $plain
  bench loss 20 bench_ops.py --device "$DEVICE" --op loss --scale 4 1 --rival kernel eager
  metrics=dram__bytes_read.sum,dram__bytes_write.sum,smsp__inst_executed.sum
  sections="--section SpeedOfLight --section Occupancy --section LaunchStats --section MemoryWorkloadAnalysis"
  step ncu 55 ncu --profile-from-start off --clock-control none -k 'regex:window_attention|fusion_loss' \
    $sections --metrics "$metrics" -f -o "$work/kernels" "$PYTHON" benchmarks/check_kernels.py --device "$DEVICE" --once
  step ncu_rows 15 ncu --import "$work/kernels.ncu-rep" --csv --page raw
  step tests 60 "$PYTHON" -m pytest -q -k "cuda" tests/ops/test_window_attention.py tests/ops/test_fusion_loss.py \
    tests/ops/test_fusion_loss_op.py tests/ops/test_cuda_device.py tests/train/test_captured.py
  # Without torch's memory pool, in which an access beyond a tensor may hit another tensor.
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  small="$PYTHON benchmarks/check_kernels.py --device $DEVICE --small"
  step memcheck 40 compute-sanitizer --tool memcheck --error-exitcode 9 $small
  step racecheck 35 compute-sanitizer --tool racecheck --error-exitcode 9 $small
  step synccheck 25 compute-sanitizer --tool synccheck --error-exitcode 9 $small
else
  bench network 60 bench_network.py --device "$DEVICE" --size 256 --mode eager cuda-graph
  bench latency 40 bench_latency.py --runtime torch,cuda-graph --precision fp32 --size 256 --batch 1 8 --cold 1 \
    --repeats 60 --trace "$work/latency.trace.json" --plot "$work/latency.png"
  bench step 25 bench_ops.py --device "$DEVICE" --op step --batch 6
  bench training 60 bench_training.py --steps 300
  bench diffusion 45 bench_diffusion.py --device "$DEVICE"
  bench network_512 30 bench_network.py --device "$DEVICE" --size 512 --mode eager cuda-graph --batch 1 32
  # Compilers last: they take the longest, and fail in their own ways.
  bench compiled 90 bench_ops.py --device "$DEVICE" --op attention --scale 4 --shift 0 --dtype bfloat16 \
    --rival kernel compile flex
  bench compiled_loss 40 bench_ops.py --device "$DEVICE" --op loss --scale 4 1 --rival kernel compile
  bench network_compile 45 bench_network.py --device "$DEVICE" --size 256 --mode compile --dtype float16 --batch 1 64
fi
finish
