"""The masked autoencoder against transformers' port of the published one, and what it says of itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from dino_tower import export_tower, load_tower
from dino_tower.errors import ConfigError
from dino_tower.families.of_transformers import patchify, unpatchify
from dino_tower.pretrain.config import load_preset, read_config
from dino_tower.pretrain.loading.draws import Place
from dino_tower.pretrain.network.networks import make_networks
from dino_tower.pretrain.network.predictor import sincos_positions
from dino_tower.pretrain.network.student_teacher import Network
from dino_tower.pretrain.objectives.mae import DrawSeen, Mae
from dino_tower.pretrain.objectives.masked_settings import MaeConfig, kept_patches
from dino_tower.pretrain.objectives.term import Inputs, Rates
from dino_tower.pretrain.optim import OPTIMISERS, groups_of
from dino_tower.pretrain.settings import Config, CropsConfig, ModelConfig

BATCH, SIDE, PATCH, SEEN, RATES = 3, 4, 8, 4, Rates(0.04)
SETTINGS = Config(
    arch="vitt8",
    objective="mae",
    crops=CropsConfig(global_size=PATCH * SIDE, locals=0),
    model=ModelConfig(width=16, depth=2, heads=2, drop_path=0.0),
    mae=MaeConfig(width=8, depth=2, heads=2),
)


def inputs(seed: int = 0) -> Inputs:
    g = torch.Generator().manual_seed(seed)
    views = [torch.randn(BATCH, 3, PATCH * SIDE, PATCH * SIDE, generator=g) for _ in range(2)]
    order = torch.stack([torch.randperm(SIDE**2, generator=g) for _ in range(BATCH)])
    drawn = {"mae_seen": order[:, :SEEN], "mae_hidden": order[:, SEEN:]}
    return Inputs(views, torch.zeros(BATCH, dtype=torch.int64), drawn=drawn)


def published(student: Network) -> ViTMAEForPreTraining:
    """The published network, by transformers, with the weights of ours."""
    config = ViTMAEConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, layer_norm_eps=1e-6,
        image_size=PATCH * SIDE, patch_size=PATCH, decoder_hidden_size=8, decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2, decoder_intermediate_size=32, mask_ratio=0.75, norm_pix_loss=True,
    )  # fmt: skip
    renamed = {
        "backbone.encoder.layer.": "vit.layers.", "backbone.": "vit.", "decoder.blocks.": "decoder.decoder_layers.",
        "decoder.embed.": "decoder.decoder_embed.", "decoder.norm.": "decoder.decoder_norm.",
        "decoder.answer.": "decoder.decoder_pred.", ".norm1.": ".layernorm_before.", ".norm2.": ".layernorm_after.",
    }  # fmt: skip
    theirs = ViTMAEForPreTraining(config)
    theirs.decoder.initialize_weights(SIDE**2)  # a new model has zeros for its positions
    weights, positions = {}, theirs.decoder.decoder_pos_embed
    for name, value in student.state_dict().items():
        if "lambda1" in name or name == "backbone.embeddings.mask_token":
            continue
        for old, new in renamed.items():
            name = name.replace(old, new, 1)
        if name.startswith("decoder.decoder_layers.") and "layernorm" not in name:
            layer, _, part = name.removeprefix("decoder.decoder_layers.").partition(".")
            name = f"decoder.decoder_layers.{layer}.{'mlp' if part.startswith('fc') else 'attention'}.{part}"
        weights[name] = value.view(1, 1, -1) if name == "decoder.mask_token" else value
    theirs.load_state_dict({**weights, "decoder.decoder_pos_embed": positions}, strict=True)
    return theirs.train()


def test_loss_and_gradients_are_those_of_the_published_network() -> None:
    torch.manual_seed(0)
    student, teacher = make_networks(SETTINGS, torch.device("cpu"), world=1)
    theirs, given, term = published(student), inputs(), Mae(SETTINGS)
    loss = term.loss(student, None, given, term.targets(teacher, None, given, RATES), RATES)
    order = torch.cat([given.drawn["mae_seen"], given.drawn["mae_hidden"]], 1)
    want = theirs(given.views[0], noise=order.argsort(1).float()).loss
    assert abs(loss.item() - want.item()) < 1e-6
    loss.backward()
    want.backward()
    pairs = [
        (student.backbone.embeddings.patch_embeddings.projection, theirs.vit.embeddings.patch_embeddings.projection),
        (student.backbone.encoder.layer[0].mlp.fc1, theirs.vit.layers[0].mlp.fc1),
        (student.part("decoder.answer"), theirs.decoder.decoder_pred),
    ]
    for mine, other in pairs:
        assert mine.weight.grad.abs().max() > 0
        assert torch.allclose(mine.weight.grad, other.weight.grad, atol=1e-6)
    assert torch.allclose(student.part("decoder").mask_token.grad, theirs.decoder.mask_token.grad.flatten(), atol=1e-6)


def test_positions_are_the_published_ones() -> None:
    config = ViTMAEConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=56, patch_size=8,
        decoder_hidden_size=24, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
    )  # fmt: skip
    decoder = ViTMAEForPreTraining(config).decoder
    decoder.initialize_weights(49)
    assert torch.allclose(sincos_positions(24, (7, 7)), decoder.decoder_pos_embed[0, 1:], atol=1e-6)
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_positions(6, (2, 2))


def test_patches_are_cut_in_raster_order_and_can_be_put_together_again() -> None:
    x = torch.arange(3 * 16 * 24).view(1, 3, 16, 24).float()
    patches = patchify(x, 8)
    assert patches.shape == (1, 6, 192)
    assert torch.equal(patches[0, 4].view(8, 8, 3), x[0, :, 8:, 8:16].permute(1, 2, 0))
    assert torch.equal(unpatchify(patches[0], 2, 3, 8), x)


def test_exactly_a_quarter_is_seen_and_each_patch_as_often_as_another() -> None:
    draw, times = Mae.draw(SETTINGS, PATCH), np.zeros(SIDE**2)
    assert draw == DrawSeen(16, 4) and Mae.draw(Config(), 16) == DrawSeen(196, 49)
    for index in range(2000):
        place = Place(7, 0, index, 0, index, 8)
        drawn = draw(place)
        seen, hidden = drawn["mae_seen"], drawn["mae_hidden"]
        assert len(seen) == 4 and sorted([*seen, *hidden]) == [*range(16)]
        times[seen] += 1
    again, other = draw(place), draw(Place(7, 1, 1999, 0, 3, 8))
    assert all(np.array_equal(drawn[name], again[name]) for name in drawn)
    assert not np.array_equal(drawn["mae_seen"], other["mae_seen"])
    # chi-square of 15 degrees of freedom: 37.7 is exceeded once in a thousand times
    assert ((times - 500) ** 2 / 500).sum() * 16 / 12 < 37.7
    assert [kept_patches(n, ratio) for n, ratio in ((10, 0.9), (36, 0.75), (37, 0.75))] == [1, 9, 9]


class Painter(torch.nn.Module):
    """A decoder that paints what it is told to."""

    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, front, seen, keep, asked):
        return self.answer


def painted(answer: torch.Tensor, config: Config = SETTINGS, given: Inputs | None = None) -> tuple[float, float]:
    """Loss and share explained of such a decoder."""
    student, teacher = make_networks(SETTINGS, torch.device("cpu"), world=1)
    student.decoder = Painter(answer)
    given, term = given or inputs(), Mae(config)
    targets = term.targets(teacher, None, given, RATES)
    loss = term.loss(student, None, given, targets, RATES)
    return loss.item(), term.health(targets, loss)["pixels_explained"]


def test_a_perfect_decoder_has_nothing_to_learn_and_a_flat_one_everything() -> None:
    given = inputs()
    patches = patchify(given.views[0], PATCH).take_along_dim(given.drawn["mae_hidden"][..., None], 1)
    pixels = patches.shape[-1]
    normal = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    assert painted(normal) == pytest.approx((0, 1), abs=1e-6)
    loss, explained = painted(torch.zeros_like(patches))
    assert loss == pytest.approx((pixels - 1) / pixels, abs=1e-5) and abs(explained) < 1e-5
    rule = Mae(SETTINGS).rules()["nothing-painted"]
    assert rule.sign({"pixels_explained": explained}) and not rule.sign({"pixels_explained": 0.05})
    plain = Config(**{**vars(SETTINGS), "mae": MaeConfig(normalise=False)})
    assert painted(patches, plain) == pytest.approx((0, 1), abs=1e-6)
    assert painted(patches + 2, plain)[0] == pytest.approx(4, abs=1e-5)


def test_only_hidden_patches_of_the_first_view_are_judged() -> None:
    given = inputs()
    other = given.views[0].clone()
    for picture, seen in enumerate(given.drawn["mae_seen"].tolist()):
        for patch in seen:
            top, left = PATCH * (patch // SIDE), PATCH * (patch % SIDE)
            other[picture, :, top : top + PATCH, left : left + PATCH] = 9
    changed = Inputs([other, given.views[1] + 1], given.labels, drawn=given.drawn)
    answer = torch.zeros(BATCH, SIDE**2 - SEEN, 3 * PATCH**2)
    assert painted(answer, given=given) == painted(answer, given=changed)


@pytest.mark.parametrize("arch", ["vits8", "vits8_siglip"])
def test_a_run_leaves_a_tower_that_exports(pretrain, tmp_path: Path, arch: str) -> None:
    run = pretrain("run", "--objective", "mae", "--arch", arch, "--mae.width", "16", "--mae.depth", "1",
                   "--mae.heads", "2", "--steps", "6", "--monitor.minutes", "9", "--monitor.knn-images", "40",
                   "--optim.base-lr", "0.005", "--optim.warmup-epochs", "0")  # fmt: skip
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["kind"] == "step"]
    assert losses[-1] < losses[0]
    assert all(-1 < row["pixels_explained"] < 1 for row in rows if row["kind"] == "step")
    assert export_tower(run, tmp_path / "out") == 0
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(load_tower(tmp_path / "out")(x).patches, load_tower(run)(x).patches)
    assert load_tower(f"{run}@teacher")(x).patches.shape == (2, 4, 4, 32)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--arch resnet18", "terms.mae encodes some patches alone, which resnet18 cannot: take vits16 or another ViT"),
        ("--mae.ratio 1", "mae.ratio is 1.0; give a share between 0 and 1"),
        ("--mae.ratio 0.99", "mae.ratio 0.99 of 6 x 6 patches leaves nothing to see or to paint"),
        ("--mae.depth 0", "mae.depth is 0; it must be above 0"),
        ("--mae.width 66", "mae.width is 66; it must be a multiple of mae.heads 2 and of 4"),
        ("--optim.beta2 1", "optim.beta2 is 1.0; it must be 0 or more and below 1"),
    ],
)
def test_what_cannot_be_is_one_line(words: str, line: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_config(["--preset", "mae_cpu", "--data", "scenes", "--output", "nowhere", *words.split()])
    assert line in str(refused.value) and "\n" not in str(refused.value)


def test_the_preset_has_the_paper_s_optimiser_and_changes_no_colours() -> None:
    config = load_preset("mae_cpu")
    crops, (network, _) = config.crops, make_networks(SETTINGS, torch.device("cpu"), world=1)
    optimizer = OPTIMISERS["adamw"](groups_of(network, config.optim))
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.95)}
    assert (crops.locals, crops.jitter_p, crops.grayscale_p, *crops.blur_p, *crops.solarize_p) == (0,) * 9
    assert crops.flip == 0.5 and crops.global_scale == (0.2, 1.0)
