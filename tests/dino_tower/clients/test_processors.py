"""A VLM's processor against the tower: its counts, and the mean and std of its image processor."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from transformers import LlavaProcessor

from dino_tower import check_vlm, image_tokens_for
from dino_tower.tower import Tower

LLAVA = "LlavaForConditionalGeneration"
OPENAI_MEAN = [0.48145466, 0.4578275, 0.40821073]


def test_a_processor_that_normalises_as_clip_does(towers: dict[str, Tower], tokenizer: Any) -> None:
    """The mistake that costs weeks: everything runs, on pictures the tower has never seen the like of."""
    name, tower = "PaliGemmaForConditionalGeneration", towers["siglip"]
    wanted = image_tokens_for(name, tower)
    plain = {k: v for k, v in wanted.image_processor.items() if not k.startswith("image_m")}
    images = transformers.SiglipImageProcessor(**{**plain, "image_mean": OPENAI_MEAN})
    processor = transformers.PaliGemmaProcessor(image_processor=images, tokenizer=tokenizer)
    with pytest.warns(UserWarning, match="SiglipImageProcessor has image_mean=.*; the tower needs .*0.485") as seen:
        check_vlm(name, tower, processor)
    assert len(seen) == 1


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_clips_own_image_processor_on_our_tower(towers: dict[str, Tower], tokenizer: Any) -> None:
    tower = towers["plain"]
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    wanted = image_tokens_for(LLAVA, tower)
    processor = LlavaProcessor(image_processor=images, tokenizer=tokenizer, **wanted.processor)
    with pytest.warns(UserWarning, match="CLIPImageProcessor has image_(mean|std)=") as seen:
        check_vlm(LLAVA, tower, processor)
    assert sum("CLIPImageProcessor" in str(w.message) for w in seen) == 2


@pytest.mark.filterwarnings("ignore::UserWarning")  # LLaVA's default layer
def test_a_processor_with_other_counts(towers: dict[str, Tower], tokenizer: Any) -> None:
    tower = towers["plain"]
    processor = LlavaProcessor(
        image_processor=tower.processor, tokenizer=tokenizer, patch_size=14, vision_feature_select_strategy="default"
    )
    with pytest.warns(UserWarning, match="LlavaProcessor has"):
        said = check_vlm(LLAVA, tower, processor)
    assert said[1:] == [
        "the LlavaProcessor has patch_size=14; the tower needs 16",
        "the LlavaProcessor has num_additional_image_tokens=0; the tower needs 1",
    ]
