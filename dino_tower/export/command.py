"""`dino-tower export` and `dino-tower convert`. torch is imported when the words have been understood."""

from __future__ import annotations

from pathlib import Path

from dino_tower.cli import OneLineParser
from dino_tower.errors import ConfigError
from dino_tower.run.spelling import NETWORKS


def export(argv: list[str]) -> None:
    """`dino-tower export RUN OUT ...`: write the tower, print the differences that were measured and where it went."""
    parser = OneLineParser(
        prog="dino-tower export", description="Write a run's tower as a directory that other software loads."
    )
    parser.add_argument("run", metavar="RUN", help="the directory that pretrain wrote, or RUN@teacher")
    parser.add_argument("out", metavar="OUT", help="the directory to write")
    parser.add_argument("--weights", choices=NETWORKS, default="", help="which of the run's two (default: the student)")
    parser.add_argument(
        "--format",
        default="native",
        metavar="FORMAT",
        help="native (default), vit, timm, dino, dinov2, onnx, heads, text",
    )
    parser.add_argument("--license", metavar="ID", help="for the model card: apache-2.0, cc-by-4.0, other, ...")
    parser.add_argument("--note", metavar="FILE", help="Markdown that the model card is to contain")
    parser.add_argument("--push-to-hub", metavar="OWNER/NAME", help="upload it, too")
    parser.add_argument("--private", action="store_true", help="make the repository on the Hub private")
    options = parser.parse_args(argv)
    if options.private and not options.push_to_hub:
        parser.error("--private says how to push: give --push-to-hub OWNER/NAME, too")
    note = _text(options.note) if options.note else ""
    from dino_tower.export.writing import export_tower

    export_tower(
        options.run,
        options.out,
        options.weights,
        note,
        format=options.format,
        license=options.license,
        push_to_hub=options.push_to_hub,
        private=options.private,
        say=print,
    )
    print(options.out)


def convert(argv: list[str]) -> None:
    """`dino-tower convert IN OUT --to FORMAT ...`: write the same weights in another layout, checked."""
    parser = OneLineParser(
        prog="dino-tower convert", description="Write the weights of a ViT in the layout of another library."
    )
    parser.add_argument("source", metavar="IN", help="a .pth or .safetensors file, or a directory with weights")
    parser.add_argument("out", metavar="OUT", help="the directory to write")
    parser.add_argument("--to", required=True, metavar="FORMAT", help="native, vit, timm, dino or dinov2")
    parser.add_argument("--weights", choices=NETWORKS, default="teacher", help="of a training checkpoint")
    parser.add_argument(
        "--heads", type=int, metavar="N", help="attention heads, if no file tells (default: width / 64)"
    )
    options = parser.parse_args(argv)
    from dino_tower.convert.conversion import convert_weights

    convert_weights(options.source, options.out, options.to, network=options.weights, heads=options.heads, say=print)
    print(options.out)


def _text(file: str) -> str:
    from dino_tower.checkpoint import reason

    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--note {file}: cannot be read: {reason(error)}") from None
