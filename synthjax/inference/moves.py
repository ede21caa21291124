"""Moves from a patch to one like it: the children of a search.

A child is a copy of a member with one move: a few values are changed, a module such as an operator is taken from
another member or candidate, or the note is moved.

Shapes: K candidates, W row width. Rows may have further columns beyond W: a child has those of its parent.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline.params.groups import Panel
from data_pipeline.params.kinds import Categorical, Discrete, NoteDuration, Parameter
from data_pipeline.params.mixture import Modules
from data_pipeline.params.spec import ParamSpec

# The probabilities of the moves; the rest move the note.
VALUE, MODULE = 0.6, 0.33
# After each changed value a further one is changed with this probability; there are at most MOST_VALUES.
FURTHER, MOST_VALUES = 0.4, 6
# A value that was not heard is chosen this many times as often as others.
QUIET = 0.02
# A value is drawn anew with this probability, else it moves by up to a step, as a part of its range.
ANEW = 0.4
STEP = 0.1
# A module comes from another place, such as operator 5 in the place of operator 3, with this probability.
OTHER_PLACE = 0.25
# The note's pitch moves by one of these numbers of semitones, its times by up to this part of the whole time.
SEMITONES = (-12, -1, 1, 12)
TIME_STEP = 0.02

Rows = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Child:
    """A child's row (W,), its parent's place, and the numbers of the values and of the module that were changed."""

    row: Rows
    parent: int
    values: NDArray[np.int64]
    module: int | None = None


class Moves:
    """Draws children of members. Candidates (K, W) give modules, even those that no longer are members."""

    def __init__(self, spec: ParamSpec, panel: Panel, candidates: Rows, seed: int, locked: Collection[str]) -> None:
        self._rng = np.random.default_rng(seed)
        self._spec, self._candidates = spec, candidates
        self._modules = Modules.of(spec, panel)
        self._free = np.array([one.name not in locked for one in spec.synth_params])
        self._free_notes = [one for one in spec.note_params if one.name not in locked]
        self._free_columns = np.concatenate([np.full(one.width, one.name not in locked) for one in spec.synth_params])
        self._module_of = np.array([self._modules.of_column[spec.slices[one.name].start] for one in spec.synth_params])
        self.values = len(spec.synth_params)

    @property
    def random_state(self) -> str:
        """The state of the random numbers, as JSON."""
        return json.dumps(self._rng.bit_generator.state)

    @random_state.setter
    def random_state(self, state: str) -> None:
        self._rng.bit_generator.state = json.loads(state)

    def child(self, members: Rows, quiet: NDArray[np.bool_]) -> Child:
        """A child. Better members have more children."""
        rng = self._rng
        parent = int(len(members) * rng.random() ** 2)
        row = members[parent].copy()
        move = rng.random()
        if not self._free_notes:
            move *= VALUE + MODULE
        elif not self._free.any():
            move = 1.0
        if move < VALUE:
            weights = np.where(quiet[parent], QUIET, 1.0) * self._free
            count = min(int(rng.geometric(1.0 - FURTHER)), MOST_VALUES, int(self._free.sum()))
            values = rng.choice(self.values, count, replace=False, p=weights / weights.sum())
            changed = [self._changed(row, members[parent], self._spec.synth_params[value]) for value in values]
            return Child(row, parent, values[np.array(changed)])
        nothing = np.zeros(0, np.int64)
        if move < VALUE + MODULE:
            donors = members if rng.random() < 0.5 else self._candidates
            module = int(rng.integers(len(self._modules.fitting)))
            self._exchange(row, donors[rng.integers(len(donors))], module)
            return Child(row, parent, nothing, module)
        self._change(row, self._free_notes[rng.integers(len(self._free_notes))])
        return Child(row, parent, nothing)

    def affected(self, child: Child) -> NDArray[np.bool_]:
        """The values that a heard change may have made audible: those of the same module."""
        if child.module is not None:
            return self._module_of == child.module
        if len(child.values) == 1:
            return self._module_of == self._module_of[child.values[0]]
        return np.zeros(self.values, bool)

    def _changed(self, row: Rows, before: Rows, parameter: Parameter) -> bool:
        """Changes a value, and says whether it differs: a step at the end of a range may not move it."""
        self._change(row, parameter)
        columns = self._spec.slices[parameter.name]
        return bool((row[columns] != before[columns]).any())

    def _change(self, row: Rows, parameter: Parameter) -> None:
        rng, columns = self._rng, row[self._spec.slices[parameter.name]]
        match parameter:
            case Categorical():
                other = (columns.argmax() + rng.integers(1, max(2, len(columns)))) % len(columns)
                columns[:] = np.eye(len(columns))[other]
            case NoteDuration():
                columns += rng.uniform(-TIME_STEP, TIME_STEP, len(columns))
            case Discrete() if parameter in self._spec.note_params:
                columns += rng.choice(SEMITONES) / (parameter.max - parameter.min)
            case _ if rng.random() < ANEW:
                columns[:] = parameter.sample(rng.random((1, parameter.draws)))[0]
            case Discrete():
                span = parameter.max - parameter.min
                largest = max(1, round(STEP * span))
                step = rng.integers(1, largest + 1) * rng.choice((-1, 1))
                columns[:] = (np.rint(columns * span) + step) / span
            case _:
                columns += rng.uniform(-STEP, STEP)
        np.clip(columns, 0.0, 1.0, out=columns)

    def _exchange(self, row: Rows, donor: Rows, module: int) -> None:
        """Takes a module from a donor."""
        rng, modules = self._rng, self._modules
        choice = rng.integers(modules.fitting[module]) if rng.random() < OTHER_PLACE else 0
        own = np.flatnonzero((modules.of_column == module) & self._free_columns)
        row[own] = donor[modules.sources[choice, own]]
