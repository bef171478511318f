"""Spatial Registration objects: a point goes where the standard's equations put it, and what is not rigid is refused."""

import io

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian

from mdcli.dicom.registration import SPATIAL_REGISTRATION, read_registration
from mdcli.errors import DataError

ONE, TWO, THREE = "1.2.3.1", "1.2.3.2", "1.2.3.3"
SHIFT = [1, 0, 0, 10, 0, 1, 0, 20, 0, 0, 1, 30, 0, 0, 0, 1]
# A quarter turn about z: x to y, y to -x.
TURN = [0, -1, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]
SAME = np.eye(4).ravel().tolist()


def registration(items, registered=ONE, **more):
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = SPATIAL_REGISTRATION, "1.2.3.99"
    ds.FrameOfReferenceUID = registered
    ds.PatientName, ds.PatientID = "Canary^Name", "CANARY-ID"
    ds.RegistrationSequence = Sequence()
    for uid, matrices in items:
        item, inner = Dataset(), Dataset()
        if uid:
            item.FrameOfReferenceUID = uid
        inner.MatrixSequence = Sequence()
        for values in matrices:
            step = Dataset()
            step.FrameOfReferenceTransformationMatrixType = "RIGID"
            step.FrameOfReferenceTransformationMatrix = [float(v) for v in values]
            inner.MatrixSequence.append(step)
        item.MatrixRegistrationSequence = Sequence([inner])
        ds.RegistrationSequence.append(item)
    for keyword, value in more.items():
        setattr(ds, keyword, value)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = io.BytesIO()
    ds.save_as(file, enforce_file_format=True)
    return io.BytesIO(file.getvalue())


def moved(matrix, point):
    return (matrix @ [*point, 1])[:3].tolist()


def test_a_matrix_takes_a_source_point_to_the_registered_frame():
    found = read_registration(registration([(ONE, [SAME]), (TWO, [SHIFT])]))
    assert moved(found.between(TWO, ONE), (1, 2, 3)) == [11, 22, 33]
    assert moved(found.between(ONE, TWO), (11, 22, 33)) == [1, 2, 3]


def test_several_matrices_are_one_product_in_their_order():
    # PS3.3 equation C.20.2-2: M1 M2 times the point, so the shift comes first: (1, 2, 3) to (11, 22, 33) to (-22, 11, 33).
    found = read_registration(registration([(TWO, [TURN, SHIFT])]))
    assert moved(found.between(TWO, ONE), (1, 2, 3)) == pytest.approx([-22, 11, 33])


def test_two_sources_meet_by_way_of_the_registered_frame():
    # PS3.3 equation C.20.2-3: the inverse of one times the other.
    found = read_registration(registration([(TWO, [SHIFT]), (THREE, [TURN])]))
    assert moved(found.between(THREE, TWO), (1, 2, 3)) == pytest.approx([-12, -19, -27])


@pytest.mark.parametrize(
    "matrix",
    [
        pytest.param([1.1, *SAME[1:]], id="scaled"),
        pytest.param([1, 0.1, *SAME[2:]], id="sheared"),
        pytest.param([-1, *SAME[1:]], id="mirrored"),
        pytest.param([*SAME[:15], 2], id="no affine"),
    ],
)
def test_a_matrix_that_is_not_rigid_is_refused(matrix):
    with pytest.raises(DataError) as caught:
        read_registration(registration([(TWO, [matrix])]))
    assert caught.value.code == "registration-not-rigid"


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(lambda: io.BytesIO(b"no DICOM at all"), id="no DICOM"),
        pytest.param(lambda: registration([(TWO, [SHIFT])], SOPClassUID="1.2.840.10008.5.1.4.1.1.2"), id="an image"),
        pytest.param(lambda: registration([]), id="nothing registered"),
        pytest.param(lambda: registration([(None, [SHIFT])]), id="images without a frame"),
        pytest.param(lambda: registration([(TWO, [])]), id="no matrix"),
        pytest.param(lambda: registration([(TWO, [SHIFT[:12]])]), id="twelve numbers"),
        pytest.param(lambda: registration([(TWO, [[1e9, *SHIFT[1:]]])]), id="a number out of bounds"),
        pytest.param(lambda: registration([(TWO, [SHIFT])], registered=""), id="no frame to register to"),
    ],
)
def test_what_is_no_registration_is_refused_and_names_nobody(file):
    with pytest.raises(DataError) as caught:
        read_registration(file())
    assert caught.value.code == "not-a-registration"
    assert "canary" not in str(caught.value).lower()


def test_one_frame_moved_in_two_ways_is_refused():
    for items in ([(TWO, [SHIFT]), (TWO, [TURN])], [(ONE, [SHIFT])]):
        with pytest.raises(DataError) as caught:
            read_registration(registration(items))
        assert caught.value.code == "registration-ambiguous"


def test_a_registration_of_other_frames_does_not_do():
    with pytest.raises(DataError) as caught:
        read_registration(registration([(TWO, [SHIFT])])).between(TWO, THREE)
    assert caught.value.code == "other-registration"
