"""What makes a tiny VLM of each class of transformers: names of classes, arguments, a tokenizer, a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<image>", "<video>", "<img>", "</img>", "<|IMG_PATCH|>", "<start_of_image>", "<end_of_image>", "<line>")
# Arguments of a tiny language model's config.
TEXT_SIZES: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def word_tokenizer(*more: str, special: bool = False) -> PreTrainedTokenizerFast:
    """Words by white space. special: SPECIAL are among them, and processors find them by their names."""
    words = ["<pad>", "<s>", "</s>", "<unk>", "hi", *more]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    roles = {
        "image_token": "<image>",
        "video_token": "<video>",
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<image>",
        "img_patch_token": "<|IMG_PATCH|>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "img_line_break_token": "<line>",
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=roles if special else {},
    )


@dataclass(frozen=True)
class Parts:
    """Names of classes of transformers, arguments that have nothing to do with the tower, and the prompt."""

    config: str
    processor: str
    image_processor: str | None  # None: the tower's own
    text_config: str = "LlamaConfig"
    video_processor: str | None = None
    extras: tuple[tuple[str, Any], ...] = (("image_token_index", 5),)
    prompt: str = "<image> hi"


VLMS = {
    "LlavaForConditionalGeneration": Parts("LlavaConfig", "LlavaProcessor", None),
    "LlavaNextForConditionalGeneration": Parts("LlavaNextConfig", "LlavaNextProcessor", "LlavaNextImageProcessor"),
    "LlavaOnevisionForConditionalGeneration": Parts(
        "LlavaOnevisionConfig",
        "LlavaOnevisionProcessor",
        "LlavaOnevisionImageProcessor",
        video_processor="LlavaOnevisionVideoProcessor",
        extras=(("image_token_index", 5), ("video_token_index", 6)),
    ),
    "VipLlavaForConditionalGeneration": Parts("VipLlavaConfig", "LlavaProcessor", None),
    "InternVLForConditionalGeneration": Parts(
        "InternVLConfig",
        "InternVLProcessor",
        "GotOcr2ImageProcessor",
        video_processor="InternVLVideoProcessor",
        extras=(("image_token_id", 5),),
    ),
    "AyaVisionForConditionalGeneration": Parts(
        "AyaVisionConfig", "AyaVisionProcessor", "GotOcr2ImageProcessor", extras=(("image_token_index", 9),)
    ),
    "PaliGemmaForConditionalGeneration": Parts(
        "PaliGemmaConfig",
        "PaliGemmaProcessor",
        "SiglipImageProcessor",
        text_config="GemmaConfig",
        extras=(("image_token_index", 5), ("projection_dim", 32)),
    ),
    "Gemma3ForConditionalGeneration": Parts(
        "Gemma3Config",
        "Gemma3Processor",
        "Gemma3ImageProcessor",
        text_config="Gemma3TextConfig",
        extras=(("image_token_index", 5), ("boi_token_index", 10), ("eoi_token_index", 11)),
        prompt="<start_of_image> hi",
    ),
    "Cohere2VisionForConditionalGeneration": Parts(
        "Cohere2VisionConfig",
        "Cohere2VisionProcessor",
        "Cohere2VisionImageProcessor",
        extras=(("image_token_id", 5), ("alignment_intermediate_size", 32)),
    ),
}
