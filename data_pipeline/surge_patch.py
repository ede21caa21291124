"""Surge XT patches without Surge XT: from raw parameter values to a patch and its preset file, and back.

A patch is XML: some 560 parameters, the modulation routings inside them, and a little else. A spec's base patch is the
plugin's init patch with the changes of ``surge_data/base_patches.json``; a row's patch is the base patch with the
values of the row. Raw values lie in 0..1, as a plugin host knows them; ``surge_data`` tells what each is in the patch.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, SubElement

from data_pipeline import surge_data
from data_pipeline.atomic import atomic_path
from data_pipeline.cli import UserError
from data_pipeline.param_kinds import RAW_VALUE_TOLERANCE, Categorical, Continuous, Parameter
from data_pipeline.param_spec import ParamSpec
from data_pipeline.surge_xml import finite_number, parameter_section, parameters, parse_patch, serialise
from data_pipeline.vst3_preset import build_container, read_preset_file, read_state

# The class id that Surge XT's presets carry in every version and on every system.
CLASS_ID = b"ABCDEF019182FAEB566D624153675854"

# Surge XT's state: "sub3", the XML's length, the sizes of six wavetables that follow it (ours embed none), the XML.
_STATE_HEADER = struct.Struct("<4si24x")
_STATE_MAGIC = b"sub3"
_FLOAT32 = struct.Struct("<f")
# Stands where a value belongs while a template is cut up: a character that XML does not allow in a document.
_CUT = "\x00"


@dataclass(frozen=True)
class PatchValue:
    """How a parameter's raw value, in 0..1, becomes its value in the patch.

    On the line from ``at_0`` to ``at_1``, or, where there are ``choices`` (raw value, patch value), one of them.
    """

    tag: str
    integer: bool
    at_0: float
    at_1: float
    choices: tuple[tuple[float, float], ...] = ()

    def to_patch(self, raw: float) -> float:
        """The patch value, rounded as the plugin holds it. Raises ValueError for a raw value it cannot have."""
        if not 0.0 <= raw <= 1.0:
            raise ValueError(f"{self.tag}: raw value {raw} is not in 0..1")
        value = self._choice(raw) if self.choices else self.at_0 + raw * (self.at_1 - self.at_0)
        return round(value) if self.integer else _FLOAT32.unpack(_FLOAT32.pack(value))[0]

    def to_raw(self, value: float) -> float:
        """The raw value that this patch value stands for; NaN where it is none of the choices."""
        if not self.choices:
            return (value - self.at_0) / (self.at_1 - self.at_0)
        raw, nearest = min(self.choices, key=lambda choice: abs(choice[1] - value))
        return raw if self.same(nearest, value) else math.nan

    def same(self, value: float, other: float) -> bool:
        """Whether two patch values differ by no more than 1e-6 of the range."""
        return abs(value - other) <= RAW_VALUE_TOLERANCE * abs(self.at_1 - self.at_0)

    def text(self, raw: float) -> bytes:
        """The patch value as Surge XT writes it."""
        value = self.to_patch(raw)
        return b"%d" % value if self.integer else b"%.14f" % value

    def _choice(self, raw: float) -> float:
        nearest, value = min(self.choices, key=lambda choice: abs(choice[0] - raw))
        if not abs(nearest - raw) <= RAW_VALUE_TOLERANCE:
            raise ValueError(f"{self.tag}: raw value {raw} is none of {[choice[0] for choice in self.choices]}")
        return value


class PatchTemplate:
    """A spec's base patch, cut once where its parameters' values belong: making a patch is joining pieces."""

    def __init__(self, spec: ParamSpec, init_patch: bytes | None = None) -> None:
        """``init_patch`` is the plugin's own (XML, see ``read_preset``); without it ours, which is the same.

        Raises UserError for a spec that has no base patch, or whose parameters are not Surge XT's.
        """
        root = base_patch(spec.name, init_patch)
        elements = parameters(root)
        by_tag = {value.tag: (name, value) for name, value in patch_values(spec).items()}
        for tag in by_tag:
            _existing(elements, tag).set("value", _CUT)
        cut = (element.tag for element in parameter_section(root) if element.get("value") == _CUT)
        self._slots = [by_tag[tag] for tag in cut]
        *self._before, self._end = (piece.encode() for piece in serialise(root).split(_CUT))

    def xml(self, values: Mapping[str, Any]) -> bytes:
        """Raw values by parameter name, ``ParamSpec.decode``'s, to the patch. Raises ValueError for an illegal one."""
        texts = [value.text(values[name]) for name, value in self._slots]
        return b"".join(chain.from_iterable(zip(self._before, texts, strict=True))) + self._end

    def preset(self, values: Mapping[str, Any]) -> bytes:
        """Raw values by parameter name to the bytes of a ``.vstpreset``. Raises ValueError as ``xml`` does."""
        xml = self.xml(values)
        return build_container(CLASS_ID, _STATE_HEADER.pack(_STATE_MAGIC, len(xml)) + xml)


def write_preset(path: str | Path, template: PatchTemplate, values: Mapping[str, Any]) -> None:
    """Writes a ``.vstpreset`` that any VST3 host loads into Surge XT, whole or not at all. Raises UserError."""
    with atomic_path(Path(path)) as temporary:
        temporary.write_bytes(template.preset(values))


