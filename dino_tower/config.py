"""Settings: frozen dataclasses, a YAML file under them, the command line on top.

Both layers pass through one check, so that a wrong key or value is the same one line wherever it stands:
where it was found, the dotted key, the nearest valid key and the choices.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from dino_tower.errors import ConfigError, unknown

T = TypeVar("T")
Tree = dict[str, Any]


def read_yaml(path: Path) -> Tree:
    """The mapping in a YAML file; ConfigError with file and line if it is not one."""
    try:
        tree = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"no file {str(path)!r}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: not a mapping of settings")
    return tree


def to_tree(config: Any) -> Tree:
    """A dataclass as plain dictionaries, lists and scalars, ready for YAML."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_tree(value)
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def to_yaml(config: Any) -> str:
    """The resolved settings as a YAML file that `from_tree` reads back to an equal object."""
    return yaml.safe_dump(to_tree(config), sort_keys=False, width=120)


def from_tree(base: T, tree: Mapping[str, Any], where: str) -> T:
    """`base` with the settings of `tree` (nested mappings) in place of its own. `where` names the file in errors."""
    return _apply(base, tree, where, "")


def _apply(base: Any, tree: Mapping[str, Any], where: str, prefix: str) -> Any:
    kinds = field_types(type(base))
    changes = {}
    for key, value in tree.items():
        name = str(key).replace("-", "_")
        if name not in kinds:
            raise unknown("setting", f"{prefix}{key}", [f"{prefix}{k}" for k in kinds], where)
        if dataclasses.is_dataclass(kinds[name]):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}: {prefix}{key} is a section of settings, not {value!r}")
            changes[name] = _apply(getattr(base, name), value, where, f"{prefix}{name}.")
        else:
            changes[name] = parse_value(kinds[name], value, f"{where}: {prefix}{key}")
    try:
        return dataclasses.replace(base, **changes)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def field_types(schema: Any) -> dict[str, Any]:
    """Name -> type of each setting of a dataclass."""
    hints = get_type_hints(schema)
    return {f.name: hints[f.name] for f in dataclasses.fields(schema)}


def parse_value(kind: Any, value: Any, where: str) -> Any:
    """`value` (a word of the command line or a YAML scalar or list) as `kind`; ConfigError naming `where` if it is not.

    Kinds: int, float, bool, str, Literal, optional ones, and tuples of these, fixed or open.
    """
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None or value in ("none", "None", ""):
            return None
        inner = [a for a in args if a is not type(None)]
        return parse_value(inner[0], value, where)
    if origin is Literal:
        if value is False and "no" in args:  # YAML reads a bare no as False
            return "no"
        if value not in args:
            raise unknown("choice", value, map(str, args), where)
        return value
    if origin is tuple:
        items = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        kinds = [args[0]] * len(items) if args[-1] is Ellipsis else list(args)
        if len(items) != len(kinds):
            raise ConfigError(f"{where}: {len(kinds)} values are needed, not {len(items)}: {value!r}")
        return tuple(parse_value(k, v, where) for k, v in zip(kinds, items, strict=True))
    if isinstance(value, list):
        if len(value) != 1:
            raise ConfigError(f"{where}: one value is needed, not {len(value)}: {' '.join(map(str, value))!r}")
        value = value[0]
    return _scalar(kind, value, where)


def _scalar(kind: type, value: Any, where: str) -> Any:
    if kind is bool:
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        word = str(value).lower()
        if word not in words:
            raise ConfigError(f"{where}: {value!r} is neither true nor false")
        return words[word]
    if kind is str:
        return str(value)
    number = None
    if not isinstance(value, bool):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = None
    if number is None or number != number or number in (float("inf"), float("-inf")):
        raise ConfigError(f"{where}: {value!r} is not a number")
    if kind is int:
        if number != int(number):
            raise ConfigError(f"{where}: {value!r} is not a whole number")
        return int(number)
    return number


def differences(a: object, b: object, prefix: str = "") -> list[tuple[str, object, object]]:
    """(dotted key, value in a, value in b) of every setting that differs."""
    found: list[tuple[str, object, object]] = []
    for name, old in vars(a).items():
        new = getattr(b, name)
        if hasattr(old, "__dataclass_fields__"):
            found += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            found.append((f"{prefix}{name}", old, new))
    return found


def words_to_tree(schema: type, argv: Sequence[str], where: str = "command line") -> Tree:
    """`--section.key value ...` (or `--key=value`; a bare flag means true; a repeated one collects) as a nested tree.

    Values stay words. Raises ConfigError for a word that belongs to no flag and for an unknown key.
    """
    tree: Tree = {}
    key = ""
    words: list[str] = []

    def finish() -> None:
        if not key:
            return
        kind = _kind_of(schema, key, where)
        *sections, name = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        if _is_flag(kind) and not words:
            node[name] = ["true"]
        elif words:
            node[name] = node.get(name, []) + words
        else:
            raise ConfigError(f"{where}: --{key.replace('_', '-')} needs a value")

    for word in argv:
        if word.startswith("--") and len(word) > 2:
            finish()
            key, _, value = word[2:].partition("=")
            key = key.replace("-", "_")
            words = [value] if "=" in word else []
        elif not key:
            raise ConfigError(f"{where}: {word!r} belongs to no flag; settings are given as --key value")
        else:
            words.append(word)
    finish()
    return _unwrap(schema, tree)


def _unwrap(schema: type, tree: Tree) -> Tree:
    """A setting given one word holds the word itself, so that errors quote it as it was typed."""
    kinds = field_types(schema)
    out: Tree = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            out[name] = _unwrap(kinds[name], value)
        else:
            out[name] = value[0] if len(value) == 1 else value
    return out


def _is_flag(kind: Any) -> bool:
    return kind is bool or (get_origin(kind) is Literal and "true" in get_args(kind))


def _kind_of(schema: Any, key: str, where: str) -> Any:
    node, prefix = schema, ""
    for name in key.split("."):
        kinds = field_types(node) if dataclasses.is_dataclass(node) else {}
        if name not in kinds:
            choices = kinds or field_types(schema)
            flags = [f"--{prefix}{k}".replace("_", "-") for k in choices]
            raise unknown("setting", f"--{key}".replace("_", "-"), flags, where)
        node, prefix = kinds[name], f"{prefix}{name}."
    if dataclasses.is_dataclass(node):
        keys = ", ".join(f"--{key}.{k}" for k in field_types(node))
        raise ConfigError(f"{where}: --{key} is a section; its settings: {keys}")
    return node


def print_help(schema: type, program: str, description: str) -> None:
    """All settings with their meaning, drawn by tyro from the dataclass docstrings."""
    import tyro

    tyro.cli(schema, prog=program, description=description, args=["--help"], config=(tyro.conf.FlagConversionOff,))
