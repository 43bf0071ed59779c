"""What cannot be used is one line that names it and says what to do, exit code 2, and not a byte changed.

`pytest -s tests/pretrain/test_bad_inputs.py` prints them as a table. What the sources themselves refuse is, at greater
length, in tests/dino_tower/test_sources_mistakes.py.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState

from dino_tower.checkpoint import write_digests
from dino_tower.cli import main

Damage = Callable[[Path], object]

SETTINGS = [
    ("an unknown setting", "--optim.bas-lr 1", "no setting '--optim.bas-lr'; did you mean '--optim.base-lr'?"),
    ("an unknown section", "--optm.base-lr 1", "no setting '--optm.base-lr'; did you mean"),
    ("a section for a setting", "--optim 3", "--optim is a section; its settings: --optim.name"),
    ("no value", "--steps", "--steps needs a value"),
    ("a word of no flag", "demo --steps 1", "'demo' belongs to no flag; settings are given as --key value"),
    ("words for a number", "--batch-size many", "batch_size: 'many' is not a number"),
    ("a fraction of an epoch", "--epochs 1.5", "epochs: '1.5' is not a whole number"),
    ("not a number", "--optim.base-lr nan", "optim.base_lr: 'nan' is not a number"),
    ("two values for one", "--seed 1 2", "seed: one value is needed, not 2: '1 2'"),
    ("two values for three", "--crops.blur-p 1 0.5", "crops.blur_p: 3 values are needed, not 2"),
    ("neither true nor false", "--head.batch-norm maybe", "head.batch_norm: 'maybe' is neither true nor false"),
    ("an unknown choice", "--optim.name adam", "optim.name: no choice 'adam'; did you mean 'adamw'?"),
    ("an unknown way to resume", "--resume maybe", "resume: no choice 'maybe'; choices: auto, no, true"),
    ("no steps", "--steps 0", "steps is 0; it must be above 0"),
    ("a negative number", "--workers -1", "workers is -1; it must not be negative"),
    ("a seed too large", "--seed 1e20", "it must be below 2^63"),
    ("a share above one", "--teacher.momentum 1.5", "teacher.momentum is 1.5; it must lie between 0 and 1"),
    ("a range upside down", "--crops.local-scale 0.4 0.05", "give shares of the picture's area, 0 < low <= high <= 1"),
    ("a colour amount too large", "--crops.jitter 0.4 0.4 0.2 0.9", "hue at most 0.5"),
    ("half a normalisation", "--pixels.mean 1 1 1", "pixels.mean and pixels.std belong together; give both or neither"),
    ("a deviation of zero", "--pixels.mean 0 0 0 --pixels.std 1 1 0", "pixels.std is (1.0, 1.0, 0.0); each must be"),
    ("a tracker misspelt", "--monitor.tracker tensorbord", "no tracker 'tensorbord'; did you mean 'tensorboard'?"),
    ("a tracker that is not there", "--monitor.tracker dvclive", "dvclive is not installed; pip install dvclive"),
    ("fp16 on a CPU", "--compute.precision fp16", "compute.precision fp16 needs a GPU; on a CPU take bf16 or no"),
    ("an unknown architecture", "--arch vits61", "no architecture 'vits61'; did you mean 'vits16'?"),
    ("a size between patches", "--crops.local-size 20", "crops.local_size 20 is not a multiple of the patch size 8"),
    ("width and heads that do not fit", "--model.heads 3", "model.width 32 does not divide into model.heads 3"),
    ("drop path where there is none", "--arch vits8_siglip --model.drop-path 0.1", "set --model.drop-path 0"),
    ("heads for a ResNet", "--arch resnet18", "resnet18 has no model.heads and no model.depth; leave them out"),
    ("a batch larger than the data", "--batch-size 20000", "fewer than one global batch of 20000"),
    ("weights without sources", "--source.weights 1 2", "2 numbers for 1 --data; give one for each"),
    ("a preset misspelt", "--preset dmo", "no preset 'dmo'; did you mean 'demo'?"),
    ("a preset that is not there", "--preset nowhere.yaml", "no file 'nowhere.yaml'"),
    ("a preset that is no YAML", "--preset broken.yaml", "broken.yaml: not YAML"),
    ("a preset that holds code", "--preset code.yaml", "code.yaml: not YAML"),
    ("a preset that is a list", "--preset list.yaml", "list.yaml: not a mapping of settings"),
    ("a preset that is a folder", "--preset folder.yaml", "folder.yaml: cannot be read: is a directory"),
    ("a preset with a wrong key", "--preset typo.yaml", "typo.yaml: no setting 'optim.bas_lr'; did you mean"),
    ("a preset with a wrong value", "--preset wrong.yaml", "wrong.yaml: batch_size: 'many' is not a number"),
    ("an objective misspelt", "--objective ibott", "no objective 'ibott'; did you mean 'ibot'?"),
    ("a term misspelt", "--terms.ibott 1", "no setting '--terms.ibott'; did you mean '--terms.ibot'?"),
    ("a negative weight", "--terms.ibot -1", "terms.ibot is -1.0; it must not be negative"),
    ("nothing to learn", "--terms.dino 0", "terms: nothing to learn from is left of --objective dino"),
    ("nothing but a regulariser", "--objective dinov2 --terms.dino 0 --terms.ibot 0", "nothing to learn from is left"),
    ("KoLeo of one picture", "--terms.koleo 0.1 --batch-size 1", "terms.koleo compares the pictures of a batch"),
    (
        "no mask token",
        "--objective ibot --arch vits8_siglip",
        "needs a class with a mask token, which vits8_siglip lacks",
    ),
    ("no patches", "--objective ibot --arch resnet18", "needs a class with a mask token, which resnet18 lacks"),
    ("prototypes of a shared head", "--objective ibot --ibot.prototypes 64", "the patches' head is shared: set"),
    ("ratios without spreads", "--objective ibot --ibot.ratios 0.3", "ibot.ratios has 1 values and ibot.spreads 2"),
    ("a spread too wide", "--objective ibot --ibot.ratios 0 0.1", "ratio +- spread must lie in 0 to 1"),
    ("more masked than all", "--objective ibot --ibot.share 2", "ibot.share is 2.0; it must lie between 0 and 1"),
    (
        "a hidden range upside down",
        "--objective ibot --ibot.range 0.5 0.1",
        "give two shares of 0 to 1, the lower first",
    ),
    ("distillation from nobody", "--objective distil", "--distil.teachers TOWER [TOWER ...] is missing: whom to learn"),
    ("towers that nobody asks", "--distil.teachers random:vitt8", "set --objective distil or --terms.distil 1"),
    ("a tower that is not there", "--objective distil --distil.teachers nowhere", "nowhere"),
    (
        "features of unlike width",
        "--objective distil --distil.teachers random:vitt8 --distil.hidden 0",
        "has 192 a token",
    ),
    ("an anchor of nothing", "--terms.gram 2", "terms.gram: --gram.tower TOWER is missing: whose patches to stay with"),
    ("an unknown centring", "--loss.centring sinkhon", "loss.centring: no choice 'sinkhon'; did you mean 'sinkhorn'?"),
    ("CLIP of one picture", "--objective clip --batch-size 1", "terms.clip compares a picture with the captions of"),
    ("three global views", "--objective clip --clip.views 3", "clip.views is 3; there are two global views: give 1"),
    ("fewer words than bytes", "--objective clip --clip.vocabulary 200", "clip.vocabulary is 200; 258 or more: 256"),
    ("no word of a caption", "--objective clip --clip.length 2", "clip.length is 2; 3 or more: a word between a start"),
    ("heads of a text tower", "--objective clip --clip.width 20 --clip.heads 3", "20 does not divide into clip.heads"),
    ("no text tower", "--objective clip --clip.depth 0", "clip.depth is 0; it must be above 0"),
    ("a loss misspelt", "--objective clip --clip.loss siglp", "clip.loss: no choice 'siglp'; did you mean 'siglip'?"),
    ("captions misspelt", "--objective clip --clip.captions all", "clip.captions: no choice 'all'"),
    ("SimCLR of one picture", "--objective simclr --batch-size 1", "terms.simclr tells a picture from the others of"),
    ("no temperature", "--objective simclr --simclr.temperature 0", "simclr.temperature is 0.0; it must be above 0"),
    ("all smoothed away", "--objective supervised --supervised.smoothing 1", "give a share from 0 to below 1"),
    ("no view of a label", "--objective supervised --supervised.views 0", "supervised.views is 0; there are two"),
    (
        "layers of a ResNet",
        "--arch resnet18 --optim.layer-decay 0.9",
        "resnet18 has no blocks: leave optim.layer_decay",
    ),
    ("a decay above one", "--optim.layer-decay 1.5", "optim.layer_decay is 1.5; it must lie between 0 and 1"),
    ("SwiGLU where there is none", "--arch vits8_rope --model.swiglu", "vits8_rope has no SwiGLU in transformers"),
    ("start weights that are not there", "--init-from nowhere", "nowhere: cannot be loaded as Dinov2Model"),
    ("start weights of another class", "--init-from {arch}/checkpoints/step-2/student", "not a Dinov2Model"),
    ("start weights cut off", "--init-from cut-tower", "cut-tower: cannot be loaded as Dinov2Model"),
]
PATHS = [
    ("no output", "--output=", "--output DIR is missing: where the run is to be written"),
    ("an output that is a file", "--output file", "--output file: a file of that name exists; name another directory"),
    ("an output below a file", "--output file/run", "file/run: cannot be written: not a directory; make"),
    ("an output with too long a name", f"--output {'x' * 300}", "file name too long; name another directory"),
    ("an output that holds other things", "--output texts", "holds something that is not a run; name a new one"),
    ("a run that is there already", "--output {run}", "a run is there already; add --resume to continue it"),
    ("a run to resume that is not there", "--resume", "--resume: there is no run in out; leave --resume out to start"),
]
SOURCES = [
    ("a folder misspelt", "--data text", "--data 'text' does not exist; did you mean 'texts'?"),
    ("an empty folder", "--data empty", "the folder is empty; put images in it or its sub-folders"),
    ("a folder of texts", "--data texts", "no images among its 3 files (3 .txt); read are .apng"),
    ("a file for a folder", "--data file", "--data 'file' is a file; give a folder of images, a list"),
    ("nothing readable", "--data garbage", "none of 9 images tried could be read; 0.jpg: not an image"),
    ("an empty list", "--data empty.csv", "the list is empty"),
    ("a list of unknown columns", "--data two.csv", "which column holds the images? Name it with --source.image"),
    ("a column misspelt", "--data two.csv --source.image were", "no column 'were'; did you mean 'where'?"),
    ("an unknown kind of source", "--data hff:birds", "no kind of source 'hff:'; did you mean 'hf:'?"),
    ("a level of scenes misspelt", "--data scenes:eazy", "no level of scenes 'eazy'; did you mean 'easy'?"),
    ("shards that are not there", "--data tar:*.tgz", "no file matches '*.tgz'"),
    ("a shard that is none", "--data tar:words.tar", "'words.tar' is not a tar file"),
    ("a compressed shard", "--data tar:packed.tar", "is compressed, as images are already: unpack it"),
    ("a Hub name without the Hub", "--data hf:nobody/nothing", "looked up on the Hub"),
    ("broken parquet", "--data hf:tables", "cannot be opened"),
    ("a negative share of draws", "--data scenes --source.weights -1", "weights are numbers above 0"),
]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def change(path: Path, **values: object) -> None:
    """Other values in a checkpoint's state.json, noted as if they had been written so."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    write_digests(path.parent)


