"""Conversations: what is learned of them, and what is wrong with them in one line, before anything is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import LlavaProcessor

from dino_tower.adapters.vlm.batches import IGNORED, Collator, Conversations, Words
from dino_tower.adapters.vlm.build import TEMPLATE
from dino_tower.adapters.vlm.conversations import read_conversations
from dino_tower.cli import main
from dino_tower.errors import ConfigError
from dino_tower.tower import Tower


@pytest.fixture
def words(towers: dict[str, Tower], tokenizer: Any) -> Words:
    processor = LlavaProcessor(
        image_processor=towers["plain"].processor,
        tokenizer=tokenizer,
        chat_template=TEMPLATE,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return Words(processor, 16, 64)


def test_answers_are_learned_and_questions_are_not(conversations: Path, words: Words) -> None:
    """LLaVA's turns; the end of an answer belongs to it, so that the model learns to stop."""
    one = read_conversations([conversations])[0]
    ids, labels = words.encode(one)
    name = words.processor.tokenizer.convert_ids_to_tokens
    text = " ".join(name(ids)).replace("<image> " * 16, "[16] ")
    assert text == "<s> USER: [16] what is it ? ASSISTANT: red ring </s> USER: is it red ? ASSISTANT: yes </s>"
    assert name([label for label in labels if label != IGNORED]) == ["red", "ring", "</s>", "yes", "</s>"]
    assert all(label in (IGNORED, token) for token, label in zip(ids, labels, strict=True))


def test_tokens_are_what_the_processor_makes(conversations: Path, words: Words) -> None:
    """Training and serving read the same: the prompt through the processor is where the answer was learned."""
    ids, labels = words.encode(read_conversations([conversations])[0])
    prompt = words.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it ?"}]}],
        add_generation_prompt=True,
    )
    picture = read_conversations([conversations])[0].images[0]
    from PIL import Image

    served = words.processor(images=Image.open(picture), text=prompt, return_tensors="pt").input_ids[0].tolist()
    first = next(i for i, label in enumerate(labels) if label != IGNORED)
    assert served == ids[:first]


def test_batches(conversations: Path, words: Words) -> None:
    """One, two and no pictures in a batch; padding is neither seen nor learned."""
    rows = Conversations(read_conversations([conversations]), words)
    assert not rows.all_have_pictures
    batch = Collator(0)([rows[5], rows[6], rows[7]])
    assert batch["pixel_values"].shape == (3, 3, 64, 64)
    assert (batch["input_ids"] == 5).sum(1).tolist() == [16, 32, 0]
    lengths = [len(rows[i]["input_ids"]) for i in (5, 6, 7)]
    assert batch["attention_mask"].sum(1).tolist() == lengths
    assert (batch["labels"][2, lengths[2] :] == IGNORED).all()
    assert "pixel_values" not in Collator(0)([rows[7]])


def test_a_template_that_rewrites_earlier_turns_is_refused(conversations: Path, words: Words) -> None:
    """Some templates drop what the assistant thought once a later question comes: nobody could say what is learned."""
    words.processor.chat_template = "{{ messages[-1]['content'] }}"
    with pytest.raises(ConfigError, match="the chat template writes its first turns otherwise when more follow"):
        words.encode(read_conversations([conversations])[1])


def test_json_lines(conversations: Path, tmp_path: Path) -> None:
    entries = json.loads(conversations.read_text())
    lines = conversations.with_suffix(".jsonl")
    lines.write_text("\n".join(json.dumps(entry) for entry in entries) + "\n")
    assert [one.turns for one in read_conversations([lines])] == [
        one.turns for one in read_conversations([conversations])
    ]


Edit = Callable[[list[Any]], Any]


def first(**changes: Any) -> Edit:
    return lambda entries: [{**entries[0], **changes}, *entries[1:]]


