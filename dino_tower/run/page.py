"""`dino-tower show RUN`: a pretraining run as one HTML file: is it healthy, what has it learned, what does it see?"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from PIL import Image

from dino_tower.pages import asset, data_uri, duration_text, escape, json_block, number_text, page, write_page
from dino_tower.run.curves import curve_sections, knn_points, random_knn, smooth_loss
from dino_tower.run.log import RunLog, number, points, read_run, run_pictures, setting

MOST_MOMENTS = 24  # steps whose pictures go into the page: more would make it heavy to send around
MOST_IMAGES = 8
PICTURE_NAMES = {"attention": "Attention", "heads": "Attention by head", "pca": "Features"}
ICONS = {
    "good": '<path d="M3 8.5l3.2 3.2L13 4.8"/>',
    "bad": '<path d="M8 2.5v7M8 13.2v.1"/>',
    "wait": '<path d="M8 4v4.4l2.6 1.8"/><circle cx="8" cy="8" r="6.4" stroke-width="1.8"/>',
}


def write_run_page(run_dir: str | Path, output: str | Path | None = None) -> Path:
    """Draw a run directory, finished or not, as one self-contained page and return its path.

    output: a file, or a directory to put report.html into; by default RUN/report.html.
    Raises ConfigError if run_dir is not a run, or the page cannot be written there.
    """
    run = Path(run_dir)
    log = read_run(run)
    target = run / "report.html" if output is None else Path(output)
    target = target / "report.html" if target.is_dir() else target
    name = run.resolve().name
    sections = [_alarms(log), _pictures(run, log), *curve_sections(log), _more(log)]
    body = f"{_top(name, log)}<main>{''.join(sections)}</main>{_footer(log)}"
    text = page(f"{name} · dino-tower", body, ["curves.css", "timeline.css"], ["curves.js", "timeline.js"])
    return write_page(target, text)


def verdict(log: RunLog) -> tuple[str, str]:
    """("good" | "wait" | "bad", the verdict in a few words)."""
    knn, floor = knn_points(log), random_knn(log)
    if log.alarms:
        return "bad", f"Alarm: {_words(log.alarms[-1].get('name', 'unnamed'))}"
    if not log.steps:
        return "wait", "Nothing logged yet"
    for k, found in list(knn.items())[:1]:  # the k that stands at the top of the page
        if k in floor and found[-1][1] <= floor[k]:
            return "wait", "Not above random init yet" if not log.ended else "Not above random init"
    return "good", "Healthy" if log.ended else "Healthy so far"


def _top(name: str, log: RunLog) -> str:
    kind, text = verdict(log)
    return (
        f'<header class="top"><div class="brand">{asset("mark.svg")}dino-tower</div>'
        f'<div class="title"><h1>{escape(name)}</h1><span class="verdict {kind}">'
        f'<svg viewBox="0 0 16 16" aria-hidden="true">{ICONS[kind]}</svg>{escape(text)}</span></div>'
        f'<p class="what">{_what(log)}</p><div class="figures">{"".join(_figures(log))}</div></header>'
    )


def _what(log: RunLog) -> str:
    data = log.settings.get("data")
    data = ", ".join(map(str, data)) if isinstance(data, list) else data
    parts = []
    for label, value in (("", setting(log.settings, "arch", str)), ("on ", data)):
        if value:
            parts.append(f"{label}<b>{escape(value)}</b>")
    said = [" ".join(parts)] if parts else []
    preset = setting(log.settings, "preset", str)
    said += [f"preset <b>{escape(preset)}</b>"] if preset else []
    first = log.starts[0] if log.starts else {}
    world = max((w for start in log.starts if isinstance(w := start.get("world"), int)), default=1)
    said += [f"{world} processes"] if world > 1 else []
    if (began := number(first.get("time"))) is not None:
        said.append(f"started {_date(began)}")
    if not log.ended and log.steps and (last := number(log.steps[-1].get("time"))) is not None:
        said.append(f"last heard of {_date(last)}")
    if len(log.starts) > 1:
        said.append(f"resumed {'once' if len(log.starts) == 2 else f'{len(log.starts) - 1} times'}")
    if log.rollbacks:
        said.append(f"went back to a checkpoint {len(log.rollbacks)} times" if len(log.rollbacks) > 1 else
                    f"went back to step {log.rollbacks[0]['step']:,} once")  # fmt: skip
    if log.bad_steps:
        said.append(f"{log.bad_steps:,} steps without a finite loss")
    return " · ".join(said) or "No settings were found in this run."


def _figures(log: RunLog) -> list[str]:
    """The few numbers people ask for first."""
    tiles = []
    knn, floor = knn_points(log), random_knn(log)
    if knn:
        k, found = next(iter(knn.items()))
        note = f"random init {number_text(floor[k], '%')}" if k in floor else "each image by the others"
        tiles.append(_figure(f"k-NN accuracy, k = {k}", number_text(found[-1][1], "%"), note))
    if loss := smooth_loss(log):
        tiles.append(_figure("Loss", number_text(loss[-1][1]), f"from {number_text(loss[0][1])}"))
    done, total = log.last_step, log.total_steps
    share = min(1.0, done / total) if total else None
    bar = "" if share is None else f'<div class="bar"><i style="width:{100 * share:.1f}%"></i></div>'
    state = "finished" if log.ended else ("not finished" if share is None else f"{100 * share:.0f} % done")
    of = f" of {total:,}" if total and total != done else ""
    tiles.append(_figure(f"Steps{of}", f"{done:,}", state, bar))
    if log.seconds:
        epochs = points(log.steps, "epoch")
        tiles.append(_figure("Time", duration_text(log.seconds), f"{epochs[-1][1]:.3g} epochs" if epochs else ""))
    if speed := points(log.steps, "images_per_s"):
        waits = sorted(value for _, value in points(log.steps, "data_wait"))
        note = f"{100 * waits[len(waits) // 2]:.0f} % of it waiting for data" if waits else ""
        median = sorted(value for _, value in speed)[len(speed) // 2]
        tiles.append(_figure("Images per second", number_text(median), note))
    return tiles


def _figure(name: str, value: str, note: str, below: str = "") -> str:
    return (
        f'<div class="card figure"><span class="name">{escape(name)}</span>'
        f'<span class="value">{escape(value)}</span><span class="note">{escape(note)}</span>{below}</div>'
    )


def _alarms(log: RunLog) -> str:
    """One box for each kind of alarm: what it is and what to change, from its latest row."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for row in log.alarms:
        by_name.setdefault(str(row.get("name", "unnamed")), []).append(row)
    boxes = []
    for name, rows in by_name.items():
        since = f"at step {rows[0]['step']:,}" if len(rows) == 1 else (
            f"{len(rows)} times, from step {rows[0]['step']:,} to {rows[-1]['step']:,}"
        )  # fmt: skip
        boxes.append(
            f'<div class="card alarm" role="alert"><span class="name">{escape(_words(name))}</span>'
            f'<span>{escape(_sentence(rows[-1].get("message", "")))}</span><span class="when">{since}</span></div>'
        )
    return f'<section id="alarms"><div class="lead"><h2>Alarms</h2></div>{"".join(boxes)}</section>' if boxes else ""


