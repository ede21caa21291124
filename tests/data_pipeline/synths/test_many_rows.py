"""Synthesizers of equal renders: shards are the same for any number of workers, killed and resumed or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import REPOSITORY, run_cli, started, wait_until

RENDER = "data_pipeline.render_shards"


@pytest.mark.slow
@pytest.mark.parametrize(("synth", "rows"), [("dexed", 1000), ("vital", 64)])
def test_a_killed_run_of_two_workers_ends_with_the_bytes_of_one_worker(synth: str, rows: int, tmp_path: Path) -> None:
    options = [f"--config={REPOSITORY}/configs/render_{synth}.py", "--shards=0", f"--samples_per_shard={rows}"]
    killed = [*options, "--workers=2", f"--output={tmp_path / 'killed'}"]
    log = tmp_path / "killed" / "shard-0.h5.partial"
    with started(["-m", RENDER, *killed], tmp_path / "stderr.txt") as process:
        wait_until(lambda: log.exists() and log.stat().st_size > rows // 4 * 10_000, process)
    assert not (tmp_path / "killed" / "shard-0.h5").exists()
    for arguments in (killed, [*options, "--workers=1", f"--output={tmp_path / 'one'}"]):
        result = run_cli(RENDER, *arguments)
        assert result.returncode == 0, result.stderr
    assert (tmp_path / "killed" / "shard-0.h5").read_bytes() == (tmp_path / "one" / "shard-0.h5").read_bytes()
