"""The mel spectrogram against librosa, against real shards, and at its edges."""

from __future__ import annotations

from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401  (registers Blosc2)
import librosa
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from data_pipeline.audio.mel import mel_spectrogram


def librosa_mel(audio: NDArray[np.float32]) -> NDArray[np.float32]:
    power = librosa.feature.melspectrogram(
        y=audio, sr=44100, n_fft=1102, hop_length=441, window="hamming", n_mels=128, pad_mode="constant"
    )
    return librosa.power_to_db(power, ref=np.max)


def noise(seed: int, samples: int = 176400) -> NDArray[np.float32]:
    return (0.1 * np.random.default_rng(seed).standard_normal((2, samples))).astype(np.float32)


def test_metric_mel_equals_librosa_on_golden_sounds(shared_data: Path) -> None:
    paths = sorted((shared_data / "golden").glob("*_render0.flac"))
    assert len(paths) == 16
    for path in paths:
        audio = soundfile.read(path, dtype="float32")[0].T
        mel = mel_spectrogram(audio)
        assert mel.shape == (2, 128, 401)
        assert mel.dtype == np.float32
        np.testing.assert_allclose(mel, librosa_mel(audio), rtol=0, atol=1e-3, err_msg=path.name)


@pytest.mark.parametrize("name", ["surge_simple", "surge_xt"])
def test_metric_mel_recomputed_from_a_shard(shared_data: Path, name: str) -> None:
    """The shards' own spectrograms were computed before their audio was rounded to float16."""
    with h5py.File(shared_data / name / "shard-0.h5") as shard:
        audio, stored = (np.asarray(shard[key][:4], np.float32) for key in ("audio", "mel_spec"))
    errors = np.abs(np.stack([mel_spectrogram(sound) for sound in audio]) - stored)
    assert errors.mean() < 0.02
    assert errors.max() < 4.0


@pytest.mark.parametrize("gain", [1.0, 1e-4, 1e-7])
def test_metric_mel_of_loud_and_faint_noise_equals_librosa(gain: float) -> None:
    audio = noise(0) * np.float32(gain)
    audio[1] *= 1e-3  # The quieter channel is measured against the louder one.
    np.testing.assert_allclose(mel_spectrogram(audio), librosa_mel(audio), rtol=0, atol=1e-3)


def test_metric_silence_is_zero_decibels_throughout() -> None:
    silence = np.zeros((2, 44100), np.float32)
    np.testing.assert_array_equal(mel_spectrogram(silence), librosa_mel(silence))
    assert not mel_spectrogram(silence).any()


def test_values_lie_between_the_floor_and_zero() -> None:
    audio = noise(1)
    audio[:, 88200:] = 0.0
    mel = mel_spectrogram(audio)
    assert mel.max() == 0.0
    assert mel.min() == -80.0


@pytest.mark.parametrize("samples", [1, 440, 441, 1102, 50001])
def test_metric_any_length_gives_one_frame_a_hop(samples: int) -> None:
    audio = noise(2, samples)
    mel = mel_spectrogram(audio)
    assert mel.shape == (2, 128, 1 + samples // 441)
    np.testing.assert_allclose(mel, librosa_mel(audio), rtol=0, atol=1e-3)


def test_audio_of_one_dimension_is_refused() -> None:
    with pytest.raises(ValueError, match="channels, samples"):
        mel_spectrogram(np.zeros(44100, np.float32))
