#!/usr/bin/env bash
# Runs an experiment on a TPU VM or a slice of them, and starts it again until it is complete:
#
#   bash launch/tpu_vm.sh --name=run1 --zone=ZONE --accelerator-type=v6e-16 --spot --service-account=EMAIL \
#     -- --config=configs/arithmetic.py --config.data.english_share=0.0 --workdir=gs://BUCKET/run1
#
# A work directory that is a path must be on storage that --setup mounts on every worker, such as
# --setup='mountpoint -q /mnt/shared || sudo mount -t nfs SERVER:/work /mnt/shared'.
#
# The same command attaches to what already exists under the name, so it may be interrupted at any time; the program
# goes on without it. It ends with 0 when the experiment is complete. Started again, at most --max-restarts times: a
# program that left with 42, one whose connection was lost, and a TPU that was preempted or failed, which is deleted and
# requested anew. Not started again: a program that left with another code, which becomes this command's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/common.sh

flag name '' 'of the queued resource and its node: lower-case letters, digits and -, at most 39'
flag zone "${CLOUDSDK_COMPUTE_ZONE:-}" 'where, such as us-east5-b'
flag project "${CLOUDSDK_CORE_PROJECT:-}" "if it is not gcloud's default"
flag accelerator-type '' 'such as v6e-16 or v5e-16'
flag runtime-version '' "the VM's image, if it is not the usual one of this TPU"
flag service-account '' "of the VMs, an e-mail address, if it is not the project's default"
flag spot false 'take capacity that can be preempted'
flag setup '' 'shell command before the installation on every worker, to mount the storage; may run again'
flag max-restarts 20 'restarts and recreations together, a number'
flag poll 30 'seconds between two looks at the state, a number'
flag delete false 'delete the TPU when the experiment is complete (otherwise the command is printed)'
parse "$@"
check_name
check zone '[a-z]+-[a-z]+[0-9]+-[a-z]'
check_slice accelerator-type
[[ $tpu_vm != - ]] || refuse "--accelerator-type=${flags[accelerator-type]}: on GKE only; use jobset.sh or xpk.sh"
[[ $type != *x* ]] || refuse "--accelerator-type=${flags[accelerator-type]}: give the number, such as v6e-16"
[[ ${flags[runtime-version]} ]] || flags[runtime-version]=$runtime
check runtime-version '[a-z0-9][-.a-z0-9]*'
[[ -z ${flags[service-account]} ]] || check service-account '[^@[:space:]]+@[^@[:space:]]+'
check max-restarts '[0-9]+'
check poll '[0-9]+'
name=${flags[name]}
check_program "/mnt/shared/$name"
check_processes "$hosts"

optional zone project
spot=()
[[ ${flags[spot]} == false ]] || spot=(--spot)
account=()
[[ -z ${flags[service-account]} ]] || account=("--service-account=${flags[service-account]}" --scopes=cloud-platform)
queued=(gcloud compute tpus queued-resources)
vm=(gcloud compute tpus tpu-vm)
describe=("${queued[@]}" describe "$name" "${options[@]}" '--format=value(state.state)')
create=("${queued[@]}" create "$name" "${options[@]}" "--node-id=$name" "--accelerator-type=$type"
  "--runtime-version=${flags[runtime-version]}" "${account[@]}" "${spot[@]}")
delete=("${queued[@]}" delete "$name" "${options[@]}" --force --quiet) # --force: with its VMs
extras=(tpu $bucket)
# What gcloud says of a request that asking again does not change.
permanent='PERMISSION_DENIED|UNAUTHENTICATED|INVALID_ARGUMENT|SERVICE_DISABLED|active account|auth tokens'
permanent+='|(unrecognized|invalid) (argument|choice)|argument --'
archive=.cache/$name.tar.gz errors=.cache/$name.errors
[[ ! $dry_run ]] || errors=/dev/null

look() { # sets state; ABSENT when there is none of this name
  local answer try
  if [[ $dry_run ]]; then # what is printed is the run in which nothing exists yet and all goes well
    run "${describe[@]}"
    state=${created:+ACTIVE}
    state=${state:-ABSENT}
    return
  fi
  for try in 1 2 3 4 5; do
    if answer=$("${describe[@]}" 2>&1); then
      [[ ! $answer =~ (^|$'\n')([A-Z_]+)($|$'\n') ]] || state=${BASH_REMATCH[2]}
      return
    elif [[ $answer == *NOT_FOUND* ]]; then
      state=ABSENT
      return
    fi
    say "$answer"
    [[ ! $answer =~ $permanent ]] || refuse "gcloud refuses, see above: asking again does not change that"
    ((try == 5)) || sleep "${flags[poll]}"
  done
  say "the state of $name cannot be read; the same command continues"
  exit 1
}

attempt() { # returns the program's code, and 255 when the workers cannot be reached
  local worker=("${vm[@]}" ssh "$name" "${options[@]}" --worker=all)
  # Through a pipe, and not afterwards: gcloud may ask for a passphrase.
  if ! run "${vm[@]}" scp "$archive" launch/tpu_vm_worker.sh "$name:" "${options[@]}" --worker=all 2> >(tee "$errors" >&2); then
    wait $! # for tee
    [[ ! $(<"$errors") =~ $permanent ]] || return 2
    return 255
  fi
  run "${worker[@]}" "--command=$(quoted bash tpu_vm_worker.sh install "$name" "${flags[setup]}" "${extras[@]}")" || return
  run "${worker[@]}" "--command=$(quoted bash tpu_vm_worker.sh run "$name" "${program[@]}")"
}

again() { # why
  if ((++restarts > flags[max-restarts])); then
    say "$1, and --max-restarts=${flags[max-restarts]} are used up; the same command continues"
    exit 42 # as the program says it
  fi
  say "$1: restart $restarts of ${flags[max-restarts]}"
}

run mkdir -p .cache
run tar --create --gzip --file="$archive" --exclude=__pycache__ \
  distill_jax configs launch pyproject.toml constraints.txt README.md LICENSE
state='' created='' restarts=0
while :; do
  before=$state
  look
  case $state in
    ABSENT)
      [[ ! $created ]] || again "$name is gone"
      run "${create[@]}" || exit # quota, permission or a wrong flag: gcloud has said which
      created=1
      ;;
    ACTIVE)
      code=0
      attempt || code=$?
      case $code in
        0) break ;;
        2) refuse "refused, see above: nothing is started again" ;;
        42) again "the program was stopped and has saved" && sleep "${flags[poll]}" ;;
        *) # A crash, or the machines are gone: the state tells which, but up to minutes late.
          for ((i = 0; i < 4; i++)); do
            sleep "${flags[poll]}"
            look
            [[ $state == ACTIVE ]] || break
          done
          if [[ $state == ACTIVE ]]; then
            ((code == 255)) || { say "the program left with $code on a healthy TPU" && exit "$code"; }
            again "the connection was lost"
          fi
          ;;
      esac
      ;;
    SUSPENDED | FAILED)
      say "$name is $state and is deleted"
      run "${delete[@]}" || exit
      ;;
    *) # CREATING, ACCEPTED, WAITING_FOR_RESOURCES, PROVISIONING; SUSPENDING, DELETING
      [[ $state == "$before" ]] || say "$name is $state"
      sleep "${flags[poll]}"
      ;;
  esac
done
if [[ ${flags[delete]} == true ]]; then
  run "${delete[@]}"
elif [[ ! $dry_run ]]; then
  say "complete. The TPU is still there and costs money: $(quoted "${delete[@]}")"
fi
