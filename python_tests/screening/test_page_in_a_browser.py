# SPDX-License-Identifier: Apache-2.0
"""The page of a run, used as a person would: in a browser, by mouse, keyboard and finger."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_runs import HOSTILE, made_row, write_made_pictures, write_run

from scrd_fast.calibration import Calibration
from scrd_fast.cli import main

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (extra [dev])")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on PATH")

Page = Any  # of playwright, which may not be there
MANY = 10_000
RANDOM = np.random.default_rng(7)
SCORES = RANDOM.normal(30, 9, MANY)
NORMALS = Calibration.fit(RANDOM.normal(28, 6, 300), "mean")
LINES = "#list [role=option]"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    """Opens the page of a run. Nothing it does may reach for a network, or end in an error on the console."""
    contexts, problems = [], []

    def visit(out: Path, **options: Any) -> Page:
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        contexts.append(context)
        context.on("request", lambda r: r.url.startswith(("file:", "data:")) or problems.append(r.url))
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto((out / "report.html").as_uri())
        page.wait_for_selector("html[data-ready]")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten thousand rows, the last of which failed, with pictures, studies of ten and labels."""
    rows = [
        made_row(
            i, f"site/{i // 10}/{i}.dcm", float(s), percentile=float(NORMALS.percentile(s)), study=f"study{i // 10}"
        )
        for i, s in enumerate(SCORES[:-1])
    ]
    rows.append(made_row(MANY - 1, "site/lost.dcm", None))
    out = write_run(tmp_path_factory.mktemp("many") / "out", rows, NORMALS)
    order = np.argsort(-SCORES[:-1])
    write_made_pictures(out, [rows[i]["sample_id"] for i in order[:500]], 20)
    labels = out.parent / "labels.csv"
    labels.write_text("\n".join(["path,label", *(f"site/{i // 10}/{i}.dcm,{i % 2}" for i in range(1000)), ""]))
    assert main(["report", str(out), "-q", "--labels", str(labels)]) == 0
    return out


def names(page: Page) -> list[str]:
    """Of the lines that are there, by their place."""
    lines = page.locator(LINES).evaluate_all("x => x.map(e => [+e.dataset.position, e.querySelector('b').textContent])")
    return [name for _, name in sorted(lines)]


def number(page: Page, place: str) -> int:
    return int(page.inner_text(place).replace(",", ""))


def focused(page: Page) -> str:
    return str(page.evaluate("document.activeElement.id"))


def test_the_most_suspicious_comes_first_and_orders_can_be_chosen(visit: Any, many: Path) -> None:
    page, order = visit(many), np.argsort(-SCORES[:-1])
    assert names(page)[:5] == [f"{i}.dcm" for i in order[:5]]
    page.click("[data-sort=score]")
    assert names(page)[:5] == [f"{i}.dcm" for i in order[::-1][:5]]
    page.click("[data-sort=name]")
    assert names(page)[:3] == ["0.dcm", "1.dcm", "2.dcm"]
    page.click("[data-sort=name]")
    assert names(page)[:2] == ["lost.dcm", "9998.dcm"]
    assert page.get_attribute("[data-sort=name]", "aria-pressed") == "true"


def test_ten_thousand_rows_are_few_elements_and_all_are_reached(visit: Any, many: Path) -> None:
    page = visit(many)
    assert page.inner_text("#shown") == "10,000 pictures"
    for _ in range(3):
        assert page.locator(LINES).count() < 40
        assert page.evaluate("document.querySelectorAll('*').length") < 1200
        page.locator("#list").evaluate("e => e.scrollTop += 200000")
        page.wait_for_function("document.querySelector('#list [role=option]').dataset.position > 2000")
    page.locator("#list").evaluate("e => e.scrollTop = e.scrollHeight")
    line = page.locator(LINES, has_text="lost.dcm")
    line.wait_for()
    assert line.get_attribute("aria-posinset") == line.get_attribute("aria-setsize") == "10000"
    line.click()
    assert "no such file" in page.inner_text("#detail")


def test_the_threshold_moves_counts_decisions_and_the_roc_point(visit: Any, many: Path) -> None:
    page, scores = visit(many), SCORES[:-1]
    assert number(page, "#count-abnormal") == (scores > NORMALS.threshold).sum()

    def check() -> float:
        threshold = float(page.input_value("#value"))
        assert number(page, "#count-abnormal") == (scores > threshold).sum()
        assert number(page, "#count-normal") == (scores <= threshold).sum()
        above = (np.array(NORMALS.scores) > threshold).sum()
        assert f"{above} of 300 calibration normals are above" in page.inner_text("#alarms")
        assert float(page.inner_text("#rate").removesuffix(" %")) == pytest.approx(above / 3, rel=0.06)
        positive, negative = scores[1:1000:2], scores[0:1000:2]
        found = page.inner_text("#point").replace("≈", "").split()
        told = [float(word) for word in found if word.replace(".", "").isdigit()]
        assert told == pytest.approx(
            [100 * (positive > threshold).mean(), 100 * (negative <= threshold).mean()], rel=0.06
        )
        return threshold

    assert check() == NORMALS.threshold
    for place in ("100", "2000", "1500"):
        page.fill("#slider", place)
        check()
    before = check()
    page.focus("#slider")
    page.keyboard.press("ArrowRight")
    after = check()
    assert before < after < before + 0.1
    page.fill("#value", "41.5")
    assert check() == 41.5
    assert "scrd-fast report DIR --threshold 41.5" in page.inner_text("#command")
    page.select_option("#by-decision", "abnormal")
    assert page.inner_text("#shown").startswith(f"{(scores > 41.5).sum():,} of ")
    page.fill("#value", "45")
    assert page.inner_text("#shown").startswith(f"{(scores > 45).sum():,} of ")
    page.click("#reset")
    assert check() == NORMALS.threshold


