"""Bundles through the commands: a library and a trained model become one file, which answers as they do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.audio.sound_files import wav
from data_pipeline.params.spec import load_spec
from data_pipeline.synths.choice import open_synth, synth_for
from synthjax.retrieval.index import read_index, write_index
from tests.helpers import assert_usage_error, run_cli

SPEC = load_spec("dexed")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "dexed.index"
    assert run_cli("synthjax.library", "build", path, "--rows=64", "--workers=2").returncode == 0
    return path


@pytest.fixture(scope="module")
def bundle(index: Path) -> Path:
    path = index.with_suffix(".zip")
    result = run_cli("synthjax.bundle", "export", path, f"--library={index}", "--licence=CC0")
    assert result.returncode == 0, result.stderr
    return path


@pytest.fixture(scope="module")
def sound(index: Path) -> Path:
    """A row of the test seed."""
    path = index.with_name("row.wav")
    [row] = SPEC.sample(2, [0], [0])
    path.write_bytes(wav(open_synth(synth_for(SPEC)).render(SPEC.decode(row))))
    return path


def answer(sound: Path, output: Path, *flags: str) -> dict:
    result = run_cli("synthjax.predict", sound, f"--output={output}", "--candidates=2", *flags)
    assert result.returncode == 0, result.stderr
    return json.loads((output / f"{sound.stem}.json").read_text())["candidates"]


def test_a_bundle_answers_as_its_library_does(index: Path, bundle: Path, sound: Path, tmp_path: Path) -> None:
    expected = answer(sound, tmp_path / "a", f"--library={index}", "--refine_evaluations=60")
    assert answer(sound, tmp_path / "b", f"--bundle={bundle}", "--refine_evaluations=60", "--workers=1") == expected
    found = [run_cli("synthjax.library", "search", *which, sound) for which in ([index], [f"--bundle={bundle}"])]
    assert found[0].stdout == found[1].stdout != ""


def test_the_card_says_what_the_bundle_holds(bundle: Path) -> None:
    card = run_cli("synthjax.bundle", "info", bundle).stdout
    for words in ("patches: 64, of spec dexed", "rendered with", "MIDI pitch 24 to 96", "Licence: CC0."):
        assert words in card


def test_a_library_of_another_version_is_warned_of(index: Path, sound: Path, tmp_path: Path) -> None:
    found = read_index(index)
    write_index(tmp_path / "old.index", replace(found, synth=("Dexed", "dexed-py 0.1")))
    result = run_cli("synthjax.predict", sound, f"--library={tmp_path / 'old.index'}", f"--output={tmp_path / 'out'}")
    assert result.returncode == 0, result.stderr
    assert "warning: the library was rendered with Dexed dexed-py 0.1, this is Dexed dexed-py" in result.stderr


def test_what_cannot_be_bundled_is_refused(index: Path, bundle: Path, tmp_path: Path) -> None:
    assert_usage_error(run_cli("synthjax.bundle", "export", tmp_path / "x.zip"), "nothing to bundle")
    assert_usage_error(run_cli("synthjax.bundle", "export", bundle, f"--library={index}"), "exists: remove it")
    assert_usage_error(run_cli("synthjax.bundle", "pack", bundle), "usage: python -m synthjax.bundle export")
    assert_usage_error(
        run_cli("synthjax.predict", bundle, f"--bundle={bundle}", "--checkpoint=3"),
        "--checkpoint=3 would be ignored: neither --workdir nor --bundle names a model",
    )


@pytest.mark.slow
def test_targets_are_answered_in_all_ways(bundle: Path, tmp_path: Path) -> None:
    flags = (f"--bundle={bundle}", "--targets=drawn", "--rows=3", "--candidates=4", "--refine_evaluations=40")
    result = run_cli("synthjax.evaluate", *flags, f"--output={tmp_path}")
    assert result.returncode == 0, result.stderr
    table = json.loads((tmp_path / "metrics.json").read_text())
    metrics = table["metrics"]
    assert list(metrics) == ["random", "nearest", "library", "refined", "noise_floor"]
    assert metrics["noise_floor"]["mss"]["mean"] < 0.1  # Targets are stored in float16.
    assert metrics["refined"]["renders"]["mean"] <= 4 + 40
    assert (tmp_path / "report.html").is_file()
    differences = table["details"]["differences"]
    for name in ("mss", "sot"):
        expected = metrics["library"][name]["mean"] - metrics["nearest"][name]["mean"]
        assert differences["library - nearest"][name]["mean"] == pytest.approx(expected)
    again = run_cli("synthjax.evaluate", *flags, f"--output={tmp_path}")
    assert "3 of 3 targets were answered before" in again.stdout
    assert json.loads((tmp_path / "metrics.json").read_text()) == table
    other = run_cli("synthjax.evaluate", *flags, f"--output={tmp_path}", "--candidates=3")
    assert_usage_error(other, "has measurements of another evaluation")


@pytest.mark.slow
def test_targets_may_be_preset_files(bundle: Path, sound: Path, tmp_path: Path) -> None:
    assert run_cli("synthjax.predict", sound, f"--bundle={bundle}", f"--output={tmp_path / 'p'}").returncode == 0
    folder = tmp_path / "presets"
    folder.mkdir()
    (tmp_path / "p" / "row.syx").rename(folder / "row.syx")
    flags = (f"--bundle={bundle}", f"--targets={folder}", "--candidates=2", f"--output={tmp_path / 'out'}")
    result = run_cli("synthjax.evaluate", *flags)
    assert result.returncode in (0, 1), result.stderr  # Patches of an empty bank are silent.
    table = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert table["about"]["note"] == {"pitch": 60, "start": 0.0, "end": 3.0}
    assert np.isfinite(table["metrics"]["library"]["mss"]["mean"])