def turns(*spoken: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": who, "value": text} for who, text in spoken]


BROKEN: dict[str, tuple[Edit, str]] = {
    "two images asked for, one given": (
        first(conversations=turns(("human", "<image> <image> is it ?"), ("gpt", "no"))),
        "talk.json: conversation 0 (id '0'): 2 <image> in its text, and 1 pictures in 'image'",
    ),
    "no image asked for, one given": (first(conversations=turns(("human", "is it ?"), ("gpt", "no"))), "0 <image> in"),
    "image missing": (first(image="gone.png"), "conversation 0 (id '0'): no picture 'gone.png' in"),
    "image is a number": (first(image=3), "'image' is a number, not a path or a list of paths"),
    "image in the answer": (
        first(conversations=turns(("human", "<image> what ?"), ("gpt", "<image>"))),
        "<image> in what gpt or system says",
    ),
    "nobody answers": (first(conversations=turns(("human", "<image> what ?"))), "to an answer at the end"),
    "gpt begins": (
        first(conversations=turns(("gpt", "yes"), ("human", "<image> what ?"))),
        "the turns are not human, gpt",
    ),
    "system in the middle": (
        first(conversations=turns(("human", "<image> ?"), ("gpt", "no"), ("system", "x"))),
        "'system' may come first only",
    ),
    "unknown speaker": (
        first(conversations=turns(("humen", "<image> what ?"), ("gpt", "yes"))),
        "no speaker 'humen'; did you mean 'human'?",
    ),
    "a turn without words": (first(conversations=[{"from": "human"}]), "a turn is {'from': 'human' or 'gpt', 'value'"),
    "no conversations": (lambda entries: [{"id": "0", "image": "0.png"}], "no 'conversations' in it"),
    "an entry that is a text": (lambda entries: ["what"], "conversation 0 is a text, not an object"),
    "no list": (lambda entries: {"data": entries}, "an object, not a list of conversations"),
    "nothing": (lambda entries: [], "no conversations"),
    "too long": (
        first(conversations=turns(("human", "<image> " + "what " * 60), ("gpt", "yes"))),
        "--length 64 cuts off its answers or its pictures, which take 16 tokens; it has",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_conversations(
    case: str,
    conversations: Path,
    towers: dict[str, Tower],
    language_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Through the front door: one line, exit code 2, nothing written."""
    edit, message = BROKEN[case]
    conversations.write_text(json.dumps(edit(json.loads(conversations.read_text()))))
    refused(
        capsys,
        tmp_path / "out",
        message,
        towers["plain"].name,
        str(conversations),
        str(language_model),
        "--length",
        "64",
    )


def refused(
    capsys: pytest.CaptureFixture[str], out: Path, message: str, tower: str, data: str, language: str, *more: str
) -> None:
    capsys.readouterr()
    words = [tower, "--task", "vlm", "--data", data, "--language-model", language, "--output", str(out), *more]
    assert main(["adapt", *words, "--compute.cpu"]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dino-tower: ")]
    assert len(said) == 1 and message in said[0], said
    assert not out.exists()


def test_a_short_text_with_many_pictures_is_looked_through(
    conversations: Path, towers: dict[str, Tower], language_model: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Of many conversations the longest are tried, and pictures take most of the room: by its letters this one was
    among the shortest, and ended the run from within the data loader."""
    monkeypatch.setattr("dino_tower.adapters.vlm.training.TRIED", 2)
    long = {"image": "0.png", "conversations": turns(("human", "<image> " + "what " * 30), ("gpt", "yes"))}
    many = {"image": ["0.png"] * 4, "conversations": turns(("human", "<image> " * 4), ("gpt", "yes"))}
    conversations.write_text(json.dumps([long] * 5 + [many]))
    said = "conversation 5: --length 64 cuts off its answers or its pictures, which take 64 tokens"
    refused(
        capsys, tmp_path / "out", said, towers["plain"].name, str(conversations), str(language_model), "--length", "64"
    )


COMMANDS: dict[str, tuple[list[str], str]] = {
    "no such file": (["--data", "gone.json"], "gone.json: no such file"),
    "no JSON": (["--data", "README"], "README: not JSON"),
    "no such folder of pictures": (["--images", "gone"], "--images gone: no such folder"),
    "two language models": (
        ["--vlm", "x"],
        "give --language-model DIR (a causal language model) or --vlm DIR (a LLaVA)",
    ),
    "unknown projector": (["--projector.kind", "mpl"], "no projector 'mpl'; did you mean 'mlp'?"),
    "option of another projector": (
        ["--projector.tokens", "4"],
        "projector 'mlp' has no options, and 'tokens' was given",
    ),
    "unknown method": (["--method", "lorra"], "no method 'lorra'; did you mean 'lora'?"),
    "adapter settings without adapter": (["--peft.rank", "4"], "--method none has no adapter"),
    "nothing to train": (["--stage1.steps", "0", "--stage2.steps", "0"], "nothing would be trained"),
    "no room for words": (["--length", "16"], "--length 16: a picture takes 16 tokens, and words come on top"),
    "unknown setting": (["--stage3.lr", "1"], "--stage3.lr"),
    "size that is no multiple": (["--size", "60"], "60 px are not a multiple of the patch size 16"),
    "nothing to resume": (["--resume", "true"], "there is no run in"),
    "fp16 on a CPU": (["--compute.precision", "fp16"], "compute.precision fp16 needs a GPU"),
    "no data for one stage": (["--data", "", "--stage1.data", "talk.json"], "--data FILE is missing"),
    "a rank of nothing": (["--method", "lora", "--peft.rank", "0"], "peft.rank is 0; it must be above 0"),
    "an unknown layer": (["--method", "lora", "--peft.modules", "q_prj"], "no layer for lora to adapt 'q_prj'"),
    "blocks that do not divide": (["--method", "oft", "--peft.rank", "5"], "blocks of 5 do not divide the 32 features"),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_broken_commands(
    case: str,
    conversations: Path,
    towers: dict[str, Tower],
    language_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("README").write_text("no JSON")
    more, message = COMMANDS[case]
    data = str(conversations) if "--data" not in more else more[1]
    more = more if "--data" not in more else more[2:]
    refused(capsys, tmp_path / "out", message, towers["plain"].name, data, str(language_model), *more)


def test_language_models_that_cannot_be_used(
    conversations: Path,
    towers: dict[str, Tower],
    language_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No language model there, none inside, no tokenizer beside it."""
    tower, data = towers["plain"].name, str(conversations)
    refused(capsys, tmp_path / "out", "there is no such directory", tower, data, "./gone")
    refused(capsys, tmp_path / "out", "cannot be read as a language model", tower, data, tower)
    for file in language_model.glob("tokenizer*"):
        file.unlink()
    refused(capsys, tmp_path / "out", "lm: cannot be read as a tokenizer", tower, data, str(language_model))
