"""Vital patches without Vital: a ``.vital`` file read, its values in a spec, and values written into it.

A ``.vital`` file is JSON. ``settings`` holds a number for each control, by the control's name and in the control's own
unit, and four things more: ``wavetables`` of the oscillators, the ``sample`` of the noise source, the shapes of
``lfos``, and ``modulations``, which are 64 pairs of a source and a destination. The amount of the modulation in slot k
(from 1) is the control ``modulation_k_amount``.

A parameter of a spec has the name of a control, or names a modulation, as ``lfo_1_to_filter_1_cutoff``: its value is
the amount, whatever the slot. A modulation of amount 0 takes no slot.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.audio.contract import SAMPLE_RATE
from data_pipeline.console.cli import UserError, printable
from data_pipeline.params.counter_rng import uniforms
from data_pipeline.params.kinds import Discrete, Parameter
from data_pipeline.params.spec import ParamSpec

# A patch with the longest wavetables and a sample of a minute stays below.
MAX_PATCH_BYTES = 32 << 20
MAX_DEPTH = 32
MAX_MODULATIONS = 64
# The version of our own files, which every Vital since the first public one reads.
VERSION = "1.0.6"
# The names of the frames of our own wavetable, in order: the values of osc_1_wave_frame.
WAVES = ("saw", "square", "triangle", "sine", "pulse")
# A note with random phases never sounds the same twice.
STEADY = {**{f"osc_{k}_random_phase": 0.0 for k in (1, 2, 3)}, "sample_random_phase": 0.0}

_WAVE_SAMPLES = 2048
_ROUTE = "_to_"
_SLOT_SETTINGS = ("bipolar", "bypass", "power", "stereo")
_MODULATIONS = "modulations"
_TEXTS = {"author": "author", "comment": "comments", "style": "preset_style"}

Patch = dict[str, Any]
"""The JSON object of a ``.vital`` file."""


@cache
def controls() -> Mapping[str, Any]:
    """The content of ``controls.json``."""
    return json.loads(resources.files(__package__).joinpath("controls.json").read_text(encoding="utf-8"))


@cache
def base_patch() -> Patch:
    """The patch that a row without a base patch of the user changes. The caller must not change it.

    It is Vital's initial patch with random phases off, and with sounds of our own: a wavetable of ``WAVES``, a frame
    each, and a second of white noise.
    """
    settings = {
        **controls()["defaults"],
        **STEADY,
        "wavetables": [_wavetable() for _ in range(3)],
        "sample": _noise(),
        "lfos": [_triangle() for _ in range(8)],
        _MODULATIONS: [{"source": "", "destination": ""} for _ in range(MAX_MODULATIONS)],
    }
    texts = {"preset_name": "", **dict.fromkeys(_TEXTS.values(), "")}
    macros = {f"macro{k}": f"MACRO {k}" for k in (1, 2, 3, 4)}
    return {**texts, **macros, "synth_version": VERSION, "settings": settings}


def read_patch(content: bytes) -> Patch:
    """Reads a ``.vital`` file. Raises UserError where it is malformed, too large, or another program's."""
    if len(content) > MAX_PATCH_BYTES:
        raise UserError(f"the patch is larger than {MAX_PATCH_BYTES >> 20} MiB")
    try:
        patch = json.loads(content.decode("utf-8"))
        _check_depth(patch)
    except RecursionError as error:
        raise UserError("the patch is malformed: its JSON is nested too deeply") from error
    except ValueError as error:
        raise UserError(f"the patch is malformed: no JSON ({str(error)[:80]})") from error
    settings = patch.get("settings") if isinstance(patch, dict) else None
    if not isinstance(settings, dict) or not isinstance(patch.get("synth_version"), str):
        raise UserError("the JSON is no Vital patch: it lacks settings or synth_version")
    if "osc_1_level" not in settings:
        raise UserError("the JSON is no Vital patch: its settings lack osc_1_level")
    for name in controls()["defaults"].keys() & settings.keys():
        _number(name, settings[name])
    _check_modulations(settings.get(_MODULATIONS, []))
    return patch


def write_patch(patch: Patch) -> bytes:
    """The bytes of a ``.vital`` file. Raises UserError for a number that is not finite, which JSON does not have."""
    try:
        return json.dumps(patch, allow_nan=False).encode()
    except ValueError as error:
        raise UserError("the patch is malformed: it holds a number that is not finite") from error


