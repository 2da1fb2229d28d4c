#!/usr/bin/env bash
# All GPUs of this machine: one process drives them. Arguments go to greenjax.main:
#   bash launch/local_8gpu.sh --config configs/swin_b.py --workdir runs/swin_b --config.data.path=/data/tfds
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-.venv/bin/python}" -m greenjax.main "$@"
