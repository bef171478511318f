"""Mosaics: where each tile lies, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread

from mdcli.dicom.instance import Instance
from mdcli.errors import DataError
from tests.made_series import AXIAL, CORONAL, SAGITTAL
from tests.multiframe_series import grid, mosaic, protocol, read, save

OBLIQUE = [0.9, 0.3, 0.316228, -0.316228, 0.948683, 0.0]
LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def normal(texts: str) -> dict[str, list[str]]:
    return {"NumberOfImagesInMosaic": ["5"], "SliceNormalVector": texts.split()}


def tiles(ds, path: Path) -> list[Instance]:
    return read(save(ds, path / "one.dcm"))


def refused(ds, path: Path) -> str:
    with pytest.raises(DataError) as error:
        tiles(ds, path)
    assert error.value.code == "mosaic" and "Canary" not in error.value.message
    return error.value.message


def affine(found: list[Instance]) -> np.ndarray:
    """Return the affine of an even stack, by DICOM PS3.3 equation C.7.6.2.1-1."""
    row, column = np.array(found[0].get("ImageOrientationPatient")).reshape(2, 3)
    down, right = found[0].get("PixelSpacing")
    at = np.array([tile.get("ImagePositionPatient") for tile in found])
    made = np.eye(4)
    made[:3] = np.stack([row * right, column * down, (at[-1] - at[0]) / (len(at) - 1), at[0]], axis=1)
    return made


def cut(found: list[Instance], picture: np.ndarray) -> np.ndarray:
    """Return the tiles' pixels, (k, j, i)."""
    return np.stack(
        [picture[t.tile[0] : t.tile[0] + t.get("Rows"), t.tile[1] : t.tile[1] + t.get("Columns")] for t in found]
    )


@pytest.mark.parametrize("series", ["mr_0003", "mr_0004", "mr_0005", "mr_0006"])
def test_real_mosaics_have_the_affine_and_the_voxels_that_dcm2niix_gives(shared_data, series):
    import nibabel

    case = shared_data / "21_mr_mosaic_study"
    reference = nibabel.load(next((case / "ref" / "dcm2niix_upstream").glob(f"*_{series[-1]}.nii")))
    facts = json.loads((case / "facts.json").read_text())["dcm2niix"]
    volumes = np.asanyarray(reference.dataobj)
    paths = sorted((case / "dicom" / series).glob("*.dcm"))
    assert volumes.shape == (72, 72, 5, len(paths))
    for number, path in enumerate(paths):
        found = read(path)
        # NIfTI is RAS+, and dcm2niix turns the rows around.
        turned = np.diag([1.0, -1.0, 1.0, 1.0])
        turned[1, 3] = 71
        assert LPS_FROM_RAS @ affine(found) @ turned == pytest.approx(reference.affine, abs=1e-3)
        voxels = cut(found, dcmread(path).pixel_array)
        assert np.array_equal(voxels[:, ::-1].transpose(2, 1, 0), volumes[..., number])
    said = next(value for name, value in facts.items() if name.startswith(series))
    assert said["affine"] == pytest.approx(reference.affine.ravel().tolist(), abs=1e-3)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(2, 30),
    orientation=st.sampled_from([AXIAL, CORONAL, SAGITTAL, OBLIQUE]),
    against=st.booleans(),
    tile=st.sampled_from([(4, 6), (6, 4), (8, 8)]),
    spacing=st.floats(0.5, 20),
)
def test_any_mosaic_has_the_affine_that_nibabel_gives(tmp_path_factory, count, orientation, against, tile, spacing):
    from nibabel.nicom.dicomwrappers import MosaicWrapper

    folder = tmp_path_factory.mktemp("mosaic")
    across = np.cross(orientation[:3], orientation[3:]) * (-1 if against else 1)
    image = {
        "NumberOfImagesInMosaic": [str(count)],
        "SliceNormalVector": [f"{v:.8f}" for v in across],
    }
    ds = mosaic(count, orientation=orientation, tile=tile, spacing=float(f"{spacing:.4f}"), image=image)
    path = save(ds, folder / "one.dcm")
    found = read(path)
    judge = MosaicWrapper(dcmread(path))
    # nibabel indexes (row, column, slice).
    assert affine(found) == pytest.approx(judge.affine[:, [1, 0, 2, 3]], abs=1e-3)
    voxels = cut(found, dcmread(path).pixel_array)
    assert np.array_equal(voxels.transpose(1, 2, 0), judge.get_unscaled_data())
    assert [t.frame for t in found] == [None] * count


