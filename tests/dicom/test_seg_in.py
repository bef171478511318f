"""SEGs of every type, encoding and order, made by highdicom and pydicom: neither shares code with the reader."""

from __future__ import annotations

import copy
import zlib
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from highdicom.seg import Segmentation, SegmentDescription
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydicom.encaps import encapsulate
from pydicom.sr.codedict import codes
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from mdcli.dicom.seg_in import Seg, open_frames, read_seg_header
from mdcli.errors import DataError, MissingError
from tests.checking.segs import masks, series, write_seg
from tests.made_series import jpeg_2000

DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"
IMAGES = series()


def made(
    path: Path,
    pixels: Any,
    kind: str = "BINARY",
    syntax: str = ExplicitVRLittleEndian,
    images: Any = None,
    names: Any = None,
    count: int | None = None,
    **more: Any,
) -> Path:
    """Write a SEG by highdicom of masks (k, j, i, segment), of a label map (k, j, i), or of a `highdicom.Volume` of masks."""
    if count is None:
        count = pixels.shape[3] if pixels.ndim == 4 else int(pixels.max())
    algorithm = hd.AlgorithmIdentificationSequence(name="net", version="2", family=codes.DCM.ArtificialIntelligence)
    described = [
        SegmentDescription(
            n,
            (names or [f"part {n}" for n in range(1, count + 1)])[n - 1],
            codes.SCT.Organ,
            codes.SCT.Liver,
            "AUTOMATIC",
            algorithm_identification=algorithm,
            display_color=hd.color.CIELabColor.from_rgb(200, 40, 10) if kind != "LABELMAP" else None,
        )
        for n in range(1, count + 1)
    ]
    seg = Segmentation(
        copy.deepcopy(list(images or IMAGES)),
        pixels,
        kind,
        described,
        generate_uid(),
        1,
        generate_uid(),
        1,
        "maker",
        "model",
        "1",
        "serial",
        transfer_syntax_uid=syntax,
        **more,
    )
    seg.save_as(path)
    return path


def frames_of(path: Path, jobs: int = 1) -> tuple[Seg, list[np.ndarray]]:
    seg = read_seg_header(path)
    with open_frames(path, seg, jobs) as frames:
        return seg, [np.array(frames.frame(n)) for n in range(len(seg.frames))]


def held(path: Path, count: int, shape: tuple[int, ...], jobs: int = 1) -> np.ndarray:
    """Return the frames as (k, j, i, segment) by their height, which is -400 + 3 k in an axial series of `tests.seg_cases`."""
    seg, planes = frames_of(path, jobs)
    found = np.zeros((*shape, count), np.uint8)
    for frame, plane in zip(seg.frames, planes, strict=True):
        k = round((frame.origin[2] + 400) / 3)
        for n in range(count):
            found[k, ..., n] = plane == n + 1 if frame.segment is None else found[k, ..., n]
        if frame.segment is not None:
            found[k, ..., frame.segment - 1] = plane
    return found


def edited(path: Path, edit: Any, syntax: str | None = None) -> Path:
    """Change a SEG's data set in place."""
    dataset = pydicom.dcmread(path)
    edit(dataset)
    if syntax is not None:
        dataset.file_meta.TransferSyntaxUID = syntax
    implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    # Every element is decoded before it is written in another byte order.
    dataset.walk(lambda _, element: element.value)
    dataset.file_meta.FileMetaInformationVersion = b"\0\1"
    pydicom.dcmwrite(path, dataset, implicit_vr=implicit, little_endian=little, force_encoding=True)
    return path


def refused(path: Path, kind: Any = DataError) -> str:
    with pytest.raises(kind) as caught:
        frames_of(path)
    assert "Secretname" not in str(caught.value)
    return caught.value.code


# Encodings


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_frames_that_share_bytes_are_taken_apart(tmp_path, syntax):
    path = made(tmp_path / "seg.dcm", masks(), syntax=syntax)
    np.testing.assert_array_equal(held(path, 2, (5, 7, 11)), masks())


