#!/usr/bin/env bash
# Builds the documentation site into site/. To read it while you write: bash launch/docs.sh serve
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
install_requirements requirements-extras.txt
"$python" -m mkdocs "${1:-build}" --strict "${@:2}"
