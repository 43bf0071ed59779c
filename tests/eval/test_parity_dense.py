"""Segmentation, discovery, video, correspondence, depth: the numbers of the authors' own code, from our parts.

Where the reference has a defect, its number is put together from our parts, and our own number is another one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from dino_tower.eval.boxes import attention_boxes, box_around, box_iou, components
from dino_tower.eval.clustering import confusion, many_to_one, matched_areas, one_to_one
from dino_tower.eval.correspondence import correct_points, heatmap_peaks, letterbox_points, match_points
from dino_tower.eval.depth import METRICS, aligned, depth_from_bins, depth_metrics, gradient_loss, sig_loss
from dino_tower.eval.in_context import build_memory, full_size, in_context, patch_labels
from dino_tower.eval.lost import lost
from dino_tower.eval.miou import Areas, areas, segmentation_score, without_class_zero
from dino_tower.eval.normals import normal_metrics
from dino_tower.eval.saliency import saliency
from dino_tower.eval.sliding import slide
from dino_tower.eval.tokencut import tokencut
from dino_tower.eval.video import full_labels, masks, propagate
from dino_tower.eval.video_scores import boundary_accuracy, frame_statistics, region_similarity

Load = Callable[[str], dict[str, torch.Tensor]]
Same = Callable[..., None]
Stated = Callable[[str, str], int]


def with_absent_as_zero(counts: Areas) -> float:
    """mIoU as open-hummingbird and Leopart have it: a class that occurs nowhere counts as 0."""
    return float(segmentation_score(counts).iou.nan_to_num(0).mean())


def test_miou(published: Load, same: Same) -> None:
    file = published("miou")
    classes = file["areas"].shape[1]
    ours = areas(file["pred"], file["gt"], classes)
    same(torch.stack([count.sum(0) for count in ours]).to(torch.int64), file["areas"].to(torch.int64))
    score = segmentation_score(ours)
    for key, value in (("iou", score.iou), ("miou", score.mean_iou), ("macc", score.mean_accuracy),
                       ("aacc", score.pixel_accuracy), ("dice", score.dice)):  # fmt: skip
        same(value, file[key].double())
    both, _, found, true = (count.sum(0).double() for count in ours)
    precision, recall = both / found, both / true
    same(2 * precision * recall / (precision + recall), file["fscore"])
    # "Reduce zero label": class 0 does not count.
    reduced = areas(file["rz_pred"], without_class_zero(file["rz_gt"]), file["rz_areas"].shape[1])
    same(torch.stack([count.sum(0) for count in reduced]).to(torch.int64), file["rz_areas"].to(torch.int64))
    same(segmentation_score(reduced).iou, file["rz_iou"])
    # Absent classes as 0, with and without matching.
    table = confusion(file["pred"], file["gt"], classes, classes)
    same(with_absent_as_zero(ours), file["hbird_identity"])
    same(with_absent_as_zero(matched_areas(table, one_to_one(table.sum(0)))), file["hbird_hungarian"])
    same(with_absent_as_zero(matched_areas(table, many_to_one(table.sum(0), "iou"))), file["hbird_many2one"])
    assert score.mean_iou > float(file["hbird_identity"]) + 0.02


def test_clusters(published: Load, same: Same) -> None:
    file = published("cluster_miou")
    classes, n_clusters = file["conf"].shape
    table = confusion(file["clusters"], file["gt"], n_clusters, classes)
    total = table.sum(0)
    same(total, file["conf"])
    mapping = one_to_one(total)
    assert int((mapping < 0).sum()) == n_clusters - classes
    # The reference calls clusters that are left over background: class 0 gets all their pixels.
    same(with_absent_as_zero(matched_areas(table, mapping.clamp(min=0))), file["hungarian"])
    same(with_absent_as_zero(matched_areas(table, many_to_one(total, "iou"))), file["many2one_iou"])
    same(with_absent_as_zero(matched_areas(table, many_to_one(total))), file["many2one_prec"])
    ours = segmentation_score(matched_areas(table, mapping)).mean_iou
    assert abs(ours - float(file["hungarian"])) > 1e-3
    for prediction, key in (
        (file["stego_pred"], "stego_miou"),
        (file["stego_perm"][file["stego_pred"]], "stego_miou_perm"),
    ):
        by_pixels = confusion(prediction, file["gt"], classes, classes)
        score = segmentation_score(matched_areas(by_pixels, one_to_one(by_pixels.sum(0), "pixels")))
        same(100 * score.mean_iou, file[key])
        same(100 * score.pixel_accuracy, file["stego_acc"])


def test_matching_hides_wrong_class_names(published: Load, same: Same) -> None:
    file = published("hungarian_permuted")
    classes = len(file["perm"])
    same(with_absent_as_zero(areas(file["pred"], file["gt"], classes)), file["identity"])
    table = confusion(file["pred"], file["gt"], classes, classes)
    same(with_absent_as_zero(matched_areas(table, one_to_one(table.sum(0)))), file["hungarian"])
    assert float(file["hungarian"]) > float(file["identity"]) + 0.3


def test_hummingbird(published: Load, same: Same, stated: Stated) -> None:
    """Reference: void is class 0 in the memory, predictions are matched to classes, absent classes count 0."""
    file = published("hummingbird")
    classes = file["full_lab_mem"].shape[1]

    def patches(images: torch.Tensor) -> torch.Tensor:
        return F.conv2d(images, file["w"], file["b"], stride=file["w"].shape[-1]).permute(0, 2, 3, 1)

    train, test, target = patches(file["train_img"]), patches(file["val_img"]), file["train_y"][:, 0]
    same(test.flatten(1, 2), file["query_feat"])
    grid, truth = (train.shape[1], train.shape[2]), file["val_y"][:, 0]
    k, seed = stated("hummingbird", r"k=(\d+)"), stated("hummingbird", r"seed (\d+)")
    void_is_class_zero = patch_labels(target.where(target != 255, 0), grid, classes)
    void_left_out = patch_labels(target, grid, classes)
    for name in (key.removesuffix("_feat_mem") for key in file if key.endswith("_feat_mem")):
        size = None if name == "full" else len(file[f"{name}_feat_mem"])
        stored, ours = (
            build_memory(train, labels, size, torch.Generator().manual_seed(seed))
            for labels in (void_is_class_zero, void_left_out)
        )
        same(stored.features, file[f"{name}_feat_mem"])
        same(stored.labels, file[f"{name}_lab_mem"])
        labels = in_context(stored, test, k, temperature=0.02)
        same(labels.flatten(1, 2), file[f"{name}_label_hat"])
        found = full_size(labels, (truth.shape[-2], truth.shape[-1]))
        table = confusion(found, truth, classes, classes)
        same(with_absent_as_zero(matched_areas(table, one_to_one(table.sum(0)))), file[f"{name}_miou"])
        assert float((in_context(ours, test, k) - labels).abs().max()) > 0.01


def test_object_discovery(published: Load, same: Same, stated: Stated) -> None:
    file = published("object_discovery")
    size = (stated("object_discovery", r"H=(\d+)"), stated("object_discovery", r"W=(\d+)"))
    patch = stated("object_discovery", r"patch (\d+)")
    grid = tuple(file["dims"].tolist())
    keys = file["feats"][0].unflatten(0, grid)
    seed_grown = lost(keys, patch, size, stated("object_discovery", r"k=(\d+)"))
    same(seed_grown.box, file["lost_box"])
    same(-seed_grown.degree.flatten().float(), file["lost_degree"])
    assert seed_grown.seed == int(file["lost_seed"])
    same(box_iou(seed_grown.box, file["gt_boxes"]), file["iou_lost"], scale=1.0)
    cut = tokencut(keys, patch, size)
    same(cut.box, file["tc_box"])
    same(cut.mask.double(), file["tc_mask"])
    same(cut.eigenvector, file["tc_eig"])
    assert cut.seed == int(file["tc_seed"])
    same(box_iou(cut.box, file["gt_boxes"]), file["iou_tc"], scale=1.0)
    weighted = tokencut(keys, patch, size, weighted=True)
    same(weighted.box, file["tcw_box"])
    same(weighted.eigenvector, file["tcw_eig"])


def test_attention_boxes_count_the_last_part_too(published: Load, same: Same, stated: Stated) -> None:
    """The reference compares the sizes of all connected parts but the last one found."""
    from dino_tower.attention import mass_mask

    file = published("object_discovery")
    size = (stated("object_discovery", r"H=(\d+)"), stated("object_discovery", r"W=(\d+)"))
    patch = stated("object_discovery", r"patch (\d+)")
    attention = file["attn_cls"].unflatten(1, tuple(file["dims"].tolist()))
    theirs = [reference_part(mask) for mask in mass_mask(attention)]
    same(torch.stack([box_around(part, patch, size) for part in theirs]), file["dinoseg_boxes"])
    last_is_largest = torch.zeros_like(attention[:1])
    last_is_largest[0, 0, 0] = last_is_largest[0, 0, 2] = 1.0
    last_is_largest[0, 4:8, 4:8] = 1.0
    ours = attention_boxes(last_is_largest, patch, size, keep=1.0)[0]
    assert ours.tolist() == [4 * patch, 4 * patch, 8 * patch, 8 * patch]
    assert box_around(reference_part(last_is_largest[0] > 0), patch, size).tolist() == [0, 0, patch, patch]


def reference_part(mask: torch.Tensor) -> torch.Tensor:
    """The largest part but for the last one in reading order; the background if there is only one."""
    labels = components(mask)
    starts = sorted(labels[labels > 0].unique().tolist(), key=lambda n: int((labels.flatten() == n).nonzero()[0]))
    sizes = [int((labels == n).sum()) for n in starts[:-1]]
    return labels == (starts[sizes.index(max(sizes))] if sizes else 0)


def test_object_discovery_in_scenes(published: Load, same: Same, stated: Stated) -> None:
    file, first = published("object_discovery_scenes"), published("object_discovery")
    size = (stated("object_discovery", r"H=(\d+)"), stated("object_discovery", r"W=(\d+)"))
    grid, patch = tuple(first["dims"].tolist()), stated("object_discovery", r"patch (\d+)")
    for i, feats in enumerate(file["feats"]):
        grown, cut = lost(feats.unflatten(0, grid), patch, size), tokencut(feats.unflatten(0, grid), patch, size)
        same(grown.box, file["lost_boxes"][i])
        same(grown.box, file["true_boxes"][i])
        same(-grown.degree.flatten().float(), file["lost_degree"][i])
        assert grown.seed == int(file["lost_seed"][i])
        same(cut.box, file["tc_boxes"][i])
        same(cut.mask.double(), file["tc_masks"][i])


def test_label_propagation(published: Load, same: Same, stated: Stated) -> None:
    file = published("davis_label_prop")
    grid = tuple(file["hw"].tolist())
    frame, context = file["feat_tar"].unflatten(0, grid), file["feat_ctx"].unflatten(1, grid)
    radius, k = stated("davis_label_prop", r"radius (\d+)"), stated("davis_label_prop", r"topk(\d+)")
    ours = propagate(frame, context, file["segs"], radius, k, temperature=0.1)
    same(ours, file["out"])
    size = (file["pred"].shape[0], file["pred"].shape[1])
    same(full_labels(ours, size), file["up_norm"])
    same(masks(ours, size), file["pred"])
    for shape, temperature in (("square", 0.1), ("circle", 0.2)):
        found = propagate(frame, context, file["segs"], radius, k, temperature, shape).permute(1, 2, 0)
        same(found / found.sum(-1, keepdim=True), file[f"dinov3_{shape}"])
    # The neighbourhood itself: a frame of equal patches spreads a single labelled patch over those that see it.
    alike = torch.ones(*grid, 1)
    for i in (0, len(file["nbhd"]) // 2, len(file["nbhd"]) - 1):
        one = F.one_hot(torch.tensor(i), len(file["nbhd"])).reshape(1, 1, *grid)
        same((propagate(alike, alike[None], one, radius)[0].flatten() > 0).float(), file["nbhd"][:, i])


def test_region_and_boundary(published: Load, same: Same) -> None:
    file = published("davis_jf")
    region = region_similarity(file["pred"], file["gt"])
    same(region, file["J"])
    same(boundary_accuracy(file["pred"], file["gt"]), file["F"])
    empty = torch.zeros(1, *file["gt"].shape[1:])
    same(region_similarity(empty, empty)[0], file["J_both_empty"])
    same(frame_statistics(region.repeat(2)), file["stats_J"])  # the file's are of the frames twice over


def test_slide(published: Load, same: Same, stated: Stated) -> None:
    file = published("slide_inference")

    def score(images: torch.Tensor) -> torch.Tensor:
        grid = F.conv2d(images, file["w"], file["b"], stride=file["w"].shape[-1])
        return F.interpolate(grid, size=images.shape[-2:], mode="bilinear")

    crop, stride = stated("slide_inference", r"crop (\d+)"), stated("slide_inference", r"stride (\d+)")
    same(slide(score, file["img"], crop, stride), file["out"])


def test_saliency(published: Load, same: Same) -> None:
    file = published("saliency")
    ours = saliency(file["pred"], file["gt"])
    same(ours.iou.mean(), file["IoU"])
    same(ours.accuracy.mean(), file["accuracy"])
    same(ours.max_f, file["F_max"])


def test_depth(published: Load, same: Same) -> None:
    file = published("depth")
    prediction, truth = file["pred"], file["gt"]
    ours = depth_metrics(prediction, truth, low=0.0, high=float("inf"))
    assert tuple(file["dinov3_names"]) == METRICS
    for i, name in enumerate(file["dinov3_names"]):
        same(ours[name], file["dinov3"][:, i])
    same(ours["rmse"], file["probe3d_rmse"])
    same(ours["a1"], file["probe3d_d1"])
    free = depth_metrics(aligned(prediction, truth), truth, low=0.0, high=float("inf"))
    same(free["rmse"], file["probe3d_si_rmse"])
    same(free["a1"], file["probe3d_si_d1"])
    # NYUv2 clamps predictions to its range of 0.001 to 10 m, which is our default and not that of the file.
    clamped = depth_metrics(prediction, truth)
    assert bool((clamped["rmse"] < ours["rmse"]).all())
    same(sig_loss(prediction, truth), file["sig_dinov3"])
    same(sig_loss(prediction, truth, unbiased=False), file["sig_probe3d"])
    same(gradient_loss(prediction, truth), file["grad_probe3d"])
    same(depth_from_bins(file["logits"]), file["depth_dinov3"])
    same(depth_from_bins(file["logits"]), file["depth_probe3d"])


def test_surface_normals(published: Load, same: Same) -> None:
    file = published("surface_normals")
    ours = normal_metrics(file["pred"], file["gt"], file["valid"])
    for name in ("d1", "d2", "d3", "rmse"):
        same(ours[name], file[name])


def test_correspondence(published: Load, same: Same, stated: Stated) -> None:
    file = published("pck")
    side = round(len(file["feat1"]) ** 0.5)
    first, second = (file[key].unflatten(0, (side, side)) for key in ("feat1", "feat2"))
    found = match_points(first, second, file["kp1"], patch=14)
    same(found, file["pred"])
    limit = float(file["thr_px"])
    for key in (key for key in file if key.startswith("pck")):
        same(correct_points(found, file["kp2"], limit, int(key[3:]) / 100).double().mean(), file[key].double())
    inclusive = correct_points(found, file["kp2"], limit, 0.1, inclusive=True)
    same(inclusive.sum(), file["hpf_correct10"])
    size = (stated("pck", r"for (\d+)x\d+ ->"), stated("pck", r"for \d+x(\d+) ->"))
    points, (left, top), scale = letterbox_points(file["kp_pad_in"], size, stated("pck", r"-> (\d+)"))
    same(points, file["kp_pad_out"])
    same([left, top, scale], file["pad_offs"])
    same(heatmap_peaks(file["heat"]), file["argmax2d"])
