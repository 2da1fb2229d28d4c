#!/usr/bin/env bash
# Makes the tables of the benchmarks on one GPU, as many as fit into 40 minutes:
#   bash launch/gpu_figures.sh runs/figures [TABLE ...]          without names: all tables, the most important first
# Writes TABLE.txt, TABLE.json and TABLE.log (messages of the libraries) into the folder. Variables with defaults:
# CONFIG, LARGER (the second configuration), BATCH, SPARSE_BATCH, REPEATS, DTYPE, TOTAL (seconds).
set -euo pipefail
cd "$(dirname "$0")/.."

folder=${1:?expected a folder for the figures}
shift
config=${CONFIG:-configs/swin_b.py} larger=${LARGER:-configs/swin_l.py}
batch=${BATCH:-256} sparse_batch=${SPARSE_BATCH:-64} repeats=${REPEATS:-10} total=${TOTAL:-2400}
python=${PYTHON:-.venv/bin/python}
mkdir -p "$folder"
# JAX and PyTorch take turns on one GPU, so neither may take all of its memory at the start.
export XLA_PYTHON_CLIENT_PREALLOCATE=false PYTHONUNBUFFERED=1
# Tables share compiled programs. The folder is new, so that compile times are true.
compiled=$(mktemp -d)
trap 'rm -rf "$compiled"' EXIT
export JAX_COMPILATION_CACHE_DIR=$compiled TORCHINDUCTOR_CACHE_DIR=$compiled/torch

# The most important question first: which attention is fastest. *_pallas: with the kernel of our own.
tables=(attention step step_pallas roofline roofline_pallas step_larger step_larger_pallas)
tables+=(sparse roofline_dense roofline_larger)
arguments_of() {
    local given="--batch $batch --config.model.dtype=${DTYPE:-bfloat16}"
    if [[ $1 == *_pallas ]]; then given+=" --config.model.attention=pallas"; fi
    case $1 in
    step | step_pallas) echo "600 step --config $config $given" ;;
    roofline | roofline_pallas) echo "240 roofline --config $config $given" ;;
    attention) echo "200 attention --config $config $given" ;;
    step_larger | step_larger_pallas) echo "700 step --config $larger $given" ;;
    sparse) echo "200 sparse --batch $sparse_batch" ;;
    roofline_dense) echo "240 roofline --config $config $given --config.method=simmim" ;;
    roofline_larger) echo "240 roofline --config $larger $given" ;;
    *)
        echo "table $1: expected one of ${tables[*]}" >&2
        return 1
        ;;
    esac
}

chosen=("$@")
if [ $# = 0 ]; then chosen=("${tables[@]}"); fi
for table in "${chosen[@]}"; do arguments_of "$table" >/dev/null; done

summary="" failed=0
for table in "${chosen[@]}"; do
    read -r -a arguments <<<"$(arguments_of "$table")"
    limit=$((total - SECONDS < arguments[0] ? total - SECONDS : arguments[0]))
    began=$SECONDS result=done
    echo "== $table"
    if [ "$limit" -le 0 ]; then
        result="LEFT OUT: the $total s are over" failed=1
    else
        timeout --kill-after=10 "$limit" "$python" -m benchmarks "${arguments[@]:1}" --repeats "$repeats" \
            --json "$folder/$table.json" 2>"$folder/$table.log" | tee "$folder/$table.txt" || {
            code=$? failed=1
            result="FAILED (exit $code)"
            if [ $code = 124 ] || [ $code = 137 ]; then result="STOPPED after $limit s"; fi
            tail -n 3 "$folder/$table.log" >&2
        }
    fi
    summary+=$(printf '%-16s %4s s  %s' "$table" "$((SECONDS - began))" "$result")$'\n'
done
printf '\n%s' "$summary"
exit $failed
