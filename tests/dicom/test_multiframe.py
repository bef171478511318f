"""Frames of multi-frame objects: what each has from the functional groups, and what is refused."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.datadict import dictionary_VM, dictionary_VR, keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from mdcli.dicom import multiframe
from mdcli.dicom.headers import KEYWORDS, read_instance
from mdcli.dicom.instance import Instance
from mdcli.dicom.multiframe import FRAME_KEYWORDS, frames_of
from mdcli.dicom.opening import SourceFiles
from mdcli.errors import DataError, MissingError
from tests.made_series import AXIAL, CORONAL, ROOT, UNCOMPRESSED, instance, write_series
from tests.multiframe_series import SHARED, dataset, enhanced, group, header, planes, read, save, undefined

PATIENT = ("Canary", "CANARY-ID")


def frames(ds: Dataset, folder: Path, syntax: str = UNCOMPRESSED["explicit"]) -> list[Instance]:
    return read(save(ds, folder / "one.dcm", syntax))


def refused(*paths: Path) -> DataError:
    with pytest.raises(DataError) as error:
        read(*paths)
    assert not any(word in error.value.message for word in PATIENT)
    return error.value


def inside(item: Dataset, *path: str) -> Any:
    """Return what pydicom reads at a path of functional groups, or None."""
    for keyword in path[:-1]:
        if keyword not in item or not item[keyword].value:
            return None
        item = item[keyword].value[0]
    return item.get(path[-1])


# Real objects, each frame's place and scale against pydicom's own walk of the groups.


@pytest.mark.parametrize(
    "path, count",
    [
        ("05_tiny_ct_seg_bitpacking/dicom/24x38x3/multiframe/mf.dcm", 3),
        ("05_tiny_ct_seg_bitpacking/dicom/23x38x3/multiframe/mf.dcm", 3),
        ("15_mr_enhanced_philips/dicom/anatomical/IM-0001-0170-0001.dcm", 8),
        ("15_mr_enhanced_philips/dicom/dti/IM-0001-3835-0001.dcm", 32),
        ("15_mr_enhanced_philips/dicom/fmri/IM-0001-9600-0001.dcm", 32),
        ("16_mr_enhanced_siemens/dicom/IM-0001-0001-0001.dcm", 8),
        ("29_enhanced_ct/dicom/eCT_Supplemental.dcm", 2),
    ],
)
def test_real_frames_have_what_their_functional_groups_say(shared_data, path, count):
    found = read(shared_data / path)
    ds = dcmread(shared_data / path, stop_before_pixels=True)
    shared = ds.SharedFunctionalGroupsSequence[0] if ds.get("SharedFunctionalGroupsSequence") else Dataset()
    assert [frame.frame for frame in found] == list(range(count))
    for frame, own in zip(found, ds.PerFrameFunctionalGroupsSequence, strict=True):
        for keyword, macro in (
            ("ImagePositionPatient", "PlanePositionSequence"),
            ("ImageOrientationPatient", "PlaneOrientationSequence"),
            ("PixelSpacing", "PixelMeasuresSequence"),
            ("SliceThickness", "PixelMeasuresSequence"),
            ("RescaleSlope", "PixelValueTransformationSequence"),
            ("RescaleIntercept", "PixelValueTransformationSequence"),
            ("StackID", "FrameContentSequence"),
            ("InStackPositionNumber", "FrameContentSequence"),
            ("TemporalPositionIndex", "FrameContentSequence"),
            ("DimensionIndexValues", "FrameContentSequence"),
            ("DiffusionBValue", "MRDiffusionSequence"),
            ("RepetitionTime", "MRTimingAndRelatedParametersSequence"),
        ):
            said = inside(own, macro, keyword)
            said = inside(shared, macro, keyword) if said is None else said
            assert frame.get(keyword) == (list(said) if hasattr(said, "__iter__") and keyword != "StackID" else said)
        echo = inside(own, "MREchoSequence", "EffectiveEchoTime")
        assert frame.get("EchoTime") == echo
        gradient = inside(
            own, "MRDiffusionSequence", "DiffusionGradientDirectionSequence", "DiffusionGradientOrientation"
        )
        assert frame.get("DiffusionGradientOrientation") == (None if gradient is None else list(gradient))


def test_an_object_without_groups_gives_frames_without_a_plane_in_every_encoding(shared_data):
    case = shared_data / "30_enhanced_mr_five_encodings" / "dicom"
    kinds = ["", "_big_endian", "_RLE", "_jpeg_ls_lossless", "_jpeg_2k_lossless"]
    for kind in kinds:
        found = read(case / f"emri_small{kind}" / f"emri_small{kind}.dcm")
        assert [frame.frame for frame in found] == list(range(10))
        assert {str(frame.get("ImagePositionPatient")) for frame in found} == {"None"}
        assert {frame.get("EchoTime") for frame in found} == {None}


def test_a_cine_has_its_times_and_no_plane(shared_data):
    found = read(shared_data / "25_us_multiframe_jpeg" / "dicom" / "examples_ybr_color.dcm")
    # FrameTime is 33.333 ms.
    assert [frame.get("FrameTimeMs") for frame in found] == pytest.approx([33.333 * n for n in range(30)])
    assert found[0].get("ImagePositionPatient") is None


# Objects that another maker writes.


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_frames_that_highdicom_converts_have_what_the_single_frames_had(tmp_path, modality):
    from highdicom.legacy import LegacyConvertedEnhancedCTImage, LegacyConvertedEnhancedMRImage

    kinds = {"CT": LegacyConvertedEnhancedCTImage, "MR": LegacyConvertedEnhancedMRImage}
    classes = {"CT": "1.2.840.10008.5.1.4.1.1.2", "MR": "1.2.840.10008.5.1.4.1.1.4"}
    needed = dict.fromkeys(
        ("StudyDate", "StudyTime", "AccessionNumber", "StudyID", "PatientBirthDate", "PatientSex"), ""
    )
    write_series(
        tmp_path / "single",
        np.arange(5 * 4 * 6, dtype=np.uint16).reshape(5, 4, 6),
        Modality=modality,
        SOPClassUID=classes[modality],
        RescaleIntercept=[-1000.0, -1001.0, -1002.0, -1003.0, -1004.0],
        AcquisitionNumber=[1, 1, 2, 2, 3],
        ImageType=["ORIGINAL", "PRIMARY", "AXIAL"],
        PatientPosition="HFS",
        SeriesNumber=1,
        Manufacturer="Maker",
        FrameOfReferenceUID=f"{ROOT}4",
        **needed,
    )
    sources = [dcmread(path) for path in sorted((tmp_path / "single").iterdir())]
    converted = kinds[modality](sources, f"{ROOT}9", 2, f"{ROOT}10", 1)
    converted.save_as(tmp_path / "converted.dcm")
    found = read(tmp_path / "converted.dcm")
    assert len(found) == 5
    single = {source.SOPInstanceUID: source for source in sources}
    for frame in found:
        source = single[frame.get("ConversionSourceUID")]
        assert frame.get("InstanceNumber") == source.InstanceNumber
        assert frame.get("AcquisitionNumber") == source.AcquisitionNumber
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            assert frame.get(keyword) == [float(v) for v in source[keyword].value]
        assert frame.get("RescaleSlope") == source.RescaleSlope
        assert frame.get("RescaleIntercept") == source.RescaleIntercept
        assert frame.get("SOPInstanceUID") == f"{ROOT}10"


# Made objects.


@settings(max_examples=60, deadline=None)
@given(
    syntax=st.sampled_from(sorted(UNCOMPRESSED.values())),
    lengths=st.booleans(),
    order=st.permutations(range(4)),
    at=st.lists(st.tuples(*[st.integers(-9999, 9999)] * 3), min_size=4, max_size=4),
    slopes=st.lists(st.integers(-500, 500), min_size=4, max_size=4),
)
def test_each_frame_has_its_own_plane_and_scale_in_any_encoding_and_order(
    tmp_path_factory, syntax, lengths, order, at, slopes
):
    folder = tmp_path_factory.mktemp("frames")
    own = [
        {
            "ImagePositionPatient": [v / 16 for v in at[n]],
            "ImageOrientationPatient": AXIAL if n % 2 else CORONAL,
            "RescaleSlope": slopes[n] / 8,
            "RescaleIntercept": -float(n),
            "InStackPositionNumber": n + 1,
            "EffectiveEchoTime": n / 3,
        }
        for n in order
    ]
    ds = enhanced(own, shared={"PixelSpacing": [2.0, 1.5]})
    found = frames(undefined(ds) if lengths else ds, folder, syntax)
    assert [frame.frame for frame in found] == [0, 1, 2, 3]
    for frame, expected in zip(found, own, strict=True):
        assert {keyword: frame.get(keyword) for keyword in expected} == expected
        assert frame.get("EchoTime") == expected["EffectiveEchoTime"]
        assert frame.get("PixelSpacing") == [2.0, 1.5]
        assert frame.get("Rows") == 4 and frame.get("InstanceNumber") == 7


def test_a_frame_calls_things_as_a_single_frame_image_does(tmp_path):
    direction = Sequence([dataset(DiffusionGradientOrientation=[0.0, 0.6, 0.8])])
    own = {
        "ImagePositionPatient": [1.0, 2.0, 3.0],
        "FrameType": ["ORIGINAL", "PRIMARY", "DIFFUSION", "NONE"],
        "ComplexImageComponent": "MAGNITUDE",
        "EffectiveEchoTime": 80.5,
        "InversionTimes": [150.0],
        "RepetitionTime": 4000.0,
        "FlipAngle": 90.0,
        "DiffusionBValue": 1000.0,
        "DiffusionDirectionality": "DIRECTIONAL",
        "DiffusionGradientDirectionSequence": direction,
        "NominalCardiacTriggerDelayTime": 120.0,
        "NominalPercentageOfCardiacPhase": 25.0,
        "FrameAcquisitionNumber": 3,
        "FrameAcquisitionDateTime": "20200102030405",
        "TemporalPositionIndex": 2,
        "WindowCenter": 40.0,
        "WindowWidth": 400.0,
    }
    (frame,) = frames(enhanced([own], shared=SHARED), tmp_path)
    assert {
        keyword: frame.get(keyword)
        for keyword in (
            "ImageType",
            "ComplexImageComponent",
            "EchoTime",
            "InversionTime",
            "RepetitionTime",
            "FlipAngle",
            "DiffusionBValue",
            "DiffusionGradientOrientation",
            "TriggerTime",
            "NominalPercentageOfCardiacPhase",
            "AcquisitionNumber",
            "AcquisitionDateTime",
            "TemporalPositionIndex",
            "WindowCenter",
            "WindowWidth",
        )
    } == {
        "ImageType": ["ORIGINAL", "PRIMARY", "DIFFUSION", "NONE"],
        "ComplexImageComponent": "MAGNITUDE",
        "EchoTime": 80.5,
        "InversionTime": 150.0,
        "RepetitionTime": 4000.0,
        "FlipAngle": 90.0,
        "DiffusionBValue": 1000.0,
        "DiffusionGradientOrientation": [0.0, 0.6, 0.8],
        "TriggerTime": 120.0,
        "NominalPercentageOfCardiacPhase": 25.0,
        "AcquisitionNumber": 3,
        "AcquisitionDateTime": "20200102030405",
        "TemporalPositionIndex": 2,
        "WindowCenter": 40.0,
        "WindowWidth": 400.0,
    }


def test_a_ct_frame_has_its_kernel_voltage_and_tilt(tmp_path):
    shared = {**SHARED, "ConvolutionKernel": "B30f", "KVP": 120.0, "GantryDetectorTilt": 5.0}
    (frame,) = frames(enhanced(planes(1), "CT", shared), tmp_path)
    assert [frame.get(k) for k in ("ConvolutionKernel", "KVP", "GantryDetectorTilt")] == ["B30f", 120.0, 5.0]


def test_dimension_indices_come_with_what_they_count(tmp_path):
    ds = enhanced([{**plane, "DimensionIndexValues": [1, n + 1]} for n, plane in enumerate(planes(3))], shared=SHARED)
    ds.DimensionIndexSequence = Sequence(
        [
            dataset(DimensionIndexPointer=0x00209056, FunctionalGroupPointer=0x00209111),
            dataset(DimensionIndexPointer=0x00281234, FunctionalGroupPointer=0x00209111),
        ]
    )
    found = frames(ds, tmp_path)
    assert [frame.get("DimensionIndexValues") for frame in found] == [[1, 1], [1, 2], [1, 3]]
    assert found[0].get("DimensionIndexPointers") == ["StackID", "00281234"]


def test_the_functional_group_wins_over_the_object_and_a_frame_without_it_does_not_fall_back(tmp_path):
    own = planes(3)
    del own[1]["ImagePositionPatient"]
    more = {"ImagePositionPatient": [0.0, 0.0, 0.0], "RescaleSlope": 5.0, "RescaleIntercept": 1.0}
    found = frames(enhanced(own, "CT", SHARED, **more), tmp_path)
    assert [frame.get("ImagePositionPatient") for frame in found] == [[-10, 20, 100], None, [-10, 20, 106]]
    assert {(frame.get("RescaleSlope"), frame.get("RescaleIntercept")) for frame in found} == {(2.0, -10.0)}


@pytest.mark.parametrize("syntax", [UNCOMPRESSED["explicit"], UNCOMPRESSED["implicit"]])
def test_a_padding_value_that_a_converter_left_over_has_the_sign_of_the_pixels(tmp_path, syntax):
    ds = enhanced(planes(1), "CT", SHARED, PixelRepresentation=1)
    left = Dataset()
    left.add_new(0x00280120, "SS", -2000)
    ds.SharedFunctionalGroupsSequence[0].UnassignedSharedConvertedAttributesSequence = Sequence([left])
    assert frames(ds, tmp_path, syntax)[0].get("PixelPaddingValue") == -2000


def test_what_a_converter_left_over_never_changes_what_the_pixels_are(tmp_path):
    ds = enhanced(planes(1), "CT", {**SHARED, "KVP": 120.0})
    left = dataset(Rows=9, BitsStored=16, SOPInstanceUID=f"{ROOT}66", KVP=80.0, EchoTime=3.0)
    ds.SharedFunctionalGroupsSequence[0].UnassignedSharedConvertedAttributesSequence = Sequence([left])
    (frame,) = frames(ds, tmp_path)
    assert [frame.get(k) for k in ("Rows", "BitsStored", "SOPInstanceUID")] == [4, 12, f"{ROOT}1.1"]
    # A macro says more than what was left over.
    assert (frame.get("KVP"), frame.get("EchoTime")) == (120.0, 3.0)


def test_a_mosaic_in_several_frames_is_refused(tmp_path):
    ds = enhanced(planes(2), shared=SHARED, ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"])
    assert refused(save(ds, tmp_path / "one.dcm")).code == "mosaic"


def test_what_a_group_does_not_give_stays_the_objects(tmp_path):
    ds = header("CT", 2, ImagePositionPatient=[1.0, 2.0, 3.0], ImageOrientationPatient=AXIAL)
    found = frames(ds, tmp_path)
    assert [frame.get("ImagePositionPatient") for frame in found] == [[1.0, 2.0, 3.0]] * 2


@pytest.mark.parametrize(
    "scale, intercept, code, unit, kind",
    [
        pytest.param(2.0, -10.0, "Bq/ml", "BQML", None, id="the mapping is the rescale"),
        pytest.param(2.0, -10.0, "g/ml{SUVbw}", "GML", "BW", id="SUV"),
        pytest.param(2.5, -10.0, "Bq/ml", None, None, id="another slope"),
        pytest.param(2.0, 0.0, "Bq/ml", None, None, id="another intercept"),
        pytest.param(2.0, -10.0, "kBq/ml", None, None, id="a unit without a word in Units"),
    ],
)
def test_enhanced_pet_names_its_units_only_where_real_world_and_rescaled_values_are_the_same(
    tmp_path, scale, intercept, code, unit, kind
):
    mapping = {
        "RealWorldValueSlope": scale,
        "RealWorldValueIntercept": intercept,
        "MeasurementUnitsCodeSequence": Sequence(
            [dataset(CodeValue=code, CodingSchemeDesignator="UCUM", CodeMeaning=code)]
        ),
    }
    done = {"DecayCorrected": "YES", "AttenuationCorrected": "YES", "ScatterCorrected": "NO"}
    ds = enhanced(planes(2), "PT", {**SHARED, **mapping}, DecayCorrectionDateTime="20200102030405", **done)
    for frame in frames(ds, tmp_path):
        assert (frame.get("Units"), frame.get("SUVType")) == (unit, kind)
        assert frame.get("CorrectedImage") == ["DECY", "ATTN"]
        assert frame.get("DecayCorrectionDateTime") == "20200102030405"
        assert frame.get("RealWorldValueMappingSequence") is True
        assert all(keyword.isidentifier() for keyword in frame.attributes)


@pytest.mark.parametrize(
    "more, times",
    [
        pytest.param({"FrameTime": 40.0, "FrameIncrementPointer": 0x00181063}, [0.0, 40.0, 80.0], id="one step"),
        pytest.param({"FrameTime": 40.0}, [0.0, 40.0, 80.0], id="one step, no pointer"),
        pytest.param(
            {"FrameTimeVector": [0.0, 40.0, 60.0], "FrameIncrementPointer": 0x00181065}, [0.0, 40.0, 100.0], id="steps"
        ),
        pytest.param({"FrameTime": 40.0, "FrameIncrementPointer": 0x00540010}, [None] * 3, id="frames are not times"),
        pytest.param({"FrameTimeVector": [0.0, 40.0], "FrameIncrementPointer": 0x00181065}, [None] * 3, id="too few"),
    ],
)
def test_frames_without_groups_have_a_time_where_the_object_gives_one(tmp_path, more, times):
    found = frames(header("MR", 3, **more), tmp_path)
    assert [frame.get("FrameTimeMs") for frame in found] == times


def test_single_frames_are_given_back_without_opening_a_file(tmp_path):
    many = [instance((0, 0, n), n + 1) for n in range(10_000)]
    assert frames_of(SourceFiles(tmp_path / "gone"), many) == many


def test_frames_lie_between_the_single_images_where_their_object_lay(tmp_path):
    path = save(enhanced(planes(2), shared=SHARED), tmp_path / "one.dcm")
    one, other, found = instance((0, 0, 0), 1), instance((0, 0, 1), 2), read_instance(path, path.name)
    with SourceFiles(tmp_path) as files:
        assert [i.path for i in frames_of(files, [one, found, other])] == ["001.dcm", "one.dcm", "one.dcm", "002.dcm"]


# Nuclear medicine.


def nuclear(spacing: float, numbers: list[int], **more: Any) -> Dataset:
    detector = dataset(ImagePositionPatient=[-10.0, -20.0, 30.0], ImageOrientationPatient=AXIAL)
    attributes = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.20",
        "Modality": "NM",
        "ImageType": ["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"],
        "FrameIncrementPointer": 0x00540080,
        "SliceVector": numbers,
        "SpacingBetweenSlices": spacing,
        "PixelSpacing": [4.0, 4.0],
        "DetectorInformationSequence": Sequence([detector]),
        **more,
    }
    return header("CT", len(numbers), **attributes)


@pytest.mark.parametrize("spacing, expected", [(4.5, [30.0, 39.0, 34.5]), (-4.5, [30.0, 21.0, 25.5])])
def test_slices_of_a_reconstructed_nm_volume_lie_by_their_number_and_the_sign_of_the_spacing(
    tmp_path, spacing, expected
):
    found = frames(nuclear(spacing, [1, 3, 2]), tmp_path)
    # The normal of axial rows and columns is +z (PS3.3 C.8.4.15).
    assert [frame.get("ImagePositionPatient") for frame in found] == [[-10.0, -20.0, z] for z in expected]
    assert [frame.get("ImageOrientationPatient") for frame in found] == [AXIAL] * 3


@pytest.mark.parametrize(
    "more",
    [
        {"ImageType": ["ORIGINAL", "PRIMARY", "DYNAMIC", "EMISSION"]},
        {"ImageType": ["ORIGINAL", "PRIMARY"]},
        {"SliceVector": [1, 2, 2]},
        {"FrameIncrementPointer": 0x00540010},
        {"SpacingBetweenSlices": 0.0},
        {"SpacingBetweenSlices": ...},
        {"DetectorInformationSequence": ...},
    ],
)
def test_nm_frames_that_no_rule_places_are_refused(tmp_path, more):
    path = save(nuclear(4.5, [1, 2, 3], **more), tmp_path / "one.dcm")
    assert refused(path).code == "multi-frame-nm"


# Concatenations.


def part(folder: Path, number: int, offset: Any, total: Any = 3, count: int = 2) -> Path:
    ds = enhanced(
        planes(count, start=(0.0, 0.0, 10.0 * number)),
        shared=SHARED,
        SOPInstanceUID=f"{ROOT}1.{number}",
        ConcatenationUID=f"{ROOT}77",
        InConcatenationNumber=number,
        InConcatenationTotalNumber=total,
        ConcatenationFrameOffsetNumber=offset,
    )
    return save(ds, folder / f"{9 - number}.dcm")


@pytest.mark.parametrize("total", [3, ...])
def test_parts_of_a_concatenation_are_joined_in_order(tmp_path, total):
    paths = [part(tmp_path, n, (n - 1) * 2, total) for n in (2, 1, 3)]
    found = read(*paths)
    assert [(frame.path, frame.frame) for frame in found] == [
        ("8.dcm", 0),
        ("8.dcm", 1),
        ("7.dcm", 0),
        ("7.dcm", 1),
        ("6.dcm", 0),
        ("6.dcm", 1),
    ]


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([(1, 0, 3), (2, 2, 3)], id="the last part is absent"),
        pytest.param([(2, 2, ...), (3, 4, ...)], id="the first part is absent"),
        pytest.param([(1, 0, ...), (3, 4, ...)], id="a part between is absent"),
        pytest.param([(1, 0, 2), (3, 2, 2)], id="numbers with a hole"),
        pytest.param([(1, 0, 2), (2, 1, 2)], id="parts overlap"),
        pytest.param([(1, 0, 2), (2, 2, 3)], id="two totals"),
    ],
)
def test_a_concatenation_that_is_not_whole_is_refused(tmp_path, parts):
    assert refused(*[part(tmp_path, *one) for one in parts]).code == "concatenation-incomplete"


# Hostile objects.


@pytest.mark.parametrize("said", [1, 3, 5, 2147483647])
def test_another_number_of_frames_than_are_described_is_refused(tmp_path, said):
    ds = enhanced(planes(4), shared=SHARED)
    ds.NumberOfFrames = said
    error = refused(save(ds, tmp_path / "one.dcm"))
    assert error.code == ("frames-mismatch" if said < 1000 else "too-many-frames")


@pytest.mark.parametrize(
    "said, code", [(5, "frames-mismatch"), (100_000, "frames-mismatch"), (2147483647, "too-many-frames")]
)
def test_more_frames_than_the_pixels_can_hold_are_refused_before_anything_is_made_of_them(tmp_path, said, code):
    ds = header("CT", 4)
    ds.NumberOfFrames = said
    assert refused(save(ds, tmp_path / "one.dcm")).code == code


@pytest.mark.parametrize("said", [0, -3])
def test_no_frames_are_refused(tmp_path, said):
    ds = header("CT", 4)
    ds.NumberOfFrames = said
    assert refused(save(ds, tmp_path / "one.dcm")).code == "frames-mismatch"


def test_two_positions_for_one_frame_are_refused(tmp_path):
    ds = enhanced(planes(2), shared=SHARED)
    sequence = ds.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence
    sequence.append(dataset(ImagePositionPatient=[9.0, 9.0, 9.0]))
    assert refused(save(ds, tmp_path / "one.dcm")).code == "damaged-header"


def test_a_position_that_is_no_number_stays_text(tmp_path):
    path = save(enhanced(planes(2), shared=SHARED), tmp_path / "one.dcm")
    data = path.read_bytes()
    assert data.count(b"-10.0\\20.0\\103.0") == 1
    path.write_bytes(data.replace(b"-10.0\\20.0\\103.0", b"-10.0\\20.0\\nan  "))
    assert read(path)[1].get("ImagePositionPatient") == [-10.0, 20.0, "nan"]


def test_a_sequence_that_runs_past_its_item_is_refused(tmp_path):
    path = save(enhanced(planes(2), shared=SHARED), tmp_path / "one.dcm")
    data = bytearray(path.read_bytes())
    at = data.rindex(struct.pack("<HH", 0x0020, 0x9113) + b"SQ")
    data[at + 8 : at + 12] = struct.pack("<I", 4000)
    path.write_bytes(data)
    assert refused(path).code == "damaged-header"


def test_an_object_that_changed_since_it_was_scanned_is_refused(tmp_path):
    path = save(enhanced(planes(2), shared=SHARED), tmp_path / "one.dcm")
    found = read_instance(path, path.name)
    path.write_bytes(path.read_bytes().replace(b"103.0", b"203.0"))
    with SourceFiles(tmp_path) as files, pytest.raises(DataError) as error:
        frames_of(files, [found])
    assert error.value.code == "source-changed"
    path.unlink()
    with SourceFiles(tmp_path) as files, pytest.raises(MissingError):
        frames_of(files, [found])


def test_sequences_within_sequences_without_end_are_refused(tmp_path):
    item = dataset(ImagePositionPatient=[0.0, 0.0, 0.0])
    for _ in range(40):
        item = dataset(PlanePositionSequence=Sequence([item]))
    ds = header("MR", 1)
    ds.PerFrameFunctionalGroupsSequence = Sequence([item])
    found = read_instance(save(undefined(ds), tmp_path / "one.dcm"), "one.dcm")
    # The scan may refuse it as well.
    assert not isinstance(found, Instance) or refused(tmp_path / "one.dcm").code == "damaged-header"


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_a_damaged_object_is_read_or_refused_never_a_crash(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    path = folder / "damaged.dcm"
    ds = enhanced([{**plane, "EffectiveEchoTime": 3.0} for plane in planes(3)], shared=SHARED)
    save(undefined(ds) if data.draw(st.booleans()) else ds, path)
    raw = bytearray(path.read_bytes())
    start = raw.index(struct.pack("<HH", 0x5200, 0x9229))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(start, len(raw) - 145))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    found = read_instance(path, path.name)
    if not isinstance(found, Instance):
        return
    try:
        with SourceFiles(folder) as files:
            assert len(frames_of(files, [found])) <= 3
    except DataError as error:
        assert error.code in ("damaged-header", "frames-mismatch")
        assert not any(word in error.message for word in PATIENT)


# The tables.


def test_every_attribute_of_a_frame_is_named_as_the_dictionary_has_it():
    for keyword, (tag, vr, single) in FRAME_KEYWORDS.items():
        assert keyword_for_tag(tag) == keyword
        assert dictionary_VR(tag) == vr
        assert (dictionary_VM(tag) == "1") == single
        assert keyword not in KEYWORDS


def test_every_macro_is_a_sequence_of_the_dictionary():
    for tag in multiframe._ALL_MACROS:
        assert dictionary_VR(tag) == "SQ"
    for tag in multiframe._CORRECTIONS:
        assert keyword_for_tag(tag).endswith(("Corrected", "Calibrated", "Correction"))
    assert group(ImagePositionPatient=[0.0, 0.0, 0.0]).PlanePositionSequence
