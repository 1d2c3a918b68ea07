#!/usr/bin/env bash
# Proves and measures the GPU kernels in one command, within eight minutes: builds in place, runs the parity tests with
# every backend, compute-sanitizer on one small case a kernel, then measures; the last lines are a short table, and
# gpu_results/gpu.json (or $OUT/gpu.json) has everything. Needs a GPU, nvcc and a Python whose torch sees the GPU
# ($PYTHON, else python3, else .venv/bin/python); no network. Arguments go to `python -m benchmarks.gpu`.
set -euo pipefail
cd "$(dirname "$0")/.."

sees_a_gpu() {
  "$1" -c 'import sys, torch; print("torch", torch.__version__); sys.exit(not torch.cuda.is_available())' 2>&1
}

tried=""
for python in ${PYTHON:-python3 .venv/bin/python}; do
  if found=$(sees_a_gpu "$python"); then
    export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
    exec "$python" -m benchmarks.gpu "$@"
  fi
  tried+="  $python: ${found##*$'\n'}"$'\n'
done
printf 'gpu.sh: no GPU can be used from here; it takes a Python with a torch that sees one:\n%s' "$tried" >&2
exit 2
