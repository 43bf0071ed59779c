"""Linear segmentation by the published schedule: a head trained for 40,000 steps on random crops, judged by windows.

DINOv2's linear head (section 7.4; its mmseg configs): the last layer's normed patches, batch norm, a linear layer,
bilinear to the size of the label. Training: short side 512 scaled by 0.5 to 2, crop 512, flip, photometric distortion;
AdamW 1e-3, weight decay 1e-4, 1,500 steps of warm-up, then linearly to 0, batch 16. Testing: short side 512, windows of
512 every 341 pixels, one scale. Nothing is padded: the crop is the multiple of the patch that is nearest to 512.

Legend: B images, C classes, D features, S pixels of the crop's side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from dino_tower.errors import ConfigError
from dino_tower.eval.datasets.base import VOID, Dataset
from dino_tower.eval.sliding import slide
from dino_tower.tower import Tower

SIDE, STRIDE = 512, 341
STEPS, WARM_UP, BATCH = 40_000, 1_500, 16
RATE, DECAY = 1e-3, 1e-4
SCALES = (0.5, 2.0)


def crop_side(patch: int) -> int:
    """S: the multiple of the patch nearest to 512."""
    return max(1, round(SIDE / patch)) * patch


def make_head(width: int, classes: int) -> nn.Module:
    """[B, D, h, w] to class scores [B, C, h, w]."""
    convolution = nn.Conv2d(width, classes, 1)
    nn.init.normal_(convolution.weight, std=0.01)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    return nn.Sequential(nn.BatchNorm2d(width), convolution)


def rate_at(step: int, steps: int) -> float:
    """The learning rate as a share of its peak: linear up over the warm-up, linear down to 0 at the end.

    A schedule shorter than the published one keeps the share of its warm-up.
    """
    warm = max(1, round(WARM_UP * min(1.0, steps / STEPS)))
    return min(1.0, (step + 1) / warm) * (1 - step / steps)


def random_crop(
    image: Image.Image, mask: np.ndarray, side: int, rng: np.random.Generator
) -> tuple[Image.Image, Tensor]:
    """One training sample: a picture of side x side pixels and its label [side, side] uint8, void where none is.

    The ratio of the sides is kept. Where the scaled picture is smaller than the crop it is scaled up to it, where the
    published code pads.
    """
    short = max(1.0, SIDE * rng.uniform(*SCALES))
    scale = max(short / min(image.size), side / min(image.size))
    width, height = (max(side, round(edge * scale)) for edge in image.size)
    left, top = int(rng.integers(0, width - side + 1)), int(rng.integers(0, height - side + 1))
    box = tuple(edge / scale for edge in (left, top, left + side, top + side))
    box = (box[0], box[1], min(box[2], image.width), min(box[3], image.height))
    crop = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, box=box))
    rows = np.clip(((np.arange(side) + 0.5) / side * (box[3] - box[1]) + box[1]).astype(int), 0, mask.shape[0] - 1)
    columns = np.clip(((np.arange(side) + 0.5) / side * (box[2] - box[0]) + box[0]).astype(int), 0, mask.shape[1] - 1)
    label = mask[rows[:, None], columns]
    crop = photometric(crop, rng)
    if rng.random() < 0.5:
        crop, label = crop[:, ::-1], label[:, ::-1]
    return Image.fromarray(np.ascontiguousarray(crop)), torch.from_numpy(np.ascontiguousarray(label))


def photometric(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast (before or after colour), saturation, hue, each half of the time (mmseg
    `PhotoMetricDistortion`): uint8 [S, S, 3] RGB to the same."""

    def half() -> bool:
        return bool(rng.random() < 0.5)

    out = pixels.astype(np.float32)
    if half():
        out = np.clip(out + rng.uniform(-32, 32), 0, 255)
    first = half()
    if first and half():
        out = np.clip(out * rng.uniform(0.5, 1.5), 0, 255)
    hsv = cv2.cvtColor(out.astype(np.uint8), cv2.COLOR_RGB2HSV).astype(np.float32)
    if half():
        hsv[..., 1] = np.clip(hsv[..., 1] * rng.uniform(0.5, 1.5), 0, 255)
    if half():
        hsv[..., 0] = (hsv[..., 0] + rng.integers(-18, 18)) % 180
    out = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB).astype(np.float32)
    if not first and half():
        out = np.clip(out * rng.uniform(0.5, 1.5), 0, 255)
    return out.astype(np.uint8)


def train_on_crops(
    tower: Tower,
    train: Dataset,
    classes: int,
    steps: int = STEPS,
    batch: int = BATCH,
    seed: int = 0,
    progress: Callable[[int, float], object] = lambda step, loss: None,
) -> nn.Module:
    """The trained head, in evaluation mode, on the tower's device; the tower is frozen.

    Pictures are drawn in seeded epochs. Raises ConfigError for pictures without a labelled pixel in all of a batch.
    """
    if len(train) < 2 or classes < 2:
        raise ConfigError(
            f"linear segmentation: {len(train)} training pictures and {classes} classes; need two of each"
        )
    torch.manual_seed(seed)
    side, rng = crop_side(tower.patch), np.random.default_rng(seed)
    head = make_head(tower.width, classes).to(tower.device)
    optimizer = torch.optim.AdamW(head.parameters(), RATE, weight_decay=DECAY)
    order: list[int] = []
    for step in range(steps):
        while len(order) < batch:
            order += rng.permutation(len(train)).tolist()
        places, order = order[:batch], order[batch:]
        samples = [random_crop(train[place].image(), train[place].mask(), side, rng) for place in places]
        labels = torch.stack([label for _, label in samples]).long().to(tower.device)
        pixels = tower.pixels([picture for picture, _ in samples], (side, side))
        assert isinstance(pixels, Tensor)
        scores = F.interpolate(head(_patches(tower, pixels)), (side, side), mode="bilinear")
        loss = F.cross_entropy(scores, labels, ignore_index=VOID)
        for group in optimizer.param_groups:
            group["lr"] = RATE * rate_at(step, steps)
        optimizer.zero_grad()
        # a batch of void pixels only has no mean: nothing is learned from it
        if torch.isfinite(loss):
            loss.backward()
            optimizer.step()
        progress(step, float(loss))
    return head.eval()


@torch.no_grad()
def predict_by_windows(tower: Tower, head: nn.Module, image: Image.Image, size: tuple[int, int]) -> Tensor:
    """Class of each pixel [H, W] of the label: the picture at a short side of S, windows of S averaged."""
    side = crop_side(tower.patch)
    scale = side / min(image.size)
    target = _rounded(image, scale, tower.patch)
    pixels = tower.pixels([image], target)
    assert isinstance(pixels, Tensor)

    def score(window: Tensor) -> Tensor:
        return F.interpolate(head(_patches(tower, window)).float(), window.shape[-2:], mode="bilinear")

    scores = slide(score, pixels, side, STRIDE)
    return F.interpolate(scores, size, mode="bilinear").argmax(1)[0]


def _rounded(image: Image.Image, scale: float, patch: int) -> tuple[int, int]:
    height, width = (max(1, round(edge * scale / patch)) * patch for edge in (image.height, image.width))
    return height, width


def _patches(tower: Tower, pixels: Tensor) -> Tensor:
    """[B, D, h, w], frozen."""
    found = tower(pixels)
    assert not isinstance(found, Sequence) or hasattr(found, "patches")
    return found.patches.float().permute(0, 3, 1, 2)  # type: ignore[union-attr]
