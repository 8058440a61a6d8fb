#!/usr/bin/env bash
# What the launchers for clusters share; sourced, never run. A launcher declares its flags with `flag`, reads them with
# `parse`, finds them in ${flags[name]}, and starts everything through `run`, which with --dry-run only prints it.

declare -A flags=() meaning=()
names=() program=() options=() dry_run=''

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

refuse() {
  say "$*"
  exit 2
}

flag() { names+=("$1") flags[$1]=$2 meaning[$1]=$3; } # name default meaning; the default false makes a switch

usage() { # the launcher's own first comment, then its flags
  sed -n '2,${/^#/!q;s/^# \{0,1\}//p}' "$0"
  printf '\nFlags:\n'
  local name
  for name in "${names[@]}"; do
    printf '  --%-18s %s\n' "$name" "${meaning[$name]}${flags[$name]:+ [${flags[$name]}]}"
  done
  printf '  %-20s %s\n' --dry-run 'print the commands and run none of them' -- 'what follows goes to the program'
}

parse() { # argument ...
  local argument name
  while (($#)); do
    argument=$1 name=${1%%=*} name=${name#--}
    shift
    case $argument in
      --) program=("$@") && break ;;
      --help) usage && exit ;;
      --dry-run) dry_run=1 && continue ;;
    esac
    [[ $argument == --* && " ${names[*]} " == *" $name "* ]] ||
      refuse "unknown flag $argument; there are$(printf ' --%s' "${names[@]}" dry-run help), and -- for the program's"
    if [[ ${flags[$name]} == false || ${flags[$name]} == true ]]; then
      [[ $argument == "--$name" ]] || refuse "$argument: --$name is a switch and takes no value"
      flags[$name]=true
    else
      [[ $argument == --*=* ]] || refuse "$argument has no value: --$name=VALUE"
      flags[$name]=${argument#*=}
    fi
  done
}

check() { # name regex; refuses what the service would refuse hours later
  [[ -n ${flags[$1]} ]] || refuse "--$1 is missing: ${meaning[$1]}"
  [[ ${flags[$1]} =~ ^($2)$ ]] || refuse "--$1=${flags[$1]}: ${meaning[$1]}"
}

# 39 characters, for the services append to the name and end at 63.
check_name() { check name '[a-z]([-a-z0-9]{0,37}[a-z0-9])?'; }

optional() { # name ...; those that have a value become options of the command
  local name
  for name; do [[ -z ${flags[$name]} ]] || options+=("--$name=${flags[$name]}"); done
}

check_program() { # default-workdir; what a machine that was waited for would refuse is refused here
  ((${#program[@]})) || program=(--config=configs/arithmetic.py "--workdir=$1")
  local argument config='' workdir=''
  for argument in "${program[@]}"; do
    [[ $argument != *$'\n'* ]] || refuse "an argument with a line break does not survive every cluster: ${argument@Q}"
    case $argument in
      --config=*) config=1 ;;
      --workdir=*) workdir=${argument#*=} ;;
    esac
  done
  [[ $config && $workdir ]] || refuse "the program needs --config=FILE and --workdir=DIR after the --"
  [[ $1 != /* || $workdir == /* ]] ||
    refuse "--workdir=$workdir: must be an absolute path on storage that every host mounts"
}

quoted() { # word ...; one line that a shell reads back as these words
  local word line=''
  for word; do
    [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] || word=${word@Q}
    line+=" $word"
  done
  printf '%s' "${line# }"
}

run() { # command ...
  if [[ $dry_run ]]; then
    quoted "$@"
    echo
  else
    "$@"
  fi
}
