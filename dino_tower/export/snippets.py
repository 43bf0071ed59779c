"""The "use it" snippets of a model card: what stands in the card depends on what the class can do.

Each is run by a test with the directory's name in place of NAME, one after the other, with `bird.jpg` beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Snippet:
    """A heading, a sentence (may be empty) and code (may be empty: then the sentence says why there is none)."""

    title: str
    sentence: str
    code: str = ""


AUTO_MODEL = """
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

image = Image.open("bird.jpg")
processor = AutoImageProcessor.from_pretrained("NAME")
model = AutoModel.from_pretrained("NAME").eval()
with torch.no_grad():
    features = model(**processor(image, return_tensors="pt")FLAG).last_hidden_state
print(features.shape)  # SHAPE
"""

PIPELINE = """
from transformers import pipeline

extract = pipeline("image-feature-extraction", model="NAME")
print(len(extract(image)[0]))  # ROWS
"""

LLAVA = """
from transformers import AutoConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

language = LlamaConfig(  # a small stand-in: put the config of your language model here
    vocab_size=1000, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
)
config = LlavaConfig(
    vision_config=AutoConfig.from_pretrained("NAME"),
    text_config=language,
    image_token_index=999,
    vision_feature_layer=-1,
    vision_feature_select_strategy="STRATEGY",
)
vlm = LlavaForConditionalGeneration(config)
vlm.model.vision_tower.load_state_dict(model.state_dict(), strict=True)
# LlavaProcessor(processor, tokenizer, patch_size=PATCH, vision_feature_select_strategy="STRATEGY",
#                num_additional_image_tokens=PREFIX)
"""

SEGMENTATION = """
from transformers import AutoConfig, BACKBONE, UperNetConfig, UperNetForSemanticSegmentation

layers = LAYERS
backbone = BACKBONE.from_pretrained("NAME", out_indices=layers)
config = UperNetConfig(
    backbone_config=AutoConfig.from_pretrained("NAME", out_indices=layers),
    hidden_size=64, num_labels=21, use_auxiliary_head=False,
)  # Mask2FormerConfig takes the same backbone_config
segmenter = UperNetForSemanticSegmentation(config)
segmenter.backbone.load_state_dict(backbone.state_dict(), strict=True)
"""

PEFT = """
from peft import LoraConfig, get_peft_model

adapted = get_peft_model(AutoModel.from_pretrained("NAME"), LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))
adapted.print_trainable_parameters()
"""

TOWER = """
from dino_tower import load_tower

tower = load_tower("NAME")
out = tower([image], size=(SIDE, WIDE))  # any size; the whole picture
print(out.patches.shape)  # [1, h, w, D], after the final norm
"""

TIMM = """
import timm
import torch
from PIL import Image

image = Image.open("bird.jpg").convert("RGB")
model = timm.create_model("local-dir:NAME", pretrained=True).eval()  # from the Hub: "hf-hub:OWNER/NAME"
prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
with torch.no_grad():
    features = model.forward_features(prepare(image)[None])
print(features.shape)  # SHAPE
"""

ORIGINAL = """
import torch

weights = torch.load("NAME/backbone.pth", weights_only=True)
# model = vits.vit_small(patch_size=PATCH); model.load_state_dict(weights, strict=True), with the original's module
print(len(weights), weights["pos_embed"].shape)
"""

ONNX = """
import onnxruntime
from PIL import Image
from transformers import AutoImageProcessor

image = Image.open("bird.jpg")
processor = AutoImageProcessor.from_pretrained("NAME")
session = onnxruntime.InferenceSession("NAME/FILE")
pixels = processor(image, return_tensors="np").pixel_values
outputs = dict(zip((o.name for o in session.get_outputs()), session.run(None, {"pixel_values": pixels})))
print({name: value.shape for name, value in outputs.items()})
"""

ZERO_SHOT = """
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

image = Image.open("bird.jpg")
processor = AutoProcessor.from_pretrained("NAME")
model = AutoModel.from_pretrained("NAME").eval()
texts = ["a photo of a bird", "a photo of a car"]
asked = processor(text=texts, images=image, padding=True, truncation=True, return_tensors="pt")
with torch.no_grad():
    print(model(**asked).logits_per_image.softmax(-1).shape)  # [1, texts]
"""

HEADS = """
from safetensors.torch import load_file

