"""A card's `accepts: where`: the selection grammar held against what is known of a volume."""

import pytest

from mdcli.dicom.rules import parse
from mdcli.inference.card import Where
from mdcli.inference.scope import check_scope, keyword_facts

GEOMETRY = {
    "shape": [40, 512, 512],
    "regularity": {"step_mm": 3.0},
    "coverage_mm": 120.0,
    "orientation": "axial",
    "obliquity_deg": 2.0,
    "unit": "HU",
}


def scope(where, *images, **geometry):
    rule = parse(where)
    facts = keyword_facts(rule, images, {**GEOMETRY, **geometry})
    violations, unknown = check_scope({"where": Where(rule)}, facts)
    return [str(v) for v in violations], unknown


CT = {"modality": "CT", "slice_thickness": 3.0, "image_type": ["ORIGINAL", "PRIMARY"], "echo_time": None}


@pytest.mark.parametrize(
    "where",
    [
        "Modality = CT and Spacing <= 3 and Orientation = axial and IsVolume",
        "SliceCount >= 40 and CoverageMM = 120 and Unit = HU and ObliquityDeg < 5",
        "ImageType contains PRIMARY and not ImageType contains SECONDARY",
        "Modality = CT or EchoTime > 3",
    ],
)
def test_what_fits_is_in_scope(where):
    assert scope(where, CT, CT) == ([], [])


@pytest.mark.parametrize("geometry", [{"spacing_plane": "detector"}, {"shape": [1, 512, 512]}])
def test_an_image_is_no_volume(geometry):
    violations, _ = scope("IsVolume", CT, **geometry)
    assert len(violations) == 1


@pytest.mark.parametrize("regular, fits", [(True, True), (False, False)])
def test_uneven_slices_are_not_regular(regular, fits):
    violations, unknown = scope("IsRegular", CT, regularity={"step_mm": 3.0, "regular": regular})
    assert (violations == [], unknown) == (fits, [])


def test_what_does_not_fit_is_said_with_value_and_bound():
    violations, unknown = scope("Modality = CT and SliceThickness <= 2", CT, {**CT, "slice_thickness": 1.0})
    assert violations == [
        "where is Modality CT, SliceThickness 3 in 1 of 2 images, the model takes Modality = CT and SliceThickness <= 2"
    ]
    assert unknown == []


def test_what_nobody_knows_is_unknown_and_no_violation():
    assert scope("EchoTime > 3", CT) == ([], ["EchoTime"])
    assert scope("MeanHU > 3", CT) == ([], ["MeanHU"])
    assert scope("Modality = CT and EchoTime > 3", CT, CT) == ([], ["EchoTime"])
    assert scope("Modality = CT") == ([], ["Modality"])


def test_what_is_known_decides_beside_what_is_not():
    violations, unknown = scope("Modality = MR and EchoTime > 3", CT)
    assert violations == ["where is Modality CT, EchoTime unknown, the model takes Modality = MR and EchoTime > 3"]
    assert unknown == []
