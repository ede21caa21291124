"""Locks: parameters whose values are given, in every answer.

A flow draws the other columns to fit them (``methods.sampling``), the rows of other models and of libraries get them
before they are rendered, and the search leaves them as they are.

Shapes: W row width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.params.spec import ParamSpec


@dataclass(frozen=True)
class Locks:
    """Raw values by parameter name; pitch and note times may be among them."""

    spec: ParamSpec
    values: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Raises ValueError for an unknown name, for a value that is not legal, and if every parameter is locked."""
        if unknown := sorted(self.values.keys() - self.spec.slices.keys()):
            raise ValueError(f"{unknown[0]} is no parameter of spec {self.spec.name}")
        if self.values.keys() == self.spec.slices.keys():
            raise ValueError("every parameter is locked: there is nothing to find")
        _ = self.known

    @cached_property
    def known(self) -> NDArray[np.float32]:
        """The columns (W,) of the values, and NaN in those of all other parameters."""
        row = np.full(self.spec.width, np.nan, np.float32)
        for parameter in self.spec.parameters:
            if parameter.name in self.values:
                value = self.values[parameter.name]
                try:
                    row[self.spec.slices[parameter.name]] = parameter.encode(value)
                except TypeError as error:
                    raise ValueError(f"{parameter.name}: {value!r} is no value of its kind") from error
        return row

    def on(self, row: NDArray[np.floating]) -> NDArray[np.float32]:
        """A row (W,) with the values."""
        return np.where(np.isnan(self.known), row, self.known).astype(np.float32)
