#!/usr/bin/env bash
# Sets up llama.cpp's converter in a folder, from the Python registry: setup.sh FOLDER
set -euo pipefail
folder=${1:?name a folder}
mkdir -p "$folder"
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet torch transformers==5.24.0 safetensors sentencepiece protobuf numpy pyyaml tqdm requests
# Its sdist carries the converter of llama.cpp v0.5.0.
venv/bin/pip download --quiet --no-deps --no-binary llama-cpp-python llama-cpp-python==0.3.36
tar xzf llama_cpp_python-0.3.36.tar.gz --wildcards '*/vendor/llama.cpp/convert_hf_to_gguf.py' \
    '*/vendor/llama.cpp/conversion*' '*/vendor/llama.cpp/gguf-py*'
