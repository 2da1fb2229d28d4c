#!/usr/bin/env bash
# Installs greenjax, pre-trains a small encoder on scenes of digits, and trains a detector from it and one from scratch.
#   bash launch/quickstart_detection.sh [--config.key=value ...]      changes settings of both detectors
# WORKDIR=DIR writes the results elsewhere.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
install_requirements requirements-base.txt

workdir=${WORKDIR:-runs/detect_digits}
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1} # large pages: see launch/quickstart.sh
"$python" -m greenjax.main --config configs/scenes.py --workdir "${workdir}_encoder"
"$python" -m greenjax.main --config configs/detect_digits.py --config.init="${workdir}_encoder" --workdir "$workdir" "$@"
"$python" -m greenjax.main --config configs/detect_digits.py --workdir "${workdir}_scratch" "$@"

cat <<END

Average precision on held-out scenes, from the pre-trained encoder ($workdir) and from scratch (${workdir}_scratch):
END
"$python" - "$workdir" "${workdir}_scratch" <<'END'
import json
import sys

names = ("box_ap", "box_ap50", "mask_ap", "mask_ap50")
print(" " * 40, *(f"{name:>10}" for name in names))
for workdir in sys.argv[1:]:
    (found,) = json.load(open(f"{workdir}/results.json")).values()
    print(f"{workdir:40}", *(f"{found[name]:10.3f}" for name in names))
END
