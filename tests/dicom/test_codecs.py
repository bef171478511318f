"""Every codec against values known beforehand, and against the decoders of dcmtk."""

import base64
import os
import re
import struct
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.encaps import generate_frames

from mdcli.dicom.codecs import SYNTAXES, _read_wavelets, decode_frame
from mdcli.dicom.fragments import locate_frames
from mdcli.errors import DataError
from tests.made_series import write_slice

JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
# 12 x 16, made by OpenJPH 0.26.3 (imagecodecs 2026.3.6) from the arrays in `known`.
HTJ2K = {
    "u16": """
/0//UQApQAAAAAAQAAAADAAAAAAAAAAAAAAAEAAAAAwAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCIkJCQkJCQkJ
CQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAIwAAf+TwAAmdYwFB3QAAMAAE0AAEwDq5AQHdAC+yAUHdADAABPAABOA
bMImA4J0AJe+9ACiNADAABVwAAVoFKEIRf6gwjMCdgC+tC/tS/vSwIQBvrYAwAAr4AAWuAgggAACCCDw54p6coJ3AHAX7uAO7uAO7uAO7v76HO
B79nOB7LoA/9k=
""",
    "i16": """
/0//UQApQAAAAAAQAAAADAAAAAAAAAAAAAAAEAAAAAwAAAAAAAAAAAABjwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCIkJCQkJCQkJ
CQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAIwAAf+TwAAmtegEB3QAAMAAE0AAEwDq5AQHdAC+yAUHdADAABPAABOA
bMImA4J0AJe+9ACiNADAABVwAAVoFKEIRf6gwjMCdgC+tC/tS/vSwIQBvrYAwAAr4AAWuAgggAACCCDw54p6coJ3AHAX7uAO7uAO7uAO7v76HO
B79nOB7LoA/9k=
""",
    "rgb": """
/0//UQAvQAAAAAAQAAAADAAAAAAAAAAAAAAAEAAAAAwAAAAAAAAAAAADBwEBBwEBBwEB/1AACAACAAAAA/9SAAwAAgABAQUEBEAB/1wAEyBQWF
hYWFhYWFhYWFhYUFBQ/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAWgAAf+TwBKA+QDHdADAEoBQAYd0AMASgP4Ax3QAAAAAwAlg
BLACUPYAh3QAwACHdADlAAd0AMAJYASwAlBdAYd0AM0Ah3QAmwEHdADACWAEoBEBh3QAVAGHdADACaAEcAJAgvsAIVQAAOMA/gBjAMAKiAEkAJ
AAQKH6AIK0APwJMwD+BTMAwAmgBICHwwECdACZEjMAwAq4AVEAJQCA8AD+Z/+ARbYAFrL9wMm+tQD7wHekAMAKiAFRACbBBDip8IJ1APDh/cAJ
vrUAgIAta+UAwAqYAVTDMPygIjCCdgBYLBb7wBCBvrYAwBWQBakAVwAAVQD8cxT6nTnuaAAAAACAwoDwGt21LYvnnn2ijjx9AICAgANVXuGqr3
NmmdsAwBVwBVwBID2U1Obngp6cAlcAv5/b+gcnvOnOWAD9AEQAwBVQBaDd3d3ngKenwncApjHGGGP++gAAe/YAAey6AP/Z
""",
    "lossy": """
/0//UQApQAAAAAAQAAAADAAAAAAAAAAAAAAAEAAAAAwAAAAAAAAAAAABDwEB/1AACAACAAAAJ/9SAAwAAgABAAUEBEAA/1wAIyKcXZw3nDecEp
RJlEmUMYyIjIiMnIUhhSGFjXz2fPZ8mf9kABcAAU9wZW5KUEggVmVyIDAuMjYuMy7/kAAKAAAAAADCAAH/k8AACcCHvf4GB3QAAMAAE0AAEwCw
5AQHdAAqswUHdADAACqgABOAOciBe9zzAYK0AC9/+QCiNADAAFpwABa4dJog0qRBgoQm0iD5GX/xRFmXAKx+ZPUHqx+sfji1U53q1AJPcxCAMb
gAwAC2oABdWCTZbBAIQm42CAQhNxsE4lgSV/JX4grAC3sA5GQymUwmk095fIrHpzye8viUx1Men/J4yuMdAhAKdMhAKboAAa0AAGoxAf/Z
""",
}


