"""What the client classes of transformers do with a vision tower: read from their code, and tried by the tests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """What a vision class gives.

    cls: a class token in front. any_size: takes any picture size by itself; a VLM never passes
        interpolate_pos_encoding=True on, so that the others take their native size only.
    backbone: has a Backbone class. backbone_cls: which keeps the class token where it does not reshape into maps.
    """

    cls: bool = True
    any_size: bool = True
    backbone: bool = True
    backbone_cls: bool = True


LAYOUTS: dict[str, Layout] = {
    "dinov2": Layout(),
    "dinov2_with_registers": Layout(),
    "dinov3_vit": Layout(backbone_cls=False),
    "siglip_vision_model": Layout(cls=False, any_size=False, backbone=False),
    "clip_vision_model": Layout(any_size=False, backbone=False),
    "vit": Layout(any_size=False, backbone=False),
    "ijepa": Layout(cls=False, any_size=False, backbone=False),
    "dino_tower_fused": Layout(cls=False, backbone=False),
}


@dataclass(frozen=True)
class Vlm:
    """How a VLM class reads its tower.

    strategy, layer: the defaults of vision_feature_select_strategy ("default" cuts off the first token, "full" none)
        and vision_feature_layer in its config; None where it has no such setting.
    drops: tokens that it cuts off where there is no strategy to choose.
    reads: "layer" (hidden_states[layer], before the final norm), "last" (last_hidden_state), "pooled" (pooler_output).
    grid: it lays the tokens out on their square grid: one too many or too few fails, with a message about shapes.
    merge: merge x merge patches become one image token.
    tile: the picture size in pixels that its default tiling is made for; tiles have the tower's native size.
    module: where the tower sits in the model.
    forgets: saved and loaded again, it reads vision_config as its own class and builds that instead of the tower.
    refuses: why it takes no tower but its own kind.
    """

    model_type: str
    strategy: str | None = None
    layer: int | tuple[int, ...] | None = None
    drops: int = 0
    reads: str = "layer"
    grid: bool = False
    merge: int = 1
    tile: int | None = None
    module: str = "model.vision_tower"
    forgets: bool = False
    refuses: str = ""

    @property
    def native(self) -> bool:
        """It computes with vision_config.image_size and takes no other size."""
        return self.tile is not None or self.model_type == "gemma3"


VLMS: dict[str, Vlm] = {
    "LlavaForConditionalGeneration": Vlm("llava", "default", -2),
    "VipLlavaForConditionalGeneration": Vlm("vipllava", None, (-2, -5, -8, -11, 6), drops=1),
    "LlavaNextForConditionalGeneration": Vlm("llava_next", "default", -2, grid=True, tile=336),
    "LlavaOnevisionForConditionalGeneration": Vlm("llava_onevision", "full", -1, grid=True, tile=384),
    "InternVLForConditionalGeneration": Vlm("internvl", "default", -1, reads="last", grid=True, merge=2, forgets=True),
    "AyaVisionForConditionalGeneration": Vlm("aya_vision", "full", -1, grid=True, merge=2),
    "PaliGemmaForConditionalGeneration": Vlm("paligemma", reads="last"),
    "Gemma3ForConditionalGeneration": Vlm("gemma3", reads="last", grid=True),
    "Cohere2VisionForConditionalGeneration": Vlm("cohere2_vision", reads="last", grid=True, merge=2),
    "VisionEncoderDecoderModel": Vlm("vision-encoder-decoder", reads="last", module="encoder"),
    "VisionTextDualEncoderModel": Vlm("vision-text-dual-encoder", reads="pooled", module="vision_model"),
    "Idefics3ForConditionalGeneration": Vlm(
        "idefics3", refuses="it builds its own vision transformer, whatever vision_config names"
    ),
    "SmolVLMForConditionalGeneration": Vlm(
        "smolvlm", refuses="it builds its own vision transformer, whatever vision_config names"
    ),
    "Mistral3ForConditionalGeneration": Vlm(
        "mistral3", refuses="it reads its tower as a Pixtral: no class token, and an attribute patch_size"
    ),
    "PerceptionLMForConditionalGeneration": Vlm(
        "perception_lm", refuses="it looks for the settings of a timm Perception Encoder in vision_config"
    ),
    "FastVlmForConditionalGeneration": Vlm(
        "fast_vlm", refuses="it takes the feature map [B, D, h, w] of a FastViT for tokens"
    ),
}
# Classes of ours that read their tower as a class of transformers does.
LIKE = {"dino_tower_llava": "llava"}
# Their decoder's memory and their pooled vector are no rows of image tokens: a class token or registers do no harm.
ANY_TOKENS = ("VisionEncoderDecoderModel", "VisionTextDualEncoderModel")


@dataclass(frozen=True)
class Dense:
    """A depth, segmentation or detection class on a Backbone.

    tokens: it wants [CLS, patches] from each level (reshape_hidden_states=False) and cuts the first token off itself;
        else maps [B, D, h, w].
    at_least: levels without which it fails; levels: how many it is given. patch_size: its config repeats the tower's.
    module: where the tower sits in the model.
    """

    model_type: str
    tokens: bool = False
    at_least: int = 4
    levels: int = 4
    patch_size: bool = False
    module: str = "backbone"


PIXELS = "model.pixel_level_module.encoder"
DENSE: dict[str, Dense] = {
    "DepthAnythingForDepthEstimation": Dense("depth_anything", tokens=True, patch_size=True),
    "PromptDepthAnythingForDepthEstimation": Dense("prompt_depth_anything", tokens=True, patch_size=True),
    "DPTForDepthEstimation": Dense("dpt", tokens=True),
    "ZoeDepthForDepthEstimation": Dense("zoedepth", tokens=True),
    "UperNetForSemanticSegmentation": Dense("upernet", at_least=3),
    "MaskFormerForInstanceSegmentation": Dense("maskformer", at_least=2, module=PIXELS),
    "Mask2FormerForUniversalSegmentation": Dense("mask2former", at_least=3, module=PIXELS),
    "OneFormerForUniversalSegmentation": Dense("oneformer", at_least=3, module=PIXELS),
    "DetrForObjectDetection": Dense("detr", at_least=1, levels=1, module="model.backbone.model"),
    "GroundingDinoForObjectDetection": Dense(
        "grounding-dino", at_least=1, levels=3, module="model.backbone.conv_encoder.model"
    ),
}
