#!/usr/bin/env bash
# Runs linters, type checker and the whole test suite. Arguments go to pytest: bash launch/test.sh -k config
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
install_requirements requirements-test.txt
if [ "$(uname -s)" = Linux ]; then install_gpu_compiler; fi

summary="" failed=0
check() {
    local name=$1 result=passed
    shift
    echo "== $name"
    "$@" || { result="FAILED (exit $?)"; failed=1; }
    summary+=$(printf '%-14s %s' "$name" "$result")$'\n'
}

check "ruff check" "$python" -m ruff check .
check "ruff format" "$python" -m ruff format --check .
check basedpyright "$python" -m basedpyright --pythonpath "$python"
check pytest "$python" -m pytest -n 2 --dist worksteal -q --durations 20 "$@"

printf '\n%s' "$summary"
exit $failed
