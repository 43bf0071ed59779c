"""The one interface: sizes, batches, dtypes, texts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from dino_tower import load_tower
from dino_tower.errors import ConfigError
from dino_tower.images import processor_for
from dino_tower.tokens import Tokens
from dino_tower.tower import Tower

SIDE, PATCH = 32, 8
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
VISION = SMALL | {"image_size": SIDE, "patch_size": PATCH}
WORDS = ["<pad>", "<s>", "</s>", "a", "red", "blue", "ring", "on", "the", "left"]
TEXT = SMALL | {"vocab_size": len(WORDS), "max_position_embeddings": 12, "bos_token_id": 1, "eos_token_id": 2}
SENTENCES = ["a red ring", "the blue ring on the left"]


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Dinov2 with its processor."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("towers") / "tiny"
    config = {k: v for k, v in VISION.items() if k != "intermediate_size"} | {"mlp_ratio": 2, "layerscale_value": 1.0}
    hf.Dinov2Model(hf.Dinov2Config(**config)).save_pretrained(folder)
    processor_for(SIDE, PATCH).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tower(directory: Path) -> Tower:
    return load_tower(directory)


@pytest.fixture
def damaged(directory: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(directory, tmp_path / "tower"))


def test_a_picture_goes_through_the_saved_processor(tower: Tower) -> None:
    images = [photo(50, 40), photo(64, 64, 1)]
    pixels = tower.processor(images, return_tensors="pt").pixel_values
    out, same = tower(images), tower(pixels)
    assert torch.equal(out.patches, same.patches) and torch.equal(out.cls, same.cls)
    assert out.patches.shape == (2, 4, 4, 32)
    assert (tower.patch, tower.width, tower.depth, tower.native, tower.family) == (8, 32, 2, None, "dinov2")


def test_whole_pictures_keep_their_shape_and_come_one_by_one_where_it_differs(tower: Tower) -> None:
    images = [photo(50, 34), photo(24, 40, 1), photo(50, 34, 2)]
    assert tower(images, size=(30, 50)).patches.shape == (3, 4, 6, 32)  # rounded to patches
    out = tower(images, size="native")
    assert [one.patches.shape for one in out] == [(1, 4, 6, 32), (1, 5, 3, 32), (1, 4, 6, 32)]
    for image, one in zip(images, out, strict=True):  # those of one size share a forward, and stay in their places
        alone = tower([image], size="native")
        assert (one.patches - alone.patches).abs().max() < 1e-5 and (one.cls - alone.cls).abs().max() < 1e-5
    layers = tower.layers(images, [1], size="native")
    assert [one.patches.shape for (one,) in layers] == [(1, 4, 6, 32), (1, 5, 3, 32), (1, 4, 6, 32)]
    with pytest.raises(ConfigError, match="different grids"):
        tower.attention(images, size="native")
    with pytest.raises(ConfigError, match="different grids"):
        tower.keys(images, size="native")


def test_paths_and_any_kind_of_picture(tower: Tower, tmp_path: Path) -> None:
    photo(50, 40).save(tmp_path / "a.png")
    assert torch.equal(tower([tmp_path / "a.png"]).patches, tower([photo(50, 40)]).patches)
    assert torch.equal(tower([str(tmp_path / "a.png")]).patches, tower([photo(50, 40)]).patches)
    deep = Image.fromarray(np.full((40, 40), 65535, dtype=np.uint16))
    clear = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    white = tower([Image.new("RGB", (40, 40), "white")]).patches
    assert torch.equal(tower([deep]).patches, white) and torch.equal(tower([clear]).patches, white)


def test_a_processor_that_does_not_crop_gives_pictures_of_their_own_shapes(damaged: Path) -> None:
    processor = hf.BitImageProcessor(size={"shortest_edge": 32}, do_center_crop=False)
    processor.save_pretrained(damaged)
    tower = load_tower(damaged)
    out = tower([photo(48, 32), photo(32, 40, 1)])
    assert [one.patches.shape for one in out] == [(1, 4, 6, 32), (1, 5, 4, 32)]
    with pytest.raises(ConfigError, match="not a multiple of the patch size 8; size= rounds"):
        tower([photo(44, 32)])


def test_another_size_is_made_with_the_tower_s_own_filter(damaged: Path) -> None:
    """A size that was asked for was always made bicubically, also for towers like SigLIP that learned from others."""
    picture = photo(70, 50)
    for how in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC):
        processor = processor_for(SIDE, PATCH)
        processor.resample = how
        processor.save_pretrained(damaged)
        tower = load_tower(damaged)
        asked, given = tower.pixels([picture], size=(40, 48)), picture.resize((48, 40), how)
        assert torch.equal(torch.as_tensor(asked), torch.as_tensor(tower.pixels([given], size="native")))


def test_a_mask_token_may_be_missing(damaged: Path, tower: Tower) -> None:
    """Conversions leave it out, and no tower reads it."""
    weights = load_file(damaged / "model.safetensors")
    del weights["embeddings.mask_token"]
    save_file(weights, damaged / "model.safetensors", {"format": "pt"})
    assert torch.equal(load_tower(damaged)([photo(40, 40)]).patches, tower([photo(40, 40)]).patches)


def test_dtype_and_device(directory: Path, damaged: Path) -> None:
    tower = load_tower(directory, device="cpu", dtype="bfloat16")
    out = tower([photo(40, 40)])
    assert out.patches.dtype == tower.dtype == torch.bfloat16
    assert (out.patches.float() - load_tower(directory)([photo(40, 40)]).patches).abs().max() < 0.1
    assert tower.to(dtype=torch.float32).dtype == torch.float32
    tower.to(dtype="float16").model.save_pretrained(damaged)
    assert load_tower(damaged).dtype == torch.float32  # whatever the file holds
    assert load_tower(damaged, dtype="auto").dtype == torch.float16
    with pytest.raises(ConfigError, match="no dtype 'fp16'; did you mean 'float16'"):
        load_tower(directory, dtype="fp16")
    with pytest.raises(ConfigError, match="device 'cuba' cannot be used"):
        load_tower(directory, device="cuba")


def test_sizes_of_siglip_2_are_what_its_processor_makes_of_a_picture(tmp_path: Path) -> None:
    """Its processor keeps the shape of a picture and cuts it into patches itself, padded to a fixed number."""
    torch.manual_seed(0)
    small = {k: v for k, v in VISION.items() if k != "image_size"} | {"num_patches": 16}
    model: Any = hf.Siglip2VisionModel(hf.Siglip2VisionConfig(**small)).eval()
    processor = hf.Siglip2ImageProcessor(patch_size=PATCH, max_num_patches=20)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    tower = load_tower(tmp_path)
    images = [photo(60, 40), photo(30, 90, 1)]
    batch = processor(images, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    out = tower(images)
    assert isinstance(out, list)
    for one, row, (h, w) in zip(out, hidden, batch["spatial_shapes"].tolist(), strict=True):
        assert one.patches.shape == (1, h, w, 32)
        assert (one.patches.flatten(1, 2)[0] - row[: h * w]).abs().max() < 1e-6
    assert tower(images, size=(48, 64)).patches.shape == (2, 6, 8, 32)


def tokenizer(folder: Path, clip: bool) -> None:
    """Ten words."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    pattern = "<s> $A </s>" if clip else "$A </s>"
    words.post_processor = processors.TemplateProcessing(single=pattern, special_tokens=[("<s>", 1), ("</s>", 2)])
    hf.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>").save_pretrained(folder)


