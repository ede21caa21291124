"""Dockerfiles: hadolint, licences, the container's user, and the files that they copy."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.docker.dependencies import requirements
from tests.helpers import REPOSITORY

FILES = sorted((REPOSITORY / "scripts" / "docker").glob("*.Dockerfile"))


def by_name(path: Path) -> str:
    return path.name


def instructions(path: Path) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, without comments and with continued lines joined."""
    text = "\n".join(line for line in path.read_text().splitlines() if not line.startswith("#"))
    lines = re.sub(r"\s*\\\n\s*", " ", text).splitlines()
    return [(name, rest) for line in lines if line for name, _, rest in [line.partition(" ")]]


def test_there_are_two() -> None:
    assert [path.name for path in FILES] == ["render.Dockerfile", "train-gpu.Dockerfile"]


@pytest.mark.parametrize("path", FILES, ids=by_name)
def test_hadolint_finds_nothing(path: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    result = subprocess.run([hadolint, path], cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize("path", FILES, ids=by_name)
def test_base_is_fixed_by_its_digest_and_one_for_both(path: Path) -> None:
    bases = {rest.split(" AS ")[0] for name, rest in instructions(path) if name == "FROM"}
    assert len(bases) == 1
    assert re.fullmatch(r"python:3\.12\.\d+-slim-bookworm@sha256:[0-9a-f]{64}", *bases)
    others = {rest.split(" AS ")[0] for file in FILES for name, rest in instructions(file) if name == "FROM"}
    assert others == bases


@pytest.mark.parametrize("path", FILES, ids=by_name)
def test_container_is_not_roots(path: Path) -> None:
    users = [rest for name, rest in instructions(path) if name == "USER"]
    assert users == ["42420:42420"]  # As OVHcloud runs it.
    assert [name for name, _ in instructions(path)][-2:] == ["USER", "CMD"]


@pytest.mark.parametrize("path", FILES, ids=by_name)
def test_what_is_copied_is_there_and_let_through(path: Path) -> None:
    allowed = [line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for name, rest in instructions(path):
        if name == "COPY" and not rest.startswith("--from="):
            for source in rest.split()[:-1]:
                assert (REPOSITORY / source).exists(), source
                assert source.split("/")[0] in allowed, source


def test_nothing_private_is_let_through() -> None:
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert lines[1] == "*"
    assert not {"!.env", "!data", "!runs", "!plugins", "!.git"} & set(lines)


def test_rendering_image_says_what_is_gpl() -> None:
    path = REPOSITORY / "scripts" / "docker" / "render.Dockerfile"
    labels = " ".join(rest for name, rest in instructions(path) if name == "LABEL")
    comments = " ".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    for text in (labels, comments):
        for words in ("Surge XT", "pedalboard", "GPL"):
            assert words in text
    assert any("install_surge_xt.sh" in rest for name, rest in instructions(path) if name == "RUN")


def test_no_secret_is_built_in() -> None:
    for path in FILES:
        assert not re.search(r"(?i)\b(ARG|ENV)\b.*(KEY|SECRET|TOKEN|PASSWORD)", path.read_text())


def test_dependencies_are_those_of_the_project() -> None:
    pyproject = REPOSITORY / "pyproject.toml"
    every = requirements(pyproject, ["s3"], [])
    assert any(line.startswith("jax>=") for line in every)
    assert any(line.startswith("boto3") for line in every)
    without = requirements(pyproject, [], ["jax", "flax"])
    assert not [line for line in without if line.startswith(("jax>", "flax>"))]
    assert any(line.startswith("jaxtyping") for line in without)


def test_training_image_takes_jax_for_cuda_from_the_requirements() -> None:
    lines = (REPOSITORY / "requirements-gpu.txt").read_text().splitlines()
    assert [line for line in lines if line.startswith("jax")] == [line for line in lines if "cuda13" in line]
