"""What a person sees of a run: a progress bar on a terminal, a line a logged step elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class TrainingDisplay:
    """Step, loss, samples/s and time left on stderr; silent where ``enabled`` is False (all hosts but one)."""

    def __init__(self, start: int, steps: int, *, enabled: bool) -> None:
        self._console = Console(file=sys.stderr, quiet=not enabled, highlight=False, markup=False, soft_wrap=True)
        self._steps = steps
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[rate]} samples/s"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (enabled and self._console.is_terminal),
        )
        self._task = self._progress.add_task("", total=steps, completed=start, loss="-", rate="-")

    def __enter__(self) -> TrainingDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def start_bar(self) -> None:
        """Shows the bar, once no other is shown."""
        self._progress.start()

    def step(self, step: int) -> None:
        """Moves the bar."""
        self._progress.update(self._task, completed=step)

    def logged(self, step: int, loss: float, samples_per_second: float) -> None:
        """Shows the figures of a logged step."""
        rate = f"{samples_per_second:.1f}"
        self._progress.update(self._task, loss=f"{loss:.4f}", rate=rate)
        if self._progress.disable:
            self._console.print(f"step {step}/{self._steps}  loss {loss:.4f}  {rate} samples/s")

    def say(self, message: str) -> None:
        """One line above the bar."""
        self._console.print(message)
