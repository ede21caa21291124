"""Texts of values, compared with those that the plugin itself showed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.params.kinds import Categorical
from data_pipeline.params.spec import load_spec
from data_pipeline.synths.surge import data as surge_data
from data_pipeline.synths.surge.display import surge_texts

SPECS = ("surge_simple", "surge_xt")


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize(("raw", "key"), [(0.0, "text_at_0"), (0.5, "text_at_05"), (1.0, "text_at_1")])
def test_texts_are_the_plugins(name: str, raw: float, key: str, shared_data: Path) -> None:
    measured = json.loads((shared_data / "surge_patch_values.json").read_text(encoding="utf-8"))[name]
    spec = load_spec(name)
    values = {
        parameter.name: parameter.raw_values[0] if isinstance(parameter, Categorical) else raw
        for parameter in spec.synth_params
    }
    shown = surge_texts(spec, values)
    continuous = [parameter.name for parameter in spec.synth_params if not isinstance(parameter, Categorical)]
    assert {parameter: shown[parameter] for parameter in continuous} == {
        parameter: measured[parameter][key] for parameter in continuous
    }
    assert len(continuous) > 40


@pytest.mark.parametrize("name", SPECS)
def test_every_value_of_any_row_has_a_text(name: str) -> None:
    spec = load_spec(name)
    for row in np.random.default_rng(0).uniform(-0.2, 1.2, (20, spec.width)):
        values = spec.decode(row)
        shown = surge_texts(spec, values)
        assert list(shown) == [parameter.name for parameter in spec.synth_params]
        assert all(shown.values())
        own = {"True": "On", "False": "Off"}  # The plugin shows whole numbers without a point.
        assert {text: shown[text] for text in spec.labels(values)} == {
            text: own.get(str(label), str(label).removesuffix(".0")) for text, label in spec.labels(values).items()
        }


def test_every_continuous_parameter_has_a_unit() -> None:
    in_patch = surge_data.read("patch_values")
    assert surge_data.read("displays").keys() == {name for name in in_patch if "raw_to_patch" not in in_patch[name]}


@pytest.mark.parametrize(
    ("parameter", "raw", "text"),
    [
        ("a_filter_1_cutoff", 60 / 130, "440.00 Hz"),
        ("a_amp_eg_attack", 8 / 13, "1.00 s"),
        ("a_osc_1_volume", 0.25, "-36.00 dB"),
        ("a_osc_1_pitch", 0.5 - 1e-9, "0.00 semitones"),
    ],
)
def test_between_the_measured_points_the_units_formula_holds(parameter: str, raw: float, text: str) -> None:
    spec = load_spec("surge_simple")
    values = spec.decode(np.full(spec.width, 0.5)) | {parameter: raw}
    assert surge_texts(spec, values)[parameter] == text
