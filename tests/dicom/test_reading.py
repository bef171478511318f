"""Frames of one file against the same images one a file, in every encoding, and tiles against their mosaic."""

import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from mdcli.dicom import decoding
from mdcli.dicom.headers import read_instance
from mdcli.dicom.multiframe import frames_of
from mdcli.dicom.opening import SourceFiles
from mdcli.dicom.pixels import file_digest, layouts
from mdcli.dicom.reading import read_stored
from mdcli.errors import DataError
from tests.dicom.test_codecs import lossless_jpeg, rle
from tests.made_series import LITTLE, jpeg_2000
from tests.multiframe_series import SHARED, enhanced, mosaic, planes, save

RAW = {
    "explicit": LITTLE,
    "implicit": str(ImplicitVRLittleEndian),
    "big endian": str(ExplicitVRBigEndian),
    "deflated": str(DeflatedExplicitVRLittleEndian),
}
CODECS = {
    "rle": str(RLELossless),
    "jpeg lossless": str(JPEGLosslessSV1),
    "jpeg-ls": str(JPEGLSLossless),
    "jpeg-2000": str(JPEG2000Lossless),
}


def stored(count=5, shape=(33, 37), dtype="u2", bits=12, seed=8):
    low = -(1 << (bits - 1)) if dtype[0] == "i" else 0
    values = np.random.default_rng(seed).integers(low, low + (1 << bits), (count, *shape)).astype(dtype)
    values[:, 0, :2] = low, low + (1 << bits) - 1
    return values


def codestream(plane, syntax, bits=12):
    """Return one frame, encoded."""
    if syntax == RLELossless:
        return rle(plane.view(f"u{plane.dtype.itemsize}"))
    if syntax == JPEG2000Lossless:
        return jpeg_2000(plane, bits)
    raw = plane.view(f"u{plane.dtype.itemsize}") & ((1 << bits) - 1)
    if syntax == JPEGLosslessSV1:
        return lossless_jpeg(raw, bits)
    from jpeg_ls import encode_array

    return bytes(encode_array(raw))


def put_in(ds, values, syntax, value=None, bits=12):
    """Put stored values (frames, rows, columns) into an object as its pixels."""
    ds.Rows, ds.Columns = values.shape[1:3]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = values.dtype.itemsize * 8, bits, bits - 1
    ds.PixelRepresentation = int(values.dtype.kind == "i")
    if syntax in RAW.values():
        order = ">" if syntax == ExplicitVRBigEndian else "<"
        raw = values.astype(values.dtype.newbyteorder(order)).tobytes()
        ds.PixelData = raw + bytes(len(raw) % 2)
    else:
        ds.PixelData = value or encapsulate([codestream(p, syntax, bits) for p in values], has_bot=False)
    ds["PixelData"].VR = "OB" if syntax in CODECS.values() else "OW"
    ds["PixelData"].is_undefined_length = syntax in CODECS.values()
    return ds


def write_frames(folder, values, syntax=LITTLE, value=None, bits=12, **more):
    """Write an enhanced MR object that holds these values as its frames."""
    folder.mkdir(exist_ok=True)
    ds = enhanced(planes(len(values)), shared=SHARED, **more)
    return save(put_in(ds, values, syntax, value, bits), folder / "many.dcm", syntax)


def frames(path, root=None, name=None):
    root = path.parent if root is None else root
    found = read_instance(path, name or path.name)
    with SourceFiles(root) as files:
        return frames_of(files, [found])


def read_all(root, instances, jobs=2):
    found, _ = layouts(instances)
    with SourceFiles(root) as files:
        return read_stored(files, instances, found, [None] * len(instances), jobs, lambda _n: None)


@pytest.mark.parametrize("syntax", [*RAW.values(), *CODECS.values()], ids=[*RAW, *CODECS])
@pytest.mark.parametrize("dtype", ["u2", "i2"])
def test_frames_of_every_encoding_have_their_values(tmp_path, syntax, dtype):
    values = stored(dtype=dtype)
    path = write_frames(tmp_path, values, syntax)
    instances = frames(path)
    out, reads = read_all(tmp_path, instances)
    assert out.dtype == values.dtype
    np.testing.assert_array_equal(out, values)
    assert [(r.low, r.high) for r in reads] == [(int(p.min()), int(p.max())) for p in values]
    # The digest of a file with frames is not that of any of them.
    assert {r.sha256 for r in reads} == {""}


@pytest.mark.parametrize("syntax", [*RAW.values(), *CODECS.values()], ids=[*RAW, *CODECS])
def test_frames_are_read_in_the_order_asked_for_not_in_the_files(tmp_path, syntax):
    values = stored(6)
    instances = frames(write_frames(tmp_path, values, syntax))
    order = [4, 0, 5, 2]
    for jobs in (1, 3):
        out, _ = read_all(tmp_path, [instances[n] for n in order], jobs)
        np.testing.assert_array_equal(out, values[order])


