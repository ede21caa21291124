"""``rejected.jsonl``: the patches that killed the synthesizer or sounded before their note.

It lies in the folder of the shards that lack them.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from data_pipeline.console.append_log import append_json_line, read_json_lines
from data_pipeline.console.cli import UserError
from data_pipeline.console.os_errors import why
from data_pipeline.render.row_renderer import RenderSettings
from data_pipeline.render.worker_messages import Attempt
from data_pipeline.render.worker_pool import Rejection

REJECTED_FILE = "rejected.jsonl"


class RejectedPatches:
    """The rejected attempts of one data set (spec, prior and seed) in a folder. Several runs may append at once."""

    def __init__(self, folder: Path, settings: RenderSettings) -> None:
        self._path = folder / REJECTED_FILE
        self._settings = settings
        spec, prior = settings.synth.spec, settings.prior_hash
        self._identity = {"spec": spec.name, "spec_hash": spec.content_hash, "seed": settings.seed}
        self._identity |= {"prior_hash": prior} if prior else {}

    def read(self) -> frozenset[Attempt]:
        """Reads the attempts that must not be made again."""
        attempts = set()
        for entry in read_json_lines(self._path):
            with suppress(ValueError, KeyError, TypeError):
                if all(entry.get(name) == self._identity.get(name) for name in ("spec_hash", "seed", "prior_hash")):
                    attempts.add((int(entry["index"]), int(entry["attempt"])))
        return frozenset(attempts)

    def append(self, rejection: Rejection) -> None:
        """Appends a patch with its encoded row, on the disk when this returns. Raises UserError."""
        row = self._settings.prior.sample(self._settings.seed, [rejection.index], [rejection.attempt])[0]
        entry = {
            **self._identity,
            "index": rejection.index,
            "attempt": rejection.attempt,
            "reason": rejection.reason,
            "detail": rejection.detail,
            "row": [round(float(value), 9) for value in row],
        }
        try:
            append_json_line(self._path, entry)
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {why(error)}") from error
