"""The config of a fused tower: its members with what their processors do to a picture, and how they are joined."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

from transformers import AutoConfig, PreTrainedConfig

from dino_tower.errors import ConfigError, unknown

# How the tokens of the members become one, at each place of the common grid.
FUSIONS = {
    "concat": "their channels one after the other",
    "interleave": "one token of each, side by side",
    "sum": "the sum of learned projections",
}


class Member(TypedDict):
    """One tower: its config as a dict, the mean and std of its processor, and the pixels it is shown.

    size: None shows it the picture at patch size x common grid, so that its patches are the common ones; a number shows
    it pictures of so many pixels a side (of one whose sides are the fused tower's own image_size) and resamples its
    patch tokens to the common grid.
    """

    config: dict[str, Any]
    mean: list[float]
    std: list[float]
    size: NotRequired[int | None]


class FusedTowerConfig(PreTrainedConfig):
    """fusion: a name of FUSIONS; members: see Member.

    hidden_size: width of a token; patch_size, image_size: in pixels, of the common grid and the processor.
    image_mean, image_std: what the pixels were normalised with; each member gets them normalised in its own way.
    class_token: put one in front of the patches (a member without one gives the mean of its patches).
    num_hidden_layers is 0: there are no layers to choose from, the last hidden state is all there is.
    """

    model_type = "dino_tower_fused"

    members: list[Any] | None = None
    fusion: str = "concat"
    hidden_size: int = 0
    patch_size: int = 16
    image_size: int = 224
    image_mean: list[float] | None = None
    image_std: list[float] | None = None
    class_token: bool = False
    num_hidden_layers: int = 0
    num_channels: int = 3
    layer_norm_eps: float = 1e-6

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.fusion not in FUSIONS:
            raise unknown("fusion", self.fusion, FUSIONS)

    @property
    def tokens_per_place(self) -> int:
        """Tokens that a VLM gets for each place of the grid."""
        return len(self.members or ()) if self.fusion == "interleave" else 1

    def member_configs(self) -> list[PreTrainedConfig]:
        """The members' own configs. Raises ConfigError for a config without members."""
        if not self.members:
            raise ConfigError("a fused tower needs members")
        return [AutoConfig.for_model(**dict(member["config"])) for member in self.members]
