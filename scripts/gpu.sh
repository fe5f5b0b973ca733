#!/usr/bin/env bash
# All that needs a GPU, in one go and without a network: scripts/gpu.sh OUT [--cpu]; gpu/__main__.py says more.
# The Python is PYTHON, or else that of .venv/, or python3.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
python=python3
[ -x "$root/.venv/bin/python" ] && python=$root/.venv/bin/python
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} exec "${PYTHON:-$python}" "$root/scripts/gpu" "$@"
