"""Several draws from the posterior of one sound: which to give, and how much they agree.

Shapes: K candidates, W row width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from data_pipeline.audio_metrics import HIGHER_IS_BETTER
from data_pipeline.param_kinds import Categorical
from data_pipeline.param_spec import ParamSpec

Rows = Float[np.ndarray, "K W"]


def medoid(rows: Rows) -> int:
    """The candidate nearest to all others, by mean squared distance: the best guess where none can be heard.

    Unlike their mean it is a patch that the model holds likely.
    """
    rows = rows.clip(0.0, 1.0)
    # The sum of squared distances to all candidates is least for the one nearest to their mean.
    return int(np.square(rows - rows.mean(axis=0)).sum(axis=1).argmin())


def score(distances: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The weighted sum of audio distances by which candidates are ranked; lower is better.

    A metric of which more is better, from 0 to 1, counts by what it lacks to 1.
    """
    return sum(
        weight * (1.0 - distances[name] if name in HIGHER_IS_BETTER else distances[name])
        for name, weight in weights.items()
    )


def spread(rows: Rows, spec: ParamSpec) -> dict[str, float]:
    """How far the candidates differ in each parameter, for patches as they are decoded.

    For categories the share of candidates outside the most frequent one; for numbers the standard deviation of the
    columns in [0, 1], for the note's times that of start and end, averaged.
    """
    found = {}
    for parameter in spec.parameters:
        columns = rows[:, spec.slices[parameter.name]]
        if isinstance(parameter, Categorical):
            chosen = Counter(parameter.decode(row) for row in columns)
            found[parameter.name] = 1.0 - chosen.most_common(1)[0][1] / len(rows)
        else:
            found[parameter.name] = float(columns.clip(0.0, 1.0).std(axis=0).mean())
    return found
