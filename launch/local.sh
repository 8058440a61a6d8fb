#!/usr/bin/env bash
# Runs the arithmetic experiment on this machine. Any flags of the program may be added:
#   bash launch/local.sh --workdir=/tmp/x --config=configs/arithmetic.py:cpu,full --config.seed=1
# Relative paths are from the repository. The last line printed says where the report is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
environment
config=(--config=configs/arithmetic.py:cpu)
for argument in "$@"; do # a second --config next to a --config.x is an error in ml_collections, so ours must go
  case $argument in --config | --config=* | -config | -config=*) config=() ;; esac
done
exec "$VIRTUAL_ENV/bin/distill-jax" run ${config[@]+"${config[@]}"} --workdir=runs/arithmetic "$@"
