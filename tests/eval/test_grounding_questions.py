"""Phrases, boxes and maps before any probe: what is asked, on which patches it lies, when an answer is right."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from dino_tower.errors import ConfigError
from dino_tower.eval.datasets import open_dataset
from dino_tower.eval.datasets.base import Box, Item
from dino_tower.eval.grounding import embed_phrases, ground, is_spatial, text_encoder, unseen_compositions, without
from dino_tower.eval.grounding.pointing import centre_map, judge_boxes, judge_maps, map_box
from dino_tower.eval.grounding.regions import box_means, centres, coverage

Corners = tuple[float, float, float, float]
A, B, C = (0.0, 0.0, 40.0, 40.0), (50.0, 0.0, 90.0, 40.0), (0.0, 50.0, 100.0, 80.0)


def item(*phrases: tuple[str, Corners], boxes: tuple[Corners, ...] = (A, B, C)) -> Item:
    made = tuple(Box(corners, i) for i, corners in enumerate(boxes))
    return Item("one", Image.new("RGB", (100, 80)), boxes=made, phrases=phrases)


def test_a_phrase_said_twice_is_asked_once_and_its_boxes_are_all_right() -> None:
    found = ground(item(("a Dog ", A), ("a  dog", B), ("a dog", (0.1, 0, 40, 39.9)), ("grass", C)))
    assert [(q.text, q.truth, q.pool) for q in found.queries] == [
        ("a dog", (0, 1), (0, 1, 2)),
        ("grass", (2,), (0, 1, 2)),
    ]
    assert found.size == (100, 80) and found.regions.shape == (3, 4)
    merged = ground(item(("a dog", A), ("a dog", B), ("grass", C)), truth="merged")
    assert [(q.text, q.truth, q.pool) for q in merged.queries] == [("a dog", (3,), (2, 3)), ("grass", (2,), (0, 1, 2))]
    assert merged.regions[3].tolist() == [0, 0, 90, 40]


def test_boxes_that_only_phrases_have_join_the_choices_and_difficult_ones_leave_them() -> None:
    one = item(("the sky", (10.0, 0.0, 100.0, 20.0)), boxes=(A,))
    one = Item(one.id, one.payload, boxes=(*one.boxes, Box(C, 0, difficult=True)), phrases=one.phrases)
    found = ground(one)
    assert found.queries[0].truth == (1,) and found.queries[0].pool == (0, 1)
    assert ground(item(("far", (90.0, 70.0, 120.0, 90.0)))).regions[3].tolist() == [90, 70, 100, 80]


def test_class_names_are_asked_for_where_phrases_are_few() -> None:
    found = ground(item(("bear", A)), names=("bear", "dog", "dog"), class_names=True)
    assert [(q.text, q.truth) for q in found.queries] == [("bear", (0,)), ("dog", (1, 2))]


def test_kept_compositions_leave_every_word_in_training() -> None:
    names = [f"{a} {b}" for a in ("red", "blue", "green") for b in ("ring", "disc", "bar", "star", "cross")]
    kept = unseen_compositions(["ground", *names])
    assert kept == {"red ring", "blue cross", "green star"}
    seen = set(names) - kept
    assert {word for name in seen for word in name.split()} == {word for name in names for word in name.split()}
    picture = ground(item(("the ring", A), ("the blue bar", B), ("a bar right of the red ring", B)),
                     names=("red ring", "blue bar", "ground"), unseen=kept)  # fmt: skip
    assert ["unseen" in q.tags for q in picture.queries] == [True, False, True]
    left = without(picture, "unseen")
    assert [(q.text, q.pool) for q in left.queries] == [("the blue bar", (1, 2))]  # the red ring is no wrong answer


def test_scenes_ask_for_what_shows() -> None:
    data = open_dataset("scenes:hard", "test")
    for index in range(6):
        picture = ground(data[index], names=data.regions, unseen=unseen_compositions(data.regions))
        assert picture.size == (192, 192)
        assert len(picture.regions) == len(data[index].boxes)  # no phrase has a box of its own
        assert [q.text for q in picture.queries] == [text.lower() for text, _ in data[index].phrases]
        assert all(len(q.truth) == 1 and len(q.pool) == len(picture.regions) for q in picture.queries)
    assert is_spatial("the ring left of the bar") and is_spatial("the bar touching the disc")
    assert not is_spatial("the red bar") and not is_spatial("a belowground aboveboard thing")


def test_coverage_is_exact() -> None:
    boxes = torch.tensor([[5.0, 0, 25, 20], [0, 0, 100, 80], [12, 12, 13, 13]], dtype=torch.float64)
    shares = coverage(boxes, (100, 80), (4, 5))  # patches of 20 x 20 pixels
    assert shares[0].tolist()[0] == pytest.approx([0.75, 0.25, 0, 0, 0])
    assert float(shares[0, 1:].sum()) == 0
    assert torch.equal(shares[1], torch.ones(4, 5, dtype=torch.float64))
    assert (shares.sum((1, 2)) * 400).tolist() == pytest.approx([400, 8000, 1])
    features = torch.arange(20.0).reshape(4, 5, 1)
    assert box_means(features, boxes, (100, 80))[:, 0].tolist() == pytest.approx([0.25, 9.5, 0])
    assert centres((4, 5), (100, 80))[1, 2].tolist() == [50, 30]


def test_a_box_is_the_part_of_a_map_around_its_maximum() -> None:
    one = torch.zeros(4, 5)
    one[1, 1:4] = torch.tensor([0.5, 1.0, 0.49])
    one[2, 1], one[3, 4] = 0.6, 0.9  # below the one to the left; as high as half, but apart
    assert map_box(one / one.sum(), (100, 80)).tolist() == [20, 20, 60, 60]
    assert map_box(one, (100, 80), level=0.45).tolist() == [20, 20, 80, 60]
    assert map_box(torch.full((4, 5), 0.05), (100, 80)).tolist() == [0, 0, 100, 80]


def test_answers_that_are_right_wrong_and_half_right() -> None:
    picture = ground(item(("a", A), ("b", B), ("c", C), ("d", A), ("d", C)))
    maps = torch.zeros(4, 4, 5)  # patches of 20 x 20 pixels
    maps[0, :2, :2] = 0.25  # exactly box A
    maps[1, 0, 2], maps[1, 0, 0] = 0.5, 0.5  # two equal maxima, the second one's centre (50, 10) in box B
    maps[2, 2:, :] = 0.1  # the lower half: its first row of centres lies on the edge of box C, which begins at 50
    maps[3, 3, 2] = 1.0
    found = judge_maps(maps, picture)
    assert found["pointing"].tolist() == [1, 0.5, 1, 1]
    assert found["energy"].tolist() == pytest.approx([1, 0.25, 0.75, 1])
    assert found["acc@0.5"].tolist() == [1, 0, 1, 0]
    boxes = judge_boxes([0, 0, 2, 2], picture)
    assert boxes["pointing"].tolist() == [1, 0, 1, 1]
    assert boxes["energy"].tolist() == [1, 0, 1, 1]
    assert boxes["acc@0.5"].tolist() == [1, 0, 1, 1]
    centre = centre_map((4, 6))
    assert float(centre.sum()) == pytest.approx(1) and torch.allclose(centre, centre.flip(0, 1))


def test_hashed_phrases_are_the_same_everywhere() -> None:
    found = embed_phrases(["a red ring", "two cats", "two  Cats", "two dogs", "the bar left of the disc"])
    assert found.shape == (5, 512) and found.norm(dim=1).tolist() == pytest.approx([1] * 5)
    assert found[0, :12].sign().tolist() == [1, 1, -1, 1, 1, -1, 1, 1, 1, -1, -1, -1]
    assert torch.equal(found[1], found[2])
    cat, dog, dogs = embed_phrases(["cat", "dog", "dogs"])
    assert float(dog @ dogs) > float(dog @ cat) + 0.15


def sentence_encoder(folder: Path) -> Path:
    """A BERT of two layers that knows seven words."""
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "a", "red", "ring", "dog", "the"])}
    tokens = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    hf.PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="[PAD]").save_pretrained(folder)
    torch.manual_seed(0)
    config = hf.BertConfig(
        vocab_size=7, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=8,
    )  # fmt: skip
    hf.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def test_any_text_encoder_of_transformers_will_do(tmp_path: Path) -> None:
    folder = sentence_encoder(tmp_path)
    texts = ["a red ring", "dog", "the dog " * 9]
    found = embed_phrases(texts, folder)
    assert found.shape == (3, 16)
    model, tokenizer = hf.AutoModel.from_pretrained(folder), hf.AutoTokenizer.from_pretrained(folder)
    for row, text in zip(found, texts, strict=True):  # one by one: padding must not matter
        ids = torch.tensor([tokenizer(text)["input_ids"][:8]])
        with torch.no_grad():
            mean = model.eval()(input_ids=ids).last_hidden_state[0].mean(0)
        assert torch.allclose(row, mean / mean.norm(), atol=1e-5)


def test_bad_phrases_and_encoders_are_one_line(tmp_path: Path) -> None:
    for texts, message in (([], "list of strings"), ("a ring", "list of strings"), (["a", " "], "without words"),
                           (["a ring", "?!"], r"'\?!'.*zero")):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            embed_phrases(texts)
    with pytest.raises(ConfigError, match="choices: hashed, DIR"):
        text_encoder("hash")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        text_encoder(tmp_path)


def test_bad_questions_are_one_line() -> None:
    with pytest.raises(ConfigError, match=r"one: box \(100, 0, 120, 9\) has no area inside .* 100 x 80"):
        ground(item(("a", (100.0, 0.0, 120.0, 9.0))))
    with pytest.raises(ConfigError, match=r"no truth 'all'.*choices: any, merged"):
        ground(item(("a", A)), truth="all")
    with pytest.raises(ConfigError, match="need the names"):
        ground(item(("a", A)), class_names=True)
    with pytest.raises(ConfigError, match=r"gone\.png"):
        ground(Item("gone.png", Path("gone.png"), phrases=(("a", A),)))
