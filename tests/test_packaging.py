"""What pip installs is what the checkout holds: every room, preset and page, run from a wheel outside the checkout.

PyTorch alone takes 5 GB, so the fresh environment borrows the heavy dependencies of the one that runs the tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# package -> its folder in the checkout
HOMES = {"dino_tower": ROOT / "dino_tower"} | {
    f"dino_tower/{room}": ROOT / room for room in ("pretrain", "adapters", "eval")
}
NOT_SOURCE = shutil.ignore_patterns(
    ".git", ".venv", "venv", "build", "dist", "runs", "tests", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis"
)


def command(*words: str | Path, cwd: Path, **env: str) -> str:
    """Run outside the checkout's influence and return what was printed; fail with all of it otherwise."""
    unset = ("PYTHONPATH", "RANK", "WORLD_SIZE", "LOCAL_RANK")
    clean = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=clean | env,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(map(str, words))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by way of the sdist: a file missing there is missing here too. Nothing is written in the checkout."""
    place = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, place / "copy", ignore=NOT_SOURCE)
    command(sys.executable, "-m", "build", "--no-isolation", "--outdir", place / "dist", place / "copy", cwd=place)
    (built,) = (place / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment that holds the wheel, and of our own only what the wheel depends on."""
    home = tmp_path_factory.mktemp("fresh") / "env"
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    command(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=home)
    # After the installation: pip must not take the outer environment's dino-tower for an installed one. A .pth file
    # adds the folder but runs no .pth inside it, so the outer editable install stays out of sight.
    site = Path(command(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home).strip())
    (site / "outer.pth").write_text("\n".join(sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})))
    return home / "bin"


def sources() -> set[str]:
    """Every file of the packages, named as the wheel names it."""
    return {
        f"{package}/{path.relative_to(home).as_posix()}"
        for package, home in HOMES.items()
        for path in home.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_every_file_of_the_packages_and_no_other(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        texts = [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
    assert held - sources() == set()
    assert sources() - held == set(), "add it to packages or package-data in pyproject.toml"
    assert len(texts) == 1


def test_pyproject_names_every_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {Path(name).parent.as_posix().replace("/", ".") for name in sources() if name.endswith(".py")}
    assert set(settings["packages"]) == folders


def test_every_module_imports_from_the_wheel(fresh: Path, tmp_path: Path) -> None:
    modules = sorted(
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in sources()
        if name.endswith(".py") and not name.endswith("__main__.py")
    )
    code = (
        "import importlib, dino_tower, sys\n"
        f"for name in {modules!r}:\n"
        "    found = importlib.import_module(name)\n"
        "    assert found.__file__.startswith(sys.prefix), found.__file__\n"
    )
    command(fresh / "python", "-c", code, cwd=tmp_path)


def test_the_installed_command_trains_two_steps_and_draws_the_run(fresh: Path, tmp_path: Path) -> None:
    env = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    assert "pretrain" in command(fresh / "dino-tower", "--help", cwd=tmp_path)
    command(
        fresh / "dino-tower", "pretrain", "--preset", "demo", "--data", "scenes", "--steps", "2",
        "--monitor.knn-images", "40", "--output", "run",
        cwd=tmp_path, **env,
    )  # fmt: skip
    last = (tmp_path / "run" / "latest").read_text(encoding="utf-8").strip()
    assert last == "step-2"
    assert (tmp_path / "run" / "checkpoints" / last / "teacher" / "model.safetensors").stat().st_size > 0
    page = command(fresh / "dino-tower", "show", "run", cwd=tmp_path, **env).strip()
    assert (tmp_path / page).read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html>")
