"""What lies on disk when a report is written, or is not."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.console.cli import UserError
from synthjax.report import Clip, MetricRow, ReportWriter, SoundEntry, page
from synthjax.report.page import page_halves, script_json
from tests.helpers import REPOSITORY
from tests.synthjax.report.sounds import (
    METRICS,
    MSS,
    PARAMETERS,
    embedded,
    entry,
    sound_script,
    tone,
    write_report,
)

JSON_VALUES = st.recursive(
    st.none() | st.integers() | st.text() | st.sampled_from(["</script>", "<!--", "\u2028", "\udcff", "]]>", "&lt;"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def audio_of(url: str) -> np.ndarray:
    """Samples (2, T) of a clip embedded in a page."""
    content = base64.b64decode(url.removeprefix("data:audio/flac;base64,"), validate=True)
    return soundfile.read(io.BytesIO(content), dtype="float32")[0].T


def report(folder: Path, expected: int = 1) -> ReportWriter:
    return ReportWriter(folder / "report.html", "Title", {}, METRICS, expected)


def test_few_sounds_are_one_file(tmp_path: Path) -> None:
    path = write_report(tmp_path / "report.html", [entry("kick.wav", mss=3.0, rms=0.5), entry("snare.wav")])
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]
    index = embedded(path, "index")
    assert index["names"] == ["kick.wav", "snare.wav"]
    assert index["values"] == [[3.0, 0.5], [1.0, 0.9]]
    assert index["files"] is None
    sound = embedded(path, "sound-0")
    assert [clip["label"] for clip in sound["clips"]] == ["Target", "Prediction", "Candidate 2"]
    assert all(clip["image"].startswith("data:image/png;base64,") for clip in sound["clips"])
    np.testing.assert_allclose(audio_of(sound["clips"][0]["audio"]), tone(samples=4410), atol=2**-15)


def test_many_sounds_lie_in_a_folder_beside_the_page(tmp_path: Path) -> None:
    path = write_report(tmp_path / "out 1%" / "my report.html", [entry("kick.wav")], expected=51)
    page_text = path.read_text(encoding="utf-8")
    assert embedded(path, "index")["files"] == "my%20report_files"
    assert "data:audio" not in page_text
    assert "data:image" not in page_text
    folder = path.parent / "my report_files"
    assert {each.name for each in path.parent.iterdir()} == {path.name, folder.name}
    stems = ("target", "candidate-1", "candidate-2")
    names = {"sound.js", *(f"{stem}.{suffix}" for stem in stems for suffix in ("flac", "png"))}
    assert {each.name for each in (folder / "00000").iterdir()} == names
    clip = sound_script(folder / "00000" / "sound.js")["clips"][1]
    assert clip["audio"] == "my%20report_files/00000/candidate-1.flac"
    assert soundfile.info(folder / "00000" / "candidate-1.flac").subtype == "PCM_16"


def test_fifty_sounds_are_few(tmp_path: Path) -> None:
    assert embedded(write_report(tmp_path / "a.html", [entry("a")], expected=50), "index")["files"] is None


def test_parameters_are_grouped_in_the_order_of_their_first(tmp_path: Path) -> None:
    path = write_report(tmp_path / "report.html", [entry("a")])
    groups = embedded(path, "sound-0")["groups"]
    assert [(group["label"], [row[0] for row in group["rows"]]) for group in groups] == [
        ("Oscillator 1", ["Shape", "Level", "Pan"]),
        ("Filter", ["Cutoff"]),
    ]
    assert groups[1]["rows"][0] == ["Cutoff", "40.0", 0.63, "20.0", 0.26, 0.2]


def test_a_sound_that_was_not_rendered_has_its_target_and_parameters(tmp_path: Path) -> None:
    entries = [SoundEntry("a", Clip("Target", tone()), (), PARAMETERS), SoundEntry("b", Clip("Target"))]
    path = write_report(tmp_path / "report.html", entries)
    assert embedded(path, "index")["values"] == [[None, None], [None, None]]
    assert embedded(path, "sound-0")["clips"][0]["audio"] is not None
    assert embedded(path, "sound-1")["clips"] == [
        {"label": "Target", "metrics": [None, None], "audio": None, "image": None}
    ]


def test_loud_sounds_are_turned_down_together(tmp_path: Path) -> None:
    clips = [Clip("Target", tone(level=2.0)), Clip("Prediction", tone(level=0.5))]
    path = write_report(tmp_path / "report.html", [SoundEntry("loud", clips[0], clips[1:])])
    sound = embedded(path, "sound-0")
    peaks = [np.abs(audio_of(clip["audio"])).max() for clip in sound["clips"]]
    assert peaks == pytest.approx([1.0, 0.25], abs=1e-3)
    assert sound["gain"] == pytest.approx(-6.0)


def test_numbers_that_are_not_finite_are_missing(tmp_path: Path) -> None:
    summary = [MetricRow(MSS, 1.0, math.nan, math.inf, 1.0, 1)]
    path = write_report(tmp_path / "report.html", [entry("a", mss=math.nan, rms=-math.inf)], summary=summary)
    index = embedded(path, "index")
    assert index["values"] == [[None, None]]
    assert (index["summary"][0]["low"], index["summary"][0]["high"]) == (None, None)


def test_an_unknown_metric_is_refused(tmp_path: Path) -> None:
    with report(tmp_path) as writer, pytest.raises(ValueError, match="'sot'"):
        writer.add(SoundEntry("a", Clip("Target"), [Clip("Prediction", None, {"sot": 1.0})]))


@pytest.mark.parametrize("audio", [np.zeros(10), np.zeros((1, 10)), np.zeros((2, 0)), np.full((2, 10), np.nan)])
def test_a_clip_of_no_stereo_sound_is_refused(audio: np.ndarray) -> None:
    with pytest.raises(ValueError, match="Target: audio"):
        Clip("Target", audio)


@pytest.mark.parametrize("expected", [1, 100])
def test_a_report_that_is_not_finished_leaves_the_earlier_one(tmp_path: Path, expected: int) -> None:
    write_report(tmp_path / "report.html", [entry("earlier")], expected=100)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with report(tmp_path, expected) as writer:
        writer.add(entry("later"))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_new_report_replaces_an_earlier_one_whole(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", [entry("a"), entry("b")], expected=100)
    path = write_report(tmp_path / "report.html", [entry("c", candidates=0)], expected=100)
    assert embedded(path, "index")["names"] == ["c"]
    files = {str(each.relative_to(tmp_path)) for each in tmp_path.rglob("*") if each.is_file()}
    inside = {f"report_files/00000/{name}" for name in ("sound.js", "target.flac", "target.png")}
    assert files == {"report.html"} | inside


def test_a_folder_that_cannot_be_made_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        report(tmp_path / "file")


@pytest.mark.parametrize("expected", [1, 100])
def test_a_page_that_cannot_be_put_in_place_is_the_users_error(tmp_path: Path, expected: int) -> None:
    (tmp_path / "report.html").mkdir()
    with report(tmp_path, expected) as writer, pytest.raises(UserError, match="cannot write"):
        writer.finish()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_files_that_cannot_be_written_are_the_users_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with report(tmp_path, 100) as writer, pytest.raises(UserError, match=r"cannot write .*report.html: No space left"):
        writer.add(entry("a"))


@given(JSON_VALUES)
def test_data_reads_back_and_is_nothing_but_data(value: Any) -> None:
    text = script_json(value)
    assert json.loads(text) == value
    assert text.isascii()
    assert not re.search(r"[<>&\n]", text)


def test_data_without_a_json_form_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        script_json(math.nan)


def test_a_title_is_text_even_where_it_is_no_unicode() -> None:
    before, _ = page_halves("</title><script> $title & \udcff")
    assert b"<title>&lt;/title&gt;&lt;script&gt; $title &amp; &#56575;</title>" in before


def test_every_asset_is_part_of_the_page() -> None:
    assets = {path.name for path in resources.files("synthjax.report").joinpath("assets").iterdir()}
    assert assets == {"page.html", "style.css", *page._SCRIPTS}


def test_reports_need_no_jax() -> None:
    code = "import sys, synthjax.report; sys.exit(bool({'jax', 'flax'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, timeout=300).returncode == 0
