"""LLaVA with any projector of `adapters.projectors`: transformers' own class knows its MLP only."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoModelForImageTextToText, LlavaConfig, LlavaForConditionalGeneration
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING

from dino_tower.adapters.projectors import Projector, build_projector
from dino_tower.errors import ConfigError


class ProjectedLlavaConfig(LlavaConfig):
    """LLaVA's config with the projector.

    projector: a name of PROJECTORS; projector_options: its options; projector_grid: (h, w) of the tower's patches.
    """

    model_type = "dino_tower_llava"

    projector: str = "mlp"
    projector_options: dict[str, int] | None = None
    projector_grid: list[int] | None = None


class ProjectedLlavaForConditionalGeneration(LlavaForConditionalGeneration):
    """LLaVA whose projector may change the number of tokens; everything else is transformers' class."""

    config: ProjectedLlavaConfig
    config_class = ProjectedLlavaConfig

    def __init__(self, config: ProjectedLlavaConfig) -> None:
        super().__init__(config)
        self.model.multi_modal_projector = self.build_projector(config)

    @staticmethod
    def build_projector(config: Any) -> Projector:
        """The projector that a config asks for. Raises ConfigError for one that does not fit."""
        layers = config.vision_feature_layer
        width = config.vision_config.hidden_size * (1 if isinstance(layers, int) else len(layers))
        if config.projector_grid is None:
            raise ConfigError("a ProjectedLlavaConfig needs projector_grid, the (height, width) of the tower's patches")
        height, wide = config.projector_grid
        options = config.projector_options or {}
        return build_projector(config.projector, (height, wide), width, config.text_config.hidden_size, **options)


def register() -> None:
    """Make the class known to AutoConfig, AutoModelForImageTextToText and AutoModelForMultimodalLM."""
    AutoConfig.register(ProjectedLlavaConfig.model_type, ProjectedLlavaConfig, exist_ok=True)
    kind: Any = ProjectedLlavaForConditionalGeneration
    AutoModelForImageTextToText.register(ProjectedLlavaConfig, kind, exist_ok=True)
    MODEL_FOR_MULTIMODAL_LM_MAPPING.register(ProjectedLlavaConfig, kind, exist_ok=True)


register()
