"""Any sound file to four seconds of stereo: what is done, what is said, what is refused."""

from __future__ import annotations

import errno
import io
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
    assert sound.notes == ("used the first 4 s; its header says 6.50 s",)
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
    assert "used the first 4 s; its header says 3600.00 s" in sound.notes
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


# Lengths in headers are promises: what counts is what can be read.


def in_memory(suffix: str, seconds: float, **options: str) -> bytearray:
    file = io.BytesIO()
    soundfile.write(file, tone(seconds), RATE, format=suffix[1:], **options)
    return bytearray(file.getvalue())


def last_sound(audio: NDArray[np.float32]) -> float:
    """The time in seconds of the last sample that is not silent."""
    return float(np.flatnonzero(np.abs(audio[0]) > 1e-3)[-1] / RATE)


@pytest.mark.parametrize("suffix", [".flac", ".mp3", ".wav", ".aiff"])
def test_a_file_that_was_cut_short_is_read_as_far_as_it_goes(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"sound{suffix}"
    content = in_memory(suffix, 8.0)
    path.write_bytes(content[: len(content) * 3 // 10])
    sound = load_sound(path)
    note = next(note for note in sound.notes if "padded" in note)
    padded_from = float(note.split()[1])
    assert 2.0 < padded_from < 2.5
    assert last_sound(sound.audio) == pytest.approx(padded_from, abs=0.02)
    if suffix in (".flac", ".mp3"):  # The others' length is that of the file.
        assert f"its header says 8.00 s; {padded_from:.2f} s could be read" in sound.notes


def test_damage_in_the_middle_ends_the_sound_there(tmp_path: Path) -> None:
    content = in_memory(".flac", 8.0)
    middle = len(content) * 3 // 10
    content[middle : middle + 3000] = bytes(3000)
    (tmp_path / "sound.flac").write_bytes(content)
    sound = load_sound(tmp_path / "sound.flac")
    assert [note for note in sound.notes if "its header says 8.00 s; 2." in note]
    np.testing.assert_allclose(sound.audio[:, : 2 * RATE], tone(2.0).T, atol=1e-4)


@pytest.mark.parametrize(("seconds", "read"), [(3.0, "3.00 s could be read"), (8.0, "used the first 4 s")])
def test_a_flac_whose_header_gives_no_length_is_read_to_its_end(tmp_path: Path, seconds: float, read: str) -> None:
    """As an encoder that writes to a pipe leaves it: the last 36 bits before the checksum count the samples."""
    content = in_memory(".flac", seconds)
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    (tmp_path / "sound.flac").write_bytes(content)
    sound = load_sound(tmp_path / "sound.flac")
    assert [note for note in sound.notes if "gives no length" in note and read in note]
    assert last_sound(sound.audio) == pytest.approx(min(seconds, 4.0), abs=0.02)


@pytest.mark.parametrize("data_size", [0, 0xFFFFFFFF])
@pytest.mark.parametrize("riff_size", [None, 0, 0xFFFFFFFF])
@pytest.mark.parametrize("format_name", ["WAV", "WAVEX"])
def test_a_wav_whose_length_was_never_written_is_read_to_its_end(
    tmp_path: Path, data_size: int, riff_size: int | None, format_name: str
) -> None:
    content = in_memory("." + format_name, 3.0, subtype="PCM_16")
    data = content.index(b"data")
    content[data + 4 : data + 8] = data_size.to_bytes(4, "little")
    if riff_size is not None:
        content[4:8] = riff_size.to_bytes(4, "little")
    (tmp_path / "sound.wav").write_bytes(content)
    sound = load_sound(tmp_path / "sound.wav")
    assert "padded 3.00 s with silence to 4 s" in sound.notes
    assert ("its header says 0.00 s; 3.00 s could be read" in sound.notes) == (data_size == 0)
    np.testing.assert_allclose(sound.audio[:, : 3 * RATE], tone(3.0).T, atol=1e-4)


def test_a_file_of_which_nothing_can_be_read_is_damaged(tmp_path: Path) -> None:
    content = in_memory(".flac", 4.0)
    (tmp_path / "sound.flac").write_bytes(content[:100])
    with pytest.raises(UserError, match=r"sound\.flac: is damaged"):
        load_sound(tmp_path / "sound.flac")


# Errors of the system are not damage.


def test_too_many_open_files_are_no_damage(tmp_path: Path, at_the_limit_of_open_files: None) -> None:
    with pytest.raises(UserError, match=r"a\.wav: cannot be read: Too many open files: .*ulimit -n"):
        load_sound(tmp_path / "a.wav")


@pytest.mark.parametrize("after", [0, 1])
def test_a_disk_that_fails_is_no_end_of_the_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """libsndfile reports a failing read as damage, or as the end. The bytes read once more tell."""
    path = save(tmp_path / "sound.flac", tone(4.0))
    os.truncate(path, path.stat().st_size // 2 if after else 30)

    def failing(self: Path, *arguments: object, **options: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(self))

    monkeypatch.setattr(Path, "open", failing)
    with pytest.raises(UserError, match=r"sound\.flac: cannot be read: Input/output error: .*mount"):
        load_sound(path)


def test_names_that_are_no_utf_8_are_read(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/fl\xf6te.wav"))
    save(tmp_path / "flute.wav", tone(4.0)).rename(path)
    assert load_sound(path).notes == ()


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
