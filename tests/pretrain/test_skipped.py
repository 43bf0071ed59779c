"""Images that cannot be read: others stand in for them, each is listed once, and too many stop the run."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_pictures import COUNT, png, write_folder

from dino_tower.errors import ConfigError
from dino_tower.pretrain.crops.views import CropsConfig
from dino_tower.pretrain.loading.data import Batch, build_loader
from dino_tower.pretrain.loading.order import epoch_order
from dino_tower.sources import Source, open_source
from dino_tower.sources.skipped import SkippedLog, TooManySkipped

NOBODY = 65534
CROPS = CropsConfig(global_size=16, local_size=8, locals=2)


def batches(source: Source, crops=CROPS, **settings) -> list[Batch]:
    return list(build_loader(source, crops, **{"seed": 0, "batch_size": 4, "total_steps": 5, **settings}))


def ids(some: list[Batch]) -> list[str]:
    return [name for batch in some for name in batch.ids]


BAD = {
    "001.png": (lambda path: path.write_bytes(png(1)[:60]), "truncated"),
    "003.png": (lambda path: path.write_bytes(b""), "empty"),
    "005.png": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(900)), "not an image"),
    "007.png": (lambda path: path.write_text("words"), "not an image"),
    "009.png": (lambda path: (path.unlink(), os.mkfifo(path)), "FIFO"),
    "011.png": (lambda path: (path.unlink(), path.symlink_to("nowhere")), "broken symbolic link"),
    "013.png": (lambda path: path.unlink(), "does not exist"),
    "015.png": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + b"\x7f" * 40), "PNG"),
}


@pytest.fixture
def damaged(tmp_path: Path) -> Source:
    """40 pictures, opened and then damaged in eight ways; a picture under a wrong name is not among the damaged."""
    root = write_folder(tmp_path / "damaged")
    (root / "017.png").rename(root / "017.jpg")
    source = open_source(str(root))
    for name, (damage, _) in BAD.items():
        damage(root / name)
    return source


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_replaced_and_listed_once(damaged: Source, tmp_path: Path, workers: int) -> None:
    log = tmp_path / "skipped.jsonl"
    settings = {"total_steps": 20, "workers": workers, "start_method": "fork", "skipped_log": log, "max_skipped": 8}
    read = batches(damaged, CROPS, **settings)
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert sorted(row["id"] for row in rows) == sorted(BAD)
    for row in rows:
        assert BAD[row["id"]][1] in row["reason"], row
    assert all(len(batch.ids) == 4 and not set(batch.ids) & set(BAD) for batch in read)
    assert set(ids(read[:10])) == {damaged.sample_id(i) for i in range(COUNT)} - set(BAD)
    # The stand-in is the next readable one of the same order, with crops of its own there.
    order = epoch_order(damaged, 0, 0)
    names = [damaged.sample_id(int(index)) for index in order.indices]
    stood_in = ids(read[:10])
    for place, name in enumerate(names):
        following = (names[(place + k) % COUNT] for k in range(COUNT))
        assert stood_in[place] == next(other for other in following if other not in BAD), (place, name)
    views = Counter(view.numpy().tobytes() for batch in read for view in batch.views[0])
    assert max(views.values()) == 1
    # A second run over the same directory lists nothing again.
    batches(damaged, CROPS, **settings)
    assert len(log.read_text().splitlines()) == len(BAD)


def test_a_rank_finds_its_stand_ins_in_its_own_order(damaged: Source, tmp_path: Path) -> None:
    logs = tmp_path / "skipped.jsonl"
    settings = {"total_steps": 10, "batch_size": 2, "world": 2, "skipped_log": logs, "max_skipped": 0.5}
    names = [damaged.sample_id(int(index)) for index in epoch_order(damaged, 0, 0).indices]
    for rank in range(2):
        read = ids(batches(damaged, CROPS, **settings, rank=rank))
        mine = names[rank::2]
        for place, name in enumerate(read):
            assert name == next(o for k in range(20) if (o := mine[(place + k) % 20]) not in BAD)
    listed = [json.loads(line)["id"] for line in logs.read_text().splitlines()]
    assert sorted(listed) == sorted(BAD)  # both ranks wrote to one file


@pytest.mark.parametrize("limit", [7, 0.19])
@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_bad_images_stop_the_run(damaged: Source, tmp_path: Path, workers: int, limit: float) -> None:
    log = tmp_path / "skipped.jsonl"
    with pytest.raises(TooManySkipped) as caught:
        batches(
            damaged, CROPS, total_steps=20, workers=workers, start_method="fork", skipped_log=log, max_skipped=limit
        )
    line = str(caught.value)
    assert "\n" not in line and "8 of 40 images could not be read, and max_skipped allows 7" in line
    assert str(log) in line and "--faults.max-skipped" in line


def test_nothing_readable_at_all_ends_too(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "gone", 12)
    source = open_source(str(root))
    for path in root.iterdir():
        path.unlink()
    with pytest.raises(TooManySkipped, match=r"12 images in a row could not be read.*does not exist"):
        batches(source, CROPS, max_skipped=100)


def test_a_torn_line_in_the_list_is_survived(tmp_path: Path) -> None:
    """A kill in the middle of a write once left half a line, and the next line was glued to it."""
    path = tmp_path / "skipped.jsonl"
    path.write_text('{"id": "a", "reason": "x"}\n{"id": "b", "rea')
    log = SkippedLog(path, 10, 100)
    assert log.ids == {"a"}
    other = SkippedLog(path, 10, 100)
    assert log.record([("b", "y"), ("a", "x")]) == [("b", "y")]
    assert other.record([("b", "y"), ("c", "z"), ("ü\udcff", "w")]) == [("c", "z"), ("ü\udcff", "w")]
    assert log.record([("c", "z")]) == []
    lines = path.read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines if line.endswith("}")] == ["a", "b", "c", "ü\udcff"]
    with pytest.raises(ConfigError, match="max_skipped -1"):
        SkippedLog(None, -1, 10)


def encoded(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def bomb() -> bytes:
    """A valid PNG of 400 million black pixels in 50 kB."""
    head = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(20_000 * 2_501))
    chunks = [(b"IHDR", head), (b"IDAT", rows), (b"IEND", b"")]
    packed = [struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
              for kind, body in chunks]  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def absurd(data: bytes) -> bytes:
    """A small JPEG whose header speaks of 65535 x 65535 pixels."""
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + b"\xff" * 4 + data[place + 4 :]


def replace(path: Path, make: Callable[[], object]) -> None:
    path.unlink()
    make()


# way: (what is done to the file at `path`, a part of the reason that must be given)
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "truncated"),
    "zero bytes": (lambda path: path.write_bytes(b""), "empty file (0 bytes)"),
    "random bytes": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(3000)), "not an image"),
    "a text": (lambda path: path.write_text("a text that is called .jpg"), "not an image (it starts with b'a text t')"),
    "bomb": (lambda path: path.write_bytes(bomb()), "20000 x 20000 = 400000000 pixels, above the limit"),
    "absurd header": (lambda path: path.write_bytes(absurd(path.read_bytes())), "65535 x 65535"),
    "forbidden": (lambda path: path.chmod(0), "permission denied"),
    "vanishing": (lambda path: None, "does not exist"),  # once it is listed, by the run itself
    "broken link": (lambda path: replace(path, lambda: path.symlink_to("nowhere.jpg")), "broken symbolic link"),
    "FIFO": (lambda path: replace(path, lambda: os.mkfifo(path)), "a FIFO"),
}
# Odd, but pictures: nobody may blame them.
ODDITIES: tuple[Callable[[Path, Image.Image], object], ...] = (
    lambda path, image: path.write_bytes(encoded(image, "PNG")),
    lambda path, image: path.write_bytes(encoded(image, "GIF")),
    lambda path, image: path.write_bytes(encoded(image.convert("L"), "JPEG")),
    lambda path, image: path.write_bytes(encoded(image.convert("CMYK"), "JPEG")),
    lambda path, image: path.write_bytes(encoded(image.convert("P"), "PNG")),
    lambda path, image: path.write_bytes(encoded(image, "WEBP")),
    lambda path, image: path.write_bytes(encoded(image, "JPEG") + b"what a camera puts behind the picture"),
    lambda path, image: replace(path, lambda: path.symlink_to("00000.jpg")),
)
# As if somebody tidied up while the run went on: the files go when the source has listed them.
VANISH = """
import os
from dino_tower.pretrain import train
opened = train.open_sources
def open_and_vanish(*words, **more):
    source = opened(*words, **more)
    for path in {paths!r}:
        os.unlink(path)
    return source
