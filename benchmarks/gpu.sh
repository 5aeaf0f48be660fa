#!/usr/bin/env bash
# Everything that needs a GPU: the tests marked gpu, then a short table of times and of what NVML says.
# With a file, `bash benchmarks/gpu.sh smnist.pt [MINUTES]`, the paper's sMNIST rows as well, which go on from that file
# for so many minutes (5); call it again until all steps are done. They need EDGELEAN_DATA.
set -uo pipefail
cd "$(dirname "$0")/.."
# One process: the GPU is timed, and the extra that spreads tests over several need not be there.
python -m pytest -o addopts="-q -ra" -m gpu -p no:cacheprovider
worst=$?
python benchmarks/gpu_times.py
code=$?
worst=$((code > worst ? code : worst))
if [ $# -gt 0 ]; then
  python benchmarks/smnist_gpu.py --state "$1" --minutes "${2:-5}"
  code=$?
  worst=$((code > worst ? code : worst))
fi
exit "$worst"
