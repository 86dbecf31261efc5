#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster through XPK: image, workload, logs, end.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/steps.sh
source "$root/launch/steps.sh"

usage() {
  cat <<'EOF'
usage: launch/xpk.sh COMMAND --cluster CLUSTER --zone ZONE --project ID --name NAME [option...]
                     [-- TRAINING ARGUMENTS]

Commands
  up        build, then create
  build     build the image of this clone and push it
  create    create the workload; it is restarted on exit codes 75 and 69
  status    the workload's line in XPK's list
  logs      the end of the hosts' logs
  delete    let the training save, then delete the workload; the cluster stays, and costs

Options
  --cluster NAME    a cluster that xpk cluster create made
  --zone ZONE       of the cluster
  --project ID      of the cluster
  --name NAME       of the workload
  --image IMAGE     with its registry, as us-docker.pkg.dev/ID/REPO/srum_jax:1 (up, build, create)
  --type TYPE       accelerator type, as v5litepod-16                    (up, create)
  --slices N        1, the default: a run uses the chips of one slice    (up, create)
  --restarts N      at most, default 100                                 (up, create)
  --grace SECONDS   for saving, default 300; spot nodes give 30 at most  (up, create)
  --priority LEVEL  very-low, low, medium, high, very-high               (up, create)
  --lines N         of each log, default 50                              (logs)
  --yes             do not ask before something is created or deleted

Training arguments are those of python -m srum_jax.main; --distributed is added. The work folder
must be a bucket or a mounted disk. See first what fits the slice:
  python -m srum_jax.main --config FILE.py --plan v5p:2x2x2

Example
  launch/xpk.sh up --cluster tpus --zone us-east5-a --project ID --name srum --type v5p-16 \
      --image us-docker.pkg.dev/ID/REPO/srum_jax:1 -- \
      --config configs/bagel_7b_srum.py --workdir gs://BUCKET/srum \
      --config.weights=gs://BUCKET/BAGEL-7B-MoT \
      --config.score.sam.weights=gs://BUCKET/sam-vit-huge \
      --config.generate.prompts=gs://BUCKET/prompts.json \
      --config.evaluate.prompts=gs://BUCKET/test_prompts.json
EOF
}

read_command "up build create status logs delete" "$@"
shift

cluster="" zone="" project="" name="" image="" type="" slices=1 restarts=100 grace=300
priority=medium lines=50 yes=""
read_options "cluster zone project name image type slices restarts grace priority lines" \
  "yes" "" "$@"

needs() { # PROGRAM WHERE
  command -v "$1" >/dev/null || die "there is no $1: $2"
}

for option in cluster zone project; do
  [[ $command == build || -n ${!option} ]] || die "no --$option"
done
if [[ $command != build ]]; then
  [[ $name =~ ^[a-z]([-a-z0-9]{0,26}[a-z0-9])?$ ]] || die \
    "--name \"$name\": a lower-case letter, then up to 27 letters, digits and hyphens"
fi
for number in slices restarts grace lines; do
  [[ ${!number} =~ ^[1-9][0-9]*$ ]] || die "--$number \"${!number}\" is not a number from 1"
done
((slices == 1)) || die "--slices $slices: a run cuts its arrays over the chips of one slice;" \
  "take a larger --type"
case $command in
  up | build | create) [[ $image == */* ]] || die "--image \"$image\": give it with its registry" ;;
esac
case $command in
  up | create)
    [[ -n $type ]] || die "no --type, such as v5litepod-16"
    check_training
    ;;
  *) ((${#training[@]} == 0)) || die "$command takes no training arguments" ;;
esac
[[ $command != up && $command != build ]] || needs docker "https://docs.docker.com/engine/install"
[[ $command == build || $command == logs ]] ||
  needs xpk "pip install xpk, or https://github.com/AI-Hypercomputer/xpk"
[[ $command != logs ]] || needs kubectl "gcloud components install kubectl"

where=(--cluster "$cluster" --zone "$zone" --project "$project")
this="launch/xpk.sh"
same="$(words "${where[@]}") --name $name"

build() {
  step "build the image $image" "read docker's message; is docker running?" \
    docker build --platform linux/amd64 --file "$root/launch/Dockerfile" --tag "$image" "$root"
  step "push the image $image" "log in: gcloud auth configure-docker ${image%%/*}" \
    docker push "$image"
}

create() {
  # exec: the training itself gets the signal to save, not a shell around it.
  left="a workload $name may exist; see it: $this status $same; delete it: $this delete $same"
  step "create the workload $name" "read XPK's message: names in use, quota, type, cluster" \
    xpk workload create "${where[@]}" --workload "$name" --tpu-type "$type" \
    --num-slices "$slices" --docker-image "$image" --priority "$priority" \
    --max-restarts "$restarts" --restart-on-exit-codes 75,69 \
    --termination-grace-period-seconds "$grace" \
    --command "exec python -m srum_jax.main $(words "${training[@]}") --distributed"
  left=""
  say "the workload is queued; see: $this status $same; $this logs $same"
}

case $command in
  up)
    confirm "The image $image will be pushed, and $slices slice(s) $type used, in $cluster."
    build
    create
    ;;
  build)
    confirm "The image $image will be built and pushed."
    build
    ;;
  create)
    confirm "$slices slice(s) $type of the cluster $cluster will be used."
    create
    ;;
  status)
    step "list the workload $name" "check gcloud auth login, cluster, zone and project" \
      xpk workload list "${where[@]}" --filter-by-job "^$name\$"
    ;;
  logs)
    step "show the logs of $name" \
      "kubectl must point to the cluster: gcloud container clusters get-credentials $cluster --location ${zone%-*} --project $project" \
      kubectl logs --selector "xpk.google.com/workload=$name" --container jax-tpu --prefix \
      --tail "$lines"
    ;;
  delete)
    confirm "The workload $name will save and be deleted; a bucket is not touched."
    left="the workload $name may still run; see it: $this status $same"
    step "delete the workload $name" "give the same command again" \
      xpk workload delete "${where[@]}" --workload "$name" --force
    ;;
esac