def test_empty_frames_may_be_kept(tmp_path):
    path = made(tmp_path / "seg.dcm", masks(), omit_empty_frames=False)
    seg = read_seg_header(path)
    assert len(seg.frames) == 10
    np.testing.assert_array_equal(held(path, 2, (5, 7, 11)), masks())


@pytest.mark.parametrize("vr", ["OB", "OW"])
def test_single_bits_in_big_endian_words_are_swapped_back(tmp_path, vr):
    def words(ds):
        data = ds.PixelData + b"\0" * (len(ds.PixelData) % 2)
        # PS3.5 8.1.1 and 7.3: the first pixel is in the lowest bit of a word, whose higher byte comes first in OW.
        ds.PixelData = np.frombuffer(data, "<u2").byteswap().tobytes() if vr == "OW" else data
        ds["PixelData"].VR = vr

    path = edited(write_seg(tmp_path / "seg.dcm", IMAGES), words, ExplicitVRBigEndian)
    np.testing.assert_array_equal(held(path, 2, (5, 7, 11)), masks())


def test_a_deflated_data_set_is_inflated(tmp_path):
    path = edited(write_seg(tmp_path / "seg.dcm", IMAGES), lambda ds: None, DeflatedExplicitVRLittleEndian)
    np.testing.assert_array_equal(held(path, 2, (5, 7, 11)), masks())


def encapsulated(path: Path, streams: list[bytes], syntax: str) -> Path:
    def put(ds):
        ds.PixelData = encapsulate([s + b"\0" * (len(s) % 2) for s in streams])
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True

    return edited(path, put, syntax)


def bit_frames(path: Path) -> list[np.ndarray]:
    return [np.array(p) for p in frames_of(path)[1]]


def test_deflated_frames_are_inflated_one_by_one(tmp_path):
    path = write_seg(tmp_path / "seg.dcm", IMAGES)
    streams = []
    for plane in bit_frames(path):
        raw = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        streams.append(raw.compress(np.packbits(plane.ravel(), bitorder="little").tobytes()) + raw.flush())
    path = encapsulated(path, streams, DEFLATED_FRAMES)
    np.testing.assert_array_equal(held(path, 2, (5, 7, 11), jobs=2), masks())


def rle(data: bytes) -> bytes:
    """Return one RLE segment of literal runs, with its header. Source: PS3.5 G.3, G.5."""
    runs = b"".join(bytes([len(data[n : n + 128]) - 1]) + data[n : n + 128] for n in range(0, len(data), 128))
    header = np.zeros(16, "<u4")
    header[:2] = 1, 64
    return header.tobytes() + runs


@pytest.mark.parametrize("form", ["a byte for each pixel", "packed"])
def test_single_bits_in_rle_may_be_packed_or_not(tmp_path, form):
    path = write_seg(tmp_path / "seg.dcm", IMAGES)
    planes = bit_frames(path)
    if form == "packed":
        streams = [rle(np.packbits(p.ravel(), bitorder="little").tobytes()) for p in planes]
    else:
        streams = [rle(p.astype(np.uint8).tobytes()) for p in planes]
    path = encapsulated(path, streams, RLELossless)
    np.testing.assert_array_equal(held(path, 2, (5, 7, 11), jobs=2), masks())


BIG = series(shape=(3, 40, 45))


def big_masks() -> np.ndarray:
    found = np.zeros((3, 40, 45, 2), np.uint8)
    found[0:2, 3:30, 5:20, 0] = 1
    found[1:3, 20:39, 2:44, 1] = 1
    found[2, 0, 44, 1] = 1
    return found


