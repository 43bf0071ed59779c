"""What an adaptation leaves in its directory: the adapter on the bare tower, the head beside it, the merged tower."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft

from dino_tower import __version__
from dino_tower.adapters.building import Built
from dino_tower.adapters.settings import Config
from dino_tower.adapters.state import HEAD, Trained
from dino_tower.checkpoint import read_json, replace_text, save_tensors
from dino_tower.config import to_tree
from dino_tower.peft_adapter import MERGED, SETTINGS, adapter_writer, base_writer
from dino_tower.peft_merging import write_merged
from dino_tower.run.state import copied

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
    (aside / "README.md").write_text(card(config, score, base), encoding="utf-8")
    for path in aside.iterdir():
        path.replace(root / path.name)
    aside.rmdir()
    if (config.merge or config.method == "full") and not (root / MERGED).exists():
        origin = (
            f"`{config.tower}` adapted to the task {config.task} by {config.method} with "
            "[dino-tower](https://pypi.org/project/dino-tower), the adapter in its weights."
        )
        write_merged(built.tower, network.tower, root / MERGED, origin)
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


def card(config: Config, score: dict[str, Any], base: str) -> str:
    """README.md beside the adapter. base: what adapter_config.json calls the tower."""
    said = ", ".join(f"{name} {value:.4f}" for name, value in score.items() if isinstance(value, float))
    timm = base.removeprefix("timm:")
    below = f'timm.create_model("{timm}", pretrained=True, num_classes=0)'
    fill = {
        "METHOD": config.method,
        "IMPORT": "import timm" if timm != base else "from transformers import AutoModel",
        "BELOW": below if timm != base else f'AutoModel.from_pretrained("{base}")',
    }
    use = {"none": "", "full": WHOLE}.get(config.method, ADAPTER)
    for word, value in fill.items():
        use = use.replace(word, value)
    library = "transformers" if config.method in ("none", "full") else "peft"
    return (
        f"---\nlibrary_name: {library}\ntags: [dino-tower, vision-tower]\n---\n\n# {Path(config.output).name}\n\n"
        f"`{config.tower}` with a {config.head.kind} head for the task {config.task}, method {config.method}, made by "
        "[dino-tower](https://pypi.org/project/dino-tower).\n\n"
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
