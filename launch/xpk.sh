#!/usr/bin/env bash
# Submits an experiment to a GKE cluster that XPK manages:
#
#   bash launch/xpk.sh --name=run1 --cluster=CLUSTER --tpu-type=v6e-16 --image=IMAGE --storage=STORAGE \
#     -- --config=configs/arithmetic.py --config.data.english_share=0.0 --workdir=/mnt/shared/run1
#
# IMAGE is built from launch/Containerfile with UID=0; STORAGE is attached to the cluster before (xpk storage attach)
# and mounted above the work directory. With --workdir=gs://BUCKET/DIRECTORY no storage is needed. XPK starts all pods
# again, at most --max-restarts times, when one of them left with 42 or with 127 and above (a killed or vanished host);
# 1 and 2 fail at once.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/common.sh

flag name '' 'of the workload: lower-case letters, digits and -, at most 39'
flag cluster "${XPK_CLUSTER:-}" 'the GKE cluster'
flag zone "${CLOUDSDK_COMPUTE_ZONE:-}" "if it is not gcloud's default"
flag project "${CLOUDSDK_CORE_PROJECT:-}" "if it is not gcloud's default"
flag tpu-type '' 'such as v6e-16'
flag num-slices 1 'slices of that type, a number from 1'
flag image '' 'container image with the program'
flag storage '' 'XPK storage that is mounted, if the work directory is in no bucket'
flag max-restarts 20 'a number'
flag grace 120 'seconds to save in after SIGTERM; a Spot VM gives less than 30 of them'
parse "$@"
check_name
check cluster '[a-z][-a-z0-9]*'
check_slice tpu-type
flags[tpu-type]=$type
check num-slices '[1-9][0-9]*'
check image '[^[:space:]]+'
check max-restarts '[0-9]+'
check grace '[1-9][0-9]*'
check_program "/mnt/shared/${flags[name]}"
check_processes $((hosts * flags[num-slices]))
[[ $bucket || ${flags[storage]} ]] ||
  refuse "--workdir=$workdir: every pod has a disk of its own; name the --storage that is mounted there, or gs://BUCKET/DIRECTORY"

# XPK puts the command into a subshell of its script and sends SIGTERM to that subshell: exec makes it the program.
# %q, for a quoted '$(…)' would still be substituted by Kubernetes before any shell sees it; an escaped one is not.
command='exec'
for word in distill-jax run --distributed "${program[@]}"; do command+=" $(printf %q "$word")"; done

optional cluster zone project tpu-type num-slices storage max-restarts
run xpk workload create "--workload=${flags[name]}" "${options[@]}" "--docker-image=${flags[image]}" \
  --restart-on-exit-codes=42 "--termination-grace-period-seconds=${flags[grace]}" "--command=$command"