def test_a_codestream_of_one_bit_is_read(tmp_path):
    # highdicom writes it; no pixel count is a multiple of 8, so that frames share bytes once they are decoded.
    path = made(tmp_path / "seg.dcm", big_masks()[:, :39, :], syntax=JPEG2000Lossless, images=series(shape=(3, 39, 45)))
    np.testing.assert_array_equal(held(path, 2, (3, 39, 45), jobs=2), big_masks()[:, :39])


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless], ids=["rle", "jpeg-2000", "jpeg-ls"])
@pytest.mark.parametrize("kind", ["FRACTIONAL", "LABELMAP"])
def test_whole_bytes_are_decoded_by_every_codec(tmp_path, syntax, kind):
    both, one = big_masks(), big_masks()[..., 0]
    pixels = both if kind == "FRACTIONAL" else one + 2 * (both[..., 1] & ~one)
    more = {"max_fractional_value": 200} if kind == "FRACTIONAL" else {}
    # highdicom encodes JPEG 2000 of whole bytes by a package that is not here.
    native = ExplicitVRLittleEndian if syntax == JPEG2000Lossless else syntax
    path = made(tmp_path / "seg.dcm", pixels.copy(), kind, native, BIG, **more)
    if native != syntax:
        encapsulated(path, [jpeg_2000(plane, 8) for plane in frames_of(path)[1]], syntax)
    seg, planes = frames_of(path, 2)
    found = np.zeros(pixels.shape, int)
    for frame, plane in zip(seg.frames, planes, strict=True):
        k = round((frame.origin[2] + 400) / 3)
        if kind == "FRACTIONAL":
            found[k, ..., frame.segment - 1] = plane
        else:
            found[k] = plane
    np.testing.assert_array_equal(found, pixels.astype(int) * (200 if kind == "FRACTIONAL" else 1))


def test_labels_of_16_bits_are_read(tmp_path):
    pixels = np.zeros((5, 7, 11), np.uint16)
    pixels[1, 2:5, 3:8], pixels[3, 1, 1] = 1, 300
    path = made(tmp_path / "seg.dcm", pixels, "LABELMAP")
    seg, planes = frames_of(path)
    assert seg.bits_allocated == 16 and len(seg.numbers) == 300
    assert sorted({int(v) for plane in planes for v in np.unique(plane)}) == [0, 1, 300]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 13),
    columns=st.integers(1, 13),
    slices=st.integers(1, 5),
    segments=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
    keep=st.booleans(),
    order=st.randoms(use_true_random=False),
)
def test_any_masks_come_back_whatever_their_size_and_order(
    tmp_path, rows, columns, slices, segments, seed, keep, order
):
    # highdicom gives a frame of fewer than 8 pixels a byte of its own, against PS3.5 8.1.1.
    assume(rows * columns >= 8)
    shape = (slices, rows, columns)
    random = np.random.default_rng(seed)
    pixels = (random.random((*shape, segments)) < random.random()).astype(np.uint8)
    pixels[0, 0, 0, :] = 1
    path = made(tmp_path / "any.dcm", pixels, images=series(shape=shape), omit_empty_frames=not keep)
    _, planes = frames_of(path)
    turns = list(range(len(planes)))
    order.shuffle(turns)

    def shuffle(ds):
        groups = ds.PerFrameFunctionalGroupsSequence
        ds.PerFrameFunctionalGroupsSequence = [groups[n] for n in turns]
        bits = np.concatenate([planes[n].ravel() for n in turns])
        data = np.packbits(bits, bitorder="little").tobytes()
        ds.PixelData = data + b"\0" * (len(data) % 2)

    edited(path, shuffle)
    np.testing.assert_array_equal(held(path, segments, shape), pixels)


# What a file says


