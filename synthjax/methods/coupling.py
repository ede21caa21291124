"""Minibatch optimal transport: pairs noise rows with data rows (Tong et al. 2024; paper, section 3)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from data_pipeline.console.cli import UserError

# Rows coupled together. The cost of an assignment grows with the cube of their number.
GROUP_ROWS = 128


def group_rows(batch_size: int) -> int:
    """The rows of a coupling group: all of a small batch, ``GROUP_ROWS`` of a larger one.

    Raises:
      UserError: if the batch is not a whole number of groups.
    """
    rows = min(GROUP_ROWS, batch_size)
    if batch_size % rows:
        raise UserError(f"data.batch_size={batch_size} is above {rows} but not a multiple of it")
    return rows


def couple_order(noise: Float[np.ndarray, "N W"], data: Float[np.ndarray, "N W"]) -> Int[np.ndarray, " N"]:
    """The index of the noise row paired with each data row; the sum of Euclidean distances is the smallest possible."""
    row, column = linear_sum_assignment(cdist(noise, data))
    order = np.empty_like(row)
    order[column] = row
    return order


def couple(noise: Float[np.ndarray, "N W"], data: Float[np.ndarray, "N W"]) -> Float[np.ndarray, "N W"]:
    """The noise rows in the order of ``couple_order``."""
    return noise[couple_order(noise, data)]
