#!/usr/bin/env bash
# Makes the Python environment, or finds that it is already made.
#
#   bash launch/environment.sh [extra ...]             once, by hand: extras are those of pyproject.toml
#   source launch/environment.sh; environment [extra ...]   in a script: leaves it activated
#
# DISTILL_JAX_VENV  where it is, from the repository (default: .venv)
# PYTHON            the Python it is made with (default: python3)
#
# What the venv's directory .distill-jax holds:
#   made        this script made the venv, so it may wipe it; someone else's venv is never wiped
#   installing  an installation began and has not ended
#   stamp       hash of what was installed, then the extras; an extra once asked for is kept
#   lock        held while installing, so that two at once wait for each other

_say() { printf 'distill-jax: %s\n' "$*" >&2; }

_sha256() { if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi | cut -d' ' -f1; }

_version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

_check_python() { # python version
  if [[ ! $2 =~ ^([0-9]+)\.([0-9]+)$ ]]; then
    _say "cannot run $1. Install Python 3.11 or newer, or set PYTHON=/path/to/it."
    return 2
  fi
  if ((BASH_REMATCH[1] * 100 + BASH_REMATCH[2] < 311)); then
    _say "Python 3.11 or newer is needed and $1 is $2. Set PYTHON=/path/to/python3.11."
    return 2
  fi
}

_make_venv() { # python venv
  if ! "$1" -c 'import ensurepip, venv' 2>/dev/null; then
    _say "$1 has no venv module. On Debian or Ubuntu: apt install python3-venv. Or set PYTHON to another Python."
    return 2
  fi
  local base # with the venv activated python3 is the venv's own, which is about to be wiped
  base=$("$1" -c 'import sys; print(getattr(sys, "_base_executable", sys.executable))') || return
  touch "$2/.distill-jax/made" || return
  find "$2" -mindepth 1 -maxdepth 1 ! -name .distill-jax -exec rm -rf {} + || return
  "$base" -m venv "$2"
}

_pip() { # venv argument ...; errors pass through on stderr, of the rest only the large downloads are shown
  local line
  "$1/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off "${@:2}" |
    while IFS= read -r line; do
      case $line in
        *Downloading*" MB)"* | *"Using cached"*" MB)"*) _say "  ${line#"${line%%[![:space:]]*}"}" ;;
        "Installing collected packages"*) _say "  installing $(($(wc -w <<<"$line") - 3)) packages" ;;
      esac
    done
}

_install() { # root python version venv extra ...; runs under the lock
  local root=$1 python=$2 version=$3 venv=$4 notes=$4/.distill-jax extras='' extra missing='' hash have begin=$SECONDS
  # The paths count: an editable installation and the venv's scripts hold them.
  hash=$({ printf '%s\n' "$root" "$venv" "$version"; cat "$root/pyproject.toml" "$root/constraints.txt"; } | _sha256)
  have=$(_version "$venv/bin/python") || have=''
  if [[ -e $notes/stamp && ! -e $notes/installing && $have == "$version" ]]; then
    extras=$(sed -n 2p "$notes/stamp")
    for extra in "${@:5}"; do [[ ",$extras," == *",$extra,"* ]] || missing+=",$extra"; done
    if [[ $(sed -n 1p "$notes/stamp") == "$hash" && -z $missing ]]; then
      _say "environment is up to date ($venv)"
      return
    fi
    extras+=$missing
    extras=${extras#,}
  else
    extras=$(IFS=,; printf '%s' "${*:5}")
  fi

  # pip takes a package that was half written when it was killed for a whole one: begin again from nothing.
  if [[ ! -e $venv/pyvenv.cfg || (-e $notes/made && (-e $notes/installing || $have != "$version")) ]]; then
    _say "making $venv with Python $version"
    touch "$notes/installing" || return
    _make_venv "$python" "$venv" || return
  elif [[ $have != "$version" ]]; then
    _say "$venv has Python ${have:-that does not run} and $python is $version. Set PYTHON=$venv/bin/python, or DISTILL_JAX_VENV."
    return 2
  fi
  touch "$notes/installing" && rm -f "$notes/stamp" || return
  _say "installing distill-jax${extras:+[$extras]}; the first time takes minutes and about 4 GB"
  if ! _pip "$venv" -e "$root${extras:+[$extras]}" -c "$root/constraints.txt"; then
    _say "pip failed; its message is above. The next run begins again."
    return 1
  fi
  printf '%s\n%s\n' "$hash" "$extras" >"$notes/stamp" && rm "$notes/installing" || return
  _say "installed in $((SECONDS - begin)) s"
}

environment() { # extra ...
  local root python=${PYTHON:-python3} venv version extra
  for extra; do
    [[ $extra =~ ^[a-z0-9]+$ ]] && continue
    _say "$extra: not an extra. Give names of pyproject.toml's extras, such as gcs, or nothing."
    return 2
  done
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) || return
  venv=${DISTILL_JAX_VENV:-$root/.venv}
  [[ $venv == /* ]] || venv=$root/$venv
  version=$(_version "$python") || version=''
  _check_python "$python" "$version" || return
  if [[ -n $(ls -A "$venv" 2>/dev/null) && ! -e $venv/pyvenv.cfg && ! -d $venv/.distill-jax ]]; then
    _say "$venv is not empty and not a virtual environment. Set DISTILL_JAX_VENV to another place."
    return 2
  fi
  mkdir -p "$venv/.distill-jax" || return
  ( # errexit does not hold in here, because of the || below: every step says what happens when it fails
    set -o pipefail
    if ! command -v flock >/dev/null; then # macOS
      _say "no flock here: do not start two of these at once"
    elif ! flock -n 9; then
      _say "waiting for another installation into $venv"
      flock 9 || exit
    fi
    _install "$root" "$python" "$version" "$venv" "$@"
  ) 9>"$venv/.distill-jax/lock" || return
  export VIRTUAL_ENV=$venv PATH="$venv/bin:$PATH"
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then environment "$@"; fi