def test_a_segment_is_described_whole(tmp_path):
    def more(ds):
        kidney = ds.SegmentSequence[0]
        laterality = pydicom.Dataset()
        laterality.CodeValue, laterality.CodingSchemeDesignator, laterality.CodeMeaning = "7771000", "SCT", "Left"
        kidney.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [laterality]
        kidney.TrackingID, kidney.TrackingUID = "lesion 4", "1.2.3.4"

    path = edited(made(tmp_path / "seg.dcm", masks()), more)
    seg = read_seg_header(path)
    assert seg.segments[0].entry == {
        "name": "part 1",
        "category": {"value": codes.SCT.Organ.value, "scheme": "SCT", "meaning": codes.SCT.Organ.meaning},
        "type": {"value": "10200004", "scheme": "SCT", "meaning": "Liver"},
        "type_modifiers": [{"value": "7771000", "scheme": "SCT", "meaning": "Left"}],
        "colour": [200, 40, 10],
        "algorithm": {"type": "AUTOMATIC", "name": "net", "version": "2"},
        "original_number": 1,
        "tracking_id": "lesion 4",
        "tracking_uid": "1.2.3.4",
    }


def test_a_name_is_shown_without_control_characters_and_in_its_character_set(tmp_path):
    def name(ds):
        ds.SpecificCharacterSet = "ISO_IR 192"
        ds.SegmentSequence[0].SegmentLabel = "Leber für \x1b[2J"

    seg = read_seg_header(edited(write_seg(tmp_path / "seg.dcm", IMAGES), name))
    assert seg.segments[0].name == "Leber für \\x1b[2J"


def test_a_palette_gives_the_colours_of_a_label_map(tmp_path):
    lut = hd.PaletteColorLUTTransformation.from_colors(["black", "red", "blue"])
    pixels = np.zeros((5, 7, 11), np.uint8)
    pixels[1, 2:5, 3:8], pixels[2, 1, 1] = 1, 2
    path = made(tmp_path / "seg.dcm", pixels, "LABELMAP", palette_color_lut_transformation=lut)
    seg = read_seg_header(path)
    assert [s.entry["colour"] for s in seg.segments if not s.background] == [[255, 0, 0], [0, 0, 255]]


def test_background_is_no_segment_described_or_not(tmp_path):
    pixels = np.zeros((5, 7, 11), np.uint8)
    pixels[1, 2:5, 3:8] = 1
    path = made(tmp_path / "seg.dcm", pixels, "LABELMAP")
    assert any(s.SegmentNumber == 0 for s in pydicom.dcmread(path).SegmentSequence)
    assert read_seg_header(path).numbers == [1]
    edited(path, lambda ds: setattr(ds, "SegmentSequence", [s for s in ds.SegmentSequence if s.SegmentNumber]))
    seg = read_seg_header(path)
    assert seg.numbers == [1] and seg.background == {0}


def test_the_value_of_padding_is_no_segment(shared_data):
    path = shared_data / "05_tiny_ct_seg_bitpacking" / "dicom" / "labelmap" / "sparse-labelmap-ppv5.dcm"
    seg = read_seg_header(path)
    assert (seg.numbers, seg.background) == ([1], {0, 5})


# What is refused


BROKEN = {
    "more frames than described": lambda ds: setattr(
        ds, "NumberOfFrames", len(ds.PerFrameFunctionalGroupsSequence) + 5
    ),
    "fewer pixels than frames": lambda ds: setattr(ds, "PixelData", ds.PixelData[:-4]),
    "more pixels than frames": lambda ds: setattr(ds, "PixelData", ds.PixelData + b"\0\0\0\0"),
    "no rows": lambda ds: setattr(ds, "Rows", 0),
    "a number described twice": lambda ds: setattr(ds.SegmentSequence[1], "SegmentNumber", 1),
    "a frame of no described segment": lambda ds: setattr(
        ds.PerFrameFunctionalGroupsSequence[2].SegmentIdentificationSequence[0], "ReferencedSegmentNumber", 9
    ),
    "no segment named": lambda ds: delattr(ds.PerFrameFunctionalGroupsSequence[2], "SegmentIdentificationSequence"),
    "no pixels": lambda ds: delattr(ds, "PixelData"),
    "no segments": lambda ds: delattr(ds, "SegmentSequence"),
    "another type": lambda ds: setattr(ds, "SegmentationType", "FRACTIONAL"),
    "a spacing of zero": lambda ds: setattr(
        ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0], "PixelSpacing", [0, 1]
    ),
    "a frame without a position": lambda ds: delattr(ds.PerFrameFunctionalGroupsSequence[1], "PlanePositionSequence"),
    "three samples a pixel": lambda ds: setattr(ds, "SamplesPerPixel", 3),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_seg_that_contradicts_itself_is_refused(tmp_path, what):
    assert refused(edited(write_seg(tmp_path / "seg.dcm", IMAGES), BROKEN[what])) == "seg-broken"


