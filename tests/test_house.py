"""The house's rule: folders import downwards only, no module imports a command, a folder holds at most 16 files."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import REPOSITORY

# In each package a folder imports only from folders that stand after it, and from itself.
ORDER = {
    "synthjax": (
        *(
            "web",
            "report",
            "evaluation",
            "adaptation",
            "inference",
            "reference",
            "training",
            "tasks",
            "retrieval",
            "runs",
        ),
        *("methods", "models", "k_osc", "cluster", "metrics"),
    ),
    "data_pipeline": ("render", "cloud", "shards", "synths", "params", "audio", "console"),
}
# Packages that a package may import from besides itself.
OTHERS = {"synthjax": {"data_pipeline"}, "data_pipeline": set(), "configs": {"data_pipeline", "synthjax"}}
NO_JAX = ("jax", "jaxlib", "flax", "optax", "orbax", "grain")
MOST_FILES = 16


def modules(root: Path) -> dict[str, Path]:
    """Files by module name, packages by their own name."""
    files = [file for package in OTHERS for file in sorted((root / package).rglob("*.py"))]
    return {".".join(f.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): f for f in files}


def imports(module: str, file: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules that a file imports, at any depth of its code, relative imports among them.

    A name that a package's ``__init__`` has from a module below counts as an import of the package: the ``__init__``
    stands in the package's own folder, and its imports are read like any other's.
    """
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *base.split(".")] if base else above)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if full in known else base


def room(module: str) -> str:
    """``synthjax.models`` of ``synthjax.models.kernels.attention``; a module on the top level is its own room."""
    return ".".join(module.split(".")[:2])


def is_command(file: Path) -> bool:
    return '__name__ == "__main__"' in file.read_text(encoding="utf-8")


def top_level(root: Path) -> list[Path]:
    """The files on the top level of the two packages."""
    return [file for package in ORDER for file in sorted((root / package).glob("*.py")) if file.name != "__init__.py"]


def faults(root: Path) -> list[str]:
    """What breaks the rule, a line each."""
    known = modules(root)
    commands = {".".join(file.relative_to(root).with_suffix("").parts) for file in top_level(root)}
    found = [f"{file.relative_to(root)} is no command: it belongs in a folder" for file in top_level(root)
             if not is_command(file)]  # fmt: skip
    for module, file in known.items():
        for imported in imports(module, file, known):
            if reason := _fault(module, imported, commands):
                found.append(f"{module} imports {imported}: {reason}")
    folders = {file.parent for file in known.values() if file.relative_to(root).parts[0] in ORDER}
    for folder in sorted(folders):
        count = len([file for file in folder.iterdir() if file.suffix == ".py" and file.name != "__init__.py"])
        if count > MOST_FILES:
            found.append(f"{folder.relative_to(root)} holds {count} files")
    return found


def _fault(module: str, imported: str, commands: set[str]) -> str:
    package, other = module.split(".")[0], imported.split(".")[0]
    if package == "data_pipeline" and other in NO_JAX:
        return "data_pipeline knows nothing of JAX"
    if other not in OTHERS:
        return ""
    if imported in commands:
        return "it is a command"
    if other != package:
        return "" if other in OTHERS[package] else f"{package} may not import {other}"
    mine, theirs = room(module), room(imported)
    if package not in ORDER or module in commands or mine == theirs or theirs == package:
        return ""
    order = [f"{package}.{folder}" for folder in ORDER[package]]
    unknown = [name for name in (mine, theirs) if name not in order]
    if unknown:
        return f"{unknown[0]} has no place in the order"
    return "" if order.index(mine) < order.index(theirs) else "it stands above"


def test_the_house_keeps_its_rule() -> None:
    assert faults(REPOSITORY) == []


@pytest.mark.parametrize(
    ("file", "text", "fault"),
    [
        ("synthjax/models/new.py", "from synthjax.training import trainer", "it stands above"),
        ("synthjax/models/new.py", "def f():\n    import synthjax.training.trainer", "it stands above"),
        ("synthjax/models/new.py", "from ..training import state", "it stands above"),
        ("synthjax/models/__init__.py", "from synthjax.runs.model import Model", "it stands above"),
        ("synthjax/models/new.py", "from synthjax.train import train", "it is a command"),
        ("synthjax/models/new.py", "from ..train import train", "it is a command"),
        ("synthjax/train.py", "from data_pipeline.stats import main", "it is a command"),
        ("data_pipeline/audio/new.py", "from data_pipeline.shards import reader", "it stands above"),
        ("data_pipeline/audio/new.py", "import jax.numpy", "knows nothing of JAX"),
        ("data_pipeline/audio/new.py", "from synthjax.models import layers", "may not import synthjax"),
        ("synthjax/attic/new.py", "from synthjax.models import layers", "has no place in the order"),
        ("synthjax/helpers.py", "", "is no command"),
    ],
)
def test_what_breaks_the_rule_is_found(tmp_path: Path, file: str, text: str, fault: str) -> None:
    for name in ("synthjax/train.py", "data_pipeline/stats.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('if __name__ == "__main__":\n    pass\n')
    for name in ("training/state", "models/layers", "runs/model", "models/__init__"):
        (tmp_path / f"synthjax/{name}.py").parent.mkdir(exist_ok=True)
        (tmp_path / f"synthjax/{name}.py").touch()
    (tmp_path / "data_pipeline/shards").mkdir()
    (tmp_path / "data_pipeline/shards/reader.py").touch()
    assert faults(tmp_path) == []
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as f:
        f.write(text)
    assert any(fault in found for found in faults(tmp_path)), faults(tmp_path)


def test_a_crowded_folder_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "synthjax" / "models"
    folder.mkdir(parents=True)
    for number in range(MOST_FILES + 1):
        (folder / f"layer_{number}.py").touch()
    assert faults(tmp_path) == ["synthjax/models holds 17 files"]
