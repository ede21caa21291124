"""Several candidates for one sound: their medoid, and how far they differ.

Shapes: K candidates, W row width.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from jaxtyping import Float

from data_pipeline.params.kinds import Categorical
from data_pipeline.params.spec import ParamSpec

Rows = Float[np.ndarray, "K W"]


def medoid(rows: Rows) -> int:
    """The index of the candidate nearest to all others, by mean squared distance; used where nothing is rendered.

    Unlike the mean of the candidates, it is a patch that the model holds likely.
    """
    rows = rows.clip(0.0, 1.0)
    # The candidate nearest to the mean has the least sum of squared distances.
    return int(np.square(rows - rows.mean(axis=0)).sum(axis=1).argmin())


def spread(rows: Rows, spec: ParamSpec) -> dict[str, float]:
    """How far the candidates differ in each parameter, once they are decoded.

    Of a category: the share of candidates that do not have the most frequent one. Of a number: the standard deviation
    of its column in [0, 1]. Of the note's times: the mean of the standard deviations of start and end.
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
