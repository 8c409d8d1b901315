#!/bin/sh
# Makes two Python environments in a folder: FOLDER/peer with mergekit and the newest
# transformers that it accepts, FOLDER/tf457 with transformers 4.57 on the same torch.
set -eu
[ $# -eq 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
python="${PYTHON:-python3}"
mkdir -p "$1"
folder=$(cd "$1" && pwd)

"$python" -m venv "$folder/peer"
"$folder/peer/bin/pip" install --quiet mergekit==0.1.5

"$python" -m venv "$folder/tf457"
"$folder/tf457/bin/pip" install --quiet 'transformers==4.57.*'
# torch is large: borrow the first environment's. What is installed here goes first.
packages() { "$1/bin/python" -c 'import site; print(site.getsitepackages()[0])'; }
packages "$folder/peer" >"$(packages "$folder/tf457")/torch-of-peer.pth"

for name in peer tf457; do
    HF_HUB_OFFLINE=1 "$folder/$name/bin/python" -c \
        'import torch, transformers; print("transformers", transformers.__version__, "torch", torch.__version__)'
done
