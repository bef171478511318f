"""An RTSTRUCT is read in any encoding, put on the slices it was drawn on, and refused where it is not what it says."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian

from mdcli.dicom import rtstruct
from mdcli.dicom.rtstruct import (
    Grid,
    StructureSet,
    check_frame,
    check_reach,
    choose,
    findings_of,
    grid_of,
    place,
    read_bytes,
    read_structure_set,
)
from mdcli.errors import DataError, MissingError
from mdcli.imaging.contours import rasterise
from tests.made_rtstruct import FRAME, Drawn, data_set, save, square, write_rtstruct
from tests.made_series import ROOT, UNCOMPRESSED

IMAGES = [f"{ROOT}1.{k + 1}" for k in range(5)]


def grid(affine=None, count=5, shape=(20, 24)):
    """Return five axial slices, 1.5 x 2 x 3 mm, the first voxel at (-10, 20, 100)."""
    if affine is None:
        affine = np.diag([1.5, 2.0, 3.0, 1.0])
        affine[:3, 3] = (-10, 20, 100)
    positions = affine[:3, 3] + np.arange(count)[:, None] * affine[:3, 2]
    images = {uid: frozenset([k]) for k, uid in enumerate(IMAGES[:count])}
    return Grid((count, *shape), affine, positions, images, FRAME, f"{ROOT}3")


def read(ds, tmp_path, syntax=None):
    path = save(tmp_path / "rs.dcm", ds, syntax) if syntax else save(tmp_path / "rs.dcm", ds)
    return read_structure_set(read_bytes(path), "rs.dcm")


def code_of(call):
    with pytest.raises((DataError, MissingError)) as caught:
        call()
    return caught.value.code


def one(tmp_path, *contours, **more):
    """Return the only ROI of an RTSTRUCT with these contours."""
    return read(data_set([Drawn("A", contours, **more)]), tmp_path).rois[0]


# Reading


@pytest.mark.parametrize("syntax", UNCOMPRESSED.values(), ids=UNCOMPRESSED)
def test_every_encoding_gives_the_same(tmp_path, syntax):
    points = np.array([[-1.25, 22.5, 100], [3.0625, 22.5, 100], [3, 31.123456, 100]])
    drawn = [
        Drawn("Lung_L", [points, square(0, 22, 6, 30)], images=IMAGES[:2], colour=(1, 2, 255), interpreted="AVOIDANCE"),
        Drawn("Point", [points[:1]], kinds=["POINT"], algorithm="", colour=None, interpreted="", number=77),
    ]
    found = read(data_set(drawn), tmp_path, syntax)
    lung, point = found.rois
    assert (lung.number, lung.name, lung.algorithm, lung.colour) == (1, "Lung_L", "MANUAL", (1, 2, 255))
    assert (lung.interpreted_type, lung.frame_of_reference_uid, lung.code) == ("AVOIDANCE", FRAME, None)
    np.testing.assert_array_equal(lung.contours[0].points, points)
    assert [c.images for c in lung.contours] == [(IMAGES[0],), (IMAGES[1],)]
    assert (point.number, point.algorithm, point.colour, point.interpreted_type) == (77, None, None, None)
    assert point.contours[0].kind == "POINT"
    assert (found.sop_instance_uid, found.study_instance_uid) == (f"{ROOT}9", f"{ROOT}2")
    assert found.series_instance_uids == (f"{ROOT}3",) and found.findings == ()


def test_sequences_and_items_of_undefined_length_give_the_same(tmp_path):
    ds = data_set([Drawn("A", [square(0, 22, 6, 30), square(0, 22, 6, 30, 103)], images=IMAGES[:2])])
    plain = read(ds, tmp_path).rois[0].contours
    for drawn in ds.ROIContourSequence:
        for contour in drawn.ContourSequence:
            contour.is_undefined_length_sequence_item = True
            contour["ContourImageSequence"].is_undefined_length = True
        drawn["ContourSequence"].is_undefined_length = True
    ds["ROIContourSequence"].is_undefined_length = True
    for syntax in UNCOMPRESSED.values():
        found = read(ds, tmp_path, syntax).rois[0].contours
        assert [(c.kind, c.images, c.points.tolist()) for c in found] == [
            (c.kind, c.images, c.points.tolist()) for c in plain
        ]


def test_contour_data_of_over_64_kilobytes_is_read_in_explicit_vr_too(tmp_path):
    angles = np.linspace(0, 2 * np.pi, 4000, endpoint=False)
    points = np.column_stack([np.cos(angles), np.sin(angles), 0 * angles]).round(6) * 50
    for syntax in UNCOMPRESSED.values():
        found = read(data_set([Drawn("A", [points])]), tmp_path, syntax)
        np.testing.assert_allclose(found.rois[0].contours[0].points, points, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(-1e5, 1e5), min_size=3, max_size=30), style=st.sampled_from(["{:.6f}", "{:e}", "{:.3g}"])
)
def test_coordinates_are_read_as_python_reads_them(tmp_path_factory, values, style):
    texts = [f" {style.format(v)} " for v in values[: len(values) // 3 * 3]]
    found = read(data_set([Drawn("A", [texts])]), tmp_path_factory.mktemp("rs"))
    assert found.rois[0].contours[0].points.ravel().tolist() == [float(text) for text in texts]


@pytest.mark.parametrize("bad", ["NaN", "inf", "1e999", "1_0", "0x10", "1 2", "", "--1", "abc", "2e6"])
def test_a_coordinate_that_is_no_plausible_number_is_refused(tmp_path, bad):
    corners = square(0, 22, 6, 30)
    corners[1, 0] = 123456
    data = save(tmp_path / "rs.dcm", data_set([Drawn("A", [corners])])).read_bytes()
    assert data.count(b"123456") == 1
    spoilt = data.replace(b"123456", bad.encode().ljust(6))
    assert code_of(lambda: read_structure_set(spoilt, "rs.dcm")) == "bad-contour"


@settings(max_examples=300, deadline=None)
@given(text=st.text("0123456789.+-eE\\\\ ", min_size=1, max_size=14))
def test_only_decimal_strings_are_taken_for_coordinates(text):
    raw = text.encode()
    numbers = [part.strip(" ") for part in text.strip(" ").split("\\")]
    decimal = all(re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", number) for number in numbers)
    if decimal and max(abs(float(number)) for number in numbers) <= 1e6:
        assert rtstruct._coordinates(raw, "x").tolist() == [float(number) for number in numbers]
    elif text.strip(" "):
        assert code_of(lambda: rtstruct._coordinates(raw, "x")) == "bad-contour"


@pytest.mark.parametrize(
    "more, code",
    [
        ({"NumberOfContourPoints": 5}, "bad-contour"),
        ({"ContourGeometricType": "CLOSED"}, "bad-contour"),
        ({"ContourGeometricType": None}, "bad-contour"),
        ({"ContourData": ["1", "2", "3", "4"]}, "bad-contour"),
    ],
)
def test_a_contour_that_contradicts_itself_is_refused(tmp_path, more, code):
    assert code_of(lambda: one(tmp_path, square(0, 22, 6, 30), more=more)) == code


def test_two_rois_of_one_number_and_two_sets_of_contours_are_refused(tmp_path):
    ds = data_set([Drawn("A", number=1), Drawn("B", number=1)])
    assert code_of(lambda: read(ds, tmp_path)) == "rtstruct-broken"
    ds = data_set([Drawn("A"), Drawn("B")])
    ds.ROIContourSequence[1].ReferencedROINumber = 1
    assert code_of(lambda: read(ds, tmp_path)) == "rtstruct-broken"


def test_contours_of_a_number_that_nothing_describes_are_left_out_with_a_warning(tmp_path):
    ds = data_set([Drawn("A", [square(0, 22, 6, 30)])])
    ds.ROIContourSequence[0].ReferencedROINumber = 9
    found = read(ds, tmp_path)
    assert [f.code for f in found.findings] == ["undescribed-roi"] and found.rois[0].contours == ()


def test_what_is_no_rtstruct_is_refused(tmp_path):
    ds = data_set([Drawn("A")], SOPClassUID="1.2.840.10008.5.1.4.1.1.481.2")
    assert code_of(lambda: read(ds, tmp_path)) == "not-rtstruct"
    assert code_of(lambda: read_structure_set(b"hello world, this is no DICOM" * 20, "x")) == "not-rtstruct"
    assert code_of(lambda: read_bytes(tmp_path / "none.dcm")) == "no-source"
    (tmp_path / "empty.dcm").touch()
    assert code_of(lambda: read_bytes(tmp_path / "empty.dcm")) == "not-rtstruct"


def test_a_file_cut_anywhere_is_refused_or_lacks_whole_parts_and_never_crashes(tmp_path):
    data = write_rtstruct(tmp_path / "rs.dcm", [Drawn("A", [square(0, 22, 6, 30)], images=IMAGES[:1])]).read_bytes()
    whole = read_structure_set(data, "x").rois[0].contours[0].points
    for end in range(len(data)):
        try:
            rois = read_structure_set(data[:end], "x").rois
        except DataError as error:
            assert error.code in ("not-rtstruct", "rtstruct-broken", "damaged-header", "bad-contour"), error
        else:
            for roi in rois:
                assert all((c.points == whole).all() for c in roi.contours)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_file_with_spoilt_bytes_never_crashes(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("rs") / "rs.dcm"
    raw = bytearray(write_rtstruct(path, [Drawn("A", [square(0, 22, 6, 30)], images=IMAGES[:1])]).read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(132, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        for roi in read_structure_set(bytes(raw), "x").rois:
            place(roi, grid())
    except DataError:
        pass


def test_a_deflated_file_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("mdcli.dicom.rtstruct.MAX_FILE", 1 << 16)
    ds = data_set([Drawn("A")], StructureSetDescription="x" * 200_000)
    assert code_of(lambda: read(ds, tmp_path, DeflatedExplicitVRLittleEndian)) == "rtstruct-broken"


def test_names_are_decoded_by_the_files_character_set(tmp_path):
    ds = data_set([Drawn("Größe"), Drawn("肝臓")], SpecificCharacterSet="ISO_IR 192")
    found = read(ds, tmp_path, ExplicitVRBigEndian)
    assert [roi.name for roi in found.rois] == ["Größe", "肝臓"] and found.findings == ()


@pytest.mark.parametrize(
    "charset, code",
    [(b"ISO_IR 6  ", "undeclared-characters"), (b"          ", "undeclared-characters"), (b"GB18030   ", None)],
)
def test_a_name_in_a_character_set_that_is_not_named_is_warned_of(tmp_path, charset, code):
    ds = data_set([Drawn("Größe")], SpecificCharacterSet="ISO_IR 192")
    data = save(tmp_path / "x.dcm", ds).read_bytes().replace(b"ISO_IR 192", charset)
    assert [f.code for f in read_structure_set(data, "x").findings] == ([code] if code else [])


def test_control_characters_in_a_name_are_escaped(tmp_path):
    data = save(tmp_path / "x.dcm", data_set([Drawn("PTV12345")])).read_bytes().replace(b"PTV12345", b"PTV\x1b[2J\x07")
    assert read_structure_set(data, "x").rois[0].name == "PTV\\x1b[2J\\x07"


def test_a_roi_without_a_name_gets_its_number(tmp_path):
    found = read(data_set([Drawn("", number=4)]), tmp_path)
    assert (found.rois[0].name, [f.code for f in found.findings]) == ("ROI 4", ["no-roi-name"])


def test_a_code_is_kept_and_one_with_anothers_meaning_is_left_out_with_a_warning(tmp_path):
    found = read(
        data_set(
            [Drawn("Liver", code=("10200004", "SCT", "Liver")), Drawn("Spleen", code=("10200004", "SCT", "Spleen"))]
        ),
        tmp_path,
    )
    assert found.rois[0].code == {"value": "10200004", "scheme": "SCT", "meaning": "Liver"}
    assert found.rois[1].code is None and [f.code for f in found.findings] == ["code-left-out"]


# Choosing


def test_rois_are_chosen_by_exact_names_in_the_files_order(tmp_path):
    rois = read(data_set([Drawn("A"), Drawn("B"), Drawn("b"), Drawn("C")]), tmp_path).rois
    assert [roi.name for roi in choose(rois, ["C", "b"])] == ["b", "C"]
    assert choose(rois, []) == list(rois)
    assert code_of(lambda: choose(rois, ["c"])) == "no-such-roi"
    assert code_of(lambda: choose([], [])) == "no-roi"


def test_another_frame_of_reference_is_refused_unless_assumed(tmp_path):
    roi = one(tmp_path, square(0, 22, 6, 30), frame=f"{ROOT}66")
    assert code_of(lambda: check_frame([roi], grid(), assume_registered=False)) == "frames-of-reference-differ"
    assert [f.code for f in check_frame([roi], grid(), assume_registered=True)] == ["assumed-registered"]
    same = one(tmp_path, square(0, 22, 6, 30))
    assert check_frame([same], grid(), assume_registered=True) == []


def test_no_frame_of_reference_is_enough_where_every_contour_names_an_image_of_the_volume(tmp_path):
    def lost(*images):
        ds = data_set([Drawn("A", [square(0, 22, 6, 30)] * len(images), images=images, frame=None)])
        del ds.ReferencedFrameOfReferenceSequence
        return read(ds, tmp_path).rois

    assert check_frame(lost(IMAGES[0], IMAGES[1]), grid(), assume_registered=False) == []
    for images in ((IMAGES[0], None), (IMAGES[0], f"{ROOT}5.5")):
        rois = lost(*images)
        assert code_of(lambda r=rois: check_frame(r, grid(), assume_registered=False)) == "frames-of-reference-differ"


# Placing


def voxels(placed, on):
    whole = np.zeros(on.shape, np.uint8)
    block = rasterise(placed.contours, placed.planes, on.shape)
    if block is not None:
        whole[block.slices] = block.mask
    return whole


def test_contours_fill_the_voxels_of_their_slices(tmp_path):
    # Centres lie at x = -10 + 1.5 i and y = 20 + 2 j: 0 to 6 holds i 7 to 10, 22 to 30 holds j 1 to 4.
    placed = place(one(tmp_path, square(0, 22, 6, 30), square(0, 22, 6, 30, 106)), grid())
    expected = np.zeros((5, 20, 24), np.uint8)
    expected[0, 1:5, 7:11] = expected[2, 1:5, 7:11] = 1
    np.testing.assert_array_equal(voxels(placed, grid()), expected)
    assert placed.without == (1,) and placed.holes == 0


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), sheared=st.booleans(), turned=st.booleans())
def test_any_orientation_and_shear_gives_the_voxels_drawn_on_the_slices_own_planes(seed, sheared, turned):
    from mdcli.dicom.rtstruct import Contour, Roi

    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3] = axes * rng.uniform(0.5, 4, 3)
    affine[:3, 2] += affine[:3, :2] @ rng.uniform(-0.7, 0.7, 2) if sheared else 0
    affine[:3, 2] *= -1 if turned else 1
    affine[:3, 3] = rng.uniform(-300, 300, 3)
    on = grid(affine)
    drawn, contours = {}, []
    for k in rng.permutation(5)[:3].tolist():
        drawn[k] = rng.uniform(-2, 22, (6, 2)).round(3)
        points = np.column_stack([drawn[k], np.full(6, k), np.ones(6)]) @ affine.T
        contours.append(Contour(len(contours) + 1, "CLOSED_PLANAR", points[:, :3]))
    placed = place(Roi(1, "A", contours=tuple(contours)), on)
    direct = np.zeros(on.shape, np.uint8)
    block = rasterise(list(drawn.values()), list(drawn), on.shape)
    if block is not None:
        direct[block.slices] = block.mask
    np.testing.assert_array_equal(voxels(placed, on), direct)


@pytest.mark.parametrize("off, allowed", [(0.309, True), (-0.309, True), (0.312, False), (1.5, False), (-1.5, False)])
def test_a_contour_may_lie_10_um_and_a_tenth_of_the_spacing_off_its_slice(tmp_path, off, allowed):
    # 0.01 + 0.1 x 3 = 0.31 mm.
    roi = one(tmp_path, square(0, 22, 6, 30, 106 + off))
    if allowed:
        assert place(roi, grid()).planes == (2,)
    else:
        assert code_of(lambda: place(roi, grid())) == "contour-off-plane"


def test_a_slice_that_lies_off_the_uniform_grid_has_its_own_plane(tmp_path):
    positions = grid().positions.copy()
    positions[2, 2] += 0.2
    on = Grid(grid().shape, grid().affine, positions, {}, FRAME, None)
    assert place(one(tmp_path, square(0, 22, 6, 30, 106.5)), on).planes == (2,)
    assert code_of(lambda: place(one(tmp_path, square(0, 22, 6, 30, 105.8)), on)) == "contour-off-plane"


def test_contours_beyond_the_volume_are_counted_and_left_out_where_they_lie_on_its_grid(tmp_path):
    placed = place(one(tmp_path, *(square(0, 22, 6, 30, z) for z in (94, 97, 100, 115))), grid())
    assert (placed.planes, placed.outside) == ((0,), 3)
    assert code_of(lambda: place(one(tmp_path, square(0, 22, 6, 30, 98.5)), grid())) == "contour-off-plane"


def test_contours_beside_the_volume_are_outside_and_those_across_its_edge_are_cut(tmp_path):
    placed = place(one(tmp_path, square(-40, 22, -20, 30), square(-40, 22, -2, 30, 103)), grid())
    assert (placed.planes, placed.outside, placed.cut) == ((1,), 1, 1)


@pytest.mark.parametrize(
    "corners, words",
    [
        ([[0, 22, 100], [0, 30, 100], [0, 30, 112], [0, 22, 112]], "a sagittal plane"),
        ([[0, 22, 100], [9, 22, 100], [9, 22, 112], [0, 22, 112]], "a coronal plane"),
        ([[0, 22, 100], [9, 22, 109], [9, 30, 109], [0, 30, 100]], "an oblique plane"),
    ],
)
def test_contours_across_the_slices_are_refused_by_name(tmp_path, corners, words):
    roi = one(tmp_path, np.array(corners, float))
    with pytest.raises(DataError) as caught:
        place(roi, grid())
    assert caught.value.code == "contour-across-slices" and words in caught.value.message


def test_a_contour_that_is_not_planar_is_refused(tmp_path):
    bent = square(0, 22, 6, 30)
    bent[2, 2] += 1.5
    assert code_of(lambda: place(one(tmp_path, bent), grid())) == "contour-not-planar"


NEST = [square(-4, 22, 20, 50), square(0, 26, 14, 44), square(3, 30, 9, 40)]


def test_closed_planar_contours_in_others_are_holes_and_islands_or_with_union_nothing_new(tmp_path):
    roi = one(tmp_path, *NEST)
    outer, hole, island = (voxels(place(one(tmp_path, c), grid()), grid()) for c in NEST)
    placed = place(roi, grid())
    np.testing.assert_array_equal(voxels(placed, grid()), outer - hole + island)
    assert placed.holes == 2
    union = place(roi, grid(), union=True)
    np.testing.assert_array_equal(voxels(union, grid()), outer)
    assert union.holes == 2


def test_xor_contours_may_overlap_and_closed_planar_ones_may_not(tmp_path):
    two = square(0, 22, 6, 30), square(3, 26, 12, 40)
    one_, other = (voxels(place(one(tmp_path, c), grid()), grid()) for c in two)
    placed = place(one(tmp_path, *two, kinds=["CLOSEDPLANAR_XOR"]), grid())
    np.testing.assert_array_equal(voxels(placed, grid()), one_ ^ other)
    assert code_of(lambda: place(one(tmp_path, *two), grid())) == "contours-overlap"
    assert code_of(lambda: place(one(tmp_path, two[0], two[0]), grid())) == "duplicate-contours"
    # On two slices the same contour is no duplicate.
    assert place(one(tmp_path, two[0], two[0] + [0, 0, 3]), grid()).planes == (0, 1)
    mixed = one(tmp_path, *two, kinds=["CLOSEDPLANAR_XOR", "CLOSED_PLANAR"])
    assert code_of(lambda: place(mixed, grid())) == "mixed-contour-types"


def codes(placed, on=None, series=(f"{ROOT}3",), **more):
    found = findings_of([placed], StructureSet(None, None, series, (placed.roi,)), on or grid(), **more)
    return [(f.code, f.warning) for f in found]


def test_what_encloses_nothing_is_left_out_with_a_warning(tmp_path):
    good = square(0, 22, 6, 30)
    kinds = ["CLOSED_PLANAR", "POINT", "OPEN_PLANAR", "OPEN_NONPLANAR", "CLOSED_PLANAR", "CLOSED_PLANAR"]
    same = np.repeat(good[:1], 4, axis=0)
    placed = place(
        one(tmp_path, good, good[:1], good[:2], good + np.array([0, 0, 1]), good[:2], same, kinds=kinds), grid()
    )
    assert placed.left_out == {"POINT": 1, "OPEN_PLANAR": 1, "OPEN_NONPLANAR": 1, "flat": 2}
    assert codes(placed) == [("open-contours", True), ("flat-contours", True)]
    assert voxels(placed, grid()).sum() == 16


def test_a_contour_that_crosses_itself_is_settled_by_even_odd_with_a_warning(tmp_path):
    bow = square(-4, 22, 20, 50)[[0, 2, 1, 3]]
    placed = place(one(tmp_path, bow), grid())
    assert placed.crossing == 1 and codes(placed) == [("crossing-contours", True)]
    np.testing.assert_array_equal(
        voxels(placed, grid()), voxels(place(one(tmp_path, bow, kinds=["CLOSEDPLANAR_XOR"]), grid()), grid())
    )


def test_references_that_lead_nowhere_or_elsewhere_are_reported(tmp_path):
    contours = square(0, 22, 6, 30), square(0, 22, 6, 30, 103)
    assert codes(place(one(tmp_path, *contours, images=IMAGES[:2]), grid())) == []
    assert codes(place(one(tmp_path, *contours, images=IMAGES[1:3]), grid())) == [("reference-differs", True)]
    assert codes(place(one(tmp_path, *contours, images=[f"{ROOT}7.7"]), grid())) == [("dangling-references", True)]
    good = place(one(tmp_path, *contours), grid())
    assert codes(good, series=("1.2.3",)) == [("other-series", True)]


def test_holes_are_noted_and_gaps_cuts_and_empty_rois_are_warnings(tmp_path):
    assert codes(place(one(tmp_path, *NEST), grid())) == [("nested-contours", False)]
    assert codes(place(one(tmp_path, NEST[0], NEST[0] + [0, 0, 6]), grid())) == [("slices-without-contour", True)]
    assert codes(place(one(tmp_path), grid())) == [("empty-roi", True)]
    cut = place(one(tmp_path, square(-40, 22, -2, 30), square(0, 22, 6, 30, 97)), grid())
    assert codes(cut) == [("contours-outside", True), ("contours-cut", True)]


def test_contours_that_are_all_elsewhere_are_another_grids(tmp_path):
    away = place(one(tmp_path, square(0, 22, 6, 30, 130)), grid())
    assert code_of(lambda: check_reach([away], grid())) == "other-grid"
    check_reach([away, place(one(tmp_path, square(0, 22, 6, 30)), grid())], grid())
    check_reach([place(one(tmp_path), grid())], grid())


def test_the_grid_comes_from_the_slices_or_from_the_affine_where_there_are_none():
    affine = grid().affine.tolist()
    entries = [
        {"k": k, "sop_instance_uid": IMAGES[k], "position_mm": [-10, 20, 100.2 if k == 2 else 100 + 3 * k]}
        for k in range(5)
    ]
    geometry = {"shape": [5, 20, 24], "affine_lps": affine, "slices": entries, "frame_of_reference_uid": FRAME}
    found = grid_of(geometry)
    assert found.positions[2].tolist() == [-10, 20, 100.2] and found.images[IMAGES[3]] == {3}
    assert found.tolerance_mm == pytest.approx(0.31)
    for other in ({"slices": []}, {"resampled": {"isotropic": True}}):
        assert grid_of(geometry | other).positions[2].tolist() == [-10, 20, 106]
    assert grid_of(geometry | {"resampled": {}}).images[IMAGES[3]] == {3}
    assert grid_of(geometry | {"resampled": {"why": ["gap"]}}).images[IMAGES[3]] == set(range(5))
    # A 4-D volume names every slice once for each time.
    twice = [entry | {"t": t, "sop_instance_uid": f"{t}.{entry['k']}"} for t in (0, 1) for entry in entries]
    found = grid_of(geometry | {"slices": twice})
    assert found.positions[2].tolist() == [-10, 20, 100.2] and found.images["1.3"] == {3}
    assert code_of(lambda: grid_of(geometry | {"spacing_plane": "detector"})) == "no-position"
    for spoilt in (
        {"shape": [5, 20]},
        {"affine_lps": None},
        {"slices": [{"k": 9}]},
        {"affine_lps": np.zeros((4, 4)).tolist()},
    ):
        assert code_of(lambda s=spoilt: grid_of(geometry | s)) == "bad-artifact"