def _pictures(run: Path, log: RunLog) -> str:
    inputs, by_step = run_pictures(run)
    moments = list(by_step)
    if len(moments) > MOST_MOMENTS:
        last = len(moments) - 1
        moments = [moments[round(i * last / (MOST_MOMENTS - 1))] for i in range(MOST_MOMENTS)]
    found: dict[str, list[str | None]] = {}
    for at, step in enumerate(moments):
        for name, files in by_step[step].items():
            for image, path in files.items():
                if image < MOST_IMAGES and (uri := _embedded(path)):
                    found.setdefault(f"{name}-{image}", [None] * len(moments))[at] = uri
    if not found:
        return ""
    names = sorted({key.rsplit("-", 1)[0] for key in found}, key=lambda n: (n not in PICTURE_NAMES, n))
    sights = []
    for image in sorted({int(key.rsplit("-", 1)[1]) for key in found}):
        tiles = [_tile(uri, "Image", "") for uri in [_embedded(inputs[image])] if uri] if image in inputs else []
        for name in names:
            if uris := found.get(f"{name}-{image}"):
                shown = next(uri for uri in reversed(uris) if uri)
                tiles.append(_tile(shown, PICTURE_NAMES.get(name, _words(name)), f"{name}-{image}"))
        sights.append(
            f'<button type="button" class="sight" aria-pressed="false" aria-label="image {image + 1}: enlarge" '
            f'style="--n:{len(tiles)}">{"".join(tiles)}</button>'
        )
    data = {"steps": moments, "notes": [_note_at(log, step) for step in moments], "pictures": found}
    scrub = (
        '<div class="scrub"><button type="button" aria-label="play">'
        '<svg class="play" viewBox="0 0 16 16"><path d="M4 2l10 6-10 6z"/></svg>'
        '<svg class="pause" viewBox="0 0 16 16"><path d="M3 2h4v12H3zM9 2h4v12H9z"/></svg></button>'
        '<div class="track"><div class="film"></div>'
        f'<input type="range" min="0" max="{len(moments) - 1}" value="{len(moments) - 1}" '
        f'aria-label="training step"></div><output></output></div>'
    )
    return (
        '<section id="pictures"><div class="lead"><h2>What it sees</h2><p>The same images through training. '
        "Light shows where the tower looks, outlined is the smallest part that holds 60 % of its attention; "
        "patches of one colour have like features.</p></div>"
        f'<div class="card timeline{" still" if len(moments) == 1 else ""}">{scrub}'
        f'<div class="sights">{"".join(sights)}</div></div>{json_block("timeline-data", data)}</section>'
    )


