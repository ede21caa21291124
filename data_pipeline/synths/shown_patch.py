"""A patch of a preset file, as people read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ShownValue:
    """One value of a patch: ``group`` and ``label`` as on the synthesizer's panel, ``text`` as it is shown there."""

    name: str
    group: str
    label: str
    value: float
    text: str


@dataclass(frozen=True)
class ShownPatch:
    """A patch of a file.

    ``about`` has what the file says of it, such as its author. ``values`` are those that the spec has. ``outside`` has
    a line for each value that the spec does not have.
    """

    name: str
    about: Mapping[str, str]
    spec: str
    values: list[ShownValue]
    outside: list[str] = field(default_factory=list)
