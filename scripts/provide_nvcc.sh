#!/usr/bin/env bash
# Puts the CUDA compiler of requirements/nvcc.txt into a folder and prints that of its nvcc, for the PATH.
# Usage: provide_nvcc.sh PYTHON FOLDER
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$1
folder=$2
toolkit=$folder/nvidia/cu13

if [[ ! -e $folder/.complete || requirements/nvcc.txt -nt $folder/.complete ]]; then
    rm -rf "$folder"
    "$python" -m pip install -qq --no-deps --target "$folder" --requirement requirements/nvcc.txt
    ln -s lib "$toolkit/lib64" # where nvcc looks for the runtime that it links
    touch "$folder/.complete"
fi
"$toolkit/bin/nvcc" --version >/dev/null
echo "$toolkit/bin"