def test_slices_run_along_the_vector_of_the_header_from_the_corner_of_the_first_tile(tmp_path):
    found = tiles(mosaic(5, image=normal("0 0 1")), tmp_path)
    # 3 x 3 tiles of 4 x 6 pixels, 2.0 mm down and 1.5 mm to the right: half of 12 columns and of 8 rows.
    assert [t.get("ImagePositionPatient") for t in found] == [[-91.0, -72.0, 10.0 + 5 * k] for k in range(5)]
    assert [t.tile for t in found] == [(0, 0, 12, 18), (0, 6, 12, 18), (0, 12, 12, 18), (4, 0, 12, 18), (4, 6, 12, 18)]
    assert {(t.get("Rows"), t.get("Columns")) for t in found} == {(4, 6)}


def test_the_older_header_of_siemens_says_the_same_as_the_newer_one(tmp_path):
    older, newer = (tiles(mosaic(5, image=normal("0 0 -1"), version=version), tmp_path) for version in (1, 2))
    assert [t.attributes for t in older] == [t.attributes for t in newer]


def test_slices_that_run_against_the_normal_go_down(tmp_path):
    found = tiles(mosaic(5, image=normal("0 0 -1")), tmp_path)
    assert [t.get("ImagePositionPatient")[2] for t in found] == [10.0, 5.0, 0.0, -5.0, -10.0]


@pytest.mark.parametrize("step", [5.0, -5.0])
def test_without_a_vector_the_protocol_says_which_way_and_how_far_the_slices_go(tmp_path, step):
    series = protocol([(1.0, 2.0, 10.0 + k * step) for k in range(5)])
    found = tiles(mosaic(5, series=series, spacing=None), tmp_path)
    assert [t.get("ImagePositionPatient")[2] for t in found] == [10.0 + k * step for k in range(5)]


def test_images_that_are_numbered_against_the_protocol_follow_the_vector(tmp_path):
    series = protocol([(0.0, 0.0, 30.0 - 5 * k) for k in range(5)], "sSliceArray.ucImageNumbTra\t = \t0x1")
    found = tiles(mosaic(5, image=normal("0 0 1"), series=series), tmp_path)
    assert [t.get("ImagePositionPatient")[2] for t in found] == [10.0, 15.0, 20.0, 25.0, 30.0]


def test_the_number_of_images_may_stand_in_any_of_three_places(tmp_path):
    series = protocol([(0.0, 0.0, 5.0 * k) for k in range(5)])
    only_vector = {"SliceNormalVector": ["0", "0", "1"]}
    assert len(tiles(mosaic(5, image=only_vector, number=5), tmp_path)) == 5
    assert len(tiles(mosaic(5, image=normal("0 0 1")), tmp_path)) == 5
    assert len(tiles(mosaic(5, image=only_vector, series=series), tmp_path)) == 5


