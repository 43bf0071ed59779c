"""Two processes under torchrun: one run between them, equal to one process with the joint batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

LAUNCH = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
# What the ranks saw and knew: written by each rank of the real loop through a hook on the loss module.
SPY = """
import json, os, sys
import torch
from dino_tower.pretrain import train
from dino_tower.pretrain.algorithms import centre
from dino_tower.pretrain.network import student_teacher
seen = []
forward = student_teacher.Student.forward
def spy(self, inputs, targets, rates):
    global world
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    seen.append([float(v.double().sum()) for v in inputs.views])
    return forward(self, inputs, targets, rates)
student_teacher.Student.forward = spy
centres = []
commit = centre.Centre.commit
def spy_commit(self):
    commit(self)
    centres.append(self.centre.double().tolist())
centre.Centre.commit = spy_commit
code = train.main(sys.argv[2:])
rank = int(os.environ.get("RANK", 0))
with open(f"{sys.argv[1]}-{rank}.json", "w") as file:
    json.dump({"seen": seen, "centres": centres, "world": world}, file)
sys.exit(code)
"""


def launch(folder: Path, name: str, *flags: str, processes: int) -> tuple[Path, list[dict], str]:
    """Run the spy; returns the run directory, what each rank reported, and all that was printed."""
    script = folder / "spy.py"
    script.write_text(SPY)
    words = [str(script), str(folder / name), "--output", str(folder / f"{name}-run"), *flags]
    command = [*LAUNCH, *words] if processes == 2 else [sys.executable, *words]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    reports = [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(processes)]
    assert [r["world"] for r in reports] == [processes] * processes
    return folder / f"{name}-run", reports, done.stdout + done.stderr


@pytest.fixture(scope="module")
def pair(tmp_path_factory, tiny):
    """The same ten steps by one process with 8 images and by two with 4 each."""
    folder = tmp_path_factory.mktemp("pair")
    # a learning rate at which this tiny run does not collapse: there a rounding error would grow with every step
    flags = "--steps 10 --head.batch-norm false --checkpoint-every 5 --optim.base-lr 1e-4".split()
    one = launch(folder, "one", *tiny(*flags), processes=1)
    two = launch(folder, "two", *tiny(*flags, "--batch-size", "4"), processes=2)
    return one, two


def test_the_ranks_see_different_crops(pair) -> None:
    _, (_, (first, second), _) = pair
    assert len(first["seen"]) == 12  # two trial passes before the run, then ten steps
    for a, b in zip(first["seen"][2:], second["seen"][2:], strict=True):
        assert not set(a) & set(b)


def test_together_they_see_what_one_process_sees(pair) -> None:
    (_, (joint,), _), (_, (first, second), _) = pair
    for whole, a, b in zip(joint["seen"][2:], first["seen"][2:], second["seen"][2:], strict=True):
        for view in range(len(whole)):
            assert abs(whole[view] - a[view] - b[view]) <= 1e-3


def test_the_centre_is_one(pair) -> None:
    (_, (joint,), _), (_, (first, second), _) = pair
    assert first["centres"] == second["centres"]
    gap = torch.tensor(first["centres"]) - torch.tensor(joint["centres"])
    assert gap.abs().max() <= 1e-6


def test_losses_and_weights_equal_those_of_one_process(pair) -> None:
    (one, _, _), (two, _, _) = pair
    rows = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (one, two)]
    losses = [[row["loss"] for row in log if row["kind"] == "step"] for log in rows]
    assert len(losses[0]) == len(losses[1]) == 10
    assert max(abs(a - b) / a for a, b in zip(*losses, strict=True)) <= 1e-6
    for part in ("student/model", "teacher/model", "heads"):
        a, b = (load_file(run / f"checkpoints/step-10/{part}.safetensors") for run in (one, two))
        for name in a:
            if "key.bias" not in name and "k_proj.bias" not in name:  # true gradient zero: Adam steps on its rounding
                assert (a[name] - b[name]).abs().max() <= 1e-5, (part, name)


def test_one_log_one_bar_one_checkpoint_which_one_process_resumes(pair) -> None:
    _, (run, _, printed) = pair
    kinds = [json.loads(line)["kind"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert kinds.count("start") == 1 and kinds.count("checkpoint") == 2 and kinds.count("end") == 1
    assert printed.count("starting     from step 0") == 1 and printed.count("finished: 10 steps") == 1
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step-10", "step-5"]
    import shutil

    shutil.rmtree(run / "checkpoints/step-10")
    command = [sys.executable, "-m", "dino_tower.pretrain", "--resume", "--output", str(run), "--batch-size", "8"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "step-5" in done.stdout and (run / "checkpoints/step-10/state.json").is_file()


def test_without_a_gpu_two_processes_are_one_job_unasked(tmp_path, tiny) -> None:
    """Without --compute.cpu each of them once took itself for the only one, and the second met the first one's lock."""
    words = tiny("--steps", "2", "--batch-size", "4", "--compute.cpu", "false", "--output", str(tmp_path / "run"))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*LAUNCH, "-m", "dino_tower.pretrain", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "x 2 processes x" in done.stdout and done.stdout.count("starting     from step 0") == 1


def test_batch_norm_uses_the_joint_batch(tmp_path) -> None:
    """Two ranks with half the batch each normalise as one does with the whole; torch's own SyncBN raises on CPU."""
    script = tmp_path / "norm.py"
    script.write_text(
        "import torch, torch.distributed as dist\n"
        "from dino_tower.pretrain.network.synchronised import synchronise_batch_norm\n"
        "dist.init_process_group('gloo'); rank = dist.get_rank(); assert dist.get_world_size() == 2\n"
        "torch.manual_seed(0); x = torch.randn(8, 3, 4, 4) * 3 + 1; g = torch.randn(8, 3, 4, 4)\n"
        "plain, ours = (torch.nn.Sequential(torch.nn.BatchNorm2d(3)) for _ in range(2))\n"
        "synchronise_batch_norm(ours)\n"
        "whole = x.clone().requires_grad_(); mine = x[rank::2].clone().requires_grad_()\n"
        "want, got = plain(whole), ours(mine)\n"
        "(want * g).sum().backward(); (got * g[rank::2]).sum().backward()\n"
        "assert torch.allclose(got, want[rank::2], atol=1e-5)\n"
        "assert torch.allclose(mine.grad, whole.grad[rank::2], atol=1e-5)\n"
        "for a, b in zip(plain[0].buffers(), ours[0].buffers()):\n"
        "    assert torch.allclose(a.float(), b.float(), atol=1e-5)\n"
        "with torch.no_grad(): half = ours(x[rank::2].bfloat16())\n"  # autocast hands it half precision
        "assert half.dtype == torch.bfloat16 and torch.allclose(half.float(), want[rank::2], atol=0.05)\n"
        "dist.destroy_process_group(); print('equal')\n"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*LAUNCH, str(script)], capture_output=True, text=True, env=env, timeout=120, check=False)
    assert done.returncode == 0 and done.stdout.count("equal") == 2, done.stderr[-2000:]
