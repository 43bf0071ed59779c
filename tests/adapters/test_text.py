"""Text alignment's parts: losses against the published ones, the model's class, its text encoders, what it draws."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import transformers as hf
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from dino_tower import load_tower
from dino_tower.adapters.text.encoders import TextEncoder, read_encoder, small_encoder
from dino_tower.adapters.text.settings import TextConfig
from dino_tower.adapters.text.state import write_tower
from dino_tower.adapters.text.words import word_tokenizer
from dino_tower.architectures import build
from dino_tower.contrast import LOSSES, contrast, sigmoid_loss, softmax_loss
from dino_tower.errors import ConfigError
from dino_tower.families import family_of
from dino_tower.images import processor_for
from dino_tower.text_tower import TextTower, text_tower_from
from dino_tower.tokens import Tokens

TEXTS = ["a red ring", "the blue disc left of a ring", "stars"]
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
WORDS = {"vocab_size": 40, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
HALF = {**SMALL, **WORDS, "max_position_embeddings": 24}
# name -> a text encoder, what becomes of its words, the class it is saved as
ENCODERS: dict[str, tuple[Any, str]] = {
    "bert": (lambda: hf.BertModel(hf.BertConfig(**SMALL, **WORDS)), "mean"),
    "language model": (lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL, **WORDS)), "last"),
    "clip": (
        lambda: hf.CLIPModel(hf.CLIPConfig(text_config=HALF, vision_config=SMALL, projection_dim=8)),
        "pooler",
    ),
    "siglip text": (lambda: hf.SiglipTextModel(hf.SiglipTextConfig(**HALF)), "pooler"),
    "t5": (
        lambda: hf.T5EncoderModel(
            hf.T5Config(vocab_size=40, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, pad_token_id=0)
        ),
        "mean",
    ),
}  # fmt: skip


def unit(rows: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed)), dim=-1)


def small_text() -> TextEncoder:
    torch.manual_seed(0)
    return small_encoder(TextConfig(width=32, heads=2, depth=1, length=16), word_tokenizer(TEXTS, 100, 16))


def around(vision: Any, text: TextEncoder) -> TextTower:
    torch.manual_seed(1)
    return text_tower_from(
        vision, text.model, has_cls=family_of(vision).has_cls(vision), blocks=2, text_pooling=text.pooling,
        text_length=text.length, text_padding=text.padding, logit_scale_init_value=2.0,
    ).eval()  # fmt: skip


def test_with_one_text_each_the_losses_are_the_published_ones() -> None:
    image, text, eye = unit(6, 0), unit(6, 1), torch.eye(6, dtype=torch.bool)
    scale, bias = torch.tensor(9.0), torch.tensor(-3.0)
    logits = scale * text @ image.T
    ours = contrast("clip", image, text, scale, torch.tensor(0.0), eye)
    assert torch.allclose(ours, image_text_contrastive_loss(logits), atol=1e-6)
    # SiglipModel.forward, which is algorithm 1 of the paper
    signs = -torch.ones(6, 6) + 2 * torch.eye(6)
    published = -F.logsigmoid(signs * (logits + bias)).sum(-1).mean()
    assert torch.allclose(contrast("siglip", image, text, scale, bias, eye), published, atol=1e-6)


def test_several_texts_of_a_picture_share_its_target() -> None:
    logits = torch.tensor([[2.0, 2.0, -50.0], [-50.0, -50.0, 0.0]], dtype=torch.float64)
    positives = torch.tensor([[True, True, False], [False, False, True]])
    assert softmax_loss(logits, positives) == pytest.approx(np.log(2) / 2)
    assert sigmoid_loss(logits, positives) == pytest.approx((2 * np.log1p(np.exp(-2)) + np.log(2)) / 2)


def _share_of(kind: str, rank: int, port: int, answer: Any) -> None:
    """One of two processes: half of the pictures, half of the texts."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    weight, loss = _loss_of(kind, slice(2 * rank, 2 * rank + 2), slice(4 * rank, 4 * rank + 4), rank)
    dist.all_reduce(weight)
    dist.all_reduce(loss)
    if rank == 0:
        answer.send((weight / 2, loss / 2))
    dist.destroy_process_group()


