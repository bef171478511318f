"""Mark every voxel at or above a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from mdcli.errors import DataError
from mdcli.stage import Stage

if TYPE_CHECKING:
    from mdcli.workspace import Workspace


@dataclass(frozen=True)
class Params:
    """What can be asked: each field is one option."""

    level: Annotated[float, "Lowest value kept, in the volume's unit"] = 300.0


def run(ws: Workspace, params: Params) -> None:
    """Read the volume, compare, write the labels and what they mean."""
    import numpy as np

    volume = ws.read_volume("volume")  # array (k, j, i), memory-mapped, and the 4x4 affine, LPS+ mm
    with ws.span("compare"):
        mask = (volume.array >= params.level).astype(np.uint8)
    if not mask.any():
        message = f"no voxel reaches {params.level:g}; the highest is {volume.array.max():g}"
        raise DataError("empty-mask", message, level=params.level)
    code = {"value": "threshold", "scheme": "99EXAMPLE", "meaning": f"At or above {params.level:g}"}
    segment = {
        "value": 1,
        "name": "threshold",
        "category": {"value": "49755003", "scheme": "SCT", "meaning": "Morphologically Abnormal Structure"},
        "type": code,
        "colour": [220, 80, 60],
        "algorithm": {"type": "AUTOMATIC", "name": "md-threshold", "version": "0.1.0"},
        "voxels": int(mask.sum()),
        "touches_first_slice": bool(mask[0].any()),
        "touches_last_slice": bool(mask[-1].any()),
    }
    ws.write_volume("labels", mask, volume.affine)
    ws.write_json(
        "segments", {"schema": "md.segments/1", "segments": [segment], "task": "segmentation", "result": "processed"}
    )


STAGE = Stage("threshold", Params, run, reads=("volume",), writes=("labels", "segments"), version=1)
