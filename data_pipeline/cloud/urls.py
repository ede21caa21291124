"""Opens the locations of gs://BUCKET/FOLDER, s3://BUCKET/FOLDER and local paths."""

from __future__ import annotations

import re
from pathlib import Path

from data_pipeline.cloud.errors import scrub
from data_pipeline.cloud.local import LocalFolder
from data_pipeline.cloud.locations import CloudLocation, check_key
from data_pipeline.console.cli import UserError

# The extra of this package that each scheme needs.
EXTRAS = {"gs": "gcs", "s3": "s3"}
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")


def is_url(text: str) -> bool:
    """Whether a text is a URL, not a local path."""
    return _URL.match(text) is not None


def open_location(text: str) -> LocalFolder | CloudLocation:
    """The location of a URL or path. Raises UserError for an impossible URL or a missing library."""
    return open_cloud(text) if is_url(text) else LocalFolder(Path(text))


def open_cloud(url: str) -> CloudLocation:
    """The location of a URL. Raises UserError as open_location does, and for a path."""
    scheme, rest = _split(url)
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.rstrip("/")
    if not bucket:
        raise UserError(f"{scrub(url)!r} names no bucket: write {scheme}://BUCKET/FOLDER")
    if not _BUCKET.fullmatch(bucket):
        raise UserError(
            f"{scrub(url)!r}: no bucket has such a name: it has 3 characters or more, of a-z, 0-9, '-', '_' and '.', "
            "the first and the last a letter or a digit"
        )
    if prefix:
        check_key(prefix, f"{scheme}://{bucket}")
    return _backend(scheme)(bucket, prefix)


def bucket_names(url: str) -> list[str]:
    """The buckets of ``gs://`` or ``s3://``, sorted. Raises UserError for anything else."""
    scheme, rest = _split(url)
    if rest:
        raise UserError(f"{scrub(url)!r} is more than a service: write {scheme}://")
    return sorted(_backend(scheme).bucket_names())


def _split(url: str) -> tuple[str, str]:
    match = _URL.fullmatch(url)
    if match is None or match[1] not in EXTRAS:
        raise UserError(f"{scrub(url)!r} is not in a cloud that is known here: write gs://BUCKET/FOLDER or s3://…")
    return match[1], match[2]


def _backend(scheme: str) -> type[CloudLocation]:
    try:
        if scheme == "gs":
            from data_pipeline.cloud.gcs import GcsLocation

            return GcsLocation
        from data_pipeline.cloud.s3 import S3Location

        return S3Location
    except ImportError as error:
        raise UserError(f"{scheme}:// needs {error.name}: pip install 'synthjax[{EXTRAS[scheme]}]'") from error
