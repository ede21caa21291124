"""From sounds to patches and back to sound with the built-in synthesizer: predict, refine, evaluate --render."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import cast

import h5py
import numpy as np
import pytest
import soundfile

from data_pipeline.audio.mel import mel_spectrogram
from data_pipeline.console.cli import UserError
from data_pipeline.params.spec import load_spec
from data_pipeline.render.patch_renderer import PatchRenderer
from data_pipeline.shards.reader import AUDIO, MEL_SPEC, PARAM_ARRAY, ShardReader
from data_pipeline.synths.choice import synth_for
from synthjax.evaluation.audio import Predictions, measure_sounds
from synthjax.inference.candidates import BY_MEDOID, BY_SOUND, ONLY, REFINED
from synthjax.inference.predictor import Predictor
from synthjax.inference.refine import Budget
from synthjax.inference.scoring import score
from synthjax.methods.examples import EVAL_NOISE, draw_noise
from synthjax.methods.sampling import Sampling
from synthjax.runs.model import Model
from synthjax.runs.workdir import Workdir
from tests.helpers import RENDER_SUBTRACTIVE, REPOSITORY, assert_usage_error, run_cli, started, tiny_flags, wait_until

pytestmark = pytest.mark.slow

SPEC = load_spec("subtractive")
SOUNDS = 8
# Sounds that candidates are rendered and ranked for.
HEARD = 6


def run(module: str, *arguments: object) -> str:
    result = run_cli(module, *arguments, cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr
    return result.stdout


def make_data(root: Path, *flags: str) -> Path:
    rendering = [f"--config={RENDER_SUBTRACTIVE}", "--samples_per_shard=8", "--shards=0-3", *flags]
    run("data_pipeline.render_shards", *rendering, f"--output={root / 'shards'}")
    run("data_pipeline.splits", root / "shards", root, "--train_shards=0,1", "--val_shards=2", "--test_shards=3")
    run("data_pipeline.stats", root)
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("subtractive"))


@pytest.fixture(scope="module")
def data_without_audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same rows."""
    return make_data(tmp_path_factory.mktemp("without_audio"), "--store_audio=False")


@pytest.fixture(scope="module")
def workdir(data: Path) -> Path:
    changes = {"data__spec": "subtractive", "train__steps": 6, "checkpoint__every": 6, "sampling__steps": 4}
    run("synthjax.train", *tiny_flags(data, data / "run", **changes))
    return data / "run"


@pytest.fixture(scope="module")
def renderer():
    with PatchRenderer(synth_for(SPEC), 2) as renderer:
        yield renderer


@pytest.fixture(scope="module")
def targets(data: Path) -> list[np.ndarray]:
    reader = ShardReader(data / "test.h5")
    return [reader.read(AUDIO, index).astype(np.float32) for index in range(HEARD)]


@pytest.fixture(scope="module")
def heard(workdir: Path, renderer: PatchRenderer, targets: list[np.ndarray]):
    """Eight candidates for every sound, ranked."""
    return Predictor.from_workdir(workdir, renderer=renderer).predict(targets, candidates=8)


def scores_of_first(predictions, workdir: Path, targets: list[np.ndarray], candidates: int) -> np.ndarray:
    """What ``candidates`` draws would have given: the first draws do not depend on how many follow."""
    drawn = Predictor.from_workdir(workdir).predict(targets, candidates=candidates)
    mss = []
    for few, many in zip(drawn, predictions, strict=True):
        draws = np.stack([candidate.row for candidate in few.candidates])
        scored = [one for one in many.candidates if np.isclose(one.row, draws, atol=1e-4).all(axis=1).any()]
        assert len(scored) == candidates
        mss.append(scored[0].distances["mss"])
    return np.array(mss)


def test_a_predictor_takes_every_setting_of_the_sampler(workdir: Path) -> None:
    settings = {"solver": "dopri5", "tolerance": 1e-2, "guidance": 3.0, "guidance_interval": (0.2, 0.8)}
    model = Predictor.from_workdir(workdir, checkpoint="latest", use_ema=False, steps=None, **settings).model
    assert model.sampling == Sampling(steps=4, **settings)
    with pytest.raises(TypeError, match="stepz"):
        Predictor.from_workdir(workdir, stepz=3)


def test_candidates_are_ranked_by_sound(heard) -> None:
    for prediction in heard:
        scores = [candidate.score for candidate in prediction.candidates]
        assert scores == sorted(scores)
        assert prediction.chosen == BY_SOUND
        assert prediction.best.score == score(prediction.best.distances)


