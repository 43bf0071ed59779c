"""Open-vocabulary segmentation and feature health: perfect and blind towers, and what would change the number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional as F

from dino_tower import load_tower
from dino_tower.eval.cache import Cache
from dino_tower.eval.datasets.base import VOID, Dataset, Item
from dino_tower.eval.geometry import TOKENS, Frame
from dino_tower.eval.raw import RawPixels
from dino_tower.eval.stats import interval, score
from dino_tower.eval.task import Split
from dino_tower.eval.tasks.health import HEALTH
from dino_tower.eval.tasks.open_vocabulary import OPEN_VOCABULARY, last_block
from dino_tower.eval.view import Source, View
from dino_tower.images import processor_for

GRID = 16
NAMES = ("background", "red_disc", "blue ring", "star")
DIRECTIONS = {"background": 0, "red disc": 1, "blue ring": 2, "star": 3}


class Rows(list):
    """Patches of pictures, as a view gives them."""

    @property
    def width(self) -> int:
        return self[0].shape[-1]

    def stack(self, places: Sequence[int]) -> Tensor:
        return torch.stack([self[place] for place in places])

    def sample(self, most: int) -> Tensor:
        return torch.cat([one.flatten(0, 1)[: max(1, most // len(self))] for one in self])


class FakeView:
    """see: a picture's item to its patches [h, w, D]."""

    def __init__(self, see: Callable[[Item], Tensor], tower: Any) -> None:
        self.see, self.tower = see, tower

    def rows(self, data: Dataset) -> Rows:
        return Rows(self.see(item) for item in data)

    def vectors(self, data: Dataset) -> Tensor:
        return torch.zeros(len(data), 4)


def view(see: Callable[[Item], Tensor], **tower: Any) -> View:
    return FakeView(see, SimpleNamespace(patch=8, **tower))  # type: ignore[return-value]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def text(texts: Sequence[str], patches: bool = False) -> Tensor:
    """What a word means; only the patches' part of a text is asked for."""
    assert patches
    return torch.stack([torch.eye(4)[next(i for name, i in DIRECTIONS.items() if name in one)] for one in texts])


ALIGNED: dict[str, Any] = {
    "has_text": True, "text_kind": "dino_tower_text", "text": text, "project": lambda found: found.patches,
    "device": torch.device("cpu"), "dtype": torch.float32,
}  # fmt: skip


def masks(count: int = 6) -> Split:
    """Halves of background and one other class; no picture has a star; the two lowest rows are in doubt."""
    items = []
    for i in range(count):
        mask = np.zeros((GRID, GRID), np.uint8)
        mask[:, GRID // 2 :] = 1 + i % 2
        mask[-2:] = VOID
        items.append(Item(str(i), Image.new("RGB", (GRID, GRID)), mask_reader=lambda mask=mask: mask))
    return Split(None, Dataset("set", "made", "test", "hand", items, frozenset({"masks"}), regions=NAMES))


def test_open_vocabulary_with_a_perfect_and_a_blind_tower() -> None:
    """Void pixels leave the count, and a class that nobody shows or names leaves the mean."""

    def see(item: Item) -> Tensor:
        return torch.eye(4)[torch.from_numpy(item.mask() % VOID).long()]

    found = OPEN_VOCABULARY.run(view(see, **ALIGNED), masks(), 0)
    assert {name: score(parts) for name, parts in found.parts.items()} == {"miou": 1.0, "vanilla": 1.0}
    assert found.chosen == {"form": "vanilla"}
    blind = OPEN_VOCABULARY.run(view(lambda item: torch.eye(4)[0].expand(GRID, GRID, 4), **ALIGNED), masks(), 0)
    assert score(blind.parts["miou"]) == pytest.approx((0.5 + 0 + 0) / 3)
    # named though never there: now the absent class has IoU 0 and counts
    stars = OPEN_VOCABULARY.run(view(lambda item: torch.eye(4)[3].expand(GRID, GRID, 4), **ALIGNED), masks(), 0)
    assert score(stars.parts["miou"]) == 0


def test_open_vocabulary_is_scored_at_the_size_of_the_label() -> None:
    """A line one pixel wide is lost by patches of eight; on labels shrunken to patches it would not have been there."""
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 33] = 1
    item = Item("line", Image.new("RGB", (64, 64)), mask_reader=lambda: mask)
    data = Split(None, Dataset("set", "made", "test", "hand", [item], frozenset({"masks"}), regions=NAMES))
    found = OPEN_VOCABULARY.run(view(lambda item: torch.eye(4)[0].expand(8, 8, 4), **ALIGNED), data, 0)
    assert score(found.parts["miou"]) == pytest.approx(63 / 64 / 2)


