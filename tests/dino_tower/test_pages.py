"""The frame of every page: whole files, nothing fetched, numbers people can read."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dino_tower.errors import ConfigError
from dino_tower.pages import asset, data_uri, duration_text, json_block, number_text, page, write_page


def test_a_page_forbids_itself_the_network_and_names_no_address() -> None:
    text = page("A <b> title", "<main>{{body}}</main>", ["curves.css", "timeline.css"], ["curves.js", "timeline.js"])
    assert "<title>A &lt;b&gt; title</title>" in text
    assert "<main>{{body}}</main>" in text
    assert "default-src 'none'" in text
    assert "{{css}}" not in text
    assert "http" not in text.replace('http-equiv="', "").replace("http://www.w3.org/2000/svg", "")
    assert asset("curves.js") in text


def test_pictures_travel_inside_the_page() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (500, 400, 3), dtype=np.uint8))
    kind, data = data_uri(noise).split(",", 1)
    assert kind == "data:image/webp;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (256, 320)
    flat = Image.fromarray(np.repeat(np.repeat(np.asarray(noise)[:8, :8], 32, 0), 32, 1))
    back = Image.open(io.BytesIO(base64.b64decode(data_uri(flat).split(",", 1)[1]))).convert("RGB")
    assert np.array_equal(np.asarray(back), np.asarray(flat))  # flat squares stay exact: lossless is smaller there


def test_data_cannot_close_its_element() -> None:
    block = json_block("d", {"a": "</script><script>alert(1)</script>"})
    assert block.count("</script>") == 1
    with pytest.raises(ValueError, match="Out of range float"):
        json_block("d", [float("nan")])


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    target.write_text("old")
    assert write_page(target, "new") == target
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o644
    with pytest.raises(ConfigError, match="cannot write the page"):
        write_page(tmp_path / "absent" / "report.html", "new")
    with pytest.raises(ConfigError, match="cannot write the page"):
        write_page(tmp_path, "new")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert [path.name for path in tmp_path.parent.iterdir() if path.name.startswith(f".{tmp_path.name}")] == []


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.571, "%", "57.1 %"), (0.0, "", "0"), (5e-4, "", "5.0e-4"), (0.07, "", "0.07"), (0.99654, "", "0.9965"),
        (1.0, "", "1"), (7.123, "", "7.12"), (-12.5, "", "-12.50"), (1203.6, "", "1,204"), (float("nan"), "", "n/a"),
        (412.0, "images/s", "412 images/s"),
    ],
)  # fmt: skip
def test_numbers_as_people_read_them(value: float, unit: str, text: str) -> None:
    assert number_text(value, unit) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(40, "40 s"), (600, "10 min"), (12_000, "3 h 20 min"), (187_200, "2 d 4 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
