"""Classification, retrieval, attention and text: the numbers of the authors' own code, from our parts.

Constants that are in no file stand in tests/parity/README.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dino_tower.attention import jaccard, mass_mask
from dino_tower.eval.dense_attention import FORMS, heads_of, joined_heads
from dino_tower.eval.descriptors import copy_descriptor, fit_whitening, multi_scale
from dino_tower.eval.linear_probe import linear_input
from dino_tower.eval.retrieval import average_precision, retrieval_scores
from dino_tower.eval.splits import few_shot
from dino_tower.eval.zero_shot import average_precision_per_class, named, retrieval_hits
from dino_tower.knn import knn_accuracy, knn_votes

Load = Callable[[str], dict[str, torch.Tensor]]
Same = Callable[..., None]
REPRODUCED = {
    "attn_jaccard", "clip_dense_attn", "clip_retrieval", "cluster_miou", "copydays_ap", "davis_jf", "davis_label_prop",
    "depth", "fewshot_split", "gem_cls", "hummingbird", "hungarian_permuted", "knn", "linear_input", "miou",
    "multi_scale", "object_discovery", "object_discovery_scenes", "pca_whiten", "pck", "retrieval_map", "saliency",
    "slide_inference", "surface_normals",
}  # fmt: skip


def test_every_file_is_reproduced(parity_eval: Path) -> None:
    """Here and in test_parity_dense.py; a folder that lacks one, or all, fails."""
    assert {path.stem for path in parity_eval.glob("*.npz")} == REPRODUCED
    source = "".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("test_parity*.py"))
    used = set(re.findall(r'published\("(\w+)"\)', source))
    assert used == REPRODUCED


def ks_of(file: dict[str, torch.Tensor], prefix: str) -> list[int]:
    return sorted(int(key.removeprefix(prefix)) for key in file if key.startswith(prefix))


@pytest.mark.parametrize("top", [1, 5])
def test_knn_accuracy(published: Load, top: int) -> None:
    file = published("knn")
    ks = ks_of(file, f"top{top}_k")
    ours = knn_accuracy(*(file[key] for key in ("train", "train_y", "test", "test_y")), k=ks, top=top)
    for k in ks:
        assert 100 * ours[k] == pytest.approx(float(file[f"top{top}_k{k}"]), abs=1e-9), k


def test_knn_votes(published: Load, same: Same) -> None:
    """The reference divides by the votes of its largest k, so that rows do not sum to 1; ours by those of k itself."""
    file = published("knn")
    ks = ks_of(file, "dinov2_probs_k")
    train, train_y, test = file["train"], file["train_y"], file["test"]
    votes = knn_votes(train, train_y, test, k=ks)
    nearest = (F.normalize(test, dim=1) @ F.normalize(train, dim=1).T).topk(max(ks), dim=1).values / 0.07
    for k in ks:
        held = nearest[:, :k].logsumexp(1) - nearest.logsumexp(1)
        same(votes[k] * held.exp()[:, None], file[f"dinov2_probs_k{k}"])
    assert float((votes[min(ks)] - file[f"dinov2_probs_k{min(ks)}"]).abs().max()) > 0.01
    ranked = file["lightly_pred_k20"]
    along = knn_votes(train, train_y, test, k=20)[20].gather(1, ranked)
    assert bool((along[:, :-1] >= along[:, 1:] - 1e-6).all())  # classes without a vote may stand in any order


def test_few_shot_split(published: Load, same: Same) -> None:
    file = published("fewshot_split")
    classes = len(file["train_y"].unique())
    for key in (key for key in file if key.startswith("seed")):
        same(few_shot(file["train_y"], len(file[key]) // classes, int(key.removeprefix("seed"))), file[key])


def test_linear_input(published: Load, same: Same) -> None:
    file = published("linear_input")
    for key in (key for key in file if key.startswith("n")):
        blocks, mean = re.fullmatch(r"n(\d+)(_avg)?", key).groups()  # type: ignore[union-attr]
        same(linear_input(list(file["patch"]), list(file["cls"]), int(blocks), bool(mean)), file[key])


def test_retrieval(published: Load, same: Same) -> None:
    file = published("retrieval_map")
    truth = {key: [row[row >= 0].tolist() for row in file[key]] for key in ("easy", "hard", "junk")}
    for setup in ("easy", "medium", "hard"):
        ours, letter = retrieval_scores(file["ranks"].T, truth, setup, (1, 5, 10)), setup[0].upper()
        same(ours.average_precision, file[f"aps_{letter}"])
        same(np.nanmean(ours.average_precision), file[f"map_{letter}"])
        same(np.nanmean(ours.precision_at, axis=0), file[f"mpk_{letter}"])


def test_copy_detection(published: Load, same: Same) -> None:
    file = published("copydays_ap")
    ranks, positives = file["ranks"], file["nres"].tolist()
    same([average_precision(row[row >= 0].numpy(), n) for row, n in zip(ranks, positives, strict=True)], file["ap"])


def test_whitening(published: Load, same: Same) -> None:
    """The reference centres the data but not the covariance. The sign of a direction is arbitrary."""
    file = published("pca_whiten")
    theirs = fit_whitening(file["train"], centre_covariance=False)(file["query"])
    same(theirs.abs(), file["out"].abs())
    same(theirs @ theirs.T, file["out_abs_gram"])
    train = file["train"] + 5  # the defect shows when features have a mean, as those of towers have
    ours, uncentred = (fit_whitening(train, centre_covariance=flag) for flag in (True, False))
    white, not_white = ((train - train.mean(0)).double() @ one.matrix.T for one in (ours, uncentred))
    keep = torch.linalg.eigvalsh(torch.cov(train.T, correction=0).double()) > 1e-3
    assert torch.cov(white.T, correction=0).diagonal()[: int(keep.sum())].sub(1).abs().max() < 1e-2
    assert torch.cov(not_white.T, correction=0).diagonal()[0].sub(1).abs() > 0.1


def test_copy_descriptor(published: Load, same: Same) -> None:
    file = published("gem_cls")
    same(copy_descriptor(file["cls"], file["patch"]), file["out"])


def test_multi_scale(published: Load, same: Same) -> None:
    """The reference divides by the length of the whole batch: for two images ours differs, for one it cannot."""
    file = published("multi_scale")

    def describe(images: torch.Tensor) -> torch.Tensor:
        return F.conv2d(images, file["w"], file["b"], stride=file["w"].shape[-1]).mean((2, 3))

    same(multi_scale(describe, file["img"]), file["out"])
    two = torch.cat([file["img"], 3 * file["img"].flip(3)])
    ours = multi_scale(describe, two)
    assert torch.allclose(ours.norm(dim=1), torch.ones(2))
    sums = sum(describe(two if s == 1 else F.interpolate(two, scale_factor=s, mode="bilinear"))
               for s in (1.0, 2**-0.5, 0.5))  # fmt: skip
    batch_wide = sums / sums.norm()
    assert float(batch_wide.norm(dim=1).max()) < 0.999
    torch.testing.assert_close(F.normalize(batch_wide, dim=1), ours)


def test_attention_jaccard(published: Load, same: Same) -> None:
    """The reference compares a boolean mask with 255, so that void never leaves its union."""
    file = published("attn_jaccard")
    side = round(file["attn"].shape[1] ** 0.5)
    attention = file["attn"].unflatten(1, (side, side))
    masks = F.interpolate(mass_mask(attention)[None].float(), size=file["mask_heads"].shape[-2:], mode="nearest")[0]
    same(masks, file["mask_heads"])
    theirs = jaccard(attention, file["target"], void_in_union=True)
    for name in ("ipvit", "dino54"):
        assert theirs.best_head == pytest.approx(float(file[name]), rel=1e-5)
    assert jaccard(attention, file["target"]).best_head > theirs.best_head


@pytest.mark.parametrize("form", ["vanilla", "sclip", "maskclip"])
def test_dense_attention(published: Load, same: Same, form: str) -> None:
    file = published("clip_dense_attn")
    q, k, v = heads_of(file["x"].transpose(0, 1), file["in_w"], file["in_b"], heads=4)
    ours = joined_heads(FORMS[form](q, k, v), file["out_w"], file["out_b"]).transpose(0, 1)
    same(ours, file[form])


def test_text_image_retrieval(published: Load, same: Same) -> None:
    file = published("clip_retrieval")
    pairs = F.one_hot(file["text_image_idx"], len(file["image"])).bool()
    for k in ks_of(file, "image_r"):
        same(retrieval_hits(file["text"], file["image"], pairs, k).mean(), file[f"image_r{k}"].double())
        same(retrieval_hits(file["image"], file["text"], pairs.T, k).mean(), file[f"text_r{k}"].double())
    scores, truth = file["scores"], file["multilabel"]
    same(average_precision_per_class(scores, truth), file["ap"])
    same([named(scores, truth.argmax(1), top).mean() for top in (1, 5)], file["acc"])
    # A class that occurs nowhere scores 0 there; ours says that there is nothing to find.
    absent = torch.where(torch.arange(truth.shape[1]) == 0, 0.0, truth)
    assert np.isnan(average_precision_per_class(scores, absent)).tolist() == [True] + [False] * (truth.shape[1] - 1)
