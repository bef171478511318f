"""What a display shows: by the standard's formulas, by pydicom, and of images loaded from files."""

import base64
import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.pixels.processing import apply_voi_lut
from pydicom.sequence import Sequence

from mdcli.dicom.voi_lut import voi_lut_table
from mdcli.errors import DataError
from mdcli.imaging.display import check_intent, display_chain, displayed, says_window
from mdcli.imaging.nifti import read_nifti
from mdcli.stages import load_volume
from mdcli.testing import run_stage
from tests.dicom.test_voi_lut import lut
from tests.made_series import instance, workspace, write_slice

SCHEMA = json.loads((Path(load_volume.__file__).parents[1] / "schemas" / "geometry.json").read_text())
PLAIN = {"inverted": False, "voi_lut": False, "palette": False}
NO_PLANE = dict.fromkeys(
    ("ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID", "PixelSpacing", "SliceThickness"), ...
)


def display(**more):
    return {**PLAIN, **more}


def windowed(centre, width, function=None, **more):
    return display(window_center=[centre], window_width=[width], voi_lut_function=function, **more)


@pytest.mark.parametrize(
    ("function", "centre", "width", "values", "wanted"),
    [
        # PS3.3 C.11.2.1.2.1, note: c=2048, w=4096 takes 0 to 4095 to the whole range.
        ("LINEAR", 2048, 4096, [-1, 0, 4095, 4096], [0, 0, 1, 1]),
        # c=2048, w=1: 0 below 2047.5, 1 above.
        ("LINEAR", 2048, 1, [2047, 2048], [0, 1]),
        # c=0, w=100: -50 is 0, 49 is 1; 0 is (0 + .5) / 99 + .5.
        (None, 0, 100, [-50, 0, 49], [0, 0.5 / 99 + 0.5, 1]),
        # Exact: -50 is 0, 50 is 1.
        ("LINEAR_EXACT", 0, 100, [-50, -25, 0, 50], [0, 0.25, 0.5, 1]),
        ("LINEAR_EXACT", 0.5, 0.5, [0.25, 0.5, 0.625], [0, 0.5, 0.75]),
        # 1 / (1 + exp(-4 (x - c) / w)): at c + w / 4 it is 1 / (1 + 1 / e).
        ("SIGMOID", 10, 4, [10, 11], [0.5, 1 / (1 + np.exp(-1))]),
    ],
)
def test_windows_follow_the_functions_of_the_standard(function, centre, width, values, wanted):
    found = displayed(np.array(values, np.float32), windowed(centre, width, function), "voi")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@given(
    arrays(np.int16, 40, elements=st.integers(-1000, 3000)),
    st.floats(-1000, 2000, width=32),
    st.floats(1, 3000, width=32),
    st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
)
def test_windows_are_those_of_pydicom(values, centre, width, function):
    ds = Dataset()
    ds.PhotometricInterpretation, ds.BitsStored, ds.PixelRepresentation = "MONOCHROME2", 12, 0
    ds.WindowCenter, ds.WindowWidth, ds.VOILUTFunction = centre, width, function
    ours = displayed(values, windowed(float(ds.WindowCenter), float(ds.WindowWidth), function), "voi")
    with np.errstate(all="ignore"):
        theirs = apply_voi_lut(values, ds) / 4095
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def tabled(ds):
    return display(voi_lut=True, voi_lut_table=voi_lut_table(instance(RescaleIntercept=...), ds))


def test_a_voi_lut_gives_its_entries_and_its_ends_beyond_them():
    values = np.array([-5, 100, 101, 102, 103, 5000], np.float32)
    found = displayed(values, tabled(lut()), "voi")
    np.testing.assert_allclose(found, np.array([0, 0, 10, 400, 1023, 1023]) / 1023, atol=1e-6)
    ds = lut()
    ds.PixelRepresentation = 0
    theirs = apply_voi_lut(values[1:].astype(np.uint16), ds) / 1023
    np.testing.assert_allclose(found[1:], theirs, atol=1e-6)


def test_a_voi_lut_goes_before_a_window_and_a_window_that_is_asked_for_before_both():
    said = {**tabled(lut()), "window_center": [50, 300], "window_width": [10, 100]}
    values = np.array([102], np.float32)
    np.testing.assert_allclose(displayed(values, said, "voi"), [400 / 1023], atol=1e-6)
    assert displayed(values, said, "voi", window=1).tolist() == [1]
    assert displayed(values, said, "voi", window=2).tolist() == [0]


