"""What a tower sees, as pictures: attention over the image, features as colours, likeness to one patch.

Legend: h x w = patch grid, D = feature width, n = patches of all images together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch import Tensor
from torch.nn import functional as F

from dino_tower.attention import mass_mask

# Ten anchors of matplotlib's inferno and viridis (CC0): equal steps look equal, in greyscale and to the
# colour-blind too.
COLOURS = {
    "inferno": "000004 1b0c42 4b0c6b 781c6d a52c60 cf4446 ed6925 fb9a06 f7d03c fcffa4",
    "viridis": "440154 482878 3e4a89 31688e 26828e 1f9e89 35b779 6dcd59 b4de2c fde725",
}


class PcaBasis(NamedTuple):
    """Three directions of feature space and the range each is shown over."""

    mean: Tensor  # [D]
    components: Tensor  # [3, D], unit length (zeros where the features have fewer dimensions)
    low: Tensor  # [3]
    high: Tensor  # [3]


def colour(values: np.ndarray, name: str = "inferno") -> np.ndarray:
    """Values 0..1 [...] -> uint8 [..., 3]."""
    anchors = np.array([list(bytes.fromhex(part)) for part in COLOURS[name].split()], dtype=np.float64)
    at = np.linspace(0, 1, len(anchors))
    channels = [np.interp(np.clip(values, 0, 1), at, anchors[:, c]) for c in range(3)]
    return np.stack(channels, -1).round().astype(np.uint8)


def attention_picture(
    image: Image.Image, attention: Tensor, keep: float = 0.6, size: int = 256, contour: bool = True
) -> Image.Image:
    """Where the CLS token looks: the attention as light over the image, the smallest set with 60 % of it outlined.

    image: what the tower saw (the same crop). attention [h, w], or [heads, h, w], which is averaged over heads.
    size: pixels of the longer side. Returns RGB with the proportions of the patch grid.
    """
    weights = _grid(attention.mean(0) if attention.ndim == 3 else attention)
    picture = _glow(image, attention_light(weights), "inferno", size)
    return _outline(picture, mass_mask(weights, keep)) if contour else picture


def attention_light(weights: Tensor) -> Tensor:
    """How bright each patch of an attention map [h, w] is drawn: 0..1, same shape.

    Full light is the 99th percentile (one artefact patch must not darken all others), but at least three times the
    mean: attention spread evenly over the picture, as before training, must look dim everywhere, not bright.
    """
    top = max(float(weights.quantile(0.99)), 3 * float(weights.mean()))
    return (weights / top).clamp(0, 1) if top > 0 else torch.zeros_like(weights)


def heads_picture(image: Image.Image, attention: Tensor, keep: float = 0.6, size: int = 256) -> Image.Image:
    """Attention [heads, h, w] as a sheet: the mean of the heads, then each head with its number, outlined as above."""
    maps = [attention.mean(0), *attention]
    names = ["mean", *map(str, range(1, len(attention) + 1))]
    cells = [_named(attention_picture(image, one, keep, size), name) for one, name in zip(maps, names, strict=True)]
    columns = min(len(cells), 7 if len(cells) <= 7 else 5)
    return sheet([cells[i : i + columns] for i in range(0, len(cells), columns)])


def similarity_picture(
    image: Image.Image, patches: Tensor, at: tuple[int, int], size: int = 256, query: Tensor | None = None
) -> Image.Image:
    """How like the patch at (row, column) every patch is: cosine 0..1 as light; the asked patch has a ring.

    patches [h, w, D] of this image. query [D]: compare with this feature instead (a patch of another image): no ring.
    """
    likeness = patch_similarity(patches, patches[at[0], at[1]] if query is None else query)
    picture = _glow(image, likeness, "viridis", size)
    if query is None:
        h, w = likeness.shape
        cell = picture.width / w, picture.height / h
        x, y, r = (at[1] + 0.5) * cell[0], (at[0] + 0.5) * cell[1], 0.6 * max(*cell, 6)
        draw = ImageDraw.Draw(picture)
        draw.ellipse((x - r, y - r, x + r, y + r), outline=(0, 0, 0), width=4)
        draw.ellipse((x - r + 1, y - r + 1, x + r - 1, y + r - 1), outline=(255, 255, 255), width=2)
    return picture


def patch_similarity(patches: Tensor, query: Tensor) -> Tensor:
    """Cosine of every patch with one feature: [h, w, D], [D] -> [h, w], -1..1."""
    return F.normalize(patches.float(), dim=-1) @ F.normalize(query.float(), dim=-1)


def pca_basis(patches: Tensor | Sequence[Tensor], anchor: Tensor | None = None) -> PcaBasis:
    """The three main directions of the patches of ALL images: the same colour means the same thing in each.

        components = leading eigenvectors of the covariance; shown from the 2nd to the 98th percentile of the scores

    patches: [..., D] or a list of such (grids of any size). An eigenvector's sign is arbitrary; ours makes the rarer
    side (usually the objects) the bright one. anchor [n, 3]: three values per patch, in the same order, near whose
    colours to stay by turning the three directions among themselves; `pca_scores` of an earlier basis keeps a series
    of pictures through training from flickering.
    Raises ValueError if there are no patches, or a value that is not finite.
    """
    flat = torch.cat([part.detach().double().reshape(-1, part.shape[-1]).cpu() for part in _parts(patches)])
    if len(flat) == 0 or not bool(torch.isfinite(flat).all()):
        raise ValueError(f"PCA picture: {len(flat)} patches, finite: {bool(torch.isfinite(flat).all())}")
    mean = flat.mean(0)
    centred = flat - mean
    _, vectors = torch.linalg.eigh(centred.T @ centred / len(flat))
    components = F.pad(vectors.flip(1).T[:3], (0, 0, 0, max(0, 3 - flat.shape[1])))
    scores = centred @ components.T
    components = components * torch.where((scores**3).sum(0) < 0, -1.0, 1.0)[:, None].to(components.dtype)
    if anchor is not None:
        components = _turn(centred @ components.T, anchor.detach().double().cpu()).T @ components
    scores = centred @ components.T
    low, high = torch.quantile(_thinned(scores), torch.tensor([0.02, 0.98], dtype=torch.float64), dim=0)
    return PcaBasis(mean, components, low, high)


def pca_scores(patches: Tensor, basis: PcaBasis) -> Tensor:
    """The patches in the basis: [..., D] -> [..., 3] float64 on the CPU."""
    return (patches.detach().double().cpu() - basis.mean) @ basis.components.T


def pca_colours(patches: Tensor, basis: PcaBasis) -> np.ndarray:
    """Features as colours: patches [..., D] -> uint8 [..., 3], the three directions as red, green and blue.

    Where a direction carries no variance at all (collapsed features) it is shown as its middle: grey, which is true.
    """
    spread = basis.high - basis.low
    carries = _carries(basis)
    shown = torch.where(carries, (pca_scores(patches, basis) - basis.low) / torch.where(carries, spread, 1.0), 0.5)
    return (shown.clamp(0, 1) * 255).round().byte().numpy()


def pca_picture(patches: Tensor, basis: PcaBasis, size: int = 256) -> Image.Image:
    """`pca_colours` of patches [h, w, D] as a picture: one flat square a patch, `size` pixels the longer side."""
    grid = _pixels(patches.shape[0], patches.shape[1], size)
    return Image.fromarray(pca_colours(patches, basis)).resize(grid, Image.Resampling.NEAREST)


def foreground(patches: Sequence[Tensor], basis: PcaBasis) -> list[Tensor]:
    """The first direction of the basis cut in two: patches [h, w, D] each -> [h, w] each, above 0 in the foreground.

    The cut is Otsu's (between the two halves that differ most) over all pictures. Which side is the foreground is not
    in the features: it is the side that keeps off the borders of the pictures. 1 is the whole range of the direction.
    Collapsed features have no two sides: zeros.
    """
    if not bool(_carries(basis)[0]):
        return [torch.zeros(part.shape[:2]) for part in patches]
    scores = [pca_scores(part, basis)[..., 0] for part in patches]
    cut = _otsu(torch.cat([part.flatten() for part in scores]).numpy())
    edge = torch.cat([torch.cat([s[0], s[-1], s[:, 0], s[:, -1]]) for s in scores])
    inside = torch.cat([s[1:-1, 1:-1].flatten() for s in scores])
    share = float((inside > cut).double().mean()) if len(inside) else 1.0
    sign = 1 if float((edge > cut).double().mean()) <= share else -1
    return [(sign * (part - cut) / float(basis.high[0] - basis.low[0])).float() for part in scores]


def foreground_picture(image: Image.Image, scores: Tensor, size: int = 256) -> Image.Image:
    """The foreground (`foreground`, [h, w]) as it is, the rest faded to white."""
    h, w = scores.shape
    whole = _pixels(h, w, size)
    smooth = Image.fromarray(_grid(scores).numpy()).resize(whole, Image.Resampling.BICUBIC)
    kept = np.clip(np.asarray(smooth) / 0.04 + 0.5, 0, 1)[..., None] * 0.88 + 0.12  # an edge that is not a staircase
    seen = np.asarray(image.convert("RGB").resize(whole, Image.Resampling.BICUBIC), dtype=np.float32)
    return Image.fromarray((seen * kept + 255 * (1 - kept)).round().astype(np.uint8))


def sheet(
    rows: Sequence[Sequence[Image.Image]],
    captions: Sequence[str] = (),
    gap: int = 8,
    ground: tuple[int, int, int] = (255, 255, 255),
) -> Image.Image:
    """Pictures side by side on one: rows of pictures, each cell as large as the largest; captions over the columns."""
    columns = max((len(row) for row in rows), default=0)
    if columns == 0:
        raise ValueError("sheet: no pictures")
    width = max(picture.width for row in rows for picture in row)
    height = max(picture.height for row in rows for picture in row)
    head = 22 if any(captions) else 0
    whole = Image.new("RGB", (columns * (width + gap) + gap, len(rows) * (height + gap) + gap + head), ground)
    draw = ImageDraw.Draw(whole)
    ink = (30, 30, 30) if sum(ground) > 380 else (235, 235, 235)
    for c, caption in enumerate(captions[:columns]):
        draw.text((gap + c * (width + gap), gap), caption, fill=ink, font=ImageFont.load_default(14))
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            corner = gap + c * (width + gap), head + gap + r * (height + gap)
            whole.paste(picture, (corner[0] + (width - picture.width) // 2, corner[1] + (height - picture.height) // 2))
    return whole


def _carries(basis: PcaBasis) -> Tensor:
    """Which of the directions carry anything, bool [3]. Not compared with 0: rounding in a collapsed network must not
    be stretched into a colourful picture."""
    return (basis.high - basis.low) > 1e-6 * basis.mean.norm().clamp(min=1e-6)


def _otsu(values: np.ndarray, bins: int = 256) -> float:
    """The threshold between the two groups of values [n] whose means differ most for their sizes."""
    counts, edges = np.histogram(values, bins)
    centres = (edges[:-1] + edges[1:]) / 2
    below, total = counts.cumsum(), (counts * centres).cumsum()
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (total / below - (total[-1] - total) / above) ** 2
    best = np.nan_to_num(between)
    return float(edges[1:][best >= best.max()].mean())  # the middle where a gap makes many cuts equally good


def _named(picture: Image.Image, name: str) -> Image.Image:
    """The picture with a short name in its corner."""
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(13)
    box = draw.textbbox((9, 6), name, font=font)
    draw.rounded_rectangle((box[0] - 5, box[1] - 3, box[2] + 5, box[3] + 3), 4, fill=(0, 0, 0))
    draw.text((9, 6), name, fill=(255, 255, 255), font=font)
    return picture


def _parts(patches: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return [patches] if isinstance(patches, Tensor) else list(patches)


def _grid(weights: Tensor) -> Tensor:
    if weights.ndim != 2:
        raise ValueError(f"picture: a map of shape {tuple(weights.shape)}; need [h, w] or [heads, h, w]")
    return weights.detach().float().cpu()


def _pixels(h: int, w: int, size: int) -> tuple[int, int]:
    """(width, height) with the grid's proportions, the longer side about `size` and a whole number a patch."""
    cell = max(1, round(size / max(h, w)))
    return w * cell, h * cell