def test_more_candidates_sound_nearer(heard, workdir: Path, targets: list[np.ndarray]) -> None:
    means = [scores_of_first(heard, workdir, targets, count).mean() for count in (1, 3, 8)]
    assert means[0] > means[1] > means[2]


def parameter_error(workdir: Path, targets: list[np.ndarray], true: np.ndarray, candidates: int) -> float:
    """The mean squared error of the patches given without a renderer."""
    found = Predictor.from_workdir(workdir).predict(targets, candidates=candidates)
    assert {prediction.chosen for prediction in found} == {BY_MEDOID if candidates > 1 else ONLY}
    rows = np.stack([prediction.best.row for prediction in found])
    return float(np.square(rows.clip(0, 1) - true).mean())


def test_the_medoid_beats_a_single_draw_on_parameters(workdir: Path, data: Path, targets: list[np.ndarray]) -> None:
    true = ShardReader(data / "test.h5").read_rows(PARAM_ARRAY, np.arange(HEARD))
    assert parameter_error(workdir, targets, true, 16) < parameter_error(workdir, targets, true, 1)


def test_on_64_sounds_candidates_and_medoid_keep_their_promises(workdir: Path, renderer: PatchRenderer) -> None:
    true = SPEC.sample(7, range(64), [0] * 64)
    rendered = sorted(renderer.render(enumerate(true)), key=lambda patch: patch.key)
    sounds = [patch.audio for patch in rendered if patch.audio is not None]
    assert len(sounds) == 64
    ranked = Predictor.from_workdir(workdir, renderer=renderer).predict(sounds, candidates=16)
    means = [scores_of_first(ranked, workdir, sounds, count).mean() for count in (1, 4, 16)]
    assert means[0] > means[1] > means[2]
    assert parameter_error(workdir, sounds, true, 16) < parameter_error(workdir, sounds, true, 1)


def test_a_sounds_prediction_does_not_depend_on_its_neighbours(workdir: Path, targets: list[np.ndarray]) -> None:
    predictor = Predictor.from_workdir(workdir)
    alone = predictor.predict(targets[3:4], candidates=3)[0]
    among = predictor.predict(targets, candidates=3)[3]
    for mine, theirs in zip(alone.candidates, among.candidates, strict=True):
        np.testing.assert_allclose(mine.row, theirs.row, rtol=1e-4, atol=1e-5)


def test_refinement_lowers_the_distance(
    workdir: Path, renderer: PatchRenderer, heard, targets: list[np.ndarray]
) -> None:
    predictor = Predictor.from_workdir(workdir, renderer=renderer)
    prediction, interrupted = predictor.refine(targets[0], heard[0], Budget(evaluations=120))
    assert not interrupted
    assert prediction.chosen == REFINED
    assert prediction.best.score < heard[0].best.score
    assert prediction.candidates[1:] == heard[0].candidates


def test_predict_as_a_person_runs_it(workdir: Path, targets: list[np.ndarray], tmp_path: Path) -> None:
    for index in range(2):
        soundfile.write(tmp_path / f"{index}.wav", targets[index].T, 44100, subtype="FLOAT")
    out = tmp_path / "out"
    result = run_cli(
        "synthjax.predict", f"--workdir={workdir}", tmp_path / "0.wav", tmp_path / "1.wav", "--candidates=2",
        "--refine=1", f"--output={out}"
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in out.iterdir()) == ["0.json", "0.wav", "1.json", "1.wav", "report.html"]
    prediction = json.loads((out / "0.json").read_text(encoding="utf-8"))
    audio, rate = soundfile.read(out / "0.wav", dtype="float32")
    assert (audio.shape, rate) == ((176400, 2), 44100)
    from data_pipeline.synths.choice import open_synth

    rendered = open_synth(synth_for(SPEC)).render(SPEC.decode(prediction["candidates"][0]["row"]))
    np.testing.assert_allclose(audio.T, rendered, atol=1e-5)
    scores = [candidate["score"] for candidate in prediction["candidates"]]
    assert scores == sorted(scores)


@pytest.fixture(scope="module")
def evaluation(workdir: Path) -> Path:
    output = workdir / "heard"
    said = run("synthjax.evaluate", f"--workdir={workdir}", "--render", f"--output={output}", "--report_sounds=3")
    assert "mss, noise_floor" in said
    return output


