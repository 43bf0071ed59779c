"""The arrows between the rooms, read off the source with ast: a wrong import fails here, not in a user's install."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import dino_tower

ROOT = Path(__file__).parent.parent
ROOMS = ("pretrain", "adapters", "eval")
PACKAGES = ("dino_tower", *ROOMS)
# The front door joins rooms, but only inside functions: `dino-tower --help` must not wait for torch.
DOORS = (
    "dino_tower/cli.py", "dino_tower/__main__.py", "dino_tower/demo.py", "dino_tower/adapt_ssl.py",
    "dino_tower/compare/pretraining.py", "dino_tower/compare/benchmarking.py",
)  # fmt: skip
# What answers before torch has loaded may import the standard library and itself, no more.
LIGHT = ("dino_tower/__init__.py", "dino_tower/cli.py", "dino_tower/__main__.py", "dino_tower/errors.py")
LIGHT_MAY = {"__future__", "argparse", "collections", "difflib", "importlib", "os", "pathlib", "sys", "typing"}
# Algorithms know tensors and numbers, not files, processes, command lines or logs.
ALGORITHMS = ("algorithms", "crops")  # folders of pretrain/
ALGORITHMS_MAY = {
    "__future__", "collections", "collections.abc", "dataclasses", "functools", "io", "itertools", "math", "re",
    "typing", "cv2", "numpy", "PIL", "torch", "torchvision",
}  # fmt: skip
TORCH_INFRASTRUCTURE = ("torch.utils.data", "torch.utils.tensorboard", "torch.multiprocessing", "torch.hub")

Import = tuple[str, int, bool]  # full name of what is imported, line, inside a function


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports(source: str) -> Iterator[Import]:
    """Every import of a file: statements, and import_module/__import__ of a literal name."""

    def visit(node: ast.AST, inside: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            deeper = inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if isinstance(child, ast.Import):
                yield from ((alias.name, child.lineno, inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                start = "." * child.level + (child.module or "")
                yield from ((f"{start}.{alias.name}", child.lineno, inside) for alias in child.names)
            elif isinstance(child, ast.Call) and child.args and isinstance(child.args[0], ast.Constant):
                called = child.func.attr if isinstance(child.func, ast.Attribute) else getattr(child.func, "id", "")
                if called in ("import_module", "__import__"):
                    yield str(child.args[0].value), child.lineno, inside
            yield from visit(child, deeper)

    return visit(ast.parse(source), False)


def room_of(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if parts[0] == "dino_tower" and len(parts) > 1 and parts[1] in ROOMS else None


def wrong_arrows(path: str, source: str) -> list[str]:
    """What the file at `path` (relative to the root) may not import, one line each."""
    found = []
    home = Path(path).parts[0]
    for name, line, inside in imports(source):
        where = f"{path}:{line} imports {name}"
        room = room_of(name)
        if name.startswith("."):
            found.append(f"{where}: write dino_tower.x in full")
        elif name.split(".")[0] in ROOMS:
            found.append(f"{where}: write dino_tower.{name}")
        elif room is None or home == "tests" or room == home:
            continue
        elif home in ROOMS:
            found.append(f"{where}: {home} and {room} are siblings")
        elif path not in DOORS:
            found.append(f"{where}: only {', '.join(DOORS)} may open a room")
        elif not inside:
            found.append(f"{where}: a door opens rooms inside functions only")
    return found


def infrastructure(path: str, source: str) -> list[str]:
    """What an algorithm file imports beyond tensors, numbers and its own kind."""
    own = tuple(f"dino_tower.pretrain.{name}." for name in ALGORITHMS)
    return [
        f"{path}:{line} imports {name}"
        for name, line, _ in imports(source)
        if not name.startswith(own)
        and (name.split(".")[0] not in ALGORITHMS_MAY or name.startswith(TORCH_INFRASTRUCTURE))
        and not name.startswith("dino_tower.errors.")
    ]


def test_no_file_imports_against_the_arrows() -> None:
    wrong = [
        line
        for path in sources(*PACKAGES, "tests")
        for line in wrong_arrows(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
    ]
    assert not wrong, "\n".join(wrong)


def test_algorithms_import_no_infrastructure() -> None:
    files = sources(*(f"pretrain/{name}" for name in ALGORITHMS))
    assert len(files) > 10
    wrong = [line for path in files for line in infrastructure(str(path.relative_to(ROOT)), path.read_text("utf-8"))]
    assert not wrong, "\n".join(wrong)


def test_terms_know_no_files_and_no_launcher() -> None:
    """The loop knows them, they know nothing of it: what they are given is tensors, networks and settings."""
    files = [path for path in sources("pretrain") if path.parent.name == "objectives"]
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in files
        for name, line, _ in imports(path.read_text("utf-8"))
        if name.startswith(("accelerate", "argparse", "pathlib", "os", "dino_tower.run", "dino_tower.checkpoint"))
        or name.startswith(("dino_tower.pretrain.train", "dino_tower.pretrain.state", "dino_tower.pretrain.announce"))
    ]
    assert files and not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", LIGHT)
def test_what_answers_first_imports_only_the_standard_library(path: str) -> None:
    heavy = [
        f"{path}:{line} imports {name}"
        for name, line, inside in imports((ROOT / path).read_text(encoding="utf-8"))
        if not inside and name.split(".")[0] not in LIGHT_MAY
        if name not in ("dino_tower.__version__", "dino_tower.cli.main")
        if not name.startswith("dino_tower.errors.")
        if path != "dino_tower/__init__.py" or name.split(".")[-1] not in dino_tower.__all__  # for type checkers only
    ]
    assert not heavy, "\n".join(heavy)


def test_no_file_is_longer_than_300_lines_or_vaguely_named() -> None:
    files = sources(*PACKAGES)
    long = [
        f"{path.relative_to(ROOT)}: {n}" for path in files if (n := len(path.read_text("utf-8").splitlines())) > 300
    ]
    vague = [path.name for path in files if path.stem in ("util", "utils", "helper", "helpers", "common", "misc")]
    assert not long + vague


@pytest.mark.parametrize(
    ("path", "source", "reason"),
    [
        ("pretrain/a.py", "from dino_tower.eval import knn", "siblings"),
        ("eval/tasks/a.py", "def f():\n    import dino_tower.adapters.lora", "siblings"),
        ("pretrain/a.py", "from ..eval import knn", "in full"),
        ("pretrain/a.py", "import pretrain.loading", "dino_tower.pretrain.loading"),
        ("tests/a.py", "from eval import knn", "dino_tower.eval.knn"),
        ("dino_tower/a.py", "def f():\n    from dino_tower.pretrain.train import main", "may open a room"),
        ("dino_tower/a.py", "from dino_tower import pretrain", "may open a room"),
        ("dino_tower/a.py", "import importlib\nimportlib.import_module('dino_tower.eval.suite')", "may open a room"),
        ("dino_tower/cli.py", "from dino_tower.pretrain.train import main", "inside functions only"),
        ("dino_tower/cli.py", "if True:\n    import dino_tower.pretrain.train", "inside functions only"),
    ],
)
def test_the_check_sees_a_wrong_arrow(path: str, source: str, reason: str) -> None:
    (line,) = wrong_arrows(path, source)
    assert reason in line


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("pretrain/a.py", "from dino_tower.pretrain.loading.data import x\nfrom dino_tower.images import y"),
        ("dino_tower/cli.py", "def f():\n    from dino_tower.pretrain.train import main"),
        ("tests/a.py", "from dino_tower.eval import a\nfrom dino_tower.pretrain import b"),
    ],
)
def test_the_check_lets_right_arrows_pass(path: str, source: str) -> None:
    assert wrong_arrows(path, source) == []


@pytest.mark.parametrize(
    "line",
    ["import accelerate", "import argparse", "import tyro", "from pathlib import Path", "import os", "import logging",
     "from torch.utils.data import DataLoader", "from dino_tower.checkpoint import save",
     "from dino_tower.pretrain.train import main", "def f():\n    import json"],
)  # fmt: skip
def test_the_check_sees_infrastructure(line: str) -> None:
    assert len(infrastructure("pretrain/algorithms/losses.py", line)) == 1
