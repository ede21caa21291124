"""Locks: parameters whose values are given, in every answer.

A flow draws the other columns to fit them (``methods.sampling``), the rows of other models and of libraries get them
before they are rendered, and the search leaves them as they are.

Shapes: W row width.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.console.cli import UserError
from data_pipeline.params.groups import Panel
from data_pipeline.params.kinds import Categorical, NoteDuration, Parameter
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


def names_of(text: str, spec: ParamSpec, panel: Panel) -> list[str]:
    """The parameters that a text means, in spec order: one name, a pattern such as ``op_1_*``, or words of a group.

    ``operator 3`` means all parameters of that group, ``envelopes`` those of every group with the word "envelope".
    Raises UserError if it means none.
    """
    headings, words = panel.headings(spec), _words(text)
    names = fnmatch.filter(spec.slices, text.lower() if text.lower() in spec.slices else text)
    names = names or [name for name in spec.slices if words and words <= _words(headings[name][0])]
    if not names:
        groups = ", ".join(dict.fromkeys(group for group, _ in headings.values()))
        raise UserError(f"{text!r} is no parameter and no group of spec {spec.name}; its groups are {groups}")
    return names


def _words(text: str) -> set[str]:
    """The words of a text in small letters, without the s of a plural."""
    return {word.removesuffix("s") for word in text.lower().split()}


def parse_locks(
    texts: Iterable[str], spec: ParamSpec, panel: Panel, start: Mapping[str, Any] | None
) -> tuple[dict[str, Any], set[str]]:
    """Locked values by parameter name, of texts NAME=VALUE, or NAME for the value of a start.

    Args:
      texts: names are those of ``names_of``; values are raw, and a category's may be its label.
      start: the raw values of the start; None if there is none.

    Returns:
      The values, and the names of parameters of the note that are locked as they are found in each sound.

    Raises UserError for a text that means nothing.
    """
    values: dict[str, Any] = {}
    notes = {parameter.name for parameter in spec.note_params}
    as_found: set[str] = set()
    for text in texts:
        name, given, value = text.partition("=")
        for one in names_of(name, spec, panel):
            if given:
                values[one] = _value(spec, one, value)
            elif one in notes:
                as_found.add(one)
            elif start is None:
                raise UserError(
                    f"--lock={text} has no value: give --lock={one}=VALUE, or a patch to begin with --start"
                )
            else:
                values[one] = start[one]
    return values, as_found


def _value(spec: ParamSpec, name: str, text: str) -> Any:
    [parameter] = [one for one in spec.parameters if one.name == name]
    try:
        value = _parsed(parameter, text)
        parameter.encode(value)
    except ValueError as error:
        raise UserError(f"--lock={name}={text}: {error}") from error
    return value


def _parsed(parameter: Parameter, text: str) -> Any:
    match parameter:
        case Categorical():
            labels = [str(label).lower() for label in parameter.values]
            return parameter.raw_values[labels.index(text.lower())] if text.lower() in labels else float(text)
        case NoteDuration():
            start, _, end = text.partition(",")
            return float(start), float(end)
    return float(text)
