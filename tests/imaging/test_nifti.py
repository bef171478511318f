"""NIfTI as written: nibabel, which others wrote, reads the same voxels at the same millimetres."""

import io

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mdcli.errors import DataError, MissingError
from mdcli.imaging.nifti import is_orthogonal, nifti_header, read_nifti, write_nifti

TYPES = ["uint8", "int8", "int16", "uint16", "int32", "uint32", "float32", "float64"]
# LPS+ to RAS+ by the definition of both: x and y point the other way.
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])


def rotation(angles):
    a, b, c = angles
    rx = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    ry = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    rz = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return rz @ ry @ rx


angle = st.floats(-3.1, 3.1)
size = st.floats(0.3, 8)


@st.composite
def affines(draw, sheared=False):
    matrix = np.eye(4)
    matrix[:3, :3] = rotation([draw(angle) for _ in range(3)]) @ np.diag([draw(size) for _ in range(3)])
    if draw(st.booleans()):
        matrix[:3, 2] *= -1
    if sheared:
        matrix[:3, 2] += 0.3 * matrix[:3, 1]
    matrix[:3, 3] = [draw(st.floats(-500, 500)) for _ in range(3)]
    return matrix


@settings(max_examples=60, deadline=None)
@given(
    affine=affines(),
    array=hnp.arrays(
        st.sampled_from(["uint8", "int16", "float32"]), hnp.array_shapes(min_dims=3, max_dims=3, max_side=5)
    ),
)
def test_nibabel_reads_the_same_voxels_at_the_same_millimetres(tmp_path_factory, affine, array):
    path = tmp_path_factory.mktemp("nifti") / "volume.nii"
    with path.open("wb") as file:
        write_nifti(file, array, affine, "HU")
    image = nibabel.load(path)
    np.testing.assert_array_equal(np.asanyarray(image.dataobj).transpose(2, 1, 0), array)
    np.testing.assert_allclose(image.get_sform(), FLIP @ affine, atol=1e-4)
    # The quaternion form says the same place, within its float32: near half a turn a = sqrt(1 - b2 - c2 - d2) is known to the root
    # of 1e-7 alone, which turns 5 mm by up to 4e-3 mm.
    np.testing.assert_allclose(image.get_qform(), FLIP @ affine, atol=4e-3)
    assert image.header.get_xyzt_units()[0] == "mm"
    back = read_nifti(path)
    np.testing.assert_array_equal(back.array, array)
    np.testing.assert_allclose(back.affine, affine, atol=1e-4)
    assert back.unit == "HU"


@settings(max_examples=30, deadline=None)
@given(affine=affines(sheared=True))
def test_a_sheared_volume_has_an_sform_and_no_qform(affine):
    assert not is_orthogonal(affine)
    header = nibabel.Nifti1Header.from_fileobj(io.BytesIO(nifti_header((2, 3, 4), "int16", affine)))
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 0)
    np.testing.assert_allclose(header.get_sform(), FLIP @ affine, atol=1e-4)


@pytest.mark.parametrize("dtype", TYPES)
def test_every_type_survives(tmp_path, dtype):
    info = np.finfo(dtype) if dtype.startswith("float") else np.iinfo(dtype)
    array = np.array([info.min, 0, info.max], dtype).reshape(1, 1, 3)
    path = tmp_path / "v.nii"
    with path.open("wb") as file:
        write_nifti(file, array, np.eye(4))
    assert np.asanyarray(nibabel.load(path).dataobj).ravel().tolist() == array.ravel().tolist()
    assert read_nifti(path).array.tolist() == array.tolist()


@pytest.mark.parametrize(("shape", "dtype"), [((1, 1, 40000), "uint8"), ((2, 2, 2), "complex64"), ((2, 2, 2), "int64")])
def test_what_nifti_can_not_hold_is_refused(shape, dtype):
    with pytest.raises(DataError) as caught:
        nifti_header(shape, dtype, np.eye(4))
    assert caught.value.code == "nifti-limits"


def test_a_foreign_compressed_file_is_read_by_its_own_affine(tmp_path):
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    ras = np.array([[0, -2, 0, 5], [3, 0, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1.0]])
    nibabel.save(nibabel.Nifti1Image(array, ras), tmp_path / "v.nii.gz")
    volume = read_nifti(tmp_path / "v.nii.gz")
    np.testing.assert_array_equal(volume.array, array.transpose(2, 1, 0))
    np.testing.assert_allclose(volume.affine, FLIP @ ras)


def test_a_file_without_any_affine_is_refused(tmp_path):
    image = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.int16), None)
    image.header["sform_code"] = image.header["qform_code"] = 0
    nibabel.save(image, tmp_path / "v.nii")
    with pytest.raises(DataError) as caught:
        read_nifti(tmp_path / "v.nii")
    assert caught.value.code == "no-affine"


def test_a_volume_of_four_axes_is_refused(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2, 3), np.int16), np.eye(4)), tmp_path / "v.nii")
    with pytest.raises(DataError) as caught:
        read_nifti(tmp_path / "v.nii")
    assert caught.value.code == "not-a-volume"


