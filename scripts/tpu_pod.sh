#!/bin/sh
# Makes, uses and deletes a Cloud TPU pod slice. See --help.
set -eu

usage() {
    cat <<'END'
usage: scripts/tpu_pod.sh COMMAND

  create                 requests the slice and waits for it; replaces a preempted one
  install                copies the repository to every worker and makes its environment there
  run FLAGS...           starts synthjax.train with these flags on every worker, detached
  status                 prints the state of the slice, and of the run on every worker
  logs [--follow] [--worker=N]    prints the run's log of worker N (default: 0)
  stop                   asks the run to save its state and end; the slice stays, and you pay for it
  delete                 deletes the slice
  list                   lists all slices and requests in the zone

  TPU_NAME      name of the slice (default: synthjax)
  TPU_ZONE      its zone, such as us-central1-a
  TPU_PROJECT   the Google Cloud project (default: gcloud's own)
  TPU_TYPE      accelerator type (default: v5litepod-16)
  TPU_RUNTIME   TPU software version (default: the one for JAX of that type)
  TPU_SPOT      yes (default): may be preempted, at a fraction of the price; no: may not
  TPU_QUEUED    yes (default): a queued resource, which waits for capacity; no: made at once or not at all
  TPU_SERVICE_ACCOUNT    service account of the workers (default: the project's own)
  WANDB_API_KEY          is copied to the workers, in a file that only their user can read

These variables are read from the environment, or from .env in the root of the repository.
END
}

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/common.sh
. "$here/common.sh"

command=${1-}
case $command in
-h | --help)
    usage
    exit 0
    ;;
create | install | run | status | logs | stop | delete | list) shift ;;
*) fail "create, install, run, status, logs, stop, delete or list, not '$command': see --help" ;;
esac
cd "$here/.."
load_env "${ENV_FILE:-.env}"
name=${TPU_NAME:-synthjax}
type=${TPU_TYPE:-v5litepod-16}
secrets=.synthjax-secrets # In the home folder of the workers.

needs_program gcloud 'https://cloud.google.com/sdk/docs/install, then gcloud auth login'
needs_key TPU_ZONE 'the zone of the TPU, such as us-central1-a'
for key in TPU_SPOT TPU_QUEUED; do
    eval "value=\${$key:-yes}"
    case $value in yes | no) ;; *) complain "$key is yes or no, not '$value'" ;; esac
done
checked
spot=${TPU_SPOT:-yes}
queued=${TPU_QUEUED:-yes}

# tpu GROUP ACTION ...: runs gcloud compute tpus in the zone and project.
tpu() {
    gcloud compute tpus "$@" --zone="$TPU_ZONE" ${TPU_PROJECT:+"--project=$TPU_PROJECT"}
}

# on WORKERS SHELL-CODE: runs the code on the workers, in a shell.
on() {
    tpu tpu-vm ssh "$name" --worker="$1" --command="$2"
}

runtime() {
    case $type in
    v6e-*) printf v2-alpha-tpuv6e ;;
    v5p-*) printf v2-alpha-tpuv5 ;;
    v5litepod-*) printf v2-alpha-tpuv5-lite ;;
    v2-* | v3-* | v4-*) printf tpu-ubuntu2204-base ;;
    *) fail "TPU_TYPE=$type is not known here: set TPU_RUNTIME to its TPU software version as well" ;;
    esac
}

# state_of GROUP FIELD: prints a state; prints nothing if the slice or request does not exist.
state_of() {
    # gcloud's answer goes to stdout; its errors are kept to be examined.
    { told=$(tpu "$1" describe "$name" --format="value($2)" 2>&1 >&3 3>&-); } 3>&1 && return
    case $told in *NOT_FOUND* | *'not found'*) ;; *) fail "$(printf '%s' "${told#ERROR: }" | tr '\n' ' ')" ;; esac
}

node_state() {
    state_of tpu-vm state
}

request_state() {
    state_of queued-resources state.state
}

create() {
    version=${TPU_RUNTIME:-$(runtime)}
    node=$(node_state)
    if [ "$node" = READY ]; then
        printf '%s is there already: %s\n' "$name" "$type"
        return
    fi
    if [ "$queued" = yes ]; then create_queued; else create_now; fi
    printf '%s is ready: it costs from now on until scripts/tpu_pod.sh delete\n' "$name"
}

