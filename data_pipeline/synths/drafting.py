"""Drafts a parameter spec from a plugin's own parameters.

A host finds parameters by name. The type of an oscillator or effect may remove or rename other parameters: a value
written to a missing name is lost, and the patch differs from its label (``synths.vst3`` refuses it). Parameters that
remove names are therefore left out of a spec. Parameters that pedalboard does not show at all are left out too: of
several parameters with one name it shows one, and it hides those without a name of Latin letters or digits.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from data_pipeline.audio.contract import SECONDS
from data_pipeline.console.cli import UserError, counted
from data_pipeline.console.progress import progress_bar
from data_pipeline.params.kinds import Categorical, Continuous, Discrete, Label, NoteDuration, Parameter
from data_pipeline.params.spec import ParamSpec
from data_pipeline.synths.hosting import (
    HostedPlugin,
    load_base_patch,
    load_preset,
    make_writes_count,
    parameters_by_name,
    settle,
)
from data_pipeline.synths.protocol import NOTE_TIMES, PITCH

# The menus of synthesizers have about forty entries at most; a knob shows hundreds of values.
MAX_CATEGORIES = 64
# Bypass switches, program changes, MIDI controllers, and glides, which begin at the pitch of the last note. Ambiguous
# words count as whole names only: a ``pitch_bend_range`` is part of the sound.
LEFT_OUT = re.compile(
    r"""
    (^|_)(bypass|midi|cc)(_|\d|$)|(^|_)(glide|portamento)(_|$)
    |(^|_)(prog(ram)?_?change|bank_?sel(ect)?|all_(notes?|sounds?)_off|reset_all_controllers)(_|$)
    |(^|_)(sustain|sostenuto|soft|hold|hold_2|legato|damper|expression|foot|portamento)_pedal(_|$)
    |(^|_)(breath|foot)_?(controller|ctrl)(_|$)|(^|_)(channel|poly|key)_?(pressure|after_?touch)(_|$)
    |^(ch(an(nel)?)?_?\d+_)?(
        (current_|factory_)?(prog(ram)?|preset|patch)(_(number|select|index))?|contr(oller)?_?\d+|ctrl_?\d+
        |mod(ulation)?_?wheel|pitch_?(bend|wheel)|after_?touch|breath|expression
    )(_\d+)?$
    """,
    re.VERBOSE,
)
MIDI_CHANNELS = 16
NOTE_PARAMS: tuple[Parameter, ...] = (Discrete(PITCH, 48, 72), NoteDuration(NOTE_TIMES, SECONDS))


@dataclass(frozen=True)
class Draft:
    """A spec, and the names of the parameters that are left out of it.

    ``not_sound`` are no part of a note's sound, ``renaming`` remove names of other parameters, ``hidden`` have no name
    of their own. ``one_value`` are in the spec but show the same label at every value, as the parameters of an empty
    effect slot do.
    """

    spec: ParamSpec
    not_sound: list[str]
    renaming: list[str]
    one_value: list[str]
    hidden: list[str]


def draft_spec(plugin: HostedPlugin, name: str, base_preset: bytes | None = None) -> Draft:
    """Drafts a spec of the parameters that the plugin has in its base patch.

    Raises UserError for a malformed preset, or where the spec would have no parameter or too many columns.
    """
    load_base_patch(plugin, base_preset)
    shown = parameters_by_name(plugin)
    all_names = Counter(parameter.name for parameter in plugin._parameters)
    not_shown = list((all_names - Counter(parameter.name for parameter in shown.values())).elements())
    not_sound = [key for key, parameter in shown.items() if _is_not_sound(key, all_names[parameter.name])]
    hidden_controllers = [name for name in not_shown if _is_not_sound(_written(name), all_names[name])]
    drafts = {key: _draft(key, parameter) for key, parameter in shown.items() if key not in not_sound}
    categorical = [parameter for parameter in drafts.values() if isinstance(parameter, Categorical)]
    renaming = _find_renaming(plugin, categorical, drafts)
    parameters = tuple(parameter for key, parameter in drafts.items() if key not in renaming)
    if not parameters:
        raise UserError("the plugin has no parameters to make a spec of")
    try:
        spec = ParamSpec(name, parameters, NOTE_PARAMS)
    except ValueError as error:
        raise UserError(f"no spec can be made of the plugin's parameters: {error}") from error
    one_value = [parameter.name for parameter in parameters if len(set(shown[parameter.name].ranges.values())) == 1]
    hidden = [name for name in not_shown if name not in hidden_controllers]
    return Draft(spec, not_sound + hidden_controllers, renaming, one_value, hidden)


def summary(draft: Draft) -> str:
    """The draft for people: the size of the spec, the parameters left out, and those that may be useless."""
    parameters = draft.spec.synth_params
    categories = sum(isinstance(parameter, Categorical) for parameter in parameters)
    columns = counted(draft.spec.width, "column")
    lines = [f"{counted(len(parameters), 'parameter')} ({categories} categorical), {columns}"]
    if draft.not_sound:
        lines.append(f"left out: {_listed(draft.not_sound)}")
    if draft.hidden:
        lines.append(f"left out, because pedalboard gives them no name of their own: {_listed(draft.hidden)}")
    if draft.renaming:
        lines.append(f"left out, because setting them takes other parameters' names away: {_listed(draft.renaming)}")
    if draft.one_value:
        lines.append(f"show one value whatever they are set to, so see if they sound: {_listed(draft.one_value)}")
    return "\n".join(lines)


def _listed(names: list[str]) -> str:
    return f"{len(names)} ({', '.join(name or 'no name' for name in names[:5])}{', ...' if len(names) > 5 else ''})"


def _written(name: str) -> str:
    """A plugin's own name for a parameter, written as pedalboard writes names."""
    return re.sub(r"[\W_]+", "_", name.lower()).strip("_")


