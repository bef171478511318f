"""Read the stored values of single-frame images exactly, and rescale them to modality values exactly.

Arrays are (k, j, i). What is refused is refused from the headers where they tell, before anything is allocated.
Source: DICOM PS3.3 C.7.6.3 (Image Pixel), C.11.1 (Modality LUT); PS3.5 section 8 (encoding of pixels).
"""

from __future__ import annotations

import hashlib
import math
import mmap
import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdcli.dicom.codecs import SYNTAXES, decode
from mdcli.dicom.finding import Finding
from mdcli.dicom.headers import KEYWORDS, Skipped, read_instance
from mdcli.dicom.instance import Instance
from mdcli.dicom.opening import SCAN_AGAIN, SourceFiles, shown
from mdcli.errors import DataError

MOST_PER_COMPRESSED_BYTE = 1000
"""A compressed series may claim this many bytes of pixels for each byte it has ..."""
ALWAYS_ALLOWED_BYTES = 64 << 20
"""... or this many in all: blank slices compress to almost nothing."""
MOST_INFLATED_HEADER = 16 << 20
"""What a deflated file may inflate to, beside its pixels."""
SLAB_BYTES = 8 << 20
_INTEGERS = ("int16", "uint16", "int32")


@dataclass(frozen=True)
class Layout:
    """How the stored values of one image are encoded.

    Attributes:
        rows: of the image.
        columns: of the image.
        bits_allocated: 8, 16 or 32.
        bits_stored: bits that carry the value.
        high_bit: the highest of them.
        signed: two's complement (PixelRepresentation 1).
        syntax: transfer syntax UID.
    """

    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    syntax: str

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the type that holds one stored value, in this machine's byte order."""
        return np.dtype(f"{'i' if self.signed else 'u'}{self.bits_allocated // 8}")

    @property
    def nbytes(self) -> int:
        """Return the bytes of one decoded frame."""
        return self.rows * self.columns * self.bits_allocated // 8

    @property
    def range(self) -> tuple[int, int]:
        """Return the lowest and highest value that BitsStored allows."""
        half = 1 << (self.bits_stored - 1)
        return (-half, half - 1) if self.signed else (0, 2 * half - 1)


@dataclass(frozen=True)
class SliceRead:
    """What reading one image found.

    Attributes:
        sha256: of the whole file.
        low: lowest stored value.
        high: highest stored value.
        padding_voxels: pixels of the padding value or range.
        masked: bits above BitsStored held something other than the sign, and were masked.
        precision: bits a sample by the codestream; None where there is none.
        stream_signed: sign by the codestream.
        lossy: how the codestream lost information, or None.
    """

    sha256: str
    low: int
    high: int
    padding_voxels: int = 0
    masked: bool = False
    precision: int | None = None
    stream_signed: bool | None = None
    lossy: str | None = None


@dataclass(frozen=True)
class Rescale:
    """From stored to modality values.

    Attributes:
        slopes: one a slice, in the order of k.
        intercepts: one a slice.
        unit: `HU`, the RescaleType or PET Units; None where nobody said.
        rescale_type: RescaleType (0028,1054) as it is, or None.
        assumed: the unit was put in on request, not read.
    """

    slopes: tuple[float, ...]
    intercepts: tuple[float, ...]
    unit: str | None
    rescale_type: str | None
    assumed: bool = False


def layouts(instances: Sequence[Instance]) -> tuple[list[Layout], list[Finding]]:
    """Return how each image is encoded, its claims held against the size of its file.

    Args:
        instances: single-frame monochrome images of one size, in the order of k.

    Returns:
        One layout an instance, and `pixels-long` findings: more bytes than one frame needs.

    Raises:
        DataError: `unknown-syntax`, `unsupported-syntax`, `bad-bits`, `unsupported-bits`, `no-pixels`, `bad-encapsulation`,
            `pixels-short`, `truncated-pixels`, `compression-bomb`; each names the file.
    """
    found, findings, compressed = [], [], 0
    for instance in instances:
        layout = _layout(instance)
        form, name = SYNTAXES[layout.syntax].form, shown(instance.path)
        offset, length = instance.pixel_offset, instance.pixel_length
        if form == "deflated":
            compressed += instance.size
        elif offset is None:
            raise DataError("no-pixels", f"{name} has no PixelData")
        elif SYNTAXES[layout.syntax].encapsulated:
            if length is not None:
                says = SYNTAXES[layout.syntax].name
                raise DataError("bad-encapsulation", f"{name} says {says}, but its pixels are not encapsulated")
            compressed += max(0, instance.size - offset)
        elif length is None:
            says = SYNTAXES[layout.syntax].name
            raise DataError("bad-encapsulation", f"{name} says {says}, but its pixels are encapsulated")
        else:
            findings += _check_length(name, layout, offset, length, instance.size)
        found.append(layout)
    claimed = sum(x.nbytes for x in found if SYNTAXES[x.syntax].form not in ("raw", "big"))
    if claimed > max(ALWAYS_ALLOWED_BYTES, MOST_PER_COMPRESSED_BYTE * compressed):
        raise DataError(
            "compression-bomb",
            f"{len(found)} images claim {claimed} bytes of pixels from {compressed} compressed bytes",
            claimed=claimed,
            compressed=compressed,
        )
    return found, findings