def _loss_of(kind: str, images: slice, texts: slice, rank: int) -> tuple[Tensor, Tensor]:
    weight = torch.nn.Parameter(torch.eye(8) + 0.1 * unit(8, 5))
    positives = torch.eye(4, dtype=torch.bool).repeat_interleave(2, 1)
    positives[3, 0] = True
    pairs = F.normalize(unit(4, 2)[images] @ weight, dim=-1), F.normalize(unit(8, 3)[texts] @ weight.T, dim=-1)
    loss = contrast(kind, *pairs, torch.tensor(7.0), torch.tensor(-1.0), positives, rank)
    loss.backward()
    assert weight.grad is not None
    return weight.grad, loss.detach()


@pytest.mark.parametrize("kind", LOSSES)
def test_two_processes_have_the_loss_and_the_gradient_of_one(kind: str) -> None:
    whole = _loss_of(kind, slice(None), slice(None), 0)
    context: Any = torch.multiprocessing.get_context("fork")
    here, there = context.Pipe()
    port = 20000 + os.getpid() % 20000
    children = [context.Process(target=_share_of, args=(kind, rank, port, there)) for rank in range(2)]
    for child in children:
        child.start()
    assert here.poll(60), "the two processes did not answer"
    halves = here.recv()
    for child in children:
        child.join(20)
    for one, two in zip(whole, halves, strict=True):
        assert (one - two).abs().max() < 1e-6


def test_whole_words_in_any_order_make_the_same_tokenizer() -> None:
    one, other = word_tokenizer(TEXTS, 100, 16), word_tokenizer(TEXTS[::-1], 100, 16)
    assert one.get_vocab() == other.get_vocab()
    assert one.decode(one("A RED star, left of it")["input_ids"]) == "a red [UNK] [UNK] left of [UNK]"
    assert len(word_tokenizer(["b b a a c"], 2, 16)) == 4  # the two most frequent, padding and unknown


@pytest.mark.parametrize("arch", ["vitt16", "vitt16_reg4", "vitt16_rope", "vitt16_siglip", "vitt16_clip", "resnet8"])
def test_every_family_goes_into_the_class_and_comes_back(arch: str, tmp_path: Path) -> None:
    options = {} if arch == "resnet8" else {"width": 32, "depth": 1, "heads": 2}
    torch.manual_seed(0)
    vision = build(arch, image_size=32, **options).eval()
    text = small_text()
    model = around(vision, text)
    processor = processor_for(32, 16)
    write_tower(tmp_path, model, processor, text)
    tower = load_tower(tmp_path)
    images = [Image.effect_noise((40, 40), 60 + i).convert("RGB") for i in range(2)]
    pixels = tower.pixels(images)
    twin = hf.AutoModel.from_pretrained(tmp_path).eval()
    reader = hf.AutoProcessor.from_pretrained(tmp_path)
    ready = reader(images=images, text=TEXTS, return_tensors="pt", padding=True)
    with torch.no_grad():
        out = twin(ready["input_ids"], ready["pixel_values"], ready["attention_mask"])
        assert torch.equal(tower.embed(images), model.get_image_features(pixels).pooler_output)
        assert torch.equal(tower.embed_patches(images), model.get_patch_features(pixels))
    assert torch.equal(F.normalize(tower.embed(images), dim=-1), out.image_embeds)
    assert torch.equal(F.normalize(tower.text(TEXTS), dim=-1), out.text_embeds)
    assert torch.allclose(out.logits_per_image, np.exp(2) * out.image_embeds @ out.text_embeds.T, atol=1e-5)
    # the picture's second half is the mean of its patches, and patches are compared with the text's second half
    d = tower.width
    assert tower.embed(images).shape == (2, 2 * d) and tower.text(TEXTS, patches=True).shape == (3, d)
    assert torch.equal(tower.embed(images)[:, d:], tower.embed_patches(images).mean((1, 2)))
    assert torch.equal(tower.text(TEXTS)[:, d:], tower.text(TEXTS, patches=True))
    # and the tower inside is the one that went in
    found, before = tower(images), load_tower_from(vision, processor)(images)
    assert isinstance(found, Tokens) and torch.equal(found.patches, before.patches)
    assert str(tmp_path) not in (tmp_path / "config.json").read_text()


