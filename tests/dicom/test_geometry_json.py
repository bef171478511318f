"""What geometry.json and its report say of a volume."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from mdcli.dicom import loading
from mdcli.dicom.geometry import TOLERANCES
from mdcli.dicom.geometry_json import geometry_document, report_text
from mdcli.dicom.loading import Reading, Wish, plan_series
from mdcli.dicom.opening import SourceFiles
from tests.made_series import scan, write_series

SCHEMA = json.loads((Path(loading.__file__).parents[1] / "schemas" / "geometry.json").read_text())


def document_of(folder, dropped=(), **wish):
    """Return `geometry.json` of the one volume in a folder, valid and as JSON has it."""
    with SourceFiles(folder) as files:
        planned = plan_series(files, scan(folder), Wish(**wish))
        (plan,) = planned.plans
        reading = Reading(files, plan, 1, lambda _done: None)
        reading.open()
        for _ in reading.slabs():
            pass
        reading.digests()
    found = json.loads(json.dumps(geometry_document(plan, reading, planned.completeness, dropped), allow_nan=False))
    jsonschema.validate(found, SCHEMA)
    return found


def lines_of(document):
    """Return the report's lines by their first word."""
    return dict(line.split(maxsplit=1) for line in report_text(document).splitlines())


def stored(count=4):
    return np.arange(count * 5 * 7, dtype="u2").reshape(count, 5, 7)


def test_a_plain_volume_says_where_every_slice_comes_from(tmp_path):
    found = document_of(write_series(tmp_path / "d", stored()))
    assert found["shape"] == [4, 5, 7]
    assert found["affine_lps"] == [[1.5, 0, 0, -10], [0, 2, 0, 20], [0, 0, 3, 100], [0, 0, 0, 1]]
    assert (found["unit"], found["spacing_plane"], found["spacing_mm"]) == ("HU", "patient", [1.5, 2, 3])
    assert [s["instance_number"] for s in found["slices"]] == [1, 2, 3, 4]
    assert [s["position_mm"] for s in found["slices"]] == [[-10, 20, 100 + 3 * k] for k in range(4)]
    assert {s["frame"] for s in found["slices"]} == {None}
    assert (found["dimension"], found["resampled"], found["colour"], found["lossy"]) == (None, None, None, None)
    assert found["tolerances"] == TOLERANCES


def test_the_report_says_what_a_person_wants_to_know(tmp_path):
    lines = lines_of(document_of(write_series(tmp_path / "d", stored())))
    assert lines["volume"] == "7 columns x 5 rows x 4 slices"
    assert lines["spacing"] == "1.5 x 2 x 3 mm (i, j, k)"
    assert lines["orientation"].startswith("axial, normal 0.00 degrees")
    assert lines["coverage"] == "12 mm along the normal"
    assert lines["regularity"].startswith("regular")
    assert lines["tilt"].endswith(": none")
    assert "unknown" in lines["completeness"]
    for name, value in TOLERANCES.items():
        assert f"{name} {value:g}" in lines["tolerances"]


def test_the_report_tells_tilt_made_slices_and_what_was_left_out(tmp_path):
    where = [[-10.0, 20.0 + k, 100.0 + 3 * k] for k in (0, 1, 2, 4)]
    dropped = [{"path": "x.dcm", "frame": None, "sop_instance_uid": "1.2", "reason": "localizer"}]
    folder = write_series(tmp_path / "d", stored(), ImagePositionPatient=where, GantryDetectorTilt=18.0)
    text = report_text(document_of(folder, dropped, on_gap="resample"))
    # atan(1 / 3), and 1 mm a step over four steps.
    assert "18.43 degrees (GantryDetectorTilt 18), shifted by 4 mm over the stack: sheared" in text
    assert "because of gap, linear; slices made: 3" in text
    assert "uneven: steps of 3 to 6 mm" in text
    assert "1 x localizer" in text


def test_a_fourth_axis_is_told_with_its_values(tmp_path):
    where = [[-10.0, 20.0, 100.0 + 3 * (k % 2)] for k in range(4)]
    folder = write_series(
        tmp_path / "d", stored(), ImagePositionPatient=where, DiffusionBValue=[0.0, 0.0, 800.0, 800.0]
    )
    found = document_of(folder, on_many="4d")
    assert found["dimension"] == {"name": "b", "keywords": ["DiffusionBValue"], "unit": "s/mm2", "values": [0, 800]}
    assert [(s["t"], s["k"]) for s in found["slices"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert "800" in report_text(found)


@pytest.mark.parametrize(
    "facts, inverted",
    [
        ({}, False),
        ({"PhotometricInterpretation": "MONOCHROME1"}, True),
        ({"PresentationLUTShape": "INVERSE"}, True),
        # PS3.3 C.8.11.3.1.2: MONOCHROME1 has the shape INVERSE; the polarity is inverted once.
        ({"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"}, True),
        ({"PresentationLUTShape": "IDENTITY"}, False),
    ],
)
def test_what_a_display_would_still_apply_is_told_and_the_values_are_kept(tmp_path, facts, inverted):
    folder = write_series(tmp_path / "d", stored(), WindowCenter=40.0, WindowWidth=400.0, **facts)
    display = document_of(folder)["display"]
    assert (display["inverted"], display["window_center"], display["window_width"]) == (inverted, [40], [400])


def test_a_radiograph_without_calibration_has_no_millimetres(tmp_path):
    gone = dict.fromkeys(
        (
            "ImagePositionPatient",
            "ImageOrientationPatient",
            "FrameOfReferenceUID",
            "PixelSpacing",
            "RescaleSlope",
            "RescaleIntercept",
        ),
        ...,
    )
    folder = write_series(tmp_path / "d", stored(1), Modality="DX", **gone)
    found = document_of(folder)
    assert (found["spacing_plane"], found["spacing_mm"], found["slices"][0]["position_mm"]) == ("unknown", None, None)
    assert lines_of(found)["spacing"] == "unknown (unknown): no millimetres"