def _check_length(name: str, layout: Layout, offset: int, length: int, size: int) -> list[Finding]:
    if length < layout.nbytes:
        raise DataError(
            "pixels-short",
            f"{name} has {length} bytes of pixels; {layout.rows} x {layout.columns} of {layout.bits_allocated} bits are "
            f"{layout.nbytes}",
            found=length,
            needed=layout.nbytes,
        )
    if offset + layout.nbytes > size:
        raise DataError(
            "truncated-pixels", f"{name} ends {offset + layout.nbytes - size} bytes before its pixels do", size=size
        )
    # An odd frame is padded to an even length.
    if length > layout.nbytes + layout.nbytes % 2:
        text = f"{name} has {length - layout.nbytes} bytes of pixels more than one frame: the first frame is used"
        return [Finding("pixels-long", text, {"found": length, "needed": layout.nbytes})]
    return []


def _layout(instance: Instance) -> Layout:
    name, syntax = shown(instance.path), str(instance.get("TransferSyntaxUID"))
    if syntax not in SYNTAXES:
        raise _no_such_syntax(name, syntax)
    rows, columns = instance.attributes["Rows"], instance.attributes["Columns"]
    allocated, stored = instance.get("BitsAllocated"), instance.get("BitsStored")
    representation = instance.get("PixelRepresentation")
    numbers = (allocated, stored, representation)
    if not all(isinstance(n, int) for n in numbers) or representation not in (0, 1):
        said = ", ".join(map(_said, numbers))
        raise DataError("bad-bits", f"{name} has BitsAllocated, BitsStored, PixelRepresentation {said}")
    high = instance.get("HighBit")
    high = stored - 1 if high is None else high
    if allocated not in (8, 16, 32) or (allocated == 8 and SYNTAXES[syntax].form == "big"):
        raise DataError("unsupported-bits", f"{name} has {allocated} bits allocated in {SYNTAXES[syntax].name}")
    if not isinstance(high, int) or not 0 < stored <= high + 1 <= allocated:
        raise DataError(
            "bad-bits", f"{name} has BitsStored {stored} and HighBit {shown(str(high))} in {allocated} bits allocated"
        )
    if SYNTAXES[syntax].form in ("jpeg-ls", "jpeg-2000") and high != stored - 1:
        raise DataError(
            "bad-bits", f"{name} has HighBit {high} with BitsStored {stored} in a {SYNTAXES[syntax].name} image"
        )
    return Layout(rows, columns, allocated, stored, high, bool(representation), syntax)


def _no_such_syntax(name: str, syntax: str) -> DataError:
    from pydicom.uid import UID

    uid = UID(syntax)
    if uid.is_valid and not uid.is_private and uid.name != syntax:
        hint = "convert the series, for example with dcmdjpeg or gdcmconv --raw"
        return DataError(
            "unsupported-syntax", f"{name} is encoded as {uid.name}, which load-volume can't read", hint=hint
        )
    return DataError("unknown-syntax", f"{name} has the unknown transfer syntax {shown(syntax)}")


