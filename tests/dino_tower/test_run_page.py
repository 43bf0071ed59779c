"""The page of a run: it says how the run is, shows what it has, and works in a real browser without the network."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dino_tower.errors import ConfigError
from dino_tower.run.log import read_run
from dino_tower.run.page import verdict, write_run_page

STEPS, LOOKS, IMAGES = 400, (100, 200, 300, 400), 3
FLOOR = {"5": 0.152, "10": 0.158, "20": 0.161}
ALARM = {"kind": "alarm", "step": 250, "name": "collapse-to-one-prototype", "message": "one prototype. Raise <x>"}


def log_rows(upto: int = STEPS) -> list[dict[str, Any]]:
    """The log of a healthy run as the training loop writes it."""
    rows: list[dict[str, Any]] = [
        {"kind": "start", "step": 0, "time": 1000.0, "version": "0.1.0", "world": 2, "steps": STEPS, "resolved": {}}
    ]
    for step in range(10, upto + 1, 10):
        p = step / STEPS
        rows.append({
            "kind": "step", "step": step, "time": 1000.0 + step, "epoch": 8 * p, "loss": 8 - 4 * p,
            "lr": 5e-4 * (1 - p), "wd": 0.04 + 0.36 * p, "momentum": 0.996 + 0.004 * p, "teacher_temp": 0.04,
            "entropy": 7 - 3 * p, "kl": 1.0, "centre_norm": 3.0, "prototypes_used": 100 + 50 * p, "grad_norm": 1.0,
            "images_per_s": 400.0, "data_wait": 0.02,
        })  # fmt: skip
        if step in LOOKS:
            rows.append({
                "kind": "monitor", "step": step, "rankme": 20 + 30 * p, "random_knn": FLOOR, "pictures": [],
                "knn": {k: floor + 0.4 * p for k, floor in FLOOR.items()}, "time": 1000.0 + step,
            })  # fmt: skip
    return [*rows, {"kind": "end", "step": upto, "time": 1001.0 + upto}] if upto == STEPS else rows


def make_run(folder: Path, rows: list[dict[str, Any]], tail: str = "", pictures: bool = True) -> Path:
    run = folder / "birds"
    run.mkdir()
    (run / "config.yaml").write_text(
        "data: [photos/birds]\npreset: dino_vits16\narch: vits16\nseed: 0\nhead: {prototypes: 4096, gains: null}\n"
    )
    (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    for image in range(IMAGES if pictures else 0):
        paint(run / "pictures" / f"input-{image}.png", (40 * image, 120, 90))
        for step in LOOKS:
            paint(run / "pictures" / f"step-{step}" / f"attention-{image}.png", (step // 2, 40 * image, 0))
            paint(run / "pictures" / f"step-{step}" / f"pca-{image}.png", (0, step // 2, 40 * image))
    return run


def paint(path: Path, colour: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), colour).save(path)


def titles(page: str) -> list[str]:
    return re.findall(r"<h3>([^<]*)</h3><div class=\"keys\"", page)


def test_a_healthy_run_says_so_with_its_numbers(tmp_path: Path) -> None:
    run = make_run(tmp_path, log_rows())
    path = write_run_page(run)
    page = path.read_text()
    assert path == run / "report.html"
    assert verdict(read_run(run)) == ("good", "Healthy")
    for text in ("birds</h1>", "Healthy", "photos/birds", "preset <b>dino_vits16", "2 processes", "55.2 %",
                 "random init 15.2 %", "random init 15.2 to 16.1 %", f"ln K {math.log(4096):.2f}", "8 epochs",
                 "1 January 1970, 00:16 UTC", "prototypes</span><code>4096", "gains</span><code>none"):  # fmt: skip
        assert text in page, text
    assert titles(page) == [
        "k-NN accuracy", "Loss", "Teacher entropy", "KL, teacher to student", "RankMe", "Prototypes in use",
        "Centre norm", "Gradient norm", "Learning rate", "Weight decay", "Teacher momentum", "Teacher temperature",
        "Images per second", "Waiting for data",
    ]  # fmt: skip
    assert 'id="alarms"' not in page


def test_an_alarm_is_the_verdict_and_names_its_remedy(tmp_path: Path) -> None:
    run = make_run(tmp_path, [*log_rows(), ALARM, {**ALARM, "step": 350}])
    page = write_run_page(run).read_text()
    assert verdict(read_run(run)) == ("bad", "Alarm: Collapse to one prototype")
    assert "One prototype. Raise &lt;x&gt;." in page
    assert "2 times, from step 250 to 350" in page
    assert page.count('class="mark alarm" x1="625.0"') == 8  # learning and health, not the schedules


def test_a_run_no_better_than_untrained_is_not_called_healthy(tmp_path: Path) -> None:
    rows = log_rows()
    for row in rows:
        row.update({"knn": {"5": 0.15}} if "knn" in row else {})
    assert verdict(read_run(make_run(tmp_path, rows))) == ("wait", "Not above random init")


def test_an_interrupted_run_has_a_page(tmp_path: Path) -> None:
    run = make_run(tmp_path, log_rows(upto=250), tail='{"kind":"step","step":260,"lo')
    (run / "pictures" / "step-200" / "pca-0.png").write_bytes(b"\x89PNG\r\n\x1a\n half a pict")
    (run / "skipped.jsonl").write_text('{"id": "photos/birds/<1>.jpg", "reason": "truncated"}\n{"id": "photos/b')
    page = write_run_page(run).read_text()
    for text in ("Healthy so far", "Steps of 400", "62 % done", "1 unreadable line(s)", "last heard of",
                 "1 image could not be read", "photos/birds/&lt;1&gt;.jpg"):  # fmt: skip
        assert text in page, text


def test_a_resumed_run_shows_one_line_and_where_it_resumed(tmp_path: Path) -> None:
    later = [row for row in log_rows() if row["step"] > 200]
    resumed = [*log_rows(upto=250), {"kind": "start", "step": 200, "time": 9000.0, "world": 1, "steps": STEPS}, *later]
    page = write_run_page(make_run(tmp_path, resumed)).read_text()
    assert "resumed once" in page
    assert 'class="mark resume" x1="500.0"' in page
    loss = re.search(r"<h3>Loss</h3>.*?class=\"line s0\" points=\"([^\"]*)\"", page, re.S)[1]
    steps = [float(pair.split(",")[0]) for pair in loss.split()]
    assert steps == sorted(set(steps))
    assert steps[-1] == 1000


def test_a_run_without_labels_or_pictures_or_settings(tmp_path: Path) -> None:
    rows = [row for row in log_rows() if row["kind"] != "monitor"]
    run = make_run(tmp_path, rows, pictures=False)
    (run / "config.yaml").unlink()
    page = write_run_page(run).read_text()
    assert titles(page)[0] == "Loss"
    assert "k-NN" not in page
    assert 'id="pictures"' not in page
    assert 'id="settings"' not in page


def test_a_run_that_has_logged_nothing_yet(tmp_path: Path) -> None:
    page = write_run_page(make_run(tmp_path, log_rows()[:1], pictures=False)).read_text()
    assert "Nothing logged yet" in page
    assert titles(page) == []


def test_many_moments_are_thinned_with_first_and_last_kept(tmp_path: Path) -> None:
    run = make_run(tmp_path, log_rows())
    for step in range(401, 601):
        paint(run / "pictures" / f"step-{step}" / "pca-0.png", (step % 256, 0, 0))
    text = re.search(r'id="timeline-data">(.*?)</script>', write_run_page(run).read_text(), re.S)[1]
    steps = json.loads(text)["steps"]
    assert (len(steps), steps[0], steps[-1]) == (24, 100, 600)


def test_where_the_page_goes(tmp_path: Path) -> None:
    run = make_run(tmp_path, log_rows(), pictures=False)
    assert write_run_page(run, tmp_path / "mine.html") == tmp_path / "mine.html"
    assert write_run_page(run, tmp_path) == tmp_path / "report.html"
    with pytest.raises(ConfigError, match="cannot write"):
        write_run_page(run, tmp_path / "no" / "such" / "folder.html")
    with pytest.raises(ConfigError, match="no run directory"):
        write_run_page(tmp_path / "nothing")


# --- in a browser


def test_the_browser_would_notice_a_request(tmp_path: Path, browser: Any) -> None:
    page = tmp_path / "leaky.html"
    page.write_text('<img src="http://127.0.0.1:9/pixel.png">')
    browser.requests.clear()
    browser.open(page)
    assert browser.requests == [page.resolve().as_uri(), "http://127.0.0.1:9/pixel.png"]


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_it_renders_at_every_width_and_in_both_schemes(tmp_path: Path, browser: Any, width: int, scheme: str) -> None:
    page = write_run_page(make_run(tmp_path, [*log_rows(), ALARM]))
    browser.requests.clear()
    browser.errors.clear()
    browser.open(page, width, 900, scheme)
    assert browser.run("document.documentElement.scrollWidth") == width  # nothing sticks out to the side
    boxes = browser.run(
        "[...document.querySelectorAll('.curve svg .line')].map(l => {const b = l.getBoundingClientRect();"
        "return [b.width, l.closest('.canvas').getBoundingClientRect().width]})"
    )
    assert len(boxes) == 16
    assert all(line > 0.7 * canvas > 60 for line, canvas in boxes)
    assert browser.run("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    shot = tmp_path / "shot.png"
    browser.screenshot(shot)
    with Image.open(shot) as picture:
        ground = picture.convert("RGB").getpixel((2, 300))
    assert (sum(ground) < 150) == (scheme == "dark")
    assert browser.errors == []
    assert set(browser.requests) == {page.resolve().as_uri()}  # nothing but the file itself was asked for


def test_the_slider_changes_the_pictures(tmp_path: Path, browser: Any) -> None:
    browser.open(write_run_page(make_run(tmp_path, log_rows())))
    images = "[...document.querySelectorAll('.sight img')].map(i => i.src)"
    last = browser.run(images)
    assert len(last) == 3 * IMAGES
    assert browser.run("document.querySelectorAll('.film img').length") == len(LOOKS)
    # As a person does it: focus the slider, press the left arrow.
    browser.run("document.querySelector('.scrub input').focus()")
    for kind in ("keyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key="ArrowLeft", code="ArrowLeft", windowsVirtualKeyCode=37)
    before = browser.run(images)
    assert [a != b for a, b in zip(last, before, strict=True)] == [False, True, True] * IMAGES  # the input stays
    assert browser.run("document.querySelector('.scrub output').innerText").split("\n")[0] == "step 300"
    browser.run("document.querySelector('.film img').click()")
    assert browser.run("document.querySelector('.scrub output').innerText").startswith("step 100")
    assert "k-NN 25.2 %" in browser.run("document.querySelector('.scrub output').innerText")


def test_play_runs_to_the_end_and_stops(tmp_path: Path, browser: Any) -> None:
    browser.open(write_run_page(make_run(tmp_path, log_rows())))
    script = """new Promise(done => {
      const button = document.querySelector('.scrub button'), seen = [];
      button.click();
      const watch = setInterval(() => {
        seen.push(document.querySelector('.scrub output b').textContent);
        if (!button.classList.contains('playing')) { clearInterval(watch); done([...new Set(seen)]); }
      }, 30);
    })"""
    assert browser.run(script) == ["step 100", "step 200", "step 300", "step 400"]


def test_pointing_reads_every_curve_at_one_step(tmp_path: Path, browser: Any) -> None:
    browser.open(write_run_page(make_run(tmp_path, log_rows())))
    read = "[...document.querySelectorAll('#learning .key b')].map(b => b.textContent)"
    rest = browser.run(read)
    assert rest[:3] == ["55.2 %", "55.8 %", "56.1 %"]
    browser.run("document.querySelector('#learning').scrollIntoView()")
    x, y, width = browser.run(
        "(() => {const b = document.querySelector('#learning .curve:nth-child(2) .canvas').getBoundingClientRect();"
        "return [b.x, b.y, b.width]})()"
    )
    browser.point(x + width / 2, y + 40)
    assert browser.run(read) == ["35.2 %", "35.8 %", "36.1 %", "6.00"]
    label = "[...document.querySelectorAll('.cursor span')].filter(s => s.offsetParent).map(s => s.textContent)"
    assert browser.run(label) == ["step 200"]
    browser.point(2, 2)
    assert browser.run(read) == rest


def test_a_sight_grows_when_clicked(tmp_path: Path, browser: Any) -> None:
    browser.open(write_run_page(make_run(tmp_path, log_rows())), 390, 800)
    width = "document.querySelector('.sight img').getBoundingClientRect().width"
    small = browser.run(width)
    browser.run("document.querySelector('.sight').click()")
    assert browser.run(width) > 2.5 * small
    assert browser.run("document.querySelector('.sight').getAttribute('aria-pressed')") == "true"
