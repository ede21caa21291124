"""Any sound file to four seconds of stereo: what is done, what is said, what is refused."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from data_pipeline.audio.sound_files import load_sound
from data_pipeline.console.cli import UserError

RATE = 44100
FULL = 4 * RATE


def tone(seconds: float, rate: int = RATE, hertz: float = 440.0, channels: int = 2) -> NDArray[np.float32]:
    """A sine (samples, channels), each channel half as loud as the one before."""
    time = np.arange(round(seconds * rate)) / rate
    gains = 0.5 ** np.arange(1, channels + 1)
    return (np.sin(2 * np.pi * hertz * time)[:, None] * gains).astype(np.float32)


def save(path: Path, samples: NDArray[np.float32], rate: int = RATE, **options: str) -> Path:
    soundfile.write(path, samples, rate, **({"subtype": "FLOAT"} if path.suffix == ".wav" else {}), **options)
    return path


def test_a_sound_of_the_right_form_is_left_as_it_is(tmp_path: Path) -> None:
    samples = tone(4.0)
    sound = load_sound(save(tmp_path / "sound.wav", samples))
    assert sound.audio.dtype == np.float32
    assert sound.notes == ()
    np.testing.assert_array_equal(sound.audio, samples.T)


def test_golden_sounds_are_left_as_they_are(shared_data: Path) -> None:
    path = shared_data / "golden" / "surge_xt_00_render0.flac"
    sound = load_sound(path)
    assert sound.notes == ()
    np.testing.assert_array_equal(sound.audio, soundfile.read(path, dtype="float32")[0].T)


@pytest.mark.parametrize("rate", [8000, 22050, 48000, 96000])
@pytest.mark.parametrize("seconds", [4.0, 5.0])
def test_any_rate_is_resampled(tmp_path: Path, rate: int, seconds: float) -> None:
    sound = load_sound(save(tmp_path / "sound.wav", tone(seconds, rate), rate))
    assert f"resampled {rate} Hz to {RATE} Hz" in sound.notes
    # The last samples too, where the file goes on: the resampler must have seen what follows.
    inner = slice(200, None if seconds > 4 else -200)
    np.testing.assert_allclose(sound.audio[:, inner], tone(4.0).T[:, inner], atol=2e-3)


def test_mono_is_put_on_both_channels(tmp_path: Path) -> None:
    samples = tone(4.0, channels=1)
    sound = load_sound(save(tmp_path / "sound.wav", samples))
    assert sound.notes == ("mono: the one channel is used on both sides",)
    np.testing.assert_array_equal(sound.audio, np.repeat(samples.T, 2, axis=0))


def test_of_many_channels_the_first_two_are_used(tmp_path: Path) -> None:
    samples = tone(4.0, channels=6)
    sound = load_sound(save(tmp_path / "sound.wav", samples))
    assert sound.notes == ("used the first two of 6 channels",)
    np.testing.assert_array_equal(sound.audio, samples[:, :2].T)


@pytest.mark.parametrize("seconds", [0.01, 1.5])
def test_a_short_sound_is_padded_with_silence(tmp_path: Path, seconds: float) -> None:
    samples = tone(seconds)
    sound = load_sound(save(tmp_path / "sound.wav", samples))
    assert sound.notes == (f"padded {seconds:.2f} s with silence to 4 s",)
    assert sound.audio.shape == (2, FULL)
    np.testing.assert_array_equal(sound.audio[:, : len(samples)], samples.T)
    assert not sound.audio[:, len(samples) :].any()


def test_a_single_sample_is_a_sound(tmp_path: Path) -> None:
    sound = load_sound(save(tmp_path / "sound.wav", np.full((1, 1), 0.5, np.float32), 48000))
    assert np.isfinite(sound.audio).all()
    assert sound.audio.any()


def test_a_long_sound_is_cut(tmp_path: Path) -> None:
    samples = tone(6.5)
    sound = load_sound(save(tmp_path / "sound.wav", samples))
    assert sound.notes == ("used the first 4 s of 6.50 s",)
    np.testing.assert_array_equal(sound.audio, samples[:FULL].T)


def test_of_an_hour_only_the_beginning_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sparse file: 3,600 s of silence that take no room on the disk, after half a second of tone."""
    path = save(tmp_path / "hour.wav", tone(0.5, 48000), 48000)
    data_bytes = 3600 * 48000 * 2 * 4
    with path.open("r+b") as file:
        header = file.read(200)
        data = header.index(b"data")
        file.seek(data + 4)
        file.write(data_bytes.to_bytes(4, "little"))
        file.seek(4)
        file.write((data + data_bytes).to_bytes(4, "little"))
        file.truncate(data + 8 + data_bytes)
    read = 0
    original = soundfile.SoundFile.read

    def counting(self: soundfile.SoundFile, frames: int = -1, *arguments: object, **options: object) -> object:
        nonlocal read
        read += frames
        return original(self, frames, *arguments, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(soundfile.SoundFile, "read", counting)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sound = load_sound(path)
    assert "used the first 4 s of 3600.00 s" in sound.notes
    assert 0 < read <= 5 * 48000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


@pytest.mark.parametrize("suffix", [".flac", ".ogg", ".mp3", ".aiff", ".caf"])
def test_common_formats_read(tmp_path: Path, suffix: str) -> None:
    sound = load_sound(save(tmp_path / f"sound{suffix}", tone(4.0)))
    assert np.abs(sound.audio[:, 5000:-5000] - tone(4.0).T[:, 5000:-5000]).mean() < 0.05


@pytest.mark.parametrize("what", ["missing", "folder", "empty", "text", "headerless", "pipe", "no samples"])
def test_what_is_no_sound_file_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / ("sound.raw" if what == "headerless" else "sound.wav")
    match what:
        case "folder":
            path.mkdir()
        case "empty":
            path.touch()
        case "text" | "headerless":
            path.write_text("la la la" * 100)
        case "pipe":
            os.mkfifo(path)
        case "no samples":
            save(path, np.zeros((0, 2), np.float32))
    with pytest.raises(UserError, match=r"sound\.(wav|raw): ") as caught:
        load_sound(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".flac", ".wav"])
def test_a_cut_off_file_is_an_error_or_a_shorter_sound(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"sound{suffix}", tone(4.0))
    os.truncate(path, path.stat().st_size // 2)
    if suffix == ".wav":
        assert "padded 2.00 s with silence to 4 s" in load_sound(path).notes
    else:
        with pytest.raises(UserError, match="damaged"):
            load_sound(path)


@pytest.mark.parametrize(
    ("value", "words"),
    [(np.nan, "not finite"), (np.inf, "not finite"), (0.0, "silent"), (1e-7, "silent"), (1e30, "no sound")],
)
def test_samples_that_are_no_sound_are_refused(tmp_path: Path, value: float, words: str) -> None:
    samples = np.zeros((FULL, 2), np.float32)
    samples[1000, 1] = value
    with pytest.raises(UserError, match=words):
        load_sound(save(tmp_path / "sound.wav", samples))


def test_samples_beyond_what_is_used_do_not_matter(tmp_path: Path) -> None:
    samples = np.concatenate([tone(4.0), np.full((RATE, 2), np.nan, np.float32)])
    sound = load_sound(save(tmp_path / "sound.wav", samples))
    np.testing.assert_array_equal(sound.audio, tone(4.0).T)


@pytest.mark.parametrize("rate", [100, 2_000_000])
def test_absurd_rates_are_refused(tmp_path: Path, rate: int) -> None:
    with pytest.raises(UserError, match=f"{rate} Hz"):
        load_sound(save(tmp_path / "sound.wav", tone(0.5, 44100), rate))
