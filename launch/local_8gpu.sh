#!/usr/bin/env bash
# Runs greenjax.main on all GPUs of this machine, in one process:
#   bash launch/local_8gpu.sh --config configs/swin_b.py --workdir runs/swin_b --config.data.path=/data/tfds
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
choose_environment
exec "$python" -m greenjax.main "$@"
