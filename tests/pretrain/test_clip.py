"""CLIP's term: the loss against transformers' own class, and a run that knows words when it is done."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, AutoProcessor

from dino_tower import export_tower, load_tower
from dino_tower.dual import TextSide, joined
from dino_tower.errors import ConfigError
from dino_tower.pretrain.loading.data import Beside, build_loader
from dino_tower.pretrain.network.networks import make_networks
from dino_tower.pretrain.network.student_teacher import Network
from dino_tower.pretrain.objectives.clip import Clip, captions_of
from dino_tower.pretrain.objectives.control_settings import ClipConfig
from dino_tower.pretrain.objectives.objective import beside, make_objective
from dino_tower.pretrain.objectives.settings import TermsConfig
from dino_tower.pretrain.objectives.term import Inputs, Rates
from dino_tower.pretrain.optim import groups_of
from dino_tower.pretrain.settings import Config, CropsConfig, ModelConfig
from dino_tower.sources import Sample, Source, open_source
from dino_tower.tokens import tokens

TEXTS = ["a red ring", "two blue discs left of a star", "a red ring among bars", "Ein Vögelchen", "stars"]
SMALL = ClipConfig(vocabulary=300, read=20, length=16, width=16, depth=1, heads=2, embedding=8)
FLAGS = (
    "--objective clip --clip.vocabulary 300 --clip.read 20 --clip.length 24 --clip.width 16 --clip.depth 1 "
    "--clip.heads 2 --clip.embedding 8"
).split()
RATES = Rates(0.04)


class Captioned(Source):
    """Pictures of noise, of which each seventh says nothing."""

    def __init__(self, word: str = "number") -> None:
        self.name, self.word = "captioned", word

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> Sample:
        text = None if index % 7 == 0 else f"{self.word} {index}"
        return Sample(b"", f"n{index}", text=text, more=lambda: [f"other {index}", f"third {index}"] if text else [])


def settings(**clip: object) -> Config:
    return Config(
        arch="vitt8",
        objective="clip",
        crops=CropsConfig(global_size=16, locals=0),
        model=ModelConfig(width=16, depth=1, heads=2, drop_path=0.0),
        clip=replace(SMALL, **clip),
    )


def inputs() -> Inputs:
    g = torch.Generator().manual_seed(0)
    views = [torch.randn(len(TEXTS), 3, 16, 16, generator=g) for _ in range(2)]
    return Inputs(views, torch.zeros(len(TEXTS), dtype=torch.int64), TEXTS)


def made(config: Config) -> tuple[Network, Clip]:
    student, _ = make_networks(config, torch.device("cpu"), world=1, source=Captioned())
    return student, Clip(config)


def parts(config: Config) -> tuple[Tensor, Tensor, TextSide]:
    """Unit vectors of both views [2, B, E] and of the texts [B, E]."""
    student, _ = made(config)
    side: TextSide = student.part("clip")
    images = torch.stack([side.pictures(tokens(student.backbone, view).pooled) for view in inputs().views])
    return F.normalize(images, dim=-1), F.normalize(side.texts(TEXTS), dim=-1), side


@pytest.mark.parametrize("views", [1, 2])
def test_the_loss_is_that_of_transformers(views: int) -> None:
    """The whole of it, two towers with their words; of two views, the mean of both losses."""
    student, term = made(settings(views=views))
    whole = joined(student.backbone, student.part("clip")).eval()
    words = whole.tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    want = [whole(**words, pixel_values=view, return_loss=True).loss for view in inputs().views[:views]]
    loss = term.loss(student, None, inputs(), None, RATES)
    assert torch.allclose(loss, torch.stack(want).mean(), atol=1e-6)
    loss.backward()
    assert all(p.grad is not None for p in student.parameters() if p.requires_grad)
    shared = student.see(inputs().views, patches=False)  # what another term has looked at is not looked at again
    assert torch.allclose(term.loss(student, shared, inputs(), None, RATES), loss, atol=1e-6)


def test_with_the_sigmoid_loss_each_pair_is_judged_by_itself() -> None:
    """Zhai et al. 2023, algorithm 1, with its own beginning: scale 10, bias -10."""
    config = settings(loss="siglip")
    student, term = made(config)
    images, texts, _ = parts(config)
    want = 0.0
    for i, image in enumerate(images[0].tolist()):
        for j, text in enumerate(texts.tolist()):
            logit = 10 * float(np.dot(image, text)) - 10
            want += math.log1p(math.exp(-logit if i == j else logit)) / len(TEXTS)
    loss = term.loss(student, None, inputs(), None, RATES)
    assert loss.item() == pytest.approx(want, rel=1e-5)
    loss.backward()
    assert student.part("clip").logit_bias.grad.abs() > 0


def test_the_scale_stays_below_a_hundred_and_is_not_decayed() -> None:
    for kind, largest in (("clip", 100), ("siglip", 200)):
        student, term = made(settings(loss=kind))
        side = student.part("clip")
        with torch.no_grad():
            side.logit_scale.fill_(math.log(200))
        term.loss(student, None, inputs(), None, RATES)
        term.commit()
        assert side.logit_scale.exp().item() == pytest.approx(largest, rel=1e-5)
        plain = [p for group in groups_of(student, Config().optim) if not group["decayed"] for p in group["params"]]
        assert any(p is side.logit_scale for p in plain)
        assert term.health(None, torch.tensor(0.0))["clip_scale"] == pytest.approx(200, rel=1e-5)  # as the loss had it


def test_a_caption_that_finds_its_picture_is_counted() -> None:
    config = settings()
    student, term = made(config)
    images, texts, _ = parts(config)
    term.loss(student, None, inputs(), None, RATES)
    row = term.health(None, torch.tensor(0.0))
    right = [int((texts @ image).argmax()) == i for i, image in enumerate(images[0])]
    assert row["clip_accuracy"] == pytest.approx(sum(right) / len(right))
    assert row["clip_spread"] == pytest.approx(1 - images[0].mean(0).norm().item() ** 2, abs=1e-5)
    (rule,) = make_objective(config).rules().values()
    assert rule.sign({"clip_spread": 0.001}) and not rule.sign({"clip_spread": 0.1})


def test_clip_beside_another_term() -> None:
    """SLIP in one line (Mu et al. 2021): self-supervision on both views, the caption with the first."""
    config = replace(settings(), terms=TermsConfig(simclr=1.0))
    student, teacher = make_networks(config, torch.device("cpu"), world=1, source=Captioned())
    objective = make_objective(config)
    losses = objective.losses(student, inputs(), objective.targets(teacher, inputs(), RATES), RATES)
    alone = Clip(settings()).loss(student, None, inputs(), None, RATES)
    assert torch.allclose(losses["clip"], alone, atol=1e-6)
    assert torch.allclose(losses["loss"], losses["clip"] + losses["simclr"])


# ---- captions ------------------------------------------------------------------------------------------------------
def test_which_captions_a_picture_is_shown_with() -> None:
    """Its own, or one of all that the data says, by the sample's place; and what the tokenizer is learned from."""
    assert captions_of(Captioned(), 3, every_text=False) == ["number 15", "number 31"]  # the first says nothing
    assert captions_of(Captioned(), 2, every_text=True) == ["number 31", "other 31", "third 31"]

    def shown(**more: object) -> dict[str, str]:
        given = {"seed": 3, "batch_size": 8, "total_steps": 6, "max_skipped": 0.9, **more}
        view = [np.zeros((2, 2, 3), np.uint8)]
        found = build_loader(Captioned(), lambda sample, rng: view, **given)
        pairs = ((batch, *pair) for batch in found for pair in zip(batch.ids, batch.captions, strict=True))
        return {f"{batch.epoch}{name}": text for batch, name, text in pairs}

    first = shown(beside=Beside(captions="first"))
    assert set(first.values()) <= {f"number {i}" for i in range(32)}
    every = shown(beside=Beside(captions="any"))
    assert {text.split()[0] for text in every.values()} == {"number", "other", "third"}
    assert every == shown(beside=Beside(captions="any"), batch_size=4, accumulate=2)
    assert any(every[f"0{name[1:]}"] != text for name, text in every.items() if f"0{name[1:]}" in every)
    for kind in ("first", "any"):
        assert beside(settings(captions=kind), 8).captions == kind
    assert beside(replace(settings(), objective="dino"), 8).captions == "none"


