#!/usr/bin/env bash
# Proves and measures the GPU kernels in one command, within eight minutes, what matters most first (docs/gpu.md has the
# stages). The last lines are a short table; gpu_results/gpu.jsonl (or $OUT/gpu.jsonl) has everything, each line on the
# disk as soon as it is known. Needs a GPU, a Python whose torch sees it ($PYTHON, else python3, else .venv/bin/python),
# and the compiled library carried along or nvcc; no network. Arguments go to `python -m benchmarks.gpu`.
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
