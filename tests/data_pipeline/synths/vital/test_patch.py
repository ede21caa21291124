"""``.vital`` files without Vital: rows come back exactly, base patches stay as they are, odd files are refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from data_pipeline.console.cli import UserError
from data_pipeline.params.spec import load_spec
from data_pipeline.synths.vital.instrument import INSTRUMENT
from data_pipeline.synths.vital.patch import MAX_PATCH_BYTES, base_patch, controls, write_patch

SPEC = load_spec("vital")
NOTE = {"pitch": 60, "note_start_and_end": (0.0, 1.0)}
BASE = base_patch()
# Modulations of a user's patch: one of the spec's in slot 2, another in slot 1, and three more slots.
PAIRS = [("lfo_2", "osc_1_pan"), ("lfo_1", "filter_1_cutoff"), ("", ""), ("macro_control_1", "volume"), ("", "")]


def written(settings: dict[str, Any], **other: Any) -> bytes:
    return write_patch({**BASE, **other, "settings": {**BASE["settings"], **settings}})


def users_patch() -> dict[str, Any]:
    """A patch with sources and modulations of its own, and with a setting of a later version."""
    table = {**BASE["settings"]["wavetables"][0], "name": "Choir", "groups": [{"components": []}]}
    lfo = {"name": "Steps", "num_points": 2, "points": [0.0, 0.5, 1.0, 0.25], "powers": [1.0, 0.0], "smooth": True}
    settings = {
        "wavetables": [table, *BASE["settings"]["wavetables"][1:]],
        "lfos": [*BASE["settings"]["lfos"][:7], lfo],
        "modulations": [{"source": source, "destination": destination} for source, destination in PAIRS],
        **{"modulation_1_amount": 0.5, "modulation_2_amount": 0.25, "modulation_3_amount": 0.125},
        **{"voice_tune": 0.5, "osc_1_random_phase": 1.0, "new_in_2": 3.0},
    }
    return json.loads(written(settings, preset_name="Pad", author="A. User", comments="soft", preset_style="Pad"))


def test_rows_come_back_exactly() -> None:
    for row in SPEC.sample(4, range(32), [0] * 32):
        content = INSTRUMENT.preset_files(SPEC, [SPEC.decode(row)], "name", "comment")[".vital"]
        [patch], remarks = INSTRUMENT.read(content)
        assert (patch.name, patch.about["comment"], patch.outside, remarks) == ("name", "comment", [], [])
        note = {parameter.name: SPEC.decode(row)[parameter.name] for parameter in SPEC.note_params}
        np.testing.assert_array_equal(SPEC.encode({**patch.values, **note}), row)


def test_a_file_says_what_the_spec_does_not_have() -> None:
    content = write_patch(users_patch())
    [patch], _ = INSTRUMENT.read(content)
    assert (patch.name, patch.base) == ("Pad", content)
    assert patch.about == {"author": "A. User", "comment": "soft", "style": "Pad"}
    assert patch.values["lfo_1_to_filter_1_cutoff"] == 0.25
    assert patch.values["lfo_1_to_voice_tune"] == 0.0
    assert sorted(patch.outside) == [
        "lfo 8 is Steps",
        "lfo_2 modulates osc_1_pan",
        "macro_control_1 modulates volume",
        "modulation_1_amount is 0.5, in the base patch 0",
        "new_in_2 is 3, in the base patch None",
        "osc_1_random_phase is 1, in the base patch 0",
        "voice_tune is 0.5, in the base patch 0",
        "wavetable 1 is Choir",
    ]


def test_values_that_are_not_legal_are_left_out_and_named() -> None:
    content = written({"env_1_attack": 2.0, "osc_1_destination": 7.0, "osc_2_transpose": 0.5, "osc_3_level": -1.0})
    [patch], _ = INSTRUMENT.read(content)
    named = {"env_1_attack": "2", "osc_1_destination": "7", "osc_2_transpose": "0.5", "osc_3_level": "-1"}
    assert not named.keys() & patch.values.keys()
    assert patch.outside == [
        f"{name} is {value}, which the spec does not have"
        for name, value in sorted(named.items(), key=lambda item: list(SPEC.slices).index(item[0]))
    ]


def test_a_control_that_is_missing_has_its_usual_value() -> None:
    patch = json.loads(write_patch(BASE))
    del patch["settings"]["filter_2_cutoff"], patch["settings"]["modulations"]
    [found], _ = INSTRUMENT.read(write_patch(patch))
    assert found.values["filter_2_cutoff"] == controls()["defaults"]["filter_2_cutoff"]
    assert found.outside == []


def test_an_answer_on_a_users_patch_changes_the_specs_values_only() -> None:
    base = users_patch()
    values = {**SPEC.decode(SPEC.sample(4, [0], [0])[0]), "lfo_1_to_filter_1_cutoff": 0.0, "lfo_1_to_voice_tune": -0.5}
    values |= {name: 0.0 for name in values if "env_" in name and "_to_" in name} | {"lfo_1_to_voice_amplitude": 0.0}
    made = json.loads(INSTRUMENT.preset_files(SPEC, [values], "answer", "made", write_patch(base))[".vital"])
    settings = made.pop("settings")
    assert made == {**{k: v for k, v in base.items() if k != "settings"}, "preset_name": "answer", "comments": "made"}
    changed = {name for name in settings if settings[name] != base["settings"][name]}
    slots = {"modulations", "modulation_2_amount", "modulation_3_amount"}
    assert changed <= slots | SPEC.slices.keys()
    assert slots <= changed
    pairs = [(pair["source"], pair["destination"]) for pair in settings["modulations"]]
    assert pairs == [*PAIRS[:2], ("lfo_1", "voice_tune"), *PAIRS[3:]]
    [found], _ = INSTRUMENT.read(json.dumps({**made, "settings": settings}).encode())
    assert found.values == {name: values[name] for name in found.values}
    assert len(found.values) == len(SPEC.synth_params)


def test_a_patch_without_a_free_modulation_is_refused() -> None:
    base = written({"modulations": [{"source": "lfo_2", "destination": f"x{k}"} for k in range(64)]})
    still = {parameter.name: 0.0 for parameter in SPEC.synth_params if "_to_" in parameter.name}
    assert INSTRUMENT.preset_files(SPEC, [still], "", "", base)
    with pytest.raises(UserError, match="no modulation left for lfo_1_to_voice_tune"):
        INSTRUMENT.preset_files(SPEC, [{**still, "lfo_1_to_voice_tune": 0.1}], "", "", base)


def test_conversion_keeps_the_patch() -> None:
    patch = users_patch()
    assert json.loads(INSTRUMENT.convert(json.dumps(patch, indent=3).encode(), ".vital")) == patch
    with pytest.raises(UserError, match="not finite"):
        INSTRUMENT.convert(written({"new_in_2": 0.12345}).replace(b"0.12345", b"1e999"), ".vital")


def test_texts_of_a_file_are_one_line_each() -> None:
    content = written({"new\nline": "\ud800\n" + "x" * 99}, preset_name="\ud800")
    [patch], _ = INSTRUMENT.read(content)
    assert patch.name == "\\ud800"
    assert patch.outside == ["new line is \\ud800 " + "x" * 38 + ", in the base patch None"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"{", "no JSON"),
        (write_patch(BASE)[:-5], "no JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" * 500 + b"]" * 500, "nested too deeply"),
        (b"1" * 5000, "no JSON"),
        (b"[1, 2]", "lacks settings or synth_version"),
        (b'{"settings": []}', "lacks settings or synth_version"),
        (b'{"settings": {"osc_1_level": 1.0}}', "lacks settings or synth_version"),
        (b'{"settings": {"theme": 1}, "synth_version": "1.0"}', "settings lack osc_1_level"),
        (written({"osc_1_level": "loud"}), "osc_1_level is loud, not a number"),
        (written({"osc_1_level": None}), "osc_1_level is None, not a number"),
        (written({"osc_1_level": 0.12345}).replace(b"0.12345", b"NaN"), "osc_1_level is nan, not a number"),
        (written({"osc_1_level": 10**400}), "osc_1_level is 1000"),
        (written({"osc_1_level": []}), "not a number"),
        (written({"modulations": {}}), "no list of at most 64"),
        (written({"modulations": [{}] * 65}), "no list of at most 64"),
        (written({"modulations": [{"source": "lfo_1"}]}), "lacks its source or destination"),
        (b" " * (MAX_PATCH_BYTES + 1), "larger than 32 MiB"),
    ],
)
def test_other_files_are_one_line(content: bytes, words: str) -> None:
    with pytest.raises(UserError, match=words) as raised:
        INSTRUMENT.read(content)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 200


def test_any_damage_is_read_or_refused() -> None:
    generator = np.random.default_rng(0)
    whole = json.loads(written({"wavetables": [], "sample": {}}))
    odd = [None, True, 3, -0.5, "x", [], {}, [[]], {"name": 3}, [None, {"name": []}]]
    for _ in range(200):
        settings = {**whole["settings"]}
        for _ in range(4):
            name = generator.choice(["wavetables", "sample", "lfos", "modulations", "new_1", "osc_1_on", "env_1_hold"])
            settings[name] = odd[generator.integers(len(odd))]
        content = json.dumps({**whole, "preset_name": odd[generator.integers(len(odd))], "settings": settings}).encode()
        try:
            [patch], _ = INSTRUMENT.read(content)
        except UserError:
            continue
        assert all(isinstance(line, str) and "\n" not in line for line in patch.outside)
        values = {**SPEC.decode(SPEC.sample(4, [0], [0])[0]), **patch.values}
        assert INSTRUMENT.preset_files(SPEC, [values], "", "", content)
