"""Several towers as one vision model of transformers: patches of unlike sizes on a common grid, joined at each place.

B pictures, (h, w) the common grid, N = h w places, k members of width D_i; P = 1 with a class token, else 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PreTrainedModel, initialization
from transformers.modeling_outputs import BaseModelOutputWithPooling

from dino_tower.families import family_of
from dino_tower.fused.config import FusedTowerConfig
from dino_tower.tokens import tokens

WITHOUT_POOLER = ("vit", "deit")


class Projection(nn.Linear):
    """Starts as the identity, cut or filled with zeros, times `scale`."""

    def __init__(self, width: int, out: int, scale: float) -> None:
        super().__init__(width, out, bias=False)
        self.scale = scale


class Fusion(nn.Module):
    """The members' tokens [B, P + N, D_i] to one sequence [B, P + N, D]: projected, then side by side or added up.

    "concat" projects nothing: D is the sum of the D_i. "interleave" projects to one width (as Eyes Wide Shut, arXiv
    2401.06209, 4.2, has an adapter for each of its two towers) and keeps them side by side, D = k times that width,
    until a VLM asks for tokens. "sum" adds the projections up. They start as the identity, cut or filled with zeros,
    and a sum as the mean: a fused tower that nobody has trained makes sense already.
    """

    def __init__(self, fusion: str, widths: list[int], width: int) -> None:
        super().__init__()
        self.adds = fusion == "sum"
        scale = 1 / len(widths) if self.adds else 1.0
        plain = fusion == "concat"
        self.projections = nn.ModuleList(
            nn.Identity() if plain else Projection(member, width, scale) for member in widths
        )

    def forward(self, members: list[Tensor]) -> Tensor:
        """[B, P + N, D_i] of each member to [B, P + N, D]."""
        projected = [project(hidden) for project, hidden in zip(self.projections, members, strict=True)]
        return torch.stack(projected).sum(0) if self.adds else torch.cat(projected, -1)


class FusedTower(PreTrainedModel):
    """Takes pixels normalised with the config's mean and std, gives [B, P + N, D], after the members' final norms."""

    config: FusedTowerConfig
    config_class = FusedTowerConfig
    base_model_prefix = "fused"
    main_input_name = "pixel_values"
    input_modalities = ["image"]  # noqa: RUF012 (as the base class declares it)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: FusedTowerConfig) -> None:
        super().__init__(config)
        self.members = nn.ModuleList(build_member(member) for member in config.member_configs())
        widths = [family_of(member).width(member) for member in self.members]
        self.fusion = Fusion(config.fusion, widths, config.hidden_size)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Projection):
            identity = torch.eye(*module.weight.shape, dtype=module.weight.dtype, device=module.weight.device)
            initialization.copy_(module.weight, identity * module.scale)

    @property
    def dense_width(self) -> int:
        """Features of a place: k tokens' where they are interleaved."""
        return self.config.hidden_size * self.config.tokens_per_place

    def dense(self, pixel_values: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, P + N, dense_width]: everything about a place in one vector, N = (H / p) (W / p)."""
        places = [self._member(i, pixel_values) for i in range(len(self.members))]
        return self.fusion(places)

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: Any = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling | tuple[Any, ...]:
        """[B, 3, H, W] to last_hidden_state [B, P + N, D], for "interleave" [B, P + k N, D]; its only hidden state.

        Other arguments of vision models (interpolate_pos_encoding, ...) are taken and not needed: any size will do.
        """
        hidden = self.dense(pixel_values)
        before, count = int(self.config.class_token), self.config.tokens_per_place
        if count > 1:
            apart = hidden.unflatten(-1, (count, -1))
            hidden = torch.cat([apart[:, :before].mean(2), apart[:, before:].flatten(1, 2)], 1)
        out = BaseModelOutputWithPooling(
            last_hidden_state=hidden,
            pooler_output=hidden[:, 0] if before else hidden.mean(1),
            hidden_states=(hidden,) if output_hidden_states not in (None, False) else None,
        )
        return out if return_dict or return_dict is None else out.to_tuple()

    def _member(self, number: int, pixel_values: Tensor) -> Tensor:
        """[B, P + N, D_i] of one member on the common grid."""
        config, model = self.config, self.members[number]
        height, width = (side // config.patch_size for side in pixel_values.shape[-2:])
        seen = tokens(model, self._pixels(number, pixel_values, (height, width)))
        patches = seen.patches
        if patches.shape[1:3] != (height, width):
            patches = resampled(patches.movedim(-1, 1), (height, width), "bilinear").movedim(1, -1)
        rows = patches.flatten(1, 2)
        return torch.cat([seen.pooled[:, None], rows], 1) if config.class_token else rows

    def _pixels(self, number: int, pixel_values: Tensor, grid: tuple[int, int]) -> Tensor:
        """The picture as a member wants it: cut to whole patches, normalised with its mean and std, of its size."""
        assert self.config.members is not None
        member: dict[str, Any] = self.config.members[number]
        model, ours = self.members[number], self.config.patch_size
        patch = family_of(model).patch(model)
        pixels = pixel_values[..., : grid[0] * ours, : grid[1] * ours]
        have = (self.config.image_mean, self.config.image_std)
        if have != (member["mean"], member["std"]):
            mean, std, their_mean, their_std = (
                pixels.new_tensor(v).view(-1, 1, 1) for v in (*have, member["mean"], member["std"])
            )
            pixels = (pixels * std + (mean - their_mean)) / their_std
        if (size := member.get("size")) is not None:
            scale = size / self.config.image_size / patch
            grid = (max(1, round(pixels.shape[-2] * scale)), max(1, round(pixels.shape[-1] * scale)))
        return resampled(pixels, (grid[0] * patch, grid[1] * patch), "bicubic")


def resampled(maps: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """[B, C, H, W] at another size, smoothed where it shrinks; unchanged where it has that size already."""
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps.float(), size, mode=mode, antialias=True, align_corners=False).to(maps.dtype)


def build_member(config: Any) -> PreTrainedModel:
    """A vision model without the pooler that a tower has no use for."""
    if config.model_type in WITHOUT_POOLER:
        return AutoModel.from_config(config, add_pooling_layer=False)
    return AutoModel.from_config(config)


AutoConfig.register(FusedTowerConfig.model_type, FusedTowerConfig, exist_ok=True)
AutoModel.register(FusedTowerConfig, FusedTower, exist_ok=True)
