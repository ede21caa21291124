"""Which synthesizer a spec belongs to, whether it is at hand, and how it shows values.

A synthesizer knows its parameters by name, so names decide, whatever a spec's file is called: who has narrowed a range
or changed a weight of ``surge_simple`` has still a spec of Surge XT.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from data_pipeline.cli import UserError
from data_pipeline.param_spec import ParamSpec, load_spec
from data_pipeline.surge_display import surge_texts
from data_pipeline.surge_patch import PatchTemplate
from data_pipeline.synths.protocol import SUBTRACTIVE, SURGE_XT, VST3, SynthSettings
from data_pipeline.synths.surge_xt import plugin_path

SURGE_SPECS = ("surge_simple", "surge_xt")


def synth_for(spec: ParamSpec, plugin: str = "", preset: str = "") -> SynthSettings:
    """The synthesizer that renders a spec's rows; ``plugin`` and ``preset`` are paths as in ``SynthSettings``.

    A spec with the parameters of a bundled one is rendered as that one is. Any other is the ``plugin``'s, and so is
    every spec where ``preset`` names a base patch: the bundled ones have their own. Raises UserError where nobody
    knows the spec.
    """
    if preset and not plugin:
        raise UserError(f"--preset={preset} is the base patch of a plugin: name the plugin with --plugin")
    if not preset:
        if _names(spec) == _names(load_spec(SUBTRACTIVE)):
            return SynthSettings(SUBTRACTIVE, spec)
        if surge_spec := _as_surge_spec(spec):
            return SynthSettings(SURGE_XT, surge_spec, plugin)
    if plugin:
        return SynthSettings(VST3, spec, plugin, preset)
    raise UserError(
        f"no synthesizer here knows spec {spec.name}: it is neither {SUBTRACTIVE}'s nor Surge XT's; name its VST3 "
        "plugin with --plugin, and its base patch, if it has one, with --preset"
    )


def why_no_renderer(settings: SynthSettings, named_by: str = "--plugin") -> str | None:
    """In one line what is missing for the synthesizer to be opened, told without opening it; None where nothing is.

    ``named_by`` is how the command at hand is told of a plugin. Opening may fail all the same, on a plugin
    that is damaged or another one.
    """
    if settings.synth not in (SURGE_XT, VST3):
        return None
    plugin = plugin_path(settings) if settings.synth == SURGE_XT else settings.plugin
    if not plugin or not Path(plugin).exists():
        fetched = ", or fetch Surge XT with make surge-xt" if settings.synth == SURGE_XT else ""
        return f"there is no plugin at {plugin!r}: name a .vst3 with {named_by}{fetched}"
    if importlib.util.find_spec("pedalboard") is None:
        return "plugins need pedalboard (GPL-3): pip install 'synthjax[render]'"
    if settings.preset and not Path(settings.preset).is_file():
        return f"there is no preset at {settings.preset!r}"
    return None


def display_texts(spec: ParamSpec, values: Mapping[str, Any]) -> dict[str, str]:
    """Raw values by name to what the synthesizer shows, for every synthesizer parameter, in the order of the spec.

    Surge XT's are known as its window shows them, others as labels and numbers.
    """
    if surge_spec := _as_surge_spec(spec):
        return surge_texts(surge_spec, values)
    labels = spec.labels(values)
    names = [parameter.name for parameter in spec.synth_params]
    return {name: str(labels[name]) if name in labels else f"{values[name]:.3f}" for name in names}


@cache
def _as_surge_spec(spec: ParamSpec) -> ParamSpec | None:
    """The spec under the name that Surge XT's base patches have it by; None where it is not Surge XT's."""
    twin = next((name for name in SURGE_SPECS if _names(load_spec(name)) == _names(spec)), spec.name)
    named = replace(spec, name=twin)
    try:
        PatchTemplate(named)
    except UserError:
        return None  # Another plugin's, or Surge XT's with a base patch that only its user has.
    return named


def _names(spec: ParamSpec) -> set[str]:
    return set(spec.slices)