def test_search_and_filters_narrow_the_list(visit: Any, many: Path) -> None:
    page = visit(many)
    page.fill("#search", "SITE/77/ 7.dcm")
    assert names(page) == ["777.dcm"]
    page.fill("#search", "study12")
    expected = {f"{i}.dcm" for i in range(MANY - 1) if f"study{i // 10}".startswith("study12")}
    assert page.inner_text("#shown") == f"{len(expected)} of 10,000 pictures"
    assert set(names(page)) <= expected
    page.fill("#search", "no such thing")
    assert names(page) == []
    assert page.is_visible("text=Nothing fits these filters.")
    page.click("#clear")
    page.select_option("#by-status", "failed")
    assert names(page) == ["lost.dcm"]


def test_a_study_filters_the_worklist(visit: Any, many: Path) -> None:
    page = visit(many)
    first = int(np.argmax(SCORES[:-1])) // 10
    page.click("#tab-studies")
    page.locator("#studies [role=option]").first.click()
    assert page.is_visible("#panel-worklist")
    assert set(names(page)) == {f"{i}.dcm" for i in range(10 * first, 10 * first + 10) if i < MANY - 1}
    page.click("#by-group")
    assert page.inner_text("#shown") == "10,000 pictures"


def test_the_keyboard_alone_is_enough(visit: Any, many: Path) -> None:
    page, order = visit(many), np.argsort(-SCORES[:-1])
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
    assert reached[:2] == ["Go to the worklist", "help-button"]
    assert [x for x in reached if x in ("slider", "value", "tab-worklist", "search", "by-decision", "list")] == [
        "slider", "value", "tab-worklist", "search", "by-decision",
    ]  # fmt: skip
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"  # the focus is seen
    page.keyboard.press("t")
    assert focused(page) == "slider"
    page.keyboard.press("/")
    assert focused(page) == "search"
    page.keyboard.type(".dcm")
    page.keyboard.press("Enter")
    assert focused(page) == "list"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    chosen = page.locator(f"#{page.get_attribute('#list', 'aria-activedescendant')}")
    assert chosen.get_attribute("aria-selected") == "true"
    assert f"{order[1]}.dcm" in chosen.inner_text()
    assert f"{order[1]}.dcm" in page.inner_text("#detail h2")
    page.keyboard.press("Enter")
    assert focused(page) == "detail"
    page.keyboard.press("Escape")
    assert focused(page) == "list"
    page.keyboard.press("End")
    assert page.inner_text("#detail h2") == "lost.dcm"
    page.keyboard.press("Home")
    page.keyboard.press("PageDown")
    assert 3 < int(page.locator(f"{LINES}[aria-selected=true]").get_attribute("aria-posinset")) < 30
    page.keyboard.press("?")
    assert page.is_visible("#help")
    page.keyboard.press("Escape")
    assert not page.is_visible("#help")
    page.focus("#tab-worklist")
    page.keyboard.press("ArrowRight")
    assert focused(page) == "tab-studies"
    assert page.is_visible("#panel-studies")


def test_the_slider_sets_the_opacity_of_the_heat_map(visit: Any, many: Path) -> None:
    page = visit(many)

    def opacity() -> float:
        return float(page.evaluate("getComputedStyle(document.getElementById('heat')).opacity"))

    assert opacity() == pytest.approx(0.6)
    page.fill("#opacity", "30")
    assert opacity() == pytest.approx(0.3)
    page.locator("#list").focus()
    page.keyboard.press("ArrowDown")
    assert opacity() == pytest.approx(0.3)  # of the next picture too
    page.keyboard.press("o")
    assert opacity() == 0
    page.check("#show-heat")
    assert opacity() == pytest.approx(0.3)
    sizes = page.locator("#view img").evaluate_all("x => x.map(e => [e.naturalWidth, e.clientWidth, e.clientHeight])")
    assert all(natural > 0 for natural, *_ in sizes)
    assert sizes[0][1:] == sizes[1][1:]
    assert sizes[0][1] / sizes[0][2] == pytest.approx(70 / 64, rel=0.02)
    place = page.evaluate("(s => [s.top, s.left].map(parseFloat))(document.getElementById('peak').style)")
    row = int(np.argsort(-SCORES[:-1])[1])
    assert place == pytest.approx([100 * (20.5 + row % 30) / 64, 100 * (10.5 + row % 40) / 70], rel=1e-4)


