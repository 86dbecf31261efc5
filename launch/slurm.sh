#!/usr/bin/env bash
# Trains on GPU nodes of a Slurm cluster: submits itself, runs one process a node, requeues itself.
#SBATCH --job-name=srum_jax
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@180
set -euo pipefail

usage() {
  cat <<'EOF'
usage: launch/slurm.sh --nodes N --gpus N --time LIMIT [option...] -- TRAINING ARGUMENTS

Submits a job of N nodes, one process each that holds all GPUs of its node. Three minutes before the
time limit, and when the scheduler wants the nodes back, the training saves and the job goes back
into the queue; it goes on from there. It ends with the training's exit code otherwise.

Options
  --nodes N         nodes
  --gpus N          GPUs of each node
  --time LIMIT      as Slurm writes it: 24:00:00
  --partition NAME  default: the cluster's own
  --account NAME    default: the user's own
  --logs FOLDER     default: logs/ in the clone; a file for each job
  --python PATH     default: .venv/bin/python of the clone, on a disk that all nodes see
  --sbatch OPTION   another option for sbatch, as --sbatch=--qos=low; several times
  --yes             do not ask before the job is submitted

Training arguments are those of python -m srum_jax.main; how the processes find each other is added.

Example
  launch/slurm.sh --nodes 2 --gpus 8 --time 24:00:00 -- \
      --config configs/bagel_7b_srum.py --workdir /shared/runs/srum --config.train.rows=16 \
      --config.weights=/shared/BAGEL-7B-MoT --config.score.sam.weights=/shared/sam-vit-huge \
      --config.generate.prompts=/shared/prompts.json \
      --config.evaluate.prompts=/shared/test_prompts.json
EOF
}

# ---------------------------------------------------------------------------------- the job itself

job() {
  local python=$1 grace=$2 notice="" first port step="" alarm="" code=0 again=""
  shift 2
  say_job() { printf 'slurm.sh: %s job %s: %s\n' "$(date -u +%FT%TZ)" "$SLURM_JOB_ID" "$*"; }

  if ! first=$(scontrol show hostnames "$SLURM_JOB_NODELIST") || [[ -z $first ]]; then
    say_job "error: this failed: list the nodes (scontrol show hostnames $SLURM_JOB_NODELIST)"
    exit 1
  fi
  first=${first%%$'\n'*}
  port=$((20000 + SLURM_JOB_ID % 20000))

  # shellcheck disable=SC2329 # the trap calls it
  save() {
    [[ -z $notice ]] || return 0
    notice=1
    say_job "told to stop: the training saves"
    [[ -z $step ]] || kill -TERM "$step" 2>/dev/null || true
    # What does not listen, or not soon enough, is ended by a second signal; finished shards stay.
    (sleep "$grace" && kill -TERM "$step") >/dev/null 2>&1 &
    alarm=$!
  }
  trap save TERM

  say_job "started on $SLURM_JOB_NODELIST, restart ${SLURM_RESTART_COUNT:-0}"
  # Processes are named one by one: what JAX finds out under Slurm is one GPU a process.
  # --wait: they save at their own pace; one that hangs when the others have ended is ended.
  # shellcheck disable=SC2016 # every task's shell reads its own number
  srun --nodes "$SLURM_JOB_NUM_NODES" --ntasks "$SLURM_JOB_NUM_NODES" --ntasks-per-node 1 \
    --cpus-per-task "$SLURM_CPUS_ON_NODE" --kill-on-bad-exit=0 --wait 120 \
    bash -c 'exec "$0" -m srum_jax.main "$@" --process "$SLURM_PROCID"' \
    "$python" "$@" --coordinator "$first:$port" --processes "$SLURM_JOB_NUM_NODES" &
  step=$!
  local noticed=""
  while :; do
    code=0
    wait "$step" || code=$?
    [[ $notice != "$noticed" ]] || break # a signal ended `wait`, not the training
    noticed=$notice
  done
  [[ -z $alarm ]] || kill "$alarm" 2>/dev/null || true

  case $code in
    75) again=1 ;;
    143) again=$notice ;; # ended by the second signal
    69 | 134 | 137 | 139) # something was lost
      ((${SLURM_RESTART_COUNT:-0} >= 20)) && [[ -z $notice ]] || again=1
      ;;
  esac
  if [[ -n $again ]]; then
    say_job "stopped or lost (exit code $code): back into the queue"
    scontrol requeue "$SLURM_JOB_ID" && exit 0
    say_job "error: this failed: scontrol requeue $SLURM_JOB_ID"
    say_job "what to do: give the same launch/slurm.sh command again; it goes on from the last save"
    exit "$code"
  fi
  say_job "ended with exit code $code"
  exit "$code"
}

if [[ ${1:-} == --in-job ]]; then
  shift
  job "$@"
fi

# ------------------------------------------------------------------------------------ submitting it

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/steps.sh
source "$root/launch/steps.sh"

nodes="" gpus="" time="" partition="" account="" logs=$root/logs python=$root/.venv/bin/python
sbatch=() yes=""
read_options "nodes gpus time partition account logs python" "yes" "sbatch" "$@"
for number in nodes gpus; do
  [[ ${!number} =~ ^[1-9][0-9]*$ ]] || die "--$number \"${!number}\" is not a number from 1"
done
[[ -n $time ]] || die "no --time, such as 24:00:00"
check_training
[[ -x $python ]] || die "--python $python: no such program; make its environment first (README.md)"
command -v sbatch >/dev/null || die "there is no sbatch: submit from a login node of the cluster"

confirm "A job of $nodes nodes with $gpus GPUs each will be submitted for $time at a time."
step "make the folder for logs $logs" "give another one by --logs" mkdir -p "$logs"
options=(--nodes "$nodes" --gpus-per-node "$gpus" --time "$time" --chdir "$root"
  --output "$logs/%x-%j.log")
[[ -z $partition ]] || options+=(--partition "$partition")
[[ -z $account ]] || options+=(--account "$account")
submit() {
  sbatch "${options[@]}" "${sbatch[@]}" "$root/launch/slurm.sh" \
    --in-job "$python" 90 "${training[@]}"
}
step "submit the job" "read sbatch's message; sinfo shows partitions, limits and GPUs" submit
say "logs: $logs; state: squeue --me; stop for good: scancel --signal=TERM JOB, then scancel JOB"
