"""The README.md that travels with a tower: what it is, how it was trained, how to use it, what it cannot do."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from dino_tower import __version__
from dino_tower.errors import ConfigError
from dino_tower.export.snippets import Snippet
from dino_tower.run.log import Row, RunLog, number, points, read_run
from dino_tower.tower import Tower

LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")  # the Hub's identifiers: apache-2.0, mit, cc-by-4.0, other
ROWS = 10  # of the table of curves
RECIPE = ("crops", "model", "head", "loss", "optim", "teacher", "compute")
NOT_FLAGS = ("resume", "print_config", "recipe_batch", "recipe_epochs")  # of config.yaml: not what the run learns
# sections that say something only where their term is in the objective
RECIPE_OF = {"ibot": ("terms", "ibot"), "dinov2": ("terms", "ibot"), "distil": ("terms", "distil"),
             "distil_head": ("terms", "distil"),
             **{name: ("terms", name) for name in ("clip", "simclr", "supervised", "mae", "ijepa")}}  # fmt: skip
OBJECTIVES = {
    "dino": "DINO self-distillation",
    "ibot": "iBOT: self-distillation of class token and masked patches",
    "dinov2": "DINOv2: self-distillation of class token and masked patches, features kept apart",
    "distil": "distillation of frozen towers",
    "distil_head": "distillation of a frozen tower through DINO heads",
    "mae": "MAE: the pixels of hidden patches",
    "ijepa": "I-JEPA: the teacher's features of hidden blocks",
    "simclr": "SimCLR: two views of a picture against those of others",
    "clip": "CLIP: pictures and captions against those of others",
    "supervised": "supervised classification",
}
TOLD = {"clip": "captions", "supervised": "labels"}  # what they are told that do not learn from pictures alone
LIBRARIES = {"timm": "timm", "onnx": "onnx", "dino": "pytorch", "dinov2": "pytorch"}


@dataclass(frozen=True)
class Facts:
    """What a card is made of besides the tower."""

    name: str  # a Hub id, or the directory's name
    layout: str
    snippets: list[Snippet]
    origin: str  # one sentence: where the weights come from
    license: str | None = None
    notes: list[str] = field(default_factory=list)  # of the writer: what was left out or folded
    checked: list[str] = field(default_factory=list)  # differences, one size each
    note: str = ""  # the user's own Markdown
    training: RunLog | None = None


def check_license(name: str | None) -> None:
    """Raise ConfigError for what the Hub would not read as a licence."""
    if name is not None and not LICENSE.fullmatch(name):
        raise ConfigError(
            f"licence {name!r}: give an identifier of the Hub, such as apache-2.0, mit, cc-by-4.0 or other"
        )


def training_of(run: Path) -> RunLog:
    """What the run's files tell. Raises ConfigError for a directory that is no run."""
    return read_run(run)


def manner_of(training: RunLog) -> str:
    """How a tower was pretrained, after that word."""
    objective = training.settings.get("objective", "dino")
    if objective in TOLD:
        return f"on pictures with {TOLD[objective]}"
    return "without labels by DINO self-distillation" if objective == "dino" else "without labels"


def model_card(tower: Tower, facts: Facts) -> str:
    """Markdown with the front matter that the Hub reads."""
    sections = [
        f"# {facts.name.split('/')[-1]}",
        facts.origin,
        _what(tower),
        "## Use it",
        *(_snippet(snippet) for snippet in facts.snippets),
    ]
    if facts.training is not None:
        sections += _training(facts.training)
    if facts.note:
        sections.append(facts.note.strip())
    if facts.checked:
        sections += ["## Checked when it was written", _checked(facts)]
    sections += ["## Licence", _license(facts.license), "## Limits", _limits(tower, facts)]
    data = _front_matter(facts)
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(s for s in sections if s) + "\n"))


def _front_matter(facts: Facts) -> ModelCardData:
    settings = facts.training.settings if facts.training else {}
    sources = [str(source) for source in settings.get("data") or []]
    hub = [s.removeprefix("hf:").split(":")[0] for s in sources if s.startswith("hf:") and s.count("/") == 1]
    start = settings.get("init_from")
    told = settings.get("objective") in TOLD
    published = isinstance(start, str) and start.count("/") == 1 and not start.startswith((".", "/", "~"))
    return ModelCardData(
        license=facts.license,
        library_name=LIBRARIES.get(facts.layout, "transformers"),
        pipeline_tag="zero-shot-image-classification" if facts.layout == "text" else "image-feature-extraction",
        base_model=start if published else None,
        datasets=hub or None,
        tags=["dino", "dino-tower", "vision-tower", *(["self-supervised"] if settings and not told else [])],
    )