def swap(run: Path, other: str, part: str = "") -> None:
    """The checkpoint, or a part of it, of another run in the place of the own."""
    own, foreign = (one / "checkpoints/step-2" / part for one in (run, run.with_name(other)))
    shutil.rmtree(own)
    shutil.copytree(foreign, own)
    write_digests(run / "checkpoints/step-2")


LAST = "checkpoints/step-2"
RUNS: list[tuple[str, Damage, str, str]] = [
    ("a checkpoint cut off", lambda run: (run / LAST / "student/model.safetensors").write_bytes(b"\x40"), "",
     "student/model.safetensors: damaged: its contents are not what was written"),
    ("one bit of the weights", lambda run: flip(run / LAST / "heads.safetensors"), "",
     "step-2/heads.safetensors: damaged: its contents are not what was written (SHA-256 in digests.json); delete"),
    ("one bit of the optimiser", lambda run: flip(run / LAST / "optimizer.safetensors"), "", "to go on from step-1"),
    ("one bit of the state", lambda run: flip(run / LAST / "state.json"), "", "state.json: damaged: its contents are"),
    ("no teacher", lambda run: shutil.rmtree(run / LAST / "teacher"), "", "teacher/config.json: cannot be read"),
    ("a state that is no JSON", lambda run: (run / LAST / "state.json").write_text("[1"), "", "state.json: damaged"),
    ("no digests", lambda run: (run / LAST / "digests.json").unlink(), "", "digests.json: cannot be read: no such"),
    ("another architecture's checkpoint", lambda run: swap(run, "arch"), "", "by a run with arch 'vits8_reg4', not"),
    ("another architecture's student", lambda run: swap(run, "arch", "student"), "", "not a Dinov2Model of this shape"),
    ("another run's checkpoint", lambda run: swap(run, "seed"), "", "step-2: written by a run with seed 1, not 0"),
    ("another version's checkpoint", lambda run: change(run / LAST / "state.json", format=2, version="9.0"), "",
     "written by dino-tower 9.0 in format 2; this is 0.1.0, which reads format 1"),
    ("another global batch", lambda run: None, "--batch-size 4", "choose --batch-size and --compute.accumulate so"),
    ("another seed", lambda run: None, "--seed 7", "this run has seed 0, not 7; leave --seed out to go on"),
    ("other data", lambda run: None, "--data scenes:medium", "this run has data ('scenes',), not ('scenes:medium',)"),
    ("another preset", lambda run: None, "--preset dino_vits16", "started with --preset demo, not dino_vits16; leave"),
    ("settings that are no YAML", lambda run: (run / "config.yaml").write_text("a: ["), "", "config.yaml: not YAML"),
    ("settings of something else", lambda run: (run / "config.yaml").write_text("lr: 1"), "", "no setting 'lr'"),
    ("no settings", lambda run: (run / "config.yaml").unlink(), "", "the directory holds something that is not a run"),
]  # fmt: skip


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, tiny) -> Path:
    """What the cases refer to. run: ended after step 2 of 4; seed and arch: the same of another seed, architecture."""
    ground = tmp_path_factory.mktemp("ground")
    for name in ("empty", "texts", "garbage", "tables", "folder.yaml"):
        (ground / name).mkdir()
    for i in range(9):
        (ground / f"texts/{i % 3}.txt").write_text("words")
        (ground / f"garbage/{i}.jpg").write_text("words")
    (ground / "tables/part.parquet").write_bytes(b"PAR1")
    written = {
        "file": "x", "broken.yaml": "a: [", "code.yaml": "!!python/object/apply:os.getpid []", "list.yaml": "- a",
        "typo.yaml": "optim: {bas_lr: 1}", "wrong.yaml": "batch_size: many", "empty.csv": "",
        "two.csv": "where,what\na.png,b\n", "words.tar": "this is no tar file " * 100,
    }  # fmt: skip
    for name, text in written.items():
        (ground / name).write_text(text)
    with tarfile.open(ground / "packed.tar", "w:gz") as tar:
        tar.add(ground / "file")
    flags = ("--steps", "4", "--checkpoint-every", "1", "--faults.keep-last", "9")
    for name, more in (("run", ()), ("seed", ("--seed", "1")), ("arch", ("--arch", "vits8_reg4"))):
        fresh()
        assert main(["pretrain", *tiny(*flags, *more), "--output", str(ground / name)]) == 0
        for step in (3, 4):
            shutil.rmtree(ground / f"{name}/checkpoints/step-{step}")
    shutil.copytree(ground / f"run/{LAST}/student", ground / "cut-tower")
    (ground / "cut-tower/model.safetensors").write_bytes(b"\x40\0\0\0")
    return ground


