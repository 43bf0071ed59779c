"""The pretraining loop, top to bottom. What is learned is an objective, a sum of terms: `objectives/`.

    accelerate launch -m dino_tower.pretrain --preset NAME --data SOURCE --output DIR [--section.key value]

One optimiser step: set rates -> teacher sees the two global views -> student sees all views -> loss against the targets
of the terms' old state -> backward -> clip -> hold what is frozen -> optimiser -> terms' state -> teacher.
"""

from __future__ import annotations

import shlex
from collections.abc import Generator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch

from dino_tower.agreement import Agreement
from dino_tower.alarms import Alarms
from dino_tower.checkpoint import BackgroundWriter, checkpoints, read_json
from dino_tower.config import print_help, to_yaml
from dino_tower.errors import ConfigError
from dino_tower.images import processor_for
from dino_tower.pretrain.announce import announcement, facts, farewell, try_step
from dino_tower.pretrain.config import read_config
from dino_tower.pretrain.loading.data import Batch, build_loader
from dino_tower.pretrain.loading.pixels import Normalise, mean_and_std, said_of_pixels, to_device
from dino_tower.pretrain.monitor import Monitor
from dino_tower.pretrain.network.networks import make_networks, patch_of
from dino_tower.pretrain.network.starts import take_over
from dino_tower.pretrain.network.student_teacher import BatchStatistics, Student, update_teacher
from dino_tower.pretrain.objectives.objective import beside, check_source, make_objective, mean_of, views_read
from dino_tower.pretrain.optim import CLIP, OPTIMISERS, groups_of, set_rates
from dino_tower.pretrain.plan import make_plan, step_seed
from dino_tower.pretrain.settings import Config
from dino_tower.pretrain.state import Position, Trained, restore, snapshot
from dino_tower.progress import Progress
from dino_tower.run.directory import RunDirectory, refuse_or_resume
from dino_tower.run.entry import guarded, quiet_libraries, say, start_accelerator
from dino_tower.run.state import changed_data, images_at_start
from dino_tower.signals import STOPPED, StopSignals
from dino_tower.sources import open_sources, probe


def main(argv: Sequence[str]) -> int:
    """The command `dino-tower pretrain`; returns its exit code."""
    if "--help" in argv or "-h" in argv:
        print_help(Config, "dino-tower pretrain", __doc__ or "")
    config = read_config(argv)
    if config.print_config:
        print(to_yaml(config), end="")
        return 0
    return guarded(lambda signals: train(config, signals, argv), config.output)


