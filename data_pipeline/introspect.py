"""Drafts a parameter spec of any VST3 instrument from the plugin's own parameters.

    python -m data_pipeline.introspect PLUGIN.vst3 --output=SPEC.json [--preset=BASE.vstpreset]

A parameter that shows few values becomes a category for each, at the middle of its raw values; any other is continuous
on 0..1. Bypass switches and MIDI controllers are left out, and so is what takes other parameters' names away when it is
set, as the type of an oscillator or effect may: every category is tried. It is a draft: before rendering, take out what
should stay as the base patch has it, and narrow ranges that are silent or ugly. Needs pedalboard (GPL-3), no display.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from absl import flags

from data_pipeline import cli
from data_pipeline.atomic import atomic_path
from data_pipeline.cli import UserError
from data_pipeline.counted import counted
from data_pipeline.param_kinds import Categorical, Continuous, Discrete, Label, NoteDuration, Parameter
from data_pipeline.param_spec import ParamSpec
from data_pipeline.renaming import find_renaming
from data_pipeline.synths.hosting import HostedPlugin, load_preset, settle
from data_pipeline.synths.protocol import NOTE_TIMES, PITCH, SECONDS
from data_pipeline.synths.surge_xt import load_plugin
from data_pipeline.vst3_preset import read_preset_file, read_state

# Synthesizers have menus of some forty entries; a knob shows hundreds of values.
MAX_CATEGORIES = 64
NOT_SOUND = re.compile(r"(^|_)(bypass|midi|cc)(_|\d|$)|^program$")
NOTE_PARAMS: tuple[Parameter, ...] = (Discrete(PITCH, 48, 72), NoteDuration(NOTE_TIMES, SECONDS))


class ShownParameter(Protocol):
    """The part of pedalboard's parameter objects that is used here."""

    ranges: Mapping[tuple[float, float], Label]
    """What the plugin shows, by the raw values from and to which it shows it."""


@dataclass(frozen=True)
class Draft:
    """A spec, and which parameters are left out: those that make no sound, and those that take others' names away.

    ``one_value`` are in the spec but show the same whatever they are set to, as those of an empty effect slot do.
    """

    spec: ParamSpec
    not_sound: list[str]
    renaming: list[str]
    one_value: list[str]


def draft_spec(plugin: HostedPlugin, name: str, base_preset: bytes | None = None) -> Draft:
    """A spec of the plugin's parameters as they are in its base patch.

    Raises UserError for a malformed preset, or where no parameter, or more than a row may have, is left.
    """
    if base_preset is not None:
        read_state(base_preset)  # A plugin may crash on what is not a preset.
        load_preset(plugin, base_preset)
    settle(plugin)  # Parameters may take other names with the base patch, once it runs.
    shown = plugin.parameters
    not_sound = [key for key in shown if NOT_SOUND.search(key)]
    drafts = {key: _draft(key, parameter) for key, parameter in shown.items() if key not in not_sound}
    categorical = [parameter for parameter in drafts.values() if isinstance(parameter, Categorical)]
    renaming = find_renaming(plugin, categorical, drafts)
    parameters = tuple(parameter for key, parameter in drafts.items() if key not in renaming)
    if not parameters:
        raise UserError("the plugin has no parameters to make a spec of")
    try:
        spec = ParamSpec(name, parameters, NOTE_PARAMS)
    except ValueError as error:
        raise UserError(f"no spec can be made of the plugin's parameters: {error}") from error
    one_value = [parameter.name for parameter in parameters if len(set(shown[parameter.name].ranges.values())) == 1]
    return Draft(spec, not_sound, renaming, one_value)


def spec_json(spec: ParamSpec) -> str:
    """The JSON that ``load_spec`` reads."""
    content = {
        "name": spec.name,
        "width": spec.width,
        "interchangeable": spec.interchangeable,
        "synth_params": [_entry(parameter) for parameter in spec.synth_params],
        "note_params": [_entry(parameter) for parameter in spec.note_params],
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def summary(draft: Draft) -> str:
    """What is in the spec, what is not, and what need not be."""
    parameters = draft.spec.synth_params
    categories = sum(isinstance(parameter, Categorical) for parameter in parameters)
    columns = counted(draft.spec.width, "column")
    lines = [f"{counted(len(parameters), 'parameter')} ({categories} categorical), {columns}"]
    if draft.not_sound:
        lines.append(f"left out: {_listed(draft.not_sound)}")
    if draft.renaming:
        lines.append(f"left out, because setting them takes other parameters' names away: {_listed(draft.renaming)}")
    if draft.one_value:
        lines.append(f"show one value whatever they are set to, so see if they sound: {_listed(draft.one_value)}")
    return "\n".join(lines)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _draft(name: str, shown: ShownParameter) -> Parameter:
    raw_values: dict[Label, float] = {}
    for (low, high), value in shown.ranges.items():
        label = str(value) if isinstance(value, float) and not math.isfinite(value) else value
        raw_values.setdefault(label, (low + high) / 2)
    if 1 < len(raw_values) <= MAX_CATEGORIES:
        return Categorical(name, tuple(raw_values), tuple(raw_values.values()), (1.0,) * len(raw_values))
    return Continuous(name, 0.0, 1.0)


def _entry(parameter: Parameter) -> dict[str, Any]:
    kinds = {Categorical: "categorical", Continuous: "continuous", Discrete: "discrete", NoteDuration: "note_duration"}
    fields = asdict(parameter)
    return {"name": fields.pop("name"), "width": parameter.width, "kind": kinds[type(parameter)], **fields}


def main(argv: list[str]) -> None:
    """Entry point of the command."""
    if len(argv) != 2 or not flags.FLAGS.output:
        raise UserError(
            "usage: python -m data_pipeline.introspect PLUGIN.vst3 --output=SPEC.json [--preset=BASE.vstpreset]"
        )
    output, preset = Path(flags.FLAGS.output), flags.FLAGS.preset
    if output.suffix != ".json":
        raise UserError(f"--output={output} must end in .json")
    if output.exists():
        raise UserError(f"{output} exists: a draft would replace what was edited; remove it or name another file")
    base_preset = read_preset_file(Path(preset)) if preset else None
    if not Path(argv[1]).exists():  # What load_plugin would say names a flag that is not there.
        raise UserError(f"there is no plugin at {argv[1]!r}: give the path of a .vst3")
    draft = draft_spec(load_plugin(argv[1]), output.stem, base_preset)
    with atomic_path(output) as temporary:
        temporary.write_text(spec_json(draft.spec), encoding="utf-8")
    print(f"{output}: {summary(draft)}")


if __name__ == "__main__":
    flags.DEFINE_string("output", None, "The .json file to write.")
    flags.DEFINE_string("preset", None, "The .vstpreset of the base patch; default: the plugin's own first patch.")
    cli.run(main)
