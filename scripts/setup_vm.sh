#!/bin/sh
# Makes .venv on a new virtual machine. See --help.
set -eu

usage() {
    cat <<'END'
usage: scripts/setup_vm.sh gpu | tpu | render

Makes .venv in the root of the repository: for training on NVIDIA GPUs, for training on TPUs, or for rendering with
Surge XT (Surge XT and its host pedalboard are GPL-3). Root is needed only for system libraries that Surge XT lacks;
they are installed by sudo apt-get, where that exists. An existing .venv or plugin is not replaced.
END
}

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/common.sh
. "$here/common.sh"

# Machine images often have an older Python, or one without venv. In that case uv fetches a Python.
make_venv() {
    for python in python3.12 python3.13 python3.11 python3; do
        if has "$python" && "$python" -c 'import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
            >/dev/null 2>&1; then
            "$python" -m venv .venv
            return
        fi
    done
    PATH=$PATH:$HOME/.local/bin
    has uv || python3 -m pip install --quiet --user uv ||
        fail 'no Python of 3.11 to 3.13 with venv, and pip cannot fetch uv: install python3-venv, or uv'
    uv venv --quiet --seed --python 3.12 .venv
}

install_surge() {
    sh scripts/install_surge_xt.sh && return
    # Libraries are missing: install those that Surge XT's own package depends on.
    if has apt-get && has sudo; then
        sudo apt-get update -qq
        sudo apt-get install -qq -y libcairo2 libfontconfig1 libfreetype6 libx11-6 libxcb1 libxcb-cursor0 libxcb-util1 \
            libxcb-xkb1 libxkbcommon0 libxkbcommon-x11-0 >/dev/null
    fi
    sh scripts/install_surge_xt.sh
}

case ${1-} in
-h | --help)
    usage
    exit 0
    ;;
gpu | tpu | render) ;;
*) fail "gpu, tpu or render, not '${1-}': see --help" ;;
esac
cd "$here/.."

if [ ! -x .venv/bin/pip ]; then
    rm -rf .venv
    make_venv
fi
if [ "$1" = render ]; then
    .venv/bin/python -m pip install --quiet --editable '.[gcs,render,s3]'
    install_surge
else
    .venv/bin/python -m pip install --quiet --requirement "requirements-$1.txt"
    .venv/bin/python -m pip install --quiet --editable '.[gcs,s3,wandb]'
fi
printf 'ready: %s\n' "$(.venv/bin/python --version)"
