"""A LLaVA from a tower and any causal language model of transformers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from dino_tower.adapters.vlm.assemble import assemble
from dino_tower.adapters.vlm.attach import LLAVA, Wish, llava_with, settings_wished, tower_given
from dino_tower.adapters.vlm.trainable import freeze_unreached
from dino_tower.errors import ConfigError
from dino_tower.loading import quiet
from dino_tower.vlm import ImageTokens, check_vlm
from dino_tower.vlm.facts import VLMS
from dino_tower.vlm.vision import vision_of

IMAGE_TOKEN = "<image>"
# Where a language model brings no chat template: LLaVA 1.5's turns (llava/conversation.py, conv_vicuna_v1), whose
# content may be a string or a list of pictures and texts.
TEMPLATE = (
    "{{ bos_token if bos_token else '' }}"
    "{% for message in messages %}"
    "{{ 'USER: ' if message['role'] == 'user' else 'ASSISTANT: ' if message['role'] == 'assistant' else '' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{{ '<image>\n' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}{% endif %}"
    "{{ (eos_token if eos_token else '\n') if message['role'] == 'assistant' else ' ' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def build_vlm(
    tower: Any,
    language_model: Any,
    tokenizer: Any = None,
    *,
    image_size: int | None = None,
    layer: int | list[int] | None = None,
    projector: str = "mlp",
    options: dict[str, int] | None = None,
    patches_only: bool | None = None,
) -> tuple[Any, Any]:
    """(vlm, processor): a LLaVA around a copy of `tower`, on `language_model`, with a new projector.

    tower: a Tower or a TOWER by name. language_model: a causal language model of transformers, or its directory or Hub
        id; the VLM takes it over, and it gets a word more where its tokenizer does not know "<image>".
    tokenizer: default: the one saved with the language model. image_size: pixels, default: the tower's own.
    layer: vision_feature_layer, default the last. projector, options: a name of PROJECTORS and its options.
    patches_only: the tower's normed patches and nothing else (see `attach_tower`); None: only for a tower with
        registers, which LLaVA would take for image tokens.

    "mlp" on a plain tower gives transformers' own LlavaForConditionalGeneration, which loads everywhere; another
    projector gives ProjectedLlavaForConditionalGeneration, which needs `import dino_tower.adapters.vlm` first.
    Raises ConfigError for a tower or language model that cannot be used, with the reason.
    """
    tower = tower_given(tower)
    if patches_only or (patches_only is None and vision_of(tower).registers):
        tower = tower_given(tower, True, layer)
    model, words = language_model_given(language_model, tokenizer)
    image_token = add_image_token(model, words)
    wish = Wish(image_size, layer, None, projector, options)
    wanted = settings_wished(LLAVA, VLMS[LLAVA], tower, wish)
    text, head = language_of(model)
    arguments = {"vision_config": copy.deepcopy(tower.model.config), "text_config": text}
    arguments |= {"image_token_index": image_token}
    kind, config, wanted = llava_with(vision_of(tower), wanted, wish, arguments)
    parts = {"model.language_model": model.base_model, "lm_head": head}
    vlm = assemble(kind, config, tower.model, parts, model.dtype, model.device)
    vlm.generation_config = model.generation_config
    _same_language(vlm, model)
    processor = processor_of(tower, words, wanted)
    check_vlm(vlm, tower, processor, wanted.image_size)
    freeze_unreached(vlm)
    return vlm, processor


def language_model_given(given: Any, tokenizer: Any = None) -> tuple[Any, Any]:
    """A causal language model and its tokenizer, from objects or from directories. Raises ConfigError."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    named = isinstance(given, (str, Path))
    source = str(given) if named else None
    if tokenizer is None and source is None:
        raise ConfigError("a language model in memory needs its tokenizer: build_vlm(tower, language_model, tokenizer)")
    model: Any = _read(AutoModelForCausalLM, source, "language model") if source is not None else given
    words: Any = tokenizer
    if tokenizer is None or isinstance(tokenizer, (str, Path)):
        words = _read(AutoTokenizer, str(tokenizer) if tokenizer else str(source), "tokenizer")
    if not hasattr(model, "lm_head") and not hasattr(model, "get_output_embeddings"):
        raise ConfigError(f"a {type(model).__name__} is no causal language model of transformers")
    head = model.get_output_embeddings()
    if head is None or model.base_model is model:
        raise ConfigError(f"a {type(model).__name__} has no language head: give a causal language model")
    if getattr(head, "bias", None) is not None:
        raise ConfigError(f"the head of {type(model).__name__} has a bias, and LLaVA's has none; take another model")
    if words.pad_token is None:
        words.pad_token = words.eos_token or words.unk_token
    return model.eval(), words


def add_image_token(model: Any, tokenizer: Any) -> int:
    """The id of "<image>", new where the tokenizer did not know it; the language model's embeddings grow with it."""
    if IMAGE_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"extra_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False)
    known = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > known:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return int(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))


def language_of(model: Any) -> tuple[Any, Any]:
    """The config and the head of a language model, as LLaVA takes them.

    LLaVA ties its head to `embed_tokens`; where the embeddings have another name (GPT-2, OPT) a tied head becomes a
    copy of them.
    """
    head = model.get_output_embeddings()
    tied = head.weight is model.get_input_embeddings().weight
    if not tied or getattr(model.base_model, "embed_tokens", None) is model.get_input_embeddings():
        return model.config, head
    text = copy.deepcopy(model.config)
    text.tie_word_embeddings = False
    return text, copy.deepcopy(head)


def processor_of(tower: Any, tokenizer: Any, wanted: ImageTokens) -> Any:
    """LLaVA's processor: the tower's pictures, the language model's words, its chat template or LLaVA's."""
    from transformers import LlavaProcessor

    from dino_tower.adapters.vlm.processors import image_processor_like

    return LlavaProcessor(
        image_processor=image_processor_like(None, tower, wanted),
        tokenizer=tokenizer,
        chat_template=getattr(tokenizer, "chat_template", None) or TEMPLATE,
        **wanted.processor,
    )


def _read(kind: Any, source: str, what: str) -> Any:
    """One line instead of transformers' paragraphs."""
    try:
        with quiet():
            return kind.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # damaged and foreign directories are met with every kind of exception
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if not Path(source).exists() and source.startswith((".", "/", "~")):
            reason = "there is no such directory"
        raise ConfigError(f"{source}: cannot be read as a {what}: {reason}") from None


@torch.no_grad()
def _same_language(vlm: Any, model: Any) -> None:
    """Some language models do more behind their head (a scale, a soft cap) than LLaVA does: found by trying."""
    words = torch.arange(4, device=model.device)[None] % model.config.get_text_config().vocab_size
    ours, theirs = vlm(input_ids=words).logits, model(input_ids=words).logits
    if not torch.allclose(ours.float(), theirs.float(), atol=1e-3, rtol=1e-3):
        raise ConfigError(
            f"{type(model).__name__} says something else inside LLaVA than alone (it scales or caps its logits);"
            " take another language model"
        )
