"""How large a picture is shown to a tower: equal tokens or equal pixels, never mixed in one column.

A patch of 14 sees 1.3 times the tokens of a patch of 16 in the same picture; at the same number of tokens it sees 0.77
times the pixels. Either can decide a dense task, so that each column fixes one of the two (nothing is
padded: pictures are resized to a multiple of the patch).
"""

from __future__ import annotations

from typing import NamedTuple

from dino_tower.errors import ConfigError
from dino_tower.eval.task import Geometry
from dino_tower.tower import Size

OWN, TOKENS, PIXELS = "own", "tokens", "pixels"
COLUMNS = (TOKENS, PIXELS)
COARSE = 12  # patches along a side at most, where the grid is a coarse one
REFERENCE_PATCH = 16  # of pictures in their own shape: as many tokens as a patch of 16 pixels would make


class Frame(NamedTuple):
    """The size at which one column shows pictures: side of the square grid, or of the square in pixels."""

    geometry: Geometry
    column: str
    tokens: int = 32
    pixels: int = 512

    def size(self, patch: int, native: tuple[int, int] | None, picture: tuple[int, int] | None = None) -> Size:
        """(height, width) for a tower of this patch, multiples of it; None for what its processor does.

        native: the only size that the tower takes, or None; picture: (width, height), needed for "native" geometry.
        Raises ConfigError for a tower of one size that another one is asked of.
        """
        if self.geometry == "own":
            return None
        height, width = self._wanted(patch, picture)
        if native is not None and native != (height, width):
            raise ConfigError(f"takes {native[0]} x {native[1]} pixels only; this column shows {height} x {width}")
        return height, width

    def _wanted(self, patch: int, picture: tuple[int, int] | None) -> tuple[int, int]:
        if self.geometry == "square":
            side = self.tokens if self.column == TOKENS else max(1, round(self.pixels / patch))
            return side * patch, side * patch
        if picture is None:
            raise ConfigError("pictures in their own shape: their size is needed")
        width, height = picture
        unit = REFERENCE_PATCH if self.column == TOKENS else patch
        return max(1, round(height / unit)) * patch, max(1, round(width / unit)) * patch

    def sees(self, patch: int) -> str:
        """What a tower of this patch is shown, in words: the same in two columns where they agree for it."""
        if self.geometry == "own":
            return OWN
        if self.geometry == "native":
            return f"native, a patch for {REFERENCE_PATCH if self.column == TOKENS else patch} pixels"
        return "{} x {}".format(*self._wanted(patch, None))

    def key(self) -> str:
        """Of file names and tables."""
        if self.geometry == "own":
            return OWN
        if self.geometry == "native":
            return f"native-{self.column}"
        return f"{self.column}-{self.tokens if self.column == TOKENS else self.pixels}"
