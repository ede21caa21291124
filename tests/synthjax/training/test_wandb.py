"""The real Weights & Biases package, offline and with servers that fail."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import ml_collections
import numpy as np
import pytest

from synthjax.runs.workdir import Workdir
from synthjax.training.writers import Writers
from tests.helpers import REPOSITORY


@pytest.mark.slow
def test_an_offline_run_is_kept_in_the_workdir_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB__SERVICE_WAIT", "300")  # Seconds for its service to start.
    config = ml_collections.ConfigDict({"seed": 0, "wandb": True})
    for start in (0, 1):
        writers = Writers.open(Workdir(tmp_path), config, start)
        writers.scalars(start + 1, {"loss": 0.5})
        writers.image(start + 1, "picture", np.zeros((4, 4, 3), np.uint8))
        writers.audio(start + 1, "sound", np.zeros((2, 441), np.float32), 44100)
        writers.close()
    runs = sorted((tmp_path / "wandb").glob("offline-run-*"))
    identity = (tmp_path / "wandb_id").read_text(encoding="utf-8")
    assert runs
    assert all(f"-{identity}" in run.name for run in runs)  # Runs of one second are numbered behind it.


START = """
import sys
from pathlib import Path
from synthjax.training import writers
writers.ANSWER_SECONDS = float(sys.argv[2])
writer = writers.WeightsAndBiases(Path(sys.argv[1]), {}, 0)
writer.scalars(1, {"loss": 0.5})
writer.close()
"""


@contextmanager
def loopback_server(status: int) -> Iterator[str]:
    """The URL of a server that gives every request this status, or no answer if it is 0."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if status == 0:
                over.wait()
            self.send_response(status or 500)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_POST

    over = threading.Event()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        over.set()
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "environment", "told"),
    [
        (0, {}, "does not answer: for runs without network set WANDB_MODE=offline, and use wandb sync afterwards"),
        (503, {}, "has an error: for runs without network set WANDB_MODE=offline"),
        (0, {"WANDB_BASE_URL": "http://127.0.0.1:9"}, "http://127.0.0.1:9 does not answer"),
        (0, {"WANDB_MODE": "offline"}, ""),
        # wandb itself has asked the server, here a proxy that alone knows the name.
        (404, {"WANDB_BASE_URL": "http://nowhere.invalid"}, "returned error 404"),
    ],
)
def test_a_server_of_weights_and_biases_that_is_silent_stops_no_run(
    tmp_path: Path, status: int, environment: dict[str, str], told: str
) -> None:
    """wandb alone would try for hours."""
    pytest.importorskip("wandb")
    # wandb writes the address of this process's service into the environment: another process must not use it.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    own = {"WANDB_API_KEY": "0" * 40, "WANDB__SERVICE_WAIT": "300", "WANDB_ERROR_REPORTING": "false"}
    with loopback_server(status) as url:
        own |= {"WANDB_BASE_URL": url, "HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
        if status == 404:
            own["http_proxy"] = url
        command = [sys.executable, "-c", START, tmp_path, "100" if status == 404 else "1"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=100, env=inherited | own | environment)
    assert result.returncode == 0, result.stderr
    warnings = [line for line in result.stderr.splitlines() if line.startswith("warning: Weights & Biases stops")]
    assert len(warnings) == bool(told), result.stderr
    assert told in "".join(warnings)
