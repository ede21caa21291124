"""Surge XT patches without Surge XT: from raw parameter values to a patch and its preset file, and back.

A patch is XML: about 560 parameters, the modulation routings inside them, and a little more. A spec's base patch is the
plugin's init patch with the changes of ``data/base_patches.json``. A row's patch is the base patch with the values of
the row. Raw values lie in 0..1, as in a plugin host; ``data/patch_values.json`` gives the value in the patch for each.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import chain
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, SubElement

from data_pipeline.console.cli import UserError
from data_pipeline.params.kinds import RAW_VALUE_TOLERANCE, Categorical, Continuous, Parameter
from data_pipeline.params.spec import ParamSpec, load_spec
from data_pipeline.synths.surge import data as surge_data
from data_pipeline.synths.surge.patch_xml import finite_number, parameter_section, parameters, parse_patch, serialise
from data_pipeline.synths.vst3_preset import build_container, read_preset_file, read_state

# The bundled specs of Surge XT.
SPECS = ("surge_simple", "surge_xt")
# The class id of Surge XT's presets, the same in every version and on every system.
CLASS_ID = b"ABCDEF019182FAEB566D624153675854"

# Surge XT's state: "sub3", the XML's length, the sizes of six embedded wavetables (ours have none), the XML, and the
# wavetables.
_STATE_HEADER = struct.Struct("<4si24s")
_NO_WAVETABLES = bytes(24)
_STATE_MAGIC = b"sub3"
_FLOAT32 = struct.Struct("<f")
# Marks the place of each value while a template is cut: a character that no XML document may contain.
_CUT = "\x00"


@dataclass(frozen=True)
class PatchValue:
    """The mapping of a parameter's raw value in 0..1 to its value in the patch.

    The patch value lies on the line from ``at_0`` to ``at_1``. If there are ``choices`` (raw value, patch value), it is
    one of them instead.
    """

    tag: str
    integer: bool
    at_0: float
    at_1: float
    choices: tuple[tuple[float, float], ...] = ()

    def to_patch(self, raw: float) -> float:
        """The patch value, rounded as the plugin rounds it. Raises ValueError for an illegal raw value."""
        if not 0.0 <= raw <= 1.0:
            raise ValueError(f"{self.tag}: raw value {raw} is not in 0..1")
        value = self._choice(raw) if self.choices else self.at_0 + raw * (self.at_1 - self.at_0)
        return round(value) if self.integer else _FLOAT32.unpack(_FLOAT32.pack(value))[0]

    def to_raw(self, value: float) -> float:
        """The raw value of a patch value; NaN if it is none of the choices."""
        if not self.choices:
            return (value - self.at_0) / (self.at_1 - self.at_0)
        raw, nearest = min(self.choices, key=lambda choice: abs(choice[1] - value))
        return raw if self.same(nearest, value) else math.nan

    def same(self, value: float, other: float) -> bool:
        """Whether two patch values differ by at most 1e-6 of the range."""
        return abs(value - other) <= RAW_VALUE_TOLERANCE * abs(self.at_1 - self.at_0)

    def text(self, raw: float) -> bytes:
        """The patch value of a raw value, as Surge XT writes it. Raises ValueError as ``to_patch`` does."""
        value = self.to_patch(raw)
        return b"%d" % value if self.integer else b"%.14f" % value

    def _choice(self, raw: float) -> float:
        nearest, value = min(self.choices, key=lambda choice: abs(choice[0] - raw))
        if not abs(nearest - raw) <= RAW_VALUE_TOLERANCE:
            raise ValueError(f"{self.tag}: raw value {raw} is none of {[choice[0] for choice in self.choices]}")
        return value


class PatchTemplate:
    """A base patch, cut into pieces at its parameters' values: a patch is made by joining pieces and values."""

    def __init__(self, spec: ParamSpec, init_patch: bytes | None = None) -> None:
        """The base patch of a spec. ``init_patch`` is the plugin's own (XML, see ``read_preset``), else our copy of it.

        Raises UserError for a spec that has no base patch, or whose parameters are not Surge XT's.
        """
        root = base_patch(spec.name, init_patch)
        elements = parameters(root)
        for value in patch_values(spec).values():
            _existing(elements, value.tag)
        self._cut(root, spec, spec.slices.keys(), _NO_WAVETABLES, b"")

    @classmethod
    @lru_cache(maxsize=8)
    def on(cls, state: bytes, spec: ParamSpec, names: frozenset[str]) -> PatchTemplate:
        """A patch in a plugin's state as the base of the spec's parameters with these names.

        Wavetables and all that is not named stay as they are. Raises UserError for a malformed state.
        """
        xml, sizes, wavetables = _read_parts(state)
        template = cls.__new__(cls)
        template._cut(parse_patch(xml), spec, names, sizes, wavetables)
        return template

    def _cut(self, root: Element, spec: ParamSpec, names: Collection[str], sizes: bytes, wavetables: bytes) -> None:
        self.spec = spec
        self._sizes, self._wavetables = sizes, wavetables
        elements, section = parameters(root), parameter_section(root)
        by_tag = {value.tag: (name, value) for name, value in patch_values(spec).items() if name in names}
        for tag, (_, value) in by_tag.items():
            if tag not in elements:  # A patch of an older version lacks what came later.
                elements[tag] = SubElement(section, tag, type="0" if value.integer else "2")
            elements[tag].set("value", _CUT)
        cut = (element.tag for element in section if element.get("value") == _CUT)
        self._slots = [by_tag[tag] for tag in cut]
        *self._before, self._end = (piece.encode() for piece in serialise(root).split(_CUT))

    def xml(self, values: Mapping[str, Any]) -> bytes:
        """Makes the patch XML of raw values by parameter name. Raises ValueError for an illegal value."""
        texts = [value.text(values[name]) for name, value in self._slots]
        return b"".join(chain.from_iterable(zip(self._before, texts, strict=True))) + self._end

    def preset(self, values: Mapping[str, Any]) -> bytes:
        """Makes the bytes of a ``.vstpreset`` of raw values by parameter name. Raises ValueError as ``xml`` does."""
        return build_container(CLASS_ID, self.state(values))

    def state(self, values: Mapping[str, Any]) -> bytes:
        """Makes the plugin's state of raw values by parameter name. Raises ValueError as ``xml`` does."""
        xml = self.xml(values)
        return _STATE_HEADER.pack(_STATE_MAGIC, len(xml), self._sizes) + xml + self._wavetables


