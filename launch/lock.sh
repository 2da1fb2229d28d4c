#!/usr/bin/env bash
# Writes requirements-lock.txt: one version of every package, for Python 3.11 to 3.13. Needs uv (pip install uv).
#   bash launch/lock.sh              adds what pyproject.toml and requirements-base.txt ask for, keeps the other versions
#   bash launch/lock.sh --upgrade    takes the newest versions
set -euo pipefail
cd "$(dirname "$0")/.."
# Not the extras torch and spconv: requirements*.txt pin their builds. JAX is the latest that was tested (docs/install.md).
uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --no-emit-index-url --no-annotate \
    --extra cuda12 --extra cuda13 --extra tfds --extra huggingface --extra s3 --extra http --extra parquet --extra tiff \
    --extra wandb --extra mlflow --extra onnx --extra mnist5k --constraints <(echo "jax<0.12") \
    --custom-compile-command "bash launch/lock.sh" --output-file requirements-lock.txt "$@"
