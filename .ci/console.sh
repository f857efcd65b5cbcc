#!/usr/bin/env bash
# The console's environment: bash .ci/console.sh FOLDER   (make console)
#
# Installs mmif-trt[console] into a virtual environment, then builds PyCUDA, which comes as source only: it wants a
# CUDA toolkit (nvcc), the cuRAND header and library (from NVIDIA's wheel), and something to link as libcuda, which
# only the driver has. A stub stands in for that one; it names the real library, so the driver's is taken at run
# time. No driver is needed here. Without a toolkit everything but PyCUDA is installed, and the line says so.
set -euo pipefail
folder=$1 python=${PYTHON:-python3}
root=$(cd "$(dirname "$0")/.." && pwd)
[ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
pip() { "$folder/bin/python" -m pip install --quiet ${PIP_ARGS:-} "$@"; }
pip "$root[console]"
nvcc=$(command -v nvcc || command -v /usr/local/cuda/bin/nvcc || true)
if [ -z "$nvcc" ]; then
  echo "console: no CUDA toolkit (nvcc), so no PyCUDA: engines can be built, not run"
  exit 0
fi
# nvcc may be a wrapper: it says itself where it lies.
home=$("$nvcc" --dryrun -x cu -c /dev/null 2>&1 | sed -n 's/^#\$ _HERE_=//p')
home=$(dirname "$(realpath "$home")")
pip nvidia-curand
wheel=$("$folder/bin/python" -c 'import nvidia.cu13; print(list(nvidia.cu13.__path__)[0])')
stubs=$(mktemp -d)
trap 'rm -rf "$stubs"' EXIT
ln -s "$wheel"/lib/libcurand.so.* "$stubs/libcurand.so"
echo | gcc -shared -x c - -o "$stubs/libcuda.so" -Wl,-soname,libcuda.so.1
# --no-as-needed: the stub has no symbols, and a library without them would be left out of the module. The module
# looks for cuRAND where the wheel put it.
CUDA_ROOT=$home CPATH=$wheel/include:$home/include LIBRARY_PATH=$stubs:$home/lib64 PATH=$home/bin:$PATH \
  LDFLAGS="-Wl,--no-as-needed -Wl,-rpath,$wheel/lib" pip --no-cache-dir 'pycuda>=2025.1'
"$folder/bin/mmif-trt" info | grep '^runtime'
