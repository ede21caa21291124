"""``rejected.jsonl``: the patches that killed the synthesizer, kept beside the shards that had to do without them."""

from __future__ import annotations

import json
import os
from pathlib import Path

from data_pipeline.batch_renderer import Attempt
from data_pipeline.cli import UserError
from data_pipeline.param_spec import ParamSpec
from data_pipeline.worker_pool import Rejection

REJECTED_FILE = "rejected.jsonl"


class RejectedPatches:
    """The rejected attempts of one data set (spec and seed) in a folder; other runs may append to the same file."""

    def __init__(self, folder: Path, spec: ParamSpec, seed: int) -> None:
        self._path = folder / REJECTED_FILE
        self._spec, self._seed = spec, seed

    def read(self) -> frozenset[Attempt]:
        """The attempts that need not be made again."""
        if not self._path.exists():
            return frozenset()
        attempts = set()
        for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
                if (entry["spec_hash"], entry["seed"]) == (self._spec.content_hash, self._seed):
                    attempts.add((int(entry["index"]), int(entry["attempt"])))
            except (ValueError, KeyError, TypeError):
                continue  # Torn by a crash while it was written: the patch will be found again.
        return frozenset(attempts)

    def append(self, rejection: Rejection) -> None:
        """Adds one, with its encoded row for whoever wants to see why."""
        row = self._spec.sample(self._seed, [rejection.index], [rejection.attempt])[0]
        entry = {
            "spec": self._spec.name,
            "spec_hash": self._spec.content_hash,
            "seed": self._seed,
            "index": rejection.index,
            "attempt": rejection.attempt,
            "reason": rejection.reason,
            "detail": rejection.detail,
            "row": [round(float(value), 9) for value in row],
        }
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                size = os.fstat(descriptor).st_size
                torn = size and os.pread(descriptor, 1, size - 1) != b"\n"
                # One write of a line of its own, so that runs on the same folder do not mix theirs.
                os.write(descriptor, (("\n" if torn else "") + json.dumps(entry) + "\n").encode())
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {error.strerror}") from error
