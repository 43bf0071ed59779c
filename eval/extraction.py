"""From pictures to features on disk: each picture is read once for all features that are asked for at one size.

Pictures are decoded and resized by threads while the tower works on the batch before. Several processes (`accelerate
launch`) take every n-th picture each and write into the same memory-mapped files, so that the result does not depend
on their number. Memory does not grow with the number of pictures.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from dino_tower.errors import ConfigError
from dino_tower.eval.datasets.base import Item
from dino_tower.eval.geometry import Frame
from dino_tower.eval.raw import RawPixels
from dino_tower.eval.splits import shard
from dino_tower.families import family_of
from dino_tower.images import UnreadableImage
from dino_tower.tokens import Tokens
from dino_tower.tower import Size, Tower

TOKENS_AT_A_TIME = 4096  # of a batch, on a CPU; 16 times as many on a GPU
AHEAD = 3  # batches that are being read while one is worked on
READERS = 2  # threads
DATA, GRIDS = "data.npy", "grids.npy"

AnyTower = Tower | RawPixels


class Feature(NamedTuple):
    """kind: vectors, rows (patches), means (of the last normed patches), keys, attention or embed (in the space of
    texts). Of the first two also layer: number of the block, 0 what enters the first; norm: after the final norm."""

    kind: str
    layer: int = -1
    norm: bool = True

    @property
    def name(self) -> str:
        """Of its entry in the cache."""
        return f"{self.kind}{self.layer}{'n' if self.norm else 'r'}" if self.of_a_layer else self.kind

    @property
    def of_a_layer(self) -> bool:
        """Tokens, of which one forward gives all layers."""
        return self.kind in ("vectors", "rows")

    @property
    def on_grid(self) -> bool:
        """A row for each patch, not one for each picture."""
        return self.kind in ("rows", "keys", "attention")


class Processes(NamedTuple):
    """This process among those that share the work; `wait` returns when all have called it."""

    rank: int = 0
    world: int = 1
    wait: Callable[[], object] = lambda: None


def extract(
    tower: AnyTower,
    items: Sequence[Item],
    frame: Frame,
    folders: Mapping[Feature, Path],
    dtype: str = "float16",
    processes: Processes = Processes(),  # noqa: B008  # a tuple of constants
    progress: Callable[[int], object] = lambda pictures: None,
) -> None:
    """Fill each feature's folder with data.npy and grids.npy; every process calls this with the same arguments.

    data [N, D], or [P, D] of patches, a picture's below the one before; grids [N, 2]. dtype: of what has a row a
    patch; the rest is float32. Raises ConfigError, in every process, naming the picture that cannot be read, whose
    size the tower does not take, or whose features are not finite as they are kept.
    """
    notes = next(iter(folders.values()))
    with _all_or_none(processes, notes):
        sizes = [_size(tower, item, frame) for item in items] if frame.geometry == "native" else None
        _, probe = next(_batches(tower, items, frame, sizes, [0]))
        for feature, found in features_of(tower, probe, list(folders)).items() if processes.rank == 0 else ():
            grids = _grids(tower, found, len(items), sizes) if feature.on_grid else np.ones((len(items), 2), np.int32)
            np.save(folders[feature] / GRIDS, grids)
            kind = dtype if feature.on_grid else "float32"
            shape = (int(grids.prod(1).sum()), found.shape[-1])
            np.lib.format.open_memmap(folders[feature] / DATA, "w+", dtype=kind, shape=shape).flush()
    with _all_or_none(processes, notes):
        data = {feature: np.load(folder / DATA, mmap_mode="r+") for feature, folder in folders.items()}
        starts = {feature: starts_of(np.load(folder / GRIDS)) for feature, folder in folders.items()}
        order = shard(len(items), processes.rank, processes.world).tolist()
        for places, pixels in _batches(tower, items, frame, sizes, order):
            for feature, found in features_of(tower, pixels, list(folders)).items():
                rows = found.flatten(1, 2).float().cpu() if feature.on_grid else found[:, None].float().cpu()
                for place, row in zip(places, rows, strict=True):
                    here = slice(*starts[feature][place : place + 2])
                    data[feature][here] = _stored(
                        row, data[feature].dtype, f"{tower.name}: features of {items[place].id}"
                    )
            progress(len(places))
        for one in data.values():
            one.flush()


@contextmanager
def _all_or_none(processes: Processes, notes: Path) -> Iterator[None]:
    """What is done here has succeeded in every process, or raises in every process; `notes`: a folder they share.

    A process that raised alone would miss a wait of the others, who would take its zeros for finished features.
    """
    problem: Exception | None = None
    try:
        yield
    except Exception as error:  # whatever it is, the others must hear of it
        problem = error
        (notes / f"failed-{processes.rank}.txt").write_text(str(error), encoding="utf-8")
    processes.wait()
    if problem is not None:
        raise problem
    for note in sorted(notes.glob("failed-*.txt")):
        raise ConfigError(note.read_text(encoding="utf-8"))


def _stored(row: Tensor, dtype: np.dtype, where: str) -> np.ndarray:
    """As it is kept. Raises ConfigError for what is not finite, before or after."""
    with np.errstate(over="ignore"):
        kept: np.ndarray = row.numpy().astype(dtype)
    if not np.isfinite(kept).all():
        if not torch.isfinite(row).all():
            raise ConfigError(f"{where} are not finite")
        raise ConfigError(f"{where} reach {row.abs().max():.3g}, too much for {dtype}; give --feature-dtype float32")
    return kept


def starts_of(grids: np.ndarray) -> np.ndarray:
    """[N + 1]: the first row of each picture, and the number of all."""
    return np.concatenate([[0], grids.prod(1, dtype=np.int64).cumsum()])


@torch.no_grad()
def features_of(tower: AnyTower, pixels: Tensor, wanted: Sequence[Feature]) -> dict[Feature, Tensor]:
    """Features of one batch [B, 3, H, W]: [B, D], on a grid [B, h, w, D]. Layers before and after the norm come from
    one forward."""
    found: dict[Feature, Tensor] = {}
    asked = {(one.layer, one.norm) for one in wanted if one.of_a_layer}
    asked |= {(tower.depth, True) for one in wanted if one.kind == "means"}
    tokens = _tokens(tower, pixels, asked)
    for one in wanted:
        if one.of_a_layer:
            taken = tokens[one.layer, one.norm]
            found[one] = taken.patches if one.kind == "rows" else taken.pooled
        elif one.kind == "means":
            found[one] = tokens[tower.depth, True].patches.mean((1, 2))
        elif one.kind == "keys":
            found[one] = tower.keys(pixels).permute(0, 2, 3, 1, 4).flatten(3)
        elif one.kind == "attention":
            found[one] = tower.attention(pixels).permute(0, 2, 3, 1)
        else:
            found[one] = tower.embed(pixels)
    return found


def _tokens(tower: AnyTower, pixels: Tensor, asked: set[tuple[int, bool]]) -> dict[tuple[int, bool], Tokens]:
    numbers = sorted({layer for layer, _ in asked})
    if not numbers:
        return {}
    # pixels of one size, as here, give one entry a layer, never a list a picture
    layers = cast("Callable[..., list[Tokens]]", tower.layers)
    if all(norm for _, norm in asked) or not isinstance(tower, Tower) or family_of(tower.model).attention is None:
        # a convolutional network's norm fits its last stage only, which `layers` knows
        normed = layers(pixels, numbers)
        plain = normed if all(norm for _, norm in asked) else layers(pixels, numbers, norm=False)
        pairs = zip(numbers, normed, plain, strict=True)
        return {(n, norm): one if norm else other for n, one, other in pairs for norm in (True, False)}
    raw = dict(zip(numbers, layers(pixels, numbers, norm=False), strict=True))
    return {(n, norm): _normed(tower, raw[n]) if norm else raw[n] for n, norm in asked}


def _normed(tower: Tower, tokens: Tokens) -> Tokens:
    """The final norm of a transformer works on each token by itself."""
    norm = family_of(tower.model).norm
    cls = None if tokens.cls is None else norm(tower.model, tokens.cls[:, None])[:, 0]
    return Tokens(norm(tower.model, tokens.patches.flatten(1, 2)).view_as(tokens.patches), cls)


def _batches(
    tower: AnyTower, items: Sequence[Item], frame: Frame, sizes: Sequence[Size] | None, order: Sequence[int]
) -> Iterator[tuple[list[int], Tensor]]:
    """(places, pixels [B, 3, H, W]) of the pictures in `order`; those of one size that follow each other together."""
    fixed = frame.size(tower.patch, tower.native) if sizes is None else None

    def read(place: int) -> Tensor:
        size = fixed if sizes is None else sizes[place]
        try:
            pixels = tower.pixels([items[place].image()], size)
        except UnreadableImage as error:
            raise ConfigError(f"{items[place].where}: {error.reason}") from None
        assert isinstance(pixels, Tensor)
        return pixels

    room = TOKENS_AT_A_TIME * (1 if tower.device.type == "cpu" else 16)
    with ThreadPoolExecutor(READERS) as pool:
        waiting: deque = deque()
        todo = iter(order)
        held: list[tuple[int, Tensor]] = []

        def most(pixels: Tensor) -> int:
            return max(1, room * tower.patch**2 // pixels[0, 0].numel())

        while True:
            ahead = AHEAD * (most(held[0][1]) if held else 4)
            while len(waiting) < ahead and (place := next(todo, None)) is not None:
                waiting.append((place, pool.submit(read, place)))
            if not waiting:
                break
            place, future = waiting.popleft()
            pixels = future.result()
            if held and (pixels.shape != held[0][1].shape or len(held) == most(pixels)):
                yield [p for p, _ in held], torch.cat([x for _, x in held])
                held = []
            held.append((place, pixels))
        if held:
            yield [p for p, _ in held], torch.cat([x for _, x in held])


def _size(tower: AnyTower, item: Item, frame: Frame) -> Size:
    try:
        return frame.size(tower.patch, tower.native, item.size())
    except UnreadableImage as error:
        raise ConfigError(f"{item.where}: {error.reason}") from None


def _grids(tower: AnyTower, found: Tensor, pictures: int, sizes: Sequence[Size] | None) -> np.ndarray:
    """[N, 2] rows and columns of patches."""
    if sizes is None:
        return np.tile(np.array(found.shape[1:3], np.int32), (pictures, 1))
    pixels = np.array(sizes, np.int32)
    return pixels // tower.patch
