#!/usr/bin/env bash
# What an update of a configuration costs on a GPU that is not here, by programs compiled for it; nothing is run:
#   bash launch/ahead.sh --config configs/swin_b.py --config.model.dtype=bfloat16 --batch 256 [--gpu a100|h100|h200]
# The first time it installs JAX's compiler for NVIDIA GPUs beside the environment. Linux only.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
python=.venv/bin/python
if ! "$python" -c 'import jax' 2>/dev/null; then install_requirements requirements.txt; fi
install_gpu_compiler
PYTHONPATH="$gpu_compiler${PYTHONPATH:+:$PYTHONPATH}" exec "$python" -m greenjax.benchmark --suite ahead "$@"
