#!/usr/bin/env bash
# Collects the wheels that an offline machine with a GPU lacks (Linux on x86-64, Python 3.12 or --python VERSION):
#   python3 -m pip freeze >has.txt                                        # on that machine
#   bash launch/gpu_wheels.sh has.txt wheels                              # on a machine with a network
#   WHEELS=wheels PYTHON=python3 bash launch/gpu_figures.sh runs/figures  # on that machine
# spconv is not among them: a build of it is for one version of CUDA. The suites run without it and say so.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
choose_environment
exec "$python" launch/gpu_wheels.py "$@"
