"""Adapting a tower, top to bottom: frozen, with a PEFT adapter, or whole, under a head, on labelled pictures.

    dino-tower adapt TOWER --task segment --data SOURCE --method lora --output DIR [--section.key value]

One optimiser step: set rates -> scores of the views -> loss against the labels -> backward -> clip -> optimiser.
"""

from __future__ import annotations

import math
import os
import resource
import shlex
import time
from collections.abc import Generator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from dino_tower import __version__
from dino_tower.adapters.building import Plan, build, make_plan, parameter_groups
from dino_tower.adapters.data import Batch, BatchMaker, batch_keys, batches, random_numbers
from dino_tower.adapters.examples import open_examples
from dino_tower.adapters.finish import FACTS, finish, merge
from dino_tower.adapters.loading import load_adapted
from dino_tower.adapters.settings import Config
from dino_tower.adapters.state import Position, Trained, restore, snapshot
from dino_tower.adapters.tasks import TASKS, Range, largest_share
from dino_tower.adapters.validation import validate
from dino_tower.agreement import Agreement
from dino_tower.alarms import Alarms, Rule
from dino_tower.checkpoint import BackgroundWriter
from dino_tower.config import to_tree, to_yaml
from dino_tower.errors import ConfigError
from dino_tower.peft_adapter import MERGED
from dino_tower.progress import Progress
from dino_tower.run.directory import RunDirectory, refuse_or_resume
from dino_tower.run.entry import guarded, quiet_libraries, say, start_accelerator
from dino_tower.run.state import changed_data, images_at_start
from dino_tower.signals import STOPPED, StopSignals

STEP = 2  # random numbers of a step, beside those of data.py


def run(config: Config, words: Sequence[str] = ()) -> int:
    """Adapt, to the end or to a signal; returns the exit code. Raises ConfigError."""
    return guarded(lambda signals: train(config, signals, words), config.output)


