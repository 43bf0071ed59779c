"""The pretraining loop of DINO, top to bottom.

    accelerate launch -m dino_tower.pretrain --preset NAME --data SOURCE --output DIR [--section.key value]

One optimiser step: set rates -> teacher sees the two global views -> student sees all views -> loss against the targets
of the old centre -> backward -> clip -> hold the prototypes while they are frozen -> optimiser -> centre -> teacher.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
import transformers
from accelerate import Accelerator

from dino_tower.alarms import Alarms, collapse_rules
from dino_tower.checkpoint import BackgroundWriter, prune, replace_text, write_atomically
from dino_tower.config import print_help, to_yaml
from dino_tower.errors import ConfigError
from dino_tower.images import processor_for
from dino_tower.pretrain.announce import announcement, facts, farewell, try_step
from dino_tower.pretrain.centre import Centre
from dino_tower.pretrain.config import read_config
from dino_tower.pretrain.data import Batch, build_loader
from dino_tower.pretrain.monitor import Monitor, health
from dino_tower.pretrain.networks import make_networks
from dino_tower.pretrain.optim import CLIP, OPTIMISERS, parameter_groups, set_rates
from dino_tower.pretrain.pixels import Normalise, mean_and_std
from dino_tower.pretrain.plan import make_plan, step_seed
from dino_tower.pretrain.run_directory import RunDirectory, refuse_or_resume
from dino_tower.pretrain.settings import Config
from dino_tower.pretrain.state import Position, Trained, restore, snapshot
from dino_tower.pretrain.student_teacher import BatchStatistics, Student, update_teacher
from dino_tower.pretrain.synchronised import Agreement
from dino_tower.progress import Progress
from dino_tower.signals import StopSignals
from dino_tower.sources import open_sources, probe
from dino_tower.tokens import patch_size
from dino_tower.trackers import tracker_names

STOPPED = 3  # exit code of a run that was asked to stop and can be continued


def main(argv: Sequence[str]) -> int:
    """The command `dino-tower pretrain`; returns its exit code."""
    if "--help" in argv or "-h" in argv:
        print_help(Config, "dino-tower pretrain", __doc__ or "")
    config = read_config(argv)
    if config.print_config:
        print(to_yaml(config), end="")
        return 0
    with StopSignals() as signals:
        return train(config, signals)


def train(config: Config, signals: StopSignals) -> int:
    """Run to the end, to a signal, or to a fault that needs a person. Returns the exit code."""
    continued = refuse_or_resume(config)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    accelerator = Accelerator(
        mixed_precision=config.compute.precision,
        cpu=config.compute.cpu,
        log_with=tracker_names(config.monitor.tracker) or None,
        project_dir=config.output,
    )
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    main_process = accelerator.is_main_process

    # --- what is needed: data, a plan, two networks
    source = open_sources(config.data, config.source, split="train")
    probe(source)
    plan = make_plan(config, len(source), world)
    mean, std = mean_and_std(config.pixels, source)
    normalise = Normalise(mean, std, device)
    network, teacher = make_networks(config, device, world)
    patch = 1 if network.backbone.config.model_type == "resnet" else patch_size(network.backbone)
    processor = processor_for(config.crops.global_size, patch, mean, std)
    centre = Centre(config.head.prototypes, config.loss.centre_momentum).to(device)
    torch_optimizer = OPTIMISERS[config.optim.name](parameter_groups([network]))
    trained = Trained(network, teacher, centre, torch_optimizer)
    student, optimizer = accelerator.prepare(Student(network, config.loss.student_temp), torch_optimizer)

    # --- where the run stands, and what it says before it starts
    run = RunDirectory(Path(config.output), main_process)
    position = Position()
    newest = run.newest() if continued else None
    if newest is not None:
        position = restore(trained, newest, plan.global_batch)
    accelerator.wait_for_everyone()
    if position.step >= plan.steps:
        accelerator.print(f"{config.output}: this run is finished ({position.step} steps); nothing to do")
        return 0
    estimate = try_step(accelerator, student, trained, config)
    if main_process:
        run.open(config)
        print(announcement(config, plan, source, trained, estimate, world, str(device)))
        print(f"continuing   {newest}" if newest else "starting     from step 0", flush=True)
        run.log("start", position.step, **facts(config, plan, world))
    accelerator.wait_for_everyone()
    accelerator.init_trackers("tracker")
    watching = main_process and config.monitor.minutes > 0
    monitor = Monitor(config, run, source, processor, normalise) if watching else None
    alarms = Alarms(collapse_rules(config.head.prototypes), patience=max(50, plan.steps // 20), grace=plan.steps // 10)
    progress = Progress(plan.steps, position.step, plan.global_batch, shown=main_process)
    agreement, writer = Agreement(device), BackgroundWriter()

    def batches_from(step: int) -> Generator[Batch]:
        loader = build_loader(
            source,
            config.crops,
            seed=config.seed,
            batch_size=config.batch_size,
            rank=rank,
            world=world,
            accumulate=config.compute.accumulate,
            start_step=step + position.data_offset,
            total_steps=plan.steps + position.data_offset,
            steps_per_epoch=plan.steps_per_epoch,
            workers=config.workers,
            skipped_log=run.skipped,
            max_skipped=config.faults.max_skipped,
        )
        return loader

    def save(step: int) -> None:
        position.step = step
        write = snapshot(trained, position, processor, facts(config, plan, world))
        target = run.checkpoints / f"step-{step}"

        def work() -> None:
            write_atomically(target, write)
            replace_text(run.root / "latest", f"{target.name}\n")
            prune(run.checkpoints, config.faults.keep_last, config.faults.keep_every)

        writer.submit(work)
        run.log("checkpoint", step, path=f"checkpoints/{target.name}")

    # --- the loop
    step, bad_in_a_row = position.step, 0
    statistics = BatchStatistics(network, teacher)
    batches = batches_from(step)
    if monitor and step == 0:
        monitor.look(0, teacher)
    stop = False
    while step < plan.steps and not stop:
        set_rates(torch_optimizer, plan.lr[step], plan.weight_decay[step])
        losses, ids = [], []
        for micro in range(config.compute.accumulate):
            with progress.waiting():
                batch = next(batches)
            views = [normalise(view) for view in batch.views]
            torch.manual_seed(step_seed(config.seed, step, micro, rank))
            with torch.no_grad(), accelerator.autocast():
                logits = teacher(views[:2])
            targets = centre.targets(logits, plan.teacher_temp[step])
            centre.observe(logits)
            last = micro + 1 == config.compute.accumulate
            with nullcontext() if last else accelerator.no_sync(student):
                loss = student(views, targets, frozen=step < plan.frozen_steps)
                accelerator.backward(loss / config.compute.accumulate)
            losses.append(loss.detach())
            ids += batch.ids
        accelerator.unscale_gradients()
        grad_norm = CLIP[config.optim.clip_mode](network.named_parameters(), config.optim.clip or float("inf"))
        if step < plan.frozen_steps:  # after clipping: no step, no decay, and Adam's state starts late, as in DINO
            for p in network.get_submodule("head.last_layer").parameters():
                p.grad = None

        loss = torch.stack(losses).mean()
        bad, stop = agreement.any(not torch.isfinite(loss + grad_norm), signals.received is not None)
        if bad:
            centre.forget()
            statistics.put_back()
            bad_in_a_row += 1
            run.log("bad_step", step, loss=str(loss.item()), grad_norm=str(grad_norm.item()), ids=ids)
        else:
            bad_in_a_row = 0
            statistics.keep()
            optimizer.step()
            centre.commit()
            update_teacher(teacher, network, plan.momentum[step])
        optimizer.zero_grad(set_to_none=True)
        step += 1
        progress.advance()

        if step % config.monitor.log_every == 0 or step == plan.steps:
            row = {**plan.rates(step - 1), **health(targets, loss, centre), "grad_norm": grad_norm.item()}
            row = {**agreement.mean(row), "epoch": step / plan.steps_per_epoch, **progress.rates()}
            run.log("step", step, **row)
            progress.show(row)
            accelerator.log(row, step=step)
            for name, message in alarms.update(step, row):
                progress.say(f"ALARM {name}: {message}")
                run.log("alarm", step, name=name, message=message)
        if monitor and (monitor.due() or step == plan.steps):
            monitor.look(step, teacher)
        if main_process and (step % config.checkpoint_every == 0 or step == plan.steps or stop):
            save(step)
        if bad_in_a_row > config.faults.max_bad_steps:
            writer.join()
            step = go_back(trained, position, run, config, plan.global_batch, step)
            statistics.keep()
            bad_in_a_row = 0
            batches.close()
            batches = batches_from(step)
            progress.back_to(step)

    # --- the end
    batches.close()
    writer.join()
    accelerator.wait_for_everyone()
    progress.close()
    accelerator.end_training()
    if main_process:
        run.log("end" if step == plan.steps else "stopped", step)
        print(farewell(config, run, step, plan, signals.received), flush=True)
        run.close()
    return 0 if step == plan.steps else STOPPED


def go_back(
    trained: Trained, position: Position, run: RunDirectory, config: Config, global_batch: int, step: int
) -> int:
    """Back to the newest checkpoint after too many bad steps in a row, with the order of data moved on.

    Returns the step to go on from. Raises ConfigError when there is no checkpoint or this happened too often.
    """
    newest = run.newest()
    seen = f"{config.faults.max_bad_steps + 1} steps in a row up to step {step} had a non-finite loss or gradient"
    if newest is None or position.rollbacks >= config.faults.max_rollbacks:
        when = "before the first checkpoint" if newest is None else f"after going back {position.rollbacks} times"
        raise ConfigError(
            f"{run.root}: {seen}, {when}; their images are in log.jsonl (bad_step). Lower optim.base_lr, set "
            "compute.precision no, or lower optim.clip"
        )
    reached, rollbacks = step + position.data_offset, position.rollbacks + 1
    position.__dict__.update(vars(restore(trained, newest, global_batch)))
    position.data_offset, position.rollbacks = reached - position.step, rollbacks
    run.log("rollback", position.step, reason=seen, data_offset=position.data_offset)
    return position.step
