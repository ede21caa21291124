"""The headings under which people read parameters: a group and a label, both made from the parameter's name.

Surge XT's parameters (``a_filter_1_cutoff``: scene A, first filter) are grouped by the panels of Surge XT's window. Its
mixer panel holds the levels, mutes and routes of oscillators, noise and ring modulation.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

from data_pipeline.params.spec import ParamSpec

# The beginning of a name, which the label leaves out, and the group that it stands for. The first match counts.
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
# Words that are written in capitals.
_ABBREVIATIONS = {"eg", "eq", "feg", "fm", "hf", "lf", "lfo", "vca"}


@cache
def headings(spec: ParamSpec) -> dict[str, tuple[str, str]]:
    """Parameter name to (group, label), such as ``a_lfo_1_rate`` to (``LFO 1``, ``Rate``), in the order of the spec.

    Parameters of a synthesizer that is not known here are grouped by the first word of their names, where several
    names begin with it.
    """
    firsts = Counter(_first_word(parameter.name) for parameter in spec.synth_params)
    split = {parameter.name: _split(parameter.name, firsts) for parameter in spec.synth_params}
    split |= {parameter.name: (_NOTE, parameter.name.removeprefix("note_")) for parameter in spec.note_params}
    return {name: (group, _readable(rest)) for name, (group, rest) in split.items()}


def _split(name: str, firsts: Counter[str]) -> tuple[str, str]:
    """The group of a name, and the rest of the name."""
    for pattern, group in _GROUPS:
        match = pattern.match(name)
        if match and name[match.end() :].strip("_ "):
            return group.format(*(number.upper() for number in match.groups())), name[match.end() :]
    first = _first_word(name)
    if firsts[first] > 1 and name.removeprefix(first).strip("_ "):
        return _readable(first), name.removeprefix(first)
    return _OTHER, name


def _first_word(name: str) -> str:
    """The part before the first underscore or space, with a number that follows it: ``env_2`` of ``env_2_attack``."""
    match = re.match(r"[^_ ]+([_ ]\d+(?=[_ ]))?", name)
    return match.group() if match else name


def _readable(name: str) -> str:
    words = [word.upper() if word in _ABBREVIATIONS else word for word in re.split(r"[_ ]+", name) if word]
    text = " ".join(words) or name
    return text[:1].upper() + text[1:]