def _what(tower: Tower) -> str:
    config = tower.model.config
    size = getattr(config, "image_size", None) if config.model_type != "resnet" else None
    native = f", native size {size} x {size} px" if size else ""
    mean, std = (
        [round(float(v), 4) for v in values] for values in (tower.processor.image_mean, tower.processor.image_std)
    )
    return (
        f"| | |\n|---|---|\n| class | `{type(tower.model).__name__}` |\n"
        f"| parameters | {sum(p.numel() for p in tower.model.parameters()) / 1e6:.2f} M |\n"
        f"| patches | {tower.patch} px{native} |\n| features a token | {tower.width} |\n"
        f"| pixels | RGB in 0..1, mean {mean}, std {std} |"
    )


def _snippet(snippet: Snippet) -> str:
    parts = [f"### {snippet.title}", snippet.sentence, f"```python\n{snippet.code}\n```" if snippet.code else ""]
    return "\n\n".join(part for part in parts if part)


def _training(log: RunLog) -> list[str]:
    settings = log.settings
    start: Row = log.starts[0] if log.starts else {}
    data = ", ".join(f"`{source}`" for source in settings.get("data") or ["unknown"])
    images = f" ({start['images']} images)" if isinstance(start.get("images"), int) else ""
    length = f"{log.last_step} of {log.total_steps or log.last_step} steps"
    batch = start.get("global_batch", settings.get("batch_size"))
    hours = log.seconds / 3600
    objective = settings.get("objective", "dino")
    labels = f", with {TOLD[objective]}" if objective in TOLD else ", no labels used" if objective in OBJECTIVES else ""
    world = start.get("world", 1)
    facts = (
        f"| | |\n|---|---|\n| data | {data}{images}{labels} |\n| objective | {OBJECTIVES.get(objective, objective)} |\n"
        f"| preset | `{settings.get('preset', 'unknown')}`, architecture `{settings.get('arch', 'unknown')}` |\n"
        f"| started from | {settings.get('init_from') or 'random weights'} |\n"
        f"| length | {length}, global batch {batch}, {hours:.2f} h on {world} process{'es' if world != 1 else ''} |\n"
        f"| seed | {settings.get('seed')} |\n| software | dino-tower {start.get('version', __version__)} |"
    )
    adapter = ("lora",) if (settings.get("lora") or {}).get("method", "none") != "none" else ()
    recipe = yaml.safe_dump(
        {k: settings[k] for k in (*RECIPE, *adapter, *RECIPE_OF.get(objective, ())) if k in settings}, sort_keys=False
    ).rstrip()
    skipped = f"{len(log.skipped)} pictures could not be read and were replaced." if log.skipped else ""
    return [
        "## Training",
        facts,
        skipped,
        f"The command:\n\n```text\n{command_of(log)}\n```",
        f"<details><summary>Recipe</summary>\n\n```yaml\n{recipe}\n```\n\n</details>",
        "### Curves",
        curves(log),
        _knn(log, trained_on=TOLD.get(objective) == "labels"),
    ]


def command_of(log: RunLog) -> str:
    """The words that started the run, or, for a run that did not note them, every setting as a flag."""
    start: Row = log.starts[0] if log.starts else {}
    world = start.get("world", 1)
    front = "dino-tower pretrain" if world == 1 else f"torchrun --nproc-per-node {world} -m dino_tower.pretrain"
    if isinstance(start.get("command"), str) and start["command"]:
        return f"{front} {start['command']}"
    preset = {"preset": log.settings["preset"]} if "preset" in log.settings else {}
    return " \\\n    ".join([front, *_flags({**preset, **log.settings})])


def _flags(settings: Row, prefix: str = "--") -> list[str]:
    out = []
    for key, value in settings.items():
        flag = prefix + str(key).replace("_", "-")
        if isinstance(value, dict):
            out += _flags(value, f"{flag}.")
        elif value is not None and value != [] and key not in NOT_FLAGS:
            words = value if isinstance(value, list) else [value]
            out.append(shlex.join([flag, *(str(w).lower() if isinstance(w, bool) else str(w) for w in words)]))
    return out


