"""Codecs by name, in processes that may die."""

import os
import signal

import numpy as np
import pytest
from pydicom.encaps import encapsulate, generate_fragments
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from mdcli.dicom import decoding
from mdcli.dicom.codecs import decode_frame
from mdcli.dicom.fragments import locate_frames
from mdcli.dicom.opening import SourceFiles
from mdcli.dicom.pixels import layouts
from mdcli.dicom.reading import read_stored
from mdcli.errors import DataError, MissingError
from tests.made_series import COMPRESSED, DELIMITER, encoded, jpeg_2000, scan, write_series, write_slice


def read_all(folder, instances=None, jobs=2):
    instances = scan(folder) if instances is None else instances
    found, _ = layouts(instances)
    with SourceFiles(folder) as files:
        return read_stored(files, instances, found, [None] * len(instances), jobs, lambda _n: None)


def volume(count=7, shape=(36, 40)):
    return np.random.default_rng(3).integers(0, 4096, (count, *shape)).astype("u2")


@pytest.mark.parametrize("syntax", COMPRESSED.values(), ids=COMPRESSED)
@pytest.mark.parametrize("jobs", [1, 3])
def test_workers_return_every_slice_in_its_place(tmp_path, syntax, jobs):
    stored = volume()
    write_series(tmp_path, stored, syntax, BitsStored=12)
    instances = sorted(scan(tmp_path), key=lambda i: i.get("InstanceNumber"))
    out, reads = read_all(tmp_path, instances, jobs)
    np.testing.assert_array_equal(out, stored)
    assert [(r.low, r.high) for r in reads] == [(int(p.min()), int(p.max())) for p in stored]


def test_started_anew_workers_send_pixels_through_the_pipe(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "_FORK", False)
    stored = volume(3)
    write_series(tmp_path, stored, JPEGLSLossless, BitsStored=12)
    out, _ = read_all(tmp_path, sorted(scan(tmp_path), key=lambda i: i.get("InstanceNumber")))
    np.testing.assert_array_equal(out, stored)


def test_a_series_may_mix_raw_and_compressed_images(tmp_path):
    stored = volume(4)
    write_series(tmp_path, stored, JPEG2000Lossless, BitsStored=12)
    path = sorted(tmp_path.iterdir())[0]
    (first,) = [i for i in scan(tmp_path) if i.path == path.name]
    k = first.get("InstanceNumber") - 1
    write_slice(path, stored[k], BitsStored=12, InstanceNumber=k + 1, SOPInstanceUID=first.get("SOPInstanceUID"))
    out, _ = read_all(tmp_path, sorted(scan(tmp_path), key=lambda i: i.get("InstanceNumber")))
    np.testing.assert_array_equal(out, stored)


def refused(folder):
    with pytest.raises(DataError) as caught:
        read_all(folder)
    return caught.value


@pytest.mark.parametrize(
    "syntax, value, code",
    [
        pytest.param(JPEG2000Lossless, encapsulate([b"\x00" * 64]) + DELIMITER, "undecodable", id="no codestream"),
        pytest.param(
            JPEGLSLossless, encapsulate([b"\xff\xd8" + b"\x00" * 64]) + DELIMITER, "undecodable", id="JPEG-LS of zeros"
        ),
        pytest.param(JPEG2000Lossless, encapsulate([b"\x00\x00"])[:20], "truncated-pixels", id="no delimiter"),
        pytest.param(JPEGLSLossless, b"\xfe\xff\x00\xe0\xff\xff\xff\x7f", "truncated-pixels", id="an item of 2 GiB"),
        pytest.param(JPEGLSLossless, b"\x00" * 64, "bad-encapsulation", id="no item"),
    ],
)
def test_what_no_codec_can_decode_is_refused_by_name(tmp_path, syntax, value, code):
    write_slice(tmp_path / "bad.dcm", volume(1)[0], syntax, value=encapsulate([b"12"]), BitsStored=12)
    (one,) = scan(tmp_path)
    data = (tmp_path / "bad.dcm").read_bytes()[: one.pixel_offset] + value
    (tmp_path / "bad.dcm").write_bytes(data)
    error = refused(tmp_path)
    assert error.code == code
    assert error.message.startswith("bad.dcm")


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless])
def test_a_codestream_of_another_size_is_refused(tmp_path, syntax):
    value = encoded(volume(1, (48, 40))[0], syntax, 12)
    write_slice(tmp_path / "a.dcm", volume(1)[0], syntax, value=value, BitsStored=12)
    assert refused(tmp_path).code == "codestream-mismatch"


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless])
def test_a_codestream_with_more_than_the_header_allows_is_refused(tmp_path, syntax):
    plane = np.full((32, 32), 4095, "u2")
    write_slice(tmp_path / "a.dcm", plane, syntax, value=encoded(plane, syntax, 12), BitsStored=11)
    assert refused(tmp_path).code == "codestream-mismatch"