heads = load_file("NAME/heads.safetensors")  # student.*, teacher.* and centre.*
print(sorted({key.split(".")[0] for key in heads}))
"""

NO_LLAVA = "LLaVA hands every token after the class token to its language model, the {registers} registers too. Choose \
an architecture without registers for it."
BACKBONES = {
    "dinov2": "Dinov2Backbone",
    "dinov2_with_registers": "Dinov2WithRegistersBackbone",
    "dinov3_vit": "DINOv3ViTBackbone",
    "resnet": "ResNetBackbone",
}
FUSED = "dino_tower_fused"
FLAGGED = ("siglip_vision_model", "clip_vision_model", "vit")


def native_snippets(config: Any, patch: int, name: str) -> list[Snippet]:
    """The snippets for a transformers directory. config: the model's; patch: pixels of one."""
    kind = str(config.model_type)
    if kind == FUSED:
        fill = {"NAME": name, "SHAPE": "[1, (class token +) patches, D]", "FLAG": ""}
        code = f"import dino_tower.fused  # makes AutoModel know the class\n{_filled(AUTO_MODEL, fill)}"
        return [Snippet("transformers", "The class comes with dino-tower.", code), _tower_snippet(name, patch)]
    if kind == "resnet":
        shape, rows = "[1, D, h, w]", "D"
    else:
        registers = getattr(config, "num_register_tokens", 0)
        prefix = 0 if kind == "siglip_vision_model" else 1 + registers
        words = {0: "patches", 1: "class token + patches"}.get(prefix, f"class token + {registers} registers + patches")
        shape = f"[1, {words}, D]"
        rows = words
    fill = {"NAME": name, "SHAPE": shape, "ROWS": rows, "FLAG": "", "PATCH": str(patch)}
    size_note = (
        " Sizes other than the native one need `interpolate_pos_encoding=True` in the call." if kind in FLAGGED else ""
    )
    norm_note = " The patches of this class are not normed: apply `model.post_layernorm`." if "clip" in kind else ""
    found = [
        Snippet("transformers", (size_note + norm_note).strip(), _filled(AUTO_MODEL, fill)),
        Snippet("Pipeline", "", _filled(PIPELINE, fill)),
    ]
    if kind == "resnet":
        found.append(Snippet("LLaVA", "LLaVA takes a ViT, not a convolutional network."))
    elif getattr(config, "num_register_tokens", 0):
        found.append(Snippet("LLaVA", NO_LLAVA.format(registers=config.num_register_tokens)))
    else:
        strategy = "full" if kind == "siglip_vision_model" else "default"
        llava = {**fill, "STRATEGY": strategy, "PREFIX": "0" if strategy == "full" else "1"}
        found.append(Snippet("LLaVA", "", _filled(LLAVA, llava)))
    if kind in BACKBONES:
        stages = {**fill, "BACKBONE": BACKBONES[kind], "LAYERS": str(_four_layers(config))}
        found.append(Snippet("Segmentation backbone", "", _filled(SEGMENTATION, stages)))
    else:
        found.append(Snippet("Segmentation backbone", "transformers has no Backbone class for this architecture."))
    if kind != "resnet":
        found.append(Snippet("PEFT", "", _filled(PEFT, fill)))
    return [*found, _tower_snippet(name, patch)]


def layout_snippets(layout: str, tower: Any, name: str, file: str = "") -> list[Snippet]:
    """The snippets for a directory of another layout. file: the name of its ONNX file."""
    config, patch = tower.model.config, tower.patch
    fill = {"NAME": name, "PATCH": str(patch), "FILE": file, "SHAPE": "[1, class token + registers + patches, D]"}
    if layout == "vit":
        # the processor cuts the native size, so the snippet works without the flag; other sizes are said to need it
        same_size = _crop(tower) == (config.image_size,) * 2
        flag = "" if same_size else ", interpolate_pos_encoding=True"
        code = _filled(AUTO_MODEL, {**fill, "FLAG": flag, "SHAPE": "[1, class token + patches, D]"})
        note = (
            "Sizes other than the native one need `interpolate_pos_encoding=True`. `pooler_output` is the class token."
        )
        return [Snippet("transformers", note, code)]
    if layout == "timm":
        return [Snippet("timm", "", _filled(TIMM, fill))]
    if layout == "onnx":
        return [Snippet("onnxruntime", "Batch, height and width are free unless the file's name states a size.",
                        _filled(ONNX, fill))]  # fmt: skip
    if layout == "text":
        return [Snippet("Zero-shot classification", "It knows the words of the captions that it was trained with.",
                        _filled(ZERO_SHOT, fill)), _tower_snippet(name, patch)]  # fmt: skip
    if layout == "heads":
        note = f"`dino-tower pretrain --init-from {name}` starts from the tower; its teacher and heads lie beside it."
        opened = _tower_snippet(name, patch, 'image = Image.open("bird.jpg")\n')
        return [Snippet("Go on training", note, _filled(HEADS, fill)), opened]
    note = "A state dict under the names of the original code, plain tensors."
    return [Snippet("PyTorch", note, _filled(ORIGINAL, fill))]


def _tower_snippet(name: str, patch: int, opening: str = "") -> Snippet:
    """opening: what makes `image`, where no snippet before has."""
    fill = {"NAME": name, "SIDE": str(4 * patch), "WIDE": str(6 * patch)}
    code = f"from PIL import Image\n\n{_filled(TOWER, fill)}".replace("tower = ", f"{opening}tower = ", 1)
    return Snippet("dino-tower", "", code if opening else _filled(TOWER, fill))


def _crop(tower: Any) -> tuple[int, int] | None:
    crop = getattr(tower.processor, "crop_size", None)
    return (crop["height"], crop["width"]) if crop else None


def _four_layers(config: Any) -> list[int]:
    """Four stages spread over the depth, as dense heads take them; fewer blocks give repeated starts from the stem."""
    depth = len(config.depths) if config.model_type == "resnet" else config.num_hidden_layers
    spread = sorted({max(1, depth * k // 4) for k in (1, 2, 3, 4)})
    return spread if len(spread) == 4 else list(range(max(0, depth - 3), depth + 1))


def _filled(code: str, fill: dict[str, str]) -> str:
    for word, value in fill.items():
        code = code.replace(word, value)
    return code.strip()