def test_pictures_without_captions_are_refused_before_anything_is_written(pretrain, write_photos, tmp_path) -> None:
    photos = write_photos(tmp_path / "photos", 12)
    with pytest.raises(ConfigError, match=r"none of 12 pictures looked at has one; name their column with --source.c"):
        pretrain("run", *FLAGS, "--data", str(photos), "--steps", "1")
    assert not (tmp_path / "run").exists()


# ---- a run ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_a_run_knows_words(pretrain, tmp_path: Path, loss: str) -> None:
    """Student and teacher, each with the text tower that it learned with, and what it is exported as."""
    run = pretrain("run", *FLAGS, "--clip.loss", loss, "--steps", "3", "--teacher.momentum", "0.5")
    texts = ["3 red rings", "two discs"]
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = {}
    for who in ("student", "teacher"):
        tower = load_tower(f"{run}@{who}")
        heads = load_file(run / "checkpoints/step-3/heads.safetensors")
        side = {name.removeprefix(f"{who}.clip."): value for name, value in heads.items() if name.startswith(who)}
        assert tower.has_text and tower.text_kind == "vision-text-dual-encoder"
        assert torch.equal(tower.embed(pixels), tower(pixels).cls @ side["visual_projection.weight"].T)
        assert tower.embed_patches(pixels).shape == (2, 4, 4, 8)
        found[who] = tower.text(texts)
        whole = AutoModel.from_pretrained(_exported(f"{who}-{loss}", run, who, tmp_path))
        processor = AutoProcessor.from_pretrained(tmp_path / f"{who}-{loss}")
        words = processor.tokenizer(texts, padding=True, return_tensors="pt")
        assert torch.allclose(whole.get_text_features(**words).pooler_output, found[who], atol=1e-6)
        assert torch.allclose(whole.get_image_features(pixels).pooler_output, tower.embed(pixels), atol=1e-6)
        again = load_tower(tmp_path / f"{who}-{loss}")
        assert torch.equal(again.text(texts), found[who]) and torch.equal(again(pixels).patches, tower(pixels).patches)
        assert "does not know words" not in (tmp_path / f"{who}-{loss}/README.md").read_text()
    assert found["student"].shape == (2, 8) and not torch.allclose(found["student"], found["teacher"], atol=1e-6)
    twin, again = load_tower(f"random:{run}"), load_tower(f"random:{run}")
    assert torch.equal(twin.text(texts), again.text(texts)) and not torch.allclose(twin.text(texts), found["student"])
    (run / "checkpoints/step-3/heads.safetensors").write_bytes(b"\x40")
    with pytest.raises(ConfigError, match=r"heads.safetensors: cannot be read as safetensors"):
        load_tower(run)


