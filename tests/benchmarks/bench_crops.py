"""Crops of one 500 x 375 JPEG, 2 x 224 + 8 x 96, from its bytes to the views a loader hands on, on one core.

The baseline is the published DINO augmentation, composed here from torchvision and PIL as the training code does it:
decode once, then every view from the decoded picture, ToTensor and Normalize included. Ours: decode, draw, cut; uint8
is what a worker hands on (the device normalises). Every contestant draws its own decisions from equal distributions.
The peers, lightly-train and lightly, run in an environment of their own (they are no dependency), in turns with ours,
at the same scales, sizes and number of views.

    python tests/benchmarks/bench_crops.py            # the rows, printed
"""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from paired import Row, row, show
from PIL import Image, ImageFilter, ImageOps

ROUNDS = 40
REPEATS = 4  # pictures per round
PEERS = Path("build/peers")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def photo(path: Path, seed: int = 0) -> None:
    """Write a picture with the spectrum of a photo (1/f, coloured, some edges): 500 x 375, JPEG quality 90."""
    rng = np.random.default_rng(seed)
    height, width = 375, 500
    frequency = (np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]) + 1 / width) ** 1.5
    planes = []
    for amount in (1.0, 0.35, 0.35):  # luma, two chromas
        noise = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(height, width))) / frequency, s=(height, width))
        planes.append(amount * noise / noise.std())
    luma, red, blue = planes
    pixels = np.stack([luma + red, luma - 0.3 * (red + blue), luma + blue], -1) * 45 + 118
    for _ in range(12):
        x, y, radius = rng.integers(0, width), rng.integers(0, height), rng.integers(15, 70)
        disc = np.hypot(np.arange(height)[:, None] - y, np.arange(width)[None] - x) < radius
        pixels[disc] = 0.5 * pixels[disc] + 0.5 * rng.integers(0, 256, 3)
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path, quality=90)


