#!/usr/bin/env bash
# Runs the tests of what needs packages beyond requirements-test.txt. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
install_requirements requirements-extras.txt
"$python" -m pytest -m extra -q "$@"