def named(patch: Patch, name: str, comment: str) -> Patch:
    """The patch with another name and comment."""
    return {**patch, "preset_name": name, "comments": comment}


def about(patch: Patch) -> tuple[str, dict[str, str]]:
    """The patch's name, and what else the file says of it."""
    return _text(patch.get("preset_name")), {name: _text(patch.get(key)) for name, key in _TEXTS.items()}


def with_values(patch: Patch, spec: ParamSpec, values: Mapping[str, Any]) -> Patch:
    """The patch with those of the raw values that are parameters of the spec; all else stays as it is.

    Raises UserError where no slot is free for a modulation.
    """
    settings = {**patch["settings"]}
    modulations = [*settings.get(_MODULATIONS, [])]
    for parameter in spec.synth_params:
        if parameter.name not in values:
            continue
        value = float(values[parameter.name])
        if _ROUTE not in parameter.name:
            settings[parameter.name] = value
        elif slot := _slot(modulations, parameter.name) or (
            value and _take_slot(modulations, settings, parameter.name)
        ):
            settings[f"modulation_{slot}_amount"] = value
    return {**patch, "settings": {**settings, _MODULATIONS: modulations}}


def values_in(patch: Patch, spec: ParamSpec) -> tuple[dict[str, float], list[str]]:
    """Raw values by name, and a line for each value that the spec does not have.

    A control that the file lacks has its value of Vital's initial patch, as in Vital.
    """
    settings = {**controls()["defaults"], **patch["settings"]}
    modulations = settings.get(_MODULATIONS, [])
    values, outside, slots = {}, [], set()
    for parameter in spec.synth_params:
        name, value = parameter.name, settings.get(parameter.name)
        if _ROUTE in name:
            slot = _slot(modulations, name)
            slots.add(slot)
            value = settings.get(f"modulation_{slot}_amount", 0.0)
        try:
            values[name] = _legal(parameter, value)
        except (ValueError, OverflowError):
            outside.append(f"{name} is {_shown(value)}, which the spec does not have")
    known = {*spec.slices, *(f"modulation_{slot}_amount" for slot in slots)}
    outside += _other_modulations(modulations, slots) + _other_sources(settings)
    return values, outside + _other_numbers(settings, known, modulations)


def _legal(parameter: Parameter, value: Any) -> float:
    """The raw value, as the spec has it. Raises ValueError for one that is not legal."""
    assert not isinstance(value, tuple)
    parameter.encode(value)
    return int(value) if isinstance(parameter, Discrete) else float(value)


def _other_modulations(modulations: list[Any], slots: set[int]) -> list[str]:
    return [
        f"{_shown(pair['source'])} modulates {_shown(pair['destination'])}"
        for slot, pair in enumerate(modulations, 1)
        if slot not in slots and pair["source"] and pair["destination"]
    ]


def _other_sources(settings: Mapping[str, Any]) -> list[str]:
    """A line for each wavetable, sample and LFO shape that is not the base patch's."""
    ours, found = base_patch()["settings"], []
    for kind, content in (("wavetables", "groups"), ("lfos", "points")):
        theirs = settings.get(kind)
        for number, own in enumerate(ours[kind], 1):
            other = theirs[number - 1] if isinstance(theirs, list) and number <= len(theirs) else None
            if isinstance(other, dict) and other.get(content) != own[content]:
                found.append(f"{kind.removesuffix('s')} {number} is {_shown(other.get('name'))}")
    sample = settings.get("sample")
    if isinstance(sample, dict) and sample.get("samples") != ours["sample"]["samples"]:
        found.append(f"sample is {_shown(sample.get('name'))}")
    return found


def _other_numbers(settings: Mapping[str, Any], known: set[str], modulations: list[Any]) -> list[str]:
    """A line for each number that differs from the base patch. The numbers of an empty slot mean nothing."""
    ours = base_patch()["settings"]
    used = {f"modulation_{slot}" for slot, pair in enumerate(modulations, 1) if pair["source"] and pair["destination"]}
    found = []
    for name, value in settings.items():
        counts = name.rpartition("_")[0] in used if name.startswith("modulation_") else "view_" not in name
        if counts and name not in known and not isinstance(value, list | dict) and value != ours.get(name):
            found.append(f"{_shown(name)} is {_shown(value)}, in the base patch {_shown(ours.get(name))}")
    return found


