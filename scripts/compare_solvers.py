"""Compares solvers, steps or tolerances, and guidance: python scripts/compare_solvers.py --workdir=DIR [--sounds=128]

Samples a patch for the first sounds of the test split with each combination, from the same noise. Prints the parameter
error of the rows, the mean spectral distance (MSS) of their renders, and the seconds to sample one sound by itself. The
time goes into evaluations of the field: 1, 2 and 4 a step for euler, heun and rk4; 6 for dopri5, which takes as many
steps as the tolerance needs; twice as many with guidance, within the run's guidance interval.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from data_pipeline.audio.metrics import mss
from data_pipeline.console import cli
from data_pipeline.console.progress import progress_bar
from data_pipeline.shards.reader import AUDIO, MEL_SPEC, PARAM_ARRAY
from synthjax.cluster import jax_settings
from synthjax.inference import renderer_flags
from synthjax.methods.examples import EVAL_NOISE, draw_noise
from synthjax.runs.model import Model
from synthjax.runs.workdir import Workdir
from synthjax.tasks.batches import open_split

FLAGS = flags.FLAGS
# The setting that decides the accuracy of each solver, and the values to try.
SOLVERS: dict[str, tuple[str, tuple[float, ...]]] = {
    "euler": ("steps", (5, 10, 20, 50)),
    "heun": ("steps", (5, 10, 20, 50)),
    "rk4": ("steps", (5, 10, 25, 100)),
    "dopri5": ("tolerance", (1e-2, 1e-3, 1e-4, 1e-5)),
}
REPEATS = 3


def main(argv: list[str]) -> None:
    """The command."""
    jax_settings.apply()
    workdir = Workdir(FLAGS.workdir)
    combinations = [
        (solver, name, value, float(guidance))
        for guidance in FLAGS.guidances
        for solver, (name, values) in SOLVERS.items()
        for value in values
    ]
    results = []
    print(f"{'solver':<8}{'accuracy':>18}{'guidance':>10}{'MSE':>10}{'MSS':>10}{'s/sound':>10}")
    with renderer_flags.start_renderer(workdir.read_spec()) as renderer:
        for solver, name, value, guidance in combinations:
            settings: dict[str, Any] = {"solver": solver, name: value, "guidance": guidance}
            result = settings | measure(Model.load(workdir, **settings), renderer)
            results.append(result)
            print(
                f"{solver:<8}{f'{name} {value:g}':>18}{guidance:>10.1f}{result['mse']:>10.4f}{result['mss']:>10.3f}"
                f"{result['seconds_per_sound']:>10.3f}",
                flush=True,
            )
    if FLAGS.json:
        Path(FLAGS.json).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def measure(model: Model, renderer: Any) -> dict[str, float]:
    """Parameter error, sound distance, and the median time to sample one sound by itself once compiled."""
    reader = open_split(FLAGS.data_root or model.config.data.root, "test", model.spec, flag="--data_root")
    count = min(FLAGS.sounds, len(reader))
    mels, true = (reader.read_rows(name, np.arange(count)) for name in (MEL_SPEC, PARAM_ARRAY))
    noise = np.stack([draw_noise(1, model.spec.width, EVAL_NOISE, model.config.seed, i) for i in range(count)])
    rows = model.draw(mels, noise)[:, 0].clip(0.0, 1.0)
    distances = []
    with progress_bar("rendering", count) as advance:
        for patch in renderer.render(enumerate(rows)):
            distances.append(mss(reader.read(AUDIO, patch.key), patch.audio))
            advance(1)
    model.draw(mels[:1], noise[:1])
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        model.draw(mels[:1], noise[:1])
        times.append(time.perf_counter() - start)
    return {
        "mse": float(np.square(rows - true).mean()),
        "mss": float(np.mean(distances)),
        "seconds_per_sound": statistics.median(times),
    }


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a training run.", required=True)
    flags.DEFINE_string("data_root", None, "Folder of the data set; default: where the run was trained from.")
    flags.DEFINE_integer("sounds", 128, "Sounds of the test split to compare on.", lower_bound=1)
    flags.DEFINE_list("guidances", ["1", "1.5", "2"], "Guidance strengths to try.")
    flags.DEFINE_string("json", None, "Also write the figures here.")
    renderer_flags.define()
    cli.run(main)