create_now() {
    if [ -n "$node" ]; then
        printf '%s is %s: making it anew\n' "$name" "$node"
        tpu tpu-vm delete "$name" --quiet
    fi
    set -- --accelerator-type="$type" --version="$version"
    [ "$spot" = no ] || set -- "$@" --spot
    [ -z "${TPU_SERVICE_ACCOUNT-}" ] || set -- "$@" --service-account="$TPU_SERVICE_ACCOUNT"
    tpu tpu-vm create "$name" "$@"
}

create_queued() {
    state=$(request_state)
    case $state in
    '') ;;
    ACTIVE | FAILED | SUSPENDED | SUSPENDING)
        printf '%s is %s%s: making it anew\n' "$name" "$state" "${node:+, its node $node}"
        tpu queued-resources delete "$name" --force --quiet
        state=
        ;;
    *) printf 'the request for %s is under way\n' "$name" ;;
    esac
    if [ -z "$state" ]; then
        set -- --node-id="$name" --accelerator-type="$type" --runtime-version="$version"
        [ "$spot" = no ] || set -- "$@" --spot
        [ -z "${TPU_SERVICE_ACCOUNT-}" ] || set -- "$@" --service-account="$TPU_SERVICE_ACCOUNT"
        tpu queued-resources create "$name" "$@"
    fi
    printf 'waiting for capacity; Ctrl-C stops the waiting, not the request, and create waits again\n'
    while :; do
        state=$(request_state)
        case $state in
        ACTIVE) break ;;
        FAILED | SUSPENDED) fail "the request for $name is $state: scripts/tpu_pod.sh status tells why" ;;
        esac
        sleep "${TPU_POLL_SECONDS:-30}"
    done
}

# Packs the files that git tracks or would track, as they are on disk; never .env.
pack() {
    git -c core.quotePath=false ls-files --cached --others --exclude-standard -- . ':(exclude).env' |
        while IFS= read -r file; do
            if [ -e "$file" ]; then printf '%s\n' "$file"; fi
        done >"$1.list"
    [ -s "$1.list" ] || fail 'no files to copy: run this in a git clone of the repository'
    tar -czf "$1" -T "$1.list"
}

install() {
    needs_program git 'it tells which files belong to the repository'
    checked
    umask 077
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    trap 'exit 130' INT TERM HUP
    pack "$work/synthjax.tar.gz"
    printf 'copying %s bytes to every worker\n' "$(($(wc -c <"$work/synthjax.tar.gz")))"
    tpu tpu-vm scp "$work/synthjax.tar.gz" "$name:synthjax.tar.gz" --worker=all
    if [ -n "${WANDB_API_KEY-}" ]; then
        # Everyone on a machine can see arguments, and gcloud logs them, so the key travels in a file.
        printf 'WANDB_API_KEY=%s\n' "$(quote "$WANDB_API_KEY")" >"$work/secrets"
        tpu tpu-vm scp "$work/secrets" "$name:$secrets" --worker=all
    fi
    on all "mkdir -p synthjax && tar -xzf synthjax.tar.gz -C synthjax && cd synthjax && sh scripts/setup_vm.sh tpu"
}

run() {
    [ -n "$(flag_value config "$@")" ] || fail 'run needs the flags of synthjax.train: --config=... --workdir=gs://...'
    case $(flag_value workdir "$@") in
    gs://*) ;;
    *) fail 'run needs --workdir=gs://BUCKET/FOLDER: all workers write to it, and it outlives the slice' ;;
    esac
    on all "cd synthjax && set -a && { [ ! -f ../$secrets ] || . ../$secrets; } && set +a && \
sh scripts/background.sh start train .venv/bin/python -m synthjax.train $(quote "$@")"
}

status() {
    if [ "$queued" = yes ]; then
        request=$(request_state)
        printf 'request: %s\n' "${request:-none}"
    fi
    node=$(node_state)
    printf 'slice: %s\n' "${node:-none}"
    if [ "$node" = READY ]; then on all 'cd synthjax && sh scripts/background.sh status train'; fi
}

logs() {
    follow=
    worker=0
    for option; do
        case $option in
        --follow) follow=' --follow' ;;
        --worker=*) worker=${option#*=} ;;
        *) fail "unknown option $option: see --help" ;;
        esac
    done
    on "$worker" "cd synthjax && sh scripts/background.sh logs train$follow"
}

stop() {
    on all 'cd synthjax && sh scripts/background.sh stop train'
}

delete() {
    if [ "$queued" = yes ]; then
        tpu queued-resources delete "$name" --force --quiet
    else
        tpu tpu-vm delete "$name" --quiet
    fi
}

list() {
    tpu tpu-vm list
    tpu queued-resources list
}

"$command" "$@"
