#!/usr/bin/env bash
# Makes the Python environment of the PyTorch peers: bench/peers/.venv with torch and torchvision (CPU), numpy and
# safetensors.
#
#   bench/peers/setup.sh           make it, or leave it alone when it works
#   TORCH=2.15.0 bench/peers/setup.sh    a certain version
#
# An environment that exists already is used by `bench/peers/run.py --python PYTHON`, or by setting
# PHALANX_PEERS_PYTHON; then this script is not needed.
set -euo pipefail
cd "$(dirname "$0")"

python=.venv/bin/python
if [ ! -x "$python" ]; then
    if ! python3 -m venv .venv; then
        rm -rf .venv
        echo "setup.sh: python3 cannot make environments; on Debian: apt-get install python3-venv" >&2
        exit 1
    fi
fi
if [ -n "${TORCH:-}" ] || ! "$python" -c 'import torch, torchvision, numpy, safetensors' 2>/dev/null; then
    "$python" -m pip install --quiet --upgrade "torch${TORCH:+==$TORCH}" torchvision numpy safetensors
fi
"$python" -c 'import torch; print("torch", torch.__version__)'
