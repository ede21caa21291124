"""The panel of a synthesizer: the groups in which people see its parameters, made from the parameters' names.

Patches can exchange whole groups, such as an oscillator with all its settings.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cache

from data_pipeline.params.spec import ParamSpec

_NOTE = "Note"
_OTHER = "Parameters"
# Words that are written in capitals.
_ABBREVIATIONS = {"eg", "eq", "feg", "fm", "hf", "lf", "lfo", "vca"}


@dataclass(frozen=True)
class Panel:
    """The groups of a synthesizer's parameters.

    ``groups`` has pairs (pattern, group). The first pattern that matches the beginning of a name gives the group, and
    the label is the rest of the name. A number in the matched part takes the place of {} in the group. Any other
    parameter is grouped by the first word of its name, if several names begin with that word.

    ``exchangeable`` has the groups with {} whose settings fit in each other's place, such as ``Operator {}``.
    """

    groups: tuple[tuple[str, str], ...] = ()
    exchangeable: tuple[str, ...] = ()

    @cache  # noqa: B019 - a program has few panels, and they stay.
    def headings(self, spec: ParamSpec) -> dict[str, tuple[str, str]]:
        """Parameter name to (group, label), such as ``a_lfo_1_rate`` to (``LFO 1``, ``Rate``), in spec order."""
        firsts = Counter(_first_word(parameter.name) for parameter in spec.synth_params)
        split = {parameter.name: self._split(parameter.name, firsts) for parameter in spec.synth_params}
        split |= {parameter.name: (_NOTE, parameter.name.removeprefix("note_")) for parameter in spec.note_params}
        return {name: (group, _readable(rest)) for name, (group, rest) in split.items()}

    def modules(self, spec: ParamSpec) -> dict[str, tuple[str, ...]]:
        """Group to the names of its parameters, without the note's."""
        modules: dict[str, tuple[str, ...]] = {}
        headings = self.headings(spec)
        for parameter in spec.synth_params:
            group, _ = headings[parameter.name]
            modules[group] = (*modules.get(group, ()), parameter.name)
        return modules

    def places(self, spec: ParamSpec) -> list[tuple[str, ...]]:
        """Sets of groups whose parameters, in order, have the same labels and kinds, and fit in each other's place."""
        alike: dict[object, tuple[str, ...]] = {}
        headings = self.headings(spec)
        kinds = {parameter.name: (type(parameter), parameter.width) for parameter in spec.synth_params}
        for group, names in self.modules(spec).items():
            template = re.sub(r"\w+$", "{}", group)
            if template in self.exchangeable:
                layout = tuple((headings[name][1], kinds[name]) for name in names)
                alike[template, layout] = (*alike.get((template, layout), ()), group)
        return [groups for groups in alike.values() if len(groups) > 1]

    def _split(self, name: str, firsts: Counter[str]) -> tuple[str, str]:
        """The group of a name, and the rest of the name."""
        for pattern, group in self.groups:
            match = re.match(pattern, name)
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
