#!/usr/bin/env bash
# Sets up runtimes in a folder, from the registries: llama.cpp and its converter, transformers, mlx-lm. setup.sh FOLDER
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

# The libraries of the same version.
npm pack --silent @node-llama-cpp/linux-x64@3.22.1
mkdir -p lib-llama.cpp
tar xzf node-llama-cpp-linux-x64-3.22.1.tgz --directory lib-llama.cpp --strip-components 3 package/bins/linux-x64

# What matrix.py runs beside them: transformers 4, and mlx-lm on the CPU.
python3 -m venv venv-transformers4
venv-transformers4/bin/pip install --quiet torch transformers==4.57.6
python3 -m venv venv-mlx
venv-mlx/bin/pip install --quiet mlx-lm==0.32.2 "mlx[cpu]"
