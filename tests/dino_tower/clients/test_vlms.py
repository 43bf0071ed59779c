"""VLM classes of transformers around our towers: what they are said to do is what they do.

The tower's features inside and outside are compared bit for bit: the code is the same.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor
from vlm_parts import VLMS as PARTS

from dino_tower import check_vlm, image_tokens_for
from dino_tower.errors import ConfigError
from dino_tower.tower import Tower
from dino_tower.vlm import ImageTokens
from dino_tower.vlm.facts import VLMS

STRATEGY = "vision_feature_select_strategy"
KINDS = ("plain", "reg4", "rope", "siglip", "clip")
PREFIX = {"plain": 1, "reg4": 5, "rope": 1, "siglip": 0, "clip": 1}  # the class token and the registers
PATCHES = 16
FINAL_NORMS = ("layernorm", "norm", "post_layernorm")


@dataclass(frozen=True)
class Lab:
    """What a trial needs besides the VLM and the tower."""

    pictures: list[Image.Image]
    tokenizer: Any
    text_sizes: dict[str, Any]

    def build(self, name: str, tower: Tower, wanted: ImageTokens) -> tuple[Any, Any]:
        """The VLM with the tower's weights, strictly loaded, and its processor."""
        parts = PARTS[name]
        vision, text = copy.deepcopy(tower.model.config), getattr(transformers, parts.text_config)(**self.text_sizes)
        config = getattr(transformers, parts.config)(
            vision_config=vision, text_config=text, **{**dict(parts.extras), **wanted.config}
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = getattr(transformers, name)(config).eval()
            if name.startswith("Gemma3"):  # its projector starts at zero: no picture would make a difference
                torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)
        model.get_submodule(wanted.module).load_state_dict(tower.model.state_dict(), strict=True)
        images = getattr(transformers, parts.image_processor) if parts.image_processor else None
        arguments = dict(wanted.processor)
        if parts.video_processor:
            arguments["video_processor"] = getattr(transformers, parts.video_processor)()
        processor = getattr(transformers, parts.processor)(
            image_processor=images(**wanted.image_processor) if images else tower.processor,
            tokenizer=self.tokenizer,
            **arguments,
        )
        return model, processor

    @torch.no_grad()
    def run(self, name: str, tower: Tower, wanted: ImageTokens, model: Any, processor: Any) -> Trial:
        """Forward two pictures, generate, and look at what the projector gets. Fails as transformers fails."""
        seen: dict[str, Any] = {}
        inside = model.get_submodule(wanted.module)
        model.model.multi_modal_projector.register_forward_pre_hook(lambda _, args: seen.update(projected=args[0]))
        inside.register_forward_hook(
            lambda _, args, kwargs, out: seen.update(pixels=(*args, *kwargs.values())[0], out=out), with_kwargs=True
        )
        inputs = [processor(images=p, text=PARTS[name].prompt, return_tensors="pt") for p in self.pictures]
        one, other = (model(**batch).logits for batch in inputs)
        assert one.shape == other.shape
        assert not torch.equal(one[:, -1], other[:, -1]), "another picture, the same logits"
        written = model.generate(**inputs[0], max_new_tokens=2, do_sample=False)
        assert written.shape[1] > inputs[0].input_ids.shape[1]
        model(**inputs[0])  # generation may have cached the picture: see the whole path once more
        outside = tower.model(seen["pixels"], output_hidden_states=True)
        assert torch.equal(seen["out"].last_hidden_state, outside.last_hidden_state)
        assert seen["pixels"].std() > 0.2
        return Trial(*source(seen["projected"], outside), seen["projected"].numel() // len(seen["pixels"]))


@dataclass(frozen=True)
class Trial:
    """Where the projector's input comes from: the state, the tokens cut off its front; and its numbers a tile."""

    state: str
    cut: int
    numbers: int


def source(projected: Tensor, outside: Any) -> tuple[str, int]:
    """Find the projector's input among the tower's states. Pixel shuffle only reorders numbers: compare them sorted."""
    states = {"last": outside.last_hidden_state, "-1": outside.hidden_states[-1]}
    for name, state in states.items():
        for cut in range(6):
            rest = state[:, cut:]
            if rest.numel() == projected.numel() and torch.equal(ordered(rest), ordered(projected)):
                return name, cut
    raise AssertionError("the projector's input is nowhere in the tower's output")


def ordered(values: Tensor) -> Tensor:
    return values.flatten().sort().values


def with_defaults(name: str, kind: str, wanted: ImageTokens) -> ImageTokens:
    """The same settings, but for the VLM's own default strategy."""
    default = VLMS[name].strategy
    processor = {k: (default if k == STRATEGY else v) for k, v in wanted.processor.items()}
    if "num_image_tokens" in processor:
        processor["num_image_tokens"] = PATCHES + PREFIX[kind]
    return replace(wanted, config={**wanted.config, STRATEGY: default}, processor=processor)


def as_a_user_would_try(name: str, kind: str, towers: dict[str, Tower]) -> ImageTokens:
    """For a refused tower: the settings of a plain one, with as many more tokens as the tower has."""
    wanted = image_tokens_for(name, towers["siglip" if VLMS[name].strategy is None else "plain"])
    processor = dict(wanted.processor)
    for key in ("num_additional_image_tokens", "num_image_tokens"):
        if key in processor:
            processor[key] += PREFIX[kind] - 1
    return replace(wanted, processor=processor)


def reason(error: ConfigError) -> str:
    """The cell of a refusal."""
    text = str(error)
    return "refused: " + next(
        word for word in ("registers", "class token", "pooled vector", "Backbone") if word in text
    )


def extra_tokens(kind: str, cut: int) -> str:
    extra = PREFIX[kind] - cut
    names = {
        -1: "first patch lost",
        1: "class token as an image token",
        4: "4 registers as image tokens",
        5: "class token and 4 registers as image tokens",
    }
    return f"warned: {names[extra]}"


def ungraded(model: Any, module: str, lab: Lab, processor: Any, name: str) -> set[str]:
    """Weights of the tower that a loss on the logits does not reach; mask_token is for pretraining only."""
    batch = processor(images=lab.pictures[0], text=PARTS[name].prompt, return_tensors="pt")
    model(**batch).logits.square().mean().backward()
    inside = model.get_submodule(module).named_parameters()
    return {key for key, p in inside if p.grad is None and not key.endswith("mask_token")}


def final_norm(tower: Tower) -> set[str]:
    return {key for key, _ in tower.model.named_parameters() if key.split(".")[0] in FINAL_NORMS}


@pytest.fixture
def lab(pictures: list[Image.Image], tokenizer: Any, text_sizes: dict[str, Any]) -> Lab:
    return Lab(pictures, tokenizer, text_sizes)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PARTS)