def _glow(image: Image.Image, weights: Tensor, colours: str, size: int) -> Image.Image:
    """Light over a dimmed, half-greyed image: it stays recognisable, and its own colours do not read as attention."""
    whole = _pixels(weights.shape[0], weights.shape[1], size)
    smooth = Image.fromarray(weights.detach().float().cpu().numpy()).resize(whole, Image.Resampling.BICUBIC)
    light = np.clip(np.asarray(smooth), 0, 1)[..., None]
    below = np.asarray(image.convert("RGB").resize(whole, Image.Resampling.BICUBIC), dtype=np.float32)
    below = 0.45 * below + 0.35 * below.mean(-1, keepdims=True)
    cover = 0.15 + 0.6 * light
    return Image.fromarray((below * (1 - cover) + colour(light[..., 0], colours) * cover).clip(0, 255).astype(np.uint8))


def _outline(picture: Image.Image, mask: Tensor) -> Image.Image:
    """A white line with a dark halo along the inside of the mask's patches: visible on any ground, at half size too."""
    filled = Image.fromarray(mask.cpu().numpy().astype(np.uint8) * 255).resize(picture.size, Image.Resampling.NEAREST)
    result = picture.copy()
    line_width = max(1, round(max(picture.size) / 128))
    for width, ink in ((line_width + 1, (0, 0, 0)), (line_width, (255, 255, 255))):
        # The border pads with "outside", so a mask that touches the picture's edge is closed there.
        padded = Image.new("L", (filled.width + 2 * width, filled.height + 2 * width))
        padded.paste(filled, (width, width))
        inner = padded.filter(ImageFilter.MinFilter(2 * width + 1))
        inner = inner.crop((width, width, width + filled.width, width + filled.height))
        line = (np.asarray(filled) > 0) & (np.asarray(inner) == 0)
        result.paste(ink, mask=Image.fromarray(line.astype(np.uint8) * 255))
    return result


def _turn(scores: Tensor, anchor: Tensor) -> Tensor:
    """The rotation (or reflection) R [3, 3] that brings scores R [n, 3] nearest to the anchor: orthogonal Procrustes.

    Reordering and signs alone would not do: directions of nearly equal variance mix from one step to the next.
    """
    if anchor.shape != scores.shape:
        raise ValueError(f"PCA picture: anchor {tuple(anchor.shape)} for {len(scores)} patches; need one row a patch")
    u, _, v = torch.linalg.svd(scores.T @ (anchor - anchor.mean(0)))
    return u @ v


def _thinned(scores: Tensor, most: int = 100_000) -> Tensor:
    """torch.quantile refuses more than 16 M numbers; a percentile of every n-th patch is as good."""
    return scores[:: max(1, len(scores) // most)]
