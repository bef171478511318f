"""Read a Spatial Registration object: the rigid map from one frame of reference to another.

Source: DICOM PS3.3 A.39.1 and C.20.2.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mdcli.errors import DataError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

SPATIAL_REGISTRATION = "1.2.840.10008.5.1.4.1.1.66.1"
MAX_BYTES = 64 << 20
MAX_ITEMS = 1000
_ORTHONORMAL_OFF = 1e-3
_FARTHEST_MM = 1e5


@dataclass(frozen=True)
class Registration:
    """What brings several frames of reference together.

    Attributes:
        sop_instance_uid: of the object.
        registered: the FrameOfReferenceUID that it brings all others to.
        matrices: for each FrameOfReferenceUID the 4x4 matrix that takes a point in it to `registered`, mm, LPS+.
    """

    sop_instance_uid: str
    registered: str
    matrices: dict[str, NDArray[np.float64]]

    def between(self, source: str, target: str) -> NDArray[np.float64]:
        """Return the 4x4 matrix that takes a point of one frame of reference to another, mm, LPS+.

        Raises:
            DataError: `other-registration` where it is not about both.
        """
        known = {self.registered: np.eye(4), **self.matrices}
        for uid in (source, target):
            if uid not in known:
                message = f"the registration is not about the frame of reference {uid}"
                raise DataError("other-registration", message, hint="give the one made for these two series")
        # Source: PS3.3 equation C.20.2-3.
        return np.asarray(np.linalg.inv(known[target]) @ known[source], np.float64)


def read_registration(file: BinaryIO) -> Registration:
    """Read a Spatial Registration object and hold every matrix against a rigid one.

    Args:
        file: open for reading.

    Raises:
        DataError: `not-a-registration` for anything else, a damaged one, or one that registers images without a frame of reference;
            `registration-not-rigid` for a matrix that scales, shears or mirrors by more than 1e-3; `registration-ambiguous` for
            two different matrices of one frame of reference.
    """
    from pydicom import dcmread

    data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise _no_registration("it is larger than 64 MiB")
    # pydicom's warnings show values, which may be a patient's.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _parsed(dcmread(io.BytesIO(data), stop_before_pixels=True))
        except DataError:
            raise
        except Exception as error:  # pydicom raises many kinds on hostile input
            raise _no_registration(type(error).__name__) from None


def _no_registration(why: str) -> DataError:
    return DataError("not-a-registration", f"the file is no Spatial Registration object that md can use: {why}")


def _parsed(dataset: Dataset) -> Registration:
    if dataset.get("SOPClassUID") != SPATIAL_REGISTRATION:
        raise _no_registration("its SOP class is another")
    registered = str(dataset.get("FrameOfReferenceUID") or "")
    if not registered:
        raise _no_registration("it has no FrameOfReferenceUID")
    matrices: dict[str, NDArray[np.float64]] = {}
    for item in _items(dataset, "RegistrationSequence"):
        uid = str(item.get("FrameOfReferenceUID") or "")
        if not uid:
            raise _no_registration("it registers images that have no frame of reference")
        (registration, *more) = _items(item, "MatrixRegistrationSequence")
        if more:
            raise _no_registration("it registers one frame of reference by several transformations")
        matrix = np.eye(4)
        # Source: PS3.3 equation C.20.2-2: the items in the order of a matrix product.
        for step in _items(registration, "MatrixSequence"):
            matrix = matrix @ _rigid(step.get("FrameOfReferenceTransformationMatrix"))
        known = matrices.setdefault(uid, matrix)
        if np.abs(known - matrix).max() > _ORTHONORMAL_OFF or (
            uid == registered and np.abs(matrix - np.eye(4)).max() > _ORTHONORMAL_OFF
        ):
            message = f"the registration moves the frame of reference {uid} in two ways"
            raise DataError("registration-ambiguous", message)
    return Registration(str(dataset.get("SOPInstanceUID") or ""), registered, matrices)


def _items(dataset: Dataset, keyword: str) -> Sequence[Dataset]:
    found: Any = dataset.get(keyword)
    if not found or len(found) > MAX_ITEMS:
        raise _no_registration(f"{keyword} has {len(found) if found else 0} items")
    return list(found)


def _rigid(values: Any) -> NDArray[np.float64]:
    """Return a matrix as it is, if it is rigid. Source: PS3.3 C.20.2.1.1 (row by row) and C.20.2.1.2."""
    numbers = [float(v) for v in values] if values is not None and len(values) == 16 else [math.nan]
    if not all(math.isfinite(v) and abs(v) < _FARTHEST_MM for v in numbers):
        raise _no_registration("a matrix has not 16 numbers")
    matrix = np.array(numbers, np.float64).reshape(4, 4)
    rotation = matrix[:3, :3]
    off = float(np.abs(rotation.T @ rotation - np.eye(3)).max())
    if off > _ORTHONORMAL_OFF or np.linalg.det(rotation) < 0 or np.abs(matrix[3] - [0, 0, 0, 1]).max() > 1e-6:
        message = f"the registration's matrix is not rigid: it is {off:.3g} off a rotation"
        raise DataError("registration-not-rigid", message, off=off)
    return matrix
