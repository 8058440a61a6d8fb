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
exec "$python" -m pytest "$@" # last, so that its summary is the last line
