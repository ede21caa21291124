"""predictions.h5: the rows that an evaluation has sampled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from data_pipeline.console.cli import UserError
from data_pipeline.console.os_errors import is_of_system
from data_pipeline.params.spec import ParamSpec
from data_pipeline.shards.hdf5_files import HDF5_ERRORS, new_hdf5, open_without_need_of_lock, reason
from data_pipeline.synths.decoding import decode_numbers, value_names

PREDICTIONS_FILE = "predictions.h5"

Rows = Float[np.ndarray, "N W"]


def write_predictions(folder: Path, about: Mapping[str, Any], predicted: Rows, spec: ParamSpec) -> None:
    """Writes predictions.h5 to ``folder``.

    It has the ``rows`` (N, W), their decoded ``values`` (N, P) with their ``value_names`` (P,), and ``source_index``
    (N,). The attribute ``about`` says what was sampled, and how.
    """
    decoded = [decode_numbers(spec, row) for row in predicted]
    with new_hdf5(folder / PREDICTIONS_FILE) as file:
        file["rows"] = predicted.astype(np.float32)
        file["values"] = np.asarray(decoded, np.float64)
        file["value_names"] = value_names(spec)
        file["source_index"] = np.arange(len(predicted), dtype=np.int64)
        file.attrs["spec_name"], file.attrs["spec_hash"] = spec.name, spec.content_hash
        file.attrs["about"] = json.dumps(about)


def read_predictions(folder: Path, about: Mapping[str, Any], spec: ParamSpec) -> Rows | None:
    """The rows that an earlier run of the same evaluation wrote to ``folder``; None where there are none.

    Raises UserError where the folder holds another evaluation, or where the system cannot read the file.
    """
    path = folder / PREDICTIONS_FILE
    try:
        with open_without_need_of_lock(path) as file:
            same = file.attrs["spec_hash"] == spec.content_hash and json.loads(file.attrs["about"]) == about
            rows = file["rows"][:]
    except HDF5_ERRORS as error:  # Missing or damaged, unless the system fails: then the rows may be there.
        if is_of_system(error):
            raise UserError(f"{path}: {reason(error)}") from error
        return None
    if not same:
        raise UserError(f"{folder} holds another evaluation: give another --output, or remove it")
    return rows
