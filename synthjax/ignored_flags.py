"""Flags that have no effect on the run at hand: refused, for who gives one takes it for effective."""

from __future__ import annotations

from collections.abc import Iterator

import ml_collections
from absl import flags

from data_pipeline.cli import UserError
from synthjax.solvers import DOPRI5

SAMPLER = ("solver", "steps", "tolerance", "guidance", "guidance_interval")
RENDERER = ("plugin", "preset", "report_sounds")  # But not --workers, which says what the machine can do.


def refuse_ignored(config: ml_collections.ConfigDict) -> None:
    """Raises UserError for the first flag on the command line that changes nothing.

    Args:
      config: a run's, with what the flags change of its ``sampling``.
    """
    for names, reason in (*_of_sampler(config), *_of_data(config.data.source == "k_osc")):
        for name in filter(_given, names):
            raise UserError(f"{flags.FLAGS[name].serialize()} would be ignored: {reason}")


def _given(name: str) -> bool:
    """Whether a command that has the flag is told something by it; --norender asks for nothing."""
    if name not in flags.FLAGS:
        return False
    flag = flags.FLAGS[name]
    return flag.present > 0 and flag.value not in (None, "") and flag.value is not False


def _of_sampler(config: ml_collections.ConfigDict) -> Iterator[tuple[tuple[str, ...], str]]:
    kind, sampling = config.model.kind, config.sampling
    if kind != "flow":
        yield SAMPLER, f"a model of kind {kind} answers without a sampler"
        return
    if sampling.solver == DOPRI5:
        yield ("steps",), f"{DOPRI5} chooses its own, by --tolerance"
    else:
        yield ("tolerance",), f"{sampling.solver} takes as many steps as --steps says; use --solver={DOPRI5}"
    if sampling.guidance == 1.0:
        yield ("guidance_interval",), "guidance 1 is none; say how much with --guidance"


def _of_data(k_osc: bool) -> Iterator[tuple[tuple[str, ...], str]]:
    f = flags.FLAGS
    if k_osc:
        unused = ("dataset", "data_root", "allow_external", "render", *RENDERER)
        yield unused, "the run is one of the k-osc task, which has no data set and no synthesizer"
        return
    yield ("rows",), "a split is measured whole; only of the k-osc task --rows are drawn"
    if "dataset" in f and f.dataset:
        yield ("split", "data_root", "allow_external"), "--dataset is measured instead of a split"
    if not f.render:
        yield RENDERER, "nothing is rendered without --render"