def adobe(transform):
    return b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform])


def known(name):
    i, j = np.mgrid[:12, :16]
    mono = i * 3001 + j * 517
    return {"i16": mono - 20000, "rgb": np.stack([i * 20, j * 15, 255 - i * j], -1)}.get(name, mono)


def noise(bits, shape, seed=7):
    values = np.random.default_rng(seed).integers(0, 1 << bits, shape)
    return values.astype("u1" if bits <= 8 else "u2" if bits <= 16 else "u4")


def smooth(bits, rows=40, columns=50):
    i, j = np.mgrid[:rows, :columns]
    wave = (np.sin(j / 6) + np.cos(i / 5) + 2) / 4
    return np.round(wave * ((1 << bits) - 1)).astype("u1" if bits <= 8 else "u2")


def lossless_jpeg(pixels, bits, predictor=1, left_out=0, restart_rows=0, names=(1, 2, 3), markers=b""):
    """Encode by the text of ISO/IEC 10918-1 Annex H, samples interleaved, one Huffman table of 17 codes of 5 bits."""
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    rows, columns, samples = pixels.shape
    value = pixels.astype(int) >> left_out
    left, above = np.roll(value, 1, 1), np.roll(value, 1, 0)
    corner = np.roll(above, 1, 1)
    predicted = {
        1: left,
        2: above,
        3: corner,
        4: left + above - corner,
        5: left + ((above - corner) >> 1),
        6: above + ((left - corner) >> 1),
        7: (left + above) >> 1,
    }[predictor].copy()
    predicted[:, 0] = above[:, 0]
    for row in range(0, rows, restart_rows or rows):
        predicted[row, 1:], predicted[row, 0] = value[row, :-1], 1 << (bits - left_out - 1)
    difference = (value - predicted) & 0xFFFF
    difference = np.where(difference > 32768, difference - 65536, difference)
    stream = b"\xff\xd8" + markers
    if restart_rows:
        stream += b"\xff\xdd" + struct.pack(">HH", 4, restart_rows * columns)
    stream += b"\xff\xc3" + struct.pack(">HBHHB", 8 + 3 * samples, bits, rows, columns, samples)
    stream += b"".join(bytes([name, 0x11, 0]) for name in names[:samples])
    stream += b"\xff\xc4" + struct.pack(">HB", 36, 0) + bytes([0, 0, 0, 0, 17] + [0] * 11) + bytes(range(17))
    stream += b"\xff\xda" + struct.pack(">HB", 6 + 2 * samples, samples)
    stream += b"".join(bytes([name, 0]) for name in names[:samples]) + bytes([predictor, 0, left_out])
    for number, row in enumerate(range(0, rows, restart_rows or rows)):
        if number:
            stream += bytes([0xFF, 0xD0 + (number - 1) % 8])
        bit = []
        for d in difference[row : row + (restart_rows or rows)].ravel().tolist():
            size = 16 if d == 32768 else abs(d).bit_length()
            bit.append(f"{size:05b}")
            if 0 < size < 16:
                bit.append(f"{d if d > 0 else d + (1 << size) - 1:0{size}b}")
        text = "".join(bit)
        text += "1" * (-len(text) % 8)
        stream += int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\x00")
    return stream + b"\xff\xd9"


