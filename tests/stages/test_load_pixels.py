"""load-volume from pixels of every kind to exact values: LUTs, signs, colour, 2-D images, images in time, frames, SUV."""

import json
import subprocess
import sys
import warnings
from datetime import datetime
from pathlib import Path

import jsonschema
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import convert_color_space, pixel_array
from pydicom.sequence import Sequence
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    PositronEmissionTomographyImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
    XRayAngiographicImageStorage,
)

from mdcli.errors import MdError
from mdcli.imaging.nifti import read_nifti
from mdcli.stages import load_volume, select_series
from mdcli.testing import ListReporter, run_stage
from tests.chain import md_environment
from tests.dicom.test_codecs import rle
from tests.dicom.test_reading import CODECS, RAW, put_in
from tests.made_series import LITTLE, ROOT, workspace, write_series, write_slice
from tests.multiframe_series import SHARED, enhanced, header, mosaic, planes, save

SCHEMAS = Path(load_volume.__file__).parents[1] / "schemas"
BARE = {"RescaleSlope": ..., "RescaleIntercept": ...}
FLAT = {"ImagePositionPatient": ..., "ImageOrientationPatient": ..., "SliceThickness": ..., **BARE}


def run(ws, reporter=None, **params):
    """Load a workspace; return its image as nibabel reads it, and `geometry.json`."""
    run_stage(load_volume.STAGE, ws, reporter=reporter, **params)
    geometry = json.loads((ws / "geometry.json").read_text())
    jsonschema.validate(geometry, json.loads((SCHEMAS / "geometry.json").read_text()))
    return nibabel.load(ws / "volume.nii"), geometry


def values_of(image):
    """Return the values, (k, j, i) or (t, k, j, i), of colour with red, green and blue last."""
    array = np.asanyarray(image.dataobj)
    array = array.transpose(range(array.ndim)[::-1])
    return array if array.dtype.names is None else np.stack([array[name] for name in "RGB"], -1)


def load(ws, reporter=None, **params):
    image, geometry = run(ws, reporter, **params)
    return values_of(image), geometry


def refused(ws, **params):
    with pytest.raises(MdError) as caught:
        run(ws, **params)
    assert sorted(p.name for p in ws.iterdir()) == ["series.json", "series.root"], "something was left behind"
    return caught.value.code


def one_image(tmp_path, plane, modality="CR", sop=ComputedRadiographyImageStorage, name="d", **more):
    folder = tmp_path / name
    folder.mkdir()
    facts = {"Modality": modality, "SOPClassUID": sop, "PixelSpacing": ..., **FLAT, **more}
    write_slice(folder / "a.dcm", plane, **facts)
    return workspace(tmp_path / f"ws-{name}", folder)


def gray(count=4, shape=(33, 35), low=0, high=4096, dtype="u2", seed=6):
    return np.random.default_rng(seed).integers(low, high, (count, *shape)).astype(dtype)


# Values


def lut_item(entries, first=0, kind="HU", bits=16, vr="US"):
    item = Dataset()
    item.add_new("LUTDescriptor", vr, [len(entries), first, bits])
    item.ModalityLUTType = kind
    item.add_new("LUTData", "OW", np.array(entries, "<u2" if bits > 8 else "u1").tobytes())
    return Sequence([item])


@pytest.mark.parametrize("compressed", [LITTLE, JPEGLSLossless])
def test_each_slice_is_looked_up_in_its_own_modality_lut(tmp_path, compressed):
    values = gray(3)
    tables = [np.random.default_rng(n).integers(0, 65536, 4000).tolist() for n in range(3)]
    luts = [lut_item(table, 50) for table in tables]
    folder = write_series(tmp_path / "d", values, compressed, BitsStored=12, ModalityLUTSequence=luts, **BARE)
    found, geometry = load(workspace(tmp_path / "ws", folder))
    expected = [
        np.array(table)[np.clip(plane.astype(int) - 50, 0, 3999)] for plane, table in zip(values, tables, strict=True)
    ]
    np.testing.assert_array_equal(found, expected)
    assert (found.dtype.name, geometry["unit"]) == ("uint16", "HU")


def test_a_modality_lut_that_one_slice_lacks_or_names_otherwise_is_refused(tmp_path):
    lut = lut_item([5, 6, 7])
    lacks = write_series(tmp_path / "a", gray(3), ModalityLUTSequence=[lut, ..., lut], **BARE)
    assert refused(workspace(tmp_path / "wa", lacks)) in ("no-modality-lut", "no-rescale")
    lacks = write_series(tmp_path / "m", gray(3), Modality="MR", ModalityLUTSequence=[lut, ..., lut], **BARE)
    assert refused(workspace(tmp_path / "wm", lacks)) == "no-modality-lut"
    other = [lut, lut, lut_item([5, 6, 7], kind="OD")]
    differs = write_series(tmp_path / "b", gray(3), Modality="MR", ModalityLUTSequence=other, **BARE)
    assert refused(workspace(tmp_path / "wb", differs)) == "mixed-kinds"
    both = write_series(tmp_path / "c", gray(3), ModalityLUTSequence=[lut] * 3)
    assert refused(workspace(tmp_path / "wc", both)) == "bad-modality-lut"