@pytest.mark.parametrize(
    ("tower", "reason"),
    [
        ({"has_text": False}, "no text encoder"),
        ({"has_text": True, "text_kind": "siglip"}, "a siglip pools all patches at once"),
        ({"has_text": True, "text_kind": "clip"}, None),
    ],
)
def test_towers_that_cannot_name_patches_say_why(tower: dict, reason: str | None) -> None:
    found = OPEN_VOCABULARY.fits(view(lambda item: torch.zeros(1), **tower), masks())
    assert found is None if reason is None else (found or "").startswith(reason)


def small_clip(folder: Path) -> None:
    """Fifteen words, two blocks."""
    words = ["<pad>", "<s>", "</s>", "[UNK]", "red", "disc", "blue", "ring", "star", "background", "a", "photo", "of",
             "the", "art"]  # fmt: skip
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="[UNK]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    words_of = {"vocab_size": len(words), "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2}
    config = hf.CLIPConfig(
        text_config={**size, **words_of, "pad_token_id": 0},
        vision_config={**size, "image_size": 32, "patch_size": 8}, projection_dim=16,
    )  # fmt: skip
    hf.CLIPModel(config).save_pretrained(folder)
    processor_for(32, 8).save_pretrained(folder)


def test_a_clip_in_three_forms_from_its_own_cache(tmp_path: Path) -> None:
    """As trained, the last block that is computed again from kept tokens gives what the whole tower gives."""
    small_clip(tmp_path / "clip")
    tower = load_tower(tmp_path / "clip")
    rng = np.random.default_rng(0)
    items = []
    for i in range(3):
        picture = Image.fromarray(rng.integers(0, 255, (40, 48, 3), dtype=np.uint8))
        mask = rng.integers(0, 3, (40, 48)).astype(np.uint8)
        items.append(Item(str(i), picture, mask_reader=lambda mask=mask: mask))
    data = Dataset("set", "made", "test", "hand", items, frozenset({"masks"}), regions=NAMES)
    made = View(Source(tower, Cache(tmp_path / "cache"), "float32"), Frame("square", TOKENS, tokens=6))
    found = OPEN_VOCABULARY.run(made, Split(None, data), 0)
    assert list(found.parts) == ["miou", "vanilla", "maskclip", "sclip"]
    assert found.chosen == {"form": "sclip"}
    assert score(found.parts["miou"]) == score(found.parts["sclip"])
    read = made.source.pictures_read
    OPEN_VOCABULARY.run(made, Split(None, data), 1)
    assert made.source.pictures_read == read == 3
    cls, rows = made.entering(data)
    hidden = torch.cat([cls[:1], rows[0].flatten(0, 1)])[None]
    with torch.no_grad():
        again = last_block(tower, hidden, "vanilla")
        whole = tower([items[0].image()], size=(48, 48))
        own = last_block(tower, hidden, "maskclip")
        attention = list(tower.model.encoder.layers)[-1]
        values = attention.self_attn.v_proj(attention.layer_norm1(hidden))
        expected = tower.model.post_layernorm(attention.self_attn.out_proj(values))
    assert (again[0, 1:] - whole.patches.flatten(1, 2)[0]).abs().max() < 1e-5  # type: ignore[union-attr]
    assert torch.allclose(own, expected, atol=1e-6)


