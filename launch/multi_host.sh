#!/usr/bin/env bash
# Runs greenjax.main on several machines without a scheduler: the same command on each, with its own number. The workdir
# is on a shared disk.
#   export JAX_COORDINATOR_ADDRESS=10.0.0.1:12345    machine 0, any free port
#   export JAX_NUM_PROCESSES=2
#   export JAX_PROCESS_ID=0                          0 on machine 0, 1 on the next, ...
#   bash launch/multi_host.sh --config configs/swin_b.py --config.mask.groups=16 --workdir /shared/runs/swin_b --config.data.path=/data/tfds
set -euo pipefail
cd "$(dirname "$0")/.."
: "${JAX_COORDINATOR_ADDRESS:?HOST:PORT of machine 0}" "${JAX_NUM_PROCESSES:?}" "${JAX_PROCESS_ID:?}"
source launch/environment.sh
choose_environment
exec "$python" -m greenjax.main "$@"
