"""Which parameters belong together, and what to call them: told by their names, for people to read.

Surge XT's names (``a_filter_1_cutoff``: scene A, first filter) are grouped by the panels of its window, in which the
mixer holds the levels, mutes and routes of oscillators, noise and ring modulation.
"""

from __future__ import annotations

import re
from collections import Counter

from data_pipeline.param_spec import ParamSpec

# A name's beginning, which its group already says, and that group; the first that matches counts.
_GROUPS = tuple(
    (re.compile(pattern), label)
    for pattern, label in (
        (r"a_(?=osc_\d_(?:volume|mute|route)$|noise_|ring_modulation_)", "Mixer"),
        (r"(?:a_)?osc_(\d+)_", "Oscillator {}"),
        (r"a_(?=osc_drift$|fm_)", "Oscillator FM and drift"),
        (r"a_amp_eg_", "Amplifier envelope"),
        (r"a_filter_eg_", "Filter envelope"),
        (r"(?:a_)?filter_(\d+)_", "Filter {}"),
        (r"a_(?=filter_|feedback$|highpass$)", "Filter routing"),
        (r"a_waveshaper_", "Waveshaper"),
        (r"(?:a_)?lfo_(\d+)_", "LFO {}"),
        (r"a_(?=pan$|width$|vca_gain$)", "Output"),
        (r"fx_([a-z]\d+)_", "Effect {}"),
        (r"noise_", "Noise"),
        (r"filter_", "Filter"),
        (r"amp_", "Amplifier"),
        (r"(?=stereo_width$)", "Output"),
    )
)
_NOTE = "Note"
_OTHER = "Parameters"
# What of a name stays in capitals.
_ABBREVIATIONS = {"eg", "eq", "feg", "fm", "hf", "lf", "lfo", "vca"}


def groups(spec: ParamSpec) -> dict[str, str]:
    """Parameter name to group, such as ``a_lfo_1_rate`` to ``LFO 1``; all parameters, in the order of the spec.

    Names that no synthesizer here uses are grouped by their first word where it begins several names.
    """
    return {name: label for name, (label, _) in _split(spec).items()}


def short_names(spec: ParamSpec) -> dict[str, str]:
    """Parameter name to what is left to say within its group, such as ``a_lfo_1_rate`` to ``Rate``."""
    return {name: _readable(rest) for name, (_, rest) in _split(spec).items()}


def _split(spec: ParamSpec) -> dict[str, tuple[str, str]]:
    """Parameter name to group and the rest of the name."""
    firsts = Counter(_first_word(parameter.name) for parameter in spec.synth_params)
    found = {parameter.name: _split_name(parameter.name, firsts) for parameter in spec.synth_params}
    return found | {parameter.name: (_NOTE, parameter.name.removeprefix("note_")) for parameter in spec.note_params}


def _split_name(name: str, firsts: Counter[str]) -> tuple[str, str]:
    for pattern, label in _GROUPS:
        match = pattern.match(name)
        if match and _says_something(name[match.end() :]):
            return label.format(*(number.upper() for number in match.groups())), name[match.end() :]
    first = _first_word(name)
    if firsts[first] > 1 and _says_something(name.removeprefix(first)):
        return _readable(first), name.removeprefix(first)
    return _OTHER, name


def _says_something(rest: str) -> bool:
    return bool(rest.strip("_ "))


def _first_word(name: str) -> str:
    """The part before the first underscore or space, with a number that follows: ``env_2`` of ``env_2_attack``."""
    match = re.match(r"[^_ ]+([_ ]\d+(?=[_ ]))?", name)
    return match.group() if match else name


def _readable(name: str) -> str:
    words = [word.upper() if word in _ABBREVIATIONS else word for word in re.split(r"[_ ]+", name) if word]
    text = " ".join(words) or name
    return text[:1].upper() + text[1:]
