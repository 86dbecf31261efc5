# shellcheck shell=bash
# How the launchers speak: every step is named, a failed one stops everything and says what to do.
# To be sourced by bash in strict mode. A launcher may set `left` to say what a failure leaves behind.

left=""

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

# die MESSAGE: the end of a launcher that was asked for something it cannot do.
die() {
  say "error: $*"
  exit 2
}

# step WHAT ADVICE COMMAND...: runs COMMAND; where it fails, exits with 1 after naming both.
step() {
  local what=$1 advice=$2 code=0
  shift 2
  say "$what"
  "$@" || code=$?
  [[ $code -eq 0 ]] || failed "$what" "$advice" "$code"
}

# failed WHAT ADVICE [CODE]
failed() {
  say "error: this failed: $1${3:+ (exit code $3)}"
  say "what to do: $2"
  [[ -z $left ]] || say "what is left: $left"
  exit 1
}

# confirm QUESTION: goes on after --yes (yes=1) or a typed y; without a terminal --yes is needed.
confirm() {
  [[ -n ${yes:-} ]] && return
  say "$1"
  [[ -t 0 ]] || die "nothing was done; add --yes to agree"
  read -r -p "Go on? [y/N] "
  [[ $REPLY == [yY]* ]] || die "nothing was done"
}

# words ARG...: the arguments as one line that a shell reads back as they are.
words() {
  local line
  printf -v line '%q ' "$@"
  printf '%s' "${line% }"
}

# check_training ARG...: what python -m srum_jax.main needs, and a work folder that all hosts see.
check_training() {
  local config="" workdir="" option
  while (($#)); do
    option=$1
    shift
    case $option in
      --config) config=${1:-} ;;
      --config=*) config=${option#*=} ;;
      --workdir) workdir=${1:-} ;;
      --workdir=*) workdir=${option#*=} ;;
    esac
  done
  [[ -n $config ]] || die "no config: give the training arguments after --, beginning with --config"
  [[ -n $workdir ]] || die "no work folder: add --workdir to the training arguments"
  [[ $workdir == gs://* || $workdir == /* ]] || die \
    "--workdir $workdir: every host must see the same folder, and it must outlive the machines;" \
    "give a bucket (gs://...) or the full path of a shared disk"
}
