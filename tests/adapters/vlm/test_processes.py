"""Two processes train a VLM with its tower: DDP waits for no weight that never gets a gradient."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from dino_tower.tower import Tower

TRAIN = """
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from dino_tower.adapters.fusion import fuse_towers
from dino_tower.adapters.vlm import build_vlm

torch.set_num_threads(1)
dist.init_process_group("gloo")
assert dist.get_world_size() == 2
words = PreTrainedTokenizerFast.from_pretrained(sys.argv[1] + "/lm")
towers = {path.split("/")[-1]: path for path in sys.argv[2:]}
towers["fused"] = fuse_towers([sys.argv[2], sys.argv[-1]], "sum")
for kind, tower in towers.items():
    for layer in (-1, -2) if kind == "plain" else (-1,):
        torch.manual_seed(0)
        language = LlamaForCausalLM(LlamaConfig.from_pretrained(sys.argv[1] + "/lm"))
        import warnings
        warnings.simplefilter("ignore")
        vlm, processor = build_vlm(tower, language, words, layer=layer)
        model = DistributedDataParallel(vlm.train())
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        ids = torch.tensor([[vlm.config.image_token_id] * vlm.config.image_seq_length + [4, 6 + dist.get_rank()]])
        before = {k: p.detach().clone() for k, p in vlm.named_parameters()}
        for step in range(2):
            pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(step))
            loss = model(input_ids=ids, pixel_values=pixels, labels=ids).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        moved = sum(not torch.equal(p, before[k]) for k, p in vlm.named_parameters() if "vision_tower" in k)
        whole = torch.cat([p.detach().flatten() for p in vlm.parameters()])
        both = [torch.empty_like(whole) for _ in range(2)]
        dist.all_gather(both, whole)
        assert torch.equal(*both) and moved
        if dist.get_rank() == 0:
            print(kind, layer, moved, flush=True)
from dino_tower.adapters.vlm_command import main
words = sys.argv[2] + " --task vlm --method lora --peft.rank 2 --language.rank 2 --compute.cpu"
words += " --stage1.steps 2 --stage2.steps 2 --stage1.batch-size 2 --stage2.batch-size 2"
folder = sys.argv[1]
words += f" --data {folder}/talk/talk.json --language-model {folder}/lm --output {folder}/out"
assert main(words.split()) == 0
if dist.is_initialized():
    dist.destroy_process_group()
"""


def test_a_tower_that_learns_in_two_processes(
    towers: dict[str, Tower], language_model: Path, tokenizer: Any, conversations: Path, tmp_path: Path
) -> None:
    """Raw DDP with every kind of tower, then both stages of the command."""
    script = tmp_path / "train.py"
    script.write_text(TRAIN)
    folders = [tmp_path / kind for kind in towers]
    for folder, tower in zip(folders, towers.values(), strict=True):
        tower.model.save_pretrained(folder)
        tower.processor.save_pretrained(folder)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", script]
    done = subprocess.run(
        [*command, tmp_path, *folders],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ours = [line for line in done.stdout.splitlines() if line.split()[0] in (*towers, "fused")]
    assert len(ours) == len(towers) + 2, done.stdout
    rows = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["step"]) for row in rows] == [(1, 1), (2, 1)]
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "out").dtype == torch.float32