def test_a_file_that_ends_too_early_is_refused(tmp_path):
    path = tmp_path / "v.nii"
    with path.open("wb") as file:
        write_nifti(file, np.zeros((2, 3, 4), np.int16), np.eye(4))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError) as caught:
        read_nifti(path)
    assert caught.value.code == "truncated"


def test_a_file_that_is_no_nifti_and_one_that_is_not_there(tmp_path):
    (tmp_path / "v.nii").write_text("hello")
    with pytest.raises(DataError) as caught:
        read_nifti(tmp_path / "v.nii")
    assert caught.value.code == "not-nifti"
    with pytest.raises(MissingError):
        read_nifti(tmp_path / "w.nii")


def write_raw(path, header, array):
    path.write_bytes(header + np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
    return path


def test_colour_is_read_by_nibabel_and_simpleitk_as_red_green_and_blue(tmp_path):
    rgb = np.random.default_rng(3).integers(0, 256, (3, 4, 5, 3)).astype("u1")
    path = write_raw(tmp_path / "c.nii", nifti_header((3, 4, 5), "uint8", np.diag([2.0, 3, 4, 1]), colour=True), rgb)
    image = nibabel.load(path)
    assert image.header["datatype"] == 128  # DT_RGB24
    found = np.asanyarray(image.dataobj).transpose(2, 1, 0)
    np.testing.assert_array_equal(np.stack([found["R"], found["G"], found["B"]], -1), rgb)
    itk = SimpleITK.ReadImage(str(path))
    assert (itk.GetNumberOfComponentsPerPixel(), itk.GetSpacing()) == (3, (2, 3, 4))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(itk), rgb)
    with pytest.raises(DataError, match="not-a-volume"):
        read_nifti(path)


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_colour_is_of_bytes_only(dtype):
    with pytest.raises(DataError, match="nifti-limits"):
        nifti_header((3, 4, 5), dtype, np.eye(4), colour=True)


def test_a_fourth_axis_is_the_slowest(tmp_path):
    array = np.arange(2 * 3 * 4 * 5, dtype="i2").reshape(2, 3, 4, 5)
    affine = np.array([[0, 0, 2.0, -5], [3, 0, 0, 6], [0, 4, 0, 7], [0, 0, 0, 1]])
    path = write_raw(tmp_path / "t.nii", nifti_header(array.shape, "int16", affine, "HU"), array)
    image = nibabel.load(path)
    assert image.shape == (5, 4, 3, 2)
    np.testing.assert_array_equal(np.asanyarray(image.dataobj).transpose(3, 2, 1, 0), array)
    np.testing.assert_allclose(image.affine, FLIP @ affine)
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))), array)
    with pytest.raises(DataError, match="not-a-volume") as caught:
        read_nifti(path)
    assert "--pick" in caught.value.hint


def test_a_fourth_axis_of_one_is_still_a_volume_to_the_reader(tmp_path):
    array = np.arange(24, dtype="i2").reshape(1, 2, 3, 4)
    path = write_raw(tmp_path / "t.nii", nifti_header(array.shape, "int16", np.eye(4)), array)
    np.testing.assert_array_equal(read_nifti(path).array, array[0])


@pytest.mark.parametrize("plane", ["detector", "calibrated-geometry", "calibrated-fiducial", "unknown"])
@pytest.mark.parametrize("unit", [None, "OD", "g/ml"])
def test_millimetres_that_are_not_the_patients_claim_no_place_in_the_patient(tmp_path, plane, unit):
    array = np.arange(12, dtype="u2").reshape(1, 3, 4)
    affine = np.diag([0.25, 0.5, 1, 1])
    path = write_raw(tmp_path / "d.nii", nifti_header(array.shape, "uint16", affine, unit, plane=plane), array)
    image = nibabel.load(path)
    # NIfTI-1: with both codes 0 only the sizes of the voxels hold (method 1).
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (0, 0)
    assert image.header.get_zooms() == (0.25, 0.5, 1)
    back = read_nifti(path)
    assert (back.plane, back.unit) == (plane, unit)
    np.testing.assert_array_equal(back.array, array)
    np.testing.assert_allclose(back.affine, affine)


def test_a_volume_in_the_patient_says_so_and_a_foreign_one_without_codes_is_refused(tmp_path):
    array = np.zeros((2, 3, 4), "i2")
    path = write_raw(tmp_path / "p.nii", nifti_header(array.shape, "int16", np.eye(4), "HU"), array)
    assert read_nifti(path).plane == "patient"
    header = bytearray(nifti_header(array.shape, "int16", np.eye(4), "HU"))
    header[252:256] = bytes(4)
    with pytest.raises(DataError, match="no-affine"):
        read_nifti(write_raw(tmp_path / "n.nii", bytes(header), array))


@pytest.mark.parametrize("unit", ["HU", "g/ml", "BQML", "10^-6 mm^2/s", None])
def test_a_unit_comes_back_as_it_was_written(tmp_path, unit):
    array = np.zeros((2, 3, 4), "i2")
    path = write_raw(tmp_path / "u.nii", nifti_header(array.shape, "int16", np.eye(4), unit), array)
    assert read_nifti(path).unit == unit
