#!/bin/sh
# Trains on OVHcloud AI Training, by its program ovhai. See --help.
set -eu

usage() {
    cat <<'END'
usage: scripts/ovh.sh run NAME FLAGS...    starts synthjax.train with these flags; prints the job's id
       scripts/ovh.sh status ID            prints the job, its state and its history
       scripts/ovh.sh logs ID [--follow]
       scripts/ovh.sh save ID              copies the workdir to its bucket now
       scripts/ovh.sh stop ID              asks the run to save its state and end
       scripts/ovh.sh list

Data and workdir are in buckets, which OVH mounts in the job: run takes --config.data.root=s3://BUCKET/FOLDER and
--workdir=s3://BUCKET/FOLDER and gives training the folders where they are mounted. The workdir is copied to its bucket
when the job ends or is stopped, and at each save.

  OVH_IMAGE       the image of the jobs: scripts/docker/train-gpu.Dockerfile, pushed to a registry
  OVH_DATASTORE   alias under which ovhai knows the S3 store of the buckets (ovhai datastore list)
  OVH_FLAVOR      the machine (default: l40s-1-gpu; ovhai capabilities flavor list; not V100S, too old for CUDA 13)
  OVH_GPUS        how many GPUs (default: 1; at most 4)
  OVH_SECRETS     BUCKET/FOLDER of a private bucket that holds a file netrc with the key of Weights & Biases

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
run | status | logs | save | stop | list) shift ;;
*) fail "run, status, logs, save, stop or list, not '$command': see --help" ;;
esac
cd "$here/.."
load_env "${ENV_FILE:-.env}"
needs_program ovhai 'https://cli.gra.ai.cloud.ovh.net, then ovhai login'
checked

# volume s3://BUCKET/FOLDER MOUNT-POINT RIGHTS: prints the value of ovhai's --volume.
volume() {
    path=${1#s3://}
    folder=${path#*/}
    [ "$folder" != "$path" ] || folder=
    printf '%s@%s/%s:%s:%s' "${path%%/*}" "$OVH_DATASTORE" "${folder%/}" "$2" "$3"
}

run() {
    name=${1-}
    case $name in '' | -*) fail 'run needs a name for the job, then flags of synthjax.train: see --help' ;; esac
    shift
    needs_key OVH_IMAGE 'the image to run, such as REGISTRY/synthjax-train:1'
    needs_key OVH_DATASTORE 'alias of the S3 store with data and runs (ovhai datastore list)'
    checked
    [ -n "$(flag_value config "$@")" ] || fail 'run needs the flags of synthjax.train: --config=... --workdir=s3://...'
    workdir=$(flag_value workdir "$@")
    data=$(flag_value config.data.root "$@")
    case $workdir in s3://*) ;; *) fail 'run needs --workdir=s3://BUCKET/FOLDER: the job itself keeps nothing' ;; esac
    case $data in '' | s3://*) ;; *) fail "--config.data.root=$data: OVH mounts buckets only, s3://BUCKET/FOLDER" ;; esac
    # The last value of a flag counts: that of the mounted folder.
    set -- "$@" --workdir=/workspace/run
    [ -z "$data" ] || set -- "$@" --config.data.root=/workspace/data
    # The job's environment can only be set by arguments, which others may see, so no key is set there.
    set -- "$OVH_IMAGE" -- python -m synthjax.train "$@"
    [ -z "$data" ] || set -- --volume "$(volume "$data" /workspace/data ro:cache)" "$@"
    [ -z "${OVH_SECRETS-}" ] || set -- --volume "$(volume "$OVH_SECRETS" /workspace/secrets ro)" \
        --env NETRC=/workspace/secrets/netrc "$@"
    told=$(ovhai job run --output json --name "$name" --flavor "${OVH_FLAVOR:-l40s-1-gpu}" --gpu "${OVH_GPUS:-1}" \
        --volume "$(volume "$workdir" /workspace/run rw)" "$@")
    printf '%s' "$told" | "$(find_python)" -c 'import json, sys; print(json.load(sys.stdin)["id"])' 2>/dev/null ||
        fail "ovhai answered no job: $told"
}

one_job() {
    case ${1-} in '' | -*) fail "$command needs the ID of a job: scripts/ovh.sh list" ;; esac
}

status() {
    one_job "$@"
    ovhai job get "$1"
}

logs() {
    one_job "$@"
    case ${2-} in
    '') ovhai job logs "$1" ;;
    --follow) ovhai job logs "$1" --follow ;;
    *) fail "unknown option $2: see --help" ;;
    esac
}

save() {
    one_job "$@"
    ovhai job push-data "$1"
}

stop() {
    one_job "$@"
    ovhai job stop "$1"
}

list() {
    ovhai job list
}

"$command" "$@"
