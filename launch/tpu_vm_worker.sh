#!/usr/bin/env bash
# The half of tpu_vm.sh that runs on every worker of the TPU, in the home directory:
#
#   bash tpu_vm_worker.sh install NAME SETUP EXTRA ...   unpacks NAME.tar.gz and installs it, unless its program runs
#   bash tpu_vm_worker.sh run NAME ARGUMENT ...          starts the program, unless it runs; follows it, leaves with its code
#
# Who holds NAME.lock runs. Apart from the shell around the program nothing may inherit it (9>&-): a mount's daemon or
# a process that the program left behind would hold it forever.
set -euo pipefail

install() { # name setup extra ...
  exec 9>>"$1.lock"
  if ! flock --nonblock 9; then
    echo "$1 is running already: nothing is installed"
    return
  fi
  mkdir -p "$1"
  tar --extract --gzip --file="$1.tar.gz" --directory="$1"
  bash -euo pipefail -c "$2" 9>&-
  local python # the image's own may be older than what the program needs
  if ! python=$(command -v python3.13 || command -v python3.12 || command -v python3.11); then
    python=python3.11
    sudo apt-get -o DPkg::Lock::Timeout=600 -q update 9>&-
    sudo apt-get -o DPkg::Lock::Timeout=600 -q -y install python3.11-venv 9>&-
  fi
  PYTHON=$python bash "$1/launch/environment.sh" "${@:3}" 9>&-
}

run() { # name argument ...
  local lock=$PWD/$1.lock from=+1 waiter
  cd "$1"
  exec 9>>"$lock"
  if flock --nonblock 9; then
    rm -f code
    : >output
    # setsid: the program outlives this connection. A trap, and not ignoring, so that the program still gets SIGTERM.
    setsid bash -c 'trap : TERM; "$@" 9>&-; echo "$?" >code' _ \
      .venv/bin/distill-jax run --distributed "${@:2}" >output 2>&1 </dev/null &
  else
    echo "$1 is running already: this follows it, with the arguments it was started with"
    from=100
  fi
  exec 9>&-
  flock --shared "$lock" true &
  waiter=$!
  tail --lines="$from" --follow --sleep-interval=0.2 --pid="$waiter" output
  wait "$waiter"
  return "$(cat code 2>/dev/null || echo 137)" # no code: the shell around it was killed
}

cd
case $1 in # to the end of its line it is read before it runs: the next start may overwrite this file
  install) install "${@:2}" ;;
  run) run "${@:2}" ;;
esac; exit
