#!/usr/bin/env bash
# Makes the tables of the benchmarks on one GPU, the most important first, as many as fit:
#   bash launch/gpu_figures.sh runs/figures [TABLE ...]          without names: all tables
#   TOTAL=480 bash launch/gpu_figures.sh runs/figures            in eight minutes
# Writes TABLE.txt, line by line as they come, TABLE.json at a table's end, and TABLE.log (messages of the libraries).
# Variables with defaults: TOTAL (seconds), BATCH, SPARSE_BATCH, REPEATS, DTYPE, the configurations CONFIG, LARGER and
# TWINS, and WHEELS: a folder of wheels to use beside what the machine has (launch/gpu_wheels.sh).
set -euo pipefail
cd "$(dirname "$0")/.."

folder=${1:?expected a folder for the figures}
shift
config=${CONFIG:-configs/swin_b.py} larger=${LARGER:-configs/swin_l.py} twins=${TWINS:-configs/twins_l.py}
batch=${BATCH:-256} sparse_batch=${SPARSE_BATCH:-64} repeats=${REPEATS:-10} total=${TOTAL:-2400}
source launch/environment.sh
choose_environment

tables=(tests roofline roofline_pallas peers roofline_larger roofline_twins sparse whole)
tables+=(roofline_larger_pallas roofline_twins_pallas roofline_dense attention)
tables+=(step step_pallas step_larger step_larger_pallas)
# Prints the most seconds that a table may take, and what Python runs.
arguments_of() {
    local given="--batch $batch --repeats $repeats --config.model.dtype=${DTYPE:-bfloat16}" of=$config
    if [[ $1 == *_pallas ]]; then given+=" --config.model.attention=pallas"; fi
    if [[ $1 == *_larger* ]]; then of=$larger; fi
    if [[ $1 == *_twins* ]]; then of=$twins; fi
    case $1 in
    # Warnings of plug-ins that the machine has are no failures.
    tests) echo "100 pytest -m gpu -W default -q tests/test_fused_attention.py tests/test_benchmark_attention.py" ;;
    roofline_dense) echo "200 benchmarks roofline --config $of $given --config.method=simmim" ;;
    roofline | roofline_*) echo "200 benchmarks roofline --config $of $given" ;;
    peers) echo "100 benchmarks peers --config $of $given" ;;
    sparse) echo "150 benchmarks sparse --batch $sparse_batch --repeats $repeats" ;;
    whole) echo "250 benchmarks whole --config $of --batch $batch --config.model.dtype=${DTYPE:-bfloat16} --data records" ;;
    attention) echo "200 benchmarks attention --config $of $given" ;;
    step | step_*) echo "700 benchmarks step --config $of $given" ;;
    *)
        echo "table $1: expected one of ${tables[*]}" >&2
        return 1
        ;;
    esac
}

chosen=("$@")
if [ $# = 0 ]; then chosen=("${tables[@]}"); fi
for table in "${chosen[@]}"; do arguments_of "$table" >/dev/null; done

mkdir -p "$folder"
shared=$(mktemp -d)
trap 'rm -rf "$shared"' EXIT
if [ -n "${WHEELS:-}" ]; then
    "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile \
        --target "$shared/packages" "$WHEELS"/*.whl
    export PYTHONPATH="$shared/packages${PYTHONPATH:+:$PYTHONPATH}"
fi
# JAX and PyTorch take turns on one GPU, so neither may take all of its memory at the start.
export XLA_PYTHON_CLIENT_PREALLOCATE=false PYTHONUNBUFFERED=1
# Every table compiles its programs anew. They share which kernel XLA found to be the fastest for each product.
mkdir "$shared/autotuned"
export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_per_fusion_autotune_cache_dir=$shared/autotuned"
export JAX_COMPILATION_CACHE_DIR=$shared/compiled TORCHINDUCTOR_CACHE_DIR=$shared/torch

summary="" failed=0
for table in "${chosen[@]}"; do
    read -r -a arguments <<<"$(arguments_of "$table")"
    limit=$((total - SECONDS < arguments[0] ? total - SECONDS : arguments[0]))
    began=$SECONDS result=done
    echo "== $table"
    if [[ ${arguments[1]} == benchmarks ]]; then arguments+=(--json "$folder/$table.json"); fi
    if [ "$limit" -le 0 ]; then
        result="LEFT OUT: the $total s are over" failed=1
    else
        timeout --kill-after=5 "$limit" "$python" -m "${arguments[@]:1}" 2>"$folder/$table.log" | tee "$folder/$table.txt" || {
            code=$? failed=1
            result="FAILED (exit $code)"
            if [ $code = 124 ] || [ $code = 137 ]; then result="STOPPED after $limit s"; fi
            tail -n 3 "$folder/$table.log" >&2
        }
    fi
    summary+=$(printf '%-22s %4s s  %s' "$table" "$((SECONDS - began))" "$result")$'\n'
done
printf '\n%s' "$summary" | tee "$folder/summary.txt"
exit $failed
