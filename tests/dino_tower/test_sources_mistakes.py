"""A mistake in --data is one line that says what was found and what to do."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import datasets
import pytest
from PIL import Image

from dino_tower.errors import ConfigError
from dino_tower.sources import (
    SourceOptions,
    open_source,
    open_sources,
)


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (5, 4), (value, 2 * value, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    datasets.disable_progress_bars()
    root = tmp_path / "good"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", root / "cache")
    table = datasets.Dataset.from_dict({"image": [png(1)], "label": ["a"]})
    table.save_to_disk(str(root / "saved"))
    datasets.DatasetDict(train=table, test=table).save_to_disk(str(root / "splits"))
    (root / "parquet").mkdir()
    table.to_parquet(root / "parquet" / "train.parquet")
    return root


def prepare_mistakes(base: Path) -> None:
    for name in ("empty", "texts", "pictures", "tables"):
        (base / name).mkdir()
    for i in range(3):
        (base / "texts" / f"{i}.txt").write_text("words")
        (base / "pictures" / f"{i}.png").write_bytes(png(i))
    (base / "tables" / "part.parquet").write_bytes(b"PAR1")
    (base / "empty.csv").write_text("")
    (base / "some.txt").write_text("pictures/0.png\n")
    (base / "header.csv").write_text("path,label\n")
    (base / "two.csv").write_text("where,what\na.png,b\n")
    (base / "ragged.csv").write_text("path,label\na.png\nb.png,1,2\n")
    (base / "words.tar").write_text("this is no tar file " * 100)
    with tarfile.open(base / "packed.tar", "w:gz") as tar:
        add(tar, "a.png", png(1))
    with tarfile.open(base / "texts.tar", "w") as tar:
        add(tar, "a.txt", b"words")


MISTAKES = [
    ("{base}/empty", {}, "the folder is empty"),
    ("{base}/picturs", {}, "does not exist; did you mean '{base}/pictures'"),
    ("{base}/nowhere/at/all", {}, "'{base}' has no 'nowhere'"),
    ("{base}/texts", {}, "no images among its 3 files (3 .txt); read are .apng"),
    ("{base}/tables", {}, "try --data hf:{base}/tables"),
    ("{base}/pictures/0.png", {}, "is a file; give a folder"),
    ("{base}/gone.csv", {}, "does not exist"),
    ("{base}/empty.csv", {}, "the list is empty"),
    ("{base}/header.csv", {}, "the list has no rows"),
    ("{base}/two.csv", {}, "which column holds the images? Name it with --source.image; choices: where, what"),
    ("{base}/two.csv", {"image": "were"}, "no column 'were'; did you mean 'where'? choices: what, where"),
    ("{base}/two.csv", {"image": "where", "label": "kind"}, "no column 'kind'"),
    ("{base}/ragged.csv", {}, "does not parse as a table"),
    ("hff:birds", {}, "no kind of source 'hff:'; did you mean 'hf:'? choices: hf:, scenes:, tar:"),
    ("", {}, "--data is empty"),
    ("scenes:eazy", {}, "no level of scenes 'eazy'; did you mean 'easy'"),
    ("scenes", {"split": "dev"}, "no split of scenes 'dev'"),
    ("tar:", {}, "give the shards after the colon"),
    ("tar:{base}/*.tgz", {}, "no file matches"),
    ("tar:{base}/word.tar", {}, "did you mean '{base}/words.tar'"),
    ("tar:{base}/words.tar", {}, "is not a tar file"),
    ("tar:{base}/packed.tar", {}, "is compressed"),
    ("tar:{base}/texts.tar", {}, "no images in 1 shards; found: txt"),
    ("tar:{base}/texts.tar", {"image": "jpg"}, "no member extension 'jpg'"),
    ("tar:{base}", {}, "for the shards in it give tar:{base}/*.tar"),
    ("hf:", {}, "give a Hub name or a folder after the colon"),
    ("hf:{base}/pictures", {}, "for a folder of image files leave out hf:"),
    ("hf:{base}/tables", {}, "cannot be opened"),
    ("hf:{base}/tables", {"streaming": True}, "is not a parquet file"),
    ("hf:{base}/gone", {}, "does not exist"),
    ("hf:nobody/nothing", {}, "looked up on the Hub"),
    ("hf:{root}/splits:tset", {}, "no split 'tset'; did you mean 'test'? choices: test, train"),
    ("hf:{root}/saved", {"split": "validation"}, "no split 'validation'"),
    ("hf:{root}/saved", {"label": "lable"}, "no column 'lable'; did you mean 'label'"),
    ("hf:{root}/parquet", {"streaming": True, "image": "imag"}, "no column 'imag'; did you mean 'image'"),
    ("{base}/pictures", {"max_samples": 0}, "--source.max-samples 0"),
    ("scenes", {"max_samples": -5}, "--source.max-samples -5: give 1 or more"),
    ("tar:{base}/part-{{5..1}}.tar", {}, "a range in its braces is empty"),
    (
        "{base}/pictures",
        {"label": "species"},
        "--source.label species says nothing about --data '{base}/pictures', which",
    ),
    ("{base}/pictures", {"caption": "text"}, "which takes --source.split; leave it out"),
    ("{base}/pictures", {"image": "photo"}, "--source.image photo says nothing"),
    ("{base}/pictures", {"streaming": True}, "--source.streaming True says nothing"),
    ("{base}/some.txt", {"label": "species"}, "which has no columns to name"),
    ("{base}/two.csv", {"image": "where", "split": "test"}, "--source.split test says nothing"),
    ("hf:{root}/parquet", {"subset": "en"}, "--source.subset en says nothing"),
]


def test_every_mistake_is_one_line_that_says_what_to_do(root: Path, tmp_path: Path) -> None:
    prepare_mistakes(tmp_path)
    for spelling, settings, said in MISTAKES:
        with pytest.raises(ConfigError) as caught:
            open_source(spelling.format(base=tmp_path, root=root), SourceOptions(**settings))
        line = str(caught.value)
        assert said.format(base=tmp_path) in line, (spelling, line)
        assert "\n" not in line and len(line) < 600
    with pytest.raises(ConfigError, match="--data is missing"):
        open_sources([])


def test_what_may_not_be_read(tmp_path: Path) -> None:
    """As a user without rights, in a process of its own when the tests run as root: root may read everything."""
    shut, folder, table = tmp_path / "a" / "shut.png", tmp_path / "b", tmp_path / "list.txt"
    for directory in (tmp_path / "a", folder):
        directory.mkdir()
    for path in (shut, tmp_path / "a" / "open.png", folder / "inside.png"):
        path.write_bytes(png(1))
    table.write_text("a/open.png\n")
    for path in (shut, table, folder):
        path.chmod(0)
    code = f"""
import os
from PIL import Image
from dino_tower.sources import open_source
Image.init()  # the interpreter itself may lie where nobody else can read
if os.getuid() == 0:
    os.setgid(65534); os.setuid(65534)
source = open_source({str(tmp_path / "a")!r})
print(source[0].image().size)
try:
    source[1].image()
except ValueError as error:
    print(error)
print(open_source({str(tmp_path)!r}).describe())
for spelling in ({str(folder)!r}, {str(table)!r}):
    try:
        open_source(spelling)
    except ValueError as error:
        print(error)
"""
    above = tmp_path
    while above != Path(tempfile.gettempdir()) and above != above.parent:
        above.chmod(above.stat().st_mode | 0o055)
        above = above.parent
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    folder.chmod(0o755)
    lines = ran.stdout.splitlines()
    assert lines[:2] == ["(5, 4)", "cannot be opened: permission denied"], ran.stderr
    assert "1 folders may not be listed, the first: b" in lines[2]
    assert "permission denied" in lines[3]
    assert "cannot be read: permission denied" in lines[4]
