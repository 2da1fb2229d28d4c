#!/usr/bin/env bash
# Estimates the cost of one update on a GPU that is not attached, from compiled programs. Runs nothing:
#   bash launch/ahead.sh --config configs/swin_b.py --config.model.dtype=bfloat16 --batch 256 [--gpu a100|h100|h200]
# SUITE=ablation takes that suite in place of `ahead`; it needs --gpu.
# The first time it installs JAX's compiler for NVIDIA GPUs beside the environment. Linux only.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
requirements=requirements.txt
if [ -e .venv/installed-requirements-test.txt ]; then requirements=requirements-test.txt; fi # it includes requirements.txt
install_requirements "$requirements"
install_gpu_compiler
PYTHONPATH="$gpu_compiler${PYTHONPATH:+:$PYTHONPATH}" exec "$python" -m benchmarks "${SUITE:-ahead}" "$@"