def photos(count: int = 12) -> Split:
    rng = np.random.default_rng(1)
    items = [Item(str(i), Image.fromarray(rng.integers(0, 255, (128, 128, 3), dtype=np.uint8))) for i in range(count)]
    return Split(None, Dataset("set", "made", "test", "hand", items, frozenset()))


def local(item: Item) -> Tensor:
    """A tower that sees each patch of 8 x 8 pixels by itself."""
    cells = torch.from_numpy(np.array(item.image(), np.float32) / 255 - 0.5).permute(2, 0, 1)
    return F.adaptive_avg_pool2d(cells, 2 * GRID).unfold(1, 2, 2).unfold(2, 2, 2).permute(1, 2, 0, 3, 4).flatten(2)


def health(see: Callable[[Item], Tensor], data: Split | None = None) -> dict[str, float]:
    found = HEALTH.run(view(see), data or photos(), 0)
    return {name: score(parts) for name, parts in found.parts.items()}


def test_patches_that_know_only_what_they_show_are_healthy() -> None:
    found = health(local)
    assert found["shift"] == pytest.approx(1.0, abs=1e-6)  # the same content at another place is the same
    assert found["outliers"] < 0.01
    assert abs(found["position"]) < 0.05
    assert found["position-variance"] < 0.05
    assert 8 < found["rank"] <= 12


def test_patches_that_know_only_their_place_are_found_out() -> None:
    y, x = torch.meshgrid(torch.linspace(-1, 1, GRID), torch.linspace(-1, 1, GRID), indexing="ij")
    place = torch.stack([y, x, y * x, y**2, x**2, torch.ones_like(x)], -1)
    found = health(lambda item: place)
    assert found["position"] == pytest.approx(1.0, abs=1e-3)
    assert found["position-variance"] == pytest.approx(1.0)
    assert found["shift"] < 0.95


def test_a_place_that_only_known_pictures_betray_is_not_read() -> None:
    """Every picture codes the place by numbers of its own: fitted and judged on the same pictures it would be read."""
    assert health(lambda item: noise(GRID, GRID, 600, seed=int(item.id)), photos(4))["position"] < 0.1


def test_outliers_are_counted_in_each_picture() -> None:
    def see(item: Item) -> Tensor:
        norms = 1 + 0.1 * torch.rand(GRID, GRID, 1, generator=torch.Generator().manual_seed(int(item.id)))
        found = norms * F.normalize(local(item), dim=-1)
        found[0, : int(item.id) % 3] *= 2
        return found

    parts = HEALTH.run(view(see), photos(), 0).parts["outliers"]
    assert parts.numerator[:3, 0].tolist() == pytest.approx([0, 1 / 256, 2 / 256])
    assert score(parts) == pytest.approx(1 / 256)


def test_what_no_picture_adds_a_share_to_has_no_interval() -> None:
    found = HEALTH.run(view(local), photos(24), 0)
    assert interval(found.parts["shift"]).units == 24
    assert interval(found.parts["rank"]).units == 1
    assert np.isnan(interval(found.parts["rank"]).low)
    assert len(found.pictures) == 24
    assert HEALTH.metrics["rank"].better == "none"


def test_of_raw_pixels_the_place_itself_is_left_out(tmp_path: Path) -> None:
    """Their last two numbers are x and y, from which anything could read the place."""
    source = Source(RawPixels(), Cache(tmp_path))  # type: ignore[arg-type]
    found = HEALTH.run(View(source, Frame("square", TOKENS, tokens=8)), photos(), 0)
    assert score(found.parts["position"]) < 0.2
    assert score(found.parts["shift"]) > 0.999


def test_health_needs_pictures_that_were_not_fitted_on() -> None:
    assert HEALTH.fits(view(local), photos(3)) == "3 pictures; needs four or more"
    assert HEALTH.fits(view(local), photos(4)) is None
