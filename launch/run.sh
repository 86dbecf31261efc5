#!/usr/bin/env bash
# Runs a command, and again as long as it ends with 75 (preempted after a clean save); a few times
# where something was lost.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: launch/run.sh COMMAND [ARGUMENT...]

Runs the command; when it ends with exit code 75 (preempted after a clean save) the same command
runs again, after RESTART_PAUSE seconds (10). So it does at most RESTART_LOSSES times (5) after 69
(another process, the storage or a damaged file is gone), 134, 137 or 139 (this process was aborted
or killed), counted from the last 75. Any other exit code is the end, and run.sh's own.
SIGTERM and SIGINT are handed on to the command as SIGTERM, and it is not started again.
EOF
}

say() { printf 'run.sh: %s %s: %s\n' "$(date -u +%FT%TZ)" "$(hostname)" "$*"; }

case ${1:-} in
  "" | -h | --help)
    usage
    [[ -n ${1:-} ]] && exit 0 || exit 2
    ;;
esac
pause=${RESTART_PAUSE:-10}
[[ $pause =~ ^[0-9]+$ ]] || {
  say "error: RESTART_PAUSE \"$pause\" is not a number of seconds"
  exit 2
}
losses=${RESTART_LOSSES:-5}
[[ $losses =~ ^[0-9]+$ ]] || {
  say "error: RESTART_LOSSES \"$losses\" is not a number"
  exit 2
}

child="" stopping="" signalled=""
# shellcheck disable=SC2329 # the trap calls it
hand_on() {
  stopping=1 signalled=1
  [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true
}
trap hand_on TERM INT

restarts=0 lost=0
while :; do
  say "started: $*"
  "$@" &
  child=$!
  [[ -z $stopping ]] || kill -TERM "$child" 2>/dev/null || true # it came before the child did
  code=0
  wait "$child" || code=$?
  # A signal ends `wait` while the command still saves.
  while [[ -n $signalled ]]; do
    signalled="" code=0
    wait "$child" || code=$?
  done
  child=""
  [[ -z $stopping ]] || break
  case $code in
    75) lost=0 what=preempted ;;
    69 | 134 | 137 | 139) lost=$((lost + 1)) what="something was lost, $lost of $losses" ;;
    *) break ;;
  esac
  ((lost <= losses)) || break
  restarts=$((restarts + 1))
  say "$what (exit code $code), restart $restarts in $pause s"
  sleep "$pause" &
  wait "$!" || true # a signal ends the pause
  [[ -z $stopping ]] || break
done
say "ended with exit code $code after $restarts restarts"
exit "$code"
