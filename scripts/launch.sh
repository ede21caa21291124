#!/bin/sh
# Starts a training run here, on a cluster or in a cloud, and prints how to watch and stop it. See --help.
set -eu

usage() {
    cat <<'END'
usage: scripts/launch.sh CONFIG [--local | --slurm | --tpu | --sky | --ovh] [OPTION...] [-- FLAGS...]

  scripts/launch.sh configs/flow_100k.py:lr_low --slurm -- --config.train.steps=100000

Checks the programs and keys of the target and the data set, then starts synthjax.train with CONFIG and the FLAGS, and
prints the job's id and the commands to watch and stop it. The same command again continues the same run.

  --local        in the background of this machine (default)
  --slurm        by scripts/slurm/train.sbatch, from a folder that all nodes can read
  --tpu          on a Cloud TPU pod slice, by scripts/tpu_pod.sh, which makes the slice if there is none
  --sky          on any cloud, by SkyPilot and scripts/sky/train_gpu.yaml
  --ovh          on OVHcloud AI Training, by scripts/ovh.sh
  --stream       follows the log; Ctrl-C stops following, not the run
  --skip-build   does not build and push the image (--ovh), but uses the last one
  --skip-check   does not check the data set

  DATA           the data set, unless FLAGS have --config.data.root; gs:// or s3:// for a cloud
  RUNS           folder of workdirs, unless FLAGS have --workdir (default: runs); gs:// or s3:// for a cloud
  PYTHON         the interpreter (default: .venv/bin/python, else python3)
  WANDB_API_KEY  for --config.wandb=True
  SBATCH_FLAGS   further options of sbatch, such as --nodes=4 --gpus-per-node=8; sbatch reads SBATCH_PARTITION itself
  SKY_TASK       the file in scripts/sky (default: train_gpu.yaml)
  SKY_FLAGS      further options of sky jobs launch, such as --num-nodes 2 --infra gcp
  ENV_FILE       another file than .env

These variables, and those of tpu_pod.sh and ovh.sh, are read from the environment, or from .env in the root of the
repository. .env.example lists all of them.
END
}

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/common.sh
. "$here/common.sh"

config=
target=local
stream=
build=yes
check=yes
while [ $# -gt 0 ]; do
    option=$1
    shift
    case $option in
    -h | --help)
        usage
        exit 0
        ;;
    --local | --slurm | --tpu | --sky | --ovh) target=${option#--} ;;
    --stream) stream=yes ;;
    --skip-build) build= ;;
    --skip-check) check= ;;
    --) break ;;
    -*) fail "unknown option $option: see --help; flags of training follow --" ;;
    *)
        [ -z "$config" ] || fail "one CONFIG at most, not also $option: see --help"
        config=$option
        ;;
    esac
done
[ -n "$config" ] || fail 'name a config, such as configs/flow_100k.py: see --help'
cd "$here/.."
load_env "${ENV_FILE:-.env}"
python=$(find_python)

# FLAGS come before the environment.
workdir=$(flag_value workdir "$@")
if [ -z "$workdir" ]; then
    variant=$(printf '%s' "$config" | sed 's|.*/||; s|\.py||; s/[^A-Za-z0-9_]\{1,\}/-/g')
    workdir=${RUNS:-runs}
    workdir=${workdir%/}/$variant
    set -- --workdir="$workdir" "$@"
fi
if [ -n "${DATA-}" ] && [ -z "$(flag_value config.data.root "$@")" ]; then
    set -- --config.data.root="$DATA" "$@"
fi
set -- --config="$config" "$@"
# Names of jobs allow fewer characters than names of folders.
name=$(basename "$workdir" | tr 'A-Z_' 'a-z-' | sed 's/[^a-z0-9-]\{1,\}/-/g; s/^-*//; s/-*$//')
[ -n "$name" ] || fail "--workdir=$workdir has no name to call the job by: --workdir=FOLDER/NAME"

# The programs and keys of the target.

# in_bucket NAME VALUE SCHEME...: machines in a cloud cannot read folders of this machine.
in_bucket() {
    flag=$1
    value=$2
    shift 2
    for scheme; do
        case $value in "$scheme://"*) return ;; esac
    done
    complain "--$target needs $flag in a bucket, not '$value': $(printf '%s://BUCKET/FOLDER ' "$@")"
}

clouds() {
    case $target in
    tpu) in_bucket "$@" gs ;;
    sky) in_bucket "$@" gs s3 ;;
    ovh) in_bucket "$@" s3 ;;
    esac
}

needs_program "$python" 'make .venv, or name another interpreter by PYTHON'
case $target in
slurm)
    for program in sbatch squeue scancel; do needs_program "$program" 'run this on a login node of the cluster'; done
    ;;
tpu)
    needs_program gcloud 'https://cloud.google.com/sdk/docs/install, then gcloud auth login'
    needs_program git 'it tells which files belong to the repository'
    needs_key TPU_ZONE 'the zone of the TPU, such as us-central1-a'
    ;;
sky) needs_program sky "pip install 'skypilot[gcp,aws]', then sky check" ;;
ovh)
    needs_program ovhai 'https://cli.gra.ai.cloud.ovh.net, then ovhai login'
    [ -z "$build" ] || needs_program docker 'https://docs.docker.com/engine/install, or --skip-build'
    needs_key OVH_IMAGE 'the image to build, push and run, such as REGISTRY/synthjax-train:1'
    needs_key OVH_DATASTORE 'alias of the S3 store with data and runs (ovhai datastore list)'
    ;;
