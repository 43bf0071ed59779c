"""A tower of any family with a text encoder beside it: dino.txt (Jose et al. 2024, arXiv 2412.16334) on a frozen tower.

    tower (frozen) -> two transformer blocks -> [class token, mean patch]    2 D features, compared with
    text encoder   -> pooled -> one linear layer                             2 D features

B pictures, h x w the patch grid, N = h w, D features of a token, T texts of L words, E = 2 D.

Single patches are compared with the patch half of a text, its last D features: open-vocabulary segmentation.
Importing this file tells AutoConfig and AutoModel of the class; `load_tower` does.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPOutput

from dino_tower.errors import ConfigError, unknown
from dino_tower.tokens import Tokens, tokens, width
from dino_tower.tokens import patch_size as patch_of

KIND = "dino_tower_text"
POOLING = ("mean", "first", "last", "pooler")
# Text encoders for which AutoModel has no class, or one with a decoder.
TEXT_CLASSES: dict[str, Any] = {
    "t5": transformers.T5EncoderModel,
    "mt5": transformers.MT5EncoderModel,
    "siglip_text_model": transformers.SiglipTextModel,
    "siglip2_text_model": transformers.Siglip2TextModel,
}


class TextTowerConfig(PreTrainedConfig):
    """vision_config and text_config are those of the two encoders.

    head_blocks, head_heads: the trained blocks on top of the tower, as wide as its tokens. text_pooling: what of the
    text encoder's words becomes the text (POOLING). text_length: words that are read at most. text_padding:
    "longest", or "max_length" for an encoder that was trained on texts filled up, without a mask (SigLIP).
    vision_has_cls: whether the tower has a class token; the head learns one of its own where it has none.
    logit_scale_init_value: ln of the factor of the cosines. logit_bias_init_value: of the sigmoid loss, else None.
    """

    model_type = KIND
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="dinov2"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="distilbert"),
    }

    vision_config: Any = None
    text_config: Any = None
    vision_has_cls: bool = True
    head_blocks: int = 2
    head_heads: int = 4
    text_pooling: str = "mean"
    text_length: int = 64
    text_padding: str = "longest"
    logit_scale_init_value: float = 2.6592
    logit_bias_init_value: float | None = None
    initializer_range: float = 0.02


class HeadBlock(nn.Module):
    """Pre-norm transformer block of a ViT: [B, N, D] to the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width) for _ in range(4))
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """See the class."""
        normed = self.norm1(hidden)
        q, k, v = (f(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for f in (self.q_proj, self.k_proj, self.v_proj))  # fmt: skip
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        hidden = hidden + self.o_proj(mixed)
        return hidden + self.fc2(F.gelu(self.fc1(self.norm2(hidden))))


class VisionHead(nn.Module):
    """The trained blocks on top of the frozen tokens, and a last norm."""

    def __init__(self, width: int, blocks: int, heads: int, has_cls: bool) -> None:
        super().__init__()
        self.cls_token = None if has_cls else nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(HeadBlock(width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, found: Tokens) -> tuple[Tensor, Tensor]:
        """Tokens of the tower to the space of the texts: class token [B, D], the head's own if need be, and patches."""
        patches = found.patches.flatten(1, 2)
        cls = self.cls_token.expand(len(patches), -1, -1) if self.cls_token is not None else _cls_of(found)
        hidden = torch.cat([cls, patches], 1)
        for block in self.blocks:
            hidden = block(hidden)
        hidden = self.norm(hidden)
        return hidden[:, 0], hidden[:, 1:].unflatten(1, found.patches.shape[1:3])


class TextTower(PreTrainedModel):
    """A frozen vision tower, trained blocks on it, and a text encoder: the class that text alignment saves.

    Embeddings are not normalised; the loss and every score compare directions.
    """

    config: TextTowerConfig
    config_class = TextTowerConfig
    base_model_prefix = "text_tower"
    main_input_name = "pixel_values"
    input_modalities = ["image", "text"]  # noqa: RUF012  # a list in the class it overrides
    _supports_sdpa = True

    def __init__(self, config: TextTowerConfig) -> None:
        super().__init__(config)
        if config.text_pooling not in POOLING:
            raise unknown("text pooling", config.text_pooling, POOLING)
        self.vision_model = _vision(config.vision_config)
        self.text_model = text_encoder(config.text_config)
        features = width(self.vision_model)
        self.vision_head = VisionHead(features, config.head_blocks, config.head_heads, config.vision_has_cls)
        self.text_projection = nn.Linear(config.text_config.hidden_size, 2 * features, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        self.logit_bias = nn.Parameter(torch.tensor(float(config.logit_bias_init_value or 0.0)))
        self.post_init()
        self.freeze()

    def freeze(self, text: bool = False) -> None:
        """Hold the tower, what no gradient reaches, and, if asked, the text encoder."""
        self.vision_model.requires_grad_(False)
        self.logit_bias.requires_grad_(self.config.logit_bias_init_value is not None)
        for name, p in self.text_model.named_parameters():
            unused = name.startswith(("pooler.", "head.")) and self.config.text_pooling != "pooler"
            p.requires_grad_(not text and not unused)

    def train(self, mode: bool = True) -> TextTower:
        """The tower stays as it is: no dropout, no moving statistics."""
        super().train(mode)
        self.vision_model.eval()
        return self

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VisionHead) and module.cls_token is not None:
            init.normal_(module.cls_token, std=self.config.initializer_range)
        if isinstance(module, TextTower):
            init.constant_(module.logit_scale, float(self.config.logit_scale_init_value))
            init.constant_(module.logit_bias, float(self.config.logit_bias_init_value or 0.0))

    def embed_tokens(self, found: Tokens) -> tuple[Tensor, Tensor]:
        """Pictures [B, E] and their patches [B, h, w, D] in the space of the texts, from the frozen tower's tokens."""
        cls, patches = self.vision_head(found)
        return torch.cat([cls, patches.mean((1, 2))], -1), patches

    def patch_half(self, texts: Tensor) -> Tensor:
        """What of texts [T, E] patches are compared with: [T, D]."""
        return texts[:, texts.shape[1] // 2 :]

    def get_patch_features(self, pixel_values: Tensor) -> Tensor:
        """Patches [B, h, w, D] in the space of `patch_half`, from normalised pixels [B, 3, H, W]."""
        return self.embed_tokens(tokens(self.vision_model, pixel_values))[1]

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """`pooler_output` [B, E]; `last_hidden_state` [B, N, D] are the patches."""
        image, patches = self.embed_tokens(tokens(self.vision_model, pixel_values))
        return BaseModelOutputWithPooling(last_hidden_state=patches.flatten(1, 2), pooler_output=image)

    def get_text_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """`pooler_output` [T, E] of texts [T, L], padded on the right; attention_mask [T, L] is 1 at words."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        seen = None if self.config.text_padding == "max_length" else mask
        out = self.text_model(input_ids=input_ids, attention_mask=seen)
        if self.config.text_pooling == "pooler":
            pooled = out.pooler_output
        else:
            pooled = pool_words(out.last_hidden_state, mask, self.config.text_pooling)
        return BaseModelOutputWithPooling(out.last_hidden_state, self.text_projection(pooled))

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CLIPOutput:
        """As CLIPModel: `logits_per_image` [B, T] are cosines times exp(logit_scale), plus the bias if it has one."""
        image: Any = self.get_image_features(pixel_values).pooler_output
        text: Any = self.get_text_features(input_ids, attention_mask).pooler_output
        image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
        logits = self.logit_scale.exp() * image @ text.T + self.logit_bias
        return CLIPOutput(logits_per_image=logits, logits_per_text=logits.T, text_embeds=text, image_embeds=image)


def pool_words(hidden: Tensor, mask: Tensor, how: str) -> Tensor:
    """Words [T, L, W] to texts [T, W]: the mean, the first or the last of those whose mask [T, L] is 1."""
    if how == "first":
        return hidden[:, 0]
    if how == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1).clamp(min=1) - 1]
    weight = mask[..., None].to(hidden.dtype)
    return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)


def check_text(config: Any) -> None:
    """Raise ConfigError for what is no text encoder: one with a decoder beside it, one that does not read words."""
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False) and kind not in TEXT_CLASSES:
        known = ", ".join(TEXT_CLASSES)
        raise ConfigError(f"a {kind} has a decoder beside its encoder; of these only {known} are known")
    if not all(isinstance(getattr(config, field, None), int) for field in ("hidden_size", "vocab_size")):
        raise ConfigError(f"a {kind} is no text encoder: it has no vocabulary, or no one width of its words")


def text_encoder(config: Any) -> Any:
    """A text encoder of transformers by its config, untrained. Raises ConfigError for what is none."""
    check_text(config)
    kind = config.model_type
    return TEXT_CLASSES[kind](config) if kind in TEXT_CLASSES else AutoModel.from_config(config)


def text_tower_from(vision: Any, text: Any, *, has_cls: bool, blocks: int, **settings: Any) -> TextTower:
    """A TextTower around two encoders, whose weights are copied; its head is drawn from torch's global random state.

    has_cls, blocks: of the vision head. settings: the other fields of TextTowerConfig.
    """
    features = width(vision)
    heads = getattr(vision.config, "num_attention_heads", None) or max(1, features // 64)
    config = TextTowerConfig(
        vision_config=plain(vision.config),
        text_config=plain(text.config),
        vision_has_cls=has_cls,
        head_blocks=blocks,
        head_heads=heads if features % heads == 0 else 1,
        **settings,
    )
    model = TextTower(config)
    model.vision_model.load_state_dict(vision.state_dict())
    model.text_model.load_state_dict(text.state_dict())
    return model


def _vision(config: Any) -> Any:
    """The class of the tower, as `dino_tower.loading` builds it: without a pooler that nothing trains."""
    options: dict[str, Any] = {}
    if config.model_type in ("vit", "deit"):
        options["add_pooling_layer"] = False
    elif config.model_type == "beit":
        options["add_pooling_layer"] = config.use_mean_pooling
    model = AutoModel.from_config(config, **options)
    patch_of(model)  # a class that no family reads is refused here
    return model


def plain(config: Any) -> dict[str, Any]:
    """A config without the place it was read from, which is nobody else's business."""
    return {key: value for key, value in config.to_dict().items() if key != "_name_or_path"}


def _cls_of(found: Tokens) -> Tensor:
    if found.cls is None:
        raise ConfigError("this tower has no class token, and vision_has_cls says that it has one")
    return found.cls[:, None]


AutoConfig.register(KIND, TextTowerConfig, exist_ok=True)
AutoModel.register(TextTowerConfig, TextTower, exist_ok=True)
