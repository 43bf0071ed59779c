"""Parameter groups, gradient clipping and optimisers as the recipes of DINO and DINOv2 have them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dino_tower.pretrain.algorithms.layer_decay import layer_multiplier
from dino_tower.pretrain.network.student_teacher import Network
from dino_tower.pretrain.settings import OptimConfig


def parameter_groups(
    modules: Iterable[nn.Module], multiplier: Callable[[str], float] = lambda name: 1.0
) -> list[dict[str, Any]]:
    """Decayed and not decayed groups of the trainable parameters (utils.py::get_params_groups).

    No decay for biases and for every parameter with one dimension. The class token, the position table and the gain of
    the prototypes have more than one, so they ARE decayed, as in the published runs.
    multiplier: of the learning rate, by the parameter's name; each value makes a pair of groups.
    """
    groups: dict[float, tuple[list[Tensor], list[Tensor]]] = {}
    for module in modules:
        for name, p in module.named_parameters():
            if p.requires_grad:
                decay, no_decay = groups.setdefault(multiplier(name), ([], []))
                (no_decay if name.endswith(".bias") or p.ndim == 1 else decay).append(p)
    found = []
    for scale, (decay, no_decay) in groups.items():
        found.append({"params": decay, "decayed": True, "scale": scale})
        found.append({"params": no_decay, "decayed": False, "scale": scale, "weight_decay": 0.0})
    return [group for group in found if group["params"]]


def groups_of(network: Network, optim: OptimConfig) -> list[dict[str, Any]]:
    """The groups of a network: layer-wise decay of the backbone, and the patch embedding's own factor on top (DINOv2).

    Heads and whatever else stands beside the backbone keep the full rate.
    """
    layers = getattr(network.backbone.config, "num_hidden_layers", 0)

    def multiplier(name: str) -> float:
        if not name.startswith("backbone."):
            return 1.0
        own = optim.backbone_lr * (optim.patch_embed_lr if ".patch_embed" in name else 1.0)
        return own * layer_multiplier(name, optim.layer_decay, layers) if layers else own

    groups = parameter_groups([network], multiplier)
    return [{**group, "betas": (0.9, optim.beta2)} for group in groups] if optim.name == "adamw" else groups


def set_rates(optimizer: torch.optim.Optimizer, lr: float, weight_decay: float) -> None:
    """Learning rate for all groups, times each one's scale; weight decay for the decayed ones only."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("scale", 1.0)
        if group["decayed"]:
            group["weight_decay"] = weight_decay


Named = Iterable[tuple[str, nn.Parameter]]


def clip_per_parameter(named: Named, limit: float) -> Tensor:
    """Scale each gradient whose own norm exceeds `limit` (utils.py::clip_gradients). Returns the global norm before.

    The reference keeps queries, keys and values in one matrix, so the three of a block share one norm here too.
    """
    units: dict[str, list[Tensor]] = {}
    for name, p in named:
        if p.grad is not None:
            units.setdefault(re.sub(r"\b[qkv]_proj\b", "qkv", name), []).append(p.grad)
    norms = torch.stack([torch.stack(torch._foreach_norm(grads)).norm() for grads in units.values()])
    for grads, factor in zip(units.values(), (limit / (norms + 1e-6)).tolist(), strict=True):
        if factor < 1:  # in most steps no gradient is above the limit: nothing to write
            torch._foreach_mul_(grads, factor)
    return norms.norm()


def clip_global(named: Named, limit: float) -> Tensor:
    """Scale all gradients together when their joint norm exceeds `limit`. Returns the norm before."""
    return nn.utils.clip_grad_norm_([p for _, p in named], limit)


def clip_per_module(named: Named, limit: float) -> Tensor:
    """Scale the gradients of the backbone and of each head together, each by its own joint norm (DINOv2).

    Returns the global norm before.
    """
    modules: dict[str, list[nn.Parameter]] = {}
    for name, p in named:
        modules.setdefault(name.partition(".")[0], []).append(p)
    return torch.stack([nn.utils.clip_grad_norm_(parameters, limit) for parameters in modules.values()]).norm()


CLIP: dict[str, Callable[[Named, float], Tensor]] = {
    "per_parameter": clip_per_parameter,
    "global": clip_global,
    "per_module": clip_per_module,
}


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose step is scaled by |w| / |gradient| per tensor (You et al. 2017, arXiv 1708.03888).

    Biases and norms (one dimension) take a plain momentum step, as in the DINO and BYOL ResNet recipes.
    """

    def __init__(self, params: Any, lr: float = 0.0, momentum: float = 0.9, eta: float = 0.001) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": 0.0, "momentum": momentum, "eta": eta})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                update = p.grad
                if p.ndim > 1:
                    update = update.add(p, alpha=group["weight_decay"])
                    weight_norm, update_norm = p.norm(), update.norm()
                    trust = group["eta"] * weight_norm / update_norm
                    usable = (weight_norm > 0) & (update_norm > 0)
                    update = update * torch.where(usable, trust, torch.ones_like(trust))
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                state["momentum_buffer"].mul_(group["momentum"]).add_(update)
                p.add_(state["momentum_buffer"], alpha=-group["lr"])


def _adamw(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, fused=True)


def _sgd(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.0, momentum=0.9, weight_decay=0.0, foreach=True)


OPTIMISERS: dict[str, Callable[[list[dict[str, Any]]], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "sgd": _sgd,
    "lars": LARS,
}
