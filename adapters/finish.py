"""What an adaptation leaves in its directory: the adapter on the bare tower, the head beside it, the merged tower."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import torch

from dino_tower import __version__
from dino_tower.adapters.building import Built
from dino_tower.adapters.settings import Config
from dino_tower.adapters.state import HEAD, Trained
from dino_tower.checkpoint import read_json, replace_text, save_tensors
from dino_tower.config import to_tree
from dino_tower.peft_adapter import MERGED, SETTINGS, adapter_writer, base_writer
from dino_tower.peft_merging import write_merged
from dino_tower.run.state import copied
from dino_tower.tower import Tower

FACTS = "adapted.json"
FORMAT = 1  # of adapted.json


def finish(config: Config, trained: Trained, built: Built, classes: Sequence[str], score: dict[str, Any]) -> None:
    """Write them; adapted.json comes last and says that all is there. What a killed run had begun is written again.

    Raises ConfigError where the disk refuses, or where merging would change the features; the adapter is there then.
    """
    root = Path(config.output)
    network = trained.model
    network.eval()
    aside = root / ".learned"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    if isinstance(network.tower, peft.PeftModel):
        adapter_writer(network.tower, trained.base, root)(aside)
    else:
        base_writer(trained.base, root)(aside)
    save_tensors(aside / HEAD, copied(network.head.state_dict()))
    settings = aside / SETTINGS
    base = read_json(settings)["base_model_name_or_path"] if settings.is_file() else ""
    below = loading_line(base, root, bool(trained.base.path))
    (aside / "README.md").write_text(card(config, score, below), encoding="utf-8")
    for path in aside.iterdir():
        path.replace(root / path.name)
    aside.rmdir()
    if config.merge or config.method == "full":
        merge(config, built.tower, network.tower)
    facts = {
        "format": FORMAT,
        "version": __version__,
        "task": config.task,
        "classes": list(classes),
        "size": built.size,
        "layers": list(network.which),
        "settings": to_tree(config),
        "score": score,
    }
    replace_text(root / FACTS, json.dumps(facts, indent=1) + "\n")


def merge(config: Config, tower: Tower, adapted: torch.nn.Module) -> None:
    """Write OUTPUT/merged, a plain tower; an earlier one is kept. adapted: the tower's model with its adapter.

    Raises ConfigError where the disk refuses, or where merging would change the features.
    """
    out = Path(config.output) / MERGED
    origin = (
        f"`{config.tower}` adapted to the task {config.task} by {config.method} with "
        "dino-tower, the adapter in its weights."
    )
    if not out.exists():
        write_merged(tower, adapted, out, origin)


def loading_line(base: str, root: Path, relative: bool) -> tuple[str, str]:
    """An import, and the expression that is the tower below the adapter in `root` to somebody inside that directory.

    base: what adapter_config.json calls it; relative: that is its directory, seen from `root`.
    """
    where = root / base if relative else Path(base.removeprefix("timm:"))
    local = os.path.relpath(where.absolute(), root.absolute()) if where.exists() else None
    if not relative and base.startswith("timm:"):
        name = base.removeprefix("timm:") if local is None else f"local-dir:{local}"
        return "import timm", f'timm.create_model("{name}", pretrained=True, num_classes=0)'
    plain = (where / "config.json").is_file() or (local is None and ":" not in base)  # the latter is on the Hub
    if plain and '"pretrained_cfg"' in _text(where / "config.json"):
        return "import timm", f'timm.create_model("local-dir:{local}", pretrained=True, num_classes=0)'
    if plain:
        return "from transformers import AutoModel", f'AutoModel.from_pretrained("{local or base}")'
    return "from dino_tower import load_tower", f'load_tower("{local or base}").model'


def _text(file: Path) -> str:
    return file.read_text(errors="replace") if file.is_file() else ""


def card(config: Config, score: dict[str, Any], below: tuple[str, str]) -> str:
    """README.md beside the adapter. below: import and expression of the tower that it is for."""
    said = ", ".join(f"{name} {value:.4f}" for name, value in score.items() if isinstance(value, float))
    fill = {"METHOD": config.method, "IMPORT": below[0], "BELOW": below[1]}
    use = {"none": "", "full": WHOLE}.get(config.method, ADAPTER)
    for word, value in fill.items():
        use = use.replace(word, value)
    library = "transformers" if config.method in ("none", "full") else "peft"
    return (
        f"---\nlibrary_name: {library}\ntags: [dino-tower, vision-tower]\n---\n\n# {Path(config.output).name}\n\n"
        f"`{config.tower}` with a {config.head.kind} head for the task {config.task}, method {config.method}, made by "
        "dino-tower.\n\n"
        + (f"On the {score['pictures']} pictures held out: {said}.\n\n" if said else "")
        + use
        + "With its head, in dino-tower:\n\n```python\nfrom dino_tower.adapters.loading import load_adapted\n\n"
        + 'adapted = load_adapted(".")\n```\n'
    )


WHOLE = "The tower was trained as a whole: `merged/` is the result.\n\n"
ADAPTER = """The directory is a PEFT adapter (METHOD) for that tower. From inside it:

```python
from peft import PeftModel
IMPORT

tower = PeftModel.from_pretrained(BELOW, ".")
```

"""
