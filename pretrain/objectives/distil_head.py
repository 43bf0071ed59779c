"""Distillation through a head: the student gives each view the prototypes that a frozen, trained network gives it.

DINOv2, section 5: its small models learn so from the large one, in the same loop and with the same losses, where the
teacher is another network that stays as it is, with the head that it was trained with; no patches are hidden, and the
student's patches answer for all patches of the global views. The student has a head of its own for the same prototypes.
Its moving average, what a run calls its teacher, is the spare copy that the authors export; it teaches nobody.

V views (the two global ones first) of B images, h x w the student's patch grid, K prototypes (patches may have others).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from dino_tower.errors import ConfigError
from dino_tower.pretrain.algorithms.centre import Centre
from dino_tower.pretrain.algorithms.heads import DinoHead, Prototypes
from dino_tower.pretrain.algorithms.losses import dino_loss
from dino_tower.pretrain.algorithms.patch_loss import masked_weights, patch_loss
from dino_tower.pretrain.network.starts import read_heads
from dino_tower.pretrain.objectives.dino import centring, head, rows_of, sharpness
from dino_tower.pretrain.objectives.distil import suited, towers
from dino_tower.pretrain.objectives.ibot import Ibot
from dino_tower.pretrain.objectives.term import Inputs, Parts, Rates, Seen, Term
from dino_tower.pretrain.settings import Config
from dino_tower.sources import Source
from dino_tower.tokens import patch_size, tokens
from dino_tower.tower import Tower

if TYPE_CHECKING:
    from dino_tower.pretrain.network.student_teacher import Network

LAYERS = {"shared": "head.last_layer", "mlp": "patch_prototypes", "separate": "patch_head.last_layer"}


@dataclass(frozen=True)
class Frozen:
    """The network that teaches. heads: `head` and, where its patches had their own, `patch_head` or `patch_prototypes`;
    centres: what its run had at the end, by name."""

    tower: Tower
    heads: nn.ModuleDict
    kind: Literal["shared", "mlp", "separate"]
    centres: dict[str, Tensor]

    def prototypes(self, patches: bool = False) -> int:
        """How many there are."""
        layer: Any = self.heads.get_submodule(LAYERS[self.kind if patches else "shared"])
        return len(layer.weight_v)


@lru_cache(maxsize=1)
def frozen(name: str) -> Frozen:
    """A run, or a directory exported with its heads, as a teacher. Raises ConfigError for one without heads."""
    found, who = read_heads(name)
    if not found:
        raise ConfigError(
            f"distil.teachers: {name} has no head: terms.distil_head needs a run or its export with heads"
        )
    own = {key.removeprefix(f"{who}."): tensor for key, tensor in found.items() if key.startswith(f"{who}.")}
    if "last_layer.weight_v" not in own:
        raise ConfigError(f"distil.teachers: {name} was not trained with a DINO head; take --objective distil")
    heads = nn.ModuleDict({"head": _head(own, "")})
    kind: Literal["shared", "mlp", "separate"] = "shared"
    if "patch_prototypes.weight_v" in own:
        heads["patch_prototypes"], kind = _prototypes(own, "patch_prototypes."), "mlp"
    elif "patch_head.last_layer.weight_v" in own:
        heads["patch_head"], kind = _head(own, "patch_head."), "separate"
    heads.eval().requires_grad_(False)
    centres = {name: found[f"{name}.centre"] for name in ("centre", "patch_centre") if f"{name}.centre" in found}
    (tower,) = towers((name,))
    return Frozen(tower, heads, kind, centres)


def _head(found: dict[str, Tensor], prefix: str) -> DinoHead:
    """A head of the sizes of its weights [H, D], [H, H], [d, H], [K, d]."""
    own = {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}
    first, *_, last = (v for k, v in sorted(own.items(), key=_number) if k.startswith("mlp.") and v.ndim == 2)
    made = DinoHead(
        first.shape[1], len(own["last_layer.weight_v"]), first.shape[0], last.shape[0],
        batch_norm="mlp.1.running_mean" in own, weight_norm="last_layer.weight_g" in own,
    )  # fmt: skip
    made.load_state_dict({k: own[k] for k in made.state_dict()})
    return made


def _number(item: tuple[str, Tensor]) -> int:
    return int(item[0].split(".")[1]) if item[0].startswith("mlp.") else -1


def _prototypes(found: dict[str, Tensor], prefix: str) -> Prototypes:
    rows = found[f"{prefix}weight_v"]
    made = Prototypes(rows.shape[1], len(rows), weight_norm=f"{prefix}weight_g" in found)
    made.load_state_dict({k: found[prefix + k] for k in made.state_dict()})
    return made


class DistilHead(Term):
    """State: `distil_centre` and `distil_patch_centre`, unless Sinkhorn-Knopp is in their place."""

    looks = "all"
    asks_teacher = False
    reads_patches = True

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        # in a tuple, so not among the modules that are saved
        self.frozen = (frozen(*config.distil.teachers),)
        teacher = self.frozen[0]
        self.temperature, self.patches = config.loss.student_temp, config.distil.patches
        self.distil_centre = centring(config, teacher.prototypes())
        self.distil_patch_centre = centring(config, teacher.prototypes(patches=True))
        for mine, name in ((self.distil_centre, "centre"), (self.distil_patch_centre, "patch_centre")):
            if isinstance(mine, Centre) and name in teacher.centres:
                mine.centre.copy_(teacher.centres[name])
        self.mlp = "patch_head" if teacher.kind == "separate" else "head"
        self.last_layer = LAYERS[teacher.kind]

    @staticmethod
    def parts(config: Config, backbone: PreTrainedModel, source: Source | None) -> Parts:
        """A head for the class token and, if patches are asked for, one of the teacher's kind for them."""
        (name,), teacher = config.distil.teachers, frozen(*config.distil.teachers)
        if (asked := config.head.prototypes) != (there := teacher.prototypes()):
            raise ConfigError(
                f"head.prototypes is {asked} and the head of {name} has {there}: set --head.prototypes {there}"
            )
        own = teacher.prototypes(patches=True) if teacher.kind != "shared" else None
        alike = replace(config, ibot=replace(config.ibot, head=teacher.kind, prototypes=own))
        return {**head(config, backbone), **(Ibot.parts(alike, backbone, source) if config.distil.patches else {})}

    def targets(
        self, teacher: Network, seen: Seen | None, inputs: Inputs, rates: Rates
    ) -> tuple[Tensor, Tensor | None]:
        """Probabilities of the class tokens [2, B, K] and, if asked for, of all patches [2 B h w, K]."""
        one = self.frozen[0]
        pixels = torch.cat([inputs.unnormalised(view) for view in inputs.views[:2]])
        grid = inputs.views[0].shape[-1] // patch_size(teacher.backbone)
        out = tokens(one.tower.to(pixels.device).model, suited(one.tower, pixels, grid))
        heads: Any = one.heads.to(pixels.device)
        logits = heads["head"](out.pooled).unflatten(0, (2, -1))
        targets = self.distil_centre.targets(logits, rates.teacher_temp)
        self.distil_centre.observe(logits)
        if not self.patches:
            return targets, None
        patches = out.patches
        if patches.shape[1:3] != (grid, grid):  # a tower that takes one size only
            patches = F.interpolate(patches.movedim(-1, 1), (grid, grid), mode="bilinear").movedim(1, -1)
        logits = heads.get_submodule(self.last_layer)(heads[self.mlp].project(patches.flatten(0, 2)))
        patch_targets = self.distil_patch_centre.targets(logits, rates.teacher_temp)
        self.distil_patch_centre.observe(logits)
        return targets, patch_targets

    def loss(
        self, student: Network, seen: Seen | None, inputs: Inputs, targets: tuple[Tensor, Tensor | None], rates: Rates
    ) -> Tensor:
        assert seen is not None and seen.patches is not None
        of_views, of_patches = targets
        z = student.part("head").project(seen.pooled.flatten(0, 1)).unflatten(0, seen.pooled.shape[:2])
        weight, gain = rows_of(student.part("head.last_layer"), rates.frozen)
        loss = dino_loss(z, weight, of_views, self.temperature, gain)
        if of_patches is None:
            return loss
        all_seen = torch.ones(seen.patches.flatten(0, 1).shape[:3], dtype=torch.bool, device=z.device)
        z = student.part(self.mlp).project(seen.patches.flatten(0, 3))
        weight, gain = rows_of(student.part(self.last_layer), rates.frozen)
        each = masked_weights(all_seen)
        return loss + self.patches * patch_loss(z, weight, of_patches, each, self.temperature, gain)

    def frozen_networks(self) -> list[nn.Module]:
        return [nn.ModuleList([self.frozen[0].tower.model, self.frozen[0].heads])]

    def commit(self) -> None:
        self.distil_centre.commit()
        self.distil_patch_centre.commit()

    def forget(self) -> None:
        self.distil_centre.forget()
        self.distil_patch_centre.forget()

    def health(self, targets: tuple[Tensor, Tensor | None], loss: Tensor) -> dict[str, float]:
        """How sure the frozen teacher is, and what the student has still to learn of it."""
        row = sharpness(targets[0], "distil_")
        return row if self.patches else row | {"distil_kl": (loss - row["distil_entropy"]).item()}