def test_a_negative_slope_differs_by_slice(tmp_path):
    values = gray(3)
    folder = write_series(tmp_path / "d", values, RescaleSlope=[-1.0, -2.0, 1.0], RescaleIntercept=[4095.0, 0.0, -5.0])
    found, geometry = load(workspace(tmp_path / "ws", folder))
    np.testing.assert_array_equal(found, [4095 - values[0].astype(int), -2 * values[1].astype(int), values[2] - 5.0])
    assert [s["rescale_slope"] for s in geometry["slices"]] == [-1, -2, 1]


@pytest.mark.parametrize("size, dtype", [(2, "int32"), (4, "float64")])
def test_slices_with_and_without_a_sign_make_one_exact_volume(tmp_path, size, dtype):
    signed, unsigned = np.iinfo(f"i{size}"), np.iinfo(f"u{size}")
    folder = tmp_path / "d"
    folder.mkdir()
    rows = [[signed.min, -1, signed.max], [0, 1, unsigned.max], [signed.min, 0, 7]]
    for k, row in enumerate(rows):
        plane = np.array([row, row], f"u{size}" if k == 1 else f"i{size}")
        place = {"ImagePositionPatient": [0, 0, 3.0 * k], "SOPInstanceUID": f"{ROOT}1.{k + 1}"}
        write_slice(folder / f"{k}.dcm", plane, InstanceNumber=k + 1, RescaleIntercept=0.0, **place)
    found, _ = load(workspace(tmp_path / "ws", folder))
    assert found.dtype.name == dtype
    assert [plane[0] for plane in found.tolist()] == rows


def test_an_overlay_above_the_stored_bits_is_masked_and_told(tmp_path):
    values = gray(3)
    folder = write_series(tmp_path / "d", values | 0x8000, BitsStored=12, HighBit=11)
    reporter = ListReporter()
    found, _ = load(workspace(tmp_path / "ws", folder), reporter)
    np.testing.assert_array_equal(found, values.astype(int) - 1024)
    assert "high-bits-masked" in reporter.codes()


