"""One headless browser for all tests that look at reports, and two reports to look at."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from data_pipeline.params.spec import load_spec
from synthjax.report import Clip, ParameterRow, SoundEntry
from synthjax.report.entries import parameter_rows
from tests.synthjax.report.sounds import PARAMETERS, entry, rendered, tone, write_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# Browsers refuse their sandbox to root; sounds play without a click, and silently.
ARGUMENTS = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required", "--mute-audio"]
# Sounds of four seconds last a minute: what a test does to a sound that plays, it does before the end.
SLOWLY = """{
    const play = HTMLMediaElement.prototype.play;
    HTMLMediaElement.prototype.play = function () {
        this.defaultPlaybackRate = this.playbackRate = 0.0625;
        return play.call(this);
    };
}"""
# However slow the machine.
TIMEOUT = 90_000
MANY = 120


class Opener(Protocol):
    """Opens a report in a fresh browser context of these options."""

    def __call__(self, path: Path, **options: Any) -> Page: ...


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Of one module, since Playwright's event loop runs for as long: other tests have loops of their own."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("needs Chromium or Chrome")
    expect.set_options(timeout=TIMEOUT)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS, timeout=2 * TIMEOUT)
        yield browser
        browser.close()


@pytest.fixture
def open_report(browser: Browser) -> Iterator[Opener]:
    """Whatever a test does with the page: no error may occur and nothing but files be asked for."""
    with watched(browser) as opener:
        yield opener


@contextmanager
def watched(browser: Browser) -> Iterator[Opener]:
    troubles: list[str] = []
    contexts = []

    def opener(path: Path, **options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(TIMEOUT)
        page.add_init_script(SLOWLY)
        page.on("console", lambda message: troubles.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: (troubles.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        context.on("request", lambda request: note_request(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector("#details .details-header")
        return page

    def note_request(url: str) -> None:
        if not url.startswith(("file:", "data:")):
            troubles.append(f"network request: {url[:100]}")

    yield opener
    for context in contexts:
        context.close()
    assert troubles == []


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file: names of all sorts, a sound that was not rendered, one without audio, missing and equal metrics."""
    entries = [
        rendered("<script>alert(1)</script>.wav", 0),
        replace(entry("sound 10.wav", mss=2.0, rms=0.5), notes=["mono: <i>one</i> channel"]),
        SoundEntry("no render.wav", Clip("Target", tone(level=2.0)), (), PARAMETERS),
        entry("sound 9.wav", mss=10.0, rms=0.9),
        entry("Ünïcode & \u2028 'quotes' \udcff.wav", mss=2.0, rms=float("nan")),
        SoundEntry("no audio.wav", Clip("Target")),
    ]
    return write_report(tmp_path_factory.mktemp("few") / "report.html", entries)


@pytest.fixture(scope="session")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One sound with all parameters of Surge XT, the longest word among them, and with what another plugin may show."""
    spec = load_spec("surge_xt")
    patches = spec.sample(0, range(64), [0] * 64)
    shown = (parameter_rows(spec, patch, true=true) for patch, true in pairwise(patches))
    rows = next(rows for rows in shown if any(row.predicted_text == "Asymmetric" for row in rows))
    rows.append(ParameterRow("Another plugin", "Mode", "W" * 60, None))
    sound = replace(entry("sound.wav"), parameters=rows)
    return write_report(tmp_path_factory.mktemp("full") / "report.html", [sound])


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page and a folder; sound k has k-th place in no order but that of its name."""
    scores = np.random.default_rng(0).permutation(MANY) / 10.0
    entries = [entry(f"row {k:03}", mss=score, samples=441, candidates=1) for k, score in enumerate(scores)]
    return write_report(tmp_path_factory.mktemp("many") / "my 100% report.html", entries)
