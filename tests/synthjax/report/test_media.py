"""Audio files and spectrogram pictures, read back."""

from __future__ import annotations

import io

import librosa
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from PIL import Image

from synthjax.report import media
from tests.synthjax.report.sounds import tone


def levels(picture: bytes) -> NDArray[np.uint8]:
    """The palette index of every pixel, the lowest band first: 0 is -80 dB, 255 is 0 dB."""
    return np.asarray(Image.open(io.BytesIO(picture)))[::-1]


def test_flac_holds_the_samples_to_16_bits() -> None:
    audio = np.random.default_rng(0).uniform(-1, 1, (2, 1000)).astype(np.float32)
    audio[:, :2] = [1.0, -1.0]
    samples, rate = soundfile.read(io.BytesIO(media.flac(audio)), dtype="int16", always_2d=True)
    assert rate == 44100
    np.testing.assert_array_equal(samples.T, np.rint(audio * 32767.0))


def test_one_gain_for_all_keeps_the_loudest_from_clipping() -> None:
    assert media.common_gain([tone(level=0.5), 4.0 * tone(level=0.5)]) == pytest.approx(0.5, rel=1e-3)
    assert media.common_gain([tone(level=0.5)]) == 1.0
    assert media.common_gain([]) == 1.0


def test_a_tone_lies_at_the_height_of_its_frequency() -> None:
    heights = dict(media.frequency_ticks())
    for frequency in (500, 1000, 5000, 10000):
        (picture,) = media.spectrograms([tone(frequency)])
        loudest_band = int(levels(picture)[:, 200].argmax())
        assert (loudest_band + 0.5) / 128 == pytest.approx(heights[frequency], abs=1 / 128)


def test_ticks_lie_on_slaneys_scale() -> None:
    centres = librosa.mel_frequencies(n_mels=130, fmin=0.0, fmax=22050.0)[1:-1]
    for hz, height in media.frequency_ticks():
        assert np.interp(hz, centres, (np.arange(128) + 0.5) / 128) == pytest.approx(height, abs=0.05 / 128)


def test_all_pictures_share_decibels_and_time() -> None:
    loud, soft, short = map(levels, media.spectrograms([tone(), 0.1 * tone(), tone(samples=44100)]))
    assert loud.shape == soft.shape == short.shape == (128, 401)
    assert loud[:, 10:390].max() == pytest.approx(255, abs=3)
    assert loud.max(axis=0)[200] - soft.max(axis=0)[200] == pytest.approx(255 * 20 / 80, abs=2)
    assert short[:, :95].max() > 200
    assert short[:, 105:].max() == 0


def test_opposite_channels_do_not_cancel() -> None:
    plain, opposite = map(levels, media.spectrograms([tone(), tone() * np.float32([[1], [-1]])]))
    np.testing.assert_array_equal(plain, opposite)


def test_silence_is_dark() -> None:
    silence = np.zeros((2, 4410), np.float32)
    assert levels(media.spectrograms([silence])[0]).max() == 0
    assert levels(media.spectrograms([silence, tone()])[0]).max() == 0
    assert media.spectrograms([]) == []


def test_pictures_start_and_end_half_a_frame_beyond_the_sound() -> None:
    assert media.time_span(176400) == pytest.approx((-0.005, 4.005))


def test_palette_runs_from_dark_to_bright() -> None:
    colours = media.palette(3)
    assert all(len(colour) == 7 and colour.startswith("#") for colour in colours)
    brightness = [sum(bytes.fromhex(colour[1:])) for colour in colours]
    assert brightness == sorted(set(brightness))
