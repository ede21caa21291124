#!/bin/sh
# Renders shards one after the other and copies each finished one to a bucket. See --help.
set -eu

usage() {
    cat <<'END'
usage: scripts/render_to_bucket.sh URL SHARDS FLAGS...

Renders the shards (such as 0-9) with the flags of data_pipeline.render_shards, except --output and --shards, and copies
each finished one to URL (gs://BUCKET/FOLDER, s3://BUCKET/FOLDER or a folder). Shards that are at URL already are not
rendered again. After a preemption the same command continues; of an unfinished shard only the rows on this machine's
disk are kept. Patches that were drawn again are listed beside the shards, in rejected-N.jsonl.

  PYTHON    the interpreter (default: .venv/bin/python, else python3)
  SCRATCH   folder for the unfinished shard (default: data/render)
END
}

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/common.sh
. "$here/common.sh"

case ${1-} in
-h | --help)
    usage
    exit 0
    ;;
esac
[ $# -ge 3 ] || fail 'name a URL, the shards and the flags of render_shards: see --help'
url=${1%/}
shards=$2
shift 2
cd "$here/.."
python=$(find_python)
scratch=${SCRATCH:-data/render}

numbers=$("$python" -c 'import sys
from data_pipeline.console.cli import UserError, fail
from data_pipeline.shards.splits import parse_shards
try:
    print(*parse_shards(sys.argv[1]))
except UserError as error:
    fail(error)' "$shards")
there=$("$python" -m data_pipeline.storage ls "$url" 2>/dev/null || true) # A new folder has no files to list.

for number in $numbers; do
    if printf '%s\n' "$there" | grep -q " shard-$number\.h5\$"; then
        printf 'shard-%s.h5 is there already\n' "$number"
        continue
    fi
    folder=$scratch/$number
    "$python" -m data_pipeline.render_shards "$@" --output="$folder" --shards="$number"
    [ ! -f "$folder/rejected.jsonl" ] || mv "$folder/rejected.jsonl" "$folder/rejected-$number.jsonl"
    "$python" -m data_pipeline.storage sync "$folder" "$url"
    rm -rf "$folder"
done