def two_halves(kind: str) -> Any:
    """A small CLIP or SigLIP."""
    torch.manual_seed(0)
    if kind == "clip":
        return hf.CLIPModel(hf.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16)).eval()
    return hf.SiglipModel(hf.SiglipConfig(text_config=TEXT, vision_config=VISION)).eval()


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_model_of_pictures_and_texts(kind: str, tmp_path: Path) -> None:
    model = two_halves(kind)
    model.save_pretrained(tmp_path)
    processor_for(SIDE, PATCH).save_pretrained(tmp_path)
    tokenizer(tmp_path, clip=kind == "clip")
    tower = load_tower(tmp_path)
    images = [photo(50, 40), photo(64, 64, 1)]
    pixels = tower.pixels(images)
    filled = {"padding": "max_length", "max_length": 12} if kind == "siglip" else {"padding": True}
    words = hf.AutoTokenizer.from_pretrained(tmp_path)(SENTENCES, return_tensors="pt", **filled)
    words = words if kind == "clip" else {"input_ids": words["input_ids"]}
    with torch.no_grad():
        pictures = model.get_image_features(pixels).pooler_output
        texts = model.get_text_features(**words).pooler_output
        normed = model.vision_model.post_layernorm(model.vision_model(pixels).last_hidden_state)
        normed = normed[:, 1:] if kind == "clip" else model.vision_model(pixels).last_hidden_state
    assert (tower.embed(images) - pictures).abs().max() < 1e-6
    assert torch.equal(tower.text(SENTENCES), texts)
    assert (tower(images).patches.flatten(1, 2) - normed).abs().max() < 1e-6
    assert tower.embed([photo(48, 32)], size="native").shape == (1, pictures.shape[1])
    assert tower.to(dtype="bfloat16").text(SENTENCES).dtype == torch.bfloat16  # both halves move
    twin = load_tower(f"random:{tmp_path}")
    assert twin.text(SENTENCES).shape == texts.shape
    assert not torch.equal(twin(images).patches, load_tower(tmp_path)(images).patches)
    with pytest.raises(ConfigError, match="a list of strings"):
        tower.text("a red ring")


def test_texts_without_a_tokenizer_are_one_line(tmp_path: Path) -> None:
    config = hf.CLIPConfig(text_config=TEXT | {"vocab_size": 1000}, vision_config=VISION, projection_dim=16)
    hf.CLIPModel(config).save_pretrained(tmp_path)
    processor_for(SIDE, PATCH).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"its tokenizer .* words"):  # transformers makes up an empty one, silently
        load_tower(tmp_path).text(SENTENCES)


def test_an_untrained_architecture_is_the_same_every_time_and_draws_from_nobody() -> None:
    torch.manual_seed(7)
    before = torch.rand(1)
    torch.manual_seed(7)
    a = load_tower("random:vitt16_siglip")
    assert torch.equal(torch.rand(1), before)
    out, again = a([photo(64, 64)]), load_tower("random:vitt16_siglip")([photo(64, 64)])
    assert isinstance(out, Tokens) and torch.equal(out.patches, again.patches)
    assert out.cls is None and torch.equal(out.pooled, out.patches.mean((1, 2)))