def test_vlm(
    name: str,
    kind: str,
    towers: dict[str, Tower],
    lab: Lab,
    documented: Callable[[str, str, str], None],
    tmp_path: Path,
) -> None:
    tower = towers[kind]
    try:
        wanted = image_tokens_for(name, tower)
    except ConfigError as error:
        with pytest.raises((RuntimeError, ValueError)) as theirs:
            tried = as_a_user_would_try(name, kind, towers)
            lab.run(name, tower, tried, *lab.build(name, tower, tried))
        assert not isinstance(theirs.value, ConfigError)
        documented(name, kind, reason(error))
        return
    model, processor = lab.build(name, tower, wanted)
    trial = lab.run(name, tower, wanted, model, processor)
    assert trial.numbers == wanted.image_tokens * tower.width * VLMS[name].merge ** 2
    assert trial.state in ("last", "-1") if kind == "clip" else ("last" if VLMS[name].reads == "last" else "-1")
    assert check_vlm(model, tower, processor) == list(wanted.warnings)
    assert ungraded(model, wanted.module, lab, processor, name) == (final_norm(tower) if wanted.notes else set())
    survives = comes_back(model, tower, tmp_path)
    assert bool(wanted.warnings) == (trial.cut != PREFIX[kind] or not survives)
    if trial.cut != PREFIX[kind]:
        documented(name, kind, extra_tokens(kind, trial.cut))
        return
    settings = []
    if not works_with_defaults(name, kind, tower, wanted, lab):
        settings.append(f'`{STRATEGY}="{wanted.vision_feature_select_strategy}"`')
    if not survives:
        assert comes_back(model, tower, tmp_path, config=model.config)
        settings.append("`config=` when loaded again")
    documented(name, kind, f"works with {' and '.join(settings)}" if settings else "works")


def comes_back(model: Any, tower: Tower, folder: Path, **arguments: Any) -> bool:
    """Whether the VLM is the same after it was saved and loaded: the tower's weights have other names on disk."""
    model.save_pretrained(folder)
    try:
        again = type(model).from_pretrained(folder, **arguments)
        check_vlm(again, tower)
    except (RuntimeError, ConfigError):  # other sizes; another class
        return False
    have = again.state_dict()
    return all(torch.equal(have[key], value) for key, value in model.state_dict().items())


def works_with_defaults(name: str, kind: str, tower: Tower, wanted: ImageTokens, lab: Lab) -> bool:
    """Whether the default strategy does as well; check_vlm must say the same of a model that has it."""
    if VLMS[name].strategy is None:
        return True
    settings = with_defaults(name, kind, wanted)
    model, processor = lab.build(name, tower, settings)
    try:
        trial = lab.run(name, tower, settings, model, processor)
    except (RuntimeError, ValueError):
        with pytest.raises(ConfigError, match=f"set it to '{wanted.vision_feature_select_strategy}'"):
            check_vlm(model, tower)
        return False
    right = trial.cut == PREFIX[kind]
    assert right == (check_vlm(model, tower) == list(wanted.warnings))
    return right
