"""Any VST3 instrument, by its parameters' raw values.

The base patch is loaded once and never again; every parameter of the spec is written for each patch, and no other
way is right: a host drops a write that equals its last one, even where a preset has changed the value since.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.cli import UserError
from data_pipeline.counted import counted
from data_pipeline.param_kinds import Categorical, Parameter
from data_pipeline.param_spec import ParamSpec
from data_pipeline.synths.hosting import (
    HostedParameter,
    HostedPlugin,
    load_preset,
    make_writes_count,
    play_note,
    settle,
)
from data_pipeline.synths.protocol import Audio, DriftError, SynthSettings
from data_pipeline.synths.surge_xt import load_plugin
from data_pipeline.vst3_preset import read_preset_file, read_state

# Plugins round to steps of their own, 1/127 being the coarsest; a write that was lost is rarely that near.
RAW_TOLERANCE = 0.01
DIFFERENCES_SHOWN = 3


class Vst3Synth:
    """A VST3 instrument as a ``Synth``. The plugin given to it belongs to it."""

    def __init__(
        self, plugin: HostedPlugin, spec: ParamSpec, name: str, version: str, base_preset: bytes | None = None
    ) -> None:
        """``base_preset`` is a whole ``.vstpreset``; without it the plugin's own first patch is the base.

        Raises UserError for a malformed preset, or where the plugin lacks a parameter of the spec.
        """
        self._plugin = plugin
        self.name = name
        self.version = version
        self._values: Mapping[str, Any] | None = None
        if base_preset is not None:
            read_state(base_preset)  # A plugin may crash on what is not a preset.
            load_preset(plugin, base_preset)
        settle(plugin)  # Parameters may take other names with the base patch, once it runs.
        self._parameters = _hosted_parameters(plugin, spec)
        for _, hosted in self._parameters:
            make_writes_count(hosted)

    def render(self, values: Mapping[str, Any]) -> Audio:
        """Raw values to audio (2, 176400)."""
        for parameter, hosted in self._parameters:
            hosted.raw_value = values[parameter.name]
        self._values = dict(values)
        audio = play_note(self._plugin, values)
        self._require_names()
        return audio

    def _require_names(self) -> None:
        """Raises UserError where the patch took a parameter's name away: what is written to it then is lost.

        The host finds parameters by name, and takes a write to one that is gone for an attribute of its own, which it
        even gives back.
        """
        hosted = self._plugin.parameters
        gone = [parameter.name for parameter, _ in self._parameters if parameter.name not in hosted]
        if gone:
            raise UserError(
                f"{self.name} took {counted(len(gone), 'parameter')} of the spec away ({gone[0]}, ...) when others "
                "were set: leave out of the spec what renames them, such as the type of an oscillator or effect"
            )

    def verify(self) -> None:
        """Reads every raw value back."""
        if self._values is None:
            return
        found = [
            f"{parameter.name} is {hosted.raw_value:.7g}, not {self._values[parameter.name]:.7g}"
            for parameter, hosted in self._parameters
            if not _holds(parameter, hosted.raw_value, self._values[parameter.name])
        ]
        if found:
            listed = "; ".join(found[:DIFFERENCES_SHOWN])
            raise DriftError(f"{self.name} holds another patch in {counted(len(found), 'parameter')}: {listed}")

    def preset(self) -> bytes:
        """The plugin's state, base patch and all."""
        return self._plugin.preset_data


def open_synth(settings: SynthSettings) -> Vst3Synth:
    """Loads the instrument at ``settings.plugin``, with the base patch at ``settings.preset``. Raises UserError."""
    plugin = load_plugin(settings.plugin)
    base_preset = read_preset_file(Path(settings.preset)) if settings.preset else None
    return Vst3Synth(plugin, settings.spec, plugin.name, plugin.version, base_preset)


def _hosted_parameters(plugin: HostedPlugin, spec: ParamSpec) -> list[tuple[Parameter, HostedParameter]]:
    hosted = plugin.parameters
    missing = [parameter.name for parameter in spec.synth_params if parameter.name not in hosted]
    if missing:
        raise UserError(
            f"the plugin lacks {counted(len(missing), 'parameter')} of spec {spec.name} ({missing[0]}, ...): the spec "
            "is another plugin's, or needs its base patch (--preset)"
        )
    return [(parameter, hosted[parameter.name]) for parameter in spec.synth_params]


def _holds(parameter: Parameter, found: float, expected: float) -> bool:
    if isinstance(parameter, Categorical):
        # Within a category any raw value will do: plugins give back one of their own choosing.
        return min(parameter.raw_values, key=lambda raw: abs(raw - found)) == min(
            parameter.raw_values, key=lambda raw: abs(raw - expected)
        )
    return abs(found - expected) <= RAW_TOLERANCE