def read_preset(preset: str | Path | bytes) -> bytes:
    """The patch XML that a ``.vstpreset`` of Surge XT holds, a file's or given as bytes, whoever wrote it.

    Raises UserError for a file that cannot be read, and for anything that is not a preset of Surge XT.
    """
    state = read_state(preset if isinstance(preset, bytes) else read_preset_file(Path(preset)))
    if len(state) < _STATE_HEADER.size or not state.startswith(_STATE_MAGIC):
        raise UserError("the preset is not one of Surge XT's")
    length = _STATE_HEADER.unpack_from(state)[1]
    if not 0 < length <= len(state) - _STATE_HEADER.size:
        raise UserError("the preset is damaged: its patch is cut off")
    return state[_STATE_HEADER.size : _STATE_HEADER.size + length].rstrip(b"\0")


def read_values(patch_xml: bytes, spec: ParamSpec) -> dict[str, float]:
    """The raw value of every synthesizer parameter of the spec, by name.

    Values mean what the spec says only in a patch of the spec's oscillator and effect types; these are not looked at.
    Raises UserError for a malformed patch, a parameter that it lacks, or a value that the spec has no word for.
    """
    raws = {}
    for name, (value, found) in _found_values(patch_xml, spec).items():
        raw = value.to_raw(found)
        if not -RAW_VALUE_TOLERANCE <= raw <= 1.0 + RAW_VALUE_TOLERANCE:
            raise UserError(f"the patch's {value.tag} is {found:g}, which {name} of spec {spec.name} cannot be")
        raws[name] = min(max(raw, 0.0), 1.0)
    return raws


def differences(patch_xml: bytes, values: Mapping[str, Any], spec: ParamSpec) -> list[tuple[str, float, float]]:
    """Where a patch does not hold these raw values: (parameter name, expected raw value, found raw value).

    Values differ when they are more than 1e-6 of the parameter's range apart in the patch; the found one is NaN where
    it is no category of the spec. Raises UserError for a malformed patch or a parameter that it lacks.
    """
    return [
        (name, float(values[name]), value.to_raw(found))
        for name, (value, found) in _found_values(patch_xml, spec).items()
        if not value.same(value.to_patch(values[name]), found)
    ]


def _found_values(patch_xml: bytes, spec: ParamSpec) -> dict[str, tuple[PatchValue, float]]:
    elements = parameters(parse_patch(patch_xml))
    found = {}
    for name, value in patch_values(spec).items():
        if value.tag not in elements:
            raise UserError(f"the patch lacks {value.tag}, which is {name} of spec {spec.name}")
        found[name] = value, finite_number(elements[value.tag].get("value"), f"the patch's {value.tag}")
    return found


def base_patch(spec_name: str, init_patch: bytes | None = None) -> Element:
    """The patch whose parameters a spec sets: the init patch with the spec's changes, without the editor's state.

    Raises UserError for a spec that has no base patch or an init patch that is malformed.
    """
    bases = surge_data.read("base_patches")
    if spec_name not in bases:
        raise UserError(f"Surge XT has no base patch for spec {spec_name}: there are {', '.join(sorted(bases))}")
    root = _element(surge_data.read("init_patch")) if init_patch is None else parse_patch(init_patch)
    for editor_state in root.findall("dawExtraState"):
        root.remove(editor_state)
    for meta in root.findall("meta"):
        meta.attrib.update(name=spec_name, category="synthjax", author="synthjax", license="")
    elements = parameters(root)
    for tag, attributes in bases[spec_name]["parameters"].items():
        if tag not in elements and "type" in attributes:
            # The init patch has no effects; Surge finds parameters by tag, wherever they stand.
            elements[tag] = SubElement(parameter_section(root), tag)
        _existing(elements, tag).attrib.update(attributes)
    for routing in bases[spec_name]["modulation"]:
        attributes = {key: value for key, value in routing.items() if key != "parameter"}
        SubElement(_existing(elements, routing["parameter"]), "modrouting", attributes)
    return root


def _existing(elements: Mapping[str, Element], tag: str) -> Element:
    if tag not in elements:
        raise UserError(f"the init patch lacks the parameter {tag}: it is not Surge XT's")
    return elements[tag]


@cache
def patch_values(spec: ParamSpec) -> dict[str, PatchValue]:
    """How each synthesizer parameter of a spec lies in the patch, by name, in spec order.

    Raises UserError for a parameter that Surge XT has not, or has otherwise.
    """
    return {parameter.name: _patch_value(parameter, spec.name) for parameter in spec.synth_params}


def _patch_value(parameter: Parameter, spec_name: str) -> PatchValue:
    entry = surge_data.read("patch_values").get(parameter.name)
    if entry is None:
        raise UserError(f"{parameter.name} of spec {spec_name} is no parameter of Surge XT that synthjax knows")
    choices = tuple((float(raw), float(value)) for raw, value in entry.get("raw_to_patch", []))
    value = PatchValue(entry["tag"], entry["type"] == 0, entry["at_0"], entry["at_1"], choices)
    try:
        for raw in _legal_raws(parameter, value):
            value.to_patch(raw)
    except ValueError as error:
        raise UserError(f"{parameter.name} of spec {spec_name} does not fit Surge XT: {error}") from error
    return value


def _legal_raws(parameter: Parameter, value: PatchValue) -> tuple[float, ...]:
    """All raw values of a category, the ends of a range."""
    match parameter:
        case Categorical():
            return parameter.raw_values
        case Continuous() if not value.choices:
            return parameter.min, parameter.max
    raise ValueError("wrong kind of parameter")


def _element(node: list[Any]) -> Element:
    tag, attributes, *children = node
    element = Element(tag, attributes)
    element.extend([_element(child) for child in children[0]] if children else [])
    return element
