"""What a text alignment reads: pictures with texts, what is left out, what each step draws."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from dino_tower import load_tower
from dino_tower.adapters.text.corpus import Corpus, draw, read_corpus, token_batches
from dino_tower.images import UnreadableImage
from dino_tower.scenes import make_scene
from dino_tower.sources import Sample, Source, SourceOptions, open_source


class Pictures(Source):
    """Twelve pictures, of which one is broken and one has nothing said about it."""

    name = "pictures"

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Sample:
        if index == 3:
            raise UnreadableImage("broken")
        texts = [] if index == 7 else [f"number {index}", "a picture", f"number {index}"]
        picture = Image.new("RGB", (64, 64), (20 * index, 0, 255))
        return Sample(lambda: picture, str(index), text=texts[0] if texts else None, more=lambda: texts[1:])

    def sample_id(self, index: int) -> str:
        return str(index)


def test_what_cannot_be_read_and_what_nobody_described_is_left_out() -> None:
    tower, said = load_tower("builtin:scenes"), []
    corpus = read_corpus(Pictures(), tower, cache_gib=1.0, say=said.append)
    assert len(corpus) == 10 and corpus.silent == 1 and corpus.skipped == [("3", "broken")]
    assert corpus.texts[0] == ("number 0", "a picture")  # each once
    alone = read_corpus(Pictures(), tower, cache_gib=1.0, say=lambda line: None, captions=True)
    assert alone.texts[0] == ("number 0",) and len(alone) == 10
    rows = [np.array([9, 0, 4]), np.array([2])]
    far = read_corpus(Pictures(), tower, cache_gib=0.0, say=said.append)
    assert far.cached is None and "kept in memory" in said[0] and "each step" in said[1]
    for near, again in zip(token_batches(corpus, tower, rows), token_batches(far, tower, rows), strict=True):
        assert (near.patches - again.patches).abs().max() < 1e-5
        assert near.cls is not None and again.cls is not None and (near.cls - again.cls).abs().max() < 1e-5


def test_a_short_run_reads_no_more_pictures_than_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty thousand scenes took minutes to read before the first of a hundred steps."""
    monkeypatch.setattr("dino_tower.adapters.text.corpus.READ_AT_ONCE", 2)
    tower, asked = load_tower("builtin:scenes"), []

    class Counted(Pictures):
        def __getitem__(self, index: int) -> Sample:
            asked.append(index)
            return super().__getitem__(index)

    few = read_corpus(Counted(), tower, cache_gib=1.0, say=lambda line: None, most=5, seed=1)
    assert 5 <= len(few) <= 6 and len(asked) == len(few) + len(few.skipped) + few.silent
    assert few.cached is not None and len(few.cached.patches) == len(few) and set(few.indices) <= set(asked)
    assert sorted(few.indices) != list(range(len(few)))  # drawn, not the first ones
    whole = read_corpus(Counted(), tower, cache_gib=1.0, say=lambda line: None, most=50)
    assert len(whole) == 10 and list(whole.indices) == sorted(whole.indices)


def test_a_step_sees_the_same_pictures_and_texts_on_any_number_of_processes() -> None:
    corpus = Corpus(Pictures(), np.arange(10), [(f"number {i}", "a picture") for i in range(10)])
    epoch = [draw(corpus, 0, step, 5, 1, 2) for step in range(2)]
    assert sorted(np.concatenate([one.rows for one in epoch])) == list(range(10))
    two = draw(corpus, 0, 1, 1, 5, 2)
    assert Counter(two.rows) == Counter(epoch[1].rows) and Counter(two.texts) == Counter(epoch[1].texts)
    assert list(two.rows) == list(epoch[1].rows)  # one picture a process: the order of rank is that of the epoch
    assert draw(corpus, 0, 2, 5, 1, 2).rows.tolist() != epoch[0].rows.tolist()
    positives = epoch[0].positives(corpus)
    for row, column in np.ndindex(*positives.shape):
        assert positives[row, column] == (epoch[0].texts[column] in corpus.texts[epoch[0].rows[row]])
    assert positives[torch.arange(5), 2 * torch.arange(5)].all()


def test_scenes_say_more_than_their_caption() -> None:
    sample = open_source("scenes:hard")[0]
    assert sample.texts[0] == sample.caption and len(sample.texts) > 4
    assert all(text.startswith("the ") for text in sample.texts[1:])


def test_a_caption_that_counts_looks_for_no_relations() -> None:
    """They cost ten times the sentence, and a corpus has a caption for every picture."""
    easy, hard = make_scene("easy", 0), make_scene("hard", 0)
    assert "among" in easy.caption and "relations" not in vars(easy)
    assert hard.caption and "relations" in vars(hard)


@pytest.mark.parametrize("streaming", [False, True])
def test_all_captions_of_a_cell_are_read(streaming: bool, tmp_path: Path) -> None:
    """COCO has five a picture; once the first stood for all of them."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    columns = {"image": [{"bytes": file.getvalue(), "path": "a.png"}] * 2, "captions": [["one", "two", " one"], None]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "train.parquet")
    source = open_source(f"hf:{tmp_path}", SourceOptions(streaming=streaming))
    assert source[0].texts == ("one", "two") and source[0].caption == "one"
    assert source[1].texts == ()