def test_of_several_windows_the_first_is_taken_and_said():
    said = display(window_center=[50, 300], window_width=[10, 100])
    chain = display_chain(said, "voi")
    assert [code for code, _ in chain.findings] == ["several-windows"]
    assert chain(np.array([100])).tolist() == [1]
    assert display_chain(said, "voi", window=2).findings == ()
    with pytest.raises(DataError) as caught:
        display_chain(said, "voi", window=3)
    assert caught.value.code == "no-window"


def test_without_a_window_the_lowest_is_black_and_the_highest_white_and_that_is_said():
    values = np.array([-10, 0, 30], np.float32)
    assert not says_window(PLAIN)
    np.testing.assert_allclose(displayed(values, PLAIN, "voi"), [0, 0.25, 1])
    np.testing.assert_allclose(displayed(values, display(inverted=True), "presentation"), [1, 0.75, 0])
    assert [code for code, _ in display_chain(PLAIN, "voi", limits=(0, 1)).findings] == ["no-window"]
    assert displayed(np.full(3, 7.0), PLAIN, "voi").tolist() == [0, 0, 0]
    with pytest.raises(DataError) as caught:
        display_chain(PLAIN, "voi")
    assert caught.value.code == "no-window"


def test_modality_values_stay_what_they_are():
    values = np.array([-1024, 3071], np.int16)
    for said in (None, windowed(0, 1, inverted=True), display(palette=True)):
        assert displayed(values, said, "modality").tolist() == [-1024, 3071]


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (None, "no-display"),
        (display(palette=True), "no-display"),
        (windowed(0, 10, same_for_all=False), "displays-differ"),
        (windowed(0, 0.5), "bad-window"),
        (windowed(0, 0, "SIGMOID"), "bad-window"),
        (windowed(0, -5, "LINEAR_EXACT"), "bad-window"),
        (windowed(0, 10, "CUBIC"), "bad-window"),
        (windowed("wide", 10), "bad-window"),
        (windowed(float("nan"), 10), "bad-window"),
        (display(window_center=[0, 1], window_width=[10]), "bad-window"),
        (display(window_center=[0]), "bad-window"),
        (display(voi_lut=True), "bad-voi-lut"),
        (display(voi_lut=True, voi_lut_table={"first": 0, "bits": 8, "entries": "?"}), "bad-voi-lut"),
        (display(voi_lut=True, voi_lut_table={"first": 0, "bits": 8, "entries": ""}), "bad-voi-lut"),
        (
            display(voi_lut=True, voi_lut_table={"first": 0, "bits": 8, "entries": base64.b64encode(b"\0\1").decode()}),
            "bad-voi-lut",
        ),
    ],
)
def test_what_does_not_say_how_it_is_displayed_is_refused(said, code):
    with pytest.raises(DataError) as caught:
        display_chain(said, "presentation", limits=(0, 1))
    assert caught.value.code == code


def test_raw_detector_values_are_refused_unless_the_model_takes_them():
    check_intent(None)
    check_intent(display(presentation_intent_type="FOR PRESENTATION"))
    raw = display(presentation_intent_type="FOR PROCESSING")
    check_intent(raw, ("for processing",))
    with pytest.raises(DataError) as caught:
        check_intent(raw, ("FOR PRESENTATION",))
    assert caught.value.code == "for-processing"


def loaded(folder, plane, **facts):
    """Return the values and `geometry.json` of one radiograph, through load-volume."""
    folder.mkdir()
    facts = {"Modality": "DX", "RescaleIntercept": 0.0, "BitsStored": 12, **NO_PLANE, **facts}
    write_slice(folder / "1.dcm", plane, **facts)
    ws = workspace(folder.parent / f"{folder.name}-ws", folder)
    run_stage(load_volume.STAGE, ws)
    geometry = json.loads((ws / "geometry.json").read_text())
    jsonschema.validate(geometry, SCHEMA)
    return read_nifti(ws / "volume.nii").array, geometry["display"]


PIXELS = np.random.default_rng(3).integers(0, 4096, (9, 11)).astype("u2")


