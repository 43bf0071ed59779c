"""The similarity explorer across towers: one patch is chosen, every tower shows what it finds like it."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from dino_tower.eval.report.words import dot
from dino_tower.eval.sights import Sights, folder_of
from dino_tower.pages import data_uri, escape
from dino_tower.pictures import COLOURS

LARGEST = 360


def similarity(
    number: int, output: Path, data: str, ids: list[str], sights: Mapping[str, Sights], names: Mapping[str, str],
    colours: Mapping[str, str],
) -> tuple[str, dict[str, Any]]:  # fmt: skip
    """(HTML, what its script needs) for one data set; number: which of the page's explorers this is."""
    folder = folder_of(output, data)
    uris = []
    for i in range(len(ids)):
        with Image.open(folder / f"{i}.jpg") as picture:
            uris.append(data_uri(picture, 80, LARGEST))
    towers = []
    for name, own in sights.items():
        towers.append(
            {
                "name": names.get(name, name),
                "scales": [float(f"{scale:.7g}") for scale in own.scales],
                "h": own.codes.shape[1],
                "w": own.codes.shape[2],
                "features": [base64.b64encode(codes.tobytes()).decode() for codes in own.codes],
            }
        )
    chips = "".join(
        f'<button type="button" class="pick" data-picture="{i}" aria-pressed="{"false" if i else "true"}" '
        f'title="{escape(one)}"><img src="{uri}" alt="{escape(one)}"></button>'
        for i, (one, uri) in enumerate(zip(ids, uris, strict=True))
    )
    views = "".join(
        f'<figure><div class="sight" tabindex="0" role="application" aria-roledescription="picture" '
        f'data-tower="{i}" aria-label="{escape(names.get(name, name))}; the arrow keys move the chosen patch">'
        f'<img src="{uris[0]}" alt="" draggable="false"><canvas></canvas><i class="cross"></i></div>'
        f"<figcaption>{dot(colours.get(name, 'var(--faint)'), name.startswith('random:'))}"
        f"{escape(names.get(name, name))}</figcaption></figure>"
        for i, name in enumerate(sights)
    )
    html = (
        f'<div class="similarity card" data-explorer="{number}"><div class="picks" role="group" '
        f'aria-label="pictures of {escape(data)}">{chips}</div><div class="views">{views}</div></div>'
    )
    return html, {"towers": towers, "colours": COLOURS["viridis"]}
