"""The frozen tower, and the model that is trained on top of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from dino_tower.adapters.text.encoders import TextEncoder
from dino_tower.adapters.text.settings import Config
from dino_tower.contrast import MAX_SCALE, START, contrast
from dino_tower.errors import ConfigError
from dino_tower.families import family_of
from dino_tower.text_tower import TextTower, text_tower_from
from dino_tower.tokens import Tokens
from dino_tower.tower import Tower, load_tower


def frozen_tower(config: Config) -> Tower:
    """The tower to align, prepared for `--size`. Raises ConfigError for one that cannot be saved inside the result."""
    tower = load_tower(config.tower)
    if not isinstance(tower.model, PreTrainedModel):
        library = tower.family.split()[0]
        raise ConfigError(
            f"{config.tower}: a {library} model cannot be saved inside a transformers one; write its weights as one "
            "first: dino-tower convert WEIGHTS DIR --to native"
        )
    if config.size is None:
        return tower
    if config.size % tower.patch:
        raise ConfigError(f"size {config.size} is not a multiple of the patch size {tower.patch} of {config.tower}")
    return Tower(tower.model, _squared(tower.processor, config.size), config.tower)


def _squared(processor: Any, size: int) -> Any:
    """The same processor for whole pictures, resized to a square."""
    square = {"height": size, "width": size}
    settings = processor.to_dict() | {"size": square, "do_resize": True}
    if settings.get("crop_size") is not None:
        settings["crop_size"] = square
    return type(processor).from_dict(settings)


def build(config: Config, tower: Tower, text: TextEncoder) -> TextTower:
    """The model to train: the head is drawn from torch's global random state."""
    scale, bias = START[config.loss.name]
    model = text_tower_from(
        tower.model,
        text.model,
        has_cls=family_of(tower.model).has_cls(tower.model),
        blocks=config.head.blocks,
        text_pooling=text.pooling,
        text_length=text.length,
        text_padding=text.padding,
        logit_scale_init_value=scale,
        logit_bias_init_value=bias,
    )
    model.freeze(text=config.text.frozen)
    return model


def parameter_groups(model: TextTower, config: Config) -> list[dict[str, Any]]:
    """What is trained: the text encoder at its own rate, matrices with decay, the rest without. `peak`: the rate."""
    pretrained = config.text.encoder is not None
    text_lr = config.optim.text_lr if config.optim.text_lr is not None else config.optim.lr / (100 if pretrained else 1)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            peak = text_lr if name.startswith("text_model.") else config.optim.lr
            groups.setdefault((peak, config.optim.weight_decay if p.ndim > 1 else 0.0), []).append(p)
    return [{"params": ps, "lr": 0.0, "peak": peak, "weight_decay": wd} for (peak, wd), ps in groups.items()]


class Pair(nn.Module):
    """A step of the training as one module, so that DDP sees one forward."""

    def __init__(self, model: TextTower, loss: str, rank: int) -> None:
        super().__init__()
        self.model, self.loss, self.rank = model, loss, rank

    def forward(self, found: Tokens, words: Any, positives: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, and unit vectors of this process's pictures [b, E] and texts [b k, E].

        found: the frozen tower's tokens of the pictures. words: the tokenizer's input_ids and attention_mask [b k, L].
        positives: bool [G, G k] over all processes.
        """
        image = F.normalize(self.model.embed_tokens(found)[0].float(), dim=-1)
        out = self.model.get_text_features(words["input_ids"], words["attention_mask"])
        pooled: Any = out.pooler_output
        text = F.normalize(pooled.float(), dim=-1)
        scale = self.model.logit_scale.exp()
        loss = contrast(self.loss, image, text, scale, self.model.logit_bias, positives, self.rank)
        return loss, image.detach(), text.detach()


@torch.no_grad()
def bound_scale(model: TextTower) -> None:
    """Keep the temperature where CLIP keeps it."""
    model.logit_scale.clamp_(max=MAX_SCALE)