def padding_range(instance: Instance, layout: Layout) -> tuple[int, int] | None:
    """Return the lowest and highest stored value that mean padding, or None.

    Raises:
        DataError: `bad-padding` where PixelPaddingValue is no number that the stored bits can hold.

    Source: DICOM PS3.3 C.7.5.1.1.2: PixelPaddingValue (0028,0120), to PixelPaddingRangeLimit (0028,0121) inclusive.
    """
    value = instance.get("PixelPaddingValue")
    if value is None:
        return None
    limit = instance.get("PixelPaddingRangeLimit", value)
    ends = []
    for number in (value, limit):
        if isinstance(number, list) and number:
            number = number[0]
        if not isinstance(number, int) or not -(1 << 31) <= number < 1 << 32:
            raise DataError("bad-padding", f"{shown(instance.path)} has PixelPaddingValue {shown(str(value))}")
        # The value representation (US or SS) of the padding is often not that of the pixels; the bits are meant.
        if layout.signed and number >= 1 << (layout.bits_allocated - 1):
            number -= 1 << layout.bits_allocated
        elif not layout.signed and number < 0:
            number += 1 << layout.bits_allocated
        ends.append(number)
    return min(ends), max(ends)


def rescale_of(instances: Sequence[Instance], *, assume_hu: bool = False) -> Rescale:
    """Return slope and intercept of every slice, and the unit that they lead to.

    Args:
        instances: the slices in the order of k, of one modality, Units and RescaleType.
        assume_hu: for CT that doesn't say its unit: take the values as HU.

    Raises:
        DataError: `no-rescale` (CT or PET without), `bad-rescale` (no number, one of the two alone, or not in every slice),
            `modality-lut`, `not-ct`.

    Source: DICOM PS3.3 C.11.1.1.2: value = slope x stored + intercept; C.8.2.1.1.2: CT without RescaleType is HU; C.8.2.1 and
    C.8.9.4: CT and PET images always have both.
    """
    first = instances[0]
    modality, kind = first.get("Modality"), first.get("RescaleType")
    if assume_hu and modality != "CT":
        raise DataError("not-ct", f"--assume-hu is for CT; the modality is {shown(str(modality))}")
    slopes, intercepts = [], []
    bare = [i for i in instances if i.get("RescaleSlope") is None and i.get("RescaleIntercept") is None]
    for instance in instances:
        if instance.get("ModalityLUTSequence") is not None:
            raise DataError(
                "modality-lut", f"{shown(instance.path)} has a Modality LUT, which load-volume can't yet read"
            )
        slope, intercept = instance.get("RescaleSlope"), instance.get("RescaleIntercept")
        if len(bare) == len(instances):
            slope, intercept = 1.0, 0.0
        if not all(isinstance(v, (int, float)) and math.isfinite(v) for v in (slope, intercept)) or slope == 0:
            raise DataError(
                "bad-rescale",
                f"{shown(instance.path)} has RescaleSlope {_said(slope)}, RescaleIntercept {_said(intercept)}",
            )
        slopes.append(float(slope))
        intercepts.append(float(intercept))
    if bare and modality in ("CT", "PT") and not assume_hu:
        raise DataError(
            "no-rescale",
            f"{shown(bare[0].path)} is {modality} without RescaleSlope and RescaleIntercept: the unit of its values is unknown",
            hint="--assume-hu takes the stored values as HU" if modality == "CT" else None,
        )
    stated = kind if kind not in (None, "US") else None
    if modality == "PT":
        stated = first.get("Units") or stated
    elif modality == "CT" and kind is None and not bare:
        stated = "HU"
    assumed = assume_hu and stated is None
    return Rescale(tuple(slopes), tuple(intercepts), "HU" if assumed else stated, kind, assumed)


def _said(value: Any) -> str:
    return "absent" if value is None else shown(str(value))


def container(found: Sequence[Layout]) -> np.dtype[Any]:
    """Return the smallest integer type that holds the stored values of all layouts.

    Raises:
        DataError: `mixed-bits` where signed and unsigned 32 bits meet.
    """
    dtype = np.result_type(*{layout.dtype for layout in found})
    if dtype.itemsize > 4 or dtype.kind == "f":
        raise DataError("mixed-bits", "some images have signed, others unsigned 32-bit pixels")
    return dtype


def room_for(instances: Sequence[Instance], found: Sequence[Layout]) -> NDArray[Any]:
    """Return an array (k, j, i) that holds the stored values of all images, not yet written.

    `np.empty` would ask for huge pages, which a virtual machine may first have to get back from its host: reading 150 MiB then
    took 0.2 s more of 0.4.
    """
    shape, dtype = (len(instances), found[0].rows, found[0].columns), container(found)
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}
    return np.frombuffer(mmap.mmap(-1, math.prod(shape) * dtype.itemsize, **private), dtype).reshape(shape)


