"""A wrong setting is one line that says where, what, what is nearest, and what there is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest

from dino_tower.config import from_tree, read_yaml, to_tree, to_yaml, words_to_tree
from dino_tower.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    mode: Literal["fast", "exact"] = "fast"
    on: bool = False


@dataclass(frozen=True)
class Outer:
    name: str = ""
    count: int = 1
    limit: int | None = None
    data: tuple[str, ...] = ()
    scale: tuple[float, float] = (0.0, 1.0)
    inner: Inner = field(default_factory=Inner)


def parse(*words: str) -> Outer:
    return from_tree(Outer(), words_to_tree(Outer, words), "command line")


def test_words_become_settings() -> None:
    got = parse(
        *"--data a b --data c --count 3 --scale 0.2 0.5 --inner.rate=5e-4".split(),
        *"--inner.on --limit none --inner.mode exact".split(),
    )
    assert got == Outer("", 3, None, ("a", "b", "c"), (0.2, 0.5), Inner(5e-4, "exact", True))


def test_yaml_round_trip(tmp_path) -> None:
    path = tmp_path / "x.yaml"
    config = Outer("n", 2, 7, ("a",), (0.1, 0.9), Inner(1e-6, "exact", True))
    path.write_text(to_yaml(config))
    assert from_tree(Outer(), read_yaml(path), "x.yaml") == config
    assert to_tree(config)["inner"] == {"rate": 1e-6, "mode": "exact", "on": True}


def test_a_number_written_as_5e_4_is_a_number() -> None:
    """YAML 1.1 reads 5e-4 as a string; a learning rate typed so must not become one."""
    assert from_tree(Outer(), {"inner": {"rate": "5e-4"}}, "x.yaml").inner.rate == 5e-4


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--cuont 3", "command line: no setting '--cuont'; did you mean '--count'? choices: --count, --data"),
        ("--inner.rat 3", "no setting '--inner.rat'; did you mean '--inner.rate'? choices: --inner.mode, --inner.on"),
        ("--iner.rate 3", "no setting '--iner.rate'"),
        ("--inner 3", "--inner is a section; its settings: --inner.rate, --inner.mode, --inner.on"),
        ("--count x", "command line: count: 'x' is not a number"),
        ("--count 1.5", "count: '1.5' is not a whole number"),
        ("--count nan", "count: 'nan' is not a number"),
        ("--count 1 --count 2", "count: one value is needed, not 2"),
        ("--count", "--count needs a value"),
        ("--scale 0.5", "scale: 2 values are needed, not 1"),
        ("--inner.mode slow", "inner.mode: no choice 'slow'"),
        ("--inner.on maybe", "inner.on: 'maybe' is neither true nor false"),
        ("stray", "'stray' belongs to no flag"),
    ],
)
def test_wrong_words(words: str, line: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(*words.split())
    assert line in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("counts: 3", "x.yaml: no setting 'counts'; did you mean 'count'?"),
        ("inner: {rates: 1}", "no setting 'inner.rates'; did you mean 'inner.rate'?"),
        ("inner: 3", "inner is a section of settings, not 3"),
        ("count: [1, 2]", "count: one value is needed"),
        ("- 1", "not a mapping of settings"),
        ("a: [", "not YAML"),
    ],
)
def test_wrong_files(tmp_path, text: str, line: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        from_tree(Outer(), read_yaml(path), "x.yaml")
    assert line in str(error.value) and "\n" not in str(error.value)
