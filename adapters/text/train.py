"""Text alignment of a frozen tower, top to bottom: LiT (arXiv 2111.07991) with the head of dino.txt (2412.16334).

    dino-tower adapt TOWER --task text --data SOURCE --output DIR [--section.key value]

One step: draw pictures and a text or more of each -> the frozen tower's tokens, from memory -> trained blocks, text
encoder -> contrastive loss over all processes -> AdamW.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dino_tower.adapters.building import Plan
from dino_tower.adapters.data import random_numbers
from dino_tower.adapters.text.build import Pair, bound_scale, build, frozen_tower, parameter_groups
from dino_tower.adapters.text.corpus import Corpus, Draw, draw, read_corpus, token_batches
from dino_tower.adapters.text.encoders import read_encoder, small_encoder
from dino_tower.adapters.text.settings import Config
from dino_tower.adapters.text.state import MODEL, Trained, restore, snapshot, write_tower
from dino_tower.adapters.text.words import word_tokenizer
from dino_tower.agreement import Agreement
from dino_tower.config import to_yaml
from dino_tower.errors import ConfigError
from dino_tower.peft_adapter import weights_digest
from dino_tower.progress import Progress
from dino_tower.run.directory import RunDirectory, refuse_or_resume
from dino_tower.run.entry import quiet_libraries, say, start_accelerator
from dino_tower.run.state import trainable
from dino_tower.signals import STOPPED, StopSignals
from dino_tower.sources import Source, open_sources, probe
from dino_tower.sources.skipped import SkippedLog
from dino_tower.text_tower import TextTower
from dino_tower.tokens import Tokens

KEPT = 2  # checkpoints
STEP = 2  # random numbers of a step, beside those of corpus.py


def align(config: Config, signals: StopSignals, source: Source | None = None) -> int:
    """Train to the end or to a signal, and write the model. Returns the exit code.

    source: pictures with texts in place of `--data`. Raises ConfigError for what the user gave and cannot be used.
    """
    continued, run = refuse_or_resume(config), RunDirectory(Path(config.output))
    if (run.root / MODEL).is_file():
        say(f"{config.output}: this run is finished; nothing to do")
        return 0
    quiet_libraries()
    accelerator = start_accelerator(config.compute, "none", config.output)
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    main, agreement = accelerator.is_main_process, Agreement(device)

    # --- what is needed: a frozen tower, pictures with texts, a text encoder, the model on top
    tower = frozen_tower(config).to(device)
    chosen = read_encoder(config.text) if config.text.encoder is not None else None
    if source is None:
        source = open_sources(config.data, config.source, split="train")
        probe(source)
    say(f"data         {source.describe()}")
    batch = config.batch_size
    most = None if config.steps is None else config.steps * batch * world
    captions = config.loss.draw == "caption"
    corpus = read_corpus(source, tower, config.cache_gib, config.workers, say, most, config.seed, captions)
    if len(corpus) < batch * world:
        raise ConfigError(f"{len(corpus)} pictures are fewer than one batch of {batch * world}: lower --batch-size")
    per_epoch = len(corpus) // (batch * world)
    steps = config.steps if config.steps is not None else config.epochs * per_epoch
    plan = Plan(steps, per_epoch, batch * world, round(config.optim.warmup * steps))
    torch.manual_seed(config.seed)
    text = chosen or small_encoder(config.text, _vocabulary(config, corpus))
    model = build(config, tower, text).to(device)
    trained = Trained(model, torch.optim.AdamW(parameter_groups(model, config), betas=(0.9, 0.98), eps=1e-6))

    # --- where the run stands, and what it says before it starts
    facts = {
        "steps": steps,
        "pictures": len(corpus),
        "global_batch": batch * world,
        "tower": weights_digest(tower.model),
    }
    newest = run.newest() if continued else None
    step = restore(trained, newest, facts) if newest else 0
    agreement.together((lambda: run.open(config)) if main else None)
    if main:
        run.log("start", step, words=len(text.tokenizer), world=world, **facts)
        for line in _announcement(config, corpus, model, steps, step):
            print(line, flush=True)
        SkippedLog(run.skipped, len(source), len(source)).record(corpus.skipped)
    model.train()
    if config.text.frozen:
        model.text_model.eval()  # it says the same of a text every time: no dropout
    pair, optimizer = accelerator.prepare(Pair(model, config.loss.name, rank), trained.optimizer)
    progress = Progress(steps, step, batch * world, shown=main)

    # --- the loop
    def drawn_at(number: int) -> Draw:
        return draw(corpus, config.seed, number, batch, world, config.loss.texts)

    mine = (drawn_at(s).rows[rank * batch : (rank + 1) * batch] for s in range(step, steps))
    batches = token_batches(corpus, tower, mine, config.workers)
    signals.patient, stop = True, False
    while step < steps and not stop:
        drawn = drawn_at(step)
        with progress.waiting():
            found = _on(next(batches), device)
        own = drawn.texts[rank * batch * config.loss.texts : (rank + 1) * batch * config.loss.texts]
        words = text.words(own).to(device)
        positives = drawn.positives(corpus).to(device)
        for group in trained.optimizer.param_groups:
            group["lr"] = group["peak"] * plan.rate(step)
        torch.manual_seed(int(random_numbers(config.seed, STEP, step, rank).integers(2**63)))
        with accelerator.autocast():
            loss, image, written = pair(found, words, positives)
        accelerator.backward(loss)
        grad_norm = torch.nn.utils.clip_grad_norm_(
            list(trainable(trained.model).values()), config.optim.clip or float("inf")
        )
        row = agreement.mean({"loss": loss.item()})
        (stop,) = agreement.any(signals.received is not None)
        if not np.isfinite(row["loss"] + grad_norm.item()):
            progress.close()
            raise ConfigError(f"{run.root}: step {step} had a loss or a gradient that is not finite; lower --optim.lr")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        bound_scale(model)
        step += 1
        progress.advance()
        if main and (step % config.monitor.log_every == 0 or step == steps):
            nearest = (image @ written.T).argmax(1).cpu()
            matches = positives[: len(image), : len(written)].cpu()[torch.arange(len(nearest)), nearest]
            row |= {"accuracy": matches.float().mean().item(), "grad_norm": grad_norm.item(),
                    "lr": config.optim.lr * plan.rate(step - 1),
                    "scale": model.logit_scale.exp().item(), **progress.rates()}  # fmt: skip
            run.log("step", step, **row)
            progress.show(row)
        if stop or step % config.checkpoint_every == 0:
            write = snapshot(trained, facts)
            agreement.together(partial(run.write_checkpoint, step, write, KEPT, 0) if main else None)
            run.log("checkpoint", step, path=f"checkpoints/step-{step}")

    # --- the end
    batches.close()
    progress.close()
    if step == steps:
        agreement.together(partial(write_tower, run.root, model, tower.processor, text) if main else None)
    run.log("end" if step == steps else "stopped", step)
    agreement.together(run.raise_failure)
    accelerator.end_training()
    run.close()
    say(_farewell(run.root, step, steps, signals.received))
    return 0 if step == steps else STOPPED


def _vocabulary(config: Config, corpus: Corpus) -> Any:
    every = (text for texts in corpus.texts for text in texts)
    return word_tokenizer(every, config.text.vocabulary, config.text.length)


def _on(found: Tokens, device: torch.device) -> Tokens:
    return Tokens(found.patches.to(device), None if found.cls is None else found.cls.to(device))


def _announcement(config: Config, corpus: Corpus, model: TextTower, steps: int, step: int) -> list[str]:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6
    held = sum(p.numel() for p in model.parameters() if not p.requires_grad) / 1e6
    texts = sum(map(len, corpus.texts))
    left_out = (
        f", {len(corpus.skipped)} unreadable, {corpus.silent} without a text" if corpus.skipped or corpus.silent else ""
    )
    return [
        to_yaml(config).rstrip(),
        "",
        f"pictures     {len(corpus)} with {texts} texts{left_out}",
        f"model        {trained:.2f} M parameters trained, {held:.2f} M held",
        f"length       {steps} steps of {config.batch_size} pictures, {config.loss.texts} texts of each",
        f"starting     from step {step}",
    ]


def _farewell(root: Path, step: int, steps: int, signal: str | None) -> str:
    if step < steps:
        return (
            f"stopped by {signal or 'a signal'} after step {step}; a checkpoint is written: continue with --resume true"
        )
    return f'finished: {steps} steps in {root}\n  load_tower("{root}").text(["a photo of a bird"])'
