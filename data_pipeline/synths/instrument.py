"""What is known of a synthesizer without opening it: its specs, its panel, its preset files, what installs it.

docs/synthesizers.md shows how to add one.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data_pipeline.console.cli import UserError
from data_pipeline.params.groups import Panel
from data_pipeline.params.spec import ParamSpec, load_spec
from data_pipeline.synths.protocol import Synth, SynthSettings

Values = Mapping[str, Any]
"""Raw values by parameter name."""


@dataclass(frozen=True)
class FilePatch:
    """A patch of a preset file.

    Attributes:
      name: the patch's name.
      about: what else the file says of it, such as its author.
      spec: the name of the spec that fits it best.
      values: raw values of the spec's parameters, without the note's.
      outside: a line for each value that the spec does not have.
      base: the whole patch, as ``Synth.render`` takes it.
    """

    name: str
    about: Mapping[str, str]
    spec: str
    values: Values
    outside: Sequence[str] = field(default_factory=list)
    base: bytes = b""


class Instrument:
    """A synthesizer. A subclass says what differs from these defaults; only ``open`` has none.

    Attributes:
      name: its name in configs and messages.
      specs: its specs, by the names of bundled ones or the paths of JSON files.
      exact: whether two renders of a patch are equal to the last bit.
      takes: which of ``plugin``, ``plugin_name`` and ``preset`` its settings use.
      needs: the package that it needs, as it is imported; empty if none.
      extra: what ``pip install`` takes to install that package.
      panel: the groups of its parameters.
      endings: the endings of its preset files.
      writes: those of them that ``preset_files`` writes.
    """

    name: str
    specs: tuple[str, ...] = ()
    exact: bool = False
    takes: frozenset[str] = frozenset()
    needs: str = ""
    extra: str = ""
    panel: Panel = Panel()
    endings: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()

    def open(self, settings: SynthSettings) -> Synth:
        """Opens the synthesizer in this process. Raises UserError, and any error of the synthesizer's own."""
        raise NotImplementedError

    def fits(self, spec: ParamSpec) -> bool:
        """Whether the spec is of this synthesizer: the names of its parameters decide, not the name of the spec."""
        return any(load_spec(own).slices.keys() == spec.slices.keys() for own in self.specs)

    def check(self, settings: SynthSettings) -> None:
        """Raises UserError for settings that cannot work, without opening the synthesizer."""

    def missing(self, settings: SynthSettings, named_by: str) -> str | None:
        """One line that names a missing package or file; None where nothing is missing.

        ``named_by`` is the flag or variable that names a plugin for the command at hand.
        """
        if self.needs and importlib.util.find_spec(self.needs) is None:
            return f"{self.name} needs the package {self.needs}: pip install '{self.extra}'"
        return None

    def texts(self, spec: ParamSpec, values: Values) -> dict[str, str]:
        """The values as the synthesizer shows them, by name; a value that is left out is shown as a number or label."""
        return {}

    def in_file(self, spec: ParamSpec, values: Values) -> dict[str, float]:
        """The numbers that the synthesizer's own files hold for the values, where they differ from raw values."""
        return {}

    def read(self, content: bytes) -> tuple[list[FilePatch], list[str]]:
        """The patches in the bytes of a preset file, and a line for each unusual thing in it.

        Raises UserError for a malformed file or one of another synthesizer.
        """
        raise UserError(f"{self.name} has no preset files")

    def convert(self, content: bytes, ending: str) -> bytes:
        """The patches of a preset file as a file of another ending. Raises UserError as ``read`` does."""
        raise UserError(f"{self.name} has no preset files")

    def preset_files(
        self, spec: ParamSpec, candidates: Sequence[Values], name: str, comment: str, base: bytes | None = None
    ) -> dict[str, bytes]:
        """The preset files of an answer by the ending of their names: of the first candidate, or of all.

        No synthesizer is needed. ``name`` and ``comment`` are stored where the format has room for them. ``base`` is
        the content of the user's base patch, ``SynthSettings.preset``, if the synthesizer takes one.
        """
        return {}

    def banks(self, spec: ParamSpec, answers: Mapping[str, Values]) -> dict[str, bytes]:
        """Files that hold the answers to several sounds, by the end of their names; nothing without such a format."""
        return {}
