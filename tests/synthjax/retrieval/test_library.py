"""Libraries of the real Dexed: building, searching, answering."""

from __future__ import annotations

import json
import random
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from data_pipeline.audio.mel import mel_spectrogram
from data_pipeline.audio.sound_files import load_sound, wav
from data_pipeline.console.cli import UserError
from data_pipeline.params.counter_rng import LIBRARY_SEED
from data_pipeline.params.spec import load_spec
from data_pipeline.render.patch_renderer import PatchRenderer
from data_pipeline.synths.choice import open_synth, synth_for
from data_pipeline.synths.dexed.syx import write_banks
from data_pipeline.synths.dexed.voice import INIT_VOICE
from data_pipeline.synths.protocol import NOTE_TIMES, PITCH
from synthjax.inference.candidates import REFINED, Candidate
from synthjax.inference.predictor import Predictor
from synthjax.inference.refine import Budget
from synthjax.retrieval import search
from synthjax.retrieval.embedding import POOLED, Embedding, onset, pooled
from synthjax.retrieval.index import Index, Source, read_index, write_index
from synthjax.retrieval.search import Library
from synthjax.tasks.rendered import RenderedOrder, RenderedRows, render_settings
from tests.helpers import assert_usage_error, run_cli, started, wait_until

SPEC = load_spec("dexed")
ROWS = 72  # Three batches.


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("library") / "dexed.index"
    result = run_cli("synthjax.library", "build", path, f"--rows={ROWS}", "--workers=2")
    assert result.returncode == 0, result.stderr
    assert f"patches: {ROWS}, of spec dexed" in result.stdout
    return path


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The sounds of three rows of the library."""
    folder, synth = tmp_path_factory.mktemp("sounds"), open_synth(synth_for(SPEC))
    paths = [folder / f"row_{number}.wav" for number in (7, 31, 4)]
    for path, row in zip(paths, drawn_rows(np.array([7, 31, 4])), strict=True):
        path.write_bytes(wav(synth.render(SPEC.decode(row))))
    return paths


def drawn_rows(numbers: NDArray[np.int64], name: str = "param_array") -> NDArray:
    return RenderedRows(render_settings(SPEC, LIBRARY_SEED), RenderedOrder(1000, 1)).read_rows(name, numbers)


def test_a_library_holds_the_rows_that_shards_of_its_seed_would(path: Path) -> None:
    index = read_index(path)
    numbers = np.array([0, 17, ROWS - 1])
    patches = index.patches(numbers, np.zeros(3))
    np.testing.assert_array_equal([patch.row for patch in patches], drawn_rows(numbers))
    mels = drawn_rows(numbers, "mel_spec").astype(np.float32)
    near = np.abs(index.codes[numbers] - index.embedding.project(np.stack([pooled(mel) for mel in mels])))
    assert near.max() < 1.0  # Half a step, and the float16 of shards.


@pytest.mark.slow
def test_shards_need_not_be_rendered_again(path: Path, tmp_path: Path) -> None:
    """Rows of a seed are kept as attempts, those of shards that do not say their seed as they are."""
    shards, mine, theirs = tmp_path / "shards", tmp_path / "mine.index", tmp_path / "theirs.index"
    flags = ("--config=configs/render_dexed.py", f"--seed={LIBRARY_SEED}", "--shards=0-1", "--samples_per_shard=20")
    assert run_cli("data_pipeline.render_shards", *flags, f"--output={shards}", "--workers=1").returncode == 0
    assert run_cli("synthjax.library", "build", mine, f"--shards={shards}").returncode == 0
    for file in shards.glob("*.h5"):
        with h5py.File(file, "a") as shard:
            del shard.attrs["seed"]
    assert run_cli("synthjax.library", "build", theirs, f"--shards={shards}").returncode == 0
    rendered, drawn, stored = (read_index(one) for one in (path, mine, theirs))
    assert drawn.sources[1].rows is None
    for one in (drawn, stored):
        for patch, same in zip(
            one.patches(range(40), [0.0] * 40), rendered.patches(range(40), [0.0] * 40), strict=True
        ):
            np.testing.assert_array_equal(patch.row, same.row)
            assert patch.delay == same.delay
    assert [stored.patches([21], [0.0])[0].origin, drawn.patches([21], [0.0])[0].origin] == [
        "row 1 of shard-1.h5",
        "row 21 of seed 3",
    ]


@pytest.mark.slow
def test_a_killed_build_goes_on_and_gives_the_same_file_as_two_workers(path: Path, tmp_path: Path) -> None:
    other, log = tmp_path / "other.index", tmp_path / "other.index.partial"
    arguments = ["synthjax.library", "build", other, f"--rows={ROWS}", "--workers=1"]
    with started(["-m", *arguments], tmp_path / "stderr") as process:
        wait_until(lambda: log.exists() and log.stat().st_size > 0, process)
        process.kill()
        process.wait()
    assert log.exists()
    assert not other.exists()
    result = run_cli(*arguments)
    assert result.returncode == 0, result.stderr
    assert other.read_bytes() == path.read_bytes()
    assert not log.exists()


def test_additions_go_on_with_the_numbers(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.index"
    assert run_cli("synthjax.library", "build", other, "--rows=33", "--workers=1").returncode == 0
    result = run_cli("synthjax.library", "add", other, f"--rows={ROWS - 33}", "--workers=1")
    assert result.returncode == 0, result.stderr
    numbers, nowhere = range(ROWS), [0.0] * ROWS
    for one, same in zip(
        read_index(other).patches(numbers, nowhere), read_index(path).patches(numbers, nowhere), strict=True
    ):
        np.testing.assert_array_equal(one.row, same.row)


def test_a_sound_of_the_library_is_found(path: Path, sounds: list[Path]) -> None:
    result = run_cli("synthjax.library", "search", path, *sounds, "--count=3")
    assert result.returncode == 0, result.stderr
    first = [block.splitlines()[1].split("  ")[-1] for block in result.stdout.strip().split("\n\n")]
    assert first == [f"row {number} of seed 3" for number in (7, 31, 4)]


@pytest.mark.parametrize("render", [True, False])
def test_a_library_answers_without_a_model(path: Path, sounds: list[Path], tmp_path: Path, render: bool) -> None:
    flags = (f"--library={path}", f"--output={tmp_path}", "--candidates=3", f"--render={render}")
    result = run_cli("synthjax.predict", *sounds, *flags)
    assert result.returncode == 0, result.stderr
    for sound, number in zip(sounds, (7, 31, 4), strict=True):
        answer = json.loads((tmp_path / f"{sound.stem}.json").read_text())
        assert len(answer["candidates"]) == 3
        assert answer["candidates"][0]["origin"] == f"row {number} of seed 3"
        assert (tmp_path / f"{sound.stem}.syx").is_file()
    assert (tmp_path / "banks" / "1.syx").is_file()


def test_a_slow_attack_begins_with_the_target(path: Path) -> None:
    """The note of a patch begins before the target by the patch's own delay."""
    index = read_index(path)
    delays = index.sources[0].delays
    number, synth = int(delays.argmax()), open_synth(synth_for(SPEC))
    assert delays[number] > 5
    [row] = drawn_rows(np.array([number]))
    sound = np.roll(synth.render({**SPEC.decode(row), NOTE_TIMES: (0.0, 2.0)}), 44100, axis=1)
    sound[:, :44100] = 0.0
    mel = mel_spectrogram(sound)
    [[*near]] = Predictor(None, None, Library(index)).nearest([sound], mel[None], ROWS)
    found = next(one for one in near if one.origin == f"row {number} of seed 3")
    answer = mel_spectrogram(synth.render(SPEC.decode(found.row)))
    assert abs(onset(answer) - onset(mel)) <= 3


