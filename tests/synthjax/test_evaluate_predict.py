"""synthjax.evaluate and synthjax.predict on a finished tiny run, as a person runs them."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import soundfile

from data_pipeline.audio.metrics import mss
from data_pipeline.params.spec import load_spec
from data_pipeline.shards.reader import PARAM_ARRAY, ShardReader
from data_pipeline.shards.splits import write_splits
from data_pipeline.synths.hosting import load_plugin, load_preset, play_note
from data_pipeline.synths.surge.patch import differences, read_preset
from synthjax.inference.candidates import medoid
from tests.helpers import REPOSITORY, assert_usage_error, make_rows, run_cli, tiny_flags, write

ROWS = 10  # Of the test split: two whole sampling batches of four and a part.
SPEC = load_spec("surge_simple")


@pytest.fixture(scope="module")
def trained(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "trained"
    flags = tiny_flags(tiny_root, workdir, train__steps=4, train__eval_every=2, checkpoint__every=1)
    result = run_cli("synthjax.train", *flags, cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr
    return workdir


def evaluate(workdir: Path, *arguments: str) -> Any:
    return run_cli("synthjax.evaluate", f"--workdir={workdir}", *arguments)


def predict(workdir: Path, *arguments: object) -> Any:
    return run_cli("synthjax.predict", f"--workdir={workdir}", *arguments)


@pytest.fixture(scope="module")
def evaluation(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("evaluation")
    result = evaluate(trained, "--split=test", "--checkpoint=latest", f"--output={output}")
    assert result.returncode == 0, result.stderr
    assert f"n = {ROWS}" in result.stdout
    return output


def test_a_bundle_answers_as_its_run_does(trained: Path, evaluation: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "model.zip"
    result = run_cli("synthjax.bundle", "export", bundle, f"--workdir={trained}", "--checkpoint=latest")
    assert result.returncode == 0, result.stderr
    assert "## Model" in run_cli("synthjax.bundle", "info", bundle).stdout
    write_noise(tmp_path / "s.wav")
    rows = []
    for flags in ([f"--workdir={trained}", "--checkpoint=latest"], [f"--bundle={bundle}"]):
        output = tmp_path / str(len(rows))
        result = run_cli("synthjax.predict", tmp_path / "s.wav", *flags, "--norender", f"--output={output}")
        assert result.returncode == 0, result.stderr
        rows.append([one["row"] for one in json.loads((output / "s.json").read_text())["candidates"]])
    assert rows[0] == rows[1]
    ignored = run_cli("synthjax.predict", tmp_path / "s.wav", f"--bundle={bundle}", "--nouse_ema")
    assert_usage_error(ignored, "--nouse_ema would be ignored: a bundle has one set of weights")
    both = run_cli("synthjax.predict", tmp_path / "s.wav", f"--bundle={bundle}", f"--workdir={trained}")
    assert_usage_error(both, "--workdir and --bundle both name a model")


def rows_of(folder: Path) -> np.ndarray:
    with h5py.File(folder / "predictions.h5") as file:
        return file["rows"][:]


def test_metrics_are_those_of_the_written_rows(evaluation: Path, tiny_root: Path) -> None:
    metrics = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))
    true = ShardReader(tiny_root / "test.h5").read_rows(PARAM_ARRAY, np.arange(ROWS))
    error = np.square(rows_of(evaluation) - true)
    about, found = metrics["about"], metrics["metrics"]["prediction"]
    assert (metrics["count"], about["split"], about["checkpoint"], about["weights"]) == (ROWS, "test", 4, "ema")
    assert found["mse"]["mean"] == pytest.approx(error.mean(), rel=1e-6)
    assert found["mse"]["low"] < found["mse"]["mean"] < found["mse"]["high"]
    assert found["mse_best_swap"]["mean"] <= found["mse"]["mean"]
    assert metrics["details"]["per_parameter_mse"]["a_highpass"] == pytest.approx(
        error[:, SPEC.slices["a_highpass"]].mean(), rel=1e-6
    )


def test_every_row_has_its_values_and_its_source(evaluation: Path) -> None:
    with h5py.File(evaluation / "predictions.h5") as file:
        rows, values = file["rows"][:], file["values"][:]
        names = [name.decode() for name in file["value_names"]]
        assert file["source_index"][:].tolist() == list(range(ROWS))
    assert rows.shape == (ROWS, SPEC.width)
    assert names[-3:] == ["pitch", "note_start", "note_end"]
    for row, numbers in zip(rows, values, strict=True):
        decoded = SPEC.decode(row)
        named = dict(zip(names, numbers, strict=True))
        assert named["a_highpass"] == decoded["a_highpass"]
        assert (named["pitch"], named["note_start"]) == (decoded["pitch"], decoded["note_start_and_end"][0])


def test_the_table_has_a_line_a_parameter(evaluation: Path) -> None:
    with (evaluation / "per_parameter.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [line["parameter"] for line in table] == [parameter.name for parameter in SPEC.parameters]
    metrics = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))
    assert float(table[3]["mse"]) == metrics["details"]["per_parameter_mse"][table[3]["parameter"]]


@pytest.mark.slow
def test_results_do_not_depend_on_the_batch_size(evaluation: Path, trained: Path, tmp_path: Path) -> None:
    workdir = Path(shutil.copytree(trained, tmp_path / "run"))
    config = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
    config["sampling"]["batch_size"] = 7
    (workdir / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert evaluate(workdir, "--checkpoint=latest", f"--output={tmp_path / 'out'}").returncode == 0
    np.testing.assert_allclose(rows_of(tmp_path / "out"), rows_of(evaluation), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_weights_and_checkpoints_can_be_chosen(evaluation: Path, trained: Path, tmp_path: Path) -> None:
    for name, arguments in {"plain": ["--use_ema=False", "--checkpoint=latest"], "second": ["--checkpoint=2"]}.items():
        assert evaluate(trained, *arguments, f"--output={tmp_path / name}").returncode == 0
        assert np.abs(rows_of(tmp_path / name) - rows_of(evaluation)).max() > 0
    metrics = json.loads((tmp_path / "second" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["about"]["checkpoint"] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--checkpoint=99"], ["no checkpoint '99'", "best, latest"]),
        (["--split=dev"], ["--split=dev", "<train|val|test>"]),
        (["--rows=9"], ["--rows=9 would be ignored: a split is measured whole"]),
        (["--data_root=/nowhere"], ["no test.h5 under /nowhere: set --data_root to a data set"]),
        (["--guidance_interval=0.5"], ["guidance_interval", "two numbers, as in 0.2,0.8"]),
        (["--guidance_interval=0.9,0.1"], ["sampling.guidance_interval=", "0.9, 0.1"]),
        (["--tolerance=0"], ["sampling.tolerance=0.0"]),
        (["extra"], ["unexpected argument 'extra'"]),
        (["--render", "--plugin=none.vst3"], ["there is no plugin at 'none.vst3'"]),  # Before it samples: one line.
        (["--plugin=none.vst3", f"--targets={REPOSITORY}"], ["there is no plugin at 'none.vst3'"]),
    ],
)
def test_evaluate_refuses_in_one_line(trained: Path, arguments: list[str], words: list[str]) -> None:
    assert_usage_error(evaluate(trained, *arguments), *words)


def test_evaluate_refuses_a_plugin_that_does_not_load_before_it_samples(trained: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.vst3"
    broken.write_bytes(b"no plugin")
    result = evaluate(trained, "--render", f"--plugin={broken}", f"--output={tmp_path / 'out'}")
    assert_usage_error(result, f"the plugin {broken} cannot be loaded")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    assert_usage_error(evaluate(tmp_path), "no config.json under")
    # Flags that do not go together are refused before the run is looked at.
    assert_usage_error(run_cli("synthjax.evaluate", "--targets=drawn"), "name a model with --workdir")


def test_a_config_is_read_as_data(trained: Path, tmp_path: Path) -> None:
    workdir = Path(shutil.copytree(trained, tmp_path / "run"))
    (workdir / "config.json").write_text("__import__('os').system('touch owned')", encoding="utf-8")
    assert_usage_error(evaluate(workdir), "config.json cannot be read")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("rate", "channels", "seconds"),
    [
        pytest.param(44100, 2, 4.0, marks=pytest.mark.slow),
        (48000, 1, 1.3),
        pytest.param(16000, 2, 9.0, marks=pytest.mark.slow),
    ],
)
def test_predict_names_every_parameter_of_a_sound(
    trained: Path, tmp_path: Path, rate: int, channels: int, seconds: float
) -> None:
    time = np.arange(int(rate * seconds)) / rate
    sound = tmp_path / "a sound.wav"
    soundfile.write(sound, np.stack([0.4 * np.sin(2 * np.pi * 220 * time)] * channels, axis=1), rate)
    result = predict(trained, sound, "--candidates=3", f"--output={tmp_path / 'out'}")
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"wrote report.html and the patches of 1 sound to {tmp_path / 'out'}\n"
    prediction = json.loads((tmp_path / "out" / "a sound.json").read_text(encoding="utf-8"))
    assert list(prediction["parameters"]) == [parameter.name for parameter in SPEC.synth_params]
    assert prediction["parameters"]["a_highpass"]["text"].endswith(" Hz")
    assert 48 <= prediction["pitch"] <= 72
    assert 0 <= prediction["note_start_and_end"][0] < prediction["note_start_and_end"][1] <= 4
    assert len(prediction["candidates"]) == 3
    again = SPEC.decode(prediction["candidates"][0]["row"])
    assert again["pitch"] == prediction["pitch"]
    assert again["a_highpass"] == prediction["parameters"]["a_highpass"]["value"]
    for said, expected in [("resampled", rate != 44100), ("padded", seconds < 4), ("used the first 4 s", seconds > 4)]:
        assert (said in result.stderr) == expected, result.stderr


def test_predict_writes_a_preset_that_holds_the_prediction(trained: Path, tmp_path: Path) -> None:
    write_noise(tmp_path / "s.wav")
    assert predict(trained, tmp_path / "s.wav", f"--output={tmp_path / 'out'}").returncode == 0
    values = SPEC.decode(json.loads((tmp_path / "out" / "s.json").read_text(encoding="utf-8"))["candidates"][0]["row"])
    assert differences(read_preset(tmp_path / "out" / "s.vstpreset"), values, SPEC) == []


def test_the_real_plugin_holds_a_predicted_preset_and_sounds_like_the_render(
    trained: Path, tmp_path: Path, surge_xt_plugin: str
) -> None:
    if not surge_xt_plugin:
        pytest.skip("needs Surge XT: its .vst3 in SURGE_XT_PLUGIN")
    tone = 0.3 * np.sign(np.sin(2 * np.pi * 220 * np.arange(3 * 44100) / 44100))
    soundfile.write(tmp_path / "tone.wav", tone, 44100)
    flags = ["--candidates=6", f"--plugin={surge_xt_plugin}", f"--output={tmp_path / 'out'}"]
    result = predict(trained, tmp_path / "tone.wav", *flags)
    assert result.returncode == 0, result.stderr
    prediction = json.loads((tmp_path / "out" / "tone.json").read_text(encoding="utf-8"))
    assert prediction["chosen"] == "nearest in sound"
    values = SPEC.decode(prediction["candidates"][0]["row"])
    plugin = load_plugin(surge_xt_plugin)
    load_preset(plugin, (tmp_path / "out" / "tone.vstpreset").read_bytes())
    heard = play_note(plugin, values)
    assert differences(read_preset(plugin.preset_data), values, SPEC) == []
    rendered, _ = soundfile.read(tmp_path / "out" / "tone.wav", dtype="float32")
    # Phases run free: the same patch is never the same twice, but far nearer than another one.
    assert mss(heard, rendered.T) < 0.2 * prediction["candidates"][-1]["mss"]


def test_without_a_renderer_the_medoid_is_given_and_that_is_said(trained: Path, tmp_path: Path) -> None:
    write_noise(tmp_path / "s.wav")
    result = predict(trained, tmp_path / "s.wav", "--candidates=5", f"--output={tmp_path / 'out'}")
    assert result.returncode == 0
    assert "no renderer: there is no plugin at '/nowhere'" in result.stderr
    prediction = json.loads((tmp_path / "out" / "s.json").read_text(encoding="utf-8"))
    assert prediction["chosen"] == "medoid of the candidates"
    rows = np.array([candidate["row"] for candidate in prediction["candidates"]])
    assert medoid(rows) == 0
    assert not (tmp_path / "out" / "s.wav").exists()


def test_a_prediction_never_replaces_the_sound_it_is_made_of(trained: Path, tmp_path: Path) -> None:
    write_noise(tmp_path / "s.wav")
    before = (tmp_path / "s.wav").read_bytes()
    result = predict(trained, tmp_path / "s.wav", f"--output={tmp_path}")
    assert_usage_error(result, f"the results would replace {tmp_path / 's.wav'}: choose another --output")
    assert (tmp_path / "s.wav").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--plugin=none.vst3"], ["there is no plugin at 'none.vst3'"]),
        (["--plugin=none.vst3", "--preset=base.vstpreset"], ["there is no plugin at 'none.vst3'"]),
        (["--preset=base.vstpreset"], ["name the plugin with --plugin"]),
        (["--refine=5"], ["refinement searches by rendering: there is no plugin at '/nowhere'"]),
        (["--refine=5", "--norender"], ["refinement searches by rendering: leave out --norender"]),
    ],
)
def test_what_predict_is_to_render_with_is_missed_before_it_samples(
    trained: Path, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    write_noise(tmp_path / "s.wav")
    assert_usage_error(predict(trained, tmp_path / "s.wav", *arguments, f"--output={tmp_path / 'out'}"), *words)


@pytest.mark.slow
def test_predict_gives_the_same_answer_twice_and_another_with_another_seed(trained: Path, tmp_path: Path) -> None:
    write_noise(tmp_path / "s.flac")
    answers = []
    for name, seed in (("a", []), ("b", []), ("c", ["--seed=5"])):
        assert predict(trained, tmp_path / "s.flac", *seed, f"--output={tmp_path / name}").returncode == 0
        answers.append((tmp_path / name / "s.json").read_text(encoding="utf-8"))
    assert answers[0] == answers[1] != answers[2]


def test_the_sampler_can_be_chosen(trained: Path, tmp_path: Path) -> None:
    write_noise(tmp_path / "s.wav")
    chosen = ["--solver=euler", "--steps=3", "--guidance=1.5"]
    assert predict(trained, tmp_path / "s.wav", *chosen, f"--output={tmp_path / 'out'}").returncode == 0
    sampling = json.loads((tmp_path / "out" / "s.json").read_text(encoding="utf-8"))["sampling"]
    assert sampling == {"solver": "euler", "steps": 3, "guidance": 1.5}
    wrong = predict(trained, tmp_path / "s.wav", "--solver=magic", f"--output={tmp_path / 'out'}")
    assert_usage_error(wrong, "sampling.solver=magic must be euler or heun or rk4 or dopri5")


@pytest.mark.slow
def test_each_setting_of_the_sampler_has_a_folder_of_its_own(trained: Path, tmp_path: Path) -> None:
    workdir = Path(shutil.copytree(trained, tmp_path / "run"))
    for changed in ([], ["--steps=3", "--guidance_interval=0.2,0.6"], ["--use_ema=False"], []):
        assert evaluate(workdir, "--checkpoint=latest", *changed).returncode == 0
    folders = sorted((workdir / "evaluation").iterdir())
    names = ["test-4", "test-4-nouse_ema", "test-4-steps=3-guidance_interval=0.2,0.6"]
    assert [folder.name for folder in folders] == names
    told = [json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["about"] for folder in folders]
    assert [(metrics["weights"], metrics["sampling"]["steps"]) for metrics in told] == [
        ("ema", 2), ("params", 2), ("ema", 3)
    ]  # fmt: skip


def test_another_data_sets_evaluation_is_refused(evaluation: Path, trained: Path, tmp_path: Path) -> None:
    write(tmp_path / "shard-0.h5", make_rows(99, ROWS))
    write_splits(tmp_path, tmp_path / "other", {"test": [0]})
    result = evaluate(trained, "--checkpoint=latest", f"--data_root={tmp_path / 'other'}", f"--output={evaluation}")
    assert_usage_error(result, f"{evaluation} holds another evaluation")


@pytest.mark.slow
def test_evaluate_tells_what_rows_were_drawn_with(evaluation: Path, trained: Path, tmp_path: Path) -> None:
    chosen = ["--solver=dopri5", "--tolerance=1e-3", "--guidance_interval=0.2,0.6"]
    result = evaluate(trained, *chosen, "--checkpoint=latest", f"--output={tmp_path / 'out'}")
    assert result.returncode == 0, result.stderr
    told = [
        json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["about"]
        for folder in (evaluation, tmp_path / "out")
    ]
    assert told[0]["sampling"] == {"solver": "rk4", "steps": 2, "guidance": 2.0}
    expected = {"solver": "dopri5", "tolerance": 1e-3, "guidance": 2.0, "guidance_interval": [0.2, 0.6]}
    assert told[1]["sampling"] == expected
    assert np.abs(rows_of(tmp_path / "out") - rows_of(evaluation)).max() > 0


def write_noise(path: Path) -> None:
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal((44100, 2)), 44100)


def _write_bad_sound(path: Path, kind: str) -> None:
    if kind == "silent":
        soundfile.write(path, np.zeros((44100, 2)), 44100)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "corrupt":
        path.write_bytes(b"RIFF" + bytes(range(200)))
    elif kind == "nan":
        soundfile.write(path, np.full((44100, 2), np.nan), 44100, subtype="FLOAT")


def test_what_is_no_sound_is_reported_and_the_others_are_predicted(trained: Path, tmp_path: Path) -> None:
    """Among them names of every kind, and two of the same name from different folders."""
    kinds = ["silent", "empty", "corrupt", "nan", "missing"]
    bad = [tmp_path / f"{kind}.wav" for kind in kinds]
    for path in bad:
        _write_bad_sound(path, path.stem)
    names = ["a b", "v1.2", "Flöte", "<script>", "l" * 240]
    good = [tmp_path / "in" / f"{name}.wav" for name in names] + [tmp_path / "other" / "a b.flac"]
    for path in good:
        path.parent.mkdir(exist_ok=True)
        write_noise(path)
    result = predict(trained, bad[0], *good, *bad[1:], f"--output={tmp_path / 'out'}")
    assert result.returncode == 1
    assert "6 of 11 sounds predicted" in result.stderr
    assert "the patches of 6 sounds" in result.stdout
    assert all(f"{kind}.wav" in result.stderr for kind in kinds)
    written = sorted(path.name for path in (tmp_path / "out").glob("*.json"))
    assert len(written) == 6
    assert {"a b.json", "a b (2).json", "v1.2.json", "Flöte.json", "<script>.json"} < set(written)
    assert (tmp_path / "out" / "report.html").is_file()


def test_what_is_left_out_of_a_folder_is_counted_and_named(trained: Path, tmp_path: Path) -> None:
    """The only sound has a name that is no UTF-8."""
    folder = tmp_path / "in"
    folder.mkdir()
    write_noise(tmp_path / "s.wav")
    (tmp_path / "s.wav").rename(os.fsdecode(os.fsencode(folder) + b"/fl\xf6te.wav"))
    (folder / "link").symlink_to(tmp_path)
    (folder / "gone.wav").symlink_to("/gone.wav")
    result = predict(trained, folder, f"--output={tmp_path / 'out'}")
    assert result.returncode == 1
    assert "1 of 1 sounds predicted; 2 left out:" in result.stderr
    assert "in/link: links to folders" in result.stderr
    assert "in/gone.wav: this link" in result.stderr
    written = tmp_path / "out" / os.fsdecode(b"fl\xf6te.json")
    sound = json.loads(written.read_text(encoding="utf-8"))["sound"]
    assert os.fsencode(sound) == os.fsencode(folder) + b"/fl\xf6te.wav"
    assert (tmp_path / "out" / "report.html").is_file()


def test_predict_says_where_it_cannot_write(trained: Path, tmp_path: Path) -> None:
    write_noise(tmp_path / "s.wav")
    (tmp_path / "out").write_text("in the way", encoding="utf-8")
    assert_usage_error(predict(trained, tmp_path / "s.wav", f"--output={tmp_path / 'out'}"), "cannot write to")


def test_predict_wants_sounds(trained: Path, tmp_path: Path) -> None:
    assert_usage_error(predict(trained), "give sounds")
    assert_usage_error(predict(trained, tmp_path), "no sound file in this folder")
