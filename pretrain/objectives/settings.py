"""The settings of terms, and what cannot be among them; answered before torch has loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

from dino_tower.errors import ConfigError, unknown
from dino_tower.pretrain.objectives.control_settings import check_clip, check_simclr, check_supervised
from dino_tower.pretrain.objectives.masked_settings import check_ijepa, check_mae

if TYPE_CHECKING:
    from dino_tower.pretrain.settings import Config

# Each a sum of terms with these weights; `terms.NAME` overrides one of them.
OBJECTIVES: dict[str, dict[str, float]] = {
    "dino": {"dino": 1.0},
    "ibot": {"dino": 1.0, "ibot": 1.0},
    "dinov2": {"dino": 1.0, "ibot": 1.0, "koleo": 0.1},
    "distil": {"distil": 1.0},
    "distil_head": {"distil_head": 1.0},
    "mae": {"mae": 1.0},
    "ijepa": {"ijepa": 1.0},
    "clip": {"clip": 1.0},
    "simclr": {"simclr": 1.0},
    "supervised": {"supervised": 1.0},
}
NO_MASK_TOKEN = ("_siglip", "_clip")


@dataclass(frozen=True)
class TermsConfig:
    """The weight of each term of the loss; none: what the objective gives it, 0: leave it out."""

    dino: float | None = None
    """Two views of a picture get the same prototypes."""
    ibot: float | None = None
    """A hidden patch gets the prototypes that the teacher, who sees it, gives it."""
    koleo: float | None = None
    """The features of a batch keep away from each other."""
    distil: float | None = None
    """Class token and patches predict those of frozen towers."""
    distil_head: float | None = None
    """Views and patches get the prototypes that a frozen run's head gives them."""
    gram: float | None = None
    """The similarities between a view's patches stay as a frozen tower has them."""
    mae: float | None = None
    """From a quarter of the patches, the pixels of the others."""
    ijepa: float | None = None
    """From a part of a picture, what the teacher makes of other parts."""
    clip: float | None = None
    """A picture finds its caption among those of the batch, and the caption its picture."""
    simclr: float | None = None
    """A view finds the other one of its picture among those of the batch."""
    supervised: float | None = None
    """The class token tells the picture's label."""


@dataclass(frozen=True)
class IbotConfig:
    """The masked-patch term: which patches are hidden, and the head that answers for them."""

    head: Literal["shared", "mlp", "separate"] = "shared"
    """What patches share with the class token: all of the head, its MLP but not the prototypes, or nothing."""
    prototypes: int | None = None
    """Of the patches, where they have their own; none: as many as the head."""
    bottleneck: int | None = None
    """Of a separate head; none: as the head."""
    masks: Literal["block", "random", "stratified"] = "block"
    """iBOT's masks of each view, in blocks or at random, or DINOv2's: blocks, the hidden shares spread evenly."""
    ratios: tuple[float, ...] = (0.0, 0.3)
    """block, random: the hidden share of a view is one of these, by chance ..."""
    spreads: tuple[float, ...] = (0.0, 0.2)
    """... moved by up to so much."""
    share: float = 0.5
    """stratified: share of the views that are masked."""
    range: tuple[float, float] = (0.1, 0.5)
    """stratified: least and most that a masked view hides."""
    centre: Literal["all", "masked"] = "all"
    """The patches whose mean is the patches' centre: all, as in iBOT, or those masked, as in DINOv2."""


@dataclass(frozen=True)
class DistilConfig:
    """The distillation term: which towers, and what speaks their language for the student."""

    teachers: tuple[str, ...] = ()
    """TOWERs to learn from, of any kind, patch size and width; of distil_head one RUN or RUN@teacher."""
    patches: float = 1.0
    """Weight of the patches beside the class token."""
    hidden: int = 1024
    """Hidden width of the MLPs between the student's features and a tower's; 0: none, the features are the same: an
    anchor to the weights that a run started from."""


@dataclass(frozen=True)
class GramConfig:
    """The Gram-anchoring term."""

    tower: str | None = None
    """The TOWER that holds the patches' similarities: an earlier state of the run, say. self: the run's own teacher, as
    it is when the term begins to count."""
    scale: float = 2.0
    """How many times larger the tower sees the views than the student."""
    start: float = 0.0
    """Share of the run after which the term counts."""
    refresh: int = 0
    """Steps after which this run's own teacher, as it then is, takes the tower's place, again and again; 0: never."""
    refreshes: int = 3
    """How often at most."""


def weights(config: Config) -> dict[str, float]:
    """Term -> weight of a run, in the order of TermsConfig; those of weight 0 left out."""
    asked = {field.name: getattr(config.terms, field.name) for field in fields(TermsConfig)}
    given = OBJECTIVES[config.objective]
    both = {name: given.get(name, 0.0) if weight is None else weight for name, weight in asked.items()}
    return {name: weight for name, weight in both.items() if weight}


def describe(config: Config) -> str:
    """The sum as a person writes it."""
    return " + ".join(name if weight == 1 else f"{weight:g} {name}" for name, weight in weights(config).items())


