"""One stage under transformers' Trainer: checkpoints of what learns, a log, a stop on a signal."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from dino_tower.adapters.vlm.batches import Collator, Conversations
from dino_tower.adapters.vlm.learners import Learners
from dino_tower.adapters.vlm.trainable import tower_of
from dino_tower.adapters.vlm_settings import Config, StageConfig
from dino_tower.checkpoint import save_tensors
from dino_tower.errors import ConfigError
from dino_tower.signals import StopSignals

WEIGHTS = "model.safetensors"  # as Trainer looks for it
LAST_WRITTEN = "trainer_state.json"  # of a checkpoint: without it, it is not whole


@dataclass(frozen=True)
class Stage:
    """number: 1 or 2; home: of its checkpoints."""

    number: int
    home: Path
    settings: StageConfig


class TrainedOnly(Trainer):
    """Trainer whose checkpoints hold the weights that learn, not gigabytes of frozen ones."""

    tower_lr: float | None = None

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(folder / WEIGHTS, learned(self.accelerator.unwrap_model(self.model)))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """The frozen weights are missing on purpose; nothing else may be."""
        expected = set(learned(self.accelerator.unwrap_model(self.model)))
        if load_result.unexpected_keys or expected & set(load_result.missing_keys):
            raise ConfigError(f"{self.args.output_dir}: the checkpoint holds other weights than these settings train")

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """With a frozen tower as it will be used: Trainer puts all of the VLM into training mode at every step, in
        which DINOv3 moves its positions and others drop blocks."""
        tower = tower_of(self.accelerator.unwrap_model(model))
        if not any(parameter.requires_grad for parameter in tower.parameters()):
            tower.eval()
        return super().compute_loss(model, inputs, *args, **kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """AdamW; the tower has a rate of its own. One group a rate and a decay."""
        if self.optimizer is None:
            found = self.accelerator.unwrap_model(self.model).named_parameters()
            groups: dict[tuple[bool, bool], list[Tensor]] = {}
            for name, parameter in found:
                if parameter.requires_grad:
                    groups.setdefault(("vision_tower" in name, parameter.ndim > 1), []).append(parameter)
            rates = {True: self.tower_lr, False: self.args.learning_rate}
            listed = [
                {"params": params, "lr": rates[tower], "weight_decay": self.args.weight_decay if matrix else 0.0}
                for (tower, matrix), params in groups.items()
            ]
            self.optimizer = torch.optim.AdamW(listed, lr=self.args.learning_rate, betas=(0.9, 0.999))
        return self.optimizer


class Log(TrainerCallback):
    """Rows of log.jsonl, a line a row, an end to a loss that is no number, and to a run that is asked to stop."""

    def __init__(self, file: Path, stage: int, signals: StopSignals) -> None:
        self.file, self.stage, self.signals = file, stage, signals

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Rows behind the checkpoint that a run goes on from are written anew."""
        if state.is_world_process_zero and self.file.is_file():
            rows = [json.loads(line) for line in self.file.read_text().splitlines()]
            kept = [row for row in rows if (row["stage"], row["step"]) <= (self.stage, state.global_step)]
            self.file.write_text("".join(json.dumps(row) + "\n" for row in kept))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """A row for each report of a loss."""
        if logs is None or "loss" not in logs:
            return
        row = {"stage": self.stage, "step": state.global_step, "loss": float(logs["loss"])}
        row |= {key: float(logs[key]) for key in ("learning_rate", "grad_norm") if key in logs}
        if not math.isfinite(row["loss"]):
            raise ConfigError(
                f"stage {self.stage}: the loss is {row['loss']} at step {row['step']}; lower --stage{self.stage}.lr"
            )
        if state.is_world_process_zero:
            with self.file.open("a") as out:
                out.write(json.dumps(row) + "\n")
            print(f"stage {self.stage} step {row['step']}/{state.max_steps}: loss {row['loss']:.4f}", flush=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """All processes stop after the same step."""
        asked = torch.tensor(float(self.signals.received is not None), device=args.device)
        if dist.is_initialized():
            dist.all_reduce(asked)
        if asked:
            self.signals.received = self.signals.received or "a signal to another process"
            control.should_save = control.should_training_stop = True


def run_stage(
    vlm: Any,
    processor: Any,
    rows: Conversations,
    learners: Learners,
    stage: Stage,
    config: Config,
    signals: StopSignals,
) -> bool:
    """Train until the stage's end (True) or a signal (False), going on from its newest whole checkpoint."""
    trainer = TrainedOnly(
        model=vlm,
        args=arguments(stage, config, rows.all_have_pictures),
        train_dataset=rows,
        data_collator=Collator(processor.tokenizer.pad_token_id),
        callbacks=[Log(stage.home.parent / "log.jsonl", stage.number, signals)],
    )
    rate = stage.settings.tower_lr
    trainer.tower_lr = stage.settings.lr / 10 if rate is None else rate
    trainer.remove_callback(PrinterCallback)
    text = vlm.config.text_config
    cached, text.use_cache = text.use_cache, False
    trainer.train(resume_from_checkpoint=newest(stage.home))
    text.use_cache = cached
    done = signals.received is None or trainer.state.global_step >= trainer.state.max_steps
    trainer.accelerator.free_memory()
    return done


def arguments(stage: Stage, config: Config, all_have_pictures: bool) -> TrainingArguments:
    """Trainer's settings for a stage."""
    wanted, compute = stage.settings, config.compute
    return TrainingArguments(
        output_dir=str(stage.home),
        per_device_train_batch_size=wanted.batch_size,
        gradient_accumulation_steps=wanted.accumulate,
        learning_rate=wanted.lr,
        weight_decay=wanted.weight_decay,
        num_train_epochs=wanted.epochs,
        max_steps=-1 if wanted.steps is None else wanted.steps,
        lr_scheduler_type="cosine",
        warmup_steps=wanted.warmup,  # below 1 it is a share of the steps
        max_grad_norm=1.0,
        logging_steps=config.monitor.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=config.checkpoint_every,
        save_total_limit=2,
        seed=config.seed,
        data_seed=config.seed,
        bf16=compute.precision == "bf16",
        fp16=compute.precision == "fp16",
        use_cpu=PartialState().device.type == "cpu",  # else torchrun's processes would be one each without a GPU
        activation_checkpointing=compute.checkpointing,
        dataloader_num_workers=config.workers,
        ddp_find_unused_parameters=not all_have_pictures,  # a batch of words alone does not reach the projector
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=True,
        report_to=[],
    )


def newest(home: Path) -> str | None:
    """The newest whole checkpoint, None where there is none."""
    whole = [path for path in home.glob("checkpoint-*") if (path / LAST_WRITTEN).is_file()]
    return str(max(whole, key=lambda path: int(path.name.split("-")[1]))) if whole else None


def learned(model: Any) -> dict[str, Tensor]:
    """Names and weights of what learns."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
