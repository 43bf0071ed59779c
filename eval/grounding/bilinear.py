"""The bilinear map: where in a picture is what a phrase names? Trained on boxes, answered patch by patch.

Legend: B pictures, P = h w patches of each, D features, Q phrases, E text features, d shared width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from dino_tower.errors import ConfigError
from dino_tower.eval.grounding.align import stacked
from dino_tower.eval.grounding.grounded import Grounded
from dino_tower.eval.grounding.regions import Features, coverage
from dino_tower.eval.linear_probe import Standard, standardise

LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3)
WIDTH = 256
STEPS = 500
PATCHES = 500_000  # trained on at most: 2 GB at 1,024 features
FITTED = 100_000  # patches that the features are standardised by, at most


@dataclass(frozen=True)
class BilinearMap:
    """map = softmax over patches of <W_v x, W_t t + b> / sqrt(d), x the standardised LN(p).

    W_v [d, D], W_t [d, E], b [d]: the part of the map that does not hang on the phrase. `validation`: cross-entropy of
    each learning rate on the slice of train.
    """

    patch_weight: Tensor
    text_weight: Tensor
    bias: Tensor
    standard: Standard
    learning_rate: float
    validation: dict[float, float] = field(default_factory=dict)

    @torch.no_grad()
    def maps(self, features: Tensor, phrases: Tensor) -> Tensor:
        """patches [h, w, D], phrases [Q, E] -> [Q, h, w], each summing to 1."""
        x = self.standard(_normed(features)).to(self.patch_weight)
        asked = _asked(phrases.to(x), self.patch_weight, self.text_weight, self.bias)
        return (asked @ x.flatten(0, 1).T).softmax(-1).unflatten(-1, features.shape[:2])


def fit_map(
    pictures: Sequence[Grounded],
    features: Features,
    texts: Mapping[str, Tensor],
    width: int = WIDTH,
    learning_rates: Sequence[float] = LEARNING_RATES,
    steps: int = STEPS,
    batch: int = 16,
    each: int = 4,
    share: float = 0.15,
    seed: int = 0,
) -> BilinearMap:
    """Train on pictures with their patches [h, w, D] each (grids may differ); texts: phrase -> unit vector [E].

        loss = - sum_i q_i log map_i,   q_i in proportion to how much of patch i the phrase's boxes cover

    A step takes `each` phrases of `batch` pictures; AdamW, weight decay 0.01, cosine to 0. The learning rate is chosen
    by the loss on `share` of the pictures, then all of them are trained on. With one and the same vector for all
    phrases this is the text-blind control. Of larger sets as many pictures are drawn as have PATCHES patches.
    Raises ConfigError for fewer than two pictures with phrases.
    """
    places = [i for i, picture in enumerate(pictures) if picture.queries]
    if len(places) < 2:
        raise ConfigError(f"bilinear map: {len(places)} training pictures with phrases; needs two or more")
    patches, kept = 0, list[int]()
    for i in torch.randperm(len(places), generator=torch.Generator().manual_seed(seed)).tolist():
        patches += features[places[i]].shape[0] * features[places[i]].shape[1]
        if patches > PATCHES and len(kept) > 1:
            break
        kept.append(places[i])
    data = _prepared([pictures[i] for i in kept], [features[i] for i in kept], texts)
    held = max(1, round(share * len(kept)))
    validation, fit = list(range(held)), list(range(held, len(kept)))
    tried: dict[float, float] = {}
    for rate in learning_rates if len(learning_rates) > 1 else ():
        tried[rate] = _loss_of(_train(data, fit, width, rate, steps, batch, each, seed), data, validation)
    best = min(tried, key=lambda rate: tried[rate]) if tried else learning_rates[0]
    weights = _train(data, range(len(kept)), width, best, steps, batch, each, seed)
    return BilinearMap(*weights, data.standard, best, tried)


@dataclass(frozen=True)
class _Data:
    """patches [B, P, D], standardised, 0 where a smaller grid ends; outside [B, P]: those places; phrases [Q, E] and
    targets [Q, P] of all pictures in their order, of each picture the rows first[i] .. first[i + 1] - 1."""

    patches: Tensor
    outside: Tensor
    phrases: Tensor
    targets: Tensor
    first: Tensor
    standard: Standard


def _normed(features: Tensor) -> Tensor:
    return F.layer_norm(features.float(), features.shape[-1:])


def _prepared(pictures: Sequence[Grounded], features: Sequence[Tensor], texts: Mapping[str, Tensor]) -> _Data:
    longest = max(one.shape[0] * one.shape[1] for one in features)
    patches = features[0].new_zeros(len(features), longest, features[0].shape[-1], dtype=torch.float32)
    outside = torch.ones(len(features), longest, dtype=torch.bool, device=patches.device)
    for i, one in enumerate(features):
        patches[i, : one.shape[0] * one.shape[1]] = _normed(one).flatten(0, 1)
        outside[i, : one.shape[0] * one.shape[1]] = False
    # A linear map of standardised features is a linear map of the features: this only helps the optimiser, and a
    # tower with one huge feature starves without it.
    rows = patches[~outside]
    standard = standardise(rows[:: max(1, len(rows) // FITTED)])
    patches = standard(patches).masked_fill_(outside[..., None], 0.0)
    phrases = torch.cat([stacked(picture.queries, texts) for picture in pictures]).to(patches)
    first = torch.tensor([0, *(len(picture.queries) for picture in pictures)]).cumsum(0)
    targets = []
    for picture, one in zip(pictures, features, strict=True):
        covered = coverage(picture.regions, picture.size, (one.shape[0], one.shape[1])).flatten(1)
        own = torch.stack([covered[list(query.truth)].amax(0) for query in picture.queries])
        targets.append(F.pad(own / own.sum(1, keepdim=True), (0, longest - own.shape[1])))
    return _Data(patches, outside, phrases, torch.cat(targets).to(patches), first, standard)


def _asked(phrases: Tensor, patch_weight: Tensor, text_weight: Tensor, bias: Tensor) -> Tensor:
    """What a patch is multiplied with, [Q, D]: W_v^T (W_t t + b) / sqrt(d). Projecting the few phrases to the patches'
    features costs a fraction of projecting every patch to d; the product is the same."""
    # A unit vector has entries of 1 / sqrt(E): the root brings them to about 1, as LN does with the patches.
    shared = phrases @ text_weight.T * math.sqrt(phrases.shape[-1]) + bias
    return shared @ patch_weight / math.sqrt(patch_weight.shape[0])


def _train(
    data: _Data, places: Sequence[int], width: int, rate: float, steps: int, batch: int, each: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    rng, whole = torch.Generator().manual_seed(seed), torch.tensor(places)
    features, wide = data.patches.shape[-1], data.phrases.shape[1]
    drawn = (torch.randn(width, n, generator=rng) / math.sqrt(n) for n in (features, wide))
    patch_weight, text_weight = (one.to(data.patches).requires_grad_() for one in drawn)
    bias = data.patches.new_zeros(width).requires_grad_()
    weights = (patch_weight, text_weight, bias)
    optimiser = torch.optim.AdamW(weights, lr=rate, weight_decay=0.01, fused=True)
    cosine = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)
    with torch.enable_grad():
        for _ in range(steps):
            own = whole[torch.randint(len(whole), (min(batch, len(whole)),), generator=rng)]
            count = (data.first[own + 1] - data.first[own])[:, None]
            said = data.first[own][:, None] + (torch.rand(len(own), each, generator=rng) * count).long()
            own, said = own.to(bias.device), said.to(bias.device)
            loss = _loss(data.phrases[said], data.patches[own], data.outside[own], data.targets[said], weights).mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            cosine.step()
    return patch_weight.detach(), text_weight.detach(), bias.detach()


def _loss(
    phrases: Tensor, patches: Tensor, outside: Tensor, targets: Tensor, weights: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    """Cross-entropy of each phrase: [B, Q, E], [B, P, D], [B, P], [B, Q, P] -> [B, Q]."""
    scores = torch.bmm(_asked(phrases, *weights), patches.transpose(1, 2))
    log_map = scores.masked_fill(outside[:, None], -torch.inf).log_softmax(-1)
    return -(targets * log_map.masked_fill(outside[:, None], 0.0)).sum(-1)


@torch.no_grad()
def _loss_of(weights: tuple[Tensor, Tensor, Tensor], data: _Data, places: Sequence[int]) -> float:
    losses = []
    for i in places:
        own = slice(int(data.first[i]), int(data.first[i + 1]))
        asked = (data.phrases[None, own], data.patches[i][None], data.outside[i][None], data.targets[None, own])
        losses.append(_loss(*asked, weights))
    return float(torch.cat(losses, dim=1).mean())
