"""A user's mistake is one line that names the value, the nearest valid one and the choices."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class ConfigError(ValueError):
    """Something the user gave cannot be used. The front door prints it as one line and exits with code 2.

    Of several processes the first one speaks for all, unless only `one_process` met the error.
    """

    one_process = False


def unknown(kind: str, value: object, choices: Iterable[str], where: str = "", listed: str = "") -> ConfigError:
    """The error for a name that does not exist: `where: no KIND 'value'; did you mean 'x'? choices: a, b, c`.

    listed: what stands in place of the choices where they are too many.
    """
    names = sorted(choices)
    near = get_close_matches(str(value), names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    prefix = f"{where}: " if where else ""
    return ConfigError(f"{prefix}no {kind} {value!r}{hint} choices: {listed or ', '.join(names)}")
