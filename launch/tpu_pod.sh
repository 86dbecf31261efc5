#!/usr/bin/env bash
# Trains on a slice of TPU VMs that a queued resource of Google Cloud brings.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/steps.sh
source "$root/launch/steps.sh"

usage() {
  cat <<'EOF'
usage: launch/tpu_pod.sh COMMAND --name NAME --zone ZONE [option...] [-- TRAINING ARGUMENTS]

Commands
  up        create, install, start; what is there already is kept, so the same command goes on
  create    request the slice and wait until it is ACTIVE
  install   put the package on all hosts, or bring it up to date
  start     start the training on all hosts, detached; run again after 75, a few times after 69
  status    state of the slice, and of the training on every host
  logs      the end of one host's log
  stop      save and end the training on all hosts; the slice stays, and costs
  delete    delete the slice and its request

Options
  --name NAME       of the slice and of its request
  --zone ZONE       as us-east5-a
  --project ID      default: gcloud's own
  --type TYPE       accelerator type, as v5litepod-16, v5p-32, v6e-16      (up, create)
  --runtime NAME    of the hosts' software; default: by the type           (up, create)
  --spot            cheaper, and may be taken away at any time             (up, create)
  --wait MINUTES    how long to wait for the slice, default 120            (up, create)
  --poll SECONDS    between two looks at its state, default 30             (up, create)
  --recreate        delete a slice that was taken away, then create it     (up, create)
  --repo URL        what to install, default: origin of this clone         (up, install)
  --ref NAME        branch, tag or commit of it, default: HEAD             (up, install)
  --worker N        host whose log is shown, default 0                     (logs)
  --follow          keep showing what is added                             (logs)
  --lines N         default 50                                             (logs)
  --patience SECONDS  for saving, before a second signal, default 300      (stop)
  --yes             do not ask before something is created or deleted

Training arguments are those of python -m srum_jax.main; --distributed is added. The work folder
must be one that all hosts see, best a bucket. See first what fits the slice:
  python -m srum_jax.main --config FILE.py --plan v5p:2x2x2

Example
  launch/tpu_pod.sh up --name srum --zone us-east5-a --type v5p-16 --spot -- \
      --config configs/bagel_7b_srum.py --workdir gs://BUCKET/srum \
      --config.weights=gs://BUCKET/BAGEL-7B-MoT \
      --config.score.sam.weights=gs://BUCKET/sam-vit-huge \
      --config.generate.prompts=gs://BUCKET/prompts.json \
      --config.evaluate.prompts=gs://BUCKET/test_prompts.json
EOF
}

# ------------------------------------------------------------------------------- what was asked

read_command "up create install start status logs stop delete" "$@"
shift

name="" zone="" project="" type="" runtime="" spot="" wait=120 poll=30 recreate="" yes=""
repo="" ref=HEAD worker=0 follow="" lines=50 patience=300
read_options "name zone project type runtime wait poll repo ref worker lines patience" \
  "spot recreate follow yes" "" "$@"

[[ $name =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] || die \
  "--name \"$name\": a lower-case letter, then up to 39 letters, digits and hyphens"
[[ -n $zone ]] || die "no --zone; gcloud compute tpus locations list shows them"
for number in wait poll worker lines patience; do
  [[ ${!number} =~ ^[0-9]+$ ]] || die "--$number \"${!number}\" is not a number"
done
if [[ $command == up || $command == start ]]; then
  check_training
elif ((${#training[@]})); then
  die "$command takes no training arguments"
fi
if [[ $command == up || $command == create ]]; then
  [[ -n $type ]] || die "no --type, such as v5litepod-16"
  if [[ -z $runtime ]]; then
    case $type in
      v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
      v5p-*) runtime=v2-alpha-tpuv5 ;;
      v6e-*) runtime=v2-alpha-tpuv6e ;;
      v4-*) runtime=tpu-ubuntu2204-base ;;
      *) die "--type $type: its software is not known here; add --runtime" ;;
    esac
  fi
fi
if [[ $command == up || $command == install ]]; then
  [[ -n $repo ]] || repo=$(git -C "$root" config --get remote.origin.url || true)
  [[ -n $repo ]] || die "this clone has no origin; add --repo URL, which the hosts can read"
fi
command -v gcloud >/dev/null || die "there is no gcloud: https://cloud.google.com/sdk/docs/install"

place=(--zone "$zone")
[[ -z $project ]] || place+=(--project "$project")
this="launch/tpu_pod.sh"
same="--name $name $(words "${place[@]}")"

# ------------------------------------------------------------------------------------- the slice

queued() { gcloud compute tpus queued-resources "$@"; }

# Sets `state` to the request's, "" where there is none.
look() {
  local rows row
  rows=$(queued list "${place[@]}" --format "csv[no-heading](name.basename(),state.state)") ||
    failed "look up the slice $name" \
      "check gcloud auth login, the project and the zone, then give the same command again" "$?"
  state=""
  while IFS= read -r row; do
    [[ $row != "$name,"* ]] || state=${row#*,}
  done <<<"$rows"
}

# What a failure from here on leaves behind.
exists() {
  left="the slice $name may exist and cost money; see it: $this status $same; delete it: $this delete $same"
}

create() {
  look
  case $state in
    "") ;;
    ACTIVE) exists && say "the slice $name is there" && return ;;
    FAILED | SUSPENDED | SUSPENDING)
      exists
      [[ -n $recreate ]] || failed "use the slice $name, which is $state" \
        "it is gone for good; add --recreate, or delete it first. The work folder keeps the run"
      delete
      ;;
    *) exists && say "the slice $name is requested already" && wait_until_active && return ;;
  esac
  confirm "A ${spot:+spot }slice $type in $zone will be requested; it costs from the moment it is \
ACTIVE until: $this delete $same"
  exists
  step "request the slice $name" "read gcloud's message: quota, type, zone or software" \
    queued create "$name" "${place[@]}" --node-id "$name" --accelerator-type "$type" \
    --runtime-version "$runtime" --valid-until-duration "${wait}m" ${spot:+--spot} --async --quiet
  wait_until_active
}

