"""Small SEGs for the tests of `mdcli.checking`, written by highdicom: it shares no code with the decoder under test."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from tests.seg_cases import affine_of, header

# 7 x 11 pixels: 77 bits, so that no frame but the first starts at a byte.
SHAPE = (5, 7, 11)
TYPES = {"Liver": codes.SCT.Liver, "Spleen": codes.SCT.Spleen, "Aorta": codes.SCT.Aorta}


def series(plane: str = "axial", shape: tuple[int, int, int] = SHAPE, **placed: Any) -> list[Dataset]:
    """Return the images of a series, one a slice, k rising."""
    uids = {name: generate_uid() for name in ("study", "series", "frame")}
    images = [header(k, affine_of(plane, **placed), shape, uids) for k in range(shape[0])]
    for image in images:
        image.PixelData = bytes(shape[1] * shape[2] * 2)
    return images


def masks(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Return two overlapping, unlike, asymmetric masks, (k, j, i, segment); the last slice is empty in both."""
    found = np.zeros((*shape, 2), np.uint8)
    found[0:4, 1:5, 2:8, 0] = 1
    found[1, 5, 3, 0] = 1
    found[2:4, 3:7, 6:11, 1] = 1
    found[2, 2, 10, 1] = 1
    return found


def write_seg(
    path: Path,
    images: Sequence[Dataset],
    pixels: np.ndarray | None = None,
    names: Sequence[str] = ("Liver", "Spleen"),
    kinds: Sequence[str] | None = None,
    edit: Any = None,
) -> Path:
    """Write a BINARY SEG of masks (k, j, i, segment). `edit(dataset)` changes it before it is saved."""
    pixels = masks() if pixels is None else pixels
    algorithm = hd.AlgorithmIdentificationSequence(name="t", version="1", family=codes.DCM.ArtificialIntelligence)
    described = [
        SegmentDescription(
            number,
            name,
            codes.SCT.Organ,
            TYPES[kind],
            SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, (name, kind) in enumerate(zip(names, kinds or names, strict=True), 1)
    ]
    seg = Segmentation(
        # highdicom takes over elements of the images as they are: an edit would reach them.
        copy.deepcopy(list(images)),
        pixels,
        SegmentationTypeValues.BINARY,
        described,
        generate_uid(),
        1,
        generate_uid(),
        1,
        "maker",
        "model",
        "1",
        "serial",
    )
    if edit is not None:
        edit(seg)
    seg.save_as(path)
    return path