def test_locked_values_are_in_every_answer(path: Path, sounds: list[Path]) -> None:
    locks = {"algorithm": 7, "op_3_output_level": 55, "pitch": 48}
    sound = load_sound(sounds[0]).audio
    with PatchRenderer(synth_for(SPEC), 2) as renderer:
        predictor = Predictor(None, renderer, Library(read_index(path)), locks=locks)
        [prediction] = predictor.predict([sound], candidates=8)
        refined, _ = predictor.refine(sound, prediction, Budget(evaluations=150))
        [ranked] = predictor.rank([sound], [[Candidate(row) for row in SPEC.sample(3, range(2), [0, 0])]])
    assert refined.chosen == REFINED
    known = predictor.locks.known
    for candidate in (*refined.candidates, *refined.spare, *ranked.candidates):
        np.testing.assert_array_equal(candidate.row[~np.isnan(known)], known[~np.isnan(known)])
    assert locks.items() <= refined.values.items()


@pytest.mark.slow
def test_a_killed_refinement_goes_on_to_the_same_answer(path: Path, sounds: list[Path], tmp_path: Path) -> None:
    flags = ("synthjax.predict", sounds[0], f"--library={path}", "--refine_evaluations=1000", "--lock=algorithm=7")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run_cli(*flags, f"--output={whole}").returncode == 0
    kept = broken / f"{sounds[0].stem}.search.npz"
    with started(["-m", *flags, f"--output={broken}"], tmp_path / "stderr") as process:
        wait_until(kept.exists, process)
        process.kill()
        process.wait()
    answer = broken / f"{sounds[0].stem}.json"
    assert json.loads(answer.read_text())["chosen"] == REFINED  # The best so far.
    assert run_cli(*flags, f"--output={broken}").returncode == 0
    assert json.loads(answer.read_text()) == json.loads((whole / answer.name).read_text())
    assert not kept.exists()