def per_sample(folder: Path) -> list[dict[str, str]]:
    with (folder / "per_sample.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_oracle_is_the_noise_floor_and_both_are_zero(evaluation: Path) -> None:
    table = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))
    assert table["details"]["not_rendered"] == 0
    for kind in ("oracle", "noise_floor"):
        assert {name: table["metrics"][kind][name]["mean"] for name in ("mss", "wmfcc", "sot", "rms")} == {
            "mss": 0.0, "wmfcc": 0.0, "sot": 0.0, "rms": pytest.approx(1.0)
        }  # fmt: skip
    mss = table["metrics"]["prediction"]["mss"]
    assert mss["mean"] > 1.0
    assert mss["count"] == SOUNDS


def test_every_sample_has_a_line_that_the_mean_is_made_of(evaluation: Path) -> None:
    lines = per_sample(evaluation)
    assert [line["name"] for line in lines] == [f"test {index}" for index in range(SOUNDS)]
    metrics = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))
    for name in ("mss", "mse"):
        mean = metrics["metrics"]["prediction"][name]["mean"]
        assert np.mean([float(line[name]) for line in lines]) == pytest.approx(mean)


def test_the_report_and_tensorboard_are_there(evaluation: Path) -> None:
    page = (evaluation / "report.html").read_text(encoding="utf-8")
    assert "Evaluation" in page
    assert list((evaluation / "tensorboard").glob("events.*"))


def test_a_second_run_measures_nothing_again(evaluation: Path, workdir: Path) -> None:
    before = per_sample(evaluation)
    said = run("synthjax.evaluate", f"--workdir={workdir}", "--render", f"--output={evaluation}", "--report_sounds=1")
    assert f"{SOUNDS} of {SOUNDS} sounds were measured before" in said
    assert "sampling" not in said
    assert per_sample(evaluation) == before


def test_without_audio_the_true_patches_are_the_targets(
    evaluation: Path, workdir: Path, data_without_audio: Path, tmp_path: Path
) -> None:
    """The built-in synthesizer renders a patch alike every time, so that nothing else changes."""
    flags = [f"--workdir={workdir}", f"--data_root={data_without_audio}", "--render", "--report_sounds=3"]
    said = run("synthjax.evaluate", *flags, f"--output={tmp_path}")
    assert "the data set has no audio: its true patches are rendered as targets" in said
    assert per_sample(tmp_path) == per_sample(evaluation)
    ours, theirs = (json.loads((folder / "metrics.json").read_text("utf-8")) for folder in (tmp_path, evaluation))
    assert ours["metrics"] == theirs["metrics"]
    assert ours["about"] == theirs["about"]
    assert ours["details"] == {**theirs["details"], "targets": "rendered from the true patches"}
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize("cache", ["none", "host"])
def test_training_without_audio_goes_without_the_probe_and_says_so(
    data_without_audio: Path, tmp_path: Path, cache: str
) -> None:
    changes = {"data__spec": "subtractive", "data__cache": cache, "train__steps": 2, "train__eval_every": 2}
    flags = tiny_flags(data_without_audio, tmp_path / "run", checkpoint__every=2, **changes)
    result = run_cli("synthjax.train", *flags, cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr
    said = result.stdout + result.stderr
    assert f"no validation probe: {data_without_audio / 'val.h5'}: has no audio" in said


def test_what_was_heard_stays_when_the_same_is_evaluated_without(evaluation: Path, workdir: Path) -> None:
    before = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))
    assert (
        "sampling"
        in run_cli("synthjax.evaluate", f"--workdir={workdir}", f"--output={evaluation}", cwd=REPOSITORY).stderr
    )
    assert json.loads((evaluation / "metrics.json").read_text(encoding="utf-8")) == before