@pytest.mark.parametrize("syntax", [*RAW.values(), RLELossless])
def test_bytes_in_frames_of_odd_size_are_read(tmp_path, syntax):
    # 3 x 5: frames begin at odd offsets; in big-endian words a pair of bytes may belong to two frames.
    values = stored(4, (3, 5), "u1", 8)
    ds = enhanced(planes(4), shared=SHARED)
    put_in(ds, values, syntax, bits=8)
    if syntax == ExplicitVRBigEndian:
        ds.PixelData = np.frombuffer(ds.PixelData, "<u2").byteswap().tobytes()
    path = save(ds, tmp_path / "many.dcm", syntax)
    np.testing.assert_array_equal(pydicom.dcmread(path).pixel_array, values)
    np.testing.assert_array_equal(read_all(tmp_path, frames(path))[0], values)


@pytest.mark.parametrize("per_frame", [2, 3])
@pytest.mark.parametrize("table", [True, False], ids=["offset table", "no table"])
@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless, JPEGLosslessSV1])
def test_frames_in_several_fragments_are_joined(tmp_path, syntax, table, per_frame):
    values = stored()
    streams = [codestream(p, syntax) for p in values]
    value = encapsulate(streams, fragments_per_frame=per_frame, has_bot=table)
    path = write_frames(tmp_path, values, syntax, value)
    np.testing.assert_array_equal(read_all(tmp_path, frames(path))[0], values)


def test_an_extended_offset_table_is_no_obstacle(tmp_path):
    values = stored()
    value, offsets, lengths = encapsulate_extended([codestream(p, JPEGLSLossless) for p in values])
    more = {"ExtendedOffsetTable": offsets, "ExtendedOffsetTableLengths": lengths}
    path = write_frames(tmp_path, values, JPEGLSLossless, value, **more)
    np.testing.assert_array_equal(read_all(tmp_path, frames(path))[0], values)


@pytest.mark.parametrize("syntax", [LITTLE, RAW["deflated"], JPEGLSLossless])
def test_frames_in_a_zip_file_are_read(tmp_path, syntax):
    values = stored()
    path = write_frames(tmp_path / "in", values, syntax)
    with zipfile.ZipFile(tmp_path / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(path, "sub/many.dcm")
    one = read_instance(path, "!/sub/many.dcm")
    with SourceFiles(tmp_path / "all.zip") as files:
        instances = frames_of(files, [one])
    np.testing.assert_array_equal(read_all(tmp_path / "all.zip", instances)[0], values)


@pytest.mark.parametrize("extra", [2, 500])
def test_more_bytes_than_the_frames_need_are_told(tmp_path, extra):
    values = stored()
    ds = put_in(enhanced(planes(5), shared=SHARED), values, LITTLE)
    ds.PixelData += bytes(extra)
    instances = frames(save(ds, tmp_path / "many.dcm"))
    (finding,) = layouts(instances)[1]
    assert (finding.code, finding.numbers["found"] - finding.numbers["needed"]) == ("pixels-long", extra)
    np.testing.assert_array_equal(read_all(tmp_path, instances)[0], values)


def test_fewer_bytes_than_the_frames_need_are_refused_from_the_header(tmp_path):
    ds = put_in(enhanced(planes(5), shared=SHARED), stored(), LITTLE)
    ds.PixelData = ds.PixelData[:-2]
    with pytest.raises(DataError, match="pixels-short"):
        layouts(frames(save(ds, tmp_path / "many.dcm")))


def test_a_file_that_ends_in_its_frames_is_refused_from_the_header(tmp_path):
    path = write_frames(tmp_path, stored())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="truncated-pixels"):
        layouts(frames(path))


def test_a_deflated_object_with_fewer_frames_than_said_is_refused(tmp_path):
    ds = put_in(enhanced(planes(5), shared=SHARED), stored(), RAW["deflated"])
    ds.PixelData = ds.PixelData[:-2]
    instances = frames(save(ds, tmp_path / "many.dcm", RAW["deflated"]))
    with pytest.raises(DataError, match="pixels-short"):
        read_all(tmp_path, instances)


@pytest.mark.parametrize("syntax", CODECS.values(), ids=CODECS)
@pytest.mark.parametrize("cut", [1, 9, 200])
def test_a_compressed_object_that_ends_in_its_frames_is_refused(tmp_path, syntax, cut):
    path = write_frames(tmp_path, stored(), syntax)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(DataError, match="truncated-pixels"):
        read_all(tmp_path, frames(path))


@pytest.mark.parametrize("syntax", CODECS.values(), ids=CODECS)
def test_one_fragment_too_few_or_too_many_is_refused(tmp_path, syntax):
    values = stored()
    for count in (4, 6):
        streams = [codestream(values[n % 5], syntax) for n in range(count)]
        path = write_frames(tmp_path, values, syntax, encapsulate(streams, has_bot=False))
        with pytest.raises(DataError, match="bad-offsets"):
            read_all(tmp_path, frames(path))


