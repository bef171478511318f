"""Store what torchvision and MONAI read out of the heads of detection networks, for the tests of `mdcli.inference.tasks`.

    PYTHON scripts/make_detection_reference.py [FILE]

needs torch, torchvision and MONAI. Heads are seeded noise; the boxes come from torchvision's `RetinaNet.postprocess_detections` and
MONAI's `RetinaNetDetector`, with their own anchors. Default: tests/inference/data/detection.npz.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

PLANE = (64, 96)
PLANE_STRIDES = (8, 16)
PLANE_SIZES = ((16, 21), (30, 45))
PLANE_RATIOS = (0.5, 1.0, 2.0)
PLANE_CLASSES = 4
PLANE_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
SPACE = (32, 40, 24)
SPACE_STRIDES = ((4, 4, 2), (8, 8, 4))
SPACE_SHAPES = ((6.0, 8.0, 4.0), (9.0, 5.0, 7.0))
SPACE_SCALES = (1, 2)
SPACE_CLASSES = 2


def torchvision_boxes(seed: int = 1) -> dict[str, np.ndarray[Any, Any]]:
    """Return heads of a plane, (1, anchors, numbers), and what torchvision finds: class 0 is the background, which never fires."""
    import torch
    from torchvision.models.detection._utils import BoxCoder
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.image_list import ImageList
    from torchvision.models.detection.retinanet import RetinaNet

    torch.manual_seed(seed)
    generator = AnchorGenerator(PLANE_SIZES, (PLANE_RATIOS,) * len(PLANE_SIZES))
    maps = [torch.zeros(1, 1, PLANE[0] // stride, PLANE[1] // stride) for stride in PLANE_STRIDES]
    anchors = generator(ImageList(torch.zeros(1, 1, *PLANE), [PLANE]), maps)[0]
    counts = [m[0, 0].numel() * n for m, n in zip(maps, generator.num_anchors_per_location(), strict=True)]
    scores = torch.randn(1, len(anchors), PLANE_CLASSES) * 2 - 2
    scores[..., 0] = -20
    boxes = torch.randn(1, len(anchors), 4) * torch.tensor([3.0, 3.0, 2.0, 2.0])
    settings = SimpleNamespace(
        score_thresh=0.3, topk_candidates=200, nms_thresh=0.4, detections_per_img=60, box_coder=BoxCoder(PLANE_WEIGHTS)
    )
    heads = {"cls_logits": list(scores.split(counts, 1)), "bbox_regression": list(boxes.split(counts, 1))}
    found = RetinaNet.postprocess_detections(settings, heads, [list(anchors.split(counts))], [PLANE])[0]
    return _plain("plane", {"class": scores, "regression": boxes, "anchors": anchors, **found})


def monai_boxes(seed: int = 2) -> dict[str, np.ndarray[Any, Any]]:
    """Return heads of a volume, a map a level, and what MONAI's detector finds: its first class is 0."""
    import torch
    from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector
    from monai.apps.detection.utils.anchor_utils import AnchorGeneratorWithAnchorShape

    torch.manual_seed(seed)
    grids = [tuple(a // b for a, b in zip(SPACE, strides, strict=True)) for strides in SPACE_STRIDES]
    cells = len(SPACE_SHAPES)
    scores = [torch.randn(1, cells * SPACE_CLASSES, *grid) * 2 - 2 for grid in grids]
    boxes = [torch.randn(1, cells * 6, *grid) * 0.3 for grid in grids]

    class Heads(torch.nn.Module):
        spatial_dims, num_classes, num_anchors, size_divisible = 3, SPACE_CLASSES, cells, 8
        cls_key, box_reg_key = "class", "regression"

        def forward(self, _: torch.Tensor) -> dict[str, list[torch.Tensor]]:
            return {"class": scores, "regression": boxes}

    detector = RetinaNetDetector(Heads(), AnchorGeneratorWithAnchorShape(SPACE_SCALES, SPACE_SHAPES))
    detector.set_box_selector_parameters(
        score_thresh=0.3, topk_candidates_per_level=300, nms_thresh=0.22, detections_per_img=80
    )
    detector.eval()
    found = detector(torch.zeros(1, 1, *SPACE))[0]
    found = {"boxes": found["boxes"], "labels": found["labels"], "scores": found["labels_scores"]}
    heads = {f"class{n}": s for n, s in enumerate(scores)} | {f"regression{n}": b for n, b in enumerate(boxes)}
    return _plain("space", {**heads, "anchors": detector.anchors[0], **found})


def _plain(prefix: str, tensors: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    return {f"{prefix}_{name}": tensor.detach().numpy() for name, tensor in tensors.items()}


def main() -> None:
    """Write the file."""
    file = Path(sys.argv[1] if len(sys.argv) > 1 else "tests/inference/data/detection.npz")
    arrays = torchvision_boxes() | monai_boxes()
    np.savez_compressed(file, **arrays)
    for name, array in arrays.items():
        print(f"{name:<20} {array.shape}")


if __name__ == "__main__":
    main()
