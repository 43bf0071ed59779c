"""A run's tower as a directory that other software loads.

In the native format there is no conversion: the tower was trained in the class it is shipped in. Whatever the format,
what is written is loaded again and compared before it gets its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from transformers import logging as transformers_logging

from dino_tower.checkpoint import DIGESTS, check_digests, reason, write_atomically
from dino_tower.errors import ConfigError, unknown
from dino_tower.export.formats import FORMATS, find_format
from dino_tower.export.hub import check_repository, push
from dino_tower.export.model_card import Facts, check_license, manner_of, model_card, training_of
from dino_tower.export.onnx_graph import onnx_file
from dino_tower.export.same_features import Forward, Gap, compare, forward_of, native_size, refuse_if_different
from dino_tower.export.snippets import Snippet, layout_snippets, native_snippets
from dino_tower.finding import newest
from dino_tower.run.spelling import network_of, run_and_network
from dino_tower.tower import Tower, load_tower

Say = Callable[[str], object]


def export_tower(
    run: str | Path,
    out: str | Path,
    weights: str = "",
    note: str = "",
    *,
    format: str = "native",
    license: str | None = None,
    push_to_hub: str | None = None,
    private: bool = False,
    say: Say = lambda line: None,
) -> float:
    """Write the newest student or teacher of a run to the directory `out`, with its processor and a model card.

    run: the directory, or `RUN@teacher`. weights: "student" or "teacher"; "": as spelled there, else the student.
    note: Markdown put into the card, e.g. measured results. format: a key of `formats.FORMATS`. license: an identifier
    of the Hub. push_to_hub: OWNER/NAME to upload to. say: gets a line for each thing worth knowing.
    Returns the largest difference between the tokens of the run's tower and of what was written, on the same pictures
    (at the native size; at two others too where the format resizes positions in the same way): 0 for the native
    format, and never above the format's tolerance, else nothing is written.
    Raises ConfigError for a run without a whole checkpoint, an `out` that exists, and what the format cannot hold.
    """
    named, who = run_and_network(str(run))
    out = Path(out)
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    refuse_existing(out)
    check_license(license)
    if push_to_hub is not None:
        check_repository(push_to_hub)
    if named is None:
        raise ConfigError(
            f"{run}: not a run directory (it has no config.yaml)" if Path(run).exists() else f"no run directory '{run}'"
        )
    if not (named / "config.yaml").is_file():
        raise ConfigError(f"{named}: not a run directory (it has no config.yaml)")
    if who and weights and who != weights:
        raise ConfigError(f"{run} and --weights {weights}: name one of the two")
    weights = network_of(weights or who, str(run))
    # the one that is checked is the one that is read, however many a training adds meanwhile
    checkpoint = newest(named, f"{named}@{weights}")
    if (checkpoint / DIGESTS).is_file():
        check_digests(checkpoint)
    tower = load_tower(str(checkpoint / weights))
    tower.name = f"{named}@{weights}"
    training = training_of(named)

    def card(gaps: list[Gap], notes: list[str], folder: Path) -> str:
        name = push_to_hub or out.name
        snippets = snippets_for(tower, format, name, folder)
        origin = f"A vision tower pretrained {manner_of(training)} with dino-tower: the {weights} of the run."
        return model_card(
            tower, Facts(name, format, snippets, origin, license, notes, [str(gap) for gap in gaps], note, training)
        )

    difference = write_tower(tower, forward_of(tower), out, format, card, checkpoint, say)
    if push_to_hub is not None:
        say(f"pushed to {push(out, push_to_hub, private)}")
    return difference


def write_tower(
    tower: Tower,
    meant: Forward,
    out: Path,
    format: str,
    card: Callable[[list[Gap], list[str], Path], str],
    checkpoint: Path | None = None,
    say: Say = lambda line: None,
    resized: str | None = None,
    choices: Iterable[str] = FORMATS,
) -> float:
    """Write, load again, compare with `meant`, and only then give the directory its name.

    card: differences, notes and folder to the text of README.md. resized: why sizes other than the native one differ by
    design, empty where they must not; None for what the format says of a native tower. Returns the largest difference
    that had to be small. Raises ConfigError where it is not, or where the disk refuses; `out` is absent then.
    """
    kind = find_format(format, tower, choices)
    check_crop(tower)
    native = native_size(tower.model, tower.processor, tower.patch)
    result: list[float] = []

    def fill(folder: Path) -> None:
        with without_progress_bars():
            notes = kind.write(tower, folder, checkpoint)
            written = kind.open(folder, tower)
        only_native = format == "onnx" and "x" in onnx_file(folder).stem.removeprefix("tower")
        gaps = compare(meant, written, tower.processor, native, tower.patch, only_native)
        by_design = kind.resized(tower) if resized is None else resized
        result.append(refuse_if_different(gaps, kind.tolerance, other_sizes=not by_design))
        for gap in gaps:
            say(f"largest difference {gap}")
        if by_design:
            notes.append(f"at sizes other than {native[0]} x {native[1]} features differ by design: {by_design}")
        for line in notes:
            say(line)
        (folder / "README.md").write_text(card(gaps, notes, folder), encoding="utf-8")

    write_new(out, fill)
    return result[0]


def write_new(out: Path, fill: Callable[[Path], None]) -> None:
    """`write_atomically` for a directory that must not exist; folders made above it go again if it comes to nothing.

    Raises ConfigError for an `out` that exists, and with the disk's reason when it cannot be written.
    """
    refuse_existing(out)
    made = [folder for folder in out.absolute().parents if not folder.exists()]
    try:
        write_atomically(out, fill)
    except BaseException as error:
        for folder in made:  # the deepest first
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        if isinstance(error, OSError | SafetensorError):
            raise ConfigError(f"{out}: cannot be written: {reason(error)}; nothing was kept") from None
        raise


def refuse_existing(out: Path) -> None:
    """Raise ConfigError for a path that is taken, by whatever."""
    if out.exists() or out.is_symlink():
        raise ConfigError(f"{out}: exists already; name a new directory")


def check_crop(tower: Tower) -> None:
    """Raise ConfigError for a processor whose pictures the tower would cut: edges that no patch sees."""
    crop = getattr(tower.processor, "crop_size", None)
    sides = [crop["height"], crop["width"]] if crop else []
    if tower.model.config.model_type != "resnet" and any(side % tower.patch for side in sides):
        raise ConfigError(
            f"{tower.name}: its processor cuts {sides[0]} x {sides[1]} pixels, no multiple of the patch of "
            f"{tower.patch}: the edge would never be seen; correct crop_size in its preprocessor_config.json"
        )


def snippets_for(tower: Tower, format: str, name: str, folder: Path) -> list[Snippet]:
    """What the card shows of using it."""
    if format == "native":
        return native_snippets(tower.model.config, tower.patch, name)
    return layout_snippets(format, tower, name, onnx_file(folder).name if format == "onnx" else "")


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """transformers draws a bar for every model that it reads or writes; ours are read twice."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
