"""The page of `dino-tower show TOWER IMAGE...`: one file in which one patch is chosen and all pictures answer."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dino_tower import __version__
from dino_tower.explorer.features import pack
from dino_tower.explorer.pictures import Maps, Sight
from dino_tower.pages import asset, data_uri, escape, json_block, number_text, page
from dino_tower.pictures import COLOURS

LARGEST = 1000  # pixels of a photo's longer side inside the page
VIEWS = {"similarity": "Similarity", "attention": "Attention", "pca": "PCA", "foreground": "Foreground"}
NO_ATTENTION = "This tower gives no attention of a class token or a pooling query, so there is none to show."
SLIDERS = (
    '<svg viewBox="0 0 16 16" aria-hidden="true"><path d="M2 5h5M11 5h3M2 11h2M8 11h6"/>'
    '<circle cx="9" cy="5" r="1.9"/><circle cx="6" cy="11" r="1.9"/></svg>'
)
# The level of grey that stands for the cut between foreground and background, and how many levels the whole range has.
CUT, LEVELS = 128, 254


def explorer_page(
    tower: str,
    patch: int,
    sights: Sequence[Sight],
    views: Sequence[Maps],
    start: tuple[int, int, int],
    facts: Mapping[str, Any] | None = None,
) -> str:
    """The whole page as text.

    tower: its name; patch: pixels. start: the patch chosen at first, as (picture, row, column).
    facts: `size`, a sentence on how large the tower saw the pictures; `skipped`, a line for each picture that could not
    be read; `left_out`, how many were too many.
    """
    facts = facts or {}
    packed = pack([sight.patches for sight in sights])
    heads = 0 if sights[0].attention is None else len(sights[0].attention)
    data = {
        "scales": [float(f"{scale:.7g}") for scale in packed.scales],
        "colours": COLOURS,
        "heads": heads,
        "start": start,
        "pictures": [
            {
                "name": sight.name,
                "h": sight.patches.shape[0],
                "w": sight.patches.shape[1],
                "features": _text(codes),
                "colours": _text(maps.colours),
                "foreground": _text(np.clip(maps.foreground.numpy() * LEVELS + CUT, 0, 255).round().astype(np.uint8)),
                "light": None if maps.light is None else _text(maps.light),
                "outlined": None if maps.outlined is None else _text(np.packbits(maps.outlined.reshape(-1))),
            }
            for sight, maps, codes in zip(sights, views, packed.codes, strict=True)
        ],
    }
    figures = "".join(_figure(number, sight) for number, sight in enumerate(sights))
    width = sights[0].patches.shape[-1]
    loss = (
        f"The page keeps {packed.scales.size} numbers of 8 bits of each patch's {width} features. Over all "
        f"{number_text(packed.pairs)} pairs of patches, its cosines differ from those of the full features by at most "
        f"{packed.largest:.4f}, on average by {packed.mean:.4f}."
    )
    body = (
        f"{_top(tower, patch, width, sights, facts)}{_controls(heads)}"
        f'<main><div class="gallery">{figures}</div>'
        f'<p class="unseen" role="status" id="said"></p>{_notes(heads, sights[0].looks, loss, facts)}</main>'
        f"<footer>dino-tower {escape(__version__)} · this page holds everything it shows and loads nothing</footer>"
        f'<div id="tip" hidden></div><div id="loupe" hidden><i></i></div>{json_block("explorer-data", data)}'
    )
    return page(f"What {tower} sees", body, ["explorer.css"], ["explorer_maps.js", "explorer_draw.js", "explorer.js"])


def _top(tower: str, patch: int, width: int, sights: Sequence[Sight], facts: Mapping[str, Any]) -> str:
    count = f"{len(sights)} picture{'s' if len(sights) > 1 else ''}"
    patches = sum(sight.patches.shape[0] * sight.patches.shape[1] for sight in sights)
    said = [f"<b>{count}</b>", f"{patches:,} patches of {patch} pixels", f"{width} features each"]
    skipped, left_out = facts.get("skipped", []), facts.get("left_out", 0)
    said += [f"{len(skipped)} could not be read"] if skipped else []
    said += [f"{left_out:,} more were left out"] if left_out else []
    return (
        f'<header class="top"><div class="brand">{asset("mark.svg")}dino-tower</div>'
        f"<h1>What <em>{escape(tower)}</em> sees</h1>"
        f'<p class="what">{" · ".join(said)}</p>'
        '<p class="lede">Pick a patch in any picture: all of them light up where the tower sees something like it.</p>'
        "<noscript><p>The maps need JavaScript, which is switched off here. The PNGs beside this page do not.</p>"
        "</noscript></header>"
    )


def _controls(heads: int) -> str:
    """The controls that stay in sight: what to show, how to read it, how strong, how large."""
    views = {key: name for key, name in VIEWS.items() if heads or key != "attention"}
    switch = "".join(
        f'<label><input type="radio" name="view" value="{key}"{" checked" if key == "similarity" else ""}>'
        f"<span>{name}</span></label>"
        for key, name in views.items()
    )
    chips = "".join(
        f'<label><input type="radio" name="head" value="{head}"{"" if head else " checked"}>'
        f"<span>{head or 'mean'}</span></label>"
        for head in range(heads + 1)
    )
    return (
        '<div class="controls">'
        f'<fieldset class="switch" id="views"><legend class="unseen">What to show</legend>{switch}</fieldset>'
        '<div class="legend" id="legend"><div class="ramp"><canvas width="256" height="1" aria-hidden="true"></canvas>'
        '<i id="tick" hidden></i></div><div class="numbers" aria-hidden="true"></div><p class="meaning"></p></div>'
        '<button type="button" class="more" id="more" aria-expanded="false" aria-controls="tools" '
        f'aria-label="more settings">{SLIDERS}</button>'
        '<div class="tools" id="tools">'
        '<button type="button" id="fit" aria-pressed="false" '
        'title="spread the colours over the cosines that occur">Stretch</button>'
        '<label class="strength"><span>Opacity</span><input type="range" id="opacity" min="0" max="100" value="85">'
        "</label>"
        '<div class="steps" role="group" aria-label="size of the pictures">'
        '<button type="button" id="smaller" aria-label="smaller pictures">−</button>'
        '<button type="button" id="larger" aria-label="larger pictures">+</button></div></div>'
        f'<fieldset class="heads" id="heads" hidden><legend>Head</legend>{chips}</fieldset></div>'
    )


def _figure(number: int, sight: Sight) -> str:
    h, w = sight.patches.shape[:2]
    return (
        f'<figure style="--a:{sight.image.width / sight.image.height:.4f}"><div class="sight" tabindex="0" '
        f'role="application" aria-roledescription="picture" data-picture="{number}" '
        f'aria-label="{escape(sight.name)}, {w} by {h} patches; the arrow keys move the chosen patch">'
        f'<img src="{data_uri(sight.image, 82, LARGEST)}" alt="" draggable="false">'
        f'<canvas></canvas><svg viewBox="0 0 {w} {h}" preserveAspectRatio="none" aria-hidden="true">'
        '<path class="halo"/><path class="line"/></svg><i class="best"></i><i class="cross"></i></div>'
        f'<figcaption><span>{escape(sight.name)}</span><span class="value"></span></figcaption></figure>'
    )


def _notes(heads: int, looks: str, loss: str, facts: Mapping[str, Any]) -> str:
    size = facts.get("size", "")
    rows = [
        ("Similarity", "The cosine between the features of the chosen patch and those of every other patch, after the "
         "tower's last norm. A small ring marks the most similar patch of each other picture."),
        ("Attention", f"How much the {looks} looks at each patch in the last block. Outlined is the smallest part that "
         "holds 60 % of it; the number below says how much of the picture that is." if heads else NO_ATTENTION),
        ("PCA", "The three main directions of the features of all pictures together, as red, green and blue: patches "
         "of one colour have like features, in every picture."),
        ("Foreground", "The first of these directions, cut in two where the halves differ most. Which half is the "
         "foreground is a guess: the one that keeps off the borders of the pictures."),
        ("Sizes", str(size)),
        ("Exactness", loss),
        ("Keys", "Arrow keys move the patch (with Shift by five), Tab goes from picture to picture. The address of the "
         "page remembers what is shown."),
    ]  # fmt: skip
    notes = "".join(f"<div><dt>{name}</dt><dd>{escape(text)}</dd></div>" for name, text in rows if text)
    skipped = facts.get("skipped", [])
    lines = "".join(f"<div>{escape(line)}</div>" for line in skipped)
    unread = (
        f'<details class="card"><summary>Left out <span class="soft">{len(skipped)} could not be read</span></summary>'
        f'<div class="rows">{lines}</div></details>'
        if skipped
        else ""
    )
    shown = "" if heads else f'<p class="soft">{NO_ATTENTION}</p>'
    return f'<section class="notes"><h2>How to read it</h2>{shown}<dl>{notes}</dl>{unread}</section>'


def _text(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