@pytest.mark.parametrize(
    "ds, what",
    [
        pytest.param(lambda: mosaic(5), "how many images", id="no number"),
        pytest.param(lambda: mosaic(5, number=5), "which way its slices run", id="no direction"),
        pytest.param(lambda: mosaic(5, image=normal("0 0 1"), spacing=None), "distance between", id="no distance"),
        pytest.param(lambda: mosaic(5, image=normal("0 0 1"), number=6), "5, 6", id="two numbers"),
        pytest.param(lambda: mosaic(5, image=normal("0 1 0")), "right angles", id="a vector within the plane"),
        pytest.param(lambda: mosaic(5, image=normal("0 0 x")), "which way its slices run", id="a vector of text"),
        pytest.param(lambda: mosaic(5, number=0), "0 images", id="none"),
        pytest.param(lambda: mosaic(5, number=60000), "60000 images", id="too many"),
        pytest.param(lambda: mosaic(5, image=normal("0 0 1"), Rows=13), "do not divide", id="odd rows"),
        pytest.param(
            lambda: mosaic(5, image=normal("0 0 1"), ImagePositionPatient=...), "ImagePositionPatient", id="no position"
        ),
        pytest.param(
            lambda: mosaic(5, image=normal("0 0 1"), ImageOrientationPatient=[1, 0, 0, 1, 0, 0]),
            "right angles",
            id="no plane",
        ),
        pytest.param(
            lambda: mosaic(5, image=normal("0 0 1"), series=protocol([(0, 0, 6.0 * k) for k in range(5)])),
            "5 mm apart by its header, 6 mm",
            id="two distances",
        ),
        pytest.param(
            lambda: mosaic(5, image=normal("0 0 1"), series=protocol([(0, 0, -5.0 * k) for k in range(5)])),
            "one way",
            id="two directions",
        ),
    ],
)
def test_a_mosaic_that_lacks_or_contradicts_a_number_is_refused(tmp_path, ds, what):
    assert what in refused(ds(), tmp_path)


def test_b_value_and_direction_come_from_private_elements_where_no_public_one_has_them(tmp_path):
    ds = mosaic(5, image=normal("0 0 1"), number=5)
    block = ds.private_block(0x0019, "SIEMENS MR HEADER")
    block.add_new(0x0C, "IS", "1000")
    block.add_new(0x0E, "FD", [0.0, 0.6, 0.8])
    found = tiles(ds, tmp_path)
    assert {t.get("DiffusionBValue") for t in found} == {1000}
    assert found[0].get("DiffusionGradientOrientation") == [0.0, 0.6, 0.8]


def test_a_uih_grid_has_the_position_of_each_slice_and_as_few_rows_as_it_needs(tmp_path):
    positions = [(-30.0, -20.0, 7.0 + 4.5 * k) for k in range(5)]
    found = tiles(grid(positions), tmp_path)
    assert [tuple(t.get("ImagePositionPatient")) for t in found] == positions
    # 5 tiles: 3 in a row, 2 rows.
    assert [t.tile for t in found] == [(0, 0, 8, 18), (0, 6, 8, 18), (0, 12, 8, 18), (4, 0, 8, 18), (4, 6, 8, 18)]


@pytest.mark.parametrize(
    "ds, what",
    [
        pytest.param(lambda: grid([(0, 0, 0)] * 5, number=None), "how many images", id="no number"),
        pytest.param(lambda: grid([(0, 0, 0)] * 5, number="2.5"), "how many images", id="half a number"),
        pytest.param(lambda: grid([(0, 0, 0)] * 5, number=6), "of 6 images that places 5", id="too few places"),
        pytest.param(lambda: grid([(0, 0, 0), None]), "no position", id="a slice without a place"),
        pytest.param(lambda: grid([(0, 0, 0)] * 5, Columns=19), "do not divide", id="odd columns"),
    ],
)
def test_a_grid_that_lacks_or_contradicts_a_number_is_refused(tmp_path, ds, what):
    assert what in refused(ds(), tmp_path)


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 4000), value=st.integers(0, 255), cut_off=st.integers(0, 400))
def test_a_damaged_private_header_is_read_or_refused_never_a_crash(tmp_path_factory, at, value, cut_off):
    folder = tmp_path_factory.mktemp("damaged")
    ds = mosaic(5, image=normal("0 0 1"), number=5, series=protocol([(0.0, 0.0, 5.0 * k) for k in range(5)]))
    block = ds.private_block(0x0029, "SIEMENS CSA HEADER")
    raw = bytearray(block[0x10].value)
    raw[at % len(raw)] = value
    block[0x10].value = bytes(raw[: len(raw) - cut_off])
    try:
        assert 0 < len(tiles(ds, folder)) <= 5
    except DataError as error:
        assert error.code == "mosaic"
