"""Surge XT patches made and read without the plugin."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.console.cli import UserError
from data_pipeline.params.kinds import Categorical, Continuous
from data_pipeline.params.spec import ParamSpec, load_spec
from data_pipeline.synths.surge.patch import (
    CLASS_ID,
    PatchTemplate,
    base_patch,
    differences,
    patch_values,
    read_preset,
    read_values,
)
from data_pipeline.synths.surge.patch_xml import parameters, parse_patch, revision, serialise
from data_pipeline.synths.vst3_preset import build_container, read_state
from tests.data_pipeline.fake_vst3 import container, surge_state

SPECS = {name: load_spec(name) for name in ("surge_simple", "surge_xt")}
TEMPLATES = {name: PatchTemplate(spec) for name, spec in SPECS.items()}
SIMPLE = SPECS["surge_simple"]

both = pytest.mark.parametrize("name", SPECS)


def random_values(name: str, seed: int) -> dict[str, Any]:
    return SPECS[name].decode(np.random.default_rng(seed).random(SPECS[name].width))


def small_patch(text: str = '<a_lowcut type="2" value="0.5" />', root: str = 'patch revision="24"') -> bytes:
    return f"<{root}><parameters>{text}</parameters></patch>".encode()


def small_spec(*names: str) -> ParamSpec:
    return ParamSpec("surge_simple", tuple(p for p in SIMPLE.synth_params if p.name in names), SIMPLE.note_params)


# Building


@both
def test_the_base_patch_equals_the_shared_preset(name: str, shared_data: Path) -> None:
    preset = read_preset(shared_data / "presets" / f"{name}.vstpreset")
    expected, built = (parameters(ElementTree.fromstring(xml)) for xml in (preset, serialise(base_patch(name))))
    assert built.keys() == expected.keys()
    for tag, element in expected.items():
        # Value, flags and modulation routings, byte for byte.
        assert ElementTree.tostring(built[tag]) == ElementTree.tostring(element)


@both
def test_values_are_written_byte_for_byte_as_surge_writes_them(name: str, shared_data: Path) -> None:
    spec, elements = SPECS[name], parameters(parse_patch(read_preset(shared_data / "presets" / f"{name}.vstpreset")))
    unknown = []
    for parameter, value in patch_values(spec).items():
        written = elements[value.tag].get("value", "")
        raw = value.to_raw(float(written))
        if math.isnan(raw):
            unknown.append(parameter)
        else:
            assert value.text(raw).decode() == written
        assert elements[value.tag].get("type") == ("0" if value.integer else "2")
    # The base patch has its filters off, which is no category of the spec.
    assert unknown == (["a_filter_1_type", "a_filter_2_type"] if name == "surge_xt" else [])


def test_a_value_is_rounded_to_float32_and_has_14_decimals() -> None:
    value = patch_values(SIMPLE)["a_highpass"]  # -72 to 15
    assert [value.text(raw) for raw in (0.0, 0.1, 1.0)] == [
        b"-72.00000000000000",
        b"-63.29999923706055",
        b"15.00000000000000",
    ]


def test_the_table_is_the_measured_one(shared_data: Path) -> None:
    for name, table in json.loads((shared_data / "surge_patch_values.json").read_text()).items():
        values = patch_values(SPECS[name])
        assert values.keys() == table.keys()
        for parameter, entry in table.items():
            value = values[parameter]
            assert (value.tag, value.integer) == (entry["tag"], entry["type"] == 0)
            for raw, patch in entry.get("raw_to_patch", [[0.0, entry["at_0"]], [1.0, entry["at_1"]]]):
                assert value.to_patch(raw) == pytest.approx(patch, rel=1e-7)


@both
@given(st.data())
def test_any_row_comes_back_from_its_preset(name: str, data: st.DataObject) -> None:
    spec = SPECS[name]
    row = np.random.default_rng(data.draw(st.integers(0, 1 << 32))).uniform(-0.2, 1.2, spec.width)
    values = spec.decode(row)
    patch = read_preset(TEMPLATES[name].preset(values))
    assert patch == TEMPLATES[name].xml(values)
    assert differences(patch, values, spec) == []
    read = read_values(patch, spec)
    assert read == pytest.approx({key: values[key] for key in read}, abs=1e-6)
    np.testing.assert_allclose(spec.encode({**values, **read}), spec.encode(values), atol=2e-6)


@both
def test_a_row_changes_nothing_but_its_own_values(name: str) -> None:
    base, built = (
        parameters(root) for root in (base_patch(name), parse_patch(TEMPLATES[name].xml(random_values(name, 1))))
    )
    own = {value.tag for value in patch_values(SPECS[name]).values()}
    assert list(built) == list(base)
    for tag, element in base.items():
        if tag in own:
            element.set("value", built[tag].get("value", ""))
        assert ElementTree.tostring(built[tag]) == ElementTree.tostring(element)


@both
def test_the_plugins_own_init_patch_gives_the_same_patches(name: str, shared_data: Path) -> None:
    tree = json.loads((shared_data / "surge_init_patch.json").read_text())

    def element(node: dict[str, Any]) -> ElementTree.Element:
        made = ElementTree.Element(node["tag"], node.get("attributes", {}))
        made.extend([element(child) for child in node.get("children", [])])
        return made

    template = PatchTemplate(SPECS[name], ElementTree.tostring(element(tree)))
    values = random_values(name, 2)
    assert template.xml(values) == TEMPLATES[name].xml(values)


def test_a_template_takes_the_first_of_a_repeated_tag() -> None:
    init = serialise(base_patch("surge_simple")).replace(
        "</parameters>", '<a_lowcut type="2" value="7" /></parameters>'
    )
    values = random_values("surge_simple", 3)
    xml = PatchTemplate(SIMPLE, init.encode()).xml(values)
    assert xml.count(b'<a_lowcut type="2" value="7" />') == 1
    assert differences(xml, values, SIMPLE) == []


def test_a_patch_is_one_line_without_editor_state() -> None:
    xml = TEMPLATES["surge_simple"].xml(random_values("surge_simple", 4))
    assert xml.startswith(b'<?xml version="1.0" encoding="UTF-8" standalone="yes" ?><patch revision="24"><meta name=')
    assert b"\n" not in xml
    assert b"dawExtraState" not in xml
    assert b'<a_pitch type="2" value="0.00000000000000" extend_range="0"><modrouting source="22" depth="14"' in xml


def test_a_preset_is_the_smallest_container() -> None:
    values = random_values("surge_simple", 5)
    state = read_state(TEMPLATES["surge_simple"].preset(values))
    xml = TEMPLATES["surge_simple"].xml(values)
    assert state == b"sub3" + struct.pack("<i", len(xml)) + bytes(24) + xml
    assert TEMPLATES["surge_simple"].preset(values) == build_container(CLASS_ID, state)


@pytest.mark.parametrize(
    ("parameter", "raw"),
    [
        ("a_highpass", -0.1),
        ("a_highpass", 1.1),
        ("a_highpass", math.nan),
        ("a_osc_1_octave", 0.1),
        ("a_osc_1_octave", math.nan),
    ],
)
def test_an_illegal_value_is_refused(parameter: str, raw: float) -> None:
    with pytest.raises(ValueError, match="raw value"):
        TEMPLATES["surge_xt"].preset({**random_values("surge_xt", 7), parameter: raw})


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (ParamSpec("other", SIMPLE.synth_params, SIMPLE.note_params), "no base patch for spec other"),
        (ParamSpec("surge_simple", (Continuous("a_nonsense", 0, 1),), ()), "a_nonsense of spec surge_simple is no"),
        (ParamSpec("surge_simple", (Continuous("a_highpass", 0, 2),), ()), "a_highpass of spec surge_simple does not"),
        (ParamSpec("surge_xt", (Continuous("a_osc_1_octave", 0, 1),), ()), "wrong kind of parameter"),
        (ParamSpec("surge_xt", (Categorical("a_osc_1_octave", (1, 2), (0.2, 0.5), (1, 1)),), ()), "is none of"),
    ],
)
def test_a_spec_that_is_not_surges_is_refused(spec: ParamSpec, words: str) -> None:
    with pytest.raises(UserError, match=words):
        PatchTemplate(spec)


def test_an_init_patch_that_is_not_surges_is_refused() -> None:
    whole = serialise(base_patch("surge_xt"))
    for text in (small_patch(), whole.replace("a_pitch", "a_other").encode(), whole.replace("a_lowcut", "b").encode()):
        with pytest.raises(UserError, match="it is not Surge XT's"):
            PatchTemplate(SPECS["surge_xt"], text)


# Reading


@both
def test_presets_of_other_writers_are_read(name: str) -> None:
    values = random_values(name, 8)
    state = surge_state(TEMPLATES[name].xml(values)) + bytes(16) + b"JUCEPrivateData<?xml version='1.0'?>"
    preset = container({"Info": b"<MetaInfo/>", "Cont": b"", "Comp": state})
    assert differences(read_preset(preset), values, SPECS[name]) == []
    padded = container({"Comp": surge_state(TEMPLATES[name].xml(values) + b"\0")})
    assert differences(read_preset(padded), values, SPECS[name]) == []


def test_differences_name_each_parameter_that_is_not_as_expected() -> None:
    name, values = "surge_xt", random_values("surge_xt", 9)
    octave = next(p for p in SPECS[name].synth_params if p.name == "a_osc_1_octave")
    assert isinstance(octave, Categorical)
    other = next(raw for raw in octave.raw_values if raw != values["a_osc_1_octave"])
    changed = {**values, "a_osc_1_octave": other, "a_highpass": 0.25}
    found = differences(TEMPLATES[name].xml(changed), {**values, "a_highpass": 0.5}, SPECS[name])
    assert {name for name, _, _ in found} == {"a_osc_1_octave", "a_highpass"}
    assert dict((name, raw) for name, raw, _ in found)["a_highpass"] == 0.5
    assert dict((name, raw) for name, _, raw in found) == {"a_osc_1_octave": other, "a_highpass": pytest.approx(0.25)}


@pytest.mark.parametrize(("distance", "expected"), [(0.5e-6, 0), (2e-6, 1)])
def test_differences_allow_a_millionth_of_the_range(distance: float, expected: int) -> None:
    values = {**random_values("surge_simple", 10), "a_highpass": 0.5}
    moved = TEMPLATES["surge_simple"].xml({**values, "a_highpass": 0.5 + distance})
    assert len(differences(moved, values, SIMPLE)) == expected


def test_a_value_that_the_spec_does_not_have_is_named() -> None:
    values = random_values("surge_xt", 11)
    tag = parameters(parse_patch(TEMPLATES["surge_xt"].xml(values)))["a_filter1_type"].get("value")
    xml = (
        TEMPLATES["surge_xt"]
        .xml(values)
        .replace(b'<a_filter1_type type="0" value="%s"' % str(tag).encode(), b'<a_filter1_type type="0" value="30"')
    )
    with pytest.raises(UserError, match="a_filter1_type is 30, which a_filter_1_type of spec surge_xt cannot be"):
        read_values(xml, SPECS["surge_xt"])
    (difference,) = differences(xml, values, SPECS["surge_xt"])
    assert difference[0] == "a_filter_1_type"
    assert math.isnan(difference[2])


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        (small_patch(""), "lacks a_lowcut, which is a_highpass"),
        (small_patch('<a_lowcut type="2" />'), "not a number"),
        (small_patch('<a_lowcut value="nan" />'), "not a number"),
        (small_patch('<a_lowcut value="1e999" />'), "not a number"),
        (small_patch('<a_lowcut value="16" />'), "cannot be"),
        (b"<patch/>", "no parameters"),
        (b"<a/>", "root is not <patch>"),
        (b"", "malformed XML"),
        (b"<patch><parameters></patch>", "malformed XML"),
        (b"\xff\xfe<\0p\0", "malformed XML"),
        (b"<patch>" + b"<a>" * 100 + b"</a>" * 100 + b"</patch>", "deeper"),
        (b"<patch>" + b"<a/>" * 100_000 + b"</patch>", "more elements"),
        (b" " * (9 << 20), "larger than 8 MiB"),
    ],
)
def test_a_malformed_patch_is_refused(patch: bytes, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_values(patch, small_spec("a_highpass"))


@pytest.mark.parametrize(
    "doctype",
    [
        '<!DOCTYPE patch [<!ENTITY a "x"><!ENTITY b "&a;&a;&a;"><!ENTITY c "&b;&b;&b;">]>',
        '<!DOCTYPE patch [<!ENTITY a SYSTEM "file:///etc/hostname">]>',
        '<!DOCTYPE patch SYSTEM "http://localhost/patch.dtd">',
    ],
)
def test_a_doctype_is_refused_before_any_entity_is_looked_at(doctype: str) -> None:
    with pytest.raises(UserError, match="DOCTYPE"):
        parse_patch(doctype.encode() + small_patch('<a_lowcut type="2" value="&c;" />'))
    with pytest.raises(UserError, match="malformed XML"):
        parse_patch(small_patch("&a;"))


def test_a_patch_in_another_declared_encoding_is_read_as_utf_8() -> None:
    declaration = b'<?xml version="1.0" encoding="utf-7"?>'
    assert read_values(declaration + small_patch(), small_spec("a_highpass")) == {
        "a_highpass": pytest.approx(72.5 / 87)
    }


@pytest.mark.parametrize("text", ["", "nan", "inf", "x"])
def test_a_patch_without_a_revision_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="the patch's revision"):
        revision(parse_patch(small_patch(root=f'patch revision="{text}"')))
    assert revision(parse_patch(small_patch())) == 24


@pytest.mark.parametrize(
    "state",
    [b"", b"sub3", b"sub2" + bytes(100), surge_state(b"")[:31], surge_state(b""), surge_state(b"<patch/>")[:-1]],
)
def test_the_state_of_another_plugin_is_refused(state: bytes) -> None:
    with pytest.raises(UserError, match="the preset is"):
        read_preset(build_container(CLASS_ID, state))


@pytest.mark.parametrize("length", [-1, 0, 1 << 30])
def test_a_false_length_is_refused(length: int) -> None:
    state = bytearray(surge_state(b"<patch/>"))
    struct.pack_into("<i", state, 4, length)
    with pytest.raises(UserError, match="cut off"):
        read_preset(build_container(CLASS_ID, bytes(state)))
