"""A VLM in two stages, as LLaVA 1.5 is trained (arXiv 2310.03744): the projector alone, then the language model too.

    dino-tower adapt TOWER --task vlm --data FILE.json --language-model DIR --output OUT

Stage 1: tower and language model are frozen. Stage 2: projector + LoRA of the language model, tower frozen or adapted.
transformers' Trainer does the steps; its checkpoints hold what is trained and nothing else.
"""

from __future__ import annotations

import gc
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import transformers

from dino_tower.adapters.vlm.assemble import PROJECTOR
from dino_tower.adapters.vlm.attach import attach_tower, tower_given
from dino_tower.adapters.vlm.batches import Conversations, Words
from dino_tower.adapters.vlm.build import IMAGE_TOKEN, build_vlm
from dino_tower.adapters.vlm.conversations import Conversation, read_conversations
from dino_tower.adapters.vlm.learners import Learners, learners_of_stage_1, learners_of_stage_2
from dino_tower.adapters.vlm.stage import Stage, run_stage
from dino_tower.adapters.vlm.trainable import tower_of
from dino_tower.adapters.vlm_settings import Config, StageConfig
from dino_tower.agreement import Agreement
from dino_tower.checkpoint import load_tensors, save_tensors
from dino_tower.errors import ConfigError
from dino_tower.loading import quiet
from dino_tower.peft_methods import METHODS, peft_config
from dino_tower.run.directory import RunDirectory, refuse_or_resume
from dino_tower.run.entry import guarded, quiet_libraries, say, start_accelerator
from dino_tower.signals import STOPPED, StopSignals
from dino_tower.vlm.vision import vision_of

PROJECTOR_FILE = "projector.safetensors"
TRIED = 1000  # conversations: a millisecond each
LETTERS = 4  # of a token of text, about
MADE = "config.json"  # of the VLM: there when the run is finished


def train_vlm(config: Config) -> int:
    """Both stages, to the end or to a signal; returns the exit code. `config.output` then holds the VLM.

    Raises ConfigError for what cannot be trained, before anything is written.
    """
    return guarded(lambda signals: _train(config, signals), config.output)


def _train(config: Config, signals: StopSignals) -> int:
    refuse_or_resume(config)
    out = Path(config.output)
    if (out / MADE).is_file():
        say(f"{out}: this run is finished; nothing to do")
        return 0
    quiet_libraries()
    accelerator = start_accelerator(config.compute, "none", config.output)
    main, agreement = accelerator.is_main_process, Agreement(accelerator.device)
    data = [
        read_conversations(stage.data or config.data, config.images) if stage.steps != 0 else []
        for stage in (config.stage1, config.stage2)
    ]
    transformers.set_seed(config.seed)
    vlm, processor = make_vlm(config)
    dtype = vlm.dtype
    if config.compute.precision == "no":
        vlm.float()
    if config.method in METHODS:
        peft_config(tower_of(vlm), config.method, config.peft)  # not only when stage 2 begins
    words = words_of(vlm, processor, config.length)
    sets = [Conversations(_tried(part, words), words) for part in data]
    run = RunDirectory(out)
    agreement.together(None)  # all have looked into the directory before the first one writes
    agreement.together((lambda: run.open(config)) if main else None)
    signals.patient = True
    for number, (stage, make, rows) in enumerate(_stages(config, sets), 1):
        if stage.steps == 0 or (number == 1 and _projector_done(out, vlm)):
            continue
        transformers.set_seed(config.seed + number)  # the same adapters, whether stage 1 was done now or yesterday
        learners: Learners = make(vlm, config)
        home = out / f"stage-{number}"
        say(f"stage {number}: {len(rows)} conversations, {vlm.config.image_seq_length} tokens a picture; {learners}")
        if not run_stage(vlm, processor, rows, learners, Stage(number, home, stage), config, signals):
            run.close()
            say(f"stopped by {signals.received}; go on with --resume auto")
            return STOPPED
        learners.merge()
        if number == 1 and main:
            save_tensors(out / PROJECTOR_FILE, getattr(vlm.model, PROJECTOR).state_dict())
        agreement.together(None)
        gc.collect()  # DDP's hooks go with it
    if main:
        write_vlm(vlm.to(dtype), processor, out)
    agreement.together(None)
    run.close()
    say(f"{out}: transformers' AutoModelForImageTextToText.from_pretrained loads it ({type(vlm).__name__})")
    return 0


