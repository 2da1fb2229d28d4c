# The other scripts source this file. Its functions set $python, the Python that a script runs:
#   install_requirements requirements-base.txt  makes .venv once, and installs the file and greenjax when it has changed
#   choose_environment                          takes an environment that is there, for a run on GPUs; installs nothing
#   install_gpu_compiler

# Prints the first Python that all requirements have wheels for; PYTHON=... names another.
find_python() {
    local name found names=(python3 python3.13 python3.12 python3.11 python)
    if [ -n "${PYTHON:-}" ]; then names=("$PYTHON"); fi
    for name in "${names[@]}"; do
        if "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    found=$("${names[0]}" --version 2>/dev/null)
    echo "Python 3.11, 3.12 or 3.13 is needed; found: ${found:-none}. Name another with PYTHON=/path/to/python." >&2
    return 1
}

install_requirements() {
    local requirements=$1 base wanted stamp
    python=.venv/bin/python
    stamp=.venv/installed-$requirements
    if ! "$python" -c '' 2>/dev/null; then
        base=$(find_python) || return 1
        echo "Making .venv with $("$base" --version)"
        "$base" -m venv --clear .venv || {
            rm -rf .venv # it may have a Python without pip
            echo "$base cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2
            return 1
        }
    elif [ -n "${PYTHON:-}" ] && [ "$("$PYTHON" --version)" != "$("$python" --version)" ]; then
        echo ".venv has $("$python" --version), and PYTHON=$PYTHON is $("$PYTHON" --version): expected the same version; remove .venv, or leave PYTHON out" >&2
        return 1
    elif ! "$python" -m pip --version >/dev/null 2>&1 && ! "$python" -m ensurepip >/dev/null 2>&1; then
        echo ".venv has no pip, and its Python cannot install it: expected one made by python3 -m venv, or uv venv --seed" >&2
        return 1
    fi
    wanted=$({ "$python" --version; cat requirements*.txt pyproject.toml; } | cksum)
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    echo "Installing $requirements into .venv (once; several minutes)"
    "$python" -m pip install --quiet --disable-pip-version-check -r "$requirements" --editable . || {
        echo "pip could not install $requirements: its message is above" >&2
        return 1
    }
    echo "$wanted" >"$stamp" # written last, so that a broken installation is tried again
}

# Takes the Python that PYTHON names, or that of the active virtual environment, of .venv-cuda, of conda's active
# environment (base is often active by accident) or of .venv: the first that is there. JAX ends with an error where it finds a GPU that this environment has no JAX for.
choose_environment() {
    local folder
    export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda,cpu}
    if [ -n "${PYTHON:-}" ]; then
        python=$PYTHON
        return
    fi
    for folder in ${VIRTUAL_ENV:+"$VIRTUAL_ENV"} .venv-cuda ${CONDA_PREFIX:+"$CONDA_PREFIX"} .venv; do
        python=$folder/bin/python
        if [ -x "$python" ]; then return; fi
    done
    echo "no environment: expected an active one, .venv-cuda or .venv (docs/install.md), or PYTHON=/path/to/python" >&2
    return 1
}

# Installs JAX's compiler for NVIDIA GPUs, without CUDA's libraries, into a folder of its own. With this folder on
# Python's path JAX compiles for a GPU that is not there. Inside .venv it would make every run without a GPU complain.
install_gpu_compiler() {
    local version wanted
    gpu_compiler=.venv/gpu_compiler
    version=$("$python" -c 'import jaxlib; print(jaxlib.__version__)')
    wanted="$("$python" --version) jaxlib $version"
    if [ "$(cat "$gpu_compiler/installed" 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    echo "Installing JAX's compiler for NVIDIA GPUs into $gpu_compiler (once; 230 MB to download)"
    rm -rf "$gpu_compiler"
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$gpu_compiler" \
        "jax-cuda12-pjrt==$version" "jax-cuda12-plugin==$version" "nvidia-cuda-nvcc-cu12>=12.8" || {
        echo "pip could not install JAX's compiler for NVIDIA GPUs: its message is above" >&2
        return 1
    }
    echo "$wanted" >"$gpu_compiler/installed"
}
