"""Where the pixels of images without a plane lie, by each rule of the standard."""

from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from mdcli.dicom.planar import check_may_be_planar, has_plane, planar_geometry
from mdcli.errors import DataError
from tests.made_series import instance


def image(modality: str = "CR", **more: Any):
    return instance(
        None, Modality=modality, **{"ImageOrientationPatient": ..., "PixelSpacing": ..., "SliceThickness": ..., **more}
    )


def region(x: float, y: float, box=(0, 0, 99, 79), units=(3, 3), spatial=1, **more: Any) -> Dataset:
    """Return an ultrasound region: millimetres a pixel, stored as centimetres (PS3.3 C.8.5.5.1)."""
    ds = Dataset()
    ds.RegionSpatialFormat = spatial
    ds.RegionDataType, ds.RegionFlags = 1, 0
    ds.RegionLocationMinX0, ds.RegionLocationMinY0, ds.RegionLocationMaxX1, ds.RegionLocationMaxY1 = box
    ds.PhysicalUnitsXDirection, ds.PhysicalUnitsYDirection = units
    ds.PhysicalDeltaX, ds.PhysicalDeltaY = x / 10, y / 10
    for keyword, value in more.items():
        if value is ...:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    return ds


def ultrasound(*regions: Dataset) -> Dataset:
    ds = Dataset()
    ds.SequenceOfUltrasoundRegions = Sequence(regions)
    return ds


@pytest.mark.parametrize(
    "more, plane, spacing, attribute",
    [
        pytest.param({"ImagerPixelSpacing": [0.2, 0.1]}, "detector", (0.1, 0.2), "ImagerPixelSpacing", id="detector"),
        pytest.param(
            {"ImagerPixelSpacing": [0.2, 0.1], "PixelSpacing": [0.2, 0.1]},
            "detector",
            (0.1, 0.2),
            "ImagerPixelSpacing",
            id="both alike: nothing was calibrated",
        ),
        pytest.param(
            {"ImagerPixelSpacing": [0.2, 0.1], "PixelSpacing": [0.15, 0.075]},
            "unknown",
            None,
            None,
            id="both, and different without a type: nobody says how it was calibrated",
        ),
        pytest.param(
            {
                "ImagerPixelSpacing": [0.2, 0.1],
                "PixelSpacing": [0.15, 0.075],
                "PixelSpacingCalibrationType": "GEOMETRY",
            },
            "calibrated-geometry",
            (0.075, 0.15),
            "PixelSpacing",
            id="by geometry",
        ),
        pytest.param(
            {"PixelSpacing": [0.15, 0.075], "PixelSpacingCalibrationType": "FIDUCIAL"},
            "calibrated-fiducial",
            (0.075, 0.15),
            "PixelSpacing",
            id="by a fiducial",
        ),
        pytest.param({"PixelSpacing": [0.15, 0.075]}, "unknown", None, None, id="PixelSpacing alone says nothing"),
        pytest.param(
            {"ImagerPixelSpacing": [0.2, 0.1], "PixelSpacingCalibrationType": "GEOMETRY"},
            "detector",
            (0.1, 0.2),
            "ImagerPixelSpacing",
            id="a type without a calibrated spacing",
        ),
        pytest.param(
            {"ImagerPixelSpacing": [0.2, 0.1], "PixelSpacing": [0.15, 0.075], "PixelSpacingCalibrationType": "OTHER"},
            "unknown",
            None,
            None,
            id="a type that the standard doesn't have",
        ),
        pytest.param({}, "unknown", None, None, id="nothing"),
    ],
)
@pytest.mark.parametrize("modality", ["CR", "DX", "MG", "XA", "RF", "OT"])
def test_each_rule_gives_its_plane_and_never_the_patient(modality, more, plane, spacing, attribute):
    found = planar_geometry(image(modality, **more), Dataset())
    assert (found.spacing_plane, found.spacing_mm, found.attribute) == (plane, spacing, attribute)


def test_rows_and_columns_are_not_swapped_and_the_origin_is_the_first_pixels_centre():
    found = planar_geometry(image(ImagerPixelSpacing=[0.5, 0.25]), Dataset())
    # Source: PixelSpacing is [between rows (j), between columns (i)].
    np.testing.assert_array_equal(found.affine, np.diag([0.25, 0.5, 1, 1]))


@pytest.mark.parametrize(
    "more, affine",
    [
        pytest.param({}, [1, 1], id="square where nothing is said"),
        pytest.param({"PixelAspectRatio": [4, 3]}, [1, 4 / 3], id="four high for three wide"),
        pytest.param({"PixelSpacing": [0.3, 0.1]}, [1, 3], id="the shape by a spacing whose millimetres are unknown"),
        pytest.param({"PixelAspectRatio": [0, 3]}, [1, 1], id="a ratio that is none"),
        pytest.param({"PixelAspectRatio": [2, 1], "PixelSpacing": [0.1, 0.1]}, [1, 2], id="the ratio wins"),
    ],
)
def test_without_millimetres_pixels_keep_their_shape(more, affine):
    found = planar_geometry(image("SC", **more), Dataset())
    assert found.spacing_mm is None
    np.testing.assert_allclose(np.diag(found.affine), [*affine, 1, 1], rtol=1e-12)


