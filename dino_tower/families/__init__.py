"""Every kind of encoder that a tower can be, by name: transformers' model type, or library and class."""

from __future__ import annotations

from dino_tower.errors import unknown
from dino_tower.families import of_fused, of_timm, of_torchvision
from dino_tower.families import of_transformers as hf
from dino_tower.families.family import Family, Model

FAMILIES: dict[str, Family] = {
    "dinov2": hf.transformer("encoder.layer", hf.by("layernorm")),
    "dinov2_with_registers": hf.transformer("encoder.layer", hf.by("layernorm")),
    "dinov3_vit": hf.transformer("model.layer", hf.by("norm")),
    "vit": hf.transformer("layers", hf.by("layernorm"), forward=hf.flagged),
    "deit": hf.transformer("layers", hf.by("layernorm"), forward=hf.flagged, prefix=lambda model: 2),
    "vit_msn": hf.transformer("layers", hf.by("layernorm"), forward=hf.flagged),
    "ijepa": hf.transformer(
        "layers", hf.by("layernorm"), forward=hf.flagged, prefix=lambda model: 0, has_cls=False
    ),
    "beit": hf.transformer("layers", hf.beit_norm, forward=hf.beit),
    "clip_vision_model": hf.transformer(
        "encoder.layers", hf.by("post_layernorm"), forward=hf.clip, attention="self_attn"
    ),
    "siglip_vision_model": hf.transformer(
        "encoder.layers", hf.by("post_layernorm"), forward=hf.flagged, attention="self_attn",
        prefix=lambda model: 0, has_cls=False, pooling=hf.probe,
    ),
    "siglip2_vision_model": hf.transformer(
        "encoder.layers", hf.by("post_layernorm"), forward=hf.naflex, attention="self_attn",
        prefix=lambda model: 0, has_cls=False, pooling=hf.probe,
    ),
    "resnet": hf.convolutional(
        "encoder.stages", hf.plain, patch=hf.stride
    ),
    "convnext": hf.convolutional("encoder.stages", hf.convnext, hf.convnext_norm),
    "convnextv2": hf.convolutional("encoder.stages", hf.convnext, hf.convnext_norm),
    "dinov3_convnext": hf.convolutional("model.stages", hf.dinov3_convnext, hf.convnext_norm),
    "dino_tower_fused": of_fused.FUSED,
    "timm VisionTransformer": of_timm.TRANSFORMER,
    "timm VisionTransformerDistilled": of_timm.TRANSFORMER,
    "timm Eva": of_timm.TRANSFORMER,
    "timm Beit": of_timm.TRANSFORMER,
    "timm ResNet": of_timm.RESNET,
    "timm ConvNeXt": of_timm.CONVNEXT,
    "torchvision VisionTransformer": of_torchvision.VIT,
    "torchvision ResNet": of_torchvision.RESNET,
    "torchvision ConvNeXt": of_torchvision.CONVNEXT,
}  # fmt: skip


def family_name(model: Model) -> str:
    """The key of FAMILIES under which a model would stand: "dinov2", "timm Eva", "torchvision ResNet"."""
    kind = getattr(getattr(model, "config", None), "model_type", None)
    return str(kind) if kind else f"{type(model).__module__.split('.')[0]} {type(model).__name__}"


def family_of(model: Model) -> Family:
    """How a model is read. Raises ConfigError for one that has no entry in FAMILIES."""
    name = family_name(model)
    if name not in FAMILIES:
        raise unknown("tower family", name, FAMILIES)
    return FAMILIES[name]
