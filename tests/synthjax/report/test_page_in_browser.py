"""The page as a person meets it, in a real browser, opened from disk.

``open_report`` fails every test whose page raises an error, warns on the console, or asks for anything off the disk.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.synthjax.report.conftest import MANY, TIMEOUT, Opener

PLAYING = "[...document.querySelectorAll('audio')].map((audio) => !audio.paused)"
# Words of the parameters that begin on one line and end on another.
BROKEN_WORDS = """() => {
    const broken = [];
    for (const cell of document.querySelectorAll('.groups th, .groups td')) {
        const text = cell.firstChild;
        if (text?.nodeType !== Node.TEXT_NODE) continue;
        for (const {0: word, index} of text.data.matchAll(/\\S+/g)) {
            const range = document.createRange();
            range.setStart(text, index);
            range.setEnd(text, index + word.length);
            if (range.getClientRects().length > 1) broken.push(word);
        }
    }
    return broken;
}"""
TIMES = "[...document.querySelectorAll('audio')].map((audio) => audio.currentTime)"


def names(page: Page) -> list[str]:
    """The names in the list of sounds, top to bottom."""
    return page.locator("#sound-rows td.name").all_inner_texts()


def selected(page: Page) -> str:
    return page.locator("#details h2").inner_text()


def far_off(page: Page) -> list[str]:
    return page.locator(".parameters tr.far:visible td.value:nth-of-type(1)").all_inner_texts()


def test_the_page_shows_what_the_report_says(open_report: Opener, few: Path) -> None:
    page = open_report(few)
    assert page.title() == page.locator("h1").inner_text() == "A <b>report</b>"
    assert page.locator("#about").inner_text().split("\n") == ["Model", "flow <20k>", "Seed", "0"]
    cells = page.locator("#summary-table tr").nth(1).locator("th, td").all_inner_texts()
    assert [cell.strip() for cell in cells[1:]] == ["3.18", "3.11 to 3.25", "2.90", "0.61", "0.50", "1,000"]
    assert "lower is better" in cells[0]
    assert "higher is better" in page.locator("#summary-table tr").nth(2).inner_text()
    assert page.locator("#summary-table tr").nth(2).locator("td").nth(3).inner_text() == "\N{EN DASH}"
    assert "compares two renders of the true patch" in page.locator("#summary-explanation").inner_text()
    expect(page.locator("#count")).to_have_text("6 sounds")


def test_names_are_text(open_report: Opener, few: Path) -> None:
    page = open_report(few)
    assert names(page)[0] == selected(page) == "<script>alert(1)</script>.wav"
    page.keyboard.press("j")
    expect(page.locator(".notes")).to_have_text("mono: <i>one</i> channel")


def test_target_and_candidates_have_aligned_spectrograms(open_report: Opener, few: Path) -> None:
    page = open_report(few)
    assert page.locator(".clip-label").all_inner_texts() == ["Target", "Prediction"]
    page.wait_for_function("[...document.images].every((image) => image.complete && image.naturalWidth === 401)")
    boxes = [box for image in page.locator(".plot img").all() if (box := image.bounding_box())]
    assert len(boxes) == 2
    assert boxes[0]["x"] == boxes[1]["x"]
    assert boxes[0]["width"] == boxes[1]["width"] > 500
    assert page.locator(".time-axis").first.inner_text().split() == ["0", "s", "1", "2", "3", "4"]


def test_parameters_show_what_is_far_off(open_report: Opener, few: Path) -> None:
    page = open_report(few)
    assert page.locator(".groups th.group").all_inner_texts() == ["Oscillator 1", "Filter"]
    assert page.locator(".parameters .count").inner_text() == "2 of 4 far off"
    assert far_off(page) == ["saw", "40.0"]
    page.get_by_label("Show only these").check()
    assert page.locator(".parameters tbody tr:visible").count() == 2


def test_a_sound_without_render_or_audio_shows_what_there_is(open_report: Opener, few: Path) -> None:
    page = open_report(few)
    page.get_by_role("button", name="no render.wav").click()
    assert page.locator(".clip-label").all_inner_texts() == ["Target"]
    assert "6.0 dB softer" in page.locator(".notes").inner_text()
    assert page.locator(".groups table").count() == 2
    page.get_by_role("button", name="no audio.wav").click()
    assert page.locator(".clip, .parameters, .scale-legend").count() == 0


@pytest.mark.parametrize("report", ["few", "many"])
def test_players_play_one_at_a_time(open_report: Opener, report: str, request: pytest.FixtureRequest) -> None:
    page = open_report(request.getfixturevalue(report))
    assert page.evaluate("[...document.querySelectorAll('audio')].every((audio) => audio.preload === 'none')")
    page.evaluate("document.addEventListener('playing', () => (window.heard = true), true)")
    page.get_by_role("button", name="Play Target").click()
    page.wait_for_function("window.heard")
    if report == "many":  # Its sounds last 10 ms, and may be back at their beginning.
        return
    page.get_by_role("button", name="Play Prediction").click()
    page.wait_for_function(f"{TIMES}[1] > 0.1")
    assert page.evaluate(PLAYING) == [False, True]
    playhead, times = page.evaluate(f"[document.querySelector('.clips').style.getPropertyValue('--playhead'), {TIMES}]")
    assert float(playhead) == pytest.approx(times[1] / 4.0, abs=0.1)
    page.get_by_role("button", name="Pause Prediction").click()
    assert page.evaluate(PLAYING) == [False, False]


def test_a_click_on_a_spectrogram_plays_from_there(open_report: Opener, few: Path) -> None:
    page = open_report(few)
    # Noted as they pass: on a machine that stalls the sound may be at its end when it is next looked at.
    page.evaluate(
        """window.heard = []; document.addEventListener(
            'timeupdate', (event) => window.heard.push(event.target.currentTime), true)"""
    )
    box = page.locator(".plot").nth(1).bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_function("Math.max(...window.heard) > Math.min(...window.heard)")
    assert page.evaluate("Math.min(...window.heard)") > 1.9


def test_the_keyboard_plays_and_walks(open_report: Opener, few: Path) -> None:
    page = open_report(few)
    first = selected(page)
    page.keyboard.press("t")
    assert page.evaluate(PLAYING) == [True, False]
    page.keyboard.press("1")
    assert page.evaluate(PLAYING) == [False, True]
    page.keyboard.press(" ")
    assert page.evaluate(PLAYING) == [False, False]
    page.keyboard.press(" ")
    assert page.evaluate(PLAYING) == [False, True]
    page.keyboard.press("9")  # There is no such candidate.
    assert page.evaluate(PLAYING) == [False, True]
    for forth, back in (("j", "k"), ("ArrowDown", "ArrowUp"), ("ArrowRight", "ArrowLeft")):
        page.keyboard.press(forth)
        assert selected(page) == "sound 10.wav"
        page.keyboard.press(back)
        assert selected(page) == first
    page.keyboard.press("k")  # There is none before the first.
    assert selected(page) == first
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("j")
    assert selected(page) == first
    page.keyboard.press("Escape")
    expect(page.locator("#help")).not_to_be_visible()


def test_space_after_a_click_on_a_sound_plays_it(open_report: Opener, few: Path) -> None:
    page = open_report(few)
    page.get_by_role("button", name="no render.wav").click()
    page.keyboard.press(" ")
    assert page.evaluate(PLAYING) == [True]


def test_every_column_sorts_both_ways_with_missing_numbers_last(open_report: Opener, few: Path) -> None:
    page = open_report(few)
    script, ten, no_render, nine, unicode, no_audio = names(page)
    by_name = [script, no_audio, no_render, nine, ten, unicode]
    no_mss, no_rms = [no_render, no_audio], [no_render, unicode, no_audio]
    clicks = [
        ("Name", "ascending", by_name),
        ("Name", "descending", by_name[::-1]),
        ("MSS", "ascending", [ten, unicode, script, nine, *no_mss]),
        ("MSS", "descending", [nine, script, ten, unicode, *no_mss]),
        ("RMS", "descending", [nine, script, ten, *no_rms]),
        ("RMS", "ascending", [ten, script, nine, *no_rms]),
    ]
    for label, direction, order in clicks:
        head = page.locator("#sound-head th", has_text=label)
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == direction
        assert names(page) == order
        assert page.locator("#sound-head th:not([aria-sort=none])").count() == 1


def test_the_filter_finds_names(open_report: Opener, few: Path) -> None:
    page = open_report(few)
    page.keyboard.press("/")
    page.keyboard.type("SOUND 1")
    assert names(page) == ["sound 10.wav"]
    expect(page.locator("#count")).to_have_text("1 of 6 sounds")
    page.locator("#filter").fill("nowhere")
    assert names(page) == []
    expect(page.locator("#list")).to_contain_text("No name contains this")


def test_a_long_list_keeps_few_rows_in_the_page(open_report: Opener, many: Path) -> None:
    page = open_report(many)
    assert len(names(page)) < MANY / 2
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.locator("#list").evaluate("(list) => list.scrollTo(0, list.scrollHeight)")
    expect(page.get_by_role("button", name=f"row {MANY - 1:03}")).to_be_in_viewport()
    assert len(names(page)) < MANY / 2


def test_a_long_list_sorts_whole(open_report: Opener, many: Path) -> None:
    page = open_report(many)
    page.get_by_role("button", name="MSS").click(click_count=2)
    assert page.locator("#sound-rows td.number").first.inner_text() == f"{(MANY - 1) / 10:.2f}"
    page.get_by_role("button", name="Name").click(click_count=2)
    assert names(page)[0] == f"row {MANY - 1:03}"


def test_walking_keeps_the_selected_row_in_sight(open_report: Opener, many: Path) -> None:
    page = open_report(many)
    page.get_by_role("button", name="Name").click(click_count=2)
    page.keyboard.press("j")
    assert selected(page) == "row 000"  # Selected before, now the last: there is none beyond.
    page.keyboard.press("k")
    expect(page.locator("#details h2")).to_have_text("row 001")
    expect(page.get_by_role("button", name="row 001")).to_be_in_viewport()


def test_a_page_without_its_folder_says_so(browser: Browser, many: Path, tmp_path: Path) -> None:
    page = browser.new_page()  # Without the watch over errors: browsers write a missing file on the console.
    page.set_default_timeout(TIMEOUT)
    page.goto(Path(shutil.copy(many, tmp_path)).as_uri())
    message = page.locator("#details .message")
    expect(message).to_contain_text("my 100% report_files/00000/sound.js is missing")
    page.close()


def test_light_and_dark(open_report: Opener, few: Path) -> None:
    colours = {}
    for scheme in ("light", "dark"):
        page = open_report(few, color_scheme=scheme)
        style = "(({backgroundColor, color}) => [backgroundColor, color])(getComputedStyle(document.body))"
        background, text = (
            sum(map(int, colour.removeprefix("rgb(").rstrip(")").split(","))) for colour in page.evaluate(style)
        )
        colours[scheme] = background > text
    assert colours == {"light": True, "dark": False}


@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("report", ["few", "full"])
def test_no_width_makes_the_page_scroll_sideways(
    open_report: Opener, report: str, width: int, request: pytest.FixtureRequest
) -> None:
    page = open_report(request.getfixturevalue(report), viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [400, 768, 1300])
def test_no_width_breaks_a_parameters_words(open_report: Opener, full: Path, width: int) -> None:
    page = open_report(full, viewport={"width": width, "height": 800})
    assert "Asymmetric" in page.locator(".groups").inner_text()
    assert page.evaluate(BROKEN_WORDS) == []


def test_every_control_has_a_name(open_report: Opener, few: Path) -> None:
    page = open_report(few)
    page.keyboard.press("?")
    unnamed = """[...document.querySelectorAll('button, input, img')].filter((control) =>
        !(control.getAttribute('aria-label') || control.alt || control.innerText || control.labels?.length))
        .map((control) => control.outerHTML.slice(0, 100))"""
    assert page.evaluate(unnamed) == []