def test_one_frame_that_no_codec_can_decode_is_refused_with_its_file(tmp_path):
    values = stored()
    streams = [codestream(p, JPEGLSLossless) for p in values]
    streams[3] = b"\xff\xd8\xff" + bytes(61)
    path = write_frames(tmp_path, values, JPEGLSLossless, encapsulate(streams, has_bot=False))
    with pytest.raises(DataError, match=r"many\.dcm") as caught:
        read_all(tmp_path, frames(path))
    assert caught.value.code == "undecodable"


@pytest.mark.skipif(not decoding._FORK, reason="the crash is planted by forking")
def test_a_codec_that_dies_in_one_frame_is_reported_with_the_file(tmp_path, monkeypatch):
    import multiprocessing
    import os
    import signal

    real = decoding.read_slice

    def die(files, instance, *rest):
        if instance.frame == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(files, instance, *rest)

    path = write_frames(tmp_path, stored(), JPEGLSLossless)
    monkeypatch.setattr(decoding, "read_slice", die)
    with pytest.raises(DataError, match=r"many\.dcm") as caught:
        read_all(tmp_path, frames(path))
    assert caught.value.code == "decoder-crashed"
    assert "signal 9" in caught.value.message
    assert multiprocessing.active_children() == []


def test_frames_said_to_be_a_million_by_a_small_file_are_refused_before_anything_is_allocated(tmp_path):
    # A frame takes at least the 8 bytes of its item; the pixels that the header claims would be 4 TiB.
    values = stored(2)
    path = write_frames(tmp_path, values, JPEGLSLossless)
    one = frames(path)[0]
    huge = [one.__class__(**{**vars(one), "attributes": {**one.attributes, "Rows": 65535, "Columns": 65535}})] * 512
    with pytest.raises(DataError, match="compression-bomb"):
        layouts(huge)


def tiles(folder, ds, syntax):
    path = save(ds, folder / "tiles.dcm", syntax)
    found = read_instance(path, path.name)
    with SourceFiles(folder) as files:
        return frames_of(files, [found])


@pytest.mark.parametrize("syntax", [*RAW.values(), *CODECS.values()], ids=[*RAW, *CODECS])
@pytest.mark.parametrize("dtype", ["u2", "i2"])
def test_tiles_of_a_mosaic_are_cut_out_of_every_encoding(tmp_path, syntax, dtype):
    """Seven tiles of 12 x 13 lie row by row in a picture of 3 x 3 tiles."""
    values = stored(7, (12, 13), dtype)
    picture = np.zeros((36, 39), dtype)
    for n, tile in enumerate(values):
        picture[n // 3 * 12 : n // 3 * 12 + 12, n % 3 * 13 : n % 3 * 13 + 13] = tile
    ds = mosaic(
        7, tile=(12, 13), number=7, image={"NumberOfImagesInMosaic": ["7"], "SliceNormalVector": ["0", "0", "1"]}
    )
    put_in(ds, picture[None], syntax)
    instances = tiles(tmp_path, ds, syntax)
    assert len(instances) == 7
    out, _ = read_all(tmp_path, instances)
    np.testing.assert_array_equal(out, values)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
    dtype=st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i4"]),
    syntax=st.sampled_from([LITTLE, RAW["big endian"], RAW["deflated"], CODECS["rle"]]),
    seed=st.integers(0, 1000),
)
def test_frames_of_any_shape_size_and_sign_are_those_that_were_written(tmp_path_factory, shape, dtype, syntax, seed):
    bits = 8 * int(dtype[1])
    folder = Path(tmp_path_factory.mktemp("any"))
    values = stored(shape[0], (shape[1], shape[2] + 1), dtype, bits, seed)
    ds = put_in(enhanced(planes(shape[0]), shared=SHARED), values, syntax, bits=bits)
    if syntax == RAW["big endian"] and bits == 8:
        ds["PixelData"].VR = "OB"
    instances = frames(save(ds, folder / "many.dcm", syntax))
    np.testing.assert_array_equal(read_all(folder, instances)[0], values)


def test_the_digest_of_a_file_with_frames_is_that_of_the_whole_file(tmp_path):
    import hashlib

    path = write_frames(tmp_path, stored(), JPEGLSLossless)
    with SourceFiles(tmp_path) as files:
        found = {file_digest(files, one) for one in frames(path)}
    assert found == {hashlib.sha256(path.read_bytes()).hexdigest()}


@pytest.mark.parametrize(
    "name", ["emri_small_big_endian", "emri_small_RLE", "emri_small_jpeg_ls_lossless", "emri_small_jpeg_2k_lossless"]
)
def test_ten_real_frames_in_every_encoding_are_those_that_pydicom_reads(shared_data, name):
    folder = shared_data / "30_enhanced_mr_five_encodings" / "dicom"
    expected = pydicom.dcmread(folder / "emri_small" / "emri_small.dcm").pixel_array
    instances = frames(folder / name / f"{name}.dcm")
    np.testing.assert_array_equal(read_all(folder / name, instances)[0], expected)
