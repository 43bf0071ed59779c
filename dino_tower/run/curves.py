"""The curves of a run: what to draw, in which order, and what a healthy one looks like."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

from dino_tower.curves import Level, Mark, Point, Series, curve, smoothed
from dino_tower.pages import number_text
from dino_tower.run.log import Row, RunLog, number, points, setting


class Drawn(NamedTuple):
    """How one key of the log's step rows becomes a curve."""

    title: str
    hint: str
    smooth: bool = False
    unit: str = ""
    from_zero: bool = False


HEALTH = {
    "entropy": Drawn("Teacher entropy", "0 means that one prototype takes everything, ln K that all look alike to it; "
                     "a healthy teacher stays well between.", smooth=True, from_zero=True),
    "kl": Drawn("KL, teacher to student", "How far the student is from its teacher; at 0 there is nothing "
                "left to learn from.", smooth=True, from_zero=True),
    "prototypes_used": Drawn("Prototypes in use", "Effective number: the exponential of the entropy of the mean "
                             "target.", from_zero=True),
    "centre_norm": Drawn("Centre norm", "The centre holds back prototypes that everyone chooses; it settles.",
                         from_zero=True),
    "target_spread": Drawn("Spread of the targets", "How unlike the pictures are to the teacher, 0 to 1; at 0 there is "
                           "nothing left to predict.", smooth=True, from_zero=True),
    "target_rank": Drawn("Rank of the targets", "In how many directions they are unlike; at 1 they tell one thing.",
                         smooth=True, from_zero=True),
    "pixels_explained": Drawn("Pixels explained", "Share of the hidden pixels' variance that the decoder paints; 0 is "
                              "one flat colour.", smooth=True),
    "clip_accuracy": Drawn("Captions found", "Share of the pictures whose own caption is the nearest of a batch's.",
                           smooth=True, from_zero=True),
    "clip_spread": Drawn("Spread of the pictures", "How unlike their embeddings are, 0 to 1; at 0 all are the same.",
                         smooth=True, from_zero=True),
    "clip_scale": Drawn("Scale of the cosines", "The learned temperature turned over; CLIP's goes up to 100."),
    "simclr_accuracy": Drawn("Other views found", "Share of the views whose nearest is the other one of their picture.",
                             smooth=True, from_zero=True),
    "simclr_spread": Drawn("Spread of the views", "How unlike their embeddings are, 0 to 1; at 0 all are the same.",
                           smooth=True, from_zero=True),
    "supervised_accuracy": Drawn("Labels told", "Of the pictures that are trained on.", smooth=True, from_zero=True),
    "supervised_information": Drawn("Information in an answer", "Nats that it tells of its picture; at 0 all pictures "
                                    "get the same one.", smooth=True, from_zero=True),
    "grad_norm": Drawn("Gradient norm", "Before clipping.", smooth=True, from_zero=True),
}  # fmt: skip
PROTOTYPES = ("Cross-entropy between the teacher's and the student's prototypes. It may well rise for a while: the "
              "target moves.")  # fmt: skip
LOSSES = {  # what it is, for objectives without prototypes
    "mae": "Squared error of the hidden patches' pixels; 1 is what one flat colour for each patch gives.",
    "clip": "Of a picture and its caption among those of the batch: chance gives the log of its size. For SigLIP's "
    "loss, of the pairs one by one.",
    "simclr": "Of two views among those of the batch; the logarithm of their number is what chance gives.",
    "supervised": "Cross-entropy with smoothed labels; the logarithm of the number of classes is what chance gives.",
    "distil": "Squared error to the features of the frozen towers, each brought to mean 0 and one scale; 1 is what "
    "predicting the mean gives.",
    "distil_head": "Cross-entropy between the prototypes of the frozen run's head, which stay as they are, and the "
    "student's.",
    "ijepa": "Between predicted features and the teacher's. It may well rise for a while: the target moves.",
}
SCHEDULES = {
    "lr": Drawn("Learning rate", "", from_zero=True),
    "wd": Drawn("Weight decay", "", from_zero=True),
    "momentum": Drawn("Teacher momentum", ""),
    "teacher_temp": Drawn("Teacher temperature", "", from_zero=True),
}
SPEED = {
    "images_per_s": Drawn("Images per second", "All processes together.", smooth=True, from_zero=True),
    "data_wait": Drawn("Waiting for data", "Share of the time; much above a few percent asks for more workers.",
                       smooth=True, unit="%", from_zero=True),
}  # fmt: skip


