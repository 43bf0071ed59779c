"""Any encoder behind one interface: images in, patch tokens on their grid and a class token out.

B images, h x w the patch grid, D features in heads of d each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from dino_tower.errors import ConfigError
from dino_tower.families import family_name, family_of
from dino_tower.families.of_transformers import unpatchify
from dino_tower.finding import find
from dino_tower.images import UnreadableImage, read_image
from dino_tower.loading import Loaded, dtype_of
from dino_tower.text import embed, embed_patches, patch_part, text_embeddings
from dino_tower.tokens import Tokens, last_attention, last_keys, layers, patch_size, tokens, width
from dino_tower.towers import open_tower

__all__ = ["Images", "Size", "Tower", "find", "load_tower"]

Images = Sequence[Image.Image | str | Path] | Tensor
Size = tuple[int, int] | Literal["native"] | None


class Tower:
    """A vision model with the processor it was saved with. Make one with `load_tower`.

    name: as it was asked for. family: its key in `dino_tower.families.FAMILIES`. patch: pixels along one side of a
    patch. width: D. depth: number of blocks. native: the only size (height, width) it takes, None where it takes any.
    """

    def __init__(self, model: Any, processor: Any, name: str, whole: Any = None, folder: str = "") -> None:
        self.model = model.eval()
        self.processor = processor
        self.name = name
        self.family = family_name(model)
        self.patch = patch_size(model)
        self.width = width(model)
        self.depth = len(list(family_of(model).blocks(model)))
        self.native = family_of(model).native(model)
        self._whole = whole.eval() if whole is not None else None
        self._folder = folder

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in, and what its tokens come in."""
        return next(self.model.parameters()).dtype

    def to(self, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None) -> Tower:
        """Move it, or change what it computes in; returns itself. Raises ConfigError for what torch does not know."""
        target = dtype_of(dtype) if dtype is not None else None
        try:
            (self.model if self._whole is None else self._whole).to(device=device or self.device, dtype=target)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"device {str(device)!r} cannot be used: {str(error).splitlines()[0]}") from None
        return self

    @property
    def has_text(self) -> bool:
        """Whether it has a text encoder: `text` and `embed` work."""
        return self._whole is not None

    @property
    def text_kind(self) -> str:
        """What ties pictures to texts: "clip", "siglip", "siglip2", "vision-text-dual-encoder", "dino_tower_text"; ""
        without a text encoder."""
        return "" if self._whole is None else str(self._whole.config.model_type)

    @property
    def whole(self) -> Any:
        """The model of transformers for pictures and texts that it is a half of; None without a text encoder."""
        return self._whole

    def weights(self) -> dict[str, Tensor]:
        """Every weight by its name, those of the text encoder too."""
        return dict((self.model if self._whole is None else self._whole).state_dict())

    @torch.no_grad()
    def __call__(self, images: Images, size: Size = None) -> Tokens | list[Tokens]:
        """Patch tokens [B, h, w, D] after the final norm and class tokens [B, D] (None where the encoder has none).

        images: PIL images or paths, or normalised pixels [B, 3, H, W].
        size: None does what the saved processor does (resize and centre crop); (H, W) resizes the whole picture, no
        crop; "native" keeps its own size; both round to a multiple of the patch. Pictures whose grids differ give a
        list with one entry each. Raises ConfigError for pixels that do not fit the encoder.
        """
        pixels = self._prepared(images, size)
        if isinstance(pixels, Tensor):
            return tokens(self.model, pixels)
        return [one for _, one in sorted(self._by_shape(pixels))]

    @torch.no_grad()
    def layers(
        self, images: Images, which: int | Sequence[int], size: Size = None, norm: bool = True
    ) -> list[Tokens] | list[list[Tokens]]:
        """The tokens of several layers in one forward: one entry a layer; for unlike grids one such list a picture.

        which: the last so many, or numbers: 0 enters the first block, i leaves block i, -1 is the last.
        norm: apply the final norm to each; see `dino_tower.tokens.layers`. Raises ConfigError for a layer not there.
        """
        pixels = self._prepared(images, size)
        if isinstance(pixels, Tensor):
            return layers(self.model, pixels, which, norm)
        return [layers(self.model, part, which, norm) for part in pixels]

    def attention(self, images: Images, size: Size = None) -> Tensor:
        """Last-block attention of the class token, or of SigLIP's pooling query, to the patches: [B, heads, h, w].

        Raises ConfigError for a tower that has neither, and for pictures whose grids differ.
        """
        return self._of_one_grid(last_attention, "attention", images, size)

    def keys(self, images: Images, size: Size = None) -> Tensor:
        """Last-block keys of the patches [B, heads, h, w, d], before any rotation by position.

        Raises ConfigError for a tower without self-attention, and for pictures whose grids differ.
        """
        return self._of_one_grid(last_keys, "keys", images, size)

    @torch.no_grad()
    def embed(self, images: Images, size: Size = None) -> Tensor:
        """Embeddings [B, E] of pictures in the space of `text`, not normalised. ConfigError without a text encoder."""
        out = self(images, size)
        return torch.cat([embed(self._with_text(), part) for part in (out if isinstance(out, list) else [out])])

    @torch.no_grad()
    def embed_patches(self, images: Images, size: Size = None) -> Tensor:
        """Every patch [B, h, w, F] in the space of `text(..., patches=True)`: for open-vocabulary segmentation.

        Raises ConfigError without a text encoder, for SigLIP, and for pictures whose grids differ.
        """
        out = self(images, size)
        if isinstance(out, list):
            raise ConfigError("patches: the pictures have different grids; give them one by one or set size=(H, W)")
        return self.project(out)

    def project(self, found: Tokens) -> Tensor:
        """`embed_patches` of tokens after the final norm, which may have been changed on their way: [B, h, w, F]."""
        return embed_patches(self._with_text(), found)

    @torch.no_grad()
    def text(self, texts: Sequence[str], patches: bool = False) -> Tensor:
        """Embeddings [N, E] of texts, not normalised, where the encoder has them; ConfigError otherwise.

        patches: the part [N, F] that patches are compared with, where that is another one than for whole pictures.
        """
        found = text_embeddings(self._with_text(), self._folder, self.name, texts)
        return patch_part(self._with_text(), found) if patches else found

    def pixels(self, images: Sequence[Image.Image | str | Path], size: Size = None) -> Tensor | list[Tensor]:
        """Normalised pixels [B, 3, H, W] on the CPU; a list of [1, 3, H, W] where the sizes differ."""
        pictures = [_picture(image) for image in images]
        if not pictures:
            raise ConfigError("no images given")
        if size is None:
            parts = self._processed(pictures)
        else:
            plain = {"do_resize": False, "do_center_crop": False}
            resized = [self._resized(picture, size) for picture in pictures]
            parts = [part for picture in resized for part in self._processed([picture], **plain)]
        same = len({part.shape for part in parts}) == 1
        return torch.cat(parts) if same else parts

    def _processed(self, pictures: list[Image.Image], **options: Any) -> list[Tensor]:
        """Each picture as [1, 3, H, W]; SigLIP 2's own processor cuts pictures into patches, which is undone here."""
        naflex = hasattr(self.processor, "max_num_patches")
        if naflex and options:
            options["max_num_patches"] = pictures[0].width * pictures[0].height // self.patch**2
        try:
            out = self.processor(pictures, return_tensors="pt", **options)
        except ValueError:  # a processor that does not crop cannot stack what it has made
            if len(pictures) == 1:
                raise
            return [self._processed([picture], **options)[0] for picture in pictures]
        if not naflex:
            return list(out.pixel_values.split(1))
        grids = out["spatial_shapes"].tolist()
        return [unpatchify(p, h, w, self.patch) for p, (h, w) in zip(out.pixel_values, grids, strict=True)]

    def _resized(self, picture: Image.Image, size: tuple[int, int] | Literal["native"]) -> Image.Image:
        if size != "native" and (isinstance(size, str) or len(size) != 2 or min(size) < 1):
            raise ConfigError(f'size {size!r}: give (height, width) in pixels, "native", or None for the processor\'s')
        height, wide = (picture.height, picture.width) if size == "native" else size
        target = (self._round(wide), self._round(height))
        own = getattr(self.processor, "resample", None)  # SigLIP's is bilinear
        return picture.resize(target, Image.Resampling.BICUBIC if own is None else Image.Resampling(int(own)))

    def _round(self, pixels: int) -> int:
        return max(1, round(pixels / self.patch)) * self.patch

    def _prepared(self, images: Images, size: Size) -> Tensor | list[Tensor]:
        """Pixels that fit the encoder, on its device and in its dtype."""
        pixels = images if isinstance(images, Tensor) else self.pixels(images, size)
        if isinstance(pixels, Tensor):
            return self._fitting(pixels)
        return [self._fitting(part) for part in pixels]

    def _fitting(self, pixels: Tensor) -> Tensor:
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ConfigError(f"pixels have the shape {tuple(pixels.shape)}; a tower takes [B, 3, H, W]")
        if not pixels.is_floating_point():
            raise ConfigError(f"pixels are {pixels.dtype}; a tower takes normalised floats, or PIL images")
        height, wide = pixels.shape[-2:]
        if family_of(self.model).attention is not None and (height % self.patch or wide % self.patch):
            raise ConfigError(
                f"{height} x {wide} pixels are not a multiple of the patch size {self.patch}; size= rounds"
            )
        if min(height, wide) < self.patch:
            raise ConfigError(f"{height} x {wide} pixels are less than one step of {self.patch} pixels")
        if self.native is not None and (height, wide) != self.native:
            only = " x ".join(map(str, self.native))
            raise ConfigError(f"{self.name} takes {only} pixels only, not {height} x {wide}; set size={self.native}")
        return pixels.to(self.device, self.dtype)

    def _by_shape(self, pixels: list[Tensor]) -> list[tuple[int, Tokens]]:
        """(place, tokens) of each picture: those of one size go through the model together."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, part in enumerate(pixels):
            groups.setdefault(tuple(part.shape), []).append(i)
        found = []
        for places in groups.values():
            out = tokens(self.model, torch.cat([pixels[i] for i in places]))
            for row, i in enumerate(places):
                cls = None if out.cls is None else out.cls[row : row + 1]
                found.append((i, Tokens(out.patches[row : row + 1], cls)))
        return found

    def _of_one_grid(self, function: Callable[..., Tensor], word: str, images: Images, size: Size) -> Tensor:
        pixels = self._prepared(images, size)
        if not isinstance(pixels, Tensor):
            raise ConfigError(f"{word}: the pictures have different grids; give them one by one or set size=(H, W)")
        try:
            return function(self.model, pixels)
        except ConfigError as error:
            raise ConfigError(f"{self.name}: {error}") from None

    def _with_text(self) -> Any:
        if self._whole is None:
            raise ConfigError(f"{self.name} has no text encoder: it knows pictures only; CLIP and SigLIP know both")
        return self._whole


def load_tower(
    tower: str | Path, *, device: str | torch.device | None = None, dtype: str | torch.dtype = "float32"
) -> Tower:
    """Load TOWER: a directory, a Hub id, a run (`RUN` is its student, `RUN@teacher`), the checkpoint file of a
    published ResNet, `timm:NAME`, `torchvision:NAME`, `builtin:NAME`, `random:ARCHITECTURE`, or `random:TOWER` (the
    same architecture and processor, untrained: the same one every time).

    dtype: what it computes in; "auto" is what the file holds. Raises ConfigError when there is no such tower, or its
    class has no entry in `dino_tower.families.FAMILIES`.
    """
    loaded: Loaded = open_tower(str(tower), dtype_of(dtype))
    made = Tower(loaded.model, loaded.processor, str(tower), loaded.whole, loaded.folder)
    return made if device is None else made.to(device)


def _picture(image: Any) -> Image.Image:
    """Upright RGB."""
    if not isinstance(image, (Image.Image, str, Path)):
        raise ConfigError(f"an image is a {type(image).__name__}; give PIL images, paths, or pixels [B, 3, H, W]")
    try:
        return read_image(image)
    except UnreadableImage as error:
        where = "a picture" if isinstance(image, Image.Image) else image
        raise ConfigError(f"{where}: cannot be read: {error.reason}") from None
