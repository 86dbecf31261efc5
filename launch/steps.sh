# shellcheck shell=bash
# What the launchers share: options, and steps that are named; a failed one stops everything and
# says what to do. To be sourced by bash in strict mode, by a script that has a function `usage`.

left="" # what a failure leaves behind; a launcher sets it

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

interrupted() {
  say "interrupted"
  [[ -z $left ]] || say "what is left: $left"
  exit "$1"
}
trap 'interrupted 130' INT
trap 'interrupted 143' TERM

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

# read_command COMMANDS ARG...: `command` becomes the first argument, one of COMMANDS, which are
# names with spaces between them.
read_command() {
  command=${2:-}
  case $command in
    -h | --help | help)
      usage
      exit 0
      ;;
    "")
      usage >&2
      exit 2
      ;;
  esac
  [[ $command != *" "* && " $1 " == *" $command "* ]] || die "no command \"$command\"; see --help"
}

training=() # what follows -- : the arguments of python -m srum_jax.main

# read_options VALUED FLAGS LISTS ARG...: `--zone Z` and `--zone=Z` set `zone`, a flag --spot sets
# `spot` to 1, an option of LISTS adds to the array of its name; what follows -- becomes `training`.
# VALUED, FLAGS and LISTS are names with spaces between them.
read_options() {
  local valued=" $1 " flags=" $2 " lists=" $3 " option value
  shift 3
  while (($#)); do
    case $1 in
      -h | --help)
        usage
        exit 0
        ;;
      --)
        shift
        training=("$@")
        return
        ;;
    esac
    [[ $1 =~ ^--([a-z]+)(=(.*))?$ ]] || die "no option \"$1\"; training arguments come after --"
    option=${BASH_REMATCH[1]} value=${BASH_REMATCH[3]:-}
    if [[ $flags == *" $option "* && $1 == "--$option" ]]; then
      printf -v "$option" 1
      shift
      continue
    fi
    [[ $valued$lists == *" $option "* ]] || die "no option \"$1\"; training arguments come after --"
    if [[ $1 == "--$option" ]]; then
      [[ $# -ge 2 && $2 != --* ]] || die "$1 needs a value"
      value=$2
      shift
    fi
    shift
    if [[ $lists == *" $option "* ]]; then
      eval "$option+=(\"\$value\")"
    else
      printf -v "$option" %s "$value"
    fi
  done
}

# check_training: what `training` must have, and a work folder that all hosts see.
check_training() {
  local config="" workdir="" i
  for ((i = 0; i < ${#training[@]}; i++)); do
    case ${training[i]} in
      --config) config=${training[i + 1]:-} ;;
      --config=*) config=${training[i]#*=} ;;
      --workdir) workdir=${training[i + 1]:-} ;;
      --workdir=*) workdir=${training[i]#*=} ;;
    esac
  done
  [[ -n $config ]] || die "no config: give the training arguments after --, beginning with --config"
  [[ -n $workdir ]] || die "no work folder: add --workdir to the training arguments"
  [[ $workdir == gs://* || $workdir == /* ]] || die \
    "--workdir $workdir: every host must see the same folder, and it must outlive the machines;" \
    "give a bucket (gs://...) or the full path of a shared disk"
}
