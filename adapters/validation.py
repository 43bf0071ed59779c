"""How good the answers are on pictures that were held out, whole and at the size of their labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dino_tower.adapters.adapted import Adapted
from dino_tower.adapters.building import Built
from dino_tower.adapters.dense_heads import ClassHead
from dino_tower.adapters.examples import Examples
from dino_tower.adapters.settings import Config
from dino_tower.adapters.tasks import TASKS, Range, Row
from dino_tower.agreement import Agreement
from dino_tower.checkpoint import replace_text
from dino_tower.sources import read_batches

ROWS = "validation.jsonl"


def validate(
    model: Adapted,
    built: Built,
    examples: Examples,
    config: Config,
    agreement: Agreement,
    rank: int = 0,
    world: int = 1,
    folder: Path | None = None,
) -> dict[str, Any]:
    """The score on every example, shared out among the processes. Raises ConfigError for a label that does not fit.

    folder: where validation.jsonl goes, one row a picture with what it adds to the score, so that two runs can be
    compared picture by picture.
    """
    task, depth = TASKS[config.task], Range(config.target.low, config.target.high)
    rows: list[Row] = []
    model.eval()
    reading = read_batches(
        examples.pictures, _same, batch_size=config.batch_size, rank=rank, world=world, workers=config.workers
    )
    for batch in reading:
        pictures = batch.items
        for place, scores in enumerate(answers(model, built, pictures)):
            picture = pictures[place]
            label = examples.label(int(batch.indices[place]), picture)
            answer = task.answer(scores.cpu(), (picture.height, picture.width), depth).numpy()
            rows.append({"id": batch.ids[place], **task.row(answer, label, len(examples.classes), depth)})
    together = [row for part in agreement.gather(rows) for row in part]
    together.sort(key=lambda row: row["id"])
    if folder is not None:
        replace_text(folder / ROWS, "".join(json.dumps(row) + "\n" for row in together))
    return {"pictures": len(together), **(task.total(together) if together else {})}


@torch.no_grad()
def answers(model: Adapted, built: Built, pictures: list[Image.Image]) -> list[Tensor]:
    """The head's scores of each picture, [1, K] or [1, K, h, w]; pictures are squeezed to the size of the views.

    Pictures to classify are cropped as the tower's processor does it, unless the run has another size.
    """
    if not pictures:
        return []
    cropped = getattr(built.tower.processor, "crop_size", None) or {}
    size = (
        None if isinstance(model.head, ClassHead) and cropped.get("height") == built.size else (built.size, built.size)
    )
    pixels = built.tower.pixels(pictures, size=size)
    parts = pixels.split(1) if isinstance(pixels, Tensor) else pixels
    device = next(model.parameters()).device
    scores = model(torch.cat([part.to(device) for part in parts]))
    return [part.float() for part in scores.split(1)]


def _same(picture: Image.Image) -> Image.Image:
    return picture