def test_on_a_phone_nothing_is_wider_than_the_screen(visit: Any, many: Path) -> None:
    page = visit(many, viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)

    def fits() -> bool:
        return bool(page.evaluate("document.documentElement.scrollWidth <= 360 && visualViewport.scale === 1"))

    assert fits()
    page.locator("#threshold > summary").tap()
    assert page.is_visible("#slider")
    assert fits()
    for tab in ("studies", "errors", "run", "worklist"):
        page.locator(f"#tab-{tab}").tap()
        assert fits()
    assert not page.is_visible("#detail")
    page.locator(LINES).nth(1).tap()
    assert page.is_visible("#detail")
    assert page.locator("#detail").bounding_box()["width"] == 360
    assert page.evaluate("(e => e.scrollWidth <= e.clientWidth)(document.getElementById('detail'))")
    first = page.inner_text("#detail h2")
    assert page.evaluate("document.getElementById('search').closest('[inert]') !== null")
    page.get_by_label("The next picture").tap()
    assert page.inner_text("#detail h2") != first
    page.keyboard.press("Enter")  # the button keeps the focus
    assert page.inner_text("#detail h2") != first
    page.get_by_label("Back to the list").tap()
    assert not page.is_visible("#detail")


def test_names_that_would_run_are_shown_as_they_are(visit: Any, tmp_path: Path) -> None:
    rows = [made_row(i, name, float(9 - i), flags=[name], study=name) for i, name in enumerate(HOSTILE)]
    rows += [made_row(50 + i, f"lost/{name}", None, error=f"code: {name}") for i, name in enumerate(HOSTILE)]
    out = write_run(tmp_path / "out", rows, NORMALS)
    (out / "drift.json").write_text(json.dumps({"alarm": True, "reasons": HOSTILE}))
    assert main(["report", str(out), "-q"]) == 0
    for options in ({}, {"viewport": {"width": 390, "height": 800}, "is_mobile": True, "has_touch": True}):
        page = visit(out, **options)
        page.focus("#list")
        for _ in rows:
            page.keyboard.press("ArrowDown")
        for tab in ("studies", "errors", "run", "worklist"):
            page.click(f"#tab-{tab}")
        assert page.evaluate("window.hacked") is None
        assert page.evaluate("document.scripts.length") == 2  # pictures are gone
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.fill("#search", "window.hacked='img'")
    assert "<img src=x onerror=\"window.hacked='img'\">.png" in names(page)
    page.fill("#search", "right")
    assert names(page)[0] == "right\\u202egnp.exe"


def notices(page: Page) -> str:
    return str(page.inner_text("#notices"))


def test_what_must_be_known_first_is_on_top(visit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = [made_row(i, f"{i}.png", float(i)) for i in range(30)]
    flagged = [row | {"flags": ["foreign-calibration"]} for row in plain]
    quiet = write_run(tmp_path / "quiet", plain, NORMALS)
    (quiet / "drift.json").write_text('{"alarm": false, "reasons": ["small"]}')
    loud = write_run(tmp_path / "loud", flagged, NORMALS, finished=False)
    (loud / "drift.json").write_text('{"alarm": true, "reasons": ["scores are higher"]}')
    bare = write_run(tmp_path / "bare", plain)
    for out in (quiet, loud, bare):
        assert main(["report", str(out), "-q"]) == 0
    page = visit(quiet)
    assert notices(page) == ""
    assert page.is_visible("text=Research use, not for diagnosis")
    page = visit(loud)
    for text in ("The run is not finished", "Foreign calibration", "of 30 pictures", "Drift", "scores are higher"):
        assert text in notices(page)
    page = visit(bare)
    assert "No calibration" in notices(page)
    assert "no threshold" in page.inner_text("#counts")
    page.fill("#value", "20")
    assert (number(page, "#count-abnormal"), number(page, "#count-normal")) == (9, 21)
    for name in ("page_data.ROWS", "page_scores.EXACT"):
        monkeypatch.setattr(f"scrd_fast.screening.{name}", 10)
    assert main(["report", str(quiet), "-q"]) == 0
    page = visit(quiet)
    assert "The 10 with the highest scores of 30 are" in notices(page)
    for typed, above in (("24.3", "5"), ("19.99999", "≈ 9"), ("3.25", "26"), ("-5", "30"), ("99", "0")):
        page.fill("#value", typed)
        assert page.inner_text("#count-abnormal") == above
    page.fill("#slider", "0")
    assert number(page, "#count-abnormal") == sum(i > float(page.input_value("#value")) for i in range(30))


def test_printed_it_has_the_first_lines_and_the_picture(visit: Any, many: Path) -> None:
    page = visit(many)
    page.locator("#list").evaluate("e => e.scrollTop = 2500")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert not page.is_visible("#filters")
    assert page.is_visible("#detail")
    lines = page.locator(LINES).evaluate_all("x => x.map(e => +e.dataset.position)")
    assert lines == list(range(50))
    page.emulate_media(media="screen")
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator(LINES).count() < 40
