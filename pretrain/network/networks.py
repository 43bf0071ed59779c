"""Student and teacher of a run, built from its settings."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from dino_tower.architectures import build
from dino_tower.errors import ConfigError
from dino_tower.positions import rescale_at_random, use_reference_interpolation
from dino_tower.pretrain.network import lora
from dino_tower.pretrain.network.lean_blocks import make_lean
from dino_tower.pretrain.network.lora_settings import TOWER
from dino_tower.pretrain.network.starts import weights_of
from dino_tower.pretrain.network.student_teacher import Network, make_teacher
from dino_tower.pretrain.network.synchronised import synchronise_batch_norm
from dino_tower.pretrain.network.weights import load_backbone
from dino_tower.pretrain.objectives.objective import hides, parts_of, student_only
from dino_tower.pretrain.settings import Config
from dino_tower.sources import Source
from dino_tower.tokens import patch_size


def make_networks(
    config: Config, device: torch.device, world: int, source: Source | None = None, resumed: bool = False
) -> tuple[Network, Network]:
    """Student and teacher with equal weights, the same on every process.

    source: the data, for parts that depend on it. resumed: a checkpoint brings the weights, so the start is not asked
    for them again; it may have gone. Raises ConfigError for settings that do not fit each other.
    """
    torch.manual_seed(config.seed)
    backbone = make_backbone(config, untrained=resumed and config.arch != TOWER)  # an adapter's checkpoint has no base
    adapter = lora.adapt(backbone, config) if config.arch == TOWER else None
    parts = {name: make() for name, make in parts_of(config, backbone, source).items()}
    student = Network(backbone, **parts).to(device)
    student.adapter = adapter
    if backbone.config.model_type == "resnet":  # views arrive with channels last, and convolutions are faster so
        student.to(memory_format=torch.channels_last)
    if backbone.config.model_type != "resnet":
        backbone.set_attn_implementation(config.compute.attention)
    make_lean(backbone)
    teacher = make_teacher(student, student_only(config))
    if config.compute.activation_checkpointing:
        _checkpoint_activations(backbone)
    if world > 1:
        synchronise_batch_norm(student)
        synchronise_batch_norm(teacher)
    if config.compute.compile:
        student.backbone.compile()
        teacher.backbone.compile()
    return student, teacher


def patch_of(backbone: PreTrainedModel) -> int:
    """Pixels of a patch's side; 1 for a ResNet, whose views may have any size."""
    return 1 if backbone.config.model_type == "resnet" else patch_size(backbone)


def make_backbone(config: Config, untrained: bool = False) -> PreTrainedModel:
    """The backbone that the settings describe, with the weights of `init_from` if given and not `untrained`."""
    if config.arch == TOWER:
        return lora.untrained(config) if untrained else lora.open_base(config)
    crops, model = config.crops, config.model
    backbone = build(
        config.arch,
        image_size=crops.global_size,
        drop_path=model.drop_path,
        layerscale=model.layerscale,
        width=model.width,
        depth=model.depth,
        heads=model.heads,
        uniform_drop_path=model.drop_path_uniform,
        swiglu=model.swiglu,
        mask_token=hides(config),
        token_std=model.token_std,
    )
    patch = patch_size(backbone)
    # transformers silently floors odd sizes: pixels at the edge would never be seen
    if backbone.config.model_type != "resnet" and crops.locals and crops.local_size % patch:
        raise ConfigError(
            f"crops.local_size {crops.local_size} is not a multiple of the patch size {patch} of {config.arch}"
        )
    if config.model.positions == "reference":
        use_reference_interpolation(backbone)
    if model.rope_rescale is not None:
        rescale_at_random(backbone, model.rope_rescale)
    if config.init_from is not None and not untrained:
        load_backbone(backbone, weights_of(config.init_from))
    return backbone


def _checkpoint_activations(backbone: PreTrainedModel) -> None:
    if not backbone.supports_gradient_checkpointing:
        raise ConfigError(f"compute.activation_checkpointing: {type(backbone).__name__} of transformers has none")
    # non-reentrant: works under DDP, and replays the random state so that drop path drops the same paths again
    backbone.activation_checkpointing_enable({"use_reentrant": False})
