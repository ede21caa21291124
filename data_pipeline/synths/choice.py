"""The list of synthesizers: which one renders a spec or reads a file, whether its settings fit, whether it is there."""

from __future__ import annotations

import importlib
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import cast

from data_pipeline.console.cli import UserError
from data_pipeline.params.groups import Panel
from data_pipeline.params.spec import ParamSpec
from data_pipeline.synths.instrument import Instrument
from data_pipeline.synths.protocol import Synth, SynthSettings

SUBTRACTIVE, SURGE_XT, DEXED, VITAL, VST3 = "subtractive", "surge_xt", "dexed", "vital", "vst3"
# The list of synthesizers: the module of each, in which ``INSTRUMENT`` is an ``Instrument``.
SYNTHS = {
    SUBTRACTIVE: "data_pipeline.synths.subtractive",
    SURGE_XT: "data_pipeline.synths.surge.instrument",
    DEXED: "data_pipeline.synths.dexed.instrument",
    VITAL: "data_pipeline.synths.vital.instrument",
    VST3: "data_pipeline.synths.vst3",
}
# Installed packages add synthesizers under this group of entry points: a name, and a module as above.
ENTRY_POINTS = "synthjax.synths"


@cache
def modules() -> dict[str, str]:
    """The module of every synthesizer by name: those of this package, then those of other installed packages."""
    return {point.name: point.value for point in entry_points(group=ENTRY_POINTS)} | SYNTHS


def instrument(synth: str) -> Instrument:
    """The synthesizer of a name, or of the dotted path of a module with an ``INSTRUMENT``.

    Raises UserError for an unknown one.
    """
    if "." not in synth and synth not in modules():
        raise UserError(
            f"no synthesizer is called {synth!r}: there are {', '.join(modules())}, or the dotted path of a module"
        )
    path = modules().get(synth, synth)
    try:
        return cast(Instrument, importlib.import_module(path).INSTRUMENT)
    except ModuleNotFoundError as error:
        if error.name is not None and (path == error.name or path.startswith(f"{error.name}.")):
            raise UserError(f"no synthesizer is called {synth!r}: there is no module {path}") from error
        raise
    except AttributeError as error:
        raise UserError(f"the module {path} is no synthesizer: it has no INSTRUMENT") from error


@cache
def instrument_of(spec: ParamSpec) -> Instrument | None:
    """The synthesizer that the spec belongs to; None for a spec of any other plugin."""
    return next((found for found in map(instrument, modules()) if found.fits(spec)), None)


def panel_of(spec: ParamSpec) -> Panel:
    """The panel of the synthesizer that the spec belongs to."""
    return (instrument_of(spec) or Instrument()).panel


def instrument_of_file(path: Path) -> Instrument:
    """The synthesizer whose preset files have the ending of this path. Raises UserError if there is none."""
    known = {ending: found for found in map(instrument, modules()) for ending in found.endings}
    if path.suffix.lower() not in known:
        raise UserError(f"{path} is no preset file that is known here: its name must end in {', '.join(known)}")
    return known[path.suffix.lower()]


def written_endings() -> list[str]:
    """The endings of all preset files that answers are written to."""
    return [ending for found in map(instrument, modules()) for ending in found.writes]


def synth_for(spec: ParamSpec, plugin: str = "", preset: str = "", plugin_name: str = "") -> SynthSettings:
    """Returns the synthesizer that renders a spec's rows; the other arguments are as in ``SynthSettings``.

    A spec of a listed synthesizer is rendered by that one. Any other spec belongs to ``plugin``; so does a spec of a
    synthesizer with base patches of its own if ``preset`` is given. Raises UserError for a spec of no known
    synthesizer.
    """
    own = instrument_of(spec)
    if own and (not preset or "preset" in own.takes):
        if "plugin" not in own.takes:
            plugin = plugin_name = ""
        return SynthSettings(own.name, spec, plugin, preset, plugin_name=plugin_name)
    if preset and not plugin:
        raise UserError(f"--preset={preset} is the base patch of a plugin: name the plugin with --plugin")
    if plugin:
        return SynthSettings(VST3, spec, plugin, preset, plugin_name=plugin_name)
    listed = ", ".join(name for name in modules() if name != VST3)
    raise UserError(
        f"no synthesizer here knows spec {spec.name} (there are {listed}): name its VST3 plugin with --plugin, and its "
        "base patch, if it has one, with --preset"
    )


def check_settings(settings: SynthSettings) -> None:
    """Checks that the synthesizer uses every setting and lacks none, without opening it. Raises UserError."""
    found = instrument(settings.synth)
    for flag in ("plugin", "plugin_name", "preset"):
        if (value := getattr(settings, flag)) and flag not in found.takes:
            raise UserError(
                f"--{flag}={value} would be ignored by synth {settings.synth}: leave it out, or render a VST3 plugin "
                "with --config.synth=vst3"
            )
    found.check(settings)


def why_no_renderer(settings: SynthSettings, named_by: str = "--plugin") -> str | None:
    """Returns one line that names the missing plugin, preset or package; None where nothing is missing.

    The synthesizer is not opened, so a damaged plugin is not noticed. ``named_by`` is the flag or variable that names
    the plugin for the command at hand.
    """
    if reason := instrument(settings.synth).missing(settings, named_by):
        return reason
    if settings.preset and not Path(settings.preset).is_file():
        return f"there is no preset at {settings.preset!r}"
    return None


def open_synth(settings: SynthSettings) -> Synth:
    """Opens a synthesizer in this process. Raises UserError for an unknown one, and any error of opening it."""
    return instrument(settings.synth).open(settings)
