"""Is the run healthy? A look at the teacher every few minutes, beside what the terms say of each logged step.

The k-NN of a run that started from weights is its student's, too: a teacher that follows slowly is still the start when
the student has lost what it knew. Data without labels gets RankMe and pictures alone: k-NN and its alarm need labels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dino_tower.families import family_of
from dino_tower.images import UnreadableImage
from dino_tower.knn import knn_accuracy
from dino_tower.pictures import PcaBasis, attention_picture, pca_basis, pca_picture, pca_scores
from dino_tower.pretrain.loading.pixels import Normalise
from dino_tower.pretrain.network.lora import look_alike
from dino_tower.pretrain.network.networks import make_backbone
from dino_tower.pretrain.network.student_teacher import Network
from dino_tower.pretrain.network.weights import compute_like
from dino_tower.pretrain.settings import Config
from dino_tower.run.directory import RunDirectory
from dino_tower.run.log import read_run
from dino_tower.sources import NO_LABEL, Source
from dino_tower.tokens import Tokens, last_attention, tokens

NEIGHBOURS = (5, 10, 20)
BATCH = 64
FALL = 0.03  # of k-NN accuracy: twice its standard error on 1,000 images
SHARE_OF_TIME = 0.05  # what looking may cost


def rankme(features: Tensor) -> float:
    """Effective rank of features [N, D]: exp of the entropy of the normalised singular values (Garrido et al. 2023)."""
    values = torch.linalg.svdvals(features.double() - features.double().mean(0))
    share = values / values.sum().clamp(min=1e-12)
    return float(torch.special.entr(share).sum().exp())


class Falling:
    """Whether k-NN has been below its best by more than FALL at two looks in a row; said once a fall.

    of_weights: the run started from weights, and one look that much below the first is enough: what they knew is what
    the run is for.
    """

    def __init__(self, of_weights: bool = False, who: str = "teacher") -> None:
        self.who = who
        self.best, self.low, self.below, self.of_weights = 0.0, 0, False, of_weights
        self.start: float | None = None

    def update(self, knn: Mapping[str, float]) -> str | None:
        """The message that is due after a look, if one is."""
        now = knn[str(NEIGHBOURS[1])]
        self.start = now if self.start is None else self.start
        self.low = self.low + 1 if now < self.best - FALL else 0
        self.best = max(self.best, now)
        below, was_below = self.of_weights and now < self.start - FALL, self.below
        self.below = below
        if was_below or not (below or self.low == 2):
            return None
        fell = f"fell below the weights it started from, {self.start:.1%}," if below else f"fell from {self.best:.1%}"
        return (
            f"{NEIGHBOURS[1]}-NN of the {self.who} {fell} to {now:.1%}: what it knew gets lost. Lower "
            "optim.base_lr, set optim.layer_decay below 1 and optim.freeze_backbone_epochs above 0, or anchor it with "
            "terms.gram or terms.distil"
        )


class Monitor:
    """Looks at the networks with a copy of its own, so that nothing of the run is touched. Main process only."""

    def __init__(
        self,
        config: Config,
        run: RunDirectory,
        source: Source,
        processor: Any,
        normalise: Normalise,
        say: Callable[[str], object] = print,
    ) -> None:
        self.config, self.run, self.normalise, self.processor, self.say = config.monitor, run, normalise, processor, say
        self.falling = {"knn": Falling()}  # by what the log calls it
        if config.init_from is not None:
            self.falling = {"knn": Falling(True), "student_knn": Falling(True, "student")}
        for row in read_run(run.root).monitor:  # of a run that goes on
            self._fallen(row)
        device = normalise.mean.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(config.seed)
            self.twin: Any = make_backbone(config, untrained=True).eval()
        self.twin.to(device)
        if self.twin.config.model_type != "resnet":
            self.twin.set_attn_implementation("eager")
        self.shown = _gather(source, np.linspace(0, len(source) - 1, self.config.pictures, dtype=int), processor)[0]
        labels = source.labels()
        labelled = np.flatnonzero(labels != NO_LABEL) if labels is not None else np.array([], dtype=int)
        among = labelled if len(labelled) else np.arange(len(source))
        chosen = np.random.default_rng(config.seed).permutation(among)[: self.config.knn_images]
        self.bank, kept = _gather(source, np.sort(chosen), processor)
        # none: k-NN has nothing to judge by, and RankMe needs no labels
        self.labels = torch.from_numpy(labels[kept]) if labels is not None and len(labelled) else None
        self.floor: Mapping[str, float] | None = None
        self._anchor: Tensor | None = None
        self._basis: PcaBasis | None = None
        self._looked, self._cost = time.monotonic(), 0.0

    def due(self) -> bool:
        """Whether it is time for a look: the asked minutes have passed, and looking stays a small share of the time."""
        pause = max(60 * self.config.minutes, self._cost / SHARE_OF_TIME)
        return time.monotonic() - self._looked > pause

    @torch.no_grad()
    def look(self, step: int, teacher: Network, student: Network) -> dict[str, Any]:
        """Log RankMe, with labels k-NN beside the untrained twin's, pictures of attention and PCA; returns the row."""
        start = time.monotonic()
        enough = len(self.bank) > max(NEIGHBOURS)
        if teacher.adapter is None:
            compute_like(self.twin, teacher.backbone)
        if enough and self.labels is not None and self.floor is None:  # the twin is untrained still
            self.floor = self._knn(self._encode(self.bank), self.labels)
        self._hold(teacher)
        row: dict[str, Any] = {"pictures": self._pictures(step)}
        if enough:
            features = self._encode(self.bank)
            row["rankme"] = rankme(features)
            if self.labels is not None:
                row |= {"knn": self._knn(features, self.labels), "random_knn": self.floor}
                if "student_knn" in self.falling:
                    self._hold(student)
                    row["student_knn"] = self._knn(self._encode(self.bank), self.labels)
        self.run.log("monitor", step, **row)
        for message in self._fallen(row):
            self.run.log("alarm", step, name="knn-falls", message=message)
            self.say(f"ALARM knn-falls: {message}")
        self._looked = time.monotonic()
        self._cost = self._looked - start
        return row

    def _hold(self, network: Network) -> None:
        """Make the twin what the network is now."""
        if network.adapter is None:
            self.twin.load_state_dict(network.backbone.state_dict())
        else:  # a second copy of what may be a large tower is more than looking is worth
            self.twin = look_alike(network.backbone).eval()
            self.twin.set_attn_implementation("eager")

    def _fallen(self, row: Mapping[str, Any]) -> list[str]:
        """The messages that are due after a look."""
        said = [falling.update(row[key]) for key, falling in self.falling.items() if row.get(key)]
        return [message for message in said if message]

    def _tokens(self, images: Tensor) -> Tokens:
        return tokens(self.twin, self.normalise(images))

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Tensor:
        return torch.cat([self._tokens(part).pooled.float().cpu() for part in images.split(BATCH)])

    def _knn(self, features: Tensor, labels: Tensor) -> Mapping[str, float]:
        accuracy = knn_accuracy(features, labels, features, labels, k=NEIGHBOURS, leave_self_out=True)
        return {str(k): value for k, value in accuracy.items()}

    def _pictures(self, step: int) -> list[str]:
        if not len(self.shown):
            return []
        folder = self.run.root / "pictures" / f"step-{step}"
        folder.mkdir(parents=True, exist_ok=True)
        images = [Image.fromarray(image.numpy()) for image in self.shown]
        for i, image in enumerate(images):
            if not (path := self.run.root / "pictures" / f"input-{i}.png").exists():
                image.save(path)
        patches = self._tokens(self.shown).patches.cpu()
        # turned towards the colours of the look before, so that a series does not flicker
        self._basis = pca_basis(patches, self._anchor)
        self._anchor = pca_scores(patches, self._basis).flatten(0, -2)
        drawn = {f"pca-{i}": pca_picture(p, self._basis) for i, p in enumerate(patches)}
        family = family_of(self.twin)
        if family.attention is not None and family.has_cls(self.twin):
            maps = last_attention(self.twin, self.normalise(self.shown)).cpu()
            drawn |= {f"attention-{i}": attention_picture(images[i], maps[i]) for i in range(len(images))}
        for name, picture in drawn.items():
            picture.save(folder / f"{name}.png")
        return [f"pictures/step-{step}/{name}.png" for name in drawn]


def _gather(source: Source, indices: np.ndarray, processor: Any) -> tuple[Tensor, np.ndarray]:
    """The readable images among `indices` as the processor crops them: uint8 [N, S, S, 3], and their indices."""
    images, kept = [], []
    for i in indices.tolist():
        try:
            picture = source[i].image()
        except UnreadableImage:
            continue
        pixels = processor(picture, return_tensors="pt", do_rescale=False, do_normalize=False).pixel_values[0]
        images.append(pixels.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0))
        kept.append(i)
    return (torch.stack(images) if images else torch.empty(0, dtype=torch.uint8)), np.array(kept, dtype=int)