def test_a_pixel_aspect_ratio_does_not_touch_known_millimetres():
    found = planar_geometry(image(ImagerPixelSpacing=[0.2, 0.1], PixelAspectRatio=[1, 1]), Dataset())
    assert found.spacing_mm == (0.1, 0.2)


@pytest.mark.parametrize("value", [[0.0, 1.0], [-0.1, 0.1], [0.1], ["x", 0.1], 0.1, [float("nan"), 1.0]])
@pytest.mark.parametrize("keyword", ["PixelSpacing", "ImagerPixelSpacing"])
def test_a_spacing_that_is_none_is_refused(keyword, value):
    with pytest.raises(DataError, match="bad-spacing"):
        planar_geometry(image(**{keyword: value}), Dataset())


def test_one_region_calibrates_an_ultrasound_image():
    found = planar_geometry(image("US"), ultrasound(region(0.4, 0.5)))
    assert (found.spacing_plane, found.attribute) == ("calibrated-geometry", "SequenceOfUltrasoundRegions")
    assert found.spacing_mm == pytest.approx((0.4, 0.5))
    (one,) = found.regions
    assert one["box"] == [0, 0, 99, 79]
    assert one["spacing_mm"] == pytest.approx([0.4, 0.5])


def test_regions_that_agree_calibrate_and_those_that_differ_do_not():
    alike = ultrasound(region(0.4, 0.4, (0, 0, 49, 79)), region(0.4, 0.4, (50, 0, 99, 79)))
    assert planar_geometry(image("US"), alike).spacing_mm == pytest.approx((0.4, 0.4))
    unlike = ultrasound(region(0.4, 0.4, (0, 0, 49, 79)), region(0.2, 0.2, (50, 0, 99, 79)))
    found = planar_geometry(image("US"), unlike)
    assert (found.spacing_mm, found.spacing_plane, len(found.regions)) == (None, "unknown", 2)


def test_a_region_counted_upwards_has_the_same_distance():
    assert planar_geometry(image("US"), ultrasound(region(0.4, -0.5))).spacing_mm == pytest.approx((0.4, 0.5))


@pytest.mark.parametrize(
    "one",
    [
        pytest.param(region(0.4, 0.4, units=(4, 3)), id="time along x: M mode"),
        pytest.param(region(0.4, 0.4, units=(4, 7)), id="time and cm/s: Doppler"),
        pytest.param(region(0.4, 0.4, spatial=2), id="M mode by its format"),
        pytest.param(region(0.4, 0.4, spatial=5), id="a graphic"),
        pytest.param(region(0.0, 0.4), id="no distance"),
        pytest.param(region(0.4, 0.4, PhysicalDeltaX=...), id="a delta is absent"),
        pytest.param(region(0.4, 0.4, RegionLocationMaxX1=...), id="a corner is absent"),
        pytest.param(region(float("inf"), 0.4), id="infinite"),
    ],
)
def test_a_region_that_shows_no_tissue_in_centimetres_calibrates_nothing(one):
    found = planar_geometry(image("US"), ultrasound(one))
    assert (found.spacing_mm, found.spacing_plane, found.regions) == (None, "unknown", ())
    beside = planar_geometry(image("US"), ultrasound(one, region(0.3, 0.3)))
    assert beside.spacing_mm == pytest.approx((0.3, 0.3))


def test_regions_count_for_ultrasound_only():
    assert planar_geometry(image("OT"), ultrasound(region(0.4, 0.4))).spacing_mm is None


@pytest.mark.parametrize("modality", ["CT", "MR", "PT"])
def test_tomography_without_any_plane_is_refused(modality):
    with pytest.raises(DataError, match="no-position") as caught:
        check_may_be_planar([image("OT"), image(modality)])
    assert "001.dcm" in caught.value.message


def test_other_modalities_may_have_no_plane():
    check_may_be_planar([image(modality) for modality in ("CR", "DX", "MG", "US", "XA", "RF", "OT", "SC", "IO")])


@pytest.mark.parametrize(
    "more, expected",
    [
        ({"ImagePositionPatient": [0.0, 0.0, 0.0]}, True),
        ({"ImageOrientationPatient": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]}, True),
        ({"ImagePositionPatient": None, "ImageOrientationPatient": None}, False),
        ({}, False),
    ],
)
def test_a_position_or_an_orientation_makes_a_plane(more, expected):
    assert has_plane(image(**more)) is expected
