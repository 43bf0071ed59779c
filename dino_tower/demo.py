"""`dino-tower demo`: pretrain a small tower on built-in pictures, then ask whether it learned anything.

It joins two rooms through a run directory, as any user would: `pretrain` writes the run, `load_tower` reads it. The
trained teacher stands beside the same network untrained and beside raw pixels; every difference has its interval.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from dino_tower import load_tower
from dino_tower.attention import Jaccard, jaccard, mean_jaccard
from dino_tower.knn import knn_correct, paired_interval
from dino_tower.pictures import attention_picture, pca_basis, pca_picture, sheet
from dino_tower.run.page import write_run_page
from dino_tower.scenes import Scene, kind_names, make_scene
from dino_tower.tokens import Tokens
from dino_tower.tower import Images, Tower

LEVEL = "easy"
KS = (5, 10, 20)
BANK_PER_TEST = 2  # pictures whose kinds are known, for each test picture
AT_A_TIME = 250
TRAINED, UNTRAINED, PIXELS = "trained", "random init", "raw 16x16 pixels"
BELOW = "Differences with their paired 95 % interval over the test scenes; to beat is to have all of it above 0."
SHOWN = 6  # test scenes on the picture sheet


class Found(NamedTuple):
    """What one way of describing pictures reached on the test scenes."""

    right: dict[int, np.ndarray]  # k -> bool [M]: was the kind named rightly
    attention: list[Jaccard]  # one a test scene; none for pixels


def run_demo(output: Path | None, steps: int | None, scenes: int) -> int:
    """Train (preset `demo`, or `steps` of it), compare on `scenes` test scenes, print what was found and where it is.

    output: the run to write; None takes the first free one of runs/demo, runs/demo-2, ... Returns the exit code.
    """
    run = output or _free(Path("runs/demo"))
    from dino_tower.pretrain.train import main as pretrain

    shorter = [] if steps is None else ["--steps", str(steps)]
    code = int(pretrain(["--preset", "demo", "--data", f"scenes:{LEVEL}", "--output", str(run), *shorter]) or 0)
    if code:
        return code
    print(f"\nComparing on {scenes:,} scenes that were not trained on ...", flush=True)
    trained, untrained = load_tower(f"{run}@teacher"), load_tower(f"random:{run}@teacher")
    text, numbers = report(compare(trained, untrained, scenes))
    (run / "demo.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    draw(trained, untrained, run / "demo.png")
    print(f"\n{text}\n\nthe run, as a page:       {write_run_page(run)}\nwhat the tower looks at:  {run / 'demo.png'}")
    return 0


def compare(trained: Tower, untrained: Tower, scenes: int) -> dict[str, Found]:
    """k-NN (k = 5, 10, 20; a bank of twice as many pictures) and attention overlap on `scenes` test scenes."""
    towers = {TRAINED: trained, UNTRAINED: untrained}
    bank, bank_kinds, _ = measure(towers, "train", BANK_PER_TEST * scenes)
    test, kinds, overlap = measure(towers, "test", scenes)
    # Cosines of raw pixels are all near 1 until the mean picture is gone: without this the floor would be too low.
    mean = bank[PIXELS].mean(0)
    bank[PIXELS], test[PIXELS] = bank[PIXELS] - mean, test[PIXELS] - mean
    return {
        name: Found(knn_correct(bank[name], bank_kinds, test[name], kinds, KS), overlap.get(name, [])) for name in test
    }


def measure(
    towers: dict[str, Tower], split: str, count: int
) -> tuple[dict[str, Tensor], Tensor, dict[str, list[Jaccard]]]:
    """Features {name: [N, D]} and kinds [N] of the first `count` scenes of a split; on "test" also attention overlap.

    k-NN takes a tower as its users get it, crop and all. Attention is asked about whole scenes at the size trained at,
    since the crop would cut the masks; its label is the kind: the objects that make it up, not those that distract.
    """
    features: dict[str, list[Tensor]] = {name: [] for name in (*towers, PIXELS)}
    overlap: dict[str, list[Jaccard]] = {name: [] for name in towers}
    kinds: list[int] = []
    for start in range(0, count, AT_A_TIME):
        scenes = [make_scene(LEVEL, i, split) for i in range(start, min(start + AT_A_TIME, count))]
        images = [PIL.Image.fromarray(scene.image) for scene in scenes]
        for name, tower in towers.items():
            features[name].append(look(tower, images).pooled)
            if split == "test":
                maps = tower.attention(images, _whole(tower))
                overlap[name] += [jaccard(a, kind_mask(scene)) for a, scene in zip(maps, scenes, strict=True)]
        features[PIXELS].append(raw_pixels(images))
        kinds += [scene.kind for scene in scenes]
    return {name: torch.cat(rows) for name, rows in features.items()}, torch.tensor(kinds), overlap


def kind_mask(scene: Scene) -> np.ndarray:
    """uint8 [H, W]: 1 where an object of the scene's kind shows, 0 on distractors and ground."""
    return np.isin(scene.instances, [o.instance for o in scene.objects if o.from_kind]).astype(np.uint8)


def look(tower: Tower, images: Images, size: tuple[int, int] | None = None) -> Tokens:
    """The tower's tokens of pictures of one size."""
    out = tower(images, size)
    assert isinstance(out, Tokens)  # scenes are square, and all of one size
    return out


