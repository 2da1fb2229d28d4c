#!/usr/bin/env bash
# Installs greenjax, pre-trains a small encoder on digits on the CPU, and measures its worth with labels.
#   bash launch/quickstart.sh [--config.key=value ...]        changes settings of the pre-training
# CONFIG=configs/digits_twins.py takes another backbone, WORKDIR=DIR writes the results elsewhere.
# CONFIG=configs/detect_digits.py trains detectors: launch/quickstart_detection.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
if [[ ${CONFIG:-} == *detect_digits.py ]]; then exec bash launch/quickstart_detection.sh "$@"; fi
source launch/environment.sh
install_requirements requirements-base.txt

config=${CONFIG:-configs/digits.py}
workdir=${WORKDIR:-runs/$(basename "$config" .py)}
labels=$(dirname "$config")/finetune_$(basename "$config")
scratch=""
if [ "$(basename "$config")" = digits.py ]; then scratch=--scratch-lr=1.6e-2; fi # docs/digits.md, "The rates"
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
# Large pages: each step maps fresh memory for its temporaries, and clearing small pages took a tenth of its time.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
"$python" -m greenjax.main --config "$config" --workdir "$workdir" "$@"

if [ -f "$labels" ]; then
    "$python" -m benchmarks study --config "$labels" --config.init="$workdir" --workdir "${workdir}_labels" $scratch
    study="
Results in ${workdir}_labels:
  table.txt             accuracies with labels: linear probe, k-NN, fine-tuning
  results.json          the same, a seed an entry
"
else
    study="
No study with labels: there is no $labels to fine-tune by.
"
fi

cat <<END

Results in $workdir:
  loss.png              the loss curve
  metrics.jsonl         the same and more as numbers, one line a measurement
  reconstructions/      pictures: original, visible, reconstructed
  checkpoints/          the trained state; the same command again goes on from there
  tensorboard/          the same numbers and pictures for TensorBoard
$study
END