def test_a_mixture_keeps_its_rows(tmp_path: Path) -> None:
    folder = tmp_path / "known"
    folder.mkdir()
    (folder / "bank.syx").write_bytes(write_banks([INIT_VOICE])[0])
    path = tmp_path / "mixture.index"
    result = run_cli("synthjax.library", "build", path, "--rows=8", "--workers=1", f"--prior={folder}")
    assert result.returncode == 0, result.stderr
    rows = RenderedRows(render_settings(SPEC, LIBRARY_SEED, str(folder)), RenderedOrder(8, 1))
    found = [patch.row for patch in read_index(path).patches(range(8), [0.0] * 8)]
    np.testing.assert_array_equal(found, rows.read_rows("param_array", np.arange(8)))


def test_notes_of_a_library_may_all_be_held(tmp_path: Path) -> None:
    path = tmp_path / "held.index"
    result = run_cli("synthjax.library", "build", path, "--rows=8", "--workers=1", "--held=1.5")
    assert result.returncode == 0, result.stderr
    assert "notes held for 1.5 s" in result.stdout
    found = [SPEC.decode(patch.row) for patch in read_index(path).patches(range(8), [0.0] * 8)]
    assert all(values[NOTE_TIMES] == pytest.approx((0.0, 1.5)) for values in found)
    assert len({values[PITCH] for values in found}) > 1


def random_index(count: int) -> tuple[Index, NDArray[np.uint8]]:
    sounds = np.random.default_rng(0).integers(0, 255, (count, POOLED), np.uint8)
    embedding = Embedding.fit(sounds)
    about = {"seed": 3, "first": 0, "prior_hash": None, "held": 0.0, "refused": {}}
    source = Source(about, np.zeros(count, np.uint8), np.zeros(count, np.uint16))
    return Index(SPEC, ("a", "1"), embedding, embedding.codes(sounds), (source,)), sounds


def test_search_is_exact_over_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "CHUNK", 64)
    index, _ = random_index(150)
    mels = np.random.default_rng(1).uniform(-80, 0, (5, 2, 128, 401)).astype(np.float32)
    numbers, distances = Library(index).search(mels, 9)
    queries = index.embedding.project(np.stack([pooled(mel) for mel in mels]))
    expected = np.linalg.norm(queries[:, None] - index.codes[None].astype(np.float32), axis=-1)
    np.testing.assert_array_equal(numbers, np.argsort(expected, axis=1)[:, :9])
    np.testing.assert_allclose(distances, np.sort(expected, axis=1)[:, :9], rtol=1e-4)
    assert [len(patches) for patches in Library(index).nearest(mels, 200)] == [150] * 5


def test_pooled_numbers_are_means() -> None:
    mel = np.zeros((2, 128, 401), np.float32)
    mel[0, 4:8, 100:110] = -80.0  # One channel, the second band, one of forty pieces of time.
    means = pooled(mel).reshape(32, 40)
    assert means[1, 10] == 128  # Half of -80 dB.
    assert means.sum() == 128
    np.testing.assert_array_equal(pooled(mel_spectrogram(np.zeros((2, 176400), np.float32))), 0)


def test_the_same_sound_at_another_time_has_the_same_means() -> None:
    sound = np.zeros((2, 176400), np.float32)
    sound[:, :44100] = np.random.default_rng(0).normal(size=(2, 44100)) * np.exp(-np.arange(44100) / 10000)
    later = np.roll(sound, 50 * 441, axis=1)
    first, second = (pooled(mel_spectrogram(one)).astype(int) for one in (sound, later))
    assert np.abs(first - second).mean() < 1.0


@pytest.mark.parametrize("damage", ["truncated", "noise", "foreign", "version", "rows"])
def test_a_damaged_or_foreign_file_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.index"
    index, _ = random_index(20)
    write_index(path, index)
    content = path.read_bytes()
    match damage:
        case "truncated":
            path.write_bytes(content[: len(content) // 2])
        case "noise":
            path.write_bytes(random.Random(0).randbytes(1000))
        case "foreign":
            save_file({"weights": np.zeros(3)}, path)
        case "version":
            path.write_bytes(content.replace(b'\\"version\\": 3', b'\\"version\\": 7'))
        case "rows":
            tensors = load_file(path)
            tensors["codes"] = tensors["codes"][1:]
            about = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
            save_file(tensors, path, about)
    with pytest.raises(UserError, match=f"{path} is "):
        read_index(path)
    assert_usage_error(run_cli("synthjax.library", "info", path), str(path))