def both(tmp_path, one, other):
    """Return what is displayed of the image as MONOCHROME2, and of its negative as MONOCHROME1."""
    white = loaded(tmp_path / "white", PIXELS, PhotometricInterpretation="MONOCHROME2", **one)
    black = loaded(tmp_path / "black", 4095 - PIXELS, PhotometricInterpretation="MONOCHROME1", **other)
    return displayed(*white, "presentation"), displayed(*black, "presentation"), white


@pytest.mark.parametrize(
    ("centre", "mirrored", "function"),
    [
        # 1 - LINEAR(x; c, w) = LINEAR(4095 - x; 4096 - c, w), by the half value in its formula.
        (1500.0, 4096 - 1500.0, "LINEAR"),
        (1500.0, 4095 - 1500.0, "LINEAR_EXACT"),
        (1500.0, 4095 - 1500.0, "SIGMOID"),
    ],
)
def test_the_same_image_is_displayed_alike_whichever_way_it_is_stored(tmp_path, centre, mirrored, function):
    facts = {"WindowWidth": 1100.0, "VOILUTFunction": function}
    one, other, white = both(
        tmp_path,
        {**facts, "WindowCenter": centre},
        {**facts, "WindowCenter": mirrored, "PresentationLUTShape": "INVERSE"},
    )
    np.testing.assert_allclose(one, other, atol=1e-6)
    assert 0.2 < one.mean() < 0.8
    np.testing.assert_array_equal(one, displayed(*white, "voi"))


def test_the_same_image_without_a_window_is_displayed_alike(tmp_path):
    one, other, _ = both(tmp_path, {}, {})
    np.testing.assert_allclose(one, other, atol=1e-6)


def table_of(entries, first=0):
    item = Dataset()
    item.LUTDescriptor = MultiValue(int, [len(entries) % 65536, first, 12])
    item["LUTDescriptor"].VR = "US"
    item.LUTData = np.asarray(entries, "<u2").tobytes()
    item["LUTData"].VR = "OW"
    return Sequence([item])


def test_the_same_image_with_a_table_is_displayed_alike(tmp_path):
    curve = (4095 * (np.arange(4096) / 4095) ** 2).astype("u2")
    # What the negative wants before its polarity is turned: 4095 - curve of the positive.
    one, other, _ = both(
        tmp_path, {"VOILUTSequence": table_of(curve)}, {"VOILUTSequence": table_of((4095 - curve)[::-1])}
    )
    np.testing.assert_allclose(one, other, atol=1e-6)
    np.testing.assert_allclose(one[0], curve[PIXELS] / 4095, atol=1e-6)


def test_slices_with_windows_of_their_own_are_not_displayed_together(tmp_path):
    folder = tmp_path / "series"
    folder.mkdir()
    for k in range(3):
        write_slice(
            folder / f"{k}.dcm",
            PIXELS,
            InstanceNumber=k + 1,
            SOPInstanceUID=f"1.2.3.{k}",
            ImagePositionPatient=[0.0, 0.0, 3.0 * k],
            WindowCenter=40.0 + k,
            WindowWidth=400.0,
        )
    ws = workspace(tmp_path / "ws", folder)
    run_stage(load_volume.STAGE, ws)
    said = json.loads((ws / "geometry.json").read_text())["display"]
    assert said["same_for_all"] is False
    with pytest.raises(DataError):
        display_chain(said, "voi")


def test_a_real_radiograph_is_displayed_as_pydicom_displays_it(tmp_path, shared_data):
    root = shared_data / "24_dx_2d_mono1" / "dicom"
    ws = workspace(tmp_path / "ws", root)
    run_stage(load_volume.STAGE, ws)
    said = json.loads((ws / "geometry.json").read_text())["display"]
    found = displayed(read_nifti(ws / "volume.nii").array, said, "presentation")[0]
    ds = dcmread(root / "dx_image.dcm")
    assert (ds.PhotometricInterpretation, ds.BitsStored) == ("MONOCHROME1", 8)
    theirs = 1 - apply_voi_lut(ds.pixel_array, ds) / 255
    np.testing.assert_allclose(found, theirs, atol=1e-6)
    # The air around is black.
    assert found[:5, :5].mean() < 0.2 < found.mean()
