"""Files of other programs: nibabel and SimpleITK, which others wrote, say where every voxel lies; what can't be true is refused."""

import gzip
import io
import struct
import tracemalloc
import zlib

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mdcli.errors import DataError, MdError
from mdcli.imaging.foreign import WRITTEN_FORMS, ending_of, read_foreign, write_foreign
from tests.imaging.test_nifti import FLIP, TYPES, affines, rotation

VALUES = np.arange(-60, 60, dtype=np.int16).reshape(4, 5, 6)


def oblique():
    affine = np.eye(4)
    affine[:3, :3] = rotation((0.2, -0.3, 1.1)) @ np.diag([0.7, 0.9, 2.5])
    affine[:3, 3] = [-12.5, 40.25, 7]
    return affine


def itk_affine(image):
    """Return what SimpleITK says of a place: 4x4, LPS+."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return affine


def itk_image(array, affine):
    image = sitk.GetImageFromArray(array)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(sizes.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / sizes).ravel().tolist())
    return image


def refused(path):
    with pytest.raises(MdError) as caught:
        read_foreign(path)
    return caught.value.code


def written(form, array, affine, unit=None):
    file = io.BytesIO()
    write_foreign(file, form, [array[:1], array[1:]], array.shape, array.dtype, affine, unit)
    return file.getvalue()


@pytest.mark.parametrize("ending", ["nrrd", "nhdr", "mha", "mhd"])
@pytest.mark.parametrize("compressed", [False, True])
def test_what_simpleitk_writes_is_read_as_simpleitk_has_it(tmp_path, ending, compressed):
    affine = oblique()
    affine[:3, 2] *= -1
    path = tmp_path / f"image.{ending}"
    sitk.WriteImage(itk_image(VALUES, affine), str(path), compressed)
    found = read_foreign(path)
    np.testing.assert_array_equal(found.volume.array, VALUES)
    np.testing.assert_allclose(found.volume.affine, affine, atol=1e-6)
    assert len(found.files) == (2 if ending in ("nhdr", "mhd") else 1)


@settings(max_examples=60, deadline=None)
@given(
    affine=affines(),
    array=hnp.arrays(st.sampled_from(TYPES), hnp.array_shapes(min_dims=3, max_dims=3, min_side=2, max_side=5)),
    form=st.sampled_from(["nrrd", "mha"]),
)
def test_simpleitk_reads_what_is_written_at_the_same_millimetres(tmp_path_factory, affine, array, form):
    path = tmp_path_factory.mktemp("foreign") / f"image.{form}"
    path.write_bytes(written(form, array, affine, "HU"))
    image = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), array)
    np.testing.assert_allclose(itk_affine(image), affine, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    affine=affines(sheared=True),
    array=hnp.arrays(st.sampled_from(TYPES), hnp.array_shapes(min_dims=3, max_dims=3, max_side=5)),
    form=st.sampled_from(["nrrd", "nii", "nii.gz"]),
)
def test_a_round_trip_keeps_voxels_affine_and_unit_sheared_or_not(tmp_path_factory, affine, array, form):
    path = tmp_path_factory.mktemp("foreign") / f"image.{form}"
    path.write_bytes(written(form, array, affine, "HU"))
    found = read_foreign(path).volume
    np.testing.assert_array_equal(found.array, array)
    assert found.array.dtype == array.dtype
    # A NIfTI's sform is float32: 500 mm and more to within 1e-4.
    np.testing.assert_allclose(found.affine, affine, atol=0 if form == "nrrd" else 1e-4)
    assert found.unit == "HU"


def test_a_round_trip_through_mha_keeps_voxels_affine_and_unit(tmp_path):
    path = tmp_path / "image.mha"
    path.write_bytes(written("mha", VALUES, oblique(), "HU"))
    found = read_foreign(path).volume
    np.testing.assert_array_equal(found.array, VALUES)
    np.testing.assert_allclose(found.affine, oblique(), atol=1e-12)
    assert found.unit == "HU"


@pytest.mark.parametrize("form", WRITTEN_FORMS)
def test_the_same_volume_gives_the_same_bytes(form):
    assert written(form, VALUES, oblique()) == written(form, VALUES, oblique())


def test_a_sheared_volume_is_refused_for_mha_by_name():
    sheared = oblique()
    sheared[:3, 2] += 0.2 * sheared[:3, 1]
    with pytest.raises(DataError) as caught:
        written("mha", VALUES, sheared)
    assert caught.value.code == "sheared-volume"


def test_a_type_that_a_form_has_not_is_refused():
    for form, code in (("nrrd", "unsupported-type"), ("mha", "unsupported-type"), ("nii", "nifti-limits")):
        with pytest.raises(DataError) as caught:
            written(form, VALUES.astype(np.float16), oblique())
        assert caught.value.code == code


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("ending", ["nii", "nii.gz", "NII.GZ"])
@pytest.mark.parametrize("order", "<>")
def test_a_nifti_is_read_as_nibabel_has_it(tmp_path, kind, ending, order):
    path = tmp_path / f"image.{ending}"
    header = kind.header_class(endianness=order)
    header.set_data_dtype(np.int16)
    header.set_xyzt_units("mm")
    image = kind(VALUES.transpose(2, 1, 0), FLIP @ oblique(), header)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"x" * 3000))
    image.to_filename(path)
    found = read_foreign(path).volume
    np.testing.assert_array_equal(found.array, nibabel.load(path).get_fdata().transpose(2, 1, 0))
    np.testing.assert_array_equal(found.array, VALUES)
    np.testing.assert_allclose(found.affine, oblique(), atol=1e-5)


@pytest.mark.parametrize("kind, expected", [("int16", "float32"), ("int32", "float64")])
def test_a_scaled_nifti_is_its_slope_and_intercept(tmp_path, kind, expected):
    image = nibabel.Nifti1Image(VALUES.astype(kind).transpose(2, 1, 0), FLIP @ oblique())
    image.header.set_slope_inter(0.5, -1024)
    image.to_filename(tmp_path / "image.nii")
    path = tmp_path / "scaled.nii"
    data = bytearray((tmp_path / "image.nii").read_bytes())
    # nibabel scales the voxels to fit; here they are to stay as they are.
    struct.pack_into("<2f", data, 112, 0.5, -1024)
    data[352:] = np.ascontiguousarray(VALUES, kind).tobytes()
    path.write_bytes(data)
    found = read_foreign(path).volume.array
    assert found.dtype == expected
    np.testing.assert_array_equal(found, VALUES * 0.5 - 1024)


def nifti(tmp_path, change=None, values=VALUES, name="image.nii"):
    """Write a NIfTI whose header something was done to."""
    image = nibabel.Nifti1Image(values.transpose(range(values.ndim)[::-1]), FLIP @ oblique())
    image.header.set_xyzt_units("mm")
    image.to_filename(tmp_path / name)
    if change is not None:
        data = bytearray((tmp_path / name).read_bytes())
        change(data)
        (tmp_path / name).write_bytes(data)
    return tmp_path / name


def put(layout, offset, *values):
    return lambda data: struct.pack_into(layout, data, offset, *values)


def test_a_qform_alone_is_taken(tmp_path):
    path = nifti(tmp_path, put("<2h", 252, 1, 0))
    data = bytearray(path.read_bytes())
    header = nibabel.Nifti1Header()
    header.set_qform(FLIP @ oblique(), 1)
    data[76:108], data[256:280] = header.binaryblock[76:108], header.binaryblock[256:280]
    path.write_bytes(data)
    np.testing.assert_allclose(read_foreign(path).volume.affine, oblique(), atol=1e-4)


def test_a_qform_that_lies_elsewhere_than_the_sform_is_told(tmp_path):
    header = nibabel.Nifti1Header()
    header.set_qform(FLIP @ oblique(), 1)
    path = nifti(tmp_path, put("<h", 252, 1))
    data = bytearray(path.read_bytes())
    data[76:108], data[256:280] = header.binaryblock[76:108], header.binaryblock[256:280]
    struct.pack_into("<f", data, 268, -float(oblique()[0, 3]) + 3)
    path.write_bytes(data)
    (finding,) = read_foreign(path).findings
    assert finding.code == "forms-differ" and finding.warning
    assert finding.numbers["apart_mm"] == pytest.approx(3, abs=1e-3)


@pytest.mark.parametrize("unit, scale", [(0, 1), (1, 1000), (3, 0.001)])
def test_metres_and_micrometres_become_millimetres(tmp_path, unit, scale):
    found = read_foreign(nifti(tmp_path, lambda data: data.__setitem__(123, unit)))
    expected = oblique()
    expected[:3] *= scale
    np.testing.assert_allclose(found.volume.affine, expected, rtol=1e-5)
    assert [f.code for f in found.findings] == ([] if scale == 1 else ["not-millimetres"])


@pytest.mark.parametrize(
    "change, code",
    [
        pytest.param(put("<2h", 252, 0, 0), "no-affine", id="neither form"),
        pytest.param(put("<f", 280, float("nan")), "singular-affine", id="a number that is none"),
        pytest.param(put("<12f", 280, *[1, 0, 0, 0] * 3), "singular-affine", id="axes in one line"),
        pytest.param(put("<h", 70, 128), "vector-image", id="colours"),
        pytest.param(put("<h", 70, 32), "unsupported-type", id="complex"),
        pytest.param(put("<h", 70, 1234), "unsupported-type", id="no type at all"),
        pytest.param(put("<h", 42, 30000), "truncated", id="more voxels than the file has"),
        pytest.param(put("<4h", 40, 3, 32767, 32767, 32767), "volume-too-large", id="more than any file has"),
        pytest.param(put("<2h", 40, 3, -5), "not-a-volume", id="a negative size"),
        pytest.param(put("<h", 40, 99), "not-a-volume", id="no such number of axes"),
        pytest.param(put("<h", 40, 1), "not-a-volume", id="one axis"),
        pytest.param(put("<f", 108, float("inf")), "not-nifti", id="voxels start nowhere"),
        pytest.param(put("<f", 108, 1e9), "truncated", id="voxels start behind the end"),
        pytest.param(put("<f", 116, float("nan")), "not-nifti", id="an intercept that is no number"),
        pytest.param(put("4s", 344, b"ni1\0"), "not-nifti", id="voxels in another file"),
        pytest.param(put("<i", 0, 7), "not-nifti", id="no header"),
        pytest.param(lambda data: data.__delitem__(slice(100, None)), "not-nifti", id="half a header"),
        pytest.param(lambda data: data.clear(), "not-nifti", id="empty"),
        pytest.param(lambda data: data.__setitem__(123, 5), "not-nifti", id="no such unit of length"),
    ],
)
def test_a_nifti_that_can_not_be_true_is_refused(tmp_path, change, code):
    def change_it(data):
        # The intercept counts only beside a slope.
        struct.pack_into("<f", data, 112, 1.0)
        change(data)

    assert refused(nifti(tmp_path, change_it)) == code


def test_four_axes_are_refused_unless_the_fourth_is_of_one(tmp_path):
    assert refused(nifti(tmp_path, values=np.zeros((2, 3, 4, 5), np.int16))) == "four-dimensional"
    assert read_foreign(nifti(tmp_path, values=np.zeros((1, 3, 4, 5), np.int16))).volume.array.shape == (3, 4, 5)
    assert refused(nifti(tmp_path, values=np.zeros((3, 1, 3, 4, 5), np.int16))) == "vector-image"


def test_a_single_slice_is_a_volume_of_one(tmp_path):
    assert read_foreign(nifti(tmp_path, values=VALUES[0])).volume.array.shape == (1, 5, 6)


@pytest.mark.parametrize(
    "values, expected",
    [([0, 5, 70000], "int32"), ([0, 5, 1 << 40], "float64"), ([0, 5, (1 << 60) + 1], None)],
)
def test_integers_of_64_bits_go_into_the_first_type_that_holds_them(tmp_path, values, expected):
    image = nibabel.Nifti1Image(np.array(values, np.int64).reshape(3, 1, 1), np.eye(4), dtype="int64")
    image.to_filename(tmp_path / "image.nii")
    if expected is None:
        assert refused(tmp_path / "image.nii") == "values-too-large"
    else:
        found = read_foreign(tmp_path / "image.nii").volume.array
        assert found.dtype == expected and found.ravel().tolist() == values


def test_a_gzip_bomb_takes_no_more_memory_than_the_header_claims(tmp_path):
    path = nifti(tmp_path)
    data = path.read_bytes()[:352] + VALUES.tobytes()
    bomb = tmp_path / "bomb.nii.gz"
    with gzip.open(bomb, "wb", compresslevel=9) as file:
        file.write(data)
        for _ in range(64):
            file.write(bytes(1 << 20))
    tracemalloc.start()
    try:
        np.testing.assert_array_equal(read_foreign(bomb).volume.array, VALUES)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_a_claim_that_no_stream_of_that_size_can_keep_is_refused_before_memory_is_taken(tmp_path):
    path = nifti(tmp_path)
    data = bytearray(path.read_bytes())
    struct.pack_into("<3h", data, 42, 2000, 2000, 2000)
    (tmp_path / "liar.nii.gz").write_bytes(gzip.compress(bytes(data)))
    tracemalloc.start()
    try:
        assert refused(tmp_path / "liar.nii.gz") == "truncated"
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_a_damaged_gzip_stream_is_refused(tmp_path):
    data = bytearray(gzip.compress(nifti(tmp_path).read_bytes()))
    # The checksum, behind the last voxel.
    data[-6] ^= 1
    (tmp_path / "damaged.nii.gz").write_bytes(data)
    assert refused(tmp_path / "damaged.nii.gz") == "truncated"
    (tmp_path / "cut.nii.gz").write_bytes(data[:-20])
    assert refused(tmp_path / "cut.nii.gz") == "truncated"


def test_a_gzip_file_of_several_members_is_read_whole(tmp_path):
    data = nifti(tmp_path).read_bytes()
    (tmp_path / "two.nii.gz").write_bytes(gzip.compress(data[:400]) + gzip.compress(data[400:]))
    np.testing.assert_array_equal(read_foreign(tmp_path / "two.nii.gz").volume.array, VALUES)


NRRD = [
    "NRRD0005",
    "# made by hand",
    "type: short",
    "dimension: 3",
    "space: left-posterior-superior",
    "sizes: 6 5 4",
    "space directions: (2,0,0) (0,3,0) (0,0,4)",
    "kinds: domain domain domain",
    "endian: little",
    "encoding: raw",
    "space origin: (10,20,30)",
    "anything:=at all: (1,2)",
]


def nrrd(path, *, data=VALUES.tobytes(), **fields):
    own = {line.split(":")[0].replace(" ", "_"): line for line in NRRD}
    own |= {key: value and f"{key.replace('_', ' ')}: {value}" for key, value in fields.items()}
    # A data file comes last.
    lines = [line for line in own.values() if line is not None]
    path.write_bytes("\n".join(lines).encode() + b"\n\n" + data)
    return path


@pytest.mark.parametrize(
    "space, signs",
    [
        ("left-posterior-superior", (1, 1, 1)),
        ("LPS", (1, 1, 1)),
        ("right-anterior-superior", (-1, -1, 1)),
        ("RAS", (-1, -1, 1)),
        ("left-anterior-superior", (1, -1, 1)),
        ("LAS", (1, -1, 1)),
    ],
)
def test_the_space_of_an_nrrd_says_which_way_its_axes_run(tmp_path, space, signs):
    path = nrrd(tmp_path / "image.nrrd", space=space)
    found = read_foreign(path).volume.affine
    expected = np.diag([*signs, 1.0]) @ np.array([[2, 0, 0, 10], [0, 3, 0, 20], [0, 0, 4, 30], [0, 0, 0, 1.0]])
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(itk_affine(sitk.ReadImage(str(path))), expected)


@pytest.mark.parametrize(
    "fields, code",
    [
        pytest.param({"space": None}, "no-affine", id="no space"),
        pytest.param({"space": "3D-right-handed"}, "no-affine", id="a space without a patient"),
        pytest.param({"space": "left-posterior-superior-time"}, "four-dimensional", id="a space with time"),
        pytest.param({"space_origin": None}, "no-affine", id="no origin"),
        pytest.param({"space_directions": None}, "no-affine", id="no directions"),
        pytest.param({"space_directions": "(2,0,0) (0,3,0)"}, "no-affine", id="a direction too few"),
        pytest.param({"space_directions": "(2,0,0) (0,3,0) (0,0,x)"}, "no-affine", id="a direction that is none"),
        pytest.param({"space_directions": "(2,0,0) (2,0,0) (0,0,1)"}, "singular-affine", id="axes in one plane"),
        pytest.param({"space_directions": "(2,0,0) (0,nan,0) (0,0,1)"}, "singular-affine", id="no number"),
        pytest.param(
            {
                "space_directions": "none (2,0,0) (0,3,0) (0,0,4)",
                "sizes": "3 2 5 4",
                "kinds": "vector domain domain domain",
            },
            "vector-image",
            id="vectors",
        ),
        pytest.param(
            {
                "space_directions": "(2,0,0) (0,3,0) (0,0,4) none",
                "sizes": "3 2 5 4",
                "kinds": "domain domain domain list",
            },
            "four-dimensional",
            id="a list of volumes",
        ),
        pytest.param({"sizes": "6 5 5"}, "truncated", id="more voxels than there are"),
        pytest.param({"sizes": "600000 500000 4"}, "volume-too-large", id="more than any file has"),
        pytest.param({"sizes": "6 -5 4"}, "not-nrrd", id="a negative size"),
        pytest.param({"sizes": "6 0 4"}, "not-a-volume", id="a size of 0"),
        pytest.param({"type": "block"}, "unsupported-type", id="no number as voxel"),
        pytest.param({"encoding": "bzip2"}, "unsupported-encoding", id="bzip2"),
        pytest.param({"encoding": "ascii"}, "unsupported-encoding", id="text"),
        pytest.param({"line_skip": "3"}, "unsupported-encoding", id="lines to skip"),
        pytest.param({"encoding": "gzip"}, "truncated", id="a stream that is none"),
        pytest.param({"endian": None}, "not-nrrd", id="no byte order"),
        pytest.param({"space_units": '"m" "m" "m"'}, "unsupported-type", id="metres"),
        pytest.param({"data_file": "LIST"}, "unsupported-encoding", id="many files"),
        pytest.param({"data_file": "a%02d.raw 1 4 1"}, "unsupported-encoding", id="files by a pattern"),
        pytest.param({"data_file": "../image.raw"}, "data-file-outside", id="a file above"),
        pytest.param({"data_file": "/etc/passwd"}, "data-file-outside", id="a file anywhere"),
        pytest.param({"data_file": "C:\\image.raw"}, "data-file-outside", id="a file anywhere on another system"),
        pytest.param({"data_file": "gone.raw"}, "no-source", id="a file that is gone"),
    ],
)
def test_an_nrrd_that_can_not_be_true_is_refused(tmp_path, fields, code):
    (tmp_path / "folder").mkdir()
    (tmp_path / "image.raw").write_bytes(VALUES.tobytes())
    assert refused(nrrd(tmp_path / "folder" / "image.nrrd", **fields)) == code


def test_an_nrrd_takes_its_voxels_from_the_file_beside_it_after_a_skip(tmp_path):
    (tmp_path / "image.raw").write_bytes(b"12345678" + VALUES.astype(">i2").tobytes())
    for skip in ("8", "-1"):
        path = nrrd(tmp_path / "image.nhdr", data=b"", data_file="image.raw", endian="big", byte_skip=skip)
        np.testing.assert_array_equal(read_foreign(path).volume.array, VALUES)
    path = nrrd(
        tmp_path / "image.nrrd", data=gzip.compress(b"12345678" + VALUES.tobytes()), encoding="gzip", byte_skip="8"
    )
    np.testing.assert_array_equal(read_foreign(path).volume.array, VALUES)


def test_a_link_that_leads_out_of_the_folder_is_not_followed_for_voxels(tmp_path):
    (tmp_path / "secret.raw").write_bytes(VALUES.tobytes())
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "image.raw").symlink_to(tmp_path / "secret.raw")
    assert refused(nrrd(tmp_path / "folder" / "image.nhdr", data=b"", data_file="image.raw")) == "data-file-outside"


MHA = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    "Offset": "10 20 30",
    "ElementSpacing": "2 3 4",
    "DimSize": "6 5 4",
    "ElementType": "MET_SHORT",
}


def mha(path, *, data=VALUES.tobytes(), file="LOCAL", **fields):
    lines = [f"{key} = {value}" for key, value in {**MHA, **fields}.items() if value is not None]
    path.write_bytes("\n".join([*lines, f"ElementDataFile = {file}"]).encode() + b"\n" + data)
    return path


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="as ITK writes"),
        pytest.param({"TransformMatrix": None, "Rotation": "1 0 0 0 1 0 0 0 1"}, id="another name of the directions"),
        pytest.param({"Offset": None, "Origin": "10 20 30"}, id="another name of the origin"),
        pytest.param({"BinaryDataByteOrderMSB": "True", "data": VALUES.astype(">i2").tobytes()}, id="big endian"),
        pytest.param({"CompressedData": "True", "data": zlib.compress(VALUES.tobytes())}, id="compressed"),
        pytest.param({"HeaderSize": "-1", "data": b"junk" + VALUES.tobytes()}, id="voxels at the end"),
    ],
)
def test_an_mha_is_read_whatever_its_encoding(tmp_path, fields):
    found = read_foreign(mha(tmp_path / "image.mha", **fields)).volume
    np.testing.assert_array_equal(found.array, VALUES)
    np.testing.assert_array_equal(found.affine, [[2, 0, 0, 10], [0, 3, 0, 20], [0, 0, 4, 30], [0, 0, 0, 1]])


@pytest.mark.parametrize(
    "fields, code",
    [
        pytest.param({"TransformMatrix": None}, "no-affine", id="no directions"),
        pytest.param({"Offset": None}, "no-affine", id="no origin"),
        pytest.param({"ElementSpacing": None}, "no-affine", id="no spacing"),
        pytest.param({"TransformMatrix": "1 0 0 1 0 0 0 0 1"}, "singular-affine", id="axes in one plane"),
        pytest.param({"Offset": "10 nan 30"}, "singular-affine", id="no number"),
        pytest.param({"DimSize": "6 5"}, "not-metaimage", id="sizes too few"),
        pytest.param({"DimSize": "6 5 nan"}, "not-metaimage", id="a size that is no number"),
        pytest.param({"DimSize": "60000 50000 40000"}, "volume-too-large", id="more than any file has"),
        pytest.param({"DimSize": "60 50 40"}, "truncated", id="more voxels than there are"),
        pytest.param({"DimSize": "6 5 4 3", "NDims": "4"}, "four-dimensional", id="four axes"),
        pytest.param({"ElementNumberOfChannels": "3"}, "vector-image", id="vectors"),
        pytest.param({"ElementType": "MET_SHORT_ARRAY"}, "unsupported-type", id="no such type"),
        pytest.param({"BinaryData": "False"}, "unsupported-encoding", id="text"),
        pytest.param({"ElementToIntensityFunctionSlope": "2"}, "unsupported-type", id="an intensity function"),
        pytest.param({"CompressedData": "True"}, "truncated", id="a stream that is none"),
        pytest.param({"file": "LIST"}, "unsupported-encoding", id="many files"),
        pytest.param({"file": "../image.raw"}, "data-file-outside", id="a file above"),
        pytest.param({"file": "/dev/zero"}, "data-file-outside", id="a device"),
    ],
)
def test_an_mha_that_can_not_be_true_is_refused(tmp_path, fields, code):
    (tmp_path / "folder").mkdir()
    (tmp_path / "image.raw").write_bytes(VALUES.tobytes())
    assert refused(mha(tmp_path / "folder" / "image.mha", **fields)) == code


@settings(max_examples=150, deadline=None)
@given(data=st.data(), form=st.sampled_from(WRITTEN_FORMS))
def test_a_damaged_file_is_refused_and_never_crashes(tmp_path_factory, data, form):
    whole = bytearray(written(form, VALUES, oblique(), "HU"))
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, min(len(whole), 600) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / f"image.{form}"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))] if data.draw(st.booleans()) else whole)
    try:
        found = read_foreign(path).volume
    except MdError:
        return
    assert found.array.ndim == 3 and np.isfinite(found.affine).all()


def test_no_file_and_no_regular_file_are_refused(tmp_path):
    import os

    assert refused(tmp_path / "gone.nii") == "no-source"
    os.mkfifo(tmp_path / "pipe.mha")
    assert refused(tmp_path / "pipe.mha") == "bad-source"
    assert refused(tmp_path / "image.jpg") == "unknown-form"
    assert ending_of("x.NII.gz") == ".nii.gz" and ending_of("x.gz") is None