def _slot(modulations: list[Any], route: str) -> int:
    """The slot (from 1) of a modulation; 0 where there is none."""
    source, _, destination = route.partition(_ROUTE)
    pairs = ((pair["source"], pair["destination"]) for pair in modulations)
    return next((slot for slot, pair in enumerate(pairs, 1) if pair == (source, destination)), 0)


def _take_slot(modulations: list[Any], settings: dict[str, Any], route: str) -> int:
    """Puts a modulation into the first free slot, and returns the slot."""
    source, _, destination = route.partition(_ROUTE)
    free = next((at for at, pair in enumerate(modulations) if not pair["source"] or not pair["destination"]), None)
    if free is None:
        free = len(modulations)
        modulations.append({})
    if free >= MAX_MODULATIONS:
        raise UserError(f"the base patch has no modulation left for {route}: remove one of its {MAX_MODULATIONS}")
    modulations[free] = {"source": source, "destination": destination}
    settings.update({f"modulation_{free + 1}_{name}": 0.0 for name in _SLOT_SETTINGS})
    return free + 1


def _check_depth(patch: Any) -> None:
    """Raises RecursionError for JSON that is deeper than any of Vital's, since writing it again could fail."""
    level: list[Any] = [[patch]]
    depth = 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise RecursionError
        inner = [value.values() if isinstance(value, dict) else value for value in level]
        level = [value for values in inner for value in values if isinstance(value, dict | list)]


def _check_modulations(modulations: Any) -> None:
    ends = ("source", "destination")
    if not isinstance(modulations, list) or len(modulations) > MAX_MODULATIONS:
        raise UserError(f"the patch is malformed: its modulations are no list of at most {MAX_MODULATIONS}")
    if not all(isinstance(pair, dict) and all(isinstance(pair.get(end), str) for end in ends) for pair in modulations):
        raise UserError("the patch is malformed: a modulation lacks its source or destination")


def _number(name: str, value: Any) -> None:
    try:
        finite = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        finite = False
    if not finite:
        raise UserError(f"the patch is malformed: {name} is {_shown(value)}, not a number")


def _shown(value: Any) -> str:
    """A number, or any other content of a file as one short line."""
    return f"{value:.6g}" if isinstance(value, float) else printable(" ".join(str(value)[:40].split()))


def _text(value: Any) -> str:
    return printable(value) if isinstance(value, str) else ""


def _wavetable() -> dict[str, Any]:
    at = (np.arange(_WAVE_SAMPLES) + 0.5) / _WAVE_SAMPLES
    waves = {
        "saw": 1.0 - 2.0 * ((at + 0.5) % 1.0),
        "square": np.where(at < 0.5, 1.0, -1.0),
        "triangle": 1.0 - 4.0 * np.abs((at + 0.25) % 1.0 - 0.5),
        "sine": np.sin(2.0 * np.pi * at),
        "pulse": np.where(at < 0.25, 1.0, -1.0),
    }
    frames = [{"position": at, "wave_data": _encoded(waves[name], "<f4")} for at, name in enumerate(WAVES)]
    component = {"type": "Wave Source", "interpolation": 1, "interpolation_style": 1, "keyframes": frames}
    about = {"author": "", "name": "Basic waves", "version": VERSION, "full_normalize": True, "remove_all_dc": True}
    return {**about, "groups": [{"components": [component]}]}


def _noise() -> dict[str, Any]:
    """One second of white noise. It is drawn from a counter, so that it is the same everywhere."""
    samples = 65535.0 * (uniforms(0, [0], [0], SAMPLE_RATE)[0] - 0.5)
    about = {"name": "White noise", "length": SAMPLE_RATE, "sample_rate": SAMPLE_RATE}
    return {**about, "samples": _encoded(np.floor(samples), "<i2")}


def _triangle() -> dict[str, Any]:
    """The shape of Vital's LFOs: points (x, y) with y downwards, and the curve of each segment."""
    points = {"num_points": 3, "points": [0.0, 1.0, 0.5, 0.0, 1.0, 1.0], "powers": [0.0, 0.0, 0.0]}
    return {"name": "Triangle", **points, "smooth": False}


def _encoded(samples: NDArray[np.float64], kind: str) -> str:
    return base64.b64encode(samples.astype(kind).tobytes()).decode()