def train(config: Config, signals: StopSignals, words: Sequence[str] = ()) -> int:
    """Run to the end, to a signal, or to a fault that needs a person. Returns the exit code.

    words: the command line behind `pretrain`, noted in the log for the tower's model card.
    """
    continued, run = refuse_or_resume(config), RunDirectory(Path(config.output))
    if (done := run.finished()) is not None:
        say(f"{config.output}: this run is finished ({done} steps); nothing to do")
        return 0
    quiet_libraries()
    accelerator = start_accelerator(config.compute, config.monitor.tracker, config.output)
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    main_process, agreement = accelerator.is_main_process, Agreement(device)

    # --- what is needed: data, a plan, two networks
    source = open_sources(config.data, config.source, split="train")
    probe(source)
    check_source(config, source)
    newest = run.newest() if continued else None
    # a run keeps its length and its schedules, also where the data has changed since
    plan = make_plan(config, (images_at_start(newest) if newest else None) or len(source), world)
    mean, std = mean_and_std(config, source, newest)
    normalise = Normalise(mean, std, device)
    network, teacher = make_networks(config, device, world, source, resumed=newest is not None)
    patch = patch_of(network.backbone)
    processor = processor_for(config.crops.global_size, patch, mean, std)
    objective, extras = make_objective(config).to(device), beside(config, patch)
    torch_optimizer = OPTIMISERS[config.optim.name](groups_of(network, config.optim))
    trained = Trained(network, teacher, objective, torch_optimizer, accelerator.scaler)
    student, optimizer = accelerator.prepare(Student(network, objective), torch_optimizer)

    # --- where the run stands, and what it says before it starts
    position = restore(trained, newest, config, plan.global_batch) if newest else Position()
    start = "" if newest else take_over(trained, config) + said_of_pixels(config, mean, std)
    stated = {**facts(config, plan, world), "teachers": objective.teachers}
    estimate = try_step(accelerator, student, trained, config, plan.global_batch, extras)
    agreement.together((lambda: run.open(config)) if main_process else None)
    if main_process:
        print(announcement(config, plan, source, trained, estimate, world, str(device)))
        if newest and (note := changed_data(newest, len(source))):
            print(f"{note}; the length of the run stays")
        print(f"continuing   {newest}" if newest else f"starting     from step 0{start}", flush=True)
        run.log("start", position.step, command=shlex.join(words), **stated)
    accelerator.init_trackers("tracker")
    watching = main_process and config.monitor.minutes > 0
    alarms = Alarms(objective.rules(), patience=max(50, plan.steps // 20), grace=plan.steps // 10)
    progress = Progress(plan.steps, position.step, plan.global_batch, shown=main_process)
    monitor = Monitor(config, run, source, processor, normalise, progress.say) if watching else None
    writer, faults = BackgroundWriter(), config.faults

    def batches_from(step: int) -> Generator[Batch]:
        loader = build_loader(
            source,
            config.crops,
            views=views_read(config),
            beside=extras,
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
            max_skipped=faults.max_skipped,
            pin_memory=device.type == "cuda",
        )
        return loader

    def save(step: int) -> None:
        position.step = step
        write = snapshot(trained, position, processor, stated)
        writer.submit(lambda: run.write_checkpoint(step, write, faults.keep_last, faults.keep_every))
        run.log("checkpoint", step, path=f"checkpoints/step-{step}")

    # --- the loop
    step = position.step
    statistics = BatchStatistics(network, teacher)
    batches = batches_from(step)
    if monitor is not None and step == 0:
        signals.breakable(partial(monitor.look, 0, teacher, network))
    signals.patient, stop, broken = True, False, False
    while step < plan.steps and not stop and not broken:
        set_rates(torch_optimizer, plan.lr[step], plan.weight_decay[step])
        rates, each, ids = plan.at(step), [], []
        for micro in range(config.compute.accumulate):
            with progress.waiting():
                batch = next(batches)
            inputs = to_device(batch, normalise)
            torch.manual_seed(step_seed(config.seed, step, micro, rank))
            with torch.no_grad(), accelerator.autocast():
                targets = objective.targets(teacher, inputs, rates)
            last = micro + 1 == config.compute.accumulate
            with nullcontext() if last else accelerator.no_sync(student):
                each.append(student(inputs, targets, rates))
                accelerator.backward(each[-1]["loss"] / config.compute.accumulate)
            ids += batch.ids
        accelerator.unscale_gradients()
        grad_norm = CLIP[config.optim.clip_mode](network.named_parameters(), config.optim.clip or float("inf"))
        for p in network.held(rates):  # after clipping: no step, no decay, and Adam's state starts late, as in DINO
            p.grad = None

        losses = mean_of(each)
        loss = losses["loss"]
        finite, unwritten = bool(torch.isfinite(loss + grad_norm)), writer.failed or run.failure is not None
        bad, stop, broken = agreement.any(not finite, signals.received is not None, unwritten)
        if bad:
            objective.forget()
            statistics.put_back()
            if accelerator.scaler is not None:
                accelerator.scaler.update()  # fp16: a smaller scale for the next step
            position.bad_in_a_row += 1
            seen = agreement.gather((str(loss.item()), ids))  # the guilty picture may be any process's
            run.log("bad_step", step, losses=[a for a, _ in seen], grad_norm=str(grad_norm.item()),
                    ids=[name for _, names in seen for name in names])  # fmt: skip
        else:
            position.bad_in_a_row = 0
            statistics.keep()
            optimizer.step()
            objective.commit()
            update_teacher(teacher, network, plan.momentum[step])
        optimizer.zero_grad(set_to_none=True)
        step += 1
        progress.advance()

        if step % config.monitor.log_every == 0 or step == plan.steps:
            row = {**plan.rates(step - 1), **objective.health(targets, losses), "grad_norm": grad_norm.item()}
            row = {**agreement.mean(row), "epoch": step / plan.steps_per_epoch, **progress.rates()}
            run.log("step", step, **row)
            progress.show(row)
            accelerator.log(row, step=step)
            for name, message in alarms.update(step, row):
                progress.say(f"ALARM {name}: {message}")
                run.log("alarm", step, name=name, message=message)
        if position.bad_in_a_row > faults.max_bad_steps:
            agreement.together(writer.join)
            step = go_back(trained, position, run, config, plan.global_batch, step, agreement)
            statistics.keep()
            batches.close()
            batches = batches_from(step)
            progress.back_to(step)
            continue
        # the last checkpoint is where too many bad steps go back to: it must not be one of them
        due = step % config.checkpoint_every == 0 and position.bad_in_a_row == 0
        if main_process and (due or step == plan.steps or stop):
            save(step)
        if monitor is not None and not stop and (monitor.due() or step == plan.steps):
            signals.breakable(partial(monitor.look, step, teacher, network))

    # --- the end
    batches.close()
    progress.close()
    agreement.together(writer.join)
    run.log("end" if step == plan.steps else "stopped", step)
    agreement.together(run.raise_failure)
    accelerator.end_training()
    if main_process:
        print(farewell(config, run, step, plan, signals.received or "a signal to another process"), flush=True)
        run.close()
    return 0 if step == plan.steps else STOPPED


def go_back(
    trained: Trained,
    position: Position,
    run: RunDirectory,
    config: Config,
    global_batch: int,
    step: int,
    agreement: Agreement,
) -> int:
    """Back to the newest good checkpoint after too many bad steps in a row, with the order of data moved on.

    Returns the step to go on from. Raises ConfigError when there is no checkpoint or this happened too often.
    """
    whole = agreement.gather(checkpoints(run.checkpoints))[0]
    good = [path for path in whole if not read_json(path / "state.json").get("bad_in_a_row")]
    seen = f"{config.faults.max_bad_steps + 1} steps in a row up to step {step} had a non-finite loss or gradient"
    if not good or position.rollbacks >= config.faults.max_rollbacks:
        when = f"after going back {position.rollbacks} times" if good else "before the first checkpoint"
        raise ConfigError(
            f"{run.root}: {seen}, {when}; their images are in log.jsonl (bad_step). Lower optim.base_lr, set "
            "compute.precision no, or lower optim.clip"
        )
    reached, rollbacks = step + position.data_offset, position.rollbacks + 1
    position.__dict__.update(vars(restore(trained, good[-1], config, global_batch)))
    position.data_offset, position.rollbacks = reached - position.step, rollbacks
    run.log("rollback", position.step, reason=seen, data_offset=position.data_offset)
    run.forget_after(position.step)
    return position.step
