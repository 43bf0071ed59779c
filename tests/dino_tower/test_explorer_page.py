"""The explorer in a real browser: one patch is chosen, every picture answers, and nothing leaves the page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dino_tower.explorer.pictures import KEEP
from dino_tower.pictures import patch_similarity


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_it_opens_from_disk_and_asks_for_nothing(
    tmp_path: Path, browser: Any, explorer: Any, width: int, scheme: str
) -> None:
    explorer.start(width=width, scheme=scheme)
    assert browser.run("document.documentElement.scrollWidth") == width
    assert browser.run("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    for view in ("attention", "pca", "foreground", "similarity"):
        browser.run(f"document.querySelector('[value={view}]').click()")
        explorer.settle()
        assert browser.run("document.documentElement.scrollWidth") == width
    shot = tmp_path / "shot.png"
    browser.screenshot(shot)
    with Image.open(shot) as picture:
        assert (sum(picture.convert("RGB").getpixel((2, 200))) < 150) == (scheme == "dark")
    assert browser.errors == []
    assert set(browser.requests) == {explorer.path.resolve().as_uri()}


def test_rows_fill_the_width_and_pictures_keep_their_proportions(browser: Any, explorer: Any) -> None:
    for width in (1280, 390):
        explorer.start(width=width)
        boxes = browser.run(
            "[...document.querySelectorAll('.sight')].map(s => {const b = s.getBoundingClientRect();"
            "return [b.left, b.top, b.width, b.height]})"
        )
        for (h, w), (_, _, wide, high) in zip(explorer.grids, boxes, strict=True):
            assert wide / high == pytest.approx(w / h, rel=0.02)
        right = max(left + wide for left, _, wide, _ in boxes)
        assert width - (24 if width > 560 else 16) - 2 < right <= width - (24 if width > 560 else 16)
        assert len({round(high) for _, top, _, high in boxes if top == boxes[0][1]}) == 1


def test_a_click_in_any_picture_changes_all(browser: Any, explorer: Any) -> None:
    explorer.start()
    seen = [explorer.pixels()]
    for at in ((1, 13, 8), (2, 5, 5), (0, 1, 2)):
        browser.point(*explorer.centre(*at), kind="click")
        assert explorer.chosen() == at
        seen.append(explorer.pixels())
        assert all(a != b for a, b in zip(seen[-2], seen[-1], strict=True))
        style = browser.run(
            f"(() => {{const s = document.querySelectorAll('.cross')[{at[0]}].style; return [s.left, s.top]}})()"
        )
        h, w = explorer.grids[at[0]]
        assert [float(part.removesuffix("%")) for part in style] == pytest.approx(
            [100 * at[2] / w, 100 * at[1] / h], abs=1e-3
        )
        assert browser.run("[...document.querySelectorAll('.cross')].map(c => !c.hidden)") == [
            i == at[0] for i in range(3)
        ]
    assert browser.run("[...document.querySelectorAll('.best')].map(c => !c.hidden)") == [False, True, True]


def test_the_numbers_shown_are_the_towers_within_the_stated_error(browser: Any, explorer: Any) -> None:
    found = re.search(
        r"differ from those of the full features by at most (\d\.\d+), on average by (\d\.\d+)",
        explorer.path.read_text(),
    )
    largest, mean = map(float, found.groups())
    assert mean < largest < 0.03
    explorer.start()
    seen, gaps = explorer.sights, []
    for at in ((0, 3, 5), (1, 14, 9), (2, 0, 0)):
        browser.point(*explorer.centre(*at), kind="click")
        assert explorer.chosen() == at
        full = [patch_similarity(s.patches, seen[at[0]].patches[at[1], at[2]]).flatten().numpy() for s in seen]
        shown = browser.run("explorer.pictures.map(p => Array.from(p.cosine))")
        gaps += [np.abs(np.array(a) - b) for a, b in zip(shown, full, strict=True)]
        values = browser.run("[...document.querySelectorAll('.value')].map(v => v.textContent.replace('−', '-'))")
        assert values[at[0]] == "chosen"
        for i, part in enumerate(full):
            if i != at[0]:
                assert float(values[i]) == pytest.approx(part.max(), abs=largest + 0.0051)
    assert max(gap.max() for gap in gaps) <= largest + 5.1e-5  # the page rounds to four digits
    assert 0 < np.concatenate(gaps).mean() < 2 * mean


def test_pointing_reads_the_cosine(browser: Any, explorer: Any) -> None:
    explorer.start()
    browser.point(*explorer.centre(2, 4, 4), kind="click")
    x, y = explorer.centre(2, 9, 7)
    explorer.settle()  # drawing the click hides the tip, on a slow machine after the pointer has moved on
    browser.point(x, y)
    shown = float(browser.run("document.getElementById('tip').textContent").replace("−", "-"))
    patches = explorer.sights[2].patches
    assert shown == pytest.approx(float(patch_similarity(patches, patches[4, 4])[9, 7]), abs=0.03)
    assert browser.run("!document.getElementById('tip').hidden && !document.getElementById('tick').hidden")
    browser.point(2, 2)
    assert browser.run("document.getElementById('tip').hidden && document.getElementById('tick').hidden")
    assert explorer.chosen() == (2, 4, 4)  # pointing alone chooses nothing


def test_every_view_draws_its_own_maps(browser: Any, explorer: Any) -> None:
    explorer.start()
    seen = [explorer.pixels()]
    for view in ("attention", "pca", "foreground"):
        browser.run(f"document.querySelector('[value={view}]').click()")
        explorer.settle()
        seen.append(explorer.pixels())
        assert browser.run("[...document.querySelectorAll('.cross, .best')].every(m => m.hidden)")
        assert browser.run("document.getElementById('heads').hidden") == (view != "attention")
        assert browser.run("document.getElementById('fit').hidden")
    assert len({tuple(one) for one in seen}) == 4
    assert all(a != b for a, b in zip(seen[1], seen[2], strict=True))
    browser.point(*explorer.centre(0, 3, 3), kind="click")  # whoever picks a patch wants to see what is like it
    assert explorer.chosen() == (0, 3, 3)
    assert browser.run("explorer.state.view + document.querySelector('[name=view]:checked').value") == "similarity" * 2


def test_each_head_has_its_outline_around_sixty_percent(browser: Any, explorer: Any) -> None:
    explorer.start("#view=attention")
    seen, outlines = explorer.sights, []
    for head in range(len(explorer.sights[0].attention) + 1):
        browser.run(f"document.querySelector('[name=head][value=\"{head}\"]').click()")
        explorer.settle()
        outlines.append(browser.run("document.querySelector('.line').getAttribute('d')"))
        attention = seen[0].attention.mean(0) if head == 0 else seen[0].attention[head - 1]
        # The middle of a patch lies inside the outline where the patch belongs to the smallest set with 60 %.
        inside = np.array(browser.run(
            "(() => {const p = document.querySelector('.line'), found = [];"
            "for (let y = 0; y < 8; y++) for (let x = 0; x < 16; x++)"
            "found.push(p.isPointInFill(new DOMPoint(x + .5, y + .5))); return found})()"
        )).reshape(8, 16)  # fmt: skip
        mass = float(attention[torch.from_numpy(inside)].sum() / attention.sum())
        weakest = float(attention[torch.from_numpy(inside)].min() / attention.sum())
        assert KEEP <= mass < KEEP + weakest + 1e-6
        share = browser.run("document.querySelector('.value').textContent")
        assert share == f"{round(100 * inside.mean())} %"
    assert len(set(outlines)) == len(explorer.sights[0].attention) + 1


def test_the_address_remembers(browser: Any, explorer: Any) -> None:
    explorer.start()
    browser.point(*explorer.centre(1, 2, 3), kind="click")
    browser.run("document.getElementById('fit').click(), document.getElementById('larger').click()")
    browser.run(
        "(() => {const o = document.getElementById('opacity'); o.value = 40; o.dispatchEvent(new Event('input'))})()"
    )
    browser.run("new Promise(done => setTimeout(done, 350))")
    state = browser.run("location.hash")
    assert state == "#view=similarity&patch=2,3,4&opacity=40&stretch=1&zoom=3"
    before = explorer.pixels()
    explorer.start(state)
    assert explorer.chosen() == (1, 2, 3)
    assert explorer.pixels() == before
    assert browser.run("document.getElementById('opacity').value") == "40"
    assert browser.run("getComputedStyle(document.querySelector('.sight canvas')).opacity") == "0.4"
    browser.run("location.hash = '#view=attention&head=2&patch=3,1,1'")  # a link pasted into the open page
    assert explorer.chosen() == (2, 0, 0)
    assert browser.run("document.querySelector('[name=head]:checked').value") == "2"
    explorer.start("#view=colour&patch=9,-1,x&head=77&opacity=800&zoom=99")
    assert browser.errors == []
    assert browser.run("[explorer.state.view, explorer.state.head, explorer.state.zoom]") == ["similarity", 0, 2]


def test_one_frame_is_enough_for_twelve_pictures(browser: Any, explorer: Any) -> None:
    explorer.start()
    milliseconds = browser.run("""(() => {
      const k = 192, n = 37 * 37, scales = new Array(k).fill(.01);
      const all = Array.from({ length: 12 }, (_, p) => ({
        codes: Int8Array.from({ length: n * k }, (_, i) => (i * 7919 + p) % 255 - 127),
        inverse: new Float64Array(n).fill(.1), out: new Float32Array(n) }));
      let best = Infinity;
      for (let turn = 0; turn < 25; turn++) {
        const begin = performance.now(), asked = maps.query(all[0], turn, scales);
        for (const one of all) maps.cosines(one, asked, one.out);
        best = Math.min(best, performance.now() - begin);
      }
      return best;
    })()""")
    assert milliseconds < 16


def test_it_keeps_still_for_those_who_ask(browser: Any, explorer: Any) -> None:
    moving = (
        "[...document.querySelectorAll('*')].filter(e => parseFloat(getComputedStyle(e).transitionDuration) > 0).length"
    )
    explorer.start()
    assert browser.run(moving) > 0
    still = [{"name": "prefers-reduced-motion", "value": "reduce"}]
    browser.call("Emulation.setEmulatedMedia", features=still)
    assert browser.run(moving) == 0
    browser.call("Emulation.setEmulatedMedia", features=[])


def test_a_single_picture_without_attention_has_a_page_too(tmp_path: Path, browser: Any, explorer: Any) -> None:
    explorer.start("#view=attention", path=explorer.write(tmp_path, [explorer.sights[1]._replace(attention=None)]))
    assert browser.errors == []
    assert browser.run("[...document.querySelectorAll('[name=view]')].map(v => v.value)") == [
        "similarity",
        "pca",
        "foreground",
    ]
    assert browser.run("explorer.state.view") == "similarity"
    assert "This tower gives no attention" in browser.run("document.body.innerText")
    assert browser.run("document.querySelector('.sight').getBoundingClientRect().height <= innerHeight")