def rle(pixels):
    """Encode by DICOM PS3.5 G.3 to G.5: literal runs, and a replicate run where 5 or more bytes are alike."""
    planes = np.moveaxis(pixels, -1, 0) if pixels.ndim == 3 else pixels[None]
    segments = []
    for plane in planes:
        size = plane.dtype.itemsize
        columns = plane.astype(plane.dtype.newbyteorder(">")).reshape(-1).view("u1").reshape(-1, size)
        for data in (column.tobytes() for column in columns.T):
            out, at = b"", 0
            while at < len(data):
                run = next((n for n in range(1, 129) if data[at + n : at + n + 1] != data[at : at + 1]), 128)
                if run >= 5:
                    out, at = out + bytes([257 - run, data[at]]), at + run
                else:
                    literal = data[at : at + 4]
                    out, at = out + bytes([len(literal) - 1]) + literal, at + len(literal)
            segments.append(out + b"\x00" * (len(out) % 2))
    starts = np.cumsum([64, *map(len, segments)])[:-1].tolist()
    return struct.pack("<16I", len(segments), *starts, *[0] * (15 - len(segments))) + b"".join(segments)


def decoded(form, stream, shape, bits_allocated=16):
    return decode_frame(form, stream, *shape[:2], shape[2] if len(shape) == 3 else 1, bits_allocated)


def refused(form, stream, shape, bits_allocated=16):
    with pytest.raises(DataError) as caught:
        decoded(form, stream, shape, bits_allocated)
    return caught.value.code


def read_frames(path):
    """Return every frame of a file, by this program's item walk and codecs."""
    ds, data = pydicom.dcmread(path), path.read_bytes()
    start = re.search(rb"\xe0\x7f\x10\x00O[BW]\x00\x00\xff\xff\xff\xff", data).end()
    form = SYNTAXES[ds.file_meta.TransferSyntaxUID].form
    spans = locate_frames(lambda a, n: data[a : a + n], start, len(data), int(ds.get("NumberOfFrames") or 1), form)
    shape = (ds.Rows, ds.Columns) if ds.SamplesPerPixel == 1 else (ds.Rows, ds.Columns, ds.SamplesPerPixel)
    streams = [b"".join(data[a : a + n] for a, n in frame) for frame in spans]
    return [decoded(form, stream, shape, ds.BitsAllocated) for stream in streams]


# JPEG lossless


@pytest.mark.parametrize("predictor", range(1, 8))
@pytest.mark.parametrize("bits", range(2, 17))
def test_lossless_jpeg_is_exact_at_every_precision_with_every_predictor(bits, predictor):
    pixels = noise(bits, (9, 7), bits)
    found = decoded("jpeg", lossless_jpeg(pixels, bits, predictor), pixels.shape)
    np.testing.assert_array_equal(found.samples, pixels)
    assert (found.precision, found.signed, found.lossy, found.colour) == (bits, False, None, None)


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("shape", [(13, 9), (13, 9, 3)])
def test_lossless_jpeg_with_restart_markers_is_exact(bits, shape):
    pixels = noise(bits, shape)
    np.testing.assert_array_equal(
        decoded("jpeg", lossless_jpeg(pixels, bits, 4, restart_rows=2), shape).samples, pixels
    )


@pytest.mark.parametrize("bits", [8, 12])
def test_a_point_transform_says_which_bits_it_left_out(bits):
    pixels = noise(bits, (9, 7))
    found = decoded("jpeg", lossless_jpeg(pixels, bits, left_out=2), pixels.shape)
    np.testing.assert_array_equal(found.samples, pixels >> 2 << 2)
    assert found.lossy == "JPEG lossless, 2 low bit(s) left out"


@pytest.mark.parametrize(
    "markers, names, colour",
    [
        (b"", (1, 2, 3), None),
        (b"", b"RGB", "RGB"),
        (JFIF, (1, 2, 3), "YBR"),
        (adobe(0), (1, 2, 3), "RGB"),
        (adobe(1), (1, 2, 3), "YBR"),
    ],
)
@pytest.mark.parametrize("bits", [8, 12])
def test_no_marker_makes_a_decoder_transform_colours(bits, markers, names, colour):
    pixels = noise(bits, (9, 7, 3))
    found = decoded("jpeg", lossless_jpeg(pixels, bits, names=names, markers=markers), pixels.shape)
    np.testing.assert_array_equal(found.samples, pixels)
    assert found.colour == colour


