"""The processes of one machine. That they share memory is tested in the tests of multihost training."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from synthjax.cluster import host_processes
from synthjax.cluster.host_processes import HostProcesses


def test_one_process_is_alone() -> None:
    here = HostProcesses()
    assert (here.rank, here.count, here.exchange(7)) == (0, 1, [7])


@pytest.mark.parametrize(("index", "members"), [(0, [0, 3]), (1, [1, 2, 4]), (4, [1, 2, 4]), (5, [5])])
def test_processes_of_the_same_place_are_found(monkeypatch: pytest.MonkeyPatch, index: int, members: list[int]) -> None:
    places = np.array([[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 3, 5], [1, 2, 3, 4], [1, 2, 3, 5], [2, 2, 3, 5]], np.int32)
    monkeypatch.setattr(jax, "process_index", lambda: index)
    monkeypatch.setattr(host_processes, "_from_all", lambda words: places)
    here = HostProcesses()
    assert (here.rank, here.count) == (members.index(index), len(members))
    monkeypatch.setattr(host_processes, "_from_all", lambda words: np.arange(10, 16, dtype=np.int32)[:, None])
    assert here.exchange(10 + index) == [10 + member for member in members]


def test_places_differ_by_machine_container_and_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    places = [host_processes._place()]
    (tmp_path / "boot").write_text("another\n")
    (tmp_path / "namespace").symlink_to("it:[1]")
    named = tmp_path / "namespace"
    for name, value in (("BOOT", tmp_path / "boot"), ("PROCESSES", named), ("USERS", named)):
        monkeypatch.setattr(host_processes, name, value)
        places.append(host_processes._place())
    monkeypatch.setattr("os.getuid", lambda: 12_345)
    places.append(host_processes._place())
    assert len({place.tobytes() for place in places}) == 5
    assert all(place.dtype == np.int32 for place in places)
    np.testing.assert_array_equal(host_processes._place(), places[-1])


@pytest.mark.parametrize(("name", "value"), [("BOOT", Path("/nowhere")), ("CAN_SHARE", False)])
def test_where_nothing_can_be_shared_every_process_is_by_itself(
    monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    monkeypatch.setattr(host_processes, name, value)
    places = []
    for index in range(2):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        places.append(host_processes._place().tobytes())
    assert places[0] != places[1]
