"""Copies files to and from buckets of Google Cloud Storage (gs://), S3 and compatible servers (s3://).

    python -m data_pipeline.storage sync SOURCE TARGET     copy missing and different files; nothing is removed
    python -m data_pipeline.storage ls URL                 list the files under a URL, with their sizes in bytes
    python -m data_pipeline.storage buckets gs://          list the buckets; or s3://
    python -m data_pipeline.storage make-bucket URL        make a bucket, in --region

SOURCE and TARGET are folders, at most one of them in a cloud: gs://BUCKET/FOLDER, s3://BUCKET/FOLDER or a local path.
Files are compared by size and checksum. Several are transferred at a time; each is verified, and gets its name when it
is whole. After Ctrl-C or a broken connection the same command continues.

gs:// needs pip install 'synthjax[gcs]' and credentials: gcloud auth application-default login, the account of the
machine, or GOOGLE_APPLICATION_CREDENTIALS; buckets and make-bucket also GOOGLE_CLOUD_PROJECT if no project is known.
s3:// needs pip install 'synthjax[s3]', AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and for servers other than
Amazon's AWS_ENDPOINT_URL_S3. No command takes or prints a credential.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

from absl import flags

from data_pipeline.cloud.errors import scrub
from data_pipeline.cloud.sync import sync
from data_pipeline.cloud.urls import bucket_names, open_cloud, open_location
from data_pipeline.console import cli
from data_pipeline.console.cli import UserError


def _sync(source: str, target: str) -> None:
    origin, destination = open_location(source), open_location(target)
    try:
        report = sync(origin, destination, partial(print, file=sys.stderr))
    except KeyboardInterrupt:
        cli.fail("interrupted: finished files are whole, the same command goes on", cli.INTERRUPTED)
    print(f"{destination.url}: {report}")


def _list(url: str) -> None:
    entries = open_location(url).entries()
    if not entries:
        raise UserError(f"there are no files under {url}: check the name")
    for entry in entries:
        # A name may hold control characters, which a terminal would obey.
        print(f"{entry.size:>15} {entry.key if entry.key.isprintable() else repr(entry.key)}")


def _buckets(url: str) -> None:
    for name in bucket_names(url):
        print(f"{url}{name}")


def _make_bucket(url: str) -> None:
    if url.rstrip("/").count("/") > 2:
        raise UserError(f"{scrub(url)} is a folder of a bucket: folders need not be made, name the bucket alone")
    open_cloud(url).make_bucket(flags.FLAGS.region)
    print(f"{url}: made")


COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "sync": (_sync, "SOURCE TARGET"),
    "ls": (_list, "URL"),
    "buckets": (_buckets, "gs://|s3://"),
    "make-bucket": (_make_bucket, "URL [--region=NAME]"),
}


def main(argv: list[str]) -> None:
    """Entry point of the command."""
    name, arguments = argv[1] if len(argv) > 1 else "", argv[2:]
    if name not in COMMANDS:
        raise UserError(f"usage: python -m data_pipeline.storage COMMAND, one of {', '.join(COMMANDS)}; see --help")
    command, usage = COMMANDS[name]
    if len(arguments) != len(usage.split(" [")[0].split()):
        raise UserError(f"usage: python -m data_pipeline.storage {name} {usage}")
    command(*arguments)


if __name__ == "__main__":
    flags.DEFINE_string("region", None, "Region of a new bucket, such as us-central1 or eu-west-1.")
    cli.run(main)