train.open_sources = open_and_vanish
"""


def train_on_damaged(lives, tiny, write_photos, folder: Path, count: int, damaged: int) -> dict[str, str]:
    """One epoch of `count` photos as a user without rights, `damaged` of them damaged in turn in ten ways and as many
    odd ones among them. Returns what was listed, checked: id -> reason."""
    photos, run = write_photos(folder / "photos", count, (160, 120)), folder / "run"
    chosen = 1 + np.random.default_rng(0).permutation(count - 1)[: 2 * damaged]
    expected, vanishing = {}, []
    for number, index in enumerate(chosen.tolist()):
        path = photos / f"{index:05d}.jpg"
        if number >= damaged:
            with Image.open(path) as image:
                image.load()
            ODDITIES[number % len(ODDITIES)](path, image)
            continue
        way = list(DAMAGES)[number % len(DAMAGES)]
        DAMAGES[way][0](path)
        expected[path.name] = DAMAGES[way][1]
        vanishing += [str(path)] if way == "vanishing" else []
    warm = ["pretrain", *tiny("--steps", "1", "--workers", "1"), "--output", str(folder / "warm")]
    flags = ("--batch-size", "20", "--workers", "2", "--epochs", "1", "--data", str(photos))
    words = ["pretrain", *tiny(*flags), "--output", str(run)]
    owner = f"chown -hR {NOBODY} {folder}" if os.getuid() == 0 else "true"
    code = VANISH.format(paths=vanishing)
    child = lives.start({"words": warm}, {"shell": owner}, {"words": words, "user": NOBODY, "code": code})
    assert lives.wait(child, 800) == 0, lives.said(child)[-3000:]
    rows = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    listed = {row["id"]: row["reason"] for row in rows}
    assert len(rows) == len(listed) and sorted(listed) == sorted(expected)
    wrong = {name: reason for name, reason in listed.items() if expected[name] not in reason}
    assert not wrong
    assert (run / f"checkpoints/step-{count // 20}").is_dir()
    return listed


def test_an_epoch_with_photos_damaged_in_ten_ways(lives, tiny, write_photos, open_path: Path) -> None:
    """The whole job as a user without rights, a vanishing file and a picture bomb among them; soak_data.py has more."""
    assert len(train_on_damaged(lives, tiny, write_photos, open_path, 200, 10)) == 10


def test_the_last_one_is_named_as_the_last() -> None:
    """Of several met at once the line once named the first as the last."""
    with pytest.raises(TooManySkipped, match="the last: c: empty"):
        SkippedLog(None, 2, 100).record([("a", "torn"), ("b", "gone"), ("c", "empty")])
