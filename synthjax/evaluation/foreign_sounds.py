"""Sounds from elsewhere (NSynth, FSD50K, ...), prepared for a model that was trained on a synthesizer."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.audio.contract import CHANNELS, SAMPLE_RATE, SAMPLES, SECONDS
from data_pipeline.audio.mel import mel_spectrogram
from data_pipeline.audio.sound_files import load_sound
from data_pipeline.console.cli import UserError, printable
from data_pipeline.console.progress import progress_bar
from synthjax.inference.sound_paths import find_sounds
from synthjax.methods.examples import EVAL_NOISE, HostBatch, draw_noise
from synthjax.runs.model import Model

# As in the paper's experiments on other data sets: silence before the sound, and half its level.
PAD_SECONDS = 0.05
GAIN = 0.5


@dataclass(frozen=True)
class ForeignSounds:
    """The readable sounds of a folder, and a message for everything else that may be or hold a sound."""

    folder: Path
    paths: tuple[Path, ...]
    faults: tuple[str, ...] = field(default=())

    @classmethod
    def find(cls, folder: Path) -> ForeignSounds:
        """The sounds of a folder. Raises UserError if the folder is missing or has no sound that can be read."""
        if not folder.is_dir():
            raise UserError(f"--dataset={folder} is no folder")
        paths: list[Path] = []
        faults: list[str] = []
        found = find_sounds([folder], faults.append)
        with progress_bar("reading sounds", len(found)) as advance:
            for path in found:
                try:
                    load_sound(path, seconds=SECONDS - PAD_SECONDS)
                    paths.append(path)
                except UserError as error:
                    faults.append(str(error))
                advance(1)
        if not paths:
            raise UserError(f"{folder}: none of its {len(found)} sounds can be read ({faults[-1]})")
        return cls(folder, tuple(paths), tuple(faults))

    @property
    def digest(self) -> str:
        """The SHA-256 of all names and files, as hexadecimal digits."""
        found = hashlib.sha256()
        for path in self.paths:
            found.update(bytes(path.relative_to(self.folder)) + b"\0" + hashlib.sha256(path.read_bytes()).digest())
        return found.hexdigest()

    @property
    def names(self) -> list[str]:
        """The paths, relative to the folder."""
        return [printable(path.relative_to(self.folder)) for path in self.paths]

    def load(self, index: int) -> NDArray[np.float32]:
        """Audio (2, 176400): 50 ms of silence, then the sound's beginning at half its level, mono on both channels."""
        sound = load_sound(self.paths[index], seconds=SECONDS - PAD_SECONDS).audio
        audio = np.zeros((CHANNELS, SAMPLES), np.float32)
        audio[:, round(PAD_SECONDS * SAMPLE_RATE) :] = GAIN * sound
        return audio

    def sample(self, model: Model) -> NDArray[np.float32]:
        """A sampled row for every sound: (N, W) in [0, 1] columns, not clipped. Noise depends on the sound's index."""
        count = len(self.paths)

        def batch(indices: NDArray[np.integer]) -> HostBatch:
            noise = [draw_noise(1, model.spec.width, EVAL_NOISE, model.config.seed, index) for index in indices]
            mels = [mel_spectrogram(self.load(index)) for index in indices]
            return {"mel_spec": np.stack(mels), "x0": np.concatenate(noise)}

        with progress_bar("sampling", count) as advance:
            batches = map(batch, model.batch_indices(count, model.batch_size(count)))
            return model.sample(batches, count, advance)

    def report_faults(self) -> int:
        """Prints how much of the folder is left out, and why; returns the command's exit code."""
        if self.faults:
            print(f"{len(self.faults)} left out of {self.folder}, {len(self.paths)} measured", file=sys.stderr)
        for fault in self.faults:
            print(f"left out: {fault}", file=sys.stderr)
        return 1 if self.faults else 0