def fresh() -> None:
    """accelerate keeps one precision a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.fixture
def refused(ground: Path, monkeypatch: pytest.MonkeyPatch, capsys, tiny) -> Callable[[str, str, str], None]:
    """refused(case, flags, line): the main job with these flags is refused with this line, and changes nothing."""

    def check(case: str, flags: str, line: str) -> None:
        fresh()
        monkeypatch.chdir(ground)
        words = shlex.split(flags.format(run="run", arch="arch"))
        if "--output" not in flags:
            words += ["--output", "out"]
        stray = [] if words[0].startswith("--") else [words.pop(0)]
        words = [*stray, *tiny(*words)]
        before = contents(ground)
        capsys.readouterr()
        code = main(["pretrain", *words])
        said = capsys.readouterr().err.strip()
        assert (code, said.count("\n")) == (2, 0), said
        assert line in said and len(said) < 900
        assert contents(ground) == before
        with capsys.disabled() if "-s" in sys.argv else nullcontext():
            print(f"| {case} | {said.removeprefix('dino-tower: ')} |")

    return check


@pytest.mark.parametrize("case", [*SETTINGS, *PATHS, *SOURCES], ids=lambda case: case[0])
def test_one_line_and_nothing_written(case: tuple[str, str, str], refused) -> None:
    refused(*case)


@pytest.mark.parametrize("case", RUNS, ids=lambda case: case[0])
def test_a_run_that_cannot_be_resumed_is_left_alone(case, refused, ground: Path) -> None:
    name, damage, flags, line = case
    run = ground / "damaged"
    shutil.copytree(ground / "run", run)
    try:
        damage(run)
        refused(name, f"--steps 4 --checkpoint-every 1 --output damaged --resume {flags}", line)
    finally:
        shutil.rmtree(run)


HOLDER = """
import fcntl, sys
lock = open(sys.argv[1], "w")
fcntl.lockf(lock, fcntl.LOCK_EX)
print(flush=True)
input()
"""


@pytest.fixture
def holder(ground: Path) -> Iterator[subprocess.Popen]:
    """Another process that is writing the run."""
    command = [sys.executable, "-c", HOLDER, str(ground / "run/.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline()
        yield process
        process.kill()


def test_two_runs_on_one_directory_at_once(holder: subprocess.Popen, refused) -> None:
    line = "--output run: another process is training this run; wait until it has ended, or end it"
    refused("two runs on one directory at once", "--steps 4 --checkpoint-every 1 --output run --resume", line)
