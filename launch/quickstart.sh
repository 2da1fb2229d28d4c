#!/usr/bin/env bash
# From a fresh clone to a pre-trained encoder: digits on the CPU, a few minutes after the installation.
#   bash launch/quickstart.sh [--config.key=value ...]
# CONFIG=configs/digits_twins.py takes another backbone, WORKDIR=DIR another place for the results.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
install_requirements requirements.txt

config=${CONFIG:-configs/digits.py}
workdir=${WORKDIR:-runs/$(basename "$config" .py)}
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
# Large pages: a training step maps its temporaries anew, and clearing small pages was a tenth of its time.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
"$python" -m greenjax.main --config "$config" --workdir "$workdir" "$@"

cat <<END

Results in $workdir:
  loss.png              the loss curve
  metrics.jsonl         the same and more as numbers, one line a measurement
  reconstructions/      pictures: original, visible, reconstructed
  checkpoints/          the trained state; the same command again goes on from there
  tensorboard/          the same numbers and pictures for TensorBoard
END
