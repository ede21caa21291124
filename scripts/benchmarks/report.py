"""The report of a benchmark: a line on stderr for each measured row, then a table, then a JSON file.

All rows of a table have the same columns: ``name``, ``median_ms`` and others; a value is None where it does not apply.
The JSON file holds the figures of the setting, and the rows under ``rows``.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from absl import flags

from data_pipeline.console import cli, config_flag
from data_pipeline.console.machine import usable_cores

Row = dict[str, Any]


def run(measure: Callable[[Any], Report], default_config: str | None = None) -> None:
    """Runs a benchmark as a command: reads --config and --json, prints what ``measure(config)`` returns."""
    config_flag.define(default=default_config)
    flags.DEFINE_string("json", None, "File to write the figures to, as JSON.")
    cli.run(lambda argv: measure(config_flag.read()).tell(flags.FLAGS.json))


class Report:
    """The figures of one benchmark; ``setting`` holds the machine and what else does not change from row to row."""

    def __init__(self, **setting: Any) -> None:
        self.setting = describe_machine() | setting
        self.rows: list[Row] = []

    def add(self, row: Row) -> None:
        """Adds a row, and prints it to stderr, so that the user sees the progress."""
        self.rows.append(row)
        print(f"measured {row['name']}: {_text(row['median_ms'])} ms", file=sys.stderr, flush=True)

    def tell(self, json_file: str | None) -> None:
        """Prints the setting and the table; writes both to ``json_file`` if one is given."""
        for name, value in self.setting.items():
            print(f"{name:<32} {_text(value)}")
        print(f"\n{table(self.rows)}")
        if json_file:
            text = json.dumps(self.setting | {"rows": self.rows}, indent=2)
            Path(json_file).write_text(text + "\n", encoding="utf-8")


def describe_machine() -> dict[str, Any]:
    """Returns processor, versions, date, and the load at the start: timings on a busy machine are worth less."""
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text(encoding="utf-8").splitlines() if cpu_info.exists() else []
    processors = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": " ".join([*processors[:1], platform.machine()]),
        "cores": usable_cores(),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "jax": version("jax"),
    }


def table(rows: list[Row]) -> str:
    """Returns the rows as text, below the names of their columns."""
    lines = [[*map(_heading, rows[0])], *([*map(_text, row.values())] for row in rows)]
    first, *others = (max(map(len, column)) for column in zip(*lines, strict=True))
    return "\n".join(
        "  ".join([name.ljust(first), *(text.rjust(width) for text, width in zip(texts, others, strict=True))])
        for name, *texts in lines
    )


def _heading(column: str) -> str:
    return column.replace("percent", "%").replace("_per_second", "/s").replace("_per_", "/").replace("_", " ")


def _text(value: Any) -> str:
    if value is None:
        return "n/a"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