esac
clouds "--workdir or RUNS" "$workdir"
case "$target $(flag_value config.wandb "$@")" in
'tpu True' | 'sky True') needs_key WANDB_API_KEY 'the key of Weights & Biases, or --config.wandb=False' ;;
esac
checked
if [ "$target" = ovh ]; then ovhai me >/dev/null 2>&1 || fail 'ovhai knows no account: ovhai login'; fi

# The config and the data set.

found=$("$python" scripts/data_of_run.py "$@") || exit $?
data=$(printf '%s\n' "$found" | sed -n 1p)
spec=$(printf '%s\n' "$found" | sed -n 2p)
if [ -n "$data" ]; then
    clouds "--config.data.root or DATA" "$data"
    checked
fi
case $check$data in
yes*://*)
    files=$("$python" -m data_pipeline.storage ls "$data") || exit $?
    for file in train.h5 stats.npz; do
        printf '%s\n' "$files" | grep -q " $file\$" || complain "$data holds no $file: sync a whole data set there"
    done
    checked
    ;;
yes?*) "$python" -m data_pipeline.check "$data" --spec="$spec" >&2 || fail "the data set $data is not fit to train on" ;;
esac

# The run.

# started ID WATCH STATUS STOP
started() {
    printf 'job:     %s\nwatch:   %s\nstatus:  %s\nstop:    %s\n' "$@"
}

run_local() {
    id=$(sh scripts/background.sh start "$name" "$python" -m synthjax.train "$@") || exit $?
    watch="scripts/background.sh logs $name --follow"
    started "$name (process $id)" "$watch" "scripts/background.sh status $name" "scripts/background.sh stop $name"
    [ -z "$stream" ] || sh scripts/background.sh logs "$name" --follow
}

run_slurm() {
    mkdir -p runs/jobs
    # Waits for a queued or running job of the same name: two at once would write one workdir.
    # shellcheck disable=SC2086 # Several options in one value.
    id=$(PYTHON=$python sbatch --parsable --job-name="$name" --output="runs/jobs/%x-%j.log" --dependency=singleton \
        ${SBATCH_FLAGS-} scripts/slurm/train.sbatch "$@") || exit $?
    id=${id%%;*} # The cluster's name follows the semicolon.
    log=runs/jobs/$name-$id.log
    started "$id" "tail -F $log" "squeue --job=$id" "scancel $id"
    [ -n "$stream" ] || return 0
    while [ ! -f "$log" ] && [ -n "$(squeue --noheader --job="$id" 2>/dev/null)" ]; do sleep 2; done
    tail -n +1 -F "$log" &
    trap 'kill $! 2>/dev/null' EXIT
    trap 'exit 130' INT TERM
    while [ -n "$(squeue --noheader --job="$id" 2>/dev/null)" ]; do sleep 2; done
    sleep 1 # tail looks once a second.
}

run_tpu() {
    sh scripts/tpu_pod.sh create
    sh scripts/tpu_pod.sh install
    sh scripts/tpu_pod.sh run "$@"
    pod=scripts/tpu_pod.sh
    started "${TPU_NAME:-synthjax} in $TPU_ZONE" "$pod logs --follow" "$pod status" \
        "$pod stop, and $pod delete, for until then it costs"
    [ -z "$stream" ] || sh scripts/tpu_pod.sh logs --follow
}

run_sky() {
    shift # The task's file sets --config itself.
    flags=$(quote "$@")
    set -- --name "$name" --yes --detach-run --env CONFIG="$config" --env WORKDIR="$workdir" --env DATA="$data" \
        --env FLAGS="$flags"
    # Only a secret's name is passed: sky reads the value from the environment.
    case "$workdir $data" in
    *s3://*) secrets='WANDB_API_KEY AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY' ;;
    *) secrets=WANDB_API_KEY ;;
    esac
    for key in $secrets; do
        if eval "[ -n \"\${$key-}\" ]"; then set -- "$@" --secret "$key"; fi
    done
    for key in AWS_ENDPOINT_URL_S3 AWS_DEFAULT_REGION; do
        if eval "[ -n \"\${$key-}\" ]"; then set -- "$@" --env "$key"; fi
    done
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    trap 'exit 130' INT TERM HUP
    # shellcheck disable=SC2086 # Several options in one value.
    { sky jobs launch "$@" ${SKY_FLAGS-} "scripts/sky/${SKY_TASK:-train_gpu.yaml}" || echo $? >"$work/code"; } |
        tee "$work/told"
    [ ! -f "$work/code" ] || exit "$(cat "$work/code")"
    id=$(sed -n 's/.*Managed Job ID: *\([0-9][0-9]*\).*/\1/p' "$work/told" | tail -n 1)
    job=${id:--n $name}
    started "${id:-$name}" "sky jobs logs $job" 'sky jobs queue' "sky jobs cancel $job"
    # shellcheck disable=SC2086 # An id, or -n and a name.
    [ -z "$stream" ] || sky jobs logs $job
}

run_ovh() {
    if [ -n "$build" ]; then
        docker build --platform=linux/amd64 --file=scripts/docker/train-gpu.Dockerfile --tag="$OVH_IMAGE" .
        docker push "$OVH_IMAGE"
    fi
    id=$(sh scripts/ovh.sh run "$name" "$@") || exit $?
    ovh=scripts/ovh.sh
    started "$id" "$ovh logs $id --follow" "$ovh status $id" "$ovh stop $id"
    [ -z "$stream" ] || sh scripts/ovh.sh logs "$id" --follow
}

"run_$target" "$@"
