#!/usr/bin/env bash
# Names what a Debian 12 machine still lacks, with the apt line that mends it. Usage: check_prerequisites.sh PYTHON
set -euo pipefail
python=${1:-python3}
missing=()

for tool in git make g++; do
    command -v "$tool" >/dev/null || missing+=("$tool")
done

if ! command -v "$python" >/dev/null; then
    missing+=(python3 python3-dev python3-venv)
else
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    if [[ $version != 3.11 ]]; then
        echo "error: $python is Python $version; the pinned packages are for Python 3.11." >&2
        echo "remedy: make PYTHON=/path/to/python3.11 ..., on Debian 12: make PYTHON=/usr/bin/python3 ..." >&2
        exit 1
    fi
    "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' || missing+=(python3-dev)
    "$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
fi

if ((${#missing[@]})); then
    echo "error: missing: ${missing[*]}" >&2
    echo "remedy: apt-get install --yes ${missing[*]}" >&2
    exit 1
fi