def _tile(uri: str, name: str, key: str) -> str:
    changing = f' data-picture="{escape(key)}"' if key else ""
    return f'<span><img src="{uri}" alt="{escape(name)}"{changing}>{escape(name)}</span>'


def _embedded(path: Path) -> str | None:
    """The picture as a data URI; None for one that a dying run left half-written."""
    try:
        with Image.open(path) as picture:
            return data_uri(picture)
    except (OSError, SyntaxError, ValueError):  # what PIL raises for files cut short
        return None


def _note_at(log: RunLog, step: int) -> str:
    """k-NN at the last look up to this step, if there was one."""
    for k, found in knn_points(log).items():
        before = [value for at, value in found if at <= step]
        return f"k-NN {number_text(before[-1], '%')} (k = {k})" if before else ""
    return ""


def _more(log: RunLog) -> str:
    groups = {"run": {key: value for key, value in log.settings.items() if not isinstance(value, dict)}}
    groups |= {key: value for key, value in log.settings.items() if isinstance(value, dict)}
    blocks = "".join(
        f"<section><h3>{escape(_words(group))}</h3>"
        + "".join(f"<div><span>{escape(k)}</span><code>{escape(_value(v))}</code></div>" for k, v in values.items())
        + "</section>"
        for group, values in groups.items()
        if values
    )
    parts = []
    if blocks:
        parts.append(
            '<details class="card" id="settings"><summary>Settings <span class="soft">everything this run was '
            f'resolved to</span></summary><div class="settings">{blocks}</div></details>'
        )
    if log.skipped:
        rows = "".join(
            f"<div><code>{escape(row.get('id', '?'))}</code><span>{escape(row.get('reason', ''))}</span></div>"
            for row in log.skipped[:50]
        )
        more = f"<div>and {len(log.skipped) - 50:,} more in skipped.jsonl</div>" if len(log.skipped) > 50 else ""
        count = f"{len(log.skipped):,} image{'s' if len(log.skipped) > 1 else ''} could not be read"
        parts.append(
            f'<details class="card" id="skipped"><summary>Left out <span class="soft">{count}</span></summary>'
            f'<div class="rows">{rows}{more}</div></details>'
        )
    return f"<section>{''.join(parts)}</section>" if parts else ""


def _footer(log: RunLog) -> str:
    version = next((f" {start['version']}" for start in reversed(log.starts) if start.get("version")), "")
    broken = f" · {log.broken_lines} unreadable line(s) of the log left out" if log.broken_lines else ""
    return (
        f"<footer>dino-tower{escape(version)}{broken} · this page holds everything it shows and loads nothing</footer>"
    )


def _date(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%-d %B %Y, %H:%M} UTC"


def _sentence(text: object) -> str:
    whole = str(text).strip()
    return whole[:1].upper() + whole[1:] + ("" if whole.endswith((".", "!", "?")) or not whole else ".")


def _words(name: object) -> str:
    text = str(name).replace("-", " ").replace("_", " ")
    return text[:1].upper() + text[1:]


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_value, value)) or "none"
    return {"None": "none", "True": "yes", "False": "no"}.get(str(value), str(value))