def train(config: Config, signals: StopSignals, words: Sequence[str] = ()) -> int:
    """Run to the end, to a signal, or to a fault that needs a person. Returns the exit code.

    words: the command line behind `adapt`, noted in the log.
    """
    continued, run = refuse_or_resume(config), RunDirectory(Path(config.output))
    if run.finished() is not None and (run.root / FACTS).is_file():
        if config.merge and not (run.root / MERGED).exists():
            return merge_finished(config)
        say(f"{config.output}: this run is finished ({run.finished()} steps); nothing to do")
        return 0
    quiet_libraries()
    accelerator = start_accelerator(config.compute, config.monitor.tracker, config.output)
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    main_process, agreement = accelerator.is_main_process, Agreement(device)

    # --- what is needed: data, a tower with a head, a plan
    task, depth = TASKS[config.task], Range(config.target.low, config.target.high)
    examples, held_out = open_examples(config.task, config.data, config.source, config.target)
    newest = run.newest() if continued else None
    # a run keeps its length and its schedule, also where the data has changed since
    images = (images_at_start(newest) if newest else None) or len(examples)
    plan = make_plan(config, images, world)
    built = build(config, examples.classes)
    network = built.model.to(device)
    torch_optimizer = torch.optim.AdamW(parameter_groups(network, config), lr=0.0)
    trained = Trained(network, torch_optimizer, built.base, accelerator.scaler)
    model, optimizer = accelerator.prepare(network, torch_optimizer)

    # --- where the run stands, and what it says before it starts
    position = restore(trained, newest, config, plan.global_batch, examples.classes) if newest else Position()
    agreement.together((lambda: run.open(config)) if main_process else None)
    facts = {"version": __version__, "world": world, "steps": plan.steps, "steps_per_epoch": plan.steps_per_epoch,
             "global_batch": plan.global_batch, "images": images, "classes": list(examples.classes),
             "resolved": to_tree(config), **built.counts}  # fmt: skip
    if main_process:
        print(announcement(config, plan, examples.pictures.describe(), built.counts, str(device)))
        if newest and (note := changed_data(newest, len(examples))):
            print(f"{note}; the length of the run stays")
        print(f"continuing   {newest}" if newest else "starting     from step 0", flush=True)
        run.log("start", position.step, command=shlex.join(words), **facts)
    accelerator.init_trackers("tracker")
    alarms = Alarms(rules(position), patience=max(50, plan.steps // 10), grace=plan.steps // 5)
    progress = Progress(plan.steps, position.step, plan.global_batch, shown=main_process)
    writer, faults = BackgroundWriter(), config.faults
    maker = BatchMaker(examples, config.views, built.size, task.label_type, config.seed, world)

    def batches_from(step: int) -> Generator[Batch]:
        keys = batch_keys(
            batch_size=config.batch_size,
            rank=rank,
            world=world,
            accumulate=config.compute.accumulate,
            start=step,
            stop=plan.steps,
            steps_per_epoch=plan.steps_per_epoch,
        )
        return batches(maker, keys, config.workers, run.skipped, faults.max_skipped)

    def save(step: int) -> None:
        position.step = step
        write = snapshot(trained, position, facts)
        writer.submit(lambda: run.write_checkpoint(step, write, faults.keep_last, 0))
        run.log("checkpoint", step, path=f"checkpoints/step-{step}")

    # --- the loop
    step, stream = position.step, batches_from(position.step)
    model.train()
    signals.patient, stop, broken = True, False, False
    began = time.perf_counter()
    while step < plan.steps and not stop and not broken:
        for group in torch_optimizer.param_groups:
            group["lr"] = group["peak"] * plan.rate(step)
        losses, ids = [], []
        for micro in range(config.compute.accumulate):
            with progress.waiting():
                batch = next(stream)
            pixels, labels = built.normalise(batch.pixels, device), batch.labels.to(device)
            torch.manual_seed(int(random_numbers(config.seed, STEP, step, micro, rank).integers(2**63)))
            last = micro + 1 == config.compute.accumulate
            with nullcontext() if last else accelerator.no_sync(model):
                with accelerator.autocast():
                    scores = model(pixels)
                loss = task.loss(scores, labels, depth)
                accelerator.backward(loss / config.compute.accumulate)
            losses.append(loss.detach())
            ids += batch.ids
        accelerator.unscale_gradients()
        grad_norm = torch.nn.utils.clip_grad_norm_(network.parameters(), config.optim.clip or math.inf)
        loss = torch.stack(losses).mean()
        finite, unwritten = bool(torch.isfinite(loss + grad_norm)), writer.failed or run.failure is not None
        bad, stop, broken = agreement.any(not finite, signals.received is not None, unwritten)
        if bad:
            position.bad_in_a_row += 1
            if accelerator.scaler is not None:
                accelerator.scaler.update()  # fp16: a smaller scale for the next step
            seen = agreement.gather((str(loss.item()), ids))  # the guilty picture may be any process's
            run.log("bad_step", step, losses=[a for a, _ in seen], grad_norm=str(grad_norm.item()),
                    ids=[name for _, names in seen for name in names])  # fmt: skip
            if position.bad_in_a_row > faults.max_bad_steps:
                raise ConfigError(
                    f"{run.root}: {position.bad_in_a_row} steps in a row up to step {step} had a loss or gradient that "
                    "is no number; their pictures are in log.jsonl (bad_step). Lower optim.lr, or set "
                    "compute.precision no"
                )
        else:
            position.bad_in_a_row = 0
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        progress.advance()

        if step % config.monitor.log_every == 0 or step == plan.steps:
            row = {"loss": loss.item(), "lr": plan.rate(step - 1) * config.optim.lr, "grad_norm": grad_norm.item()}
            row = agreement.mean({**row, **largest_share(scores, labels)})
            row = {**row, "epoch": step / plan.steps_per_epoch, **progress.rates()}
            position.first_loss = position.first_loss or row["loss"]
            run.log("step", step, **row)
            progress.show(row)
            accelerator.log(row, step=step)
            for name, message in alarms.update(step, row):
                progress.say(f"ALARM {name}: {message}")
                run.log("alarm", step, name=name, message=message)
        # too many bad steps end a run: it must not go on from the midst of them
        due = step % config.checkpoint_every == 0 and position.bad_in_a_row == 0
        if main_process and (due or step == plan.steps or stop):
            save(step)

    # --- the end: what was learned, its score on pictures that were held out, the tower with the adapter in it
    stream.close()
    progress.close()
    agreement.together(writer.join)
    if step < plan.steps:
        run.log("stopped", step)
        agreement.together(run.raise_failure)
        say(f"stopped by {signals.received or 'a signal to another process'} after step {step}; continue with --resume")
        run.close()
        return STOPPED
    cost = {"seconds": time.perf_counter() - began, "memory_gib": peak_memory(device) / 2**30}
    score: dict[str, Any] = {}
    if config.monitor.validate:
        score = validate(network, built, held_out, config, agreement, rank, world, run.root if main_process else None)
        run.log("validation", step, **score)
    agreement.together((lambda: finish(config, trained, built, examples.classes, score)) if main_process else None)
    run.log("end", step, **cost)
    agreement.together(run.raise_failure)
    accelerator.end_training()
    if main_process:
        print(farewell(config, score, len(held_out)), flush=True)
        run.close()
    return 0


def merge_finished(config: Config) -> int:
    """--resume --merge of a run that was finished without: the first process writes OUTPUT/merged."""
    if os.environ.get("RANK", "0") == "0":
        adapted = load_adapted(config.output)
        merge(config, adapted.tower, adapted.model.tower)
    say(f"{config.output}: this run was finished; {config.output}/merged is its tower")
    return 0


def rules(position: Position) -> dict[str, Rule]:
    """What a sick adaptation looks like in the rows of its log."""
    return {
        "nothing-learned": Rule(
            lambda row: row["loss"] > 0.98 * position.first_loss,
            "the loss is where it began",
            "Raise optim.lr, or look whether the labels belong to the pictures",
        ),
        "one-answer": Rule(
            lambda row: row.get("largest_answer", 0) > 0.995 and row.get("largest_label", 1) < 0.9,
            "every picture gets the same answer",
            "Raise optim.lr, or train for more steps",
        ),
        "diverging": Rule(
            lambda row: row["loss"] > 3 * position.first_loss,
            "the loss is three times what it began with",
            "Lower optim.lr, or optim.tower_lr",
        ),
    }


def peak_memory(device: torch.device) -> float:
    """Bytes that this process has held at most, on the GPU if it trains there."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def announcement(config: Config, plan: Plan, data: str, counts: dict[str, int], device: str) -> str:
    """The settings and what follows from them, for a person to read before the first step."""
    inside = f"{counts['trained_in_tower']:,} of {counts['tower']:,} parameters"
    lines = [
        to_yaml(config).rstrip(),
        "",
        f"data         {data}",
        f"tower        {config.tower}, {config.method}: {inside} are trained",
        f"head         {config.head.kind} for {config.task}: {counts['head']:,} parameters",
        f"batch        {plan.global_batch}",
        f"length       {plan.steps} steps, {plan.steps / plan.steps_per_epoch:.1f} epochs of {plan.steps_per_epoch} "
        f"steps, on {device}",
    ]
    return "\n".join(lines)


def farewell(config: Config, score: dict[str, Any], count: int) -> str:
    """The last lines: what came out, and what to do with it."""
    said = ", ".join(f"{name} {value:.3f}" for name, value in score.items() if isinstance(value, float))
    lines = [f"finished: {config.output}" + (f"; on {count} held-out pictures: {said}" if said else "")]
    if (Path(config.output) / "merged").is_dir():
        lines.append(f"  {config.output}/merged    a plain tower, for any client")
    lines.append(f'  dino_tower.adapters.loading.load_adapted("{config.output}")    the tower with its head')
    return "\n".join(lines)
