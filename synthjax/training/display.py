"""The progress of a training run on stderr: a bar on a terminal, a line for each logged step elsewhere."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import TextColumn

from data_pipeline.console.progress import ROWS, make_bar


class TrainingDisplay:
    """Step, loss, samples/s and time left. Shows nothing if ``enabled`` is False, as on all processes but one."""

    def __init__(self, start: int, steps: int, *, enabled: bool) -> None:
        self._console = Console(file=sys.stderr, quiet=not enabled, highlight=False, markup=False, soft_wrap=True)
        self._steps = steps
        figures = (TextColumn("loss {task.fields[loss]}"), TextColumn("{task.fields[rate]} samples/s"))
        self._bar = make_bar(*ROWS, *figures, console=self._console)
        self._task = self._bar.add_task("training", total=steps, completed=start, loss="-", rate="-")

    def __enter__(self) -> TrainingDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def start_bar(self) -> None:
        """Shows the bar. Call it when no other bar is shown any more."""
        self._bar.start()

    def step(self, step: int) -> None:
        """Moves the bar."""
        self._bar.update(self._task, completed=step)

    def logged(self, step: int, loss: float, samples_per_second: float) -> None:
        """Shows the figures of a logged step."""
        rate = f"{samples_per_second:.1f}"
        self._bar.update(self._task, loss=f"{loss:.4f}", rate=rate)
        if self._bar.disable:
            self._console.print(f"step {step}/{self._steps}  loss {loss:.4f}  {rate} samples/s")

    def say(self, message: str) -> None:
        """Prints a line above the bar."""
        self._console.print(message)
