#!/usr/bin/env bash
# Submits an experiment to a GKE cluster with JobSet and Kueue, without XPK:
#
#   bash launch/jobset.sh --name=run1 --queue=QUEUE --accelerator=tpu-v6e-slice --topology=4x4 --image=IMAGE \
#     --claim=CLAIM -- --config=configs/arithmetic.py --config.data.english_share=0.0 --workdir=/mnt/shared/run1
#
# IMAGE is built from launch/Containerfile; CLAIM is a volume claim that many nodes may write (Filestore, Lustre, a
# bucket) and is mounted at --mount. With --workdir=gs://BUCKET/DIRECTORY no claim is needed: the pods, as
# --service-account, read and write the bucket themselves. The cluster starts all pods again, at most --max-restarts
# times, whatever they left with, except 2, which fails at once. A name that is finished is used again after
# `kubectl delete jobset NAME`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/common.sh

flag name '' 'of the JobSet: lower-case letters, digits and -, at most 26'
flag namespace "${KUBE_NAMESPACE:-default}" 'of the JobSet, its queue and its claim'
flag context "${KUBE_CONTEXT:-}" "if it is not kubectl's current one"
flag queue "${KUEUE_QUEUE:-}" "Kueue's LocalQueue"
flag accelerator '' 'node label cloud.google.com/gke-tpu-accelerator, such as tpu-v6e-slice'
flag topology '' 'of one slice, in chips, such as 4x4'
flag chips-per-host '' "1, 4 or 8, if the topology has hosts of different sizes and not the usual ones"
flag slices 1 'slices of that topology, a number from 1'
flag levels '' 'of a sweep: how many units, each on a slice of its own, there are on each level, such as 1,2,2'
flag spot false 'only Spot nodes'
flag image '' 'container image with the program'
flag service-account default "Kubernetes' account of the pods, to which a bucket gives its permissions"
flag claim "${WORK_CLAIM:-}" 'PersistentVolumeClaim that holds the work directory, if it is in no bucket'
flag mount /mnt/shared 'where it is mounted: an absolute path'
flag gcsfuse false 'the claim is a bucket: adds what its driver asks for'
flag max-restarts 20 'a number'
flag grace 120 'seconds to save in after SIGTERM; a Spot VM gives less than 30 of them'
flag coordinator-port 8482 'open between the hosts, for jax.distributed'
takes_sweeps=1
parse "$@"
check_name "$((${#flags[levels]} ? 23 : 26))" # NAME-slice-0-0.NAME is a label of every pod, and ends at 63
check_program "${flags[mount]}/${flags[name]}"
required=(namespace queue service-account)
[[ $bucket && ! ${flags[claim]} ]] || required+=(claim)
for name in "${required[@]}"; do check "$name" '[a-z0-9]([-.a-z0-9]*[a-z0-9])?'; done
check accelerator 'tpu[-a-z0-9]+'
check topology '[1-9][0-9]*(x[1-9][0-9]*){1,2}'
check slices '[1-9][0-9]*'
[[ -z ${flags[levels]} ]] || check levels '[1-9][0-9]*(,[1-9][0-9]*)*'
check image '[^[:space:]"\\]+'
check mount '/[^[:space:]"\\]+'
check max-restarts '[0-9]+'
check grace '[1-9][0-9]*'
check coordinator-port '[1-9][0-9]{3,4}'
((flags[coordinator-port] <= 65535 && flags[coordinator-port] != 8471 && flags[coordinator-port] != 8080)) ||
  refuse "--coordinator-port=${flags[coordinator-port]}: must be up to 65535, and not 8471 or 8080, which TPUs use"
for word in "${program[@]}"; do
  [[ $bucket || $word != --workdir=* || $word == "--workdir=${flags[mount]}/"* ]] ||
    refuse "$word is not under --mount=${flags[mount]}, and not gs://BUCKET/DIRECTORY"
done

find_generation gke_label "${flags[accelerator]}" ||
  refuse "--accelerator=${flags[accelerator]}: there are $(cut -f2 distill_jax/perf/slices.tsv | grep ^tpu | paste -sd' ')"