@cache
def surge_template(spec: ParamSpec) -> PatchTemplate | None:
    """The template of a spec of Surge XT, made once a process; None for another plugin's spec.

    Parameter names decide: a spec with the parameters of a bundled spec has the base patch of that one, whatever its
    own name is. None too where the base patch is not known here.
    """
    bundled = (name for name in SPECS if load_spec(name).slices.keys() == spec.slices.keys())
    try:
        return PatchTemplate(replace(spec, name=next(bundled, spec.name)))
    except UserError:
        return None


def with_xml(state: bytes, xml: bytes) -> bytes:
    """A plugin's state with another patch XML; its wavetables stay. Raises UserError for a malformed state."""
    _, sizes, wavetables = _read_parts(state)
    return _STATE_HEADER.pack(_STATE_MAGIC, len(xml), sizes) + xml + wavetables


def read_preset(preset: str | Path | bytes) -> bytes:
    """Reads the patch XML of a ``.vstpreset`` of Surge XT, given as a path or as bytes.

    Raises UserError for a file that cannot be read, and for anything that is not a preset of Surge XT.
    """
    return _read_parts(read_state(preset if isinstance(preset, bytes) else read_preset_file(Path(preset))))[0]


def _read_parts(state: bytes) -> tuple[bytes, bytes, bytes]:
    """The patch XML in a plugin's state, the sizes of the wavetables, and the wavetables. Raises UserError."""
    if len(state) < _STATE_HEADER.size or not state.startswith(_STATE_MAGIC):
        raise UserError("the preset is not one of Surge XT's")
    _, length, sizes = _STATE_HEADER.unpack_from(state)
    if not 0 < length <= len(state) - _STATE_HEADER.size:
        raise UserError("the preset is damaged: its patch is cut off")
    end = _STATE_HEADER.size + length
    return state[_STATE_HEADER.size : end].rstrip(b"\0"), sizes, state[end:]


def read_values(patch_xml: bytes, spec: ParamSpec) -> dict[str, float]:
    """Reads the raw value of every synthesizer parameter of the spec, by name.

    The values have the spec's meaning only in a patch with the spec's oscillator and effect types, which is not
    checked. Raises UserError for a malformed patch, a missing parameter, or a value that the spec does not have.
    """
    raws = {}
    for name, (value, found) in _found_values(patch_xml, spec).items():
        raw = value.to_raw(found)
        if not -RAW_VALUE_TOLERANCE <= raw <= 1.0 + RAW_VALUE_TOLERANCE:
            raise UserError(f"the patch's {value.tag} is {found:g}, which {name} of spec {spec.name} cannot be")
        raws[name] = min(max(raw, 0.0), 1.0)
    return raws


def differences(patch_xml: bytes, values: Mapping[str, Any], spec: ParamSpec) -> list[tuple[str, float, float]]:
    """Compares a patch with raw values of some parameters. Returns (name, expected raw value, found raw value).

    Values differ when they are more than 1e-6 of the parameter's range apart in the patch. The found value is NaN if
    it is no category of the spec. Raises UserError for a malformed patch or a missing parameter.
    """
    return [
        (name, float(values[name]), value.to_raw(found))
        for name, (value, found) in _found_values(patch_xml, spec).items()
        if name in values and not value.same(value.to_patch(values[name]), found)
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
    """The base patch of a spec: the init patch with the spec's changes, without the state of the plugin's editor.

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
            # The init patch has no effects. Surge finds parameters by tag, in any place.
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
    """The mapping of each synthesizer parameter of a spec to the patch, by name, in spec order.

    Raises UserError for a parameter that Surge XT lacks or has with other values.
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
    """All raw values of a categorical parameter, or the ends of a range. Raises ValueError for another kind."""
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
