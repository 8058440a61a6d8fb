#!/usr/bin/env bash
# Checks the style and the types, then runs the tests. Arguments go to pytest: bash launch/test.sh -m unit
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
environment test
python=$VIRTUAL_ENV/bin/python
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy distill_jax
# Files side by side, in conftest.py's order: a file's tests share what they set up. Last, so that its summary is the last
# line.
exec "$python" -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder "$@"