def parametric_map(path, values):
    """Write a Parametric Map with FloatPixelData or DoubleFloatPixelData by highdicom, which others wrote."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    folder = path.parent / "sources"
    write_series(folder, gray(len(values), values.shape[1:]))
    sources = [pydicom.dcmread(p) for p in sorted(folder.iterdir())]
    for source in sources:
        source.PatientName, source.PatientBirthDate, source.PatientSex = "Canary^Name", None, None
        source.StudyDate = source.StudyTime = source.AccessionNumber = source.StudyID = None
        source.ReferringPhysicianName = source.SeriesNumber = source.Laterality = None
    mapping = hd.pm.RealWorldValueMapping(
        lut_label="1",
        lut_explanation="as stored",
        unit=codes.UCUM.NoUnits,
        value_range=(0, 65535) if values.dtype.kind == "u" else (-1e30, 1e30),
        slope=1.0,
        intercept=0.0,
    )
    made = hd.pm.ParametricMap(
        source_images=sorted(sources, key=lambda s: s.InstanceNumber),
        pixel_array=values,
        series_instance_uid=f"{ROOT}9",
        series_number=9,
        sop_instance_uid=f"{ROOT}9.1",
        instance_number=1,
        manufacturer="m",
        manufacturer_model_name="m",
        software_versions="1",
        device_serial_number="1",
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        window_center=0.0,
        window_width=1.0,
    )
    made.save_as(path)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint16"])
def test_a_parametric_map_keeps_its_values_bit_by_bit(tmp_path, dtype):
    values = np.random.default_rng(3).uniform(0, 65535, (3, 9, 12)).astype(dtype)
    values[0, 0, 0] = 65535
    folder = tmp_path / "d"
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parametric_map(tmp_path / "map.dcm", values)
    (tmp_path / "map.dcm").rename(folder / "map.dcm")
    ws = tmp_path / "ws"
    run_stage(select_series.STAGE, ws, dicom=folder, include=("parametric-map",))
    found, geometry = load(ws)
    np.testing.assert_array_equal(found, values)
    assert found.dtype.name == dtype
    assert sorted(s["frame"] for s in geometry["slices"]) == [1, 2, 3]
    np.testing.assert_allclose(read_nifti(ws / "volume.nii").affine[:3, 3], [-10, 20, 100])


# Display


@pytest.mark.parametrize(
    "more, inverted",
    [
        ({"PhotometricInterpretation": "MONOCHROME1"}, True),
        ({"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"}, True),
        ({"PhotometricInterpretation": "MONOCHROME2", "PresentationLUTShape": "INVERSE"}, True),
        ({"PhotometricInterpretation": "MONOCHROME2", "PresentationLUTShape": "IDENTITY"}, False),
        ({"PhotometricInterpretation": "MONOCHROME2"}, False),
    ],
)
def test_polarity_is_said_once_and_never_touches_the_values(tmp_path, more, inverted):
    plane = gray(1)[0]
    more = {**more, "WindowCenter": [100.0, 50.0], "WindowWidth": [20.0, 10.0], "VOILUTFunction": "SIGMOID"}
    found, geometry = load(one_image(tmp_path, plane, **more))
    np.testing.assert_array_equal(found[0], plane)
    display = geometry["display"]
    assert display["inverted"] is inverted
    assert (display["window_center"], display["window_width"]) == ([100, 50], [20, 10])
    assert (display["voi_lut_function"], display["palette"]) == ("SIGMOID", False)


# Colour


def red_green_blue(shape=(34, 36), seed=1):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3)).astype("u1")


def colour_image(tmp_path, samples, photometric="RGB", planar=0, syntax=LITTLE, value=None, name="d"):
    if value is None:
        value = (samples.transpose(2, 0, 1) if planar else samples).tobytes()
    more = {"SamplesPerPixel": 3, "PlanarConfiguration": planar, "PhotometricInterpretation": photometric}
    folder = tmp_path / name
    folder.mkdir()
    facts = {"Modality": "OT", "SOPClassUID": SecondaryCaptureImageStorage, "PixelSpacing": ..., **FLAT, **more}
    path = folder / "a.dcm"
    if syntax == LITTLE:
        write_slice(path, samples[..., 0], value=value, **facts)
    else:
        write_slice(path, samples[..., 0], value=samples.tobytes(), **facts)
        ds = pydicom.dcmread(path)
        ds.file_meta.TransferSyntaxUID = syntax
        ds.PixelData = encapsulate([value])
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True
        ds.save_as(path)
    return workspace(tmp_path / f"ws-{name}", folder), path


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL"])
def test_colour_is_refused_unless_asked_for_and_then_what_pydicom_reads(tmp_path, planar, photometric):
    ws, path = colour_image(tmp_path, red_green_blue(), photometric, planar)
    assert refused(ws) == "colour"
    image, geometry = run(ws, colour=True)
    judged = pixel_array(path, raw=True)
    judged = judged if photometric == "RGB" else convert_color_space(judged, photometric, "RGB")
    assert np.abs(values_of(image)[0].astype(int) - judged).max() <= (photometric != "RGB")
    assert (image.header["datatype"], geometry["colour"]) == (128, "RGB")
    assert geometry["photometric_interpretation"] == photometric
    itk = SimpleITK.ReadImage(str(ws / "volume.nii"))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(itk), values_of(image))


def jpeg_2000(samples, photometric):
    from openjpeg import encode

    number = {"RGB": 1, "YBR_RCT": 1}[photometric]
    return encode(samples, bits_stored=8, photometric_interpretation=number, use_mct=photometric == "YBR_RCT")


def jpeg_ls(samples):
    from jpeg_ls import encode_array

    return bytes(encode_array(samples, interleave_mode=2))


@pytest.mark.parametrize(
    "syntax, photometric, encode",
    [
        pytest.param(RLELossless, "RGB", rle, id="RLE"),
        pytest.param(JPEG2000Lossless, "RGB", lambda s: jpeg_2000(s, "RGB"), id="JPEG 2000, no transform"),
        pytest.param(JPEG2000Lossless, "YBR_RCT", lambda s: jpeg_2000(s, "YBR_RCT"), id="JPEG 2000, transformed"),
        pytest.param(JPEGLSLossless, "RGB", jpeg_ls, id="JPEG-LS"),
    ],
)
def test_lossless_colour_of_every_codec_is_exact(tmp_path, syntax, photometric, encode):
    samples = red_green_blue()
    ws, _ = colour_image(tmp_path, samples, photometric, 0, syntax, encode(samples))
    found, geometry = load(ws, colour=True)
    np.testing.assert_array_equal(found[0], samples)
    assert geometry["lossy"] is None


@pytest.mark.parametrize("subsampling, photometric", [(0, "YBR_FULL"), (1, "YBR_FULL_422")])
def test_baseline_jpeg_colour_is_what_pillow_makes_of_it(tmp_path, subsampling, photometric):
    import io

    from PIL import Image

    j, i = np.mgrid[:48, :64]
    samples = np.stack([j * 5, i * 4, 255 - j * 2 - i], -1).astype("u1")
    out = io.BytesIO()
    Image.fromarray(samples).save(out, "JPEG", quality=95, subsampling=subsampling)
    ws, _ = colour_image(tmp_path, samples, photometric, 0, JPEGBaseline8Bit, out.getvalue())
    reporter = ListReporter()
    found, geometry = load(ws, reporter, colour=True)
    judged = np.asarray(Image.open(out).convert("RGB"))
    assert np.abs(found[0].astype(int) - judged).max() <= 1
    assert geometry["lossy"]["certain"]
    assert "lossy-source" in reporter.codes("warning")


def palette(first=0, bits=8, seed=2, count=200):
    rng = np.random.default_rng(seed)
    entries = rng.integers(0, 1 << bits, (3, count))
    more = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, values in zip(("Red", "Green", "Blue"), entries, strict=True):
        more[f"{name}PaletteColorLookupTableDescriptor"] = [count, first, bits]
        more[f"{name}PaletteColorLookupTableData"] = values.astype("u1" if bits == 8 else "<u2").tobytes()
    return entries >> (bits - 8), more


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("first", [0, 17])
def test_a_palette_image_keeps_its_stored_values_unless_colour_is_asked_for(tmp_path, bits, first):
    plane = gray(1, high=256, dtype="u1")[0]
    entries, more = palette(first, bits)
    ws = one_image(tmp_path, plane, "OT", SecondaryCaptureImageStorage, **more)
    found, geometry = load(ws)
    np.testing.assert_array_equal(found[0], plane)
    assert (geometry["display"]["palette"], geometry["colour"]) == (True, None)
    ws = one_image(tmp_path, plane, "OT", SecondaryCaptureImageStorage, "c", **more)
    found, geometry = load(ws, colour=True)
    expected = entries[:, np.clip(plane.astype(int) - first, 0, 199)].transpose(1, 2, 0)
    np.testing.assert_array_equal(found[0], expected)
    assert geometry["colour"] == "RGB"


def test_a_volume_of_colour_has_its_plane_in_the_patient(tmp_path):
    samples = [red_green_blue(seed=n) for n in range(3)]
    folder = tmp_path / "d"
    folder.mkdir()
    for k, one in enumerate(samples):
        facts = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": "RGB", **BARE}
        facts |= {"ImagePositionPatient": [0, 0, 3.0 * k], "SOPInstanceUID": f"{ROOT}1.{k}", "Modality": "OT"}
        write_slice(folder / f"{k}.dcm", one[..., 0], value=one.tobytes(), InstanceNumber=k + 1, **facts)
    image, geometry = run(workspace(tmp_path / "ws", folder), colour=True)
    np.testing.assert_array_equal(values_of(image), samples)
    assert (geometry["spacing_plane"], int(image.header["sform_code"])) == ("patient", 1)


def test_gray_asked_for_as_colour_is_refused(tmp_path):
    assert refused(one_image(tmp_path, gray(1)[0]), colour=True) == "not-colour"


def test_gray_and_colour_in_one_volume_are_refused(tmp_path):
    folder = tmp_path / "d"
    folder.mkdir()
    _, more = palette()
    for k in range(3):
        facts = {**BARE, "Modality": "OT", "SOPInstanceUID": f"{ROOT}1.{k}", "ImagePositionPatient": [0, 0, 3.0 * k]}
        if k == 1:
            facts |= {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": "RGB"}
            write_slice(folder / "1.dcm", np.zeros((4, 6), "u1"), value=bytes(72), InstanceNumber=2, **facts)
        else:
            write_slice(folder / f"{k}.dcm", np.zeros((4, 6), "u1"), InstanceNumber=k + 1, **facts, **more)
    assert refused(workspace(tmp_path / "ws", folder), colour=True) in ("mixed-kinds", "several-volumes")


# 2-D


@pytest.mark.parametrize(
    "modality, sop, more, plane, spacing",
    [
        ("CR", ComputedRadiographyImageStorage, {"ImagerPixelSpacing": [0.2, 0.1]}, "detector", [0.1, 0.2, None]),
        (
            "DX",
            DigitalXRayImageStorageForPresentation,
            {"PixelSpacing": [0.3, 0.15], "ImagerPixelSpacing": [0.2, 0.1], "PixelSpacingCalibrationType": "GEOMETRY"},
            "calibrated-geometry",
            [0.15, 0.3, None],
        ),
        (
            "MG",
            DigitalXRayImageStorageForPresentation,
            {"PixelSpacing": [0.3, 0.15], "PixelSpacingCalibrationType": "FIDUCIAL"},
            "calibrated-fiducial",
            [0.15, 0.3, None],
        ),
        ("CR", ComputedRadiographyImageStorage, {"PixelSpacing": [0.3, 0.15]}, "unknown", None),
        ("OT", SecondaryCaptureImageStorage, {}, "unknown", None),
    ],
)
def test_a_2d_image_is_one_slice_that_says_what_its_millimetres_are_of(tmp_path, modality, sop, more, plane, spacing):
    stored = gray(1)[0]
    reporter = ListReporter()
    ws = one_image(tmp_path, stored, modality, sop, **more)
    image, geometry = run(ws, reporter)
    np.testing.assert_array_equal(values_of(image), stored[None])
    assert (geometry["spacing_plane"], geometry["spacing_mm"]) == (plane, spacing)
    assert (geometry["orientation"], geometry["slices"][0]["position_mm"]) == (None, None)
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (0, 0)
    assert ("no-millimetres" in reporter.codes()) == (spacing is None)
    back = read_nifti(ws / "volume.nii")
    assert back.plane == plane
    np.testing.assert_allclose(back.affine, geometry["affine_lps"], rtol=1e-7)
    # Pixels twice as high as wide stay so, with or without millimetres.
    if modality != "OT":
        assert back.affine[1, 1] / back.affine[0, 0] == pytest.approx(2)


def us_region(x, y, box):
    ds = Dataset()
    ds.RegionSpatialFormat, ds.RegionDataType, ds.RegionFlags = 1, 1, 0
    ds.RegionLocationMinX0, ds.RegionLocationMinY0, ds.RegionLocationMaxX1, ds.RegionLocationMaxY1 = box
    ds.PhysicalUnitsXDirection = ds.PhysicalUnitsYDirection = 3
    ds.PhysicalDeltaX, ds.PhysicalDeltaY = x, y
    return ds


@pytest.mark.parametrize(
    "deltas, plane, spacing",
    [
        ([(0.04, 0.05)], "calibrated-geometry", [0.4, 0.5, None]),
        ([(0.04, 0.05), (0.04, 0.05)], "calibrated-geometry", [0.4, 0.5, None]),
        ([(0.04, 0.05), (0.02, 0.02)], "unknown", None),
        ([], "unknown", None),
    ],
)
def test_ultrasound_has_millimetres_where_its_regions_agree(tmp_path, deltas, plane, spacing):
    regions = Sequence([us_region(x, y, (n, 0, n + 9, 9)) for n, (x, y) in enumerate(deltas)])
    ws = one_image(
        tmp_path,
        gray(1, dtype="u1", high=256)[0],
        "US",
        UltrasoundImageStorage,
        SequenceOfUltrasoundRegions=regions if deltas else ...,
    )
    _, geometry = load(ws)
    assert (geometry["spacing_plane"], geometry["spacing_mm"]) == (plane, spacing)
    assert [r["box"] for r in geometry.get("regions", [])] == [[n, 0, n + 9, 9] for n in range(len(deltas))]


@pytest.mark.parametrize("modality", ["CT", "MR", "PT"])
def test_tomography_without_any_plane_is_refused(tmp_path, modality):
    folder = write_series(tmp_path / "d", gray(), Modality=modality, **FLAT)
    assert refused(workspace(tmp_path / "ws", folder)) == "no-position"


def test_several_2d_images_are_listed_and_one_can_be_picked(tmp_path):
    values = gray(3)
    folder = write_series(tmp_path / "d", values, Modality="CR", SOPClassUID=ComputedRadiographyImageStorage, **FLAT)
    ws = workspace(tmp_path / "ws", folder)
    assert refused(ws) == "several-volumes"
    found, _ = load(ws, pick=("volume=2",))
    np.testing.assert_array_equal(found[0], values[1])


# Images in time


def cine(tmp_path, values, syntax=LITTLE, modality="XA", sop=XRayAngiographicImageStorage, **more):
    folder = tmp_path / "d"
    folder.mkdir(exist_ok=True)
    ds = header("MR", len(values), **{"SOPClassUID": sop, "Modality": modality, **more})
    save(put_in(ds, values, syntax), folder / "cine.dcm", syntax)
    return workspace(tmp_path / "ws", folder)


@pytest.mark.parametrize(
    "more, name, unit, times",
    [
        ({"FrameTime": 40.0, "FrameIncrementPointer": 0x00181063}, "time", "ms", [0, 40, 80, 120]),
        (
            {"FrameTimeVector": [0.0, 30.0, 40.0, 50.0], "FrameIncrementPointer": 0x00181065},
            "time",
            "ms",
            [0, 30, 70, 120],
        ),
        ({}, "frame", None, [1, 2, 3, 4]),
    ],
)
@pytest.mark.parametrize("syntax", [LITTLE, JPEGLSLossless])
def test_frames_without_a_plane_are_one_image_in_time(tmp_path, more, name, unit, times, syntax):
    values = gray()
    reporter = ListReporter()
    ws = cine(tmp_path, values, syntax, ImagerPixelSpacing=[0.2, 0.1], **more)
    image, geometry = run(ws, reporter)
    assert image.shape == (35, 33, 1, 4)
    np.testing.assert_array_equal(values_of(image)[:, 0], values)
    dimension = geometry["dimension"]
    assert (dimension["name"], dimension["unit"], dimension["values"]) == (name, unit, times)
    assert geometry["shape"] == [1, 33, 35]
    assert [(s["t"], s["frame"]) for s in geometry["slices"]] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert geometry["spacing_plane"] == "detector"
    assert "image-in-time" in reporter.codes()


@pytest.mark.slow
def test_a_real_cine_of_colour_is_what_pydicom_decodes(shared_data, tmp_path):
    folder = shared_data / "25_us_multiframe_jpeg" / "dicom"
    ws = workspace(tmp_path / "ws", folder)
    assert refused(ws) == "colour"
    found, geometry = load(ws, colour=True)
    judged = pydicom.dcmread(folder / "examples_ybr_color.dcm")
    judged = pixel_array(judged, raw=False)
    assert found.shape == (30, 1, 240, 320, 3)
    # Pillow's decoder upsamples and rounds in its own way: nearly all samples are within one of what it gives.
    difference = np.abs(found[:, 0].astype(int) - judged)
    assert difference.max() <= 2
    assert (difference <= 1).mean() > 0.999
    assert (geometry["modality"], geometry["lossy"]["slices"]) == ("US", 30)
    assert UltrasoundMultiFrameImageStorage == geometry["sop_class_uid"]


# Frames


@pytest.mark.parametrize("syntax", [*RAW.values(), *CODECS.values()], ids=[*RAW, *CODECS])
def test_a_multi_frame_object_is_the_volume_that_its_single_frames_are(tmp_path, syntax):
    values = gray(5)
    scale = {"RescaleSlope": [2.0] * 5, "RescaleIntercept": [-10.0] * 5}
    single = write_series(tmp_path / "single", values, BitsStored=12, Modality="MR", **scale)
    expected, _ = load(workspace(tmp_path / "a", single))
    folder = tmp_path / "many"
    folder.mkdir()
    save(put_in(enhanced(planes(5), shared=SHARED), values, syntax), folder / "many.dcm", syntax)
    found, geometry = load(workspace(tmp_path / "b", folder))
    np.testing.assert_array_equal(found, expected)
    assert (tmp_path / "a" / "volume.nii").read_bytes() == (tmp_path / "b" / "volume.nii").read_bytes()
    assert [(s["frame"], s["rescale_slope"]) for s in geometry["slices"]] == [(n, 2) for n in range(1, 6)]


def test_frames_have_their_own_rescale_and_are_sorted_by_place(tmp_path):
    values = gray(4)
    frames = [
        {**plane, "RescaleSlope": 0.5 * n + 1, "RescaleIntercept": -float(n)} for n, plane in enumerate(planes(4))
    ]
    shared = {k: v for k, v in SHARED.items() if not k.startswith("Rescale")}
    order = [2, 0, 3, 1]
    ds = enhanced([frames[n] for n in order], shared=shared)
    folder = tmp_path / "d"
    folder.mkdir()
    save(put_in(ds, values[order], LITTLE), folder / "many.dcm")
    found, geometry = load(workspace(tmp_path / "ws", folder))
    np.testing.assert_array_equal(found, [values[n] * (0.5 * n + 1) - n for n in range(4)])
    assert [s["frame"] for s in geometry["slices"]] == [order.index(n) + 1 for n in range(4)]


@pytest.mark.parametrize("syntax", [LITTLE, JPEGLSLossless, RAW["deflated"]])
def test_a_multi_frame_object_in_a_zip_file_is_read(tmp_path, syntax):
    import zipfile

    values = gray(4)
    save(put_in(enhanced(planes(4), shared=SHARED), values, syntax), tmp_path / "many.dcm", syntax)
    with zipfile.ZipFile(tmp_path / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "many.dcm", "x/many.dcm")
    ws = tmp_path / "ws"
    run_stage(select_series.STAGE, ws, dicom=tmp_path / "all.zip")
    found, _ = load(ws)
    np.testing.assert_array_equal(found, 2 * values.astype(int) - 10)


@pytest.mark.parametrize(
    "damage, codes",
    [
        pytest.param(lambda data: data[:-1000], {"truncated-pixels"}, id="cut"),
        pytest.param(lambda data: data[:-8], {"truncated-pixels"}, id="no delimiter, or the last pixels"),
    ],
)
@pytest.mark.parametrize("syntax", [LITTLE, JPEGLSLossless, RLELossless])
def test_truncated_frames_leave_nothing_behind(tmp_path, damage, codes, syntax):
    folder = tmp_path / "d"
    folder.mkdir()
    path = save(put_in(enhanced(planes(4), shared=SHARED), gray(4), syntax), folder / "many.dcm", syntax)
    path.write_bytes(damage(path.read_bytes()))
    assert refused(workspace(tmp_path / "ws", folder)) in codes


@pytest.mark.parametrize("said", [3, 5])
def test_another_number_of_frames_than_are_described_is_refused(tmp_path, said):
    folder = tmp_path / "d"
    folder.mkdir()
    ds = put_in(enhanced(planes(4), shared=SHARED), gray(4), LITTLE)
    ds.NumberOfFrames = said
    save(ds, folder / "many.dcm")
    assert refused(workspace(tmp_path / "ws", folder)) == "frames-mismatch"


@pytest.mark.parametrize("syntax", [LITTLE, JPEGLSLossless, RLELossless])
def test_a_mosaic_is_the_volume_of_its_tiles(tmp_path, syntax):
    tiles = gray(7, (12, 13))
    picture = np.zeros((36, 39), "u2")
    for n, tile in enumerate(tiles):
        picture[n // 3 * 12 : n // 3 * 12 + 12, n % 3 * 13 : n % 3 * 13 + 13] = tile
    image = {"NumberOfImagesInMosaic": ["7"], "SliceNormalVector": ["0", "0", "1"]}
    ds = mosaic(7, tile=(12, 13), number=7, image=image)
    folder = tmp_path / "d"
    folder.mkdir()
    save(put_in(ds, picture[None], syntax), folder / "tiles.dcm", syntax)
    found, geometry = load(workspace(tmp_path / "ws", folder))
    np.testing.assert_array_equal(found, tiles)
    assert len({s["path"] for s in geometry["slices"]}) == 1


def test_the_sign_of_a_codestream_that_contradicts_its_header_is_refused(tmp_path):
    folder = tmp_path / "d"
    folder.mkdir()
    plane = np.full((32, 32), -1000, "i2")
    ds = put_in(enhanced(planes(2), shared=SHARED), np.stack([plane, plane]), JPEG2000Lossless)
    ds.PixelRepresentation = 0
    save(ds, folder / "many.dcm", JPEG2000Lossless)
    assert refused(workspace(tmp_path / "ws", folder)) == "codestream-mismatch"


def test_odd_sized_rle_images_are_exact(tmp_path):
    values = gray(4, (7, 9), high=65536)
    folder = write_series(tmp_path / "d", values, RLELossless)
    np.testing.assert_array_equal(load(workspace(tmp_path / "ws", folder))[0], values.astype(int) - 1024)


# SUV


def pet(tmp_path, values, name="d", syntax=LITTLE, slopes=None, dose=None, **more):
    """Write a PET series whose bed of 3 slices each starts 2 minutes after the one before."""
    item = Dataset()
    facts = {
        "RadionuclideTotalDose": 350e6,
        "RadionuclideHalfLife": 6586.2,
        "RadiopharmaceuticalStartTime": "231500",
        **(dose or {}),
    }
    for keyword, value in facts.items():
        if value is not ...:
            setattr(item, keyword, value)
    count = len(values)
    facts = {
        "Modality": "PT",
        "SOPClassUID": PositronEmissionTomographyImageStorage,
        "Manufacturer": "SIEMENS",
        "Units": "BQML",
        "DecayCorrection": "START",
        "CorrectedImage": ["ATTN", "DECY"],
        "SeriesDate": "20240301",
        "SeriesTime": "001500",
        "AcquisitionDate": "20240301",
        "AcquisitionTime": [f"00{15 + 2 * (k // 3)}00" for k in range(count)],
        "RescaleSlope": slopes or [1.5 + k for k in range(count)],
        "RescaleIntercept": 0.0,
        "PatientWeight": 73.5,
        "RadiopharmaceuticalInformationSequence": Sequence([item]),
        **more,
    }
    return write_series(tmp_path / name, values, syntax, **facts)


@pytest.mark.parametrize("syntax", [LITTLE, RLELossless])
@pytest.mark.parametrize("decay", ["START", "ADMIN"])
def test_suv_is_activity_times_weight_by_the_dose_that_is_left(tmp_path, decay, syntax):
    """SUV by IBSI's and QIBA's formula, computed apart from the raw values, over midnight: 23:15 to 00:15 is one hour."""
    values = gray(6, (9, 11))
    ws = workspace(tmp_path / "ws", pet(tmp_path, values, syntax=syntax, DecayCorrection=decay))
    found, geometry = load(ws, suv="bw")
    waited = (datetime(2024, 3, 1, 0, 15) - datetime(2024, 2, 29, 23, 15)).total_seconds()
    dose = 350e6 * 2 ** (-waited / 6586.2) if decay == "START" else 350e6
    activity = values * (1.5 + np.arange(6))[:, None, None]
    np.testing.assert_allclose(found, activity * 73500 / dose, rtol=1e-9)
    assert geometry["unit"] == "g/ml"
    assert read_nifti(ws / "volume.nii").unit == "g/ml"
    assert any("SUV" in text and decay in text for text in geometry["made"])


def test_without_asking_the_activity_stays_activity(tmp_path):
    values = gray(6, (9, 11))
    found, geometry = load(workspace(tmp_path / "ws", pet(tmp_path, values)))
    np.testing.assert_array_equal(found, values * (1.5 + np.arange(6))[:, None, None])
    assert geometry["unit"] == "BQML"


@pytest.mark.parametrize(
    "more, attribute",
    [
        pytest.param({"PatientWeight": ...}, "PatientWeight", id="no weight"),
        pytest.param({"PatientWeight": 0.0}, "PatientWeight", id="weight 0"),
        pytest.param({"PatientWeight": 73500.0}, "PatientWeight", id="weight in grams"),
        pytest.param({"dose": {"RadionuclideTotalDose": ...}}, "RadionuclideTotalDose", id="no dose"),
        pytest.param({"dose": {"RadionuclideTotalDose": 350.0}}, "RadionuclideTotalDose", id="dose in MBq"),
        pytest.param({"Units": "CPS"}, "Units", id="counts a second"),
        pytest.param({"DecayCorrection": "NONE"}, "DecayCorrection", id="not corrected for decay"),
        pytest.param({"CorrectedImage": ["DECY"]}, "CorrectedImage", id="not corrected for attenuation"),
        pytest.param({"RadiopharmaceuticalInformationSequence": ...}, "Radio", id="no isotope"),
    ],
)
def test_suv_that_can_not_be_computed_names_the_attribute_and_leaves_nothing(tmp_path, more, attribute):
    ws = workspace(tmp_path / "ws", pet(tmp_path, gray(6, (9, 11)), **more))
    with pytest.raises(MdError) as caught:
        run(ws, suv="bw")
    assert caught.value.code == "suv-not-computable"
    assert attribute in caught.value.message
    assert "73.5" not in f"{caught.value.message} {caught.value.numbers}"
    assert sorted(p.name for p in ws.iterdir()) == ["series.json", "series.root"]


def test_suv_of_what_is_no_pet_is_refused(tmp_path):
    assert refused(workspace(tmp_path / "ws", write_series(tmp_path / "d", gray())), suv="bw") == "suv-not-computable"


def test_no_weight_and_no_dose_are_written_anywhere(tmp_path):
    reporter = ListReporter()
    ws = workspace(tmp_path / "ws", pet(tmp_path, gray(6, (9, 11)), PatientWeight=81.625, dose={}))
    run(ws, reporter, suv="bw")
    written = [p for p in ws.rglob("*") if p.is_file() and p.name != "volume.nii"]
    texts = [p.read_text(errors="replace") for p in written] + [json.dumps(reporter.events)]
    assert any("g/ml" in text for text in texts)
    for secret in ("81.625", "81625", "350000000", "3.5e8", "3.5e+08", "Canary", "CANARY"):
        assert not [text for text in texts if secret in text], secret


# Memory


def peak_mib(tmp_path, count, slope):
    """Load `count` volumes of 2.5 MiB as one of four axes; return the peak of memory that the record has."""
    folder, slices, shape = tmp_path / f"d{count}", 5, (512, 512)
    frames = [{**plane, "TemporalPositionIndex": t + 1} for t in range(count) for plane in planes(slices)]
    folder.mkdir()
    values = np.arange(count, dtype="u2")[:, None, None, None] + np.zeros((count, slices, *shape), "u2")
    shared = {**SHARED, "RescaleSlope": slope}
    save(put_in(enhanced(frames, shared=shared), values.reshape(-1, *shape), LITTLE), folder / "many.dcm")
    ws = workspace(tmp_path / f"ws{count}", folder)
    command = [sys.executable, "-m", "mdcli", "load-volume", str(ws), "--on-many", "4d"]
    subprocess.run(command, check=True, env=md_environment(), capture_output=True)
    image = nibabel.load(ws / "volume.nii")
    assert image.shape == (512, 512, slices, count)
    assert [float(image.dataobj[3, 4, 2, t]) for t in range(count)] == [slope * t - 10 for t in range(count)]
    return json.loads((ws / "volume.record.json").read_text())["happened"]["peak_memory_mib"]


@pytest.mark.slow
@pytest.mark.parametrize("slope", [2.0, 0.3])
def test_a_fourth_axis_streams(tmp_path, slope):
    """Sixty volumes (150 MiB as stored) take no more memory than eight, but for what a frame's header takes."""
    assert peak_mib(tmp_path, 60, slope) < peak_mib(tmp_path, 8, slope) + 40
