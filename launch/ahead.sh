#!/usr/bin/env bash
# What an update of a configuration costs on a GPU that is not here, by programs compiled for it; nothing is run:
#   bash launch/ahead.sh --config configs/swin_b.py --config.model.dtype=bfloat16 --batch 256 [--gpu a100|h100|h200]
# The first time it installs JAX's compiler for NVIDIA GPUs beside the environment. Linux only.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
requirements=requirements.txt
if [ -e .venv/installed-requirements-test.txt ]; then requirements=requirements-test.txt; fi # which has the other's
install_requirements "$requirements"
install_gpu_compiler
PYTHONPATH="$gpu_compiler${PYTHONPATH:+:$PYTHONPATH}" exec "$python" -m benchmarks --suite ahead "$@"