def test_what_is_exported_in_another_format_is_the_tower_alone(pretrain, tmp_path: Path) -> None:
    run = pretrain("run", *FLAGS, "--steps", "1")
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    export_tower(run, tmp_path / "plain")
    plain = load_tower(tmp_path / "plain")
    assert not plain.has_text and torch.equal(plain(pixels).patches, load_tower(run)(pixels).patches)


def _exported(name: str, run: Path, who: str, folder: Path) -> Path:
    export_tower(run, folder / name, who, format="text")
    return folder / name


def test_a_tower_that_was_told_no_words_is_not_exported_with_any(pretrain, tmp_path: Path) -> None:
    run = pretrain("run", "--steps", "1")
    with pytest.raises(ConfigError, match=r"format text is for a run that learned from captions \(--objective clip\)"):
        export_tower(run, tmp_path / "out", format="text")
    siglip = pretrain("siglip", *FLAGS, "--steps", "1", "--arch", "vits8_siglip")
    assert load_tower(siglip).text(["a ring"]).shape == (1, 8)
    with pytest.raises(ConfigError, match="has no class token"):
        export_tower(siglip, tmp_path / "out", format="text")


def test_a_run_goes_on_with_the_words_that_it_began_with(pretrain, tmp_path: Path) -> None:
    """The captions have changed, and with them the tokenizer that would be learned: word 259 is now another one."""
    photos = tmp_path / "list.csv"
    source = open_source("scenes")
    rows = []
    for i in range(16):
        source[i].image().save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,{source[i].caption}")
    photos.write_text("\n".join(["path,caption", *rows]) + "\n")
    flags = (*FLAGS, "--data", str(photos), "--checkpoint-every", "1", "--faults.keep-last", "9")
    run = pretrain("run", *flags, "--steps", "2")
    shutil.rmtree(run / "checkpoints/step-2")
    photos.write_text("\n".join(["path,caption", *(row.replace("rings", "quince jelly") for row in rows)]) + "\n")
    pretrain("run", *flags, "--steps", "2", "--resume")
    other = pretrain("other", *flags, "--steps", "1")
    name = "student.clip.merges"
    first, then, anew = (
        load_file(where / "heads.safetensors")[name]
        for where in (run / "checkpoints/step-1", run / "checkpoints/step-2", other / "checkpoints/step-1")
    )
    assert torch.equal(first, then) and not torch.equal(first, anew)