def raw_pixels(images: Sequence[PIL.Image.Image]) -> Tensor:
    """The floor that needs no network: pictures at 16x16 RGB as float [N, 768], 0..1."""
    small = [np.asarray(image.resize((16, 16), PIL.Image.Resampling.BICUBIC)) for image in images]
    return torch.from_numpy(np.stack(small)).flatten(1).float() / 255


def report(found: dict[str, Found]) -> tuple[str, dict[str, Any]]:
    """(the table as text, the same numbers for demo.json): shares 0..1 in the numbers, percent in the text."""
    scenes = len(found[TRAINED].right[KS[0]])
    knn = {name: {k: float(found[name].right[k].mean()) for k in KS} for name in found}
    gains = {
        floor: {k: paired_interval(found[TRAINED].right[k], found[floor].right[k]) for k in KS}
        for floor in (UNTRAINED, PIXELS)
    }
    looks = {name: mean_jaccard(found[name].attention) for name in (TRAINED, UNTRAINED)}
    parts = {
        field: [np.array([getattr(j, field) for j in found[n].attention]) for n in looks] for field in Jaccard._fields
    }
    look_gains = {field: paired_interval(*_both(a, b)) for field, (a, b) in parts.items()}
    text = [f"k-NN accuracy, {scenes:,} test scenes of {len(kind_names(LEVEL))} kinds (%)"]
    text += _table([f"k = {k}" for k in KS], {name: list(row.values()) for name, row in knn.items()})
    text += _table([], {f"{TRAINED} - {floor}": list(row.values()) for floor, row in gains.items()})
    text += ["", "attention masks against the objects that make up the kind, IoU (%)"]
    text += _table([field.replace("_", " ") for field in Jaccard._fields], {name: list(j) for name, j in looks.items()})
    text += _table([], {f"{TRAINED} - {UNTRAINED}": list(look_gains.values())})
    text += ["", BELOW, *_verdicts(gains, look_gains)]
    numbers = {
        "scenes": scenes,
        "knn": knn,
        "knn_gain": {floor: {k: _json(gain) for k, gain in row.items()} for floor, row in gains.items()},
        "attention_iou": {name: j._asdict() for name, j in looks.items()},
        "attention_iou_gain": {field: _json(gain) for field, gain in look_gains.items()},
    }
    return "\n".join(text), numbers


def draw(trained: Tower, untrained: Tower, path: Path) -> None:
    """Write a sheet of pictures: test scenes, and where each tower looks and what its features tell apart."""
    images = [PIL.Image.fromarray(make_scene(LEVEL, i, "test").image) for i in range(SHOWN)]
    columns = [[image.resize((192, 192)) for image in images]]
    for tower in (trained, untrained):
        finer = _whole(tower, times=2)  # twice the size trained at: a person sees more in 12 x 12 patches than in 6 x 6
        patches = look(tower, images, finer).patches
        basis = pca_basis(patches)
        maps = tower.attention(images, finer)
        columns.append([attention_picture(image, a, size=192) for image, a in zip(images, maps, strict=True)])
        columns.append([pca_picture(p, basis, size=192) for p in patches])
    captions = ("scene", f"{TRAINED}: attention", "features (PCA)", f"{UNTRAINED}: attention", "features (PCA)")
    sheet([list(row) for row in zip(*columns, strict=True)], captions).save(path)


def _whole(tower: Tower, times: int = 1) -> tuple[int, int]:
    side = times * int(tower.model.config.image_size)
    return side, side


def _verdicts(gains: dict[str, dict[int, Any]], looks: dict[str, Any]) -> list[str]:
    """What the intervals say, whichever way it went."""
    lines = []
    for floor, row in gains.items():
        above = [f"k = {k}" for k, (_, low, _) in row.items() if low > 0]
        where = f"beats {floor} at every k" if len(above) == len(row) else f"beats {floor} only at {', '.join(above)}"
        lines.append(f"k-NN: {TRAINED} {where if above else f'does not beat {floor}'}.")
    mean, low, high = looks["best_head"]
    says = "above" if low > 0 else "below" if high < 0 else "not clearly different from"
    return [*lines, f"Attention, best head: {TRAINED} is {says} {UNTRAINED} ({100 * mean:+.1f})."]


def _table(head: list[str], rows: dict[str, list[Any]]) -> list[str]:
    """Lines of a table; a cell is a share, or (difference, low, high)."""

    def cell(value: Any) -> str:
        if isinstance(value, tuple):
            low, high = (f"{100 * v:+z.1f}" if v == v else "n/a" for v in value[1:])  # below 20 scenes: NaN
            return f"{100 * value[0]:+z.1f} ({low} to {high})"
        return value if isinstance(value, str) else f"{100 * value:.1f}"

    lines = [("", head)] if head else []
    return [f"  {name:<28}" + "".join(f"{cell(v):>24}" for v in row) for name, row in (*lines, *rows.items())]


def _json(gain: tuple[float, float, float]) -> list[float | None]:
    """JSON has no NaN."""
    return [value if value == value else None for value in gain]


def _both(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scenes for which both have a number: one without a labelled object has none."""
    there = ~(np.isnan(a) | np.isnan(b))
    return a[there], b[there]


def _free(wanted: Path) -> Path:
    """`wanted`, or `wanted-2`, -3, ...: the first that nothing is written to, so that a second demo just runs."""
    names = (wanted if n == 1 else wanted.with_name(f"{wanted.name}-{n}") for n in range(1, 10_000))
    return next(path for path in names if not path.exists())
