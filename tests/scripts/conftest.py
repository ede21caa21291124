"""A copy of the scripts for each test, with programs that only record their arguments."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scripts.launching import Sandbox


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox.create(tmp_path)