def curve_sections(log: RunLog) -> list[str]:
    """The page's sections of curves as HTML, empty ones left out."""
    marks = _marks(log)
    end = log.last_step
    loss = curve("Loss", [Series("loss", points(log.steps, "loss"), smooth=True)], end, marks=marks,
                 hint=LOSSES.get(setting(log.settings, "objective", str), PROTOTYPES))  # fmt: skip
    rank = curve("RankMe", [Series("RankMe", points(log.monitor, "rankme"))], end, marks=marks, from_zero=True,
                 hint="Dimensions that the features effectively use.")  # fmt: skip
    knn = _knn_curve(log, end, marks)
    health = [_from_steps(log, key, drawn, end, marks) for key, drawn in HEALTH.items()]
    first, rest = ([knn, loss], [*health[:2], rank, *health[2:]]) if knn else ([loss, rank], health)
    schedules = [_from_steps(log, key, drawn, end, []) for key, drawn in SCHEDULES.items()]
    speed = [_from_steps(log, key, drawn, end, []) for key, drawn in SPEED.items()]
    return [
        _section("learning", "Is it learning?", first, "halves"),
        _section("health", "Is it healthy?", rest, ""),
        _section("schedules", "Schedules", schedules, "quarters"),
        _section("speed", "Speed", speed, "halves"),
    ]


def knn_points(log: RunLog) -> dict[int, list[Point]]:
    """{k: (step, share of images classified rightly)}, k ascending; empty if the run has no labels."""
    ks = sorted({int(k) for row in log.monitor if isinstance(row.get("knn"), dict) for k in row["knn"]})
    found = {k: points(log.monitor, partial(_knn_of, k)) for k in ks}
    return {k: line for k, line in found.items() if line}


def random_knn(log: RunLog) -> dict[int, float]:
    """{k: share} of the untrained tower, from the latest row that has it. One number stands for every k."""
    for row in reversed(log.monitor):
        if row.get("random_knn") is not None:
            floor = {k: number(_of_k(row["random_knn"], k)) for k in knn_points(log)}
            return {k: value for k, value in floor.items() if value is not None}
    return {}


def smooth_loss(log: RunLog) -> list[Point]:
    """The loss as the page draws it."""
    return smoothed(points(log.steps, "loss"))


def _knn_of(k: int, row: Row) -> object:
    return _of_k(row.get("knn"), k)


def _of_k(found: object, k: int) -> object:
    return found.get(str(k)) if isinstance(found, dict) else found


def _knn_curve(log: RunLog, end: int, marks: list[Mark]) -> str:
    series = [Series(f"k = {k}", line) for k, line in knn_points(log).items()]
    student = points(log.monitor, lambda row: _of_k(row.get("student_knn"), 10))  # of a run that started from weights
    series += [Series("k = 10, student", student)] if student else []
    floor = random_knn(log)
    # One floor line: those of several k lie close together, and the highest is the one to beat.
    low, high = (number_text(pick(floor.values(), default=0.0), "%") for pick in (min, max))
    text = high if low == high else f"{low.removesuffix(' %')} to {high}"
    levels = [Level("random init", max(floor.values()), text)] if floor else []
    hint = "Share of images whose nearest neighbours, by the teacher's features, are of the same kind."
    if setting(log.settings, "objective", str) == "supervised" or setting(log.settings, "terms.supervised", float):
        hint += " Labels were trained on, those of these images too."
    else:
        hint += " No label was trained on."
    return curve("k-NN accuracy", series, end, unit="%", levels=levels, marks=marks, hint=hint)


def _from_steps(log: RunLog, key: str, drawn: Drawn, end: int, marks: list[Mark]) -> str:
    levels = []
    prototypes = setting(log.settings, "head.prototypes", int)
    if key == "entropy" and prototypes and prototypes > 1:
        levels = [Level("ln K", math.log(prototypes))]
    line = points(log.steps, key)
    unit = drawn.unit
    if key == "prototypes_used" and line and max(value for _, value in line) <= 1:
        unit = "%"
    return curve(drawn.title, [Series(drawn.title, line, drawn.smooth)], end, drawn.hint, unit, levels, marks,
                 drawn.from_zero)  # fmt: skip


def _marks(log: RunLog) -> list[Mark]:
    resumed: list[Row] = [start for start in log.starts[1:] if 0 < start.get("step", 0) <= log.last_step]
    marks = [Mark(row["step"], "resume", f"resumed at step {row['step']:,}") for row in resumed]
    marks += [Mark(row["step"], "resume", f"went back to step {row['step']:,}") for row in log.rollbacks]
    first: dict[object, Row] = {}
    for row in log.alarms:
        first.setdefault(row.get("name"), row)
    return marks + [Mark(row["step"], "alarm", f"alarm: {name}") for name, row in first.items()]


def _section(identity: str, title: str, curves: list[str], layout: str) -> str:
    drawn = "".join(curves)
    if not drawn:
        return ""
    return (
        f'<section id="{identity}"><div class="lead"><h2>{title}</h2></div>'
        f'<div class="curves {layout}">{drawn}</div></section>'
    )
