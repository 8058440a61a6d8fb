#!/usr/bin/env bash
# What the launchers for clusters share; sourced, never run. A launcher declares its flags with `flag`, reads them with
# `parse`, finds them in ${flags[name]}, and starts everything through `run`, which with --dry-run only prints it.

declare -A flags=() meaning=()
names=() program=() command=(run --distributed) takes_sweeps='' options=() dry_run='' workdir='' bucket='' # the extra that reads it
sent='configs distill_jax' # directories of this checkout that the machines get; '' where they see all of it

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
check_name() { check name "[a-z]([-a-z0-9]{0,$((${1:-39} - 2))}[a-z0-9])?"; } # [most]

optional() { # name ...; those that have a value become options of the command
  local name
  for name; do [[ -z ${flags[$name]} ]] || options+=("--$name=${flags[$name]}"); done
}

# TPU slices: distill_jax/perf/slices.tsv says which there are.

find_generation() { # column value; sets all columns to those of the generation's row
  while IFS=$'\t' read -r generation gke_label tpu_vm runtime counted topologies cubes; do
    [[ $generation == '#'* || ${!1} != "$2" ]] || return 0
  done <distill_jax/perf/slices.tsv
  return 1
}

has_topology() { # AxBxC; whether the generation has it
  [[ ,$topologies, != *",$1,"* ]] || return 0
  [[ $1 =~ ^([1-9][0-9]{0,2})x([1-9][0-9]{0,2})x([1-9][0-9]{0,2})$ ]] || return 1
  local a=${BASH_REMATCH[1]} b=${BASH_REMATCH[2]} c=${BASH_REMATCH[3]}
  ((a % 4 == 0 && b % 4 == 0 && c % 4 == 0 && a <= b && b <= c && c <= 256 && a * b * c <= 64 * cubes))
}

has_chips() { # number; whether the generation has a slice of so many
  local topology a b n=$(($1 / 64))
  for topology in ${topologies//,/ }; do (($1 != ${topology//x/*})) || return 0; done
  (($1 % 64 == 0 && 1 <= n && n <= cubes)) || return 1
  for ((a = 1; a * a * a <= n; a++)); do
    for ((b = a; a * b * b <= n; b++)); do
      ((n % (a * b) != 0 || n / (a * b) > 64)) || return 0
    done
  done
  return 1
}

known_topologies() { # of the generation, as the end of a message
  local more=''
  ((!cubes)) || more=", and AxBxC of multiples of 4, A <= B <= C, up to $((64 * cubes)) chips"
  printf 'there are %s%s' "${topologies//,/, }" "$more"
}

known_types() { # likewise
  local topology types=() more=''
  for topology in ${topologies//,/ }; do types+=("$generation-$((${topology//x/*} * counted))"); done
  ((!cubes)) || more=", and most multiples of $((64 * counted)) up to $((64 * cubes * counted))"
  printf 'there are %s%s' "${types[*]}" "$more"
}

check_slice() { # flag; sets type, what the services call the slice whose name is the flag's value, and its hosts
  check "$1" '[a-z0-9]+-[0-9x]+'
  local value=${flags[$1]} size found=''
  local prefix=${value%%-*}
  size=${value#*-}
  find_generation generation "$prefix" || find_generation tpu_vm "$prefix" ||
    refuse "--$1=$value: there is no TPU $prefix; there are $(known_generations)"
  if [[ $size == *x* ]]; then
    has_topology "$size" && found=1
  else
    [[ ${#size} -le 6 && $size != 0* ]] && ((size % counted == 0)) && has_chips $((size / counted)) && found=1
  fi
  [[ $found ]] ||
    refuse "--$1=$value: no such slice; $(known_types)"
  type=${tpu_vm/#-/$generation}-$size
  case $size in *x*) chips=$((${size//x/*})) ;; *) chips=$((size / counted)) ;; esac
  hosts=$((chips <= 4 || (chips == 8 && !cubes) ? 1 : chips / 4))
}

known_generations() {
  local names=()
  while read -r generation _; do [[ $generation == '#'* ]] || names+=("$generation"); done <distill_jax/perf/slices.tsv
  (IFS=,; printf '%s' "${names[*]}")
}

check_program() { # default-workdir; what a machine that was waited for would refuse is refused here
  ((${#program[@]})) || program=(--config=configs/arithmetic.py --config.data.english_share=0.0 "--workdir=$1")
  local argument config=''
  for argument in "${program[@]}"; do
    [[ $argument != *$'\n'* ]] || refuse "an argument with a line break does not survive every cluster: ${argument@Q}"
    case $argument in
      --config=*) config=$argument ;;
      --sweep=*) [[ $takes_sweeps ]] && config=$argument command=(sweep) ;;
      --workdir=*) workdir=${argument#*=} ;;
    esac
  done
  [[ $config && $workdir ]] || refuse "the program needs --config=FILE and --workdir=DIR after the --"
  if [[ $workdir == *://* ]]; then
    [[ $workdir =~ ^(gs|s3)://[a-z0-9][-_.a-z0-9]{1,220}[a-z0-9]/.*[^/] ]] ||
      refuse "--workdir=$workdir: must be gs://BUCKET/DIRECTORY, or s3://, or a path"
    case ${BASH_REMATCH[1]} in gs) bucket=gcs ;; s3) bucket=s3 ;; esac
  elif [[ $1 == /* && $workdir != /* ]]; then
    refuse "--workdir=$workdir: must be an absolute path on storage that every host mounts, or gs://BUCKET/DIRECTORY"
  fi
  check_file "$config"
}

check_processes() { # number of one run's; the program refuses it likewise
  [[ $bucket != s3 ]] || (($1 == 1)) ||
    refuse "--workdir=$workdir: $1 processes cannot write training states to s3:// together; name gs://BUCKET/DIRECTORY" \
      "or a path that all hosts mount, or ask for a single host"
}

check_file() { # --config=FILE.py[:preset] or --sweep=…; refuses a file that is not here, or that the machines do not get
  local file=${1#*=} kind=${1%%=*}
  [[ $file != *://* ]] || return 0
  if [[ $file =~ ^[A-Za-z0-9_-]+(:.*)?$ ]]; then # the package ships it
    file=distill_jax/configs/$([[ $kind == --config ]] || echo sweeps/)${file%%:*}.py
  elif [[ $file == *.py:* ]]; then
    file=${file%%.py:*}.py
  fi
  if [[ $sent && $file == /* ]]; then return; fi # on the machines' own storage
  [[ -f $file ]] || refuse "$1: there is no file $file in $PWD"
  [[ ! $sent || " $sent " == *" ${file%%/*} "* ]] ||
    refuse "$1: the machines get $sent of this checkout: put the file there, or name it by gs:// or its path on them"
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
    command -v "$1" >/dev/null || refuse "$1 is not here: install it, or run this where it is"
    "$@"
  fi
}
