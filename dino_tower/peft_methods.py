"""PEFT methods by name: each a function from settings and layer names to a configuration of the `peft` library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dino_tower.errors import ConfigError, unknown
from dino_tower.peft_layers import PLAIN, Targets, find_targets

if TYPE_CHECKING:  # settings are read, and mistakes in them told, before torch and peft would have loaded
    from peft import PeftConfig

    from dino_tower.families.family import Model


@dataclass(frozen=True)
class PeftSettings:
    """What a PEFT method is given; what is left out is the method's own default."""

    rank: int | None = None
    """LoRA's rank and what plays its part: block size (oft, boft), reflections (hra), frequencies (fourierft)."""
    alpha: float | None = None
    """lora, dora, pissa, loha, lokr: the update is scaled by alpha / rank; by default they are equal."""
    dropout: float = 0.0
    """Of the adapter's input (loha, lokr, oft: of the whole adapter of a layer)."""
    modules: tuple[str, ...] = ()
    """Layers inside a block to adapt, as q_proj v_proj; by default those that suit the method."""


@dataclass(frozen=True)
class Method:
    """One method. rank: its default, None for a method without one. part: which layers it adapts by default."""

    config: Callable[[PeftSettings, int, Targets], PeftConfig]
    rank: int | None
    alpha: bool = False
    dropout: bool = True
    part: str = "linear"  # linear, values or norms
    check: Callable[[int, Targets], str | None] = lambda rank, targets: None  # why a rank cannot work


def _lora(**options: Any) -> Callable[[PeftSettings, int, Targets], PeftConfig]:
    def config(settings: PeftSettings, rank: int, targets: Targets) -> PeftConfig:
        import peft

        alpha: Any = rank if settings.alpha is None else settings.alpha  # peft asks for an int, and only divides by it
        return peft.LoraConfig(
            r=rank, lora_alpha=alpha, lora_dropout=settings.dropout, target_modules=targets.layers, **options
        )

    return config


def _lycoris(kind: str) -> Callable[[PeftSettings, int, Targets], PeftConfig]:
    def config(settings: PeftSettings, rank: int, targets: Targets) -> PeftConfig:
        import peft

        alpha = rank if settings.alpha is None else settings.alpha
        made: PeftConfig = getattr(peft, kind)(
            r=rank, alpha=alpha, module_dropout=settings.dropout, target_modules=targets.layers
        )
        return made

    return config


def _oft(settings: PeftSettings, rank: int, targets: Targets) -> PeftConfig:
    import peft

    return peft.OFTConfig(
        r=0, oft_block_size=rank, module_dropout=settings.dropout, target_modules=targets.layers,
        # the series that is its default only comes near a rotation: merging would then change the tower
        use_cayley_neumann=False,
    )  # fmt: skip


def _boft(settings: PeftSettings, rank: int, targets: Targets) -> PeftConfig:
    import peft

    return peft.BOFTConfig(boft_block_size=rank, boft_dropout=settings.dropout, target_modules=targets.layers)


def _ia3(settings: PeftSettings, rank: int, targets: Targets) -> PeftConfig:
    import peft

    return peft.IA3Config(target_modules=targets.layers, feedforward_modules=targets.feedforward)


def _vera(settings: PeftSettings, rank: int, targets: Targets) -> PeftConfig:
    import peft

    return peft.VeraConfig(r=rank, vera_dropout=settings.dropout, target_modules=targets.layers)


def _hra(settings: PeftSettings, rank: int, targets: Targets) -> PeftConfig:
    import peft

    return peft.HRAConfig(r=rank, target_modules=targets.layers)


def _fourierft(settings: PeftSettings, rank: int, targets: Targets) -> PeftConfig:
    import peft

    # by default it starts from noise, which leaves nothing of the tower
    return peft.FourierFTConfig(n_frequency=rank, init_weights=True, target_modules=targets.layers)


def _ln_tuning(settings: PeftSettings, rank: int, targets: Targets) -> PeftConfig:
    import peft

    return peft.LNTuningConfig(target_modules=targets.layers)


def _divides(rank: int, targets: Targets) -> str | None:
    odd = [n for n in targets.inputs if n % rank]
    return f"blocks of {rank} do not divide the {odd[0]} features of an adapted layer" if odd else None


def _fits(rank: int, targets: Targets) -> str | None:
    least = min(*targets.inputs, *targets.outputs)
    return f"the singular vectors that it starts from are {least}, fewer than {rank}" if rank > least else None


def _even(rank: int, targets: Targets) -> str | None:
    return (
        f"{rank} reflections are odd: only pairs cancel, so that training starts from the tower" if rank % 2 else None
    )


def _few(rank: int, targets: Targets) -> str | None:
    most = min(targets.inputs) * min(targets.outputs)
    return f"{rank} frequencies are more than the {most} of the smallest adapted layer" if rank > most else None


METHODS: dict[str, Method] = {
    "lora": Method(_lora(), 16, alpha=True),
    "dora": Method(_lora(use_dora=True), 16, alpha=True),
    "pissa": Method(_lora(init_lora_weights="pissa"), 16, alpha=True, check=_fits),
    "loha": Method(_lycoris("LoHaConfig"), 8, alpha=True),
    "lokr": Method(_lycoris("LoKrConfig"), 8, alpha=True),
    "oft": Method(_oft, 32, check=_divides),
    "boft": Method(_boft, 4, check=_divides),
    "hra": Method(_hra, 8, dropout=False, check=_even),
    "vera": Method(_vera, 256),
    "fourierft": Method(_fourierft, 1000, dropout=False, check=_few),
    "ia3": Method(_ia3, None, dropout=False, part="values"),
    "ln-tuning": Method(_ln_tuning, None, dropout=False, part="norms"),
}


def method_names() -> list[str]:
    """Everything that `--method` takes."""
    return [*METHODS, *PLAIN]


def peft_config(model: Model, method: str, settings: PeftSettings) -> PeftConfig:
    """The configuration of a method for this tower.

    Raises ConfigError for an unknown method or layer, a setting that the method has not, a rank that does not fit the
    tower's layers, and a tower without a place for adapters.
    """
    if method not in METHODS:
        raise unknown("method", method, method_names())
    kind = METHODS[method]
    for name, given, has in (
        ("rank", settings.rank is not None, kind.rank is not None),
        ("alpha", settings.alpha is not None, kind.alpha),
        ("dropout", settings.dropout != 0, kind.dropout),
    ):
        if given and not has:
            raise ConfigError(f"peft.{name}: method {method} has none; leave it out")
    rank = settings.rank if settings.rank is not None else kind.rank or 0
    if kind.rank is not None and rank < 1:
        raise ConfigError(f"peft.rank is {rank}; it must be above 0")
    if not 0 <= settings.dropout < 1:
        raise ConfigError(f"peft.dropout is {settings.dropout}; it must lie between 0 and 1")
    targets = find_targets(model, method, kind.part, settings.modules)
    if (why := kind.check(rank, targets)) is not None:
        raise ConfigError(f"peft.rank {rank} cannot work with {method}: {why}")
    return kind.config(settings, rank, targets)