def test_a_negative_codestream_under_an_unsigned_header_is_refused(tmp_path):
    plane = np.full((32, 32), -1000, "i2")
    value = encoded(plane, JPEG2000Lossless, 12)
    write_slice(tmp_path / "a.dcm", plane, JPEG2000Lossless, value=value, BitsStored=12, PixelRepresentation=0)
    assert refused(tmp_path).code == "codestream-mismatch"


def test_an_unsigned_codestream_under_a_signed_header_is_twos_complement(tmp_path):
    plane = np.resize(np.array([-2000, -1, 0, 1999], "i2"), (32, 32))
    value = encoded((plane & 0x1FFF).astype("u2"), JPEG2000Lossless, 13)
    write_slice(tmp_path / "a.dcm", plane, JPEG2000Lossless, value=value, BitsStored=13)
    np.testing.assert_array_equal(read_all(tmp_path)[0][0], plane)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless])
def test_fewer_bits_than_a_signed_header_has_may_not_turn_large_values_negative(tmp_path, syntax):
    # 12 unsigned bits under 16 signed ones: whether 3000 is 3000 or -1096 is said nowhere.
    plane = np.resize(np.array([0, 5, 3000], "u2"), (32, 32))
    value = encoded(plane, syntax, 12)
    write_slice(tmp_path / "a.dcm", plane, syntax, value=value, BitsStored=16, PixelRepresentation=1)
    assert refused(tmp_path).code == "codestream-mismatch"


def test_fewer_bits_than_a_signed_header_has_are_read_where_no_value_has_the_sign_bit(tmp_path):
    plane = np.resize(np.array([0, 5, 2047], "i2"), (32, 32))
    value = encoded(plane.astype("u2"), JPEG2000Lossless, 12)
    write_slice(tmp_path / "a.dcm", plane, JPEG2000Lossless, value=value, BitsStored=16)
    np.testing.assert_array_equal(read_all(tmp_path)[0][0], plane)


def test_near_lossless_jpeg_ls_says_so():
    from jpeg_ls import encode_array

    found = decode_frame("jpeg-ls", bytes(encode_array(volume(1)[0], lossy_error=2)), 36, 40, 1, 16)
    assert found.lossy == "JPEG-LS, error up to 2"
    assert np.abs(found.samples.astype(int) - volume(1)[0]).max() <= 2


@pytest.mark.parametrize("ratios, lossy", [(None, None), ([4], "JPEG 2000, irreversible wavelet")])
def test_the_wavelet_says_whether_jpeg_2000_lost_something(ratios, lossy):
    more = {"compression_ratios": ratios} if ratios else {}
    stream = jpeg_2000(volume(1, (64, 64))[0], 12, **more)
    assert decode_frame("jpeg-2000", stream, 64, 64, 1, 16).lossy == lossy


def test_a_frame_in_many_fragments_is_one_frame():
    stored = volume(1)[0]
    _, whole = generate_fragments(encoded(stored, JPEGLSLossless, 12))
    value = encapsulate([whole], fragments_per_frame=3) + DELIMITER
    (place,) = locate_frames(lambda at, length: value[at : at + length], 0, len(value), 1, "jpeg-ls")
    assert len(place) == 3
    found = decode_frame("jpeg-ls", b"".join(value[at : at + length] for at, length in place), 36, 40, 1, 16)
    np.testing.assert_array_equal(found.samples, stored)


@pytest.mark.skipif(not decoding._FORK, reason="the crash is planted by forking")
def test_a_codec_that_dies_is_reported_with_its_file(tmp_path, monkeypatch):
    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    write_series(tmp_path, volume(3), JPEGLSLossless, BitsStored=12)
    monkeypatch.setattr(decoding, "read_slice", die)
    error = refused(tmp_path)
    assert error.code == "decoder-crashed"
    assert "signal 9" in error.message
    assert ".dcm" in error.message


@pytest.mark.skipif(not decoding._FORK, reason="needs RLIMIT_AS")
def test_a_codec_that_wants_too_much_memory_is_stopped(tmp_path, monkeypatch):
    def greedy(*_):
        return np.ones(4 << 30, np.uint8)

    write_series(tmp_path, volume(2), JPEGLSLossless, BitsStored=12)
    monkeypatch.setattr(decoding, "read_slice", greedy)
    assert refused(tmp_path).code == "decoder-memory"


def test_a_missing_file_stays_a_missing_file(tmp_path):
    write_series(tmp_path, volume(2), RLELossless, BitsStored=12)
    instances = scan(tmp_path)
    (tmp_path / instances[1].path).unlink()
    with pytest.raises(MissingError, match="source-missing"):
        read_all(tmp_path, instances)


def test_no_worker_is_left_behind(tmp_path):
    import multiprocessing

    write_series(tmp_path, volume(3), JPEGLSLossless, BitsStored=12)
    read_all(tmp_path)
    assert multiprocessing.active_children() == []