def test_a_fraction_over_the_maximum_is_refused(tmp_path):
    path = made(tmp_path / "seg.dcm", masks(), "FRACTIONAL")
    assert refused(edited(path, lambda ds: setattr(ds, "MaximumFractionalValue", 254))) == "seg-broken"


def test_a_file_that_is_no_seg_is_refused(tmp_path):
    text = tmp_path / "text.dcm"
    text.write_bytes(b"no DICOM" * 100)
    assert refused(text) == "not-seg"
    assert (
        refused(edited(write_seg(tmp_path / "ct.dcm", IMAGES), lambda ds: setattr(ds, "SOPClassUID", "1.2")))
        == "not-seg"
    )
    assert refused(tmp_path / "absent.dcm", MissingError) == "no-source"


@pytest.mark.parametrize("name", ["sm_control", "sm_control_labelmap", "sm_dots_tiled_full", "sm_numbers"])
def test_a_seg_on_a_slide_is_refused_by_name(shared_data, name):
    assert refused(shared_data / "32_segs_highdicom" / "dicom" / "seg" / f"seg_image_{name}.dcm") == "seg-on-slide"


def test_a_damaged_file_is_refused_wherever_it_is_cut(tmp_path):
    whole = write_seg(tmp_path / "seg.dcm", IMAGES).read_bytes()
    cut = tmp_path / "cut.dcm"
    for end in [0, 100, 140, 200, *range(300, len(whole) - 1, 211)]:
        cut.write_bytes(whole[:end])
        assert refused(cut) in ("not-seg", "seg-broken", "seg-syntax"), end


def test_a_tiny_deflated_file_may_not_claim_a_huge_frame(tmp_path):
    def huge(ds):
        ds.Rows = ds.Columns = 65535
        ds.PixelData = bytes(4)

    path = edited(write_seg(tmp_path / "seg.dcm", IMAGES), huge, DeflatedExplicitVRLittleEndian)
    assert refused(path) == "seg-broken"


def test_compressed_frames_may_not_claim_more_than_their_file_can_hold(tmp_path):
    path = encapsulated(write_seg(tmp_path / "seg.dcm", IMAGES), [rle(b"\0")] * 8, RLELossless)

    def huge(ds):
        ds.Rows = ds.Columns = 40000
        ds["PixelData"].is_undefined_length = True

    count = read_seg_header(path)
    assert len(count.frames) == 6
    assert refused(edited(path, huge)) == "too-many-pixels"


def test_labels_that_were_compressed_with_loss_are_refused(tmp_path):
    from openjpeg import encode

    path = made(tmp_path / "seg.dcm", big_masks(), "FRACTIONAL", images=BIG)
    streams = [
        encode(p, bits_stored=8, photometric_interpretation=2, compression_ratios=[5]) for p in frames_of(path)[1]
    ]
    assert refused(encapsulated(path, streams, "1.2.840.10008.1.2.4.91")) == "lossy-seg"


def test_a_decoder_that_dies_is_named(tmp_path, monkeypatch):
    import os
    import signal

    from mdcli.dicom import seg_decoding

    monkeypatch.setattr(seg_decoding, "_decoded", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    path = made(tmp_path / "seg.dcm", big_masks(), "FRACTIONAL", RLELossless, BIG)
    assert refused(path) == "decoder-crashed"
