#!/usr/bin/env bash
# Everything that needs a GPU: the tests marked gpu, then a short table of times and of what NVML says.
set -uo pipefail
cd "$(dirname "$0")/.."
python -m pytest -m gpu -q -p no:cacheprovider
tests=$?
python benchmarks/gpu_times.py
times=$?
exit $((tests > times ? tests : times))