def load_tower_from(vision: Any, processor: Any) -> Any:
    from dino_tower.tower import Tower

    return Tower(vision, processor, "before")


def test_only_the_head_and_the_text_encoder_are_trained() -> None:
    vision = build("vitt16", image_size=32, width=32, depth=1, heads=2)
    model = around(vision, small_text()).train()
    assert not model.vision_model.training and model.vision_head.training
    loss = model(torch.tensor([[2, 3]]), torch.randn(2, 3, 32, 32)).logits_per_image.sum()
    loss.backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    touched = [name for name, p in model.named_parameters() if p.grad is not None and name.startswith("vision_model.")]
    assert missing == [] and touched == []
    model.freeze(text=True)
    assert not any(p.requires_grad for p in model.text_model.parameters())
    assert model.text_projection.weight.requires_grad


@pytest.mark.parametrize("name", ENCODERS)
def test_a_text_encoder_from_a_directory(name: str, tmp_path: Path) -> None:
    """A text means the same alone and beside a longer one; the class comes back with the same numbers."""
    make, pooling = ENCODERS[name]
    torch.manual_seed(0)
    make().save_pretrained(tmp_path / "text")
    tokenizer = word_tokenizer([*TEXTS, " ".join("abcdefghijklmnopqrstuvw")], 36, 64)
    tokenizer.add_special_tokens({"eos_token": "[EOS]"})
    tokenizer.save_pretrained(tmp_path / "text")
    text = read_encoder(TextConfig(encoder=str(tmp_path / "text")))
    assert text.pooling == pooling and text.length <= 64
    model = around(build("vitt16", image_size=32, width=32, depth=1, heads=2), text)
    write_tower(tmp_path / "tower", model, processor_for(32, 16), text)
    tower = load_tower(tmp_path / "tower")
    together, alone = tower.text(TEXTS), torch.cat([tower.text([one]) for one in TEXTS])
    assert (together - alone).abs().max() < 1e-5
    assert (together[0] - together[1]).abs().max() > 1e-4
    words = text.words(TEXTS)
    pixels = torch.randn(2, 3, 32, 32)
    model.train()(words["input_ids"], pixels, words["attention_mask"]).logits_per_image.sum().backward()
    # DDP waits for every parameter that asks for a gradient
    assert [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_clip_takes_the_same_path_and_siglip_says_why_not(tmp_path: Path) -> None:
    vision = {**SMALL, "image_size": 32, "patch_size": 16}
    models = {
        "clip": hf.CLIPModel(hf.CLIPConfig(text_config=HALF, vision_config=vision, projection_dim=8)),
        "siglip": hf.SiglipModel(hf.SiglipConfig(text_config=HALF, vision_config=vision)),
    }
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        processor_for(32, 16).save_pretrained(tmp_path / name)
        word_tokenizer([*TEXTS, " ".join("abcdefghijklmnopqrstuvw")], 38, 24).save_pretrained(tmp_path / name)
    clip, image = load_tower(tmp_path / "clip"), [Image.new("RGB", (32, 32))]
    assert clip.embed_patches(image).shape == (1, 2, 2, 8)
    assert torch.equal(clip.text(TEXTS, patches=True), clip.text(TEXTS))
    with pytest.raises(ConfigError, match="pools all patches at once"):
        load_tower(tmp_path / "siglip").embed_patches(image)
    with pytest.raises(ConfigError, match="no text encoder"):
        load_tower("builtin:scenes").embed_patches(image)