def composed_reference(path: Path) -> Callable[[], object]:
    """The augmentation of the published training code: PIL pictures through torchvision's transforms."""
    from torchvision import transforms as T

    class Blur:
        def __init__(self, chance: float) -> None:
            self.chance = chance

        def __call__(self, image: Image.Image) -> Image.Image:
            if random.random() > self.chance:
                return image
            return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))

    class Solarize:
        def __call__(self, image: Image.Image) -> Image.Image:
            return ImageOps.solarize(image) if random.random() < 0.2 else image

    color = [
        T.RandomHorizontalFlip(0.5),
        T.RandomApply([T.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
        T.RandomGrayscale(0.2),
    ]
    finish = [T.ToTensor(), T.Normalize(MEAN, STD)]

    def crop(size: int, scale: tuple[float, float]) -> T.RandomResizedCrop:
        return T.RandomResizedCrop(size, scale=scale, interpolation=T.InterpolationMode.BICUBIC)

    first = T.Compose([crop(224, (0.4, 1.0)), *color, Blur(1.0), *finish])
    second = T.Compose([crop(224, (0.4, 1.0)), *color, Blur(0.1), Solarize(), *finish])
    local = T.Compose([crop(96, (0.05, 0.4)), *color, Blur(0.5), *finish])

    def run() -> object:
        with path.open("rb") as file:
            image = Image.open(file).convert("RGB")
        return [first(image), second(image)] + [local(image) for _ in range(8)]

    return run


def ours(path: Path, back_end: str) -> Callable[[], object]:
    """Decode, draw and cut as the loader does."""
    from dino_tower.images import read_sized
    from dino_tower.pretrain.crops.views import CropsConfig, at_least, draw_views, make_views

    config = CropsConfig(back_end=back_end)
    rng = np.random.default_rng(0)

    def run() -> object:
        image, (width, height) = read_sized(path, at_least=at_least(config))
        return make_views(image, draw_views(config, width, height, rng), config)

    return run


def lightly_train(path: Path) -> Callable[[], object]:
    """lightly-train's DINO transform with DINO's published scales, 8 locals and its own way of reading a file."""
    from lightly_train._data.file_helpers import open_image_numpy
    from lightly_train._methods.dino.dino_transform import (
        DINOLocalViewRandomResizedCropArgs,
        DINOLocalViewTransformArgs,
        DINORandomResizedCropArgs,
        DINOTransform,
        DINOTransformArgs,
    )

    scale = DINOLocalViewRandomResizedCropArgs(min_scale=0.05, max_scale=0.4)
    arguments = DINOTransformArgs(
        random_resize=DINORandomResizedCropArgs(min_scale=0.4),
        local_view=DINOLocalViewTransformArgs(num_views=8, random_resize=scale),
    )
    arguments.resolve_auto()
    transform = DINOTransform(arguments)
    return lambda: transform({"image": open_image_numpy(path)})


def lightly(path: Path) -> Callable[[], object]:
    """lightly's DINO transform, 8 locals."""
    from lightly.transforms import DINOTransform

    transform = DINOTransform(n_local_views=8)

    def run() -> object:
        with path.open("rb") as file:
            return transform(Image.open(file).convert("RGB"))

    return run


CONTESTANTS: dict[str, Callable[[Path], Callable[[], object]]] = {
    "composed": composed_reference,
    "fast": lambda path: ours(path, "fast"),
    "exact": lambda path: ours(path, "exact"),
    "lightly-train": lightly_train,
    "lightly": lightly,
}


def milliseconds(run: Callable[[], object]) -> float:
    """CPU milliseconds per picture: on one core that is the time it takes, less what other programs take from it.

    Work that a library did in threads of its own would count in full.
    """
    start = time.process_time()
    for _ in range(REPEATS):
        run()
    return 1000 * (time.process_time() - start) / REPEATS


def one_core() -> None:
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def composed_rows() -> list[Row]:
    """Both back ends against the composed reference, taking turns in this process."""
    one_core()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "photo.jpg"
        photo(path)
        runs = {name: CONTESTANTS[name](path) for name in ("composed", "fast", "exact")}
        for run in runs.values():
            run()
        times = [{name: milliseconds(run) for name, run in runs.items()} for _ in range(ROUNDS)]
    against = "composed torchvision / PIL"
    return [
        row("crops 2+8, fast", against, [(t["fast"], t["composed"]) for t in times], 4.0),
        row("crops 2+8, exact", against, [(t["exact"], t["composed"]) for t in times], 0.95),
    ]


def peer_python(folder: Path = PEERS) -> str:
    """The interpreter of lightly-train's own environment, made on first use.

    The environment sees this one's packages through a .pth file, so that torch is not downloaded twice; what the peer
    wants in another version is installed beside it and comes first.
    """
    given = os.environ.get("DINO_TOWER_LIGHTLY_TRAIN")
    if given:
        return given
    python = folder / "lightly-train" / "bin" / "python"
    if not python.exists():
        import sysconfig

        subprocess.run([sys.executable, "-m", "venv", str(python.parent.parent)], check=True)
        where = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        packages = Path(subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip())
        (packages / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
        subprocess.run([str(python), "-m", "pip", "install", "-q", "lightly-train"], check=True)
    return str(python)


def peer_row(peer: str, target: float | None) -> Row:
    """`fast` against a peer: two processes that take turns."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "photo.jpg"
        photo(path)
        contestants = ((sys.executable, "fast"), (peer_python(), peer))
        command = [str(Path(__file__).resolve()), "--worker", str(path)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "LIGHTLY_TRAIN_EVENTS_DISABLED": "1"}
        workers = [
            subprocess.Popen(
                [python, *command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
            )
            for python, name in contestants
        ]
        pairs = []
        for _ in range(ROUNDS):
            pair = []
            for worker in workers:
                assert worker.stdin is not None and worker.stdout is not None
                worker.stdin.write("go\n")
                worker.stdin.flush()
                pair.append(float(worker.stdout.readline()))
            pairs.append((pair[0], pair[1]))
        for worker in workers:
            worker.communicate("")
    return row("crops 2+8, fast", f"{peer} DINO transform", pairs, target)


def serve(path: Path, name: str) -> None:
    """A contestant in a process of its own: every line on stdin is answered with the seconds of one round."""
    one_core()
    out, sys.stdout = sys.stdout, io.StringIO()  # a library's greeting must not be read as a time
    run = CONTESTANTS[name](path)
    run()
    for _ in sys.stdin:
        print(milliseconds(run), file=out, flush=True)


def rows() -> list[Row]:
    """All rows of this file; without a network the peers' rows are left out and the reason printed."""
    found = composed_rows()
    for peer, target in (("lightly-train", 1.4), ("lightly", None)):
        try:
            found.append(peer_row(peer, target))
        except (subprocess.CalledProcessError, ValueError, OSError) as error:
            print(f"{peer} could not be measured: {error}", file=sys.stderr)
    return found


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        serve(Path(sys.argv[2]), sys.argv[3])
    else:
        show(rows())