wait_until_active() {
  local end=$((SECONDS + wait * 60)) before=""
  while :; do
    look
    [[ $state == "$before" ]] || say "the slice is ${state:-not listed yet}"
    before=$state
    case $state in
      ACTIVE) return ;;
      FAILED | SUSPENDED | SUSPENDING | DELETING)
        queued describe "$name" "${place[@]}" --format "yaml(state)" >&2 || true
        failed "wait for the slice $name, which is $state" \
          "read the state above; try another zone or type, or --recreate to queue again"
        ;;
    esac
    ((SECONDS < end)) || failed "wait for the slice $name: $wait minutes are over" \
      "wait on by the same command, or delete the request, or try another zone"
    sleep "$poll"
  done
}

delete() {
  look
  if [[ -z $state ]]; then
    say "there is no slice $name in $zone"
    return
  fi
  confirm "The slice $name ($state) will be deleted with its disks; a bucket is not touched."
  exists
  step "delete the slice $name" "give the same command again; it costs as long as it is there" \
    queued delete "$name" "${place[@]}" --force --quiet
  look
  [[ -z $state ]] || failed "delete the slice $name, which is still $state" \
    "give the same command again in a few minutes"
  left=""
  say "the slice $name is deleted"
}

# ---------------------------------------------------------------------- on its hosts, all at once

# on WORKERS WHAT ADVICE SCRIPT ARG...: runs a bash script on hosts; any host's failure is one.
on() {
  local workers=$1 what=$2 advice=$3
  shift 3
  step "$what" "$advice" queued ssh "$name" "${place[@]}" --node all --worker "$workers" \
    --command "$(words bash -euo pipefail -c "$1" tpu_pod "${@:2}")"
}

# The hosts' Python may be older than the package's: uv brings its own.
# shellcheck disable=SC2016
install='
repo=$1 ref=$2
export PATH="$HOME/.local/bin:$PATH" GIT_TERMINAL_PROMPT=0
command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh >/dev/null
[ -d ~/srum_jax/.git ] || git clone --quiet "$repo" ~/srum_jax
cd ~/srum_jax
git fetch --quiet "$repo" "$ref"
git checkout --quiet --force --detach FETCH_HEAD
[ -x .venv/bin/python ] || uv venv --quiet --python 3.11 .venv
uv pip install --quiet --python .venv/bin/python -e ".[tpu]"
echo "$(hostname): installed $(git rev-parse --short HEAD)"
'
# By its command line too: after a restart of the host another process may have the number.
# shellcheck disable=SC2016
training_runs='
runs() { # sets pid
  pid=$(cat ~/srum_jax_logs/pid 2>/dev/null) &&
    tr "\0" " " 2>/dev/null <"/proc/$pid/cmdline" | grep -q "launch/run.sh"
}
'
# shellcheck disable=SC2016
start=$training_runs'
mkdir -p ~/srum_jax_logs
if runs; then
  echo "$(hostname): a training runs already" >&2
  exit 1
fi
cd ~/srum_jax
setsid nohup launch/run.sh .venv/bin/python -m srum_jax.main "$@" --distributed \
  >>~/srum_jax_logs/train.log 2>&1 </dev/null &
echo "$!" >~/srum_jax_logs/pid
echo "$(hostname): started"
'
# shellcheck disable=SC2016
status=$training_runs'
cd ~/srum_jax_logs 2>/dev/null || { echo "$(hostname): nothing was started"; exit 0; }
if runs; then echo "$(hostname): running"; else echo "$(hostname): not running"; fi
grep "^run.sh: " train.log | tail -n 1 || true
'
# shellcheck disable=SC2016
stop=$training_runs'
patience=$1
runs || { echo "$(hostname): was not running"; exit 0; }
waits() {
  for _ in $(seq "$1"); do
    runs || { echo "$(hostname): stopped"; exit 0; }
    sleep 1
  done
}
kill -TERM "$pid" 2>/dev/null || true
waits "$patience"
echo "$(hostname): no end after $patience s, a second signal" >&2
kill -TERM "$pid" 2>/dev/null || true
waits 60
echo "$(hostname): still running" >&2
exit 1
'

install_all() {
  exists
  on all "install $ref of $repo on all hosts" \
    "read the message above (a key that is missing: ssh-add ~/.ssh/google_compute_engine), then: $this install $same" \
    "$install" "$repo" "$ref"
}

start_all() {
  exists
  on all "start the training on all hosts" \
    "hosts must start together: $this stop $same, then $this start $same -- ..." \
    "$start" "${training[@]}"
  say "the training runs; see: $this status $same; $this logs --follow $same"
}

case $command in
  up)
    create
    install_all
    start_all
    ;;
  create) create ;;
  install) install_all ;;
  start) start_all ;;
  status)
    look
    say "the slice $name is ${state:-not there}"
    [[ $state != ACTIVE ]] || on all "ask all hosts" "a host does not answer; look again" "$status"
    ;;
  logs)
    on "$worker" "show the log of host $worker" "is it ACTIVE? $this status $same" \
      "tail -n $lines ${follow:+-F} ~/srum_jax_logs/train.log"
    ;;
  stop)
    exists
    on all "stop the training on all hosts" "see $this status $same; delete ends it for certain" \
      "$stop" "$patience"
    ;;
  delete) delete ;;
esac