def curves(log: RunLog) -> str:
    """A table of at most ROWS steps: loss, entropy of the teacher, k-NN of the tower and of the untrained network."""
    loss, entropy = dict(points(log.steps, "loss")), dict(points(log.steps, "entropy"))
    knn, untrained = dict(points(log.monitor, _accuracy("knn"))), dict(points(log.monitor, _accuracy("random_knn")))
    steps = sorted({*loss, *knn})
    if not steps:
        return "The run's log has no rows."
    last = len(steps) - 1
    shown = sorted({steps[round(i * last / (ROWS - 1))] for i in range(ROWS)} | set(list(knn)[-1:]))

    def cell(values: dict[int, float], step: int, form: str) -> str:
        return format(values[step], form) if step in values else ""

    rows = [
        f"| {s} | {cell(loss, s, '.3f')} | {cell(entropy, s, '.3f')} | {cell(knn, s, '.1%')} "
        f"| {cell(untrained, s, '.1%')} |"
        for s in shown
    ]
    head = "| step | loss | teacher entropy | k-NN | k-NN, untrained |\n|---|---|---|---|---|"
    return "\n".join([head, *rows])


def _accuracy(key: str) -> Any:
    """The k-NN of a monitor row at its largest k."""

    def read(row: Row) -> float | None:
        found = row.get(key)
        return number(found[max(found, key=int)]) if isinstance(found, dict) and found else None

    return read


def _knn(log: RunLog, trained_on: bool = False) -> str:
    looked = [row for row in log.monitor if isinstance(row.get("knn"), dict) and row["knn"]]
    if not looked:
        return "k-NN was not measured in this run: its data has no labels, or the monitor was off."
    row = looked[-1]
    known = "" if trained_on else "not "
    both = ", ".join(
        f"k = {k}: {value:.1%}"
        + (f" (untrained {row['random_knn'][k]:.1%})" if k in (row.get("random_knn") or {}) else "")
        for k, value in row["knn"].items()
    )
    return f"k-NN of the teacher at step {row['step']}, on the run's own labels, which were {known}trained on: {both}."


def _checked(facts: Facts) -> str:
    lines = [f"- {line}" for line in [*facts.checked, *facts.notes]]
    return (
        "Read back from these files, on the same pictures as the tower it was made of. Largest difference of any \
feature:\n\n"
        + "\n".join(lines)
    )


def _license(name: str | None) -> str:
    if name:
        return f"`{name}`, as chosen by whoever wrote this directory."
    return "None was chosen (`--license`). The licence of the data, and of weights it started from, still holds."


def _limits(tower: Tower, facts: Facts) -> str:
    kind, lines = tower.model.config.model_type, []
    if facts.training is not None:
        lines.append(_knows(facts.training.settings))
    if facts.layout == "text":
        lines.append("Its text tower knows the words of those captions, and spells all others in bytes.")
    else:
        lines.append("It has no text encoder: it does not know words.")
    if kind != "resnet":
        lines.append(f"Pictures must be a multiple of {tower.patch} px: transformers silently drops what is beyond.")
    if kind not in ("resnet", "dino_tower_fused"):
        lines.append('Attention maps need `attn_implementation="eager"`.')
    if kind == "siglip_vision_model":
        lines.append("It has no class token: the vector of a picture is the mean of its tokens.")
    if getattr(tower.model.config, "num_register_tokens", 0):
        lines.append("Its registers are no part of the picture: take the last h x w tokens as the patches.")
    return "\n".join(f"- {line}" for line in lines)


def _knows(settings: Mapping[str, Any]) -> str:
    """Whose pictures it has seen: with its own eyes, or with those of a tower that it started or learned from."""
    gram = (settings.get("gram") or {}).get("tower")
    others = [
        settings.get("init_from"),
        *((settings.get("distil") or {}).get("teachers") or ()),
        gram if gram != "self" else None,
    ]
    named = ", ".join(f"`{one}`" for one in dict.fromkeys(others) if one)
    if named:
        return f"It was trained on the data named above, and carries on what {named} was trained on."
    return "It was trained on the data named above and on nothing else: it knows what those pictures show."
