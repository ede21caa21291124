"""Sounds that no patch of ours has made (NSynth, FSD50K, ...), brought to what a model hears."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.audio_io import CHANNELS, load_sound
from data_pipeline.cli import UserError
from data_pipeline.mel import mel_spectrogram
from data_pipeline.progress import progress_bar
from data_pipeline.synths.protocol import SAMPLE_RATE, SAMPLES, SECONDS
from synthjax.data import EVAL_NOISE, draw_noise
from synthjax.inference import TrainedModel
from synthjax.sound_files import find_sounds

# As in the paper's experiments on other data sets: silence before the sound, and half its level.
PAD_SECONDS = 0.05
GAIN = 0.5


@dataclass(frozen=True)
class ForeignSounds:
    """The readable sounds of a folder, and one line for each that is not."""

    folder: Path
    paths: tuple[Path, ...]
    faults: tuple[str, ...] = field(default=())

    @classmethod
    def find(cls, folder: Path) -> ForeignSounds:
        """Raises UserError where the folder is missing or has no sound that can be read."""
        if not folder.is_dir():
            raise UserError(f"--dataset={folder} is no folder")
        paths, faults = [], []
        found = find_sounds([folder])
        with progress_bar("reading sounds", len(found)) as advance:
            for path in found:
                try:
                    load_sound(path, seconds=SECONDS - PAD_SECONDS)
                    paths.append(path)
                except UserError as error:
                    faults.append(str(error))
                advance(1)
        if not paths:
            raise UserError(f"{folder}: none of its {len(found)} sounds can be read ({faults[0]})")
        return cls(folder, tuple(paths), tuple(faults))

    @property
    def digest(self) -> str:
        """The SHA-256 of all names and files, in hexadecimal digits."""
        found = hashlib.sha256()
        for name, path in zip(self.names, self.paths, strict=True):
            found.update(f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
        return found.hexdigest()

    @property
    def names(self) -> list[str]:
        """Paths relative to the folder."""
        return [str(path.relative_to(self.folder)) for path in self.paths]

    def load(self, index: int) -> NDArray[np.float32]:
        """Audio (2, 176400): 50 ms of silence, then the sound's beginning at half its level, mono on both channels."""
        sound = load_sound(self.paths[index], seconds=SECONDS - PAD_SECONDS).audio
        audio = np.zeros((CHANNELS, SAMPLES), np.float32)
        audio[:, round(PAD_SECONDS * SAMPLE_RATE) :] = GAIN * sound
        return audio

    def sample(self, model: TrainedModel) -> NDArray[np.float32]:
        """A sampled row for every sound: (N, W) in [0, 1] columns, not clipped. Noise belongs to the sound's place."""
        count, size = len(self.paths), model.batch_size(len(self.paths))
        rows = []
        with progress_bar("sampling", count) as advance:
            for first in range(0, count, size):
                indices = range(first, min(first + size, count))
                mels = np.stack([mel_spectrogram(self.load(index)) for index in indices])
                noise = [draw_noise(1, model.spec.width, EVAL_NOISE, model.config.seed, index) for index in indices]
                rows.append(model.draw(mels, np.stack(noise), size)[:, 0])
                advance(len(indices))
        return np.concatenate(rows)

    def report_faults(self) -> int:
        """Prints what could not be read; the command's exit code."""
        for fault in self.faults:
            print(f"left out: {fault}", file=sys.stderr)
        return 1 if self.faults else 0