@pytest.mark.parametrize("bits", [8, 13])
@pytest.mark.parametrize("restart_rows", [0, 2])
@pytest.mark.parametrize("cut", [3, 4, 20, 60])
@pytest.mark.parametrize("end", [b"", b"\xff\xd9"])
def test_a_jpeg_that_ends_before_its_last_pixel_is_refused(bits, restart_rows, cut, end):
    stream = lossless_jpeg(noise(bits, (9, 7)), bits, restart_rows=restart_rows)
    assert refused("jpeg", stream[:-cut] + end, (9, 7)) == "undecodable"


def test_a_jpeg_that_lacks_a_restart_interval_is_refused():
    stream = lossless_jpeg(noise(12, (8, 7)), 12, restart_rows=2)
    assert refused("jpeg", stream[: stream.index(b"\xff\xd2")] + b"\xff\xd9", (8, 7)) == "undecodable"


@pytest.mark.parametrize("bits", [8, 13])
def test_a_whole_jpeg_without_an_end_marker_or_with_padding_is_read(bits):
    pixels = noise(bits, (9, 7))
    stream = lossless_jpeg(pixels, bits)
    for odd in (stream[:-2], stream + b"\x00", stream + b"\xff\x00", stream[:-2] + b"\xff\xff\xff\xd9"):
        np.testing.assert_array_equal(decoded("jpeg", odd, pixels.shape).samples, pixels)


# JPEG in general


@pytest.mark.parametrize("shape", [(9, 8), (7, 9), (9, 7, 3), (0xFFFF, 0xFFFF)])
@pytest.mark.parametrize("bits", [8, 12])
def test_another_size_or_number_of_samples_is_refused_before_decoding(bits, shape):
    assert refused("jpeg", lossless_jpeg(noise(bits, (9, 7)), bits), shape) == "codestream-mismatch"


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x00" * 40, id="no image"),
        pytest.param(b"\xff\xd8\xff\xd9", id="no frame"),
        pytest.param(b"\xff\xd8\xff\xc3\x00\x02\xff\xda\x00\x02", id="empty headers"),
        pytest.param(b"\xff\xd8\xff\xc3\xff\xff", id="a header beyond the end"),
        pytest.param(lossless_jpeg(noise(8, (9, 7)), 8).replace(b"\xff\xc3", b"\xff\xc9"), id="arithmetic coding"),
        pytest.param(
            lossless_jpeg(noise(12, (9, 7)), 12, markers=b"\xff\xc3\x00\x0b\x0c\x00\x09\x00\x07\x01\x01\x11\x00"),
            id="two frames",
        ),
    ],
)
def test_what_is_no_jpeg_is_undecodable(stream):
    assert refused("jpeg", stream, (9, 7)) == "undecodable"


def test_scans_without_end_are_refused():
    stream = lossless_jpeg(noise(8, (9, 7)), 8)
    scan = stream[stream.index(b"\xff\xda") : -2]
    assert refused("jpeg", stream[:-2] + scan * 200 + b"\xff\xd9", (9, 7)) == "undecodable"