def make_vlm(config: Config) -> tuple[Any, Any]:
    """The VLM and its processor before training, from the settings. Raises ConfigError."""
    options = {k: v for k, v in asdict(config.projector).items() if k != "kind" and v is not None} or None
    if config.language_model is not None:
        return build_vlm(
            config.tower,
            config.language_model,
            image_size=config.size,
            layer=config.layer,
            projector=config.projector.kind,
            options=options,
            patches_only=config.patches_only or None,
        )
    old, processor = _read_vlm(str(config.vlm))
    tower = tower_given(config.tower)
    return attach_tower(
        old,
        tower,
        processor,
        image_size=config.size,
        layer=config.layer,
        projector=config.projector.kind,
        options=options,
        patches_only=config.patches_only or bool(vision_of(tower).registers),
    )


def words_of(vlm: Any, processor: Any, length: int) -> Words:
    """How this VLM reads conversations. Raises ConfigError for a tokenizer without the image token, and for a VLM that
    cuts pictures into tiles, whose tokens depend on the picture."""
    if vlm.config.model_type not in ("llava", "dino_tower_llava"):
        raise ConfigError(f"a {type(vlm).__name__} is not trained here; build a LLaVA with --language-model")
    known = processor.tokenizer.get_vocab().get(IMAGE_TOKEN)
    if known != vlm.config.image_token_id:
        said = "does not know it" if known is None else f"gives it number {known}"
        raise ConfigError(
            f"the VLM's pictures stand in place of token {vlm.config.image_token_id} ({IMAGE_TOKEN}), and the tokenizer"
            f" {said}; take the tokenizer that the VLM was saved with"
        )
    tokens = int(vlm.config.image_seq_length)
    if tokens >= length:
        raise ConfigError(f"--length {length}: a picture takes {tokens} tokens, and words come on top")
    return Words(processor, tokens, length)


def write_vlm(vlm: Any, processor: Any, out: Path) -> None:
    """Model and processor into `out`; config.json comes last, so that a VLM is there in full or not at all."""
    partial = out / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    with quiet():
        vlm.eval().save_pretrained(partial)
        processor.save_pretrained(partial)
    for file in sorted(partial.iterdir(), key=lambda path: path.name == MADE):
        file.replace(out / file.name)
    partial.rmdir()


def _stages(config: Config, sets: list[Conversations]) -> list[tuple[StageConfig, Any, Conversations]]:
    return [(config.stage1, learners_of_stage_1, sets[0]), (config.stage2, learners_of_stage_2, sets[1])]


def _projector_done(out: Path, vlm: Any) -> bool:
    """Load what stage 1 has left, if it was finished."""
    if not (out / PROJECTOR_FILE).is_file():
        return False
    weights = load_tensors(out / PROJECTOR_FILE)
    dtype = next(iter(weights.values())).dtype  # fp32 under autocast: what is drawn in bf16 would round it
    getattr(vlm.model, PROJECTOR).to(dtype).load_state_dict(weights)
    return True


def _tried(conversations: list[Conversation], words: Words) -> list[Conversation]:
    """Encode the first and the longest once: one that does not fit is named now, not in the middle of the night."""
    pictures = LETTERS * words.image_tokens
    length = [sum(len(text) for _, text in one.turns) + pictures * len(one.images) for one in conversations]
    longest = [conversations[i] for i in sorted(range(len(length)), key=lambda i: -length[i])]
    for one in [*conversations[:TRIED], *longest[:TRIED]]:
        words.encode(one)
    return conversations


def _read_vlm(source: str) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    try:
        with quiet():
            model = AutoModelForImageTextToText.from_pretrained(source, trust_remote_code=False)
            return model, AutoProcessor.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # damaged and foreign directories are met with every kind of exception
        raise ConfigError(f"--vlm {source}: cannot be read: {' '.join(str(error).split())[:200]}") from None