def read_slice(
    files: SourceFiles, instance: Instance, layout: Layout, padding: tuple[int, int] | None, out: NDArray[Any]
) -> SliceRead:
    """Read one image's stored values, and hash its file on the way.

    Args:
        files: where the instance's path is opened.
        instance: as the scan saw it.
        layout: how its pixels are encoded.
        padding: lowest and highest stored value that mean padding.
        out: (rows, columns), contiguous, of the type that `container` gave: takes the stored values.

    Raises:
        DataError: `source-changed` where size or header are not as scanned; `bad-artifact` where the instance is not what its
            header says; `padding-out-of-range`; those of `decode`, `deflate-bomb`; each names the file.
        MissingError: `source-missing`.
    """
    form = SYNTAXES[layout.syntax].form
    plane = out if out.dtype == layout.dtype else np.empty((layout.rows, layout.columns), layout.dtype)
    name = shown(instance.path)
    facts: dict[str, Any] = {}
    with files.open(instance.path, instance.size) as file:
        digest = hashlib.sha256()
        if form in ("raw", "big"):
            header = file.read(instance.pixel_offset or 0)
            digest.update(header)
            _check_header(instance, header, digest.hexdigest())
            pixels = plane.data.cast("B")
            file.fill(pixels)
            digest.update(pixels)
            digest.update(file.read())
        else:
            data = file.read()
            offset = len(data) if instance.pixel_offset is None else instance.pixel_offset
            digest.update(memoryview(data)[:offset])
            _check_header(instance, data if instance.pixel_offset is None else data[:offset], digest.hexdigest())
            digest.update(memoryview(data)[offset:])
    try:
        if form == "deflated":
            plane[...] = _inflated(data, layout)
        elif form not in ("raw", "big"):
            facts = _decoded(form, memoryview(data)[offset:], layout, plane)
        elif (form == "big") != (sys.byteorder == "big"):
            plane.byteswap(inplace=True)
        low, high, masked = _settle_bits(plane, layout, padding, from_codestream=bool(facts))
    except DataError as error:
        raise DataError(error.code, f"{name}: {error.message}", hint=error.hint, **error.numbers) from error
    if plane is not out:
        out[...] = plane
    padded = 0
    if padding and low <= padding[1] and high >= padding[0]:
        if padding[0] == padding[1]:
            padded = int(np.count_nonzero(plane == padding[0]))
        else:
            padded = int(np.count_nonzero((plane >= padding[0]) & (plane <= padding[1])))
    return SliceRead(digest.hexdigest(), low, high, padded, masked, **facts)


def file_digest(files: SourceFiles, instance: Instance) -> str:
    """Return the SHA-256 of one whole file, as `SliceRead.sha256` is.

    Raises:
        MissingError: `source-missing`.
        DataError: `source-changed`, `source-unreadable`.
    """
    digest, left = hashlib.sha256(), instance.size
    with files.open(instance.path, instance.size) as file:
        while left > 0:
            block = file.read(min(left, 1 << 20))
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


def _check_header(instance: Instance, header: bytes, sha256: str) -> None:
    """Refuse a file whose header is not as scanned, and an instance that does not say what its header says."""
    name = shown(instance.path)
    if sha256 != instance.header_sha256:
        raise DataError("source-changed", f"{name} has another header than when it was scanned", hint=SCAN_AGAIN)
    found = read_instance(header, instance.path)
    if isinstance(found, Skipped):
        raise DataError("bad-artifact", f"series.json has the pixels of {name} where they are not", hint=SCAN_AGAIN)
    keywords = found.attributes.keys() | (instance.attributes.keys() & KEYWORDS.keys())
    absent = object()
    odd = sorted(k for k in keywords if found.attributes.get(k, absent) != instance.attributes.get(k, absent))
    if (found.pixel_offset, found.pixel_length) != (instance.pixel_offset, instance.pixel_length):
        odd.append("PixelData")
    if odd:
        text = f"series.json does not say what the header of {name} says: {', '.join(odd[:8])}"
        raise DataError("bad-artifact", text, hint=SCAN_AGAIN)


