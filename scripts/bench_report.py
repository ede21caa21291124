"""How every benchmark tells its figures: a line for each row as it is measured, then a table, then JSON.

A row says what was measured in ``name`` and has the same columns as all others of its table, None where one does not
apply. The JSON holds the setting's figures and the rows, under ``rows``.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data_pipeline.cores import usable_cores

Row = dict[str, Any]


class Report:
    """The figures of one run; ``setting`` says what was measured and on what."""

    def __init__(self) -> None:
        self.setting = describe_machine()
        self.rows: list[Row] = []

    def add(self, row: Row) -> None:
        """Takes a row, and tells on stderr that it is measured: whoever waits sees that something happens."""
        self.rows.append(row)
        print(f"measured {row['name']}: {_text(row['median_ms'])} ms", file=sys.stderr, flush=True)

    def tell(self, json_file: str | None, top: int | None = None) -> None:
        """Prints all, of the rows the first ``top``, and writes all where ``json_file`` says."""
        for name, value in self.setting.items():
            print(f"{name:<32} {_text(value)}")
        print(f"\n{table(self.rows[:top])}")
        if json_file:
            text = json.dumps(self.setting | {"rows": self.rows}, indent=2)
            Path(json_file).write_text(text + "\n", encoding="utf-8")


def describe_machine() -> dict[str, Any]:
    """Processor, versions, date, and what else was running: timings on a busy machine are worth less."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": _processor(),
        "cores": usable_cores(),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "jax": version("jax"),
    }


def _processor() -> str:
    """The processor's name where the system tells, and its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return " ".join([*names[:1], platform.machine()])


def table(rows: list[Row]) -> str:
    """Rows below the names of their columns."""
    lines = [[*map(_heading, rows[0])], *([_text(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(_line(line, widths) for line in lines)


def _heading(column: str) -> str:
    return column.replace("percent", "%").replace("_per_second", "/s").replace("_per_", "/").replace("_", " ")


def _line(texts: list[str], widths: list[int]) -> str:
    name, *figures = (
        text.ljust(width) if i == 0 else text.rjust(width)
        for i, (text, width) in enumerate(zip(texts, widths, strict=True))
    )
    return "  ".join([name, *figures])


def _text(value: Any) -> str:
    if value is None:
        return "n/a"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
