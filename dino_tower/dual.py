"""A tower and a text tower that learned together from pictures and their captions, by CLIP's way or SigLIP's.

    tower      -> class token -> one linear layer    E features, compared with
    text tower -> last word   -> one linear layer    E features

B pictures, T texts of at most L words, D features of the tower, W of the text tower, V words of the tokenizer. While
they learn, all but the tower is a `TextSide`; both together are a VisionTextDualEncoderModel of transformers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, VisionTextDualEncoderConfig, VisionTextDualEncoderModel

from dino_tower.bpe import LEAST, Merge, bpe_tokenizer
from dino_tower.checkpoint import load_tensors, read_json
from dino_tower.contrast import MAX_SCALE, START
from dino_tower.errors import ConfigError
from dino_tower.text_tower import plain

KIND = "vision-text-dual-encoder"
PART = "clip"  # what a run calls it
HEADS = "heads.safetensors"  # of a checkpoint, where it is


class TextSide(nn.Module):
    """What stands beside a tower: CLIP's text tower (a causal transformer, drawn as transformers draws it, from torch's
    global random state), a projection of both, the learned scale and, for SigLIP's loss, bias.

    The tokenizer is a buffer, so that it is saved with the weights and is that of whoever wrote them: its merges, -1
    where there are fewer than `vocabulary` has room for.
    """

    merges: Tensor

    def __init__(
        self,
        features: int,
        merges: Iterable[Merge] = (),
        *,
        vocabulary: int,
        length: int,
        width: int,
        depth: int,
        heads: int,
        embedding: int,
        loss: str = "clip",
    ) -> None:
        super().__init__()
        self.length = length
        self.text_model = CLIPTextModel(_text_config(vocabulary, length, width, depth, heads))
        self.visual_projection = nn.Linear(features, embedding, bias=False)
        self.text_projection = nn.Linear(width, embedding, bias=False)
        for projection in (self.visual_projection, self.text_projection):
            nn.init.normal_(projection.weight, std=projection.in_features**-0.5)
        scale, bias = START[loss]
        # one dimension, so that neither is decayed
        self.logit_scale = nn.Parameter(torch.tensor([scale]))
        self.logit_bias = nn.Parameter(torch.tensor([bias])) if bias is not None else None
        table = torch.full((vocabulary - LEAST, 2), -1, dtype=torch.int32)
        for i, merge in enumerate(merges):
            table[i] = torch.tensor(merge)
        self.register_buffer("merges", table)
        self._tokenizer: Any = None
        self.register_load_state_dict_post_hook(_forget_tokenizer)

    @property
    def tokenizer(self) -> Any:
        """Of transformers, made from the merges."""
        if self._tokenizer is None:
            merges = [(one, other) for one, other in self.merges.tolist() if one >= 0]
            self._tokenizer = bpe_tokenizer(merges, self.length)
        return self._tokenizer

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Texts to their place beside pictures, [T, E], not normalised."""
        words = self.tokenizer(list(texts), padding="longest", truncation=True, return_tensors="pt")["input_ids"]
        # no mask: words look back only, and a text is read at its first end
        pooled = self.text_model(input_ids=words.to(self.merges.device)).pooler_output
        return self.text_projection(pooled)

    def pictures(self, pooled: Tensor) -> Tensor:
        """One vector a picture [..., D], the class token, to its place beside texts, [..., E], not normalised."""
        return self.visual_projection(pooled)

    @property
    def bias(self) -> Tensor:
        """Of the logits; 0 where none is learned."""
        return torch.zeros_like(self.logit_scale) if self.logit_bias is None else self.logit_bias

    @torch.no_grad()
    def bound_scale(self) -> None:
        """Keep the scale where CLIP keeps it: 100 at most. SigLIP's loss has no such bound."""
        if self.logit_bias is None:
            self.logit_scale.clamp_(max=MAX_SCALE)


def _text_config(words: int, length: int, width: int, depth: int, heads: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=words,
        max_position_embeddings=length,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def _forget_tokenizer(side: Any, keys: Any) -> None:
    side._tokenizer = None


def joined(vision: Any, side: TextSide) -> Any:
    """Both as one VisionTextDualEncoderModel, weights copied, `tokenizer` with it. ConfigError for a class without.

    Its vocabulary is that of the tokenizer: rows of words that no merge makes are left out.
    """
    if not isinstance(getattr(vision.config, "hidden_size", None), int):
        raise ConfigError(f"transformers has no model of pictures and texts around a {type(vision).__name__}")
    tokenizer, weights = side.tokenizer, dict(side.text_model.state_dict())
    words, text = len(tokenizer), side.text_model.config
    table = "embeddings.token_embedding.weight"
    weights[table] = weights[table][:words]
    config = VisionTextDualEncoderConfig(
        vision_config=plain(vision.config),
        text_config=plain(
            _text_config(words, side.length, text.hidden_size, text.num_hidden_layers, text.num_attention_heads)
        ),
        projection_dim=side.visual_projection.out_features,
    )
    with torch.random.fork_rng(devices=[]):  # what is drawn here is overwritten
        whole: Any = VisionTextDualEncoderModel(config)
    whole.vision_model.load_state_dict(vision.state_dict())
    whole.text_model.load_state_dict(weights)
    with torch.no_grad():
        for name in ("visual_projection", "text_projection"):
            getattr(whole, name).weight.copy_(getattr(side, name).weight)
        whole.logit_scale.copy_(side.logit_scale[0])
    whole.tokenizer = tokenizer
    return whole.to(vision.dtype)


def beside(vision: Any, folder: Path, untrained: bool = False) -> Any | None:
    """The whole that `vision`, read from the `folder` of one network of a run's checkpoint, is a half of, if it is one.

    None for every other folder, and for a class that transformers has no such model around. untrained: of the text side
    only the tokenizer is read, and the rest drawn.
    """
    heads, state, start = folder.parent / HEADS, folder.parent / "state.json", f"{folder.name}.{PART}."
    if not (heads.is_file() and state.is_file()):
        return None
    settings = read_json(state).get("resolved") or {}
    told = settings.get("objective") == PART or (settings.get("terms") or {}).get(PART)
    if not told or not isinstance(getattr(vision.config, "hidden_size", None), int):
        return None  # other runs' heads are not even opened
    weights = {k.removeprefix(start): v for k, v in load_tensors(heads).items() if k.startswith(start)}
    if not weights:
        return None
    with torch.random.fork_rng(devices=[]):
        side = side_of(vision.config.hidden_size, settings[PART])
    try:
        side.load_state_dict({**side.state_dict(), "merges": weights["merges"]} if untrained else weights)
    except (RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{heads}: its text tower does not fit the run's settings: {reason}") from None
    return joined(vision, side)


def side_of(features: int, settings: Mapping[str, Any], merges: Iterable[Merge] = ()) -> TextSide:
    """A fresh TextSide by the run's settings of that name."""
    chosen = {key: settings[key] for key in ("vocabulary", "length", "width", "depth", "heads", "embedding", "loss")}
    return TextSide(features, merges, **chosen)