has_topology "${flags[topology]}" || refuse "--topology=${flags[topology]}: $generation has none such; $(known_topologies)"
chips=$((${flags[topology]//x/*}))
host=$((chips == 1 ? 1 : 4))
[[ ${flags[chips-per-host]} ]] || flags[chips-per-host]=$host
[[ ${flags[chips-per-host]} == "$host" || (${flags[topology]} == 2x4 && ${flags[chips-per-host]} == 8) ]] ||
  refuse "--chips-per-host=${flags[chips-per-host]}: hosts of $generation ${flags[topology]} have $host"

check_processes $((chips / flags[chips-per-host] * (${#flags[levels]} ? 1 : flags[slices])))
if [[ ${command[0]} == run ]]; then
  [[ ! ${flags[levels]} ]] || refuse "--levels=${flags[levels]}: is of a sweep, which is named by --sweep after the --"
  command+=("--coordinator_port=${flags[coordinator-port]}")
else
  [[ ${flags[levels]} ]] || refuse "--levels is missing: ${meaning[levels]}; distill-jax sweep --jobset=FLAGS says it"
  ((chips == flags[chips-per-host])) || # a process on each host of a unit's slice, which find each other
    command+=(--distributed "--coordinator_port=${flags[coordinator-port]}")
fi

args=''
for word in "${command[@]}" "${program[@]}"; do
  word=${word//'$'/'$$'} # Kubernetes puts variables for $(NAME), and $ for $$
  word=${word//\\/\\\\}
  args+=", \"${word//\"/\\\"}\""
done

yaml=$(<launch/jobset.yaml)
if [[ ${flags[levels]} ]]; then # the last part of the file once a level, each of which waits for the one before it
  each=${yaml#*"  replicatedJobs:"$'\n'} yaml=${yaml%"$each"} level=0 after=''
  for slices in ${flags[levels]//,/ }; do
    one=${each//@job@/level-$level} one=${one//@slices@/$slices} one=${one//@after@/$after}
    yaml+=${one//@args@/"@args_$level@"}$'\n'
    after="dependsOn: [{name: level-$level, status: Complete}]"
    ((++level))
  done
  index="env: [{name: JOB_INDEX, valueFrom: {fieldRef: {fieldPath: \"metadata.labels['jobset.sigs.k8s.io/job-index']\"}}}]"
  # A JobSet with many slices looks to the TPU runtime like one program on all of them.
  alone='unset "${!MEGASCALE_@}" && ' first=level-0
else
  index='' alone='' first=slice level=0
fi
fill() { yaml=${yaml//"@$1@"/"$2"}; } # quoted, for bash 5.2 would put the match for an & in the value
fill name "${flags[name]}"
fill queue "${flags[queue]}"
fill max_restarts "${flags[max-restarts]}"
fill first "$first"
fill job slice
fill after ''
fill index "$index"
fill alone "$alone"
fill slices "${flags[slices]}"
fill hosts "$((chips / flags[chips-per-host]))"
fill gcsfuse "${flags[gcsfuse]}"
fill grace "${flags[grace]}"
fill accelerator "${flags[accelerator]}"
fill topology "${flags[topology]}"
fill spot "$([[ ${flags[spot]} == false ]] || echo 'cloud.google.com/gke-spot: "true"')"
fill image "${flags[image]}"
fill port "${flags[coordinator-port]}"
fill chips "${flags[chips-per-host]}"
fill service_account "${flags[service-account]}"
mounts='' volumes=''
if [[ ${flags[claim]} ]]; then
  mounts="{name: work, mountPath: \"${flags[mount]}\"}"
  volumes="{name: work, persistentVolumeClaim: {claimName: \"${flags[claim]}\"}}"
fi
fill mounts "[$mounts]"
fill volumes "[$volumes]"
fill args "[${args#, }]" # last: an argument may have an @ of its own
while ((--level >= 0)); do fill "args_$level" "[${args#, }, \"--unit=$level.\$(JOB_INDEX)\"]"; done

optional namespace context
run kubectl apply "${options[@]}" --filename=- <<<"$yaml"
[[ ! $dry_run ]] || printf -- '---\n%s\n' "$yaml"
