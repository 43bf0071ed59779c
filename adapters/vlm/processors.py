"""The processor that fits a VLM's new tower: its tokenizer and template, the tower's pictures and counts."""

from __future__ import annotations

import inspect
from typing import Any

from dino_tower.images import processor_for
from dino_tower.vlm import ImageTokens

OWN_PICTURES = ("LlavaForConditionalGeneration", "VipLlavaForConditionalGeneration")  # take any image processor


def processor_like(old: Any, tower: Any, wanted: ImageTokens) -> Any:
    """A processor of the class of `old`, with its tokenizer, chat template and video processor."""
    arguments = {
        "image_processor": image_processor_like(old.image_processor, tower, wanted),
        "tokenizer": old.tokenizer,
        "chat_template": old.chat_template,
        **wanted.processor,
    }
    if hasattr(old, "video_processor"):
        arguments["video_processor"] = old.video_processor
    return type(old)(**arguments)


def image_processor_like(old: Any, tower: Any, wanted: ImageTokens) -> Any:
    """The tower's own where the VLM takes any and it gives `wanted.image_size`, or one like it that does; else the
    VLM's kind with its settings, the tower's size, mean and std."""
    if wanted.vlm not in OWN_PICTURES:
        known = set(inspect.signature(type(old).__init__).parameters) | set(vars(old))
        kept = {k: v for k, v in old.to_dict().items() if k in known and not k.endswith("_type")}
        return type(old)(**{**kept, **wanted.image_processor})
    cut = getattr(tower.processor, "crop_size", None) or getattr(tower.processor, "size", None) or {}
    if (cut.get("height"), cut.get("width")) == (wanted.image_size, wanted.image_size):
        return tower.processor
    mean, std = tower.processor.image_mean, tower.processor.image_std
    return processor_for(wanted.image_size, tower.patch, tuple(mean), tuple(std))
