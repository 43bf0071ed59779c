"""How each library computes tokens from the same weights: what a conversion is compared with.

B pictures, h x w the patch grid, D features.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dino_tower.convert.shape import Shape
from dino_tower.errors import ConfigError
from dino_tower.export.same_features import Forward
from dino_tower.positions import use_reference_interpolation
from dino_tower.tokens import Tokens


def grid_tokens(hidden: Tensor, pixels: Tensor, patch: int, prefix: int) -> Tokens:
    """[B, prefix + h w, D], already normed, to Tokens."""
    height, width = pixels.shape[-2] // patch, pixels.shape[-1] // patch
    return Tokens(hidden[:, prefix:].unflatten(1, (height, width)), hidden[:, 0])


def of_dinov2(model: Any) -> Forward:
    """A Dinov2Model or Dinov2WithRegistersModel of transformers."""
    prefix = 1 + getattr(model.config, "num_register_tokens", 0)
    return lambda pixels: grid_tokens(model(pixels).last_hidden_state, pixels, model.config.patch_size, prefix)


def of_vit(model: Any) -> Forward:
    """A ViTModel of transformers."""

    def forward(pixels: Tensor) -> Tokens:
        hidden = model(pixels, interpolate_pos_encoding=True).last_hidden_state
        return grid_tokens(hidden, pixels, model.config.patch_size, 1)

    return forward


def of_timm(model: Any) -> Forward:
    """A VisionTransformer of timm made with dynamic_img_size."""
    patch = model.patch_embed.patch_size[0]
    return lambda pixels: grid_tokens(model.forward_features(pixels), pixels, patch, model.num_prefix_tokens)


def of_original(model: Any) -> Forward:
    """A Dinov2Model as the original code would run it: without registers, positions are resized by scale + 0.1.

    (dino/vision_transformer.py and dinov2/models/vision_transformer.py::interpolate_pos_encoding; the models with
    registers were released with the antialiased resizing that their transformers class has.)
    """
    if not getattr(model.config, "num_register_tokens", 0):
        use_reference_interpolation(model)
    return of_dinov2(model)


# timm's names for the published sizes: (width, patch, registers)
TIMM_NAMES = {
    (192, 16, 0): "vit_tiny_patch16_224",
    (384, 16, 0): "vit_small_patch16_224",
    (384, 8, 0): "vit_small_patch8_224",
    (768, 16, 0): "vit_base_patch16_224",
    (768, 8, 0): "vit_base_patch8_224",
    (1024, 16, 0): "vit_large_patch16_224",
    (384, 14, 0): "vit_small_patch14_dinov2",
    (768, 14, 0): "vit_base_patch14_dinov2",
    (1024, 14, 0): "vit_large_patch14_dinov2",
    (384, 14, 4): "vit_small_patch14_reg4_dinov2",
    (768, 14, 4): "vit_base_patch14_reg4_dinov2",
    (1024, 14, 4): "vit_large_patch14_reg4_dinov2",
}
PLAIN, SWIGLU = "vit_small_patch16_224", "vit_giant_patch14_dinov2"  # what other sizes are spelled with


def timm_architecture(shape: Shape) -> tuple[str, dict[str, Any]]:
    """A name of timm and the arguments that make it this shape; every size is given, so that nothing is implied."""
    name = SWIGLU if shape.swiglu else TIMM_NAMES.get((shape.width, shape.patch, shape.registers), PLAIN)
    ratio: float = shape.mlp_ratio
    if shape.swiglu:  # timm counts the gate and the value together
        hidden = (shape.width * shape.mlp_ratio * 2 // 3 + 7) // 8 * 8
        ratio = 2 * hidden / shape.width
        if int(shape.width * ratio) != 2 * hidden:
            ratio += 1e-6
    return name, {
        "img_size": shape.image_size,
        "patch_size": shape.patch,
        "embed_dim": shape.width,
        "depth": shape.depth,
        "num_heads": shape.heads,
        "mlp_ratio": ratio,
        "qkv_bias": shape.qkv_bias,
        # timm drops an argument that is None: a model whose own default is another value would keep it
        "init_values": 1.0 if shape.layerscale else 0.0,
        "reg_tokens": shape.registers,
        "no_embed_class": shape.registers > 0,
        "dynamic_img_size": True,
        "num_classes": 0,
    }


def timm_model(name: str, arguments: dict[str, Any], weights: dict[str, Tensor], where: str) -> Any:
    """A timm VisionTransformer that holds exactly these weights, in eval. Raises ConfigError otherwise."""
    import timm

    try:
        model = timm.create_model(name, **arguments)
        model.load_state_dict(weights, strict=True)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"{where}: not a {name} of timm: {' '.join(str(error).split())[:240]}") from None
    if type(model).__name__ != "VisionTransformer":
        raise ConfigError(f"{where}: {name} is a {type(model).__name__} of timm; only its VisionTransformer converts")
    return model.eval()