def _inflated(data: bytes, layout: Layout) -> NDArray[Any]:
    """Return the pixels of a deflated file (DICOM PS3.5 A.5); inflates no more than its pixels and a header can need."""
    from io import BytesIO

    from pydicom.filereader import read_dataset

    pixel_data, most = 0x7FE00010, layout.nbytes + MOST_INFLATED_HEADER
    start = BytesIO(data)
    start.seek(132)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        read_dataset(start, False, True, stop_when=lambda tag, _vr, _length: tag >> 16 != 2)
        plain = inflater.decompress(memoryview(data)[start.tell() :], most)
        if not inflater.eof and len(plain) == most:
            raise DataError("deflate-bomb", f"it inflates to more than {most} bytes", most=most)
        dataset = read_dataset(BytesIO(plain), False, True, specific_tags=[pixel_data])
        pixels = dataset[pixel_data].value
    except (zlib.error, ValueError, EOFError, KeyError, AttributeError, NotImplementedError) as error:
        raise DataError("undecodable", f"its deflated data set can't be read ({type(error).__name__})") from error
    if len(pixels) < layout.nbytes:
        raise DataError("pixels-short", f"it has {len(pixels)} bytes of pixels, {layout.nbytes} are needed")
    stored = np.frombuffer(pixels, layout.dtype.newbyteorder("<"), layout.rows * layout.columns)
    return stored.reshape(layout.rows, layout.columns)


def _decoded(form: str, value: memoryview, layout: Layout, plane: NDArray[Any]) -> dict[str, Any]:
    """Decode a frame into `plane` by the one rule for precision and sign, and return what the codestream says.

    The rule: the codestream gives each sample's bits (its precision P), the header their meaning: the low P bits are two's
    complement where PixelRepresentation is 1, unsigned where it is 0. A value that BitsStored can't hold, or a negative one where
    the header says unsigned, is a contradiction and refused. So is a value with the highest of P bits set where the codestream has
    no signs, the header has, and P is less than BitsStored: it may be large or negative. (JPEG-LS has no signs: DICOM PS3.5 8.2.3.)
    """
    found = decode(form, value, layout.rows, layout.columns, layout.bits_allocated)
    if form == "rle":
        plane[...] = found.samples.view(plane.dtype)
        return {}
    samples = found.samples
    if layout.signed and not found.signed:
        highest = int(samples.max())
        if found.precision < layout.bits_stored and highest >= 1 << (found.precision - 1):
            raise DataError(
                "codestream-mismatch",
                f"its codestream holds {highest} in {found.precision} unsigned bits, the header says {layout.bits_stored} signed "
                "ones: whether that is a negative value is said nowhere",
                high=highest,
            )
        spare = 8 * samples.dtype.itemsize - found.precision
        samples = np.right_shift(np.left_shift(samples, spare).view(f"i{samples.dtype.itemsize}"), spare)
    low, high = int(samples.min()), int(samples.max())
    lowest, highest = layout.range
    if low < lowest or high > highest:
        raise DataError(
            "codestream-mismatch",
            f"its codestream holds {low} to {high} in {found.precision} bits; the header allows {lowest} to {highest}",
            low=low,
            high=high,
        )
    plane[...] = samples
    return {"precision": found.precision, "stream_signed": found.signed, "lossy": found.lossy}


def _settle_bits(
    plane: NDArray[Any], layout: Layout, padding: tuple[int, int] | None, *, from_codestream: bool
) -> tuple[int, int, bool]:
    """Keep the BitsStored bits below HighBit and extend the sign, in place; return lowest, highest and whether bits were masked."""
    low, high = int(plane.min()), int(plane.max())
    lowest, highest = layout.range
    above = layout.bits_allocated - 1 - layout.high_bit
    below = layout.high_bit + 1 - layout.bits_stored
    if from_codestream or (lowest <= low and high <= highest and not below):
        return low, high, False
    kept = highest - lowest
    # A sign that was not extended (0x0FFF for -1 in 12 bits) is no foreign bit.
    masked = bool(below) or low < lowest or high > (kept if layout.signed else highest)
    if masked and padding and not (lowest <= padding[0] and padding[1] <= highest):
        raise DataError(
            "padding-out-of-range",
            f"its padding value {padding[0]} doesn't fit the {layout.bits_stored} bits stored, and bits above them are set",
        )
    np.left_shift(plane, above, out=plane)
    np.right_shift(plane, above + below, out=plane)
    return int(plane.min()), int(plane.max()), masked