def end_in_a_child(form: str, stream: bytes, shape: tuple[int, int]) -> str:
    """Decode in a process of its own, as `mdcli.dicom.decoding` does: a damaged stream may kill its decoder, and no more."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        said = "bug"
        try:
            said = str(decoded(form, stream, shape).samples.shape)
        except DataError as error:
            said = error.code
        finally:
            os.write(writing, said.encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    return said or "died"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the decoder's process is forked")
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_damaged_jpeg_is_read_or_refused_by_name(data):
    stream = bytearray(lossless_jpeg(noise(8, (9, 7)), 8))
    for _ in range(data.draw(st.integers(1, 4))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    assert end_in_a_child("jpeg", bytes(stream), (9, 7)) in ("(9, 7)", "undecodable", "codestream-mismatch", "died")


def test_nothing_is_written_to_standard_error(capfd):
    stream = next(generate_frames(pydicom.dcmread(get_testdata_file("JPGExtended.dcm")).PixelData, number_of_frames=1))
    decoded("jpeg", stream, (1024, 256))
    assert refused("jpeg", stream[:3000], (1024, 256)) == "undecodable"
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["JPGExtended.dcm", "JPEG-lossy.dcm"])
def test_extended_jpeg_of_12_bits_agrees_with_dcmtk(name, tmp_path, judge):
    # JPEG-lossy.dcm names no spectrum in its scan.
    source = get_testdata_file(name)
    subprocess.run([judge("dcmdjpeg"), source, tmp_path / "raw.dcm"], check=True)
    stream = next(generate_frames(pydicom.dcmread(source).PixelData, number_of_frames=1))
    found = decoded("jpeg", stream, (1024, 256))
    np.testing.assert_array_equal(found.samples, pydicom.dcmread(tmp_path / "raw.dcm").pixel_array)
    assert (found.precision, found.lossy) == (12, "JPEG extended sequential, 12 bit")


@pytest.mark.parametrize(
    "bits, options, lossy",
    [
        *[pytest.param(bits, ["+e1"], None, id=f"{bits} bits, first order") for bits in (8, 10, 12, 16)],
        *[pytest.param(12, ["+el", "+sv", str(n)], None, id=f"predictor {n}") for n in range(1, 8)],
        pytest.param(16, ["+e1", "+fs", "1", "-ot"], None, id="fragments of 1 KiB without a table"),
        pytest.param(16, ["+e1", "+fs", "1"], None, id="fragments of 1 KiB with a table"),
        pytest.param(8, ["+eb"], "JPEG baseline, 8 bit", id="baseline"),
        pytest.param(12, ["+ee", "+bt"], "JPEG extended sequential, 12 bit", id="extended, 12 bits"),
        pytest.param(8, ["+ee"], "JPEG extended sequential, 8 bit", id="extended, 8 bits"),
    ],
)
def test_what_dcmtk_encodes_is_decoded_as_dcmtk_does(bits, options, lossy, tmp_path, judge):
    pixels = smooth(bits)
    write_slice(tmp_path / "a.dcm", pixels, BitsStored=bits)
    subprocess.run([judge("dcmcjpeg"), *options, tmp_path / "a.dcm", tmp_path / "b.dcm"], check=True)
    subprocess.run([judge("dcmdjpeg"), tmp_path / "b.dcm", tmp_path / "c.dcm"], check=True)
    (found,) = read_frames(tmp_path / "b.dcm")
    np.testing.assert_array_equal(found.samples, pydicom.dcmread(tmp_path / "c.dcm").pixel_array)
    assert found.lossy == lossy
    if lossy is None:
        np.testing.assert_array_equal(found.samples, pixels)


@pytest.mark.parametrize("name", ["SC_rgb_dcmtk_+eb+cy+s2", "SC_rgb_dcmtk_+eb+cy+n1", "SC_rgb_small_odd_jpeg"])
def test_baseline_colour_is_what_was_coded_and_becomes_dcmtks_rgb(name, tmp_path, judge):
    source = Path(get_testdata_file(f"{name}.dcm"))
    subprocess.run([judge("dcmdjpeg"), "+ca", source, tmp_path / "rgb.dcm"], check=True)
    (found,) = read_frames(source)
    assert (found.colour, found.lossy) == ("YBR", "JPEG baseline, 8 bit")
    # ITU-T T.871 clause 7; dcmtk and this rounding differ by 1 at most.
    y, cb, cr = np.moveaxis(found.samples.astype(float), -1, 0)
    cb, cr = cb - 128, cr - 128
    rgb = np.clip(np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], -1), 0, 255)
    assert np.abs(rgb - pydicom.dcmread(tmp_path / "rgb.dcm").pixel_array).max() <= 1.01


def test_baseline_colour_that_is_rgb_stays_rgb():
    ds = pydicom.dcmread(get_testdata_file("SC_rgb_dcmtk_+eb+cr.dcm"))
    found = decoded("jpeg", next(generate_frames(ds.PixelData, number_of_frames=1)), (100, 100, 3))
    # The same picture, lossless.
    raw = pydicom.dcmread(get_testdata_file("SC_rgb_jpeg_gdcm.dcm"))
    plain = decoded("jpeg", next(generate_frames(raw.PixelData, number_of_frames=1)), (100, 100, 3))
    assert (found.colour, plain.lossy) == ("RGB", None)
    assert np.abs(found.samples.astype(int) - plain.samples).max() <= 2


# JPEG 2000 and HTJ2K


@pytest.mark.parametrize("name", ["u16", "i16", "rgb"])
def test_high_throughput_jpeg_2000_is_exact(name):
    pixels = known(name)
    found = decoded("jpeg-2000", base64.b64decode(HTJ2K[name]), pixels.shape)
    np.testing.assert_array_equal(found.samples, pixels)
    assert (found.precision, found.signed, found.lossy) == (8 if name == "rgb" else 16, name == "i16", None)
    assert found.colour == ("RGB" if name == "rgb" else None)


def test_lossy_high_throughput_jpeg_2000_says_so():
    found = decoded("jpeg-2000", base64.b64decode(HTJ2K["lossy"]), (12, 16))
    assert found.lossy == "HTJ2K, irreversible wavelet"
    # Quantised in steps of 1e-4 of the range.
    assert np.abs(found.samples.astype(int) - known("u16")).max() <= 7


@pytest.mark.parametrize("cut", [2, 3, 40, 120])
def test_a_jpeg_2000_codestream_that_is_cut_is_refused(cut):
    stream = base64.b64decode(HTJ2K["u16"])[:-cut]
    assert refused("jpeg-2000", stream, (12, 16)) == "undecodable"
    assert refused("jpeg-2000", stream + b"\xff\xd9" if cut > 3 else stream, (12, 16)) == "undecodable"


def jpeg_2000(pixels, colour, bits=8, **more):
    from openjpeg import encode

    return encode(pixels, bits_stored=bits, photometric_interpretation=colour, **more)


@pytest.mark.parametrize("transform", [True, False])
def test_the_colour_transform_of_jpeg_2000_is_undone_and_named(transform):
    pixels = noise(8, (70, 64, 3))
    found = decoded("jpeg-2000", jpeg_2000(pixels, 1, use_mct=transform), pixels.shape)
    np.testing.assert_array_equal(found.samples, pixels)
    assert (found.colour, found.lossy) == ("RGB" if transform else None, None)


@pytest.mark.parametrize(
    "bits, signed", [(1, False), *((bits, signed) for bits in (2, 8, 9, 12, 15, 16) for signed in (False, True))]
)
def test_jpeg_2000_keeps_precision_and_sign(bits, signed):
    pixels = noise(bits, (65, 71)).astype("i4") - (1 << (bits - 1) if signed else 0)
    pixels = pixels.astype(("i" if signed else "u") + ("1" if bits <= 8 else "2"))
    found = decoded("jpeg-2000", jpeg_2000(pixels, 2, bits), pixels.shape)
    np.testing.assert_array_equal(found.samples, pixels)
    assert (found.precision, found.signed) == (bits, signed)


def test_an_irreversible_tile_makes_the_image_lossy():
    stream = jpeg_2000(noise(8, (70, 64)), 2)
    cod = stream[stream.index(b"\xff\x52") :][:14]
    at = stream.index(b"\xff\x90")
    length = struct.unpack(">I", stream[at + 6 : at + 10])[0]
    # A tile-part's own COD follows its SOT; Psot counts it.
    tile = stream[at : at + 6] + struct.pack(">I", length + 14) + stream[at + 10 : at + 12] + cod[:13] + b"\x00"
    assert _read_wavelets(stream).reversible
    assert not _read_wavelets(stream[:at] + tile + stream[at + 12 :]).reversible


def test_components_that_differ_are_refused():
    stream = bytearray(jpeg_2000(noise(8, (70, 64, 3)), 1))
    # Ssiz of the second component: 12 bits.
    stream[42 + 3] = 11
    assert refused("jpeg-2000", bytes(stream), (70, 64, 3)) == "undecodable"
    stream = bytearray(jpeg_2000(noise(8, (70, 64)), 2))
    # XRsiz: every second column.
    stream[43] = 2
    assert refused("jpeg-2000", bytes(stream), (70, 64)) == "undecodable"


@pytest.mark.parametrize("shape", [(12, 17), (12, 16, 3)])
def test_a_jpeg_2000_codestream_of_another_size_is_refused(shape):
    assert refused("jpeg-2000", base64.b64decode(HTJ2K["u16"]), shape) == "codestream-mismatch"


# JPEG-LS


@pytest.mark.parametrize("interleave", [0, 1, 2])
@pytest.mark.parametrize("bits, near", [(2, 0), (8, 0), (8, 2), (12, 0), (12, 2), (16, 0), (16, 2)])
def test_jpeg_ls_colour_in_every_interleave_mode(interleave, bits, near):
    from jpeg_ls import encode_array

    pixels = noise(bits, (11, 13, 3))
    pixels.flat[0] = (1 << bits) - 1
    source = np.ascontiguousarray(np.moveaxis(pixels, -1, 0)) if interleave == 0 else pixels
    found = decoded("jpeg-ls", bytes(encode_array(source, near, interleave)), pixels.shape)
    assert np.abs(found.samples.astype(int) - pixels).max() <= near
    assert (found.precision, found.lossy) == (bits, "JPEG-LS, error up to 2" if near else None)


@pytest.mark.parametrize("bits", range(2, 17))
def test_jpeg_ls_by_dcmtk_is_exact(bits, tmp_path, judge):
    pixels = noise(bits, (17, 13))
    write_slice(tmp_path / "a.dcm", pixels, BitsStored=bits)
    subprocess.run([judge("dcmcjpls"), tmp_path / "a.dcm", tmp_path / "b.dcm"], check=True)
    (found,) = read_frames(tmp_path / "b.dcm")
    np.testing.assert_array_equal(found.samples, pixels)


@pytest.mark.parametrize("cut", [4, 40])
def test_a_jpeg_ls_stream_that_is_cut_is_refused(cut):
    from jpeg_ls import encode_array

    stream = bytes(encode_array(noise(12, (11, 13))))
    assert refused("jpeg-ls", stream[:-cut], (11, 13)) == "undecodable"
    assert refused("jpeg-ls", stream[:-cut] + b"\xff\xd9", (11, 13)) == "undecodable"


# RLE


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 300), (3, 5, 3), (7, 130, 3)])
@pytest.mark.parametrize("bits", [8, 16, 32])
def test_rle_is_exact_for_odd_sizes_too(bits, shape):
    pixels = noise(bits, shape)
    pixels[..., : shape[1] // 2 if len(shape) == 2 else 2] = 3
    found = decoded("rle", rle(pixels), shape, bits)
    np.testing.assert_array_equal(found.samples, pixels)
    assert (found.samples.dtype, found.precision, found.signed) == (pixels.dtype, bits, False)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_rle_of_any_pixels_is_exact(data):
    bits, rows, columns = (
        data.draw(st.sampled_from([8, 16, 32])),
        data.draw(st.integers(1, 9)),
        data.draw(st.integers(1, 9)),
    )
    values = data.draw(st.lists(st.integers(0, (1 << bits) - 1), min_size=rows * columns, max_size=rows * columns))
    pixels = np.array(values, f"u{bits // 8}").reshape(rows, columns)
    np.testing.assert_array_equal(decoded("rle", rle(pixels), (rows, columns), bits).samples, pixels)


@pytest.mark.parametrize("shape", [(3, 5), (9, 9)])
def test_rle_by_dcmtk_is_exact(shape, tmp_path, judge):
    pixels = noise(12, shape)
    write_slice(tmp_path / "a.dcm", pixels, BitsStored=12)
    subprocess.run([judge("dcmcrle"), tmp_path / "a.dcm", tmp_path / "b.dcm"], check=True)
    (found,) = read_frames(tmp_path / "b.dcm")
    np.testing.assert_array_equal(found.samples, pixels)


def test_rle_of_another_size_or_depth_is_refused():
    stream = rle(noise(16, (3, 5)))
    assert refused("rle", stream, (3, 5), 8) == "codestream-mismatch"
    assert refused("rle", stream, (3, 5, 3), 16) == "codestream-mismatch"
    assert refused("rle", stream, (30, 50), 16) == "undecodable"
    assert refused("rle", stream[:70], (3, 5), 16) == "undecodable"
    assert refused("rle", b"\x02\x00", (3, 5), 16) == "undecodable"


# Real series


def test_one_real_volume_in_five_encodings_has_the_same_voxels(shared_data):
    folder = shared_data / "12_mr_encodings" / "dicom"
    volumes = [
        [read_frames(path)[0].samples.view("u2") for path in sorted((folder / name / "001").iterdir())]
        for name in ("compressed", "compressed_j2k", "compressed_jpeg", "compressed_jpegls", "compressed_rle")
    ]
    assert len(volumes[0]) == 4
    for volume in volumes[1:]:
        np.testing.assert_array_equal(volume, volumes[0])


@pytest.mark.parametrize("name", ["RLE", "jpeg_ls_lossless", "jpeg_2k_lossless"])
def test_ten_frames_in_each_encoding_are_those_of_the_raw_file(name, shared_data):
    folder = shared_data / "30_enhanced_mr_five_encodings" / "dicom"
    raw = pydicom.dcmread(folder / "emri_small" / "emri_small.dcm").pixel_array
    found = read_frames(folder / f"emri_small_{name}" / f"emri_small_{name}.dcm")
    np.testing.assert_array_equal([frame.samples for frame in found], raw)


@pytest.mark.parametrize("name", ["RLE", "jpeg_ls_lossless", "jp2klossless"])
def test_a_real_signed_slice_in_each_encoding_is_the_raw_one(name, shared_data):
    folder = shared_data / "31_odd_syntaxes" / "dicom"
    raw = pydicom.dcmread(folder / "MR_small" / "MR_small.dcm").pixel_array
    (found,) = read_frames(folder / f"MR_small_{name}" / f"MR_small_{name}.dcm")
    np.testing.assert_array_equal(found.samples.view("i2"), raw)


def test_a_colour_cine_is_read_frame_by_frame(shared_data, tmp_path, judge):
    path = shared_data / "25_us_multiframe_jpeg" / "dicom" / "examples_ybr_color.dcm"
    subprocess.run([judge("dcmdjpeg"), "+ca", path, tmp_path / "rgb.dcm"], check=True)
    rgb = pydicom.dcmread(tmp_path / "rgb.dcm").pixel_array
    found = read_frames(path)
    assert len(found) == 30
    for frame, judged in zip(found, rgb, strict=True):
        y, _, cr = np.moveaxis(frame.samples.astype(float), -1, 0)
        assert np.abs(np.clip(y + 1.402 * (cr - 128), 0, 255) - judged[..., 0]).max() <= 1.01


def test_encapsulated_is_what_the_standard_says():
    assert len(SYNTAXES) == 16
    for uid, syntax in SYNTAXES.items():
        assert syntax.encapsulated == pydicom.uid.UID(uid).is_encapsulated
