"""The report in a real browser, and several benchmarks on one page."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dino_tower.cli import main
from dino_tower.eval.report import write_report
from dino_tower.eval.results import read_results

SETTLED = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
MAPS = """[...document.querySelectorAll('.sight canvas')].map(c => {
  const pixels = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
  return pixels.reduce((sum, value, i) => sum + value * (1 + i % 7), 0); })"""


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_stands_alone_at_desktop_and_phone_width(
    width: int, bench: Path, browser: Any, tmp_path: Path
) -> None:
    """No request leaves it, no script fails, nothing is wider than the window; every picture has arrived."""
    page = bench / "out" / "report.html"
    browser.requests.clear()
    browser.errors.clear()
    browser.open(page, width, 900)
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("[...document.images].every(i => i.complete && i.naturalWidth)")
    shot = tmp_path / "shot.png"
    browser.screenshot(shot)
    assert shot.stat().st_size > 20_000
    assert browser.errors == []
    assert set(browser.requests) == {page.resolve().as_uri()}
    assert not re.findall(r"(?:src|href)=[\"'](?!data:|#)", page.read_text(encoding="utf-8"))


def test_every_score_of_the_results_is_on_the_page(bench: Path, browser: Any) -> None:
    """The layers' tables, read as a person reads them, hold the values of results.json."""
    browser.open(bench / "out" / "report.html")
    results = read_results(bench / "out")
    for layer in ("last", "best"):
        browser.run(f"document.querySelector('[name=layer][value={layer}]').click()")
        cells = "tbody:not([hidden]) tr.headline td:nth-child(2) .value"
        read = f"[...document.querySelectorAll('{cells}')].map(c => c.innerText)"
        rows = [row for row in results["scores"] if row["role"] == "tower" and row["layer"] == layer]
        headlines = [row for row in rows if row["metric"] == results["tasks"][row["task"]]["headline"]]
        assert browser.run(read) == [f"{100 * row['score']['value']:.1f}" for row in headlines]
    assert browser.run("getComputedStyle(document.querySelector('tr.more')).display") == "none"
    browser.run("document.getElementById('all').click()")
    assert browser.run("getComputedStyle(document.querySelector('tr.more')).display") == "table-row"


def test_one_patch_is_picked_and_every_tower_answers(bench: Path, browser: Any) -> None:
    browser.open(bench / "out" / "report.html")
    browser.run("document.querySelector('.similarity').scrollIntoView()")
    before = browser.run(MAPS)
    assert len(before) == 2 and before[0] != before[1]  # the tower and its untrained twin
    x, y, w, h = browser.run(
        "(() => {const b = document.querySelector('.sight').getBoundingClientRect();"
        "return [b.x, b.y, b.width, b.height]})()"
    )
    browser.point(x + 0.1 * w, y + 0.9 * h, "click")
    browser.run(SETTLED)
    picked = browser.run(MAPS)
    assert all(a != b for a, b in zip(before, picked, strict=True))
    crosses = browser.run("[...document.querySelectorAll('.sight .cross')].map(c => [c.style.left, c.style.top])")
    assert crosses[0] == crosses[1]  # the same place in both
    assert [float(one.rstrip("%")) for one in crosses[0]] == pytest.approx([100 * 0.5 / 6, 100 * 5.5 / 6], abs=0.01)
    browser.run("document.querySelectorAll('.pick')[1].click()")
    browser.run(SETTLED)
    assert all(a != b for a, b in zip(picked, browser.run(MAPS), strict=True))


def test_towers_of_the_explorer_stand_as_in_the_table(bench: Path) -> None:
    """They stood in the order of their files' names, which are hashes: no tower beside its twin."""
    page = (bench / "out" / "report.html").read_text(encoding="utf-8")
    explorers = re.findall(r'<div class="views">.*?</div></div>', page, re.S)
    assert explorers
    for one in explorers:
        shown = re.findall(r'aria-label="([^"]+); the arrow keys', one)
        meant = [row["name"] for row in read_results(bench / "out")["towers"] if row["role"] != "raw"]
        places = [
            meant.index(f"random:{name.removesuffix(', untrained')}" if "untrained" in name else name) for name in shown
        ]
        assert len(shown) > 1 and places == sorted(places)


def test_arrow_keys_move_the_patch(bench: Path, browser: Any) -> None:
    browser.open(bench / "out" / "report.html")
    place = "parseFloat(document.querySelector('.sight .cross').style.left)"
    browser.run("document.querySelector('.sight').focus()")
    before = browser.run(place)
    for kind in ("keyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key="ArrowRight", code="ArrowRight", windowsVirtualKeyCode=39)
    browser.run(SETTLED)
    assert browser.run(place) == pytest.approx(before + 100 / 6, abs=0.1)


def test_the_gallery_begins_with_the_worst_unit(bench: Path, browser: Any) -> None:
    browser.open(bench / "out" / "report.html")
    browser.run("document.querySelector('details.gallery').open = true")
    lines = "[...document.querySelectorAll('details.gallery tbody tr')]"
    values = browser.run(f"{lines}.map(r => parseFloat(r.querySelector('small').innerText))")
    assert len(values) == 8 and values == sorted(values)


def test_several_benchmarks_of_the_same_pictures_make_one_page(
    bench: Path, bench_command: Callable[..., list[str]], tmp_path: Path, browser: Any
) -> None:
    """The second benchmark's tower is compared with the first one's reference, as if they had run together."""
    words = bench_command(tmp_path, "--layers", "last", "--floors", "none", towers=("random:vitt16",))
    assert main([*words, "--cache", str(bench / "cache")]) == 0
    before = (bench / "out" / "results.json").read_text()
    page = write_report([bench / "out", tmp_path / "out"], tmp_path / "both.html")
    assert (bench / "out" / "results.json").read_text() == before
    browser.open(page)
    assert browser.run("document.querySelector('h1').innerText") == "2 towers side by side"