def modality_type(stored: NDArray[Any], reads: Sequence[SliceRead], rescale: Rescale) -> np.dtype[Any]:
    """Return the first of int16, uint16, int32, float32, float64 that holds every modality value exactly.

    Args:
        stored: (k, j, i), stored values.
        reads: what reading each slice found, in the order of k.
        rescale: slopes and intercepts. The value is slope x stored + intercept in float64.

    Raises:
        DataError: `bad-rescale` where a value is beyond float64.
    """
    pairs = list(zip(rescale.slopes, rescale.intercepts, strict=True))
    if not all(math.isfinite(a * v + b) for (a, b), r in zip(pairs, reads, strict=True) for v in (r.low, r.high)):
        raise DataError("bad-rescale", "RescaleSlope and RescaleIntercept lead beyond what float64 holds")
    if all(a.is_integer() and b.is_integer() for a, b in pairs):
        ends = [int(a) * v + int(b) for (a, b), read in zip(pairs, reads, strict=True) for v in (read.low, read.high)]
        for name in _INTEGERS:
            if _fits(name, min(ends), max(ends)):
                return np.dtype(name)
    whole, single, low, high = True, True, math.inf, -math.inf
    for plane, (slope, intercept) in zip(stored, pairs, strict=True):
        values = plane.astype(np.float64) * slope + intercept
        low, high = min(low, float(values.min())), max(high, float(values.max()))
        whole = whole and bool((np.rint(values) == values).all())
        with np.errstate(over="ignore"):
            single = single and bool((values.astype(np.float32) == values).all())
        if not whole and not single:
            break
    names = [name for name in _INTEGERS if whole and _fits(name, low, high)]
    return np.dtype(names[0] if names else "float32" if single else "float64")


def _fits(name: str, low: float, high: float) -> bool:
    limits = np.iinfo(name)
    return bool(limits.min <= low and high <= limits.max)


def modality_slabs(stored: NDArray[Any], rescale: Rescale, dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    """Yield the modality values in slabs along k, contiguous and little endian.

    Args:
        stored: (k, j, i), stored values; overwritten where the type has the same size.
        rescale: slopes and intercepts.
        dtype: what `modality_type` returned.
    """
    depth = max(1, SLAB_BYTES // max(1, stored[0].size * dtype.itemsize))
    little = dtype.newbyteorder("<")
    for start in range(0, len(stored), depth):
        part = stored[start : start + depth]
        slopes, intercepts = rescale.slopes[start : start + depth], rescale.intercepts[start : start + depth]
        if dtype.kind == "f" or not all(v.is_integer() for v in (*slopes, *intercepts)):
            by_slice = np.array([slopes, intercepts])[:, :, None, None]
            slab = (part.astype(np.float64) * by_slice[0] + by_slice[1]).astype(dtype)
        else:
            # Integers wrap around; the result is known to fit, so that it is exact whatever wraps on the way.
            slab = part.view(dtype) if part.dtype.itemsize == dtype.itemsize else part.astype(dtype)
            for plane, a, b in zip(slab, slopes, intercepts, strict=True):
                if a != 1:
                    plane *= np.int64(a).astype(dtype)
                if b != 0:
                    plane += np.int64(b).astype(dtype)
        yield slab.astype(little, copy=False)


def describe_codestreams(found: Sequence[Layout], reads: Sequence[SliceRead]) -> list[Finding]:
    """Return what the caller should say about bits and codestreams that differ from the headers."""
    findings = []
    masked = sum(read.masked for read in reads)
    if masked:
        text = f"{masked} of {len(reads)} images have bits set above the {found[0].bits_stored} stored: they are masked"
        findings.append(Finding("high-bits-masked", text, {"images": masked}))
    odd = Counter(
        (read.precision, read.stream_signed, layout.bits_stored, layout.signed)
        for layout, read in zip(found, reads, strict=True)
        if read.precision is not None
        and (read.precision != layout.bits_stored or (read.stream_signed != layout.signed and _has_signs(layout)))
    )
    for (precision, signed, stored, header_signed), count in odd.items():
        text = (
            f"{count} codestreams have {precision} bits {'signed' if signed else 'unsigned'}, their headers {stored} bits "
            f"{'signed' if header_signed else 'unsigned'}: the codestream gives the bits, the header their meaning"
        )
        findings.append(Finding("codestream-differs", text, {"images": count}, warning=False))
    return findings


def _has_signs(layout: Layout) -> bool:
    return SYNTAXES[layout.syntax].form == "jpeg-2000"
