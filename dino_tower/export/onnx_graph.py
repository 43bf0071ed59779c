"""A tower as one ONNX file: pixels in, patch tokens on their grid and the class token out.

B pictures, h x w the patch grid, D features.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dino_tower.errors import ConfigError
from dino_tower.export.same_features import Forward, native_size
from dino_tower.positions import follow_any_size
from dino_tower.tokens import Tokens
from dino_tower.tower import Tower

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
EXAMPLE = (3, 5)  # patches: neither square nor native, so that the exporter takes no size for granted
OPSET = 20


class _Pixels(nn.Module):
    """[B, 3, H, W] to patches [B, h, w, D] and, where the tower has one, cls [B, D]."""

    def __init__(self, model: Any, patch: int) -> None:
        super().__init__()
        self.model, self.patch = model, patch
        self.kind: str = model.config.model_type

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        if self.kind == "resnet":
            return (self.model(pixel_values).last_hidden_state.permute(0, 2, 3, 1),)
        # always interpolated: at the native size that changes nothing, and no size is built in
        flag = {"interpolate_pos_encoding": True} if self.kind in ("clip_vision_model", "siglip_vision_model") else {}
        hidden = self.model(pixel_values, **flag).last_hidden_state
        if self.kind == "clip_vision_model":  # the class norms its class token only
            hidden = self.model.post_layernorm(hidden)
        grid = (pixel_values.shape[-2] // self.patch, pixel_values.shape[-1] // self.patch)
        if self.kind == "siglip_vision_model":
            return (hidden.unflatten(1, grid),)
        prefix = 1 + getattr(self.model.config, "num_register_tokens", 0)
        return hidden[:, prefix:].unflatten(1, grid), hidden[:, 0]


FAMILIES = (
    "dinov2", "dinov2_with_registers", "dinov3_vit", "siglip_vision_model", "clip_vision_model", "resnet",
)  # fmt: skip


def write_onnx(tower: Tower, folder: Path, checkpoint: Path | None = None) -> list[str]:
    """tower.onnx with free batch, height and width; where the exporter cannot, a fixed size that the name states.

    Raises ConfigError when the onnx packages are missing.
    """
    need_packages()
    kind = tower.model.config.model_type
    if kind not in FAMILIES:
        raise ConfigError(f"format onnx: no {kind}; choices: {', '.join(FAMILIES)}")
    model: Any = copy.deepcopy(tower.model).cpu().float().eval()
    if kind == "dinov2_with_registers":
        follow_any_size(model)
    if kind != "resnet":
        model.set_attn_implementation("eager")  # plain products: what every runtime knows
    module = _Pixels(model, tower.patch)
    free = torch.export.Dim.DYNAMIC
    tower.processor.save_pretrained(folder)
    try:
        example = torch.zeros(2, 3, EXAMPLE[0] * tower.patch, EXAMPLE[1] * tower.patch)
        _export(module, example, {0: free, 2: free, 3: free}, folder / "tower.onnx")
        _run_at_another_size(folder / "tower.onnx", tower.patch)
        return []
    except Exception as error:  # the exporter's and the runtime's own: whatever they cannot do, a fixed size they can
        for part in folder.glob("tower.onnx*"):
            part.unlink()
        height, width = native_size(model, tower.processor, tower.patch)
        _export(module, torch.zeros(2, 3, height, width), {0: free}, folder / f"tower_{height}x{width}.onnx")
        reason = " ".join(str(error).split())[:120]
        return [f"height and width are fixed at {height} x {width}: the exporter cannot leave them free ({reason})"]


def _run_at_another_size(file: Path, patch: int) -> None:
    """The runtime raises where a size was built in after all."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    pixels = torch.zeros(1, 3, (EXAMPLE[0] + 1) * patch, (EXAMPLE[1] - 1) * patch)
    session.run(None, {"pixel_values": pixels.numpy()})


def need_packages() -> None:
    """Raise ConfigError naming the packages that are missing."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise ConfigError(f"format onnx needs packages that are not installed: pip install {' '.join(missing)}")


def _export(module: _Pixels, example: Tensor, dynamic: dict[int, Any], file: Path) -> None:
    with _quiet(), torch.no_grad():
        outputs = ["patches", "cls"][: len(module(example))]
        program = torch.onnx.export(
            module, (example,), dynamo=True, dynamic_shapes=(dynamic,), input_names=["pixel_values"],
            output_names=outputs, opset_version=OPSET, verbose=False,
        )  # fmt: skip
        assert program is not None  # with dynamo=True it is returned
        program.save(str(file), external_data=file_is_large(module))


def file_is_large(module: nn.Module) -> bool:
    """An ONNX file is at most 2 GB; beyond, the weights stand in a file beside it."""
    return sum(p.numel() * p.element_size() for p in module.parameters()) > 1.9e9


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports on its insides; what matters is checked afterwards."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def onnx_file(folder: Path) -> Path:
    """The ONNX file of an exported directory."""
    return next(iter(sorted(folder.glob("*.onnx"))))


def open_onnx(folder: Path, tower: Tower) -> Forward:
    """onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(onnx_file(folder)), providers=["CPUExecutionProvider"])

    def forward(pixels: Tensor) -> Tokens:
        patches, *cls = (torch.from_numpy(a) for a in session.run(None, {"pixel_values": pixels.numpy()}))
        return Tokens(patches, cls[0] if cls else None)

    return forward
