"""The explorer by mouse, finger, keys and screen reader."""

from __future__ import annotations

from typing import Any


def test_a_mouse_drag_follows(browser: Any, explorer: Any) -> None:
    explorer.start()
    places = [explorer.centre(0, 2, column) for column in (3, 6, 11)]
    for kind, (x, y) in zip(("mousePressed", "mouseMoved", "mouseMoved"), places, strict=True):
        browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)
    assert explorer.chosen() == (0, 2, 11)
    browser.call("Input.dispatchMouseEvent", type="mouseReleased", x=places[2][0], y=places[2][1], button="left")
    browser.point(*places[0])
    assert explorer.chosen() == (0, 2, 11)


def test_keys_move_the_patch(browser: Any, explorer: Any) -> None:
    explorer.start("#patch=2,8,5")
    assert explorer.chosen() == (1, 7, 4)
    before = explorer.pixels()
    explorer.press("ArrowRight")
    explorer.press("ArrowDown")
    assert explorer.chosen() == (1, 8, 5)
    assert all(a != b for a, b in zip(before, explorer.pixels(), strict=True))
    explorer.press("ArrowUp", shift=True)
    assert explorer.chosen() == (1, 3, 5)
    for _ in range(3):
        explorer.press("ArrowLeft", shift=True)
    assert explorer.chosen() == (1, 3, 0)  # stops at the border
    # On another picture the first key takes its most similar patch.
    best = browser.run("explorer.pictures[2].best()")
    browser.run("document.querySelectorAll('.sight')[2].focus()")
    explorer.press("Enter")
    assert explorer.chosen() == (2, *divmod(best, 12))
    # In the switch the arrows belong to the switch.
    browser.run("document.querySelector('[value=similarity]').focus()")
    explorer.press("ArrowRight")
    assert explorer.chosen() == (2, *divmod(best, 12))
    assert browser.run("explorer.state.view") == "attention"


def test_a_finger_moves_the_patch_and_scrolls_elsewhere(browser: Any, explorer: Any) -> None:
    explorer.start("#patch=1,4,4&zoom=5", width=390, height=800)
    browser.call("Emulation.setTouchEmulationEnabled", enabled=True)
    try:
        first, last = explorer.centre(0, 2, 3), explorer.centre(0, 6, 12)
        before = explorer.pixels()
        explorer.touch("touchStart", first)
        explorer.touch("touchMove", ((first[0] + last[0]) / 2, (first[1] + last[1]) / 2))
        explorer.touch("touchMove", last)
        assert explorer.chosen() == (0, 6, 12)  # live, before the finger is lifted
        assert all(a != b for a, b in zip(before, explorer.pixels(), strict=True))
        explorer.touch("touchEnd")
        place = explorer.centre(1, 7, 5)
        assert browser.run("[...document.querySelectorAll('.sight')].map(s => getComputedStyle(s).touchAction)") == [
            "none", "pan-y", "pan-y"
        ]  # fmt: skip
        explorer.touch("touchStart", place)
        assert explorer.chosen() == (0, 6, 12)  # it may be about to scroll
        explorer.touch("touchEnd")
        assert explorer.chosen() == (1, 7, 5)
    finally:
        browser.call("Emulation.setTouchEmulationEnabled", enabled=False)


def test_a_magnifier_stands_above_the_finger_where_patches_are_small(browser: Any, explorer: Any) -> None:
    explorer.start("#patch=2,4,4&zoom=0", width=390, height=800)
    browser.call("Emulation.setTouchEmulationEnabled", enabled=True)
    try:
        x, y = explorer.centre(1, 5, 5)
        explorer.touch("touchStart", (x, y))
        explorer.touch("touchMove", (x + 3, y))
        explorer.settle()
        top, width = browser.run(
            "(() => {const b = document.getElementById('loupe').getBoundingClientRect(); return [b.bottom, b.width]})()"
        )
        assert width > 100
        assert top < y - 30
        explorer.touch("touchEnd")
        assert browser.run("document.getElementById('loupe').hidden")
    finally:
        browser.call("Emulation.setTouchEmulationEnabled", enabled=False)


def test_names_and_roles_are_there_for_screen_readers(browser: Any, explorer: Any) -> None:
    explorer.start("#patch=1,3,5")
    names = browser.run("[...document.querySelectorAll('.sight')].map(s => s.getAttribute('aria-label') + s.tabIndex)")
    assert names[0] == "wide <b>, 16 by 8 patches; the arrow keys move the chosen patch0"
    nameless = """[...document.querySelectorAll('button, input')].filter(e =>
      !(e.textContent.trim() || e.getAttribute('aria-label') || e.closest('label')?.textContent.trim())).length"""
    assert browser.run(nameless) == 0
    explorer.press("ArrowRight")
    browser.run("new Promise(done => setTimeout(done, 650))")
    assert browser.run("document.getElementById('said').textContent").startswith(
        "Row 3, column 6 of wide <b>. Most similar: "
    )
