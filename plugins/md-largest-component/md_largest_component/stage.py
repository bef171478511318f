"""Keep the largest connected component of every label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mdcli.stage import Stage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mdcli.workspace import Workspace


@dataclass(frozen=True)
class Params:
    """What can be asked."""

    neighbours: Annotated[
        Literal["faces", "corners"], "What touches: voxels that share a face (6) or a corner (26)"
    ] = "faces"


def largest_components(labels: NDArray[Any], *, corners: bool = False) -> NDArray[Any]:
    """Return the label map with every label's smaller components set to 0.

    Args:
        labels: (k, j, i), integers, 0 is background.
        corners: whether voxels that share only a corner or an edge touch (26 neighbours, else 6).

    Returns:
        (k, j, i), of the same type. Of equally large components the one that comes first in (k, j, i) order stays.
    """
    import numpy as np
    import SimpleITK as sitk

    kept = np.zeros_like(labels)
    for value in np.unique(labels):
        if value == 0:
            continue
        image = sitk.GetImageFromArray((labels == value).astype(np.uint8))
        # Sorted by size, the largest first; SimpleITK keeps the order of first voxels among equals.
        parts = sitk.RelabelComponent(sitk.ConnectedComponent(image, corners), sortByObjectSize=True)
        kept[sitk.GetArrayViewFromImage(parts) == 1] = value
    return kept


def run(ws: Workspace, params: Params) -> None:
    """Read labels and their description, keep the largest components, write both."""
    import numpy as np

    labels = ws.read_volume("labels")
    document = ws.read_json("segments")
    with ws.span("components"):
        kept = largest_components(np.asarray(labels.array), corners=params.neighbours == "corners")
    for segment in document["segments"]:
        mask = kept == segment["value"]
        segment["voxels"] = int(mask.sum())
        segment["touches_first_slice"] = bool(mask[0].any())
        segment["touches_last_slice"] = bool(mask[-1].any())
    removed = int(np.count_nonzero(labels.array) - np.count_nonzero(kept))
    ws.note("components-removed", f"{removed} voxels of smaller components were removed", voxels=removed)
    ws.write_volume("labels", kept, labels.affine)
    ws.write_json("segments", document)


STAGE = Stage("keep-largest", Params, run, reads=("labels", "segments"), writes=("labels", "segments"), version=1)
