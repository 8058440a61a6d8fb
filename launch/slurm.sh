#!/usr/bin/env bash
# Submits an experiment to a Slurm cluster with GPUs, one process a GPU:
#
#   bash launch/slurm.sh --name=run1 --nodes=2 --gpus-per-node=8 --time=24:00:00 --partition=PARTITION \
#     -- --config=configs/arithmetic.py --config.data.english_share=0.0 --workdir=runs/run1
#
# Run it where the nodes' file system is mounted: this directory and the work directory are read and written from all of
# them. The job asks for SIGTERM two minutes before its time is over and puts itself back into the queue when the
# program left with 42, at most --max-restarts times; any other code fails the job (launch/slurm.sbatch).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/common.sh

flag name '' 'of the job: lower-case letters, digits and -, at most 39'
flag nodes 1 'a number from 1'
flag gpus-per-node 8 'and so processes a node, a number from 1'
flag cpus-per-task '' 'cores of a process, a number'
flag time '' "limit of one stretch, such as 24:00:00, if it is not the partition's"
flag partition '' "if it is not the cluster's default or SBATCH_PARTITION"
flag account '' "if it is not yours by default or SBATCH_ACCOUNT"
flag qos '' 'if not the default or SBATCH_QOS'
flag max-restarts 20 'a number'
flag array '' 'of a sweep: which jobs there are, such as 0-11 or 0-11%4; @index@ in an argument is a number of them'
flag dependency '' 'what must be over before, such as afterok:17'
takes_sweeps=1 sent=''
parse "$@"
check_name
check nodes '[1-9][0-9]*'
check gpus-per-node '[1-9][0-9]*'
check max-restarts '[0-9]+'
[[ -z ${flags[cpus-per-task]} ]] || check cpus-per-task '[1-9][0-9]*'
[[ -z ${flags[time]} ]] || check time '([0-9]+-)?[0-9]+(:[0-9]+){0,2}'
[[ -z ${flags[array]} ]] || check array '[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*(%[1-9][0-9]*)?'
[[ -z ${flags[dependency]} ]] || check dependency 'afterok(:[A-Z0-9_]+)+'
check_program "runs/${flags[name]}"
tasks=${flags[gpus-per-node]}
if [[ ${flags[nodes]} == 1 && (${command[0]} == sweep || $bucket == s3) ]]; then
  tasks=1 command=("${command[0]}") # one process has all GPUs of the node, and looks for no others
elif [[ ${command[0]} == sweep ]]; then
  command+=(--distributed) # the processes of a unit find each other as those of a run do
fi
[[ ${command[0]} == sweep || -z ${flags[array]} ]] ||
  refuse "--array=${flags[array]}: is of a sweep, which is named by --sweep after the --"
check_processes $((flags[nodes] * tasks))

optional nodes gpus-per-node cpus-per-task time partition account qos array dependency
run bash launch/environment.sh cuda $bucket # here and now: compute nodes often have no way out to install from
run sbatch "--job-name=${flags[name]}" "--chdir=$PWD" "--ntasks-per-node=$tasks" "${options[@]}" \
  launch/slurm.sbatch "${flags[max-restarts]}" "${command[@]}" "${program[@]}"
[[ ! $dry_run ]] || printf -- '---\n%s\n' "$(<launch/slurm.sbatch)"