def _is_not_sound(name: str, times: int) -> bool:
    """Whether a parameter is left out: by its name, or because each MIDI channel has one of this name."""
    return LEFT_OUT.search(name) is not None or times % MIDI_CHANNELS == 0


def _draft(name: str, shown: Any) -> Parameter:
    """Drafts a parameter from pedalboard's ``ranges``: the labels that it shows, by (lowest, highest) raw value."""
    raw_values: dict[Label, float] = {}
    for (low, high), value in shown.ranges.items():
        label = str(value) if isinstance(value, float) and not math.isfinite(value) else value
        raw_values.setdefault(label, (low + high) / 2)
    if 1 < len(raw_values) <= MAX_CATEGORIES:
        return Categorical(name, tuple(raw_values), tuple(raw_values.values()), (1.0,) * len(raw_values))
    return Continuous(name, 0.0, 1.0)


def _find_renaming(plugin: HostedPlugin, parameters: Sequence[Categorical], names: Collection[str]) -> list[str]:
    """Finds the parameters that remove any of ``names``, by setting each alone to all its values.

    The plugin returns to its own patch, which has all names, after each. A name that only two parameters together
    remove is not found. Draws a progress bar: a large plugin takes a minute. Raises UserError for a plugin that does
    not return to its patch.
    """
    base, hosted = plugin.preset_data, parameters_by_name(plugin)
    found = []
    with progress_bar("parameters set to each of their values", len(parameters)) as advance:
        for parameter in parameters:
            if _removes_names(plugin, hosted[parameter.name], parameter.raw_values, names):
                found.append(parameter.name)
            load_preset(plugin, base)  # Works without the missing names.
            settle(plugin)
            if not _shows(plugin, names):  # Otherwise all later parameters would seem to remove the names.
                raise UserError(f"the plugin does not come back to its patch after {parameter.name} was changed")
            advance(1)
    return found


def _removes_names(plugin: HostedPlugin, hosted: Any, raw_values: Sequence[float], names: Collection[str]) -> bool:
    make_writes_count(hosted)
    for raw_value in raw_values:
        hosted.raw_value = raw_value
        settle(plugin)  # Names may change only when the plugin runs.
        if not _shows(plugin, names):
            return True
    return False


def _shows(plugin: HostedPlugin, names: Collection[str]) -> bool:
    shown = parameters_by_name(plugin)
    return all(name in shown for name in names)
