"""The README.md that travels with a tower: what it is, how it was trained, how to use it."""

from __future__ import annotations

from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from dino_tower import __version__
from dino_tower.tower import Tower

TEXT = """
# {title}

A vision tower pretrained without labels by DINO self-distillation with
[dino-tower](https://pypi.org/project/dino-tower) {version}: the {weights} of the run, a `{kind}` with
{parameters:.1f} M parameters. Patches of {patch} px, {width} features a token, trained at {size} px.

## Use it

```python
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained("PATH")
model = AutoModel.from_pretrained("PATH")
tokens = model(**processor(image, return_tensors="pt")).last_hidden_state
```

## Training

Data: {data}. Recipe: `{preset}`, {length}, batch {batch} per process, seed {seed}. The settings:

```yaml
{settings}
```

{note}
## Limits

Trained on the data named above and on nothing else: it knows what those pictures show. It has no text encoder.
"""


def model_card(tower: Tower, settings: dict[str, Any], weights: str, note: str = "") -> str:
    """Markdown with the front matter that the Hub reads. settings: a run's config.yaml."""
    import yaml

    steps = settings.get("steps")
    data = ModelCardData(
        library_name="transformers", pipeline_tag="image-feature-extraction", tags=["dino", "dino-tower"]
    )
    body = TEXT.format(
        title=f"{settings['arch']}, {settings['preset']}",
        version=__version__,
        weights=weights,
        kind=type(tower.model).__name__,
        parameters=sum(p.numel() for p in tower.model.parameters()) / 1e6,
        patch=tower.patch,
        width=tower.width,
        size=settings["crops"]["global_size"],
        data=", ".join(settings["data"]),
        preset=settings["preset"],
        length=f"{steps} steps" if steps else f"{settings['epochs']} epochs",
        batch=settings["batch_size"],
        seed=settings["seed"],
        settings=yaml.safe_dump(
            {k: settings[k] for k in ("crops", "model", "head", "loss", "optim", "teacher")}
        ).rstrip(),
        note=note,
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n{body}"))
