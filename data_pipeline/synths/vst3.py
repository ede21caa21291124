"""Any VST3 instrument, set by the raw values of its parameters.

The base patch is loaded only once, and every parameter of the spec is written for each patch. Loading the base patch
again would mislabel data: a host drops a write that equals its last one, even if a preset has changed the value since.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from data_pipeline.audio.contract import SECONDS, VELOCITY
from data_pipeline.console.cli import UserError, counted
from data_pipeline.params.kinds import Categorical, Parameter
from data_pipeline.params.spec import ParamSpec
from data_pipeline.synths.hosting import (
    HostedPlugin,
    load_base_patch,
    load_plugin,
    make_writes_count,
    parameters_by_name,
    play_note,
    require_no_differences,
    why_not_hosted,
)
from data_pipeline.synths.instrument import Instrument
from data_pipeline.synths.protocol import Audio, SynthSettings
from data_pipeline.synths.vst3_preset import read_preset_file

# Plugins round to steps of their own, at most 1/127. The value after a lost write is rarely that near.
RAW_TOLERANCE = 0.01
# Writing parameters does not end the echoes of an earlier note, and a long delay repeats them about every 2 s.
ECHO_SECONDS = 2.0


class Vst3Synth:
    """A VST3 instrument as a ``Synth``. The plugin given to it belongs to it."""

    def __init__(
        self, plugin: HostedPlugin, spec: ParamSpec, name: str, version: str, base_preset: bytes | None = None
    ) -> None:
        """``base_preset`` is a whole ``.vstpreset``; without it the plugin's own first patch is the base.

        Raises UserError for a malformed preset, or where the plugin lacks a parameter of the spec.
        """
        self._plugin = plugin
        self._spec = spec
        self.name = name
        self.version = version
        self._values: Mapping[str, Any] | None = None
        self._own_base: bytes | None = None
        self._load(base_preset, spec.slices.keys())
        self._first_base = base_preset or plugin.preset_data

    def _load(self, base: bytes | None, names: Collection[str]) -> None:
        """Loads a base patch, of which the parameters with these names will be written."""
        load_base_patch(self._plugin, base)
        hosted = _hosted_parameters(self._plugin, self._spec)
        self._parameters = [(parameter, own) for parameter, own in hosted if parameter.name in names]
        for _, own in self._parameters:
            make_writes_count(own)

    def render(
        self,
        values: Mapping[str, Any],
        *,
        base: bytes | None = None,
        velocity: int = VELOCITY,
        seconds: float = SECONDS,
    ) -> Audio:
        """Renders raw values to audio (2, T); ``base`` is a whole ``.vstpreset``.

        Raises SoundingError as ``Synth`` does, and UserError where the patch removes a parameter's name, or for a base
        patch that the plugin does not take.
        """
        if base is not None or self._own_base is not None:
            self._load(self._first_base if base is None else base, values.keys())
        self._own_base = base
        for parameter, hosted in self._parameters:
            hosted.raw_value = values[parameter.name]
        self._values = dict(values)
        try:
            return play_note(self._plugin, values, ECHO_SECONDS, velocity=velocity, seconds=seconds)
        finally:
            self._require_names()

    def _require_names(self) -> None:
        """Raises UserError where the patch removed a parameter's name: writes to that name are lost.

        pedalboard finds parameters by name. It keeps a write to a missing name as an attribute of its own, and even
        returns the value when it is read.
        """
        hosted = parameters_by_name(self._plugin)
        gone = [parameter.name for parameter, _ in self._parameters if parameter.name not in hosted]
        if gone:
            raise UserError(
                f"{self.name} took {counted(len(gone), 'parameter')} of the spec away ({gone[0]}, ...) when others "
                "were set: leave out of the spec what renames them, such as the type of an oscillator or effect"
            )

    def verify(self) -> None:
        """Reads every raw value back. Raises DriftError where one differs from the patch rendered last."""
        if self._values is None:
            return
        values = [(parameter, self._values[parameter.name], hosted.raw_value) for parameter, hosted in self._parameters]
        found = [(parameter.name, *raws) for parameter, *raws in values if not _same(parameter, *raws)]
        require_no_differences(self.name, found)

    def preset(self) -> bytes:
        """The plugin's state, with everything that the base patch has set."""
        return self._plugin.preset_data


def _hosted_parameters(plugin: HostedPlugin, spec: ParamSpec) -> list[tuple[Parameter, Any]]:
    hosted = parameters_by_name(plugin)
    missing = [parameter.name for parameter in spec.synth_params if parameter.name not in hosted]
    if missing:
        raise UserError(
            f"the plugin lacks {counted(len(missing), 'parameter')} of spec {spec.name} ({missing[0]}, ...): the spec "
            "is another plugin's, or needs its base patch (--preset)"
        )
    return [(parameter, hosted[parameter.name]) for parameter in spec.synth_params]


def _same(parameter: Parameter, expected: float, found: float) -> bool:
    if isinstance(parameter, Categorical):
        # A plugin returns any raw value of the category.
        nearest = [min(parameter.raw_values, key=lambda raw: abs(raw - value)) for value in (expected, found)]
        return nearest[0] == nearest[1]
    return abs(found - expected) <= RAW_TOLERANCE


class Vst3Instrument(Instrument):
    """Any VST3 instrument."""

    name = "vst3"
    takes = frozenset(("plugin", "plugin_name", "preset"))
    extra = "synthjax[render]"
    writes = (".vstpreset",)

    def open(self, settings: SynthSettings) -> Vst3Synth:
        """Loads the instrument at ``settings.plugin`` with the base patch at ``settings.preset``. Raises UserError."""
        plugin = load_plugin(settings.plugin, settings.plugin_name)
        base_preset = read_preset_file(Path(settings.preset)) if settings.preset else None
        return Vst3Synth(plugin, settings.spec, plugin.name, plugin.version, base_preset)

    def check(self, settings: SynthSettings) -> None:
        """Raises UserError without a plugin."""
        if not settings.plugin:
            raise UserError(f"synth {self.name} needs its plugin: --plugin=PATH.vst3")

    def missing(self, settings: SynthSettings, named_by: str) -> str | None:
        """Looks for the plugin and for pedalboard."""
        return why_not_hosted(settings.plugin, named_by)


INSTRUMENT = Vst3Instrument()
