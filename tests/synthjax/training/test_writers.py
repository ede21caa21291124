"""metrics.jsonl, TensorBoard files and their behaviour when a run is resumed."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import ml_collections
import numpy as np
import pytest
import soundfile
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_pipeline.console.cli import UserError
from synthjax.runs.workdir import Workdir
from synthjax.training.writers import JsonLines, TensorBoard, Writers


def lines_of(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_steps(path: Path, start: int, steps: range) -> None:
    writer = JsonLines(path, start)
    for step in steps:
        writer.scalars(step, {"loss": 1 / step})
    writer.close()


def test_a_step_is_a_line_of_json(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_steps(path, 0, range(1, 4))
    assert lines_of(path) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}, {"step": 3, "loss": 1 / 3}]


@pytest.mark.parametrize("value", [0.1 + 0.2, 1 / 3, 1e-300, 123456789.123456789, float(np.float32(0.1)), -0.0])
def test_figures_keep_full_precision(tmp_path: Path, value: float) -> None:
    writer = JsonLines(tmp_path / "metrics.jsonl", 0)
    writer.scalars(1, {"loss": value})
    writer.close()
    assert lines_of(tmp_path / "metrics.jsonl")[0]["loss"].hex() == value.hex()


def test_a_line_is_readable_as_soon_as_it_is_written(tmp_path: Path) -> None:
    writer = JsonLines(tmp_path / "metrics.jsonl", 0)
    writer.scalars(1, {"loss": 1.0})
    assert len(lines_of(tmp_path / "metrics.jsonl")) == 1
    writer.close()


def test_a_resumed_run_writes_the_file_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    write_steps(whole, 0, range(1, 10))
    write_steps(resumed, 0, range(1, 8))  # Killed after step 7; its latest checkpoint is of step 5.
    write_steps(resumed, 5, range(6, 10))
    assert resumed.read_bytes() == whole.read_bytes()


def test_a_run_that_starts_over_starts_with_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_steps(path, 0, range(1, 4))
    write_steps(path, 0, range(0))
    assert path.read_bytes() == b""


@pytest.mark.parametrize("cut", ["", "{", '{"step": 3, "lo', '{"step": 3, "loss": 0.3', "null", "3", '{"loss": 1.0}'])
def test_a_line_cut_short_is_dropped(tmp_path: Path, cut: str) -> None:
    path = tmp_path / "metrics.jsonl"
    write_steps(path, 0, range(1, 3))
    before = path.read_bytes()
    path.write_bytes(before + cut.encode())
    write_steps(path, 5, range(0))
    assert path.read_bytes() == before


def test_a_file_of_other_bytes_does_not_end_the_run(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_steps(path, 0, range(1, 3))
    before = path.read_bytes()
    path.write_bytes(before + b"\0\xff\xfe")  # What a crashed disk may leave.
    write_steps(path, 2, range(3, 4))
    assert path.read_bytes().startswith(before)
    assert lines_of(path)[-1]["step"] == 3


def test_truncation_leaves_no_other_file(tmp_path: Path) -> None:
    write_steps(tmp_path / "metrics.jsonl", 0, range(1, 4))
    write_steps(tmp_path / "metrics.jsonl", 2, range(3, 5))
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def events(path: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(path))
    accumulator.Reload()
    return accumulator


def scalars(path: Path, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events(path).Scalars(name)]


def age(folder: Path) -> None:
    """Makes the event file of a session a minute older: names tell seconds apart, and tests are quick."""
    for file in folder.glob("events.out.tfevents.*"):
        stamp = file.name.split(".")[3]
        file.rename(file.with_name(file.name.replace(stamp, f"{int(stamp) - 60:010d}")))


def test_tensorboard_reads_scalars_timings_text_and_pictures(tmp_path: Path) -> None:
    writer = TensorBoard(tmp_path, 0, '{"seed": 0}')
    writer.scalars(1, {"loss": 0.25, "val/loss": 0.5})
    writer.scalars(2, {"loss": 0.125})
    writer.timings(2, {"step_seconds": 2.0})
    pixels = np.random.default_rng(0).integers(0, 255, (6, 4, 3), np.uint8)
    writer.image(2, "assignment", pixels)
    writer.close()
    assert scalars(tmp_path, "loss") == [(1, 0.25), (2, 0.125)]
    assert scalars(tmp_path, "val/loss") == [(1, 0.5)]
    assert scalars(tmp_path, "step_seconds") == [(2, 2.0)]
    (picture,) = events(tmp_path).Images("assignment")
    assert (picture.step, picture.width, picture.height) == (2, 4, 6)
    text = events(tmp_path).Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert '{"seed": 0}' in text


@pytest.mark.parametrize("peak", [0.5, 4.0])
def test_tensorboard_plays_sounds_whole_and_loud_ones_quieter(tmp_path: Path, peak: float) -> None:
    samples = peak * np.stack([np.linspace(-1, 1, 441), np.linspace(0.5, -0.5, 441)]).astype(np.float16)
    writer = TensorBoard(tmp_path, 0, "{}")
    writer.audio(7, "probe/0/target", samples, 44100)
    writer.close()
    (event,) = events(tmp_path).Audio("probe/0/target")
    played, rate = soundfile.read(io.BytesIO(event.encoded_audio_string))
    assert (event.step, rate) == (7, 44100)
    np.testing.assert_allclose(played.T, samples / max(peak, 1.0), atol=1e-3)


def test_tensorboard_shows_what_was_flushed_without_being_closed(tmp_path: Path) -> None:
    writer = TensorBoard(tmp_path, 0, "{}")
    writer.scalars(1, {"loss": 0.25})
    writer.flush()
    assert scalars(tmp_path, "loss") == [(1, 0.25)]
    writer.close()


def test_tensorboard_hides_figures_that_a_resumed_run_writes_again(tmp_path: Path) -> None:
    first = TensorBoard(tmp_path, 0, "{}")
    for step in range(1, 6):
        first.scalars(step, {"loss": float(step)})
    first.close()
    age(tmp_path)
    second = TensorBoard(tmp_path, 3, "{}")
    second.scalars(4, {"loss": 40.0})
    second.close()
    assert scalars(tmp_path, "loss") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]


def test_writers_send_figures_everywhere_and_timings_to_tensorboard_alone(
    tmp_path: Path, tiny_config: ml_collections.ConfigDict
) -> None:
    workdir = Workdir(tmp_path)
    writers = Writers.open(workdir, tiny_config, 0)
    writers.scalars(50, {"loss": 0.5})
    writers.timings(50, {"step_seconds": 1.5, "samples_per_second": 85.0})
    writers.image(50, "assignment", np.zeros((4, 4, 3), np.uint8))
    writers.audio(50, "sound", np.zeros((2, 10), np.float32), 44100)
    writers.flush()
    writers.close()
    assert lines_of(workdir.metrics) == [{"step": 50, "loss": 0.5}]
    tags = events(workdir.tensorboard).Tags()
    assert set(tags["scalars"]) == {"loss", "step_seconds", "samples_per_second"}
    assert tags["images"] == ["assignment"]
    assert tags["audio"] == ["sound"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]


def test_config_is_kept_in_tensorboard_as_json(tmp_path: Path, tiny_config: ml_collections.ConfigDict) -> None:
    workdir = Workdir(tmp_path)
    Writers.open(workdir, tiny_config, 0).close()
    text = events(workdir.tensorboard).Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    shown = json.loads(text.strip().removeprefix("```json").removesuffix("```"))
    assert shown == json.loads(json.dumps(tiny_config.to_dict()))


def test_weights_and_biases_without_its_package_is_refused(
    tmp_path: Path, tiny_config: ml_collections.ConfigDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    tiny_config.wandb = True
    with pytest.raises(UserError, match=r"pip install 'synthjax\[wandb\]'"):
        Writers.open(Workdir(tmp_path), tiny_config, 0)


class FakeWandb:
    """What of the package is used."""

    def __init__(self) -> None:
        self.started, self.logged, self.axes = [], [], []
        self.settings = SimpleNamespace(mode="offline")

    def setup(self) -> FakeWandb:
        return self

    def init(self, **options: object) -> FakeWandb:
        self.started.append(options)
        return self

    def log(self, values: dict[str, float]) -> None:
        self.logged.append(values)

    def define_metric(self, name: str, step_metric: str) -> None:
        self.axes.append((name, step_metric))

    def finish(self) -> None:
        pass


def test_weights_and_biases_goes_on_with_the_run_of_the_workdir(
    tmp_path: Path, tiny_config: ml_collections.ConfigDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    tiny_config.wandb = True
    for start in (0, 5):
        writers = Writers.open(Workdir(tmp_path), tiny_config, start)
        writers.scalars(start + 1, {"loss": 0.5})
        writers.close()
    first, second = (options["id"] for options in wandb.started)
    assert first == second == (tmp_path / "wandb_id").read_text(encoding="utf-8")
    assert wandb.axes == [("*", "step")] * 2
    assert wandb.logged == [{"step": 1, "loss": 0.5}, {"step": 6, "loss": 0.5}]


def test_a_step_is_not_sent_twice_to_weights_and_biases(
    tmp_path: Path, tiny_config: ml_collections.ConfigDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first start ended at step 3. Its checkpoint, and so the second start, is at step 1."""
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    tiny_config.wandb = True
    for steps in ((1, 2, 3), (2, 3, 4)):
        writers = Writers.open(Workdir(tmp_path), tiny_config, steps[0] - 1)
        for step in steps:
            writers.scalars(step, {"loss": 0.5})
        writers.close()
    assert [entry["step"] for entry in wandb.logged] == [1, 2, 3, 4]
    assert [entry["step"] for entry in lines_of(Workdir(tmp_path).metrics)] == [1, 2, 3, 4]


@pytest.mark.parametrize("fails", ["init", "define_metric", "log", "finish"])
def test_weights_and_biases_ends_no_run(
    tmp_path: Path,
    tiny_config: ml_collections.ConfigDict,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fails: str,
) -> None:
    def refuse(*values: object, **options: object) -> None:
        raise OSError("no\n route")

    wandb = FakeWandb()
    monkeypatch.setattr(wandb, fails, refuse)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    tiny_config.wandb = True
    writers = Writers.open(Workdir(tmp_path), tiny_config, 0)
    for step in (1, 2):
        writers.scalars(step, {"loss": 0.5})
    writers.close()
    line = "warning: Weights & Biases stops, the run goes on without it: no route\n"
    assert capsys.readouterr().err == line
    assert len(lines_of(Workdir(tmp_path).metrics)) == 2


def test_another_module_called_wandb_ends_no_run(
    tmp_path: Path,
    tiny_config: ml_collections.ConfigDict,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Runs leave folders called wandb behind."""
    monkeypatch.setitem(sys.modules, "wandb", ModuleType("wandb"))
    tiny_config.wandb = True
    Writers.open(Workdir(tmp_path), tiny_config, 0).close()
    assert "has no attribute 'setup'" in capsys.readouterr().err
