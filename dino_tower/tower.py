"""Any encoder behind one interface: images in, patch tokens on their grid and a class token out.

B images, h x w the patch grid, D features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedModel
from transformers import logging as transformers_logging

from dino_tower.architectures import build, initialise, names
from dino_tower.checkpoint import checkpoints
from dino_tower.errors import ConfigError, unknown
from dino_tower.images import processor_for, read_image
from dino_tower.tokens import FAMILIES, Tokens, last_attention, patch_size, tokens, width

BUILTIN = Path(__file__).parent / "builtin"
Images = Sequence[Image.Image | str | Path] | Tensor
Size = tuple[int, int] | Literal["native"] | None


class Tower:
    """A vision model with the processor it was saved with. Make one with `load_tower`."""

    def __init__(self, model: PreTrainedModel, processor: Any, name: str) -> None:
        self.model = model.eval()
        self.processor = processor
        self.name = name
        self.patch = patch_size(model)
        self.width = width(model)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.model.parameters()).device

    def to(self, device: str | torch.device) -> Tower:
        """Move it; returns itself."""
        self.model.to(device)
        return self

    @torch.no_grad()
    def __call__(self, images: Images, size: Size = None) -> Tokens | list[Tokens]:
        """Patch tokens [B, h, w, D] after the final norm and class tokens [B, D] (None where the encoder has none).

        images: PIL images or paths, or normalised pixels [B, 3, H, W].
        size: None does what the saved processor does (resize and centre crop); (H, W) resizes the whole picture, no
        crop; "native" keeps its own size; both round to a multiple of the patch. Pictures whose grids differ give a
        list with one entry each. Raises ConfigError for pixels that are not a multiple of the patch.
        """
        if isinstance(images, Tensor):
            return self._tokens(images)
        pixels = self.pixels(images, size)
        if isinstance(pixels, Tensor):
            return self._tokens(pixels)
        return [self._tokens(p) for p in pixels]

    @torch.no_grad()
    def attention(self, images: Images, size: Size = None) -> Tensor:
        """Last-block attention of the class token to the patches: [B, heads, h, w].

        Raises ConfigError for a tower without a class token, and for pictures whose grids differ.
        """
        pixels = images if isinstance(images, Tensor) else self.pixels(images, size)
        if not isinstance(pixels, Tensor):
            raise ConfigError("attention: the pictures have different grids; give them one by one or set size=(H, W)")
        if self.model.config._attn_implementation != "eager":
            self.model.set_attn_implementation("eager")  # the fused kernels do not return their weights
        try:
            return last_attention(self.model, pixels.to(self.device))
        except ValueError as error:
            raise ConfigError(f"{self.name}: {error}") from None

    def pixels(self, images: Sequence[Image.Image | str | Path], size: Size = None) -> Tensor | list[Tensor]:
        """Normalised pixels [B, 3, H, W] on the CPU; a list of [1, 3, H, W] where the sizes differ."""
        pictures = [image if isinstance(image, Image.Image) else read_image(image) for image in images]
        if size is None:
            return self.processor(pictures, return_tensors="pt").pixel_values
        parts = []
        for picture in pictures:
            height, wide = (picture.height, picture.width) if size == "native" else size
            target = (self._round(wide), self._round(height))
            resized = picture.convert("RGB").resize(target, Image.Resampling.BICUBIC)
            plain = self.processor(resized, return_tensors="pt", do_resize=False, do_center_crop=False)
            parts.append(plain.pixel_values)
        same = len({p.shape for p in parts}) == 1
        return torch.cat(parts) if same else parts

    def text(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [N, D] of texts, where the encoder has them; ConfigError otherwise."""
        raise ConfigError(f"{self.name} has no text encoder: a self-distilled tower knows pictures only")

    def _round(self, pixels: int) -> int:
        return max(1, round(pixels / self.patch)) * self.patch

    def _tokens(self, pixels: Tensor) -> Tokens:
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ConfigError(f"pixels have the shape {tuple(pixels.shape)}; a tower takes [B, 3, H, W]")
        height, wide = pixels.shape[-2:]
        if self.model.config.model_type != "resnet" and (height % self.patch or wide % self.patch):
            raise ConfigError(f"{height} x {wide} pixels are not a multiple of the patch size {self.patch}")
        return tokens(self.model, pixels.to(self.device))


def load_tower(tower: str | Path) -> Tower:
    """Load TOWER: a directory, a Hub id, a run (`RUN` is its student, `RUN@teacher`), `random:ARCHITECTURE`,
    `random:TOWER` (the same architecture and processor, untrained) or `builtin:NAME`.

    Raises ConfigError when there is no such tower, or its class has no entry in `dino_tower.tokens.FAMILIES`.
    """
    name = str(tower)
    if name.startswith("random:"):
        return _random(name, name.removeprefix("random:"))
    folder = find(name)
    try:
        config = AutoConfig.from_pretrained(folder)
        if config.model_type not in FAMILIES:
            raise unknown("tower family", config.model_type, FAMILIES, name)
        with _no_progress_bar():
            model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
        processor = AutoImageProcessor.from_pretrained(folder)
    except ConfigError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(f"{name}: cannot be loaded as a tower: {' '.join(str(error).split())[:300]}") from None
    if info["missing_keys"]:
        raise ConfigError(f"{name}: the weights lack {', '.join(sorted(info['missing_keys'])[:3])}")
    return Tower(model, processor, name)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def find(name: str) -> str:
    """The transformers directory (or Hub id) behind a TOWER. Raises ConfigError."""
    if name.startswith("builtin:"):
        towers = sorted(p.name for p in BUILTIN.iterdir()) if BUILTIN.is_dir() else []
        if name.removeprefix("builtin:") not in towers:
            raise unknown("built-in tower", name, [f"builtin:{t}" for t in towers])
        return str(BUILTIN / name.removeprefix("builtin:"))
    root, _, who = name.partition("@")
    if (Path(root) / "checkpoints").is_dir() or (Path(root) / "config.yaml").is_file():
        who = who or "student"
        if who not in ("student", "teacher"):
            raise unknown("network of a run", who, ("student", "teacher"), name)
        whole = checkpoints(Path(root) / "checkpoints")
        if not whole:
            raise ConfigError(f"{name}: the run has no checkpoint yet")
        return str(whole[-1] / who)
    if not Path(name).exists() and (name.startswith((".", "/", "~")) or name.count("/") != 1):
        raise ConfigError(f"no tower {name!r}: not a directory, a run, a Hub id (OWNER/NAME), random: or builtin:")
    return name


def _random(name: str, what: str) -> Tower:
    """An untrained twin; the same one every time, and without touching the caller's random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if what in names():
            model = build(what, image_size=224)
            patch = 1 if model.config.model_type == "resnet" else patch_size(model)
            return Tower(model, processor_for(224, patch), name)
        trained = load_tower(what)
        model = type(trained.model)(trained.model.config)
        if model.config.model_type != "resnet":
            initialise(model)
        return Tower(model, trained.processor, name)