def check_terms(config: Config) -> None:
    """Raise ConfigError, naming the key, for an objective that no run can have."""
    if config.objective not in OBJECTIVES:
        raise unknown("objective", config.objective, OBJECTIVES)
    for field in fields(TermsConfig):
        if (getattr(config.terms, field.name) or 0) < 0:
            raise ConfigError(f"terms.{field.name} is {getattr(config.terms, field.name)}; it must not be negative")
    chosen = weights(config)
    if not set(chosen) - {"koleo"}:
        raise ConfigError(f"terms: nothing to learn from is left of --objective {config.objective}; set one above 0")
    if config.distil.teachers and not {"distil", "distil_head"} & chosen.keys():
        raise ConfigError("distil.teachers are given and nobody asks them: set --objective distil or --terms.distil 1")
    if config.gram.tower and "gram" not in chosen:
        raise ConfigError("gram.tower is given and nobody asks it: set --terms.gram 1")
    for name in chosen:
        if name in CHECKS:
            CHECKS[name](config)


def _check_ibot(config: Config) -> None:
    ibot = config.ibot
    if config.arch.startswith("resnet") or config.arch.endswith(NO_MASK_TOKEN):
        raise ConfigError(f"terms.ibot needs a class with a mask token, which {config.arch} lacks: take vits16, "
                          "vits16_reg4, vits16_rope or another size of these")  # fmt: skip
    for name in ("prototypes", "bottleneck"):
        value = getattr(ibot, name)
        if value is not None and value <= 0:
            raise ConfigError(f"ibot.{name} is {value}; it must be above 0")
        if value is not None and (ibot.head == "shared" or (ibot.head == "mlp" and name == "bottleneck")):
            raise ConfigError(f"ibot.{name} is {value}, but the patches' head is {ibot.head}: set --ibot.head separate")
    if not ibot.ratios or len(ibot.ratios) != len(ibot.spreads):
        raise ConfigError(f"ibot.ratios has {len(ibot.ratios)} values and ibot.spreads {len(ibot.spreads)}; "
                          "give one spread for each ratio")  # fmt: skip
    for ratio, spread in zip(ibot.ratios, ibot.spreads, strict=True):
        if not 0 <= spread <= min(ratio, 1 - ratio):
            raise ConfigError(f"ibot.ratios {ratio} with ibot.spreads {spread}: ratio +- spread must lie in 0 to 1")
    if not 0 <= ibot.share <= 1:
        raise ConfigError(f"ibot.share is {ibot.share}; it must lie between 0 and 1")
    if not 0 <= ibot.range[0] <= ibot.range[1] <= 1:
        raise ConfigError(f"ibot.range is {ibot.range}; give two shares of 0 to 1, the lower first")


def _check_koleo(config: Config) -> None:
    if config.batch_size < 2:
        raise ConfigError("terms.koleo compares the pictures of a batch: --batch-size must be 2 or more")


def _check_distil(config: Config) -> None:
    distil = config.distil
    if not distil.teachers:
        raise ConfigError("terms.distil: --distil.teachers TOWER [TOWER ...] is missing: whom to learn from")
    if distil.patches < 0 or distil.hidden < 0:
        raise ConfigError(f"distil.patches is {distil.patches} and distil.hidden {distil.hidden}; give 0 or more")


def _check_distil_head(config: Config) -> None:
    distil = config.distil
    if len(distil.teachers) != 1:
        raise ConfigError(f"terms.distil_head: {len(distil.teachers)} distil.teachers; one RUN is needed, whose head "
                          "is learned from: --distil.teachers RUN")  # fmt: skip
    if distil.patches < 0:
        raise ConfigError(f"distil.patches is {distil.patches}; give 0 or more")
    if "ibot" in weights(config):
        raise ConfigError("terms.distil_head and terms.ibot do not go together: the student has to see the patches "
                          "that it answers for; set one of them to 0")  # fmt: skip


def _check_gram(config: Config) -> None:
    if not config.gram.tower:
        raise ConfigError("terms.gram: --gram.tower TOWER is missing: whose patches to stay with")
    if config.gram.scale <= 0:
        raise ConfigError(f"gram.scale is {config.gram.scale}; it must be above 0")
    if not 0 <= config.gram.start < 1:
        raise ConfigError(f"gram.start is {config.gram.start}; give a share of the run, 0 or more and below 1")
    if config.gram.refresh < 0 or config.gram.refreshes < 0:
        raise ConfigError(f"gram.refresh is {config.gram.refresh} and gram.refreshes {config.gram.refreshes}; give 0 "
                          "or more")  # fmt: skip
    if (config.gram.tower == "self" or config.gram.refresh) and config.lora.method != "none":
        raise ConfigError("gram.tower self and gram.refresh copy the whole teacher, in which lora trains an adapter: "
                          "name the tower below as --gram.tower, without refresh")  # fmt: skip
    if config.arch.startswith("resnet"):
        raise ConfigError(f"terms.gram compares patches, which {config.arch} has not")


CHECKS: dict[str, Callable[[Config], None]] = {
    "ibot": _check_ibot,
    "koleo": _check_koleo,
    "distil": _check_distil,
    "distil_head": _check_distil_head,
    "gram": _check_gram,
    "mae": check_mae,
    "ijepa": check_ijepa,
    "clip": check_clip,
    "simclr": check_simclr,
    "supervised": check_supervised,
}
