"""Finds the parameters of a plugin that take others' names away, as the type of an oscillator or effect may.

A host knows parameters by name: what is written to a name that is gone is lost, and the patch is not what its label
says (``synths.vst3`` refuses it).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from data_pipeline.cli import UserError
from data_pipeline.param_kinds import Categorical
from data_pipeline.progress import progress_bar
from data_pipeline.synths.hosting import HostedParameter, HostedPlugin, load_preset, make_writes_count, settle


def find_renaming(plugin: HostedPlugin, parameters: Sequence[Categorical], names: Collection[str]) -> list[str]:
    """Which of ``parameters`` take any of ``names`` away, each alone set to one value after another.

    The plugin comes back to the patch that it had, which has all the names. What only two parameters together take
    away is not found. Draws a progress bar: a large plugin takes a minute. Raises UserError for a plugin that does not
    come back.
    """
    base, hosted = plugin.preset_data, plugin.parameters
    found = []
    with progress_bar("parameters set to each of their values", len(parameters)) as advance:
        for parameter in parameters:
            if _takes_away(plugin, hosted[parameter.name], parameter.raw_values, names):
                found.append(parameter.name)
            load_preset(plugin, base)  # Which a name that is gone cannot hinder.
            settle(plugin)
            if not _shows(plugin, names):  # Else all later ones would be taken for its cause.
                raise UserError(f"the plugin does not come back to its patch after {parameter.name} was changed")
            advance(1)
    return found


def _takes_away(
    plugin: HostedPlugin, hosted: HostedParameter, raw_values: Sequence[float], names: Collection[str]
) -> bool:
    make_writes_count(hosted)
    for raw_value in raw_values:
        hosted.raw_value = raw_value
        settle(plugin)  # Names may change only once it runs.
        if not _shows(plugin, names):
            return True
    return False


def _shows(plugin: HostedPlugin, names: Collection[str]) -> bool:
    shown = plugin.parameters
    return all(name in shown for name in names)