def test_an_interrupted_evaluation_says_what_is_safe(
    tmp_path: Path, targets: list[np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted:
        workers = 1

        def render(self, rows: object) -> object:
            raise KeyboardInterrupt

    renderer = cast(PatchRenderer, Interrupted())
    sounds = Predictions(SPEC, ["a", "b"], np.zeros((2, SPEC.width)), lambda index: targets[index], None)
    with pytest.raises(KeyboardInterrupt):
        measure_sounds(sounds, renderer, tmp_path / "log", {"checkpoint": 1})
    assert "0 of 2 sounds are measured; the same command goes on from there" in capsys.readouterr().err
    with pytest.raises(UserError, match="has measurements of another evaluation"):
        measure_sounds(sounds, renderer, tmp_path / "log", {"checkpoint": 2})


@pytest.mark.parametrize("render", [["--render"], []])
def test_another_evaluation_in_the_same_folder_is_refused_and_overwrites_nothing(
    evaluation: Path, workdir: Path, render: list[str]
) -> None:
    before = contents(evaluation)
    flags = [f"--workdir={workdir}", *render, f"--output={evaluation}", "--steps=2"]
    result = run_cli("synthjax.evaluate", *flags, cwd=REPOSITORY)
    assert_usage_error(result, f"{evaluation} holds another evaluation: give another --output")
    assert contents(evaluation) == before


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_killed_evaluation_goes_on_to_the_same_figures(evaluation: Path, workdir: Path, tmp_path: Path) -> None:
    command = ["-m", "synthjax.evaluate", f"--workdir={workdir}", "--render", f"--output={tmp_path}"]
    with started(command, tmp_path / "stderr") as process:
        wait_until((tmp_path / "measurements.partial").exists, process)
    run("synthjax.evaluate", f"--workdir={workdir}", "--render", f"--output={tmp_path}", "--report_sounds=1")
    assert per_sample(tmp_path) == per_sample(evaluation)


def test_sounds_from_elsewhere(workdir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "found sounds"
    (folder / "sub").mkdir(parents=True)
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    soundfile.write(folder / "tone.wav", tone, 16000)
    soundfile.write(folder / "sub" / "long.flac", np.tile(tone, 10), 16000)
    (folder / "broken.ogg").write_bytes(os.urandom(100))
    output = tmp_path / "out"
    result = run_cli(
        "synthjax.evaluate", f"--workdir={workdir}", f"--targets={folder}", "--candidates=2", f"--output={output}"
    )
    assert result.returncode == 1, result.stderr
    assert "broken.ogg" in result.stderr
    assert [line["name"] for line in per_sample(output)] == [os.path.join("sub", "long.flac"), "tone.wav"]
    metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    assert list(metrics["metrics"]) == ["random", "prediction"]
    assert metrics["metrics"]["prediction"].keys() >= {"mss", "mss_sounding", "renders", "seconds"}
    assert list(metrics["details"]["differences"]) == ["prediction - random"]


def test_stored_spectrograms_and_sounds_give_the_same_rows(evaluation: Path, workdir: Path, data: Path) -> None:
    """What evaluate samples from the split's spectrograms is what the model says of them."""
    with h5py.File(evaluation / "predictions.h5") as file:
        rows = file["rows"][:]
    model = Model.load(Workdir(workdir))
    mels = ShardReader(data / "test.h5").read_rows(MEL_SPEC, np.arange(SOUNDS))
    noise = np.stack([draw_noise(1, SPEC.width, EVAL_NOISE, model.config.seed, index) for index in range(SOUNDS)])
    np.testing.assert_allclose(model.draw(mels, noise)[:, 0], rows, rtol=1e-4, atol=1e-5)


def test_known_columns_are_kept_to_the_bit_and_change_the_others(workdir: Path, targets: list[np.ndarray]) -> None:
    model = Model.load(Workdir(workdir))
    mels = np.stack([mel_spectrogram(target) for target in targets[:2]])
    noise = draw_noise(3, SPEC.width, 0)[None].repeat(2, axis=0)
    known = np.full(SPEC.width, np.nan, np.float32)
    known[[0, 7, -1]] = 0.123, 0.456, 0.789
    free, held = model.draw(mels, noise), model.draw(mels, noise, known=known)
    np.testing.assert_array_equal(held[..., [0, 7, -1]], np.broadcast_to(known[[0, 7, -1]], (2, 3, 3)))
    assert (np.delete(held, [0, 7, -1], axis=2) != np.delete(free, [0, 7, -1], axis=2)).any()


def test_locked_values_are_in_every_draw_of_a_model(workdir: Path, targets: list[np.ndarray]) -> None:
    locks = {"pitch": 60, "note_start_and_end": (0.25, 1.0)}
    predictor = Predictor(Model.load(Workdir(workdir)), locks=locks)
    [prediction] = predictor.predict(targets[:1], candidates=4)
    known = predictor.locks.known
    for candidate in prediction.candidates:
        np.testing.assert_array_equal(candidate.row[~np.isnan(known)], known[~np.isnan(known)])
    assert prediction.values["pitch"] == 60
