"""Read the stored values of images and frames exactly, and rescale them to modality values exactly.

Arrays are (k, j, i), of colour (k, j, i, 3) as red, green, blue. What is refused is refused from the headers where they tell,
before anything is allocated.
Source: DICOM PS3.3 C.7.6.3 (Image Pixel), C.11.1 (Modality LUT); PS3.5 section 8 (encoding of pixels).
"""

from __future__ import annotations

import hashlib
import math
import mmap
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdcli.dicom.codecs import SYNTAXES, decode_frame
from mdcli.dicom.colour import PHOTOMETRICS, to_rgb
from mdcli.dicom.finding import Finding
from mdcli.dicom.fragments import locate_frames
from mdcli.dicom.headers import KEYWORDS, Skipped, read_instance
from mdcli.dicom.instance import Instance
from mdcli.dicom.opening import SCAN_AGAIN, OpenSource, SourceFiles, shown
from mdcli.errors import DataError

MOST_PER_COMPRESSED_BYTE = 1000
"""A compressed series may claim this many bytes of pixels for each byte it has ..."""
ALWAYS_ALLOWED_BYTES = 64 << 20
"""... or this many in all: blank slices compress to almost nothing."""
MOST_INFLATED_HEADER = 16 << 20
"""What a deflated file may inflate to, beside its pixels."""
SLAB_BYTES = 8 << 20
_INTEGERS = ("int16", "uint16", "int32")

Place = tuple[tuple[int, int], ...]
"""Where the fragments of one compressed frame lie in its file: (offset, length) of each, bytes."""


@dataclass(frozen=True)
class Layout:
    """How the stored values of one image, or of one frame or mosaic tile, are encoded.

    Attributes:
        rows: of the image.
        columns: of the image.
        bits_allocated: 8, 16 or 32; of floating point 32 or 64.
        bits_stored: bits that carry the value.
        high_bit: the highest of them.
        signed: two's complement (PixelRepresentation 1).
        syntax: transfer syntax UID.
        samples: 1, or 3 of colour.
        planar: the samples of colour lie plane by plane (PlanarConfiguration 1).
        photometric: PhotometricInterpretation.
        floating: FloatPixelData or DoubleFloatPixelData.
        frames: that the file holds.
        picture: (rows, columns) as stored: of a mosaic more than of its tile.
    """

    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    syntax: str
    samples: int = 1
    planar: bool = False
    photometric: str = "MONOCHROME2"
    floating: bool = False
    frames: int = 1
    picture: tuple[int, int] = (0, 0)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the type that holds one stored value, in this machine's byte order."""
        kind = "f" if self.floating else "i" if self.signed else "u"
        return np.dtype(f"{kind}{self.bits_allocated // 8}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the image: (rows, columns), of colour (rows, columns, 3)."""
        return (self.rows, self.columns) if self.samples == 1 else (self.rows, self.columns, self.samples)

    @property
    def stored(self) -> tuple[int, int]:
        """Return rows and columns of the picture in the file."""
        return self.picture if self.picture != (0, 0) else (self.rows, self.columns)

    @property
    def nbytes(self) -> int:
        """Return the bytes of one decoded picture."""
        rows, columns = self.stored
        return rows * columns * self.samples * self.bits_allocated // 8

    @property
    def range(self) -> tuple[int, int]:
        """Return the lowest and highest value that BitsStored allows."""
        half = 1 << (self.bits_stored - 1)
        return (-half, half - 1) if self.signed else (0, 2 * half - 1)


@dataclass(frozen=True)
class SliceRead:
    """What reading one image found.

    Attributes:
        sha256: of the whole file; empty for a frame of a file that holds several.
        low: lowest stored value; of floating point the lowest finite one.
        high: highest stored value.
        padding_voxels: pixels of the padding value or range.
        masked: bits above BitsStored held something other than the sign, and were masked.
        precision: bits a sample by the codestream; None where there is none.
        stream_signed: sign by the codestream.
        lossy: how the codestream lost information, or None.
        colour: what the codestream says that its samples of colour are (`RGB`, `YBR`), or None.
    """

    sha256: str
    low: float
    high: float
    padding_voxels: int = 0
    masked: bool = False
    precision: int | None = None
    stream_signed: bool | None = None
    lossy: str | None = None
    colour: str | None = None


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

    def times(self, factors: Sequence[float], unit: str) -> Rescale:
        """Return the same with every slice multiplied by its factor, in another unit."""
        slopes = tuple(a * f for a, f in zip(self.slopes, factors, strict=True))
        intercepts = tuple(b * f for b, f in zip(self.intercepts, factors, strict=True))
        return replace(self, slopes=slopes, intercepts=intercepts, unit=unit)


def layouts(instances: Sequence[Instance]) -> tuple[list[Layout], list[Finding]]:
    """Return how each image is encoded, its claims held against the size of its file.

    Args:
        instances: images, frames or tiles, in any order.

    Returns:
        One layout an instance, and `pixels-long` findings: more bytes than the frames need.

    Raises:
        DataError: `unknown-syntax`, `unsupported-syntax`, `bad-bits`, `unsupported-bits`, `unsupported-colour`, `no-pixels`,
            `bad-encapsulation`, `pixels-short`, `truncated-pixels`, `compression-bomb`; each names the file.
    """
    found: list[Layout] = []
    findings: list[Finding] = []
    compressed, claimed = 0, 0
    files: set[str] = set()
    for instance in instances:
        layout = _layout(instance)
        found.append(layout)
        syntax, offset, length = SYNTAXES[layout.syntax], instance.pixel_offset, instance.pixel_length
        claimed += layout.nbytes if syntax.form not in ("raw", "big") and not instance.tile else 0
        if instance.path in files:
            continue
        files.add(instance.path)
        name = shown(instance.path)
        if syntax.form == "deflated":
            compressed += instance.size
        elif offset is None:
            raise DataError("no-pixels", f"{name} has no PixelData")
        elif syntax.encapsulated:
            if length is not None:
                raise DataError("bad-encapsulation", f"{name} says {syntax.name}, but its pixels are not encapsulated")
            compressed += max(0, instance.size - offset)
        elif length is None:
            raise DataError("bad-encapsulation", f"{name} says {syntax.name}, but its pixels are encapsulated")
        else:
            findings += _check_length(name, layout, offset, length, instance.size)
    if claimed > max(ALWAYS_ALLOWED_BYTES, MOST_PER_COMPRESSED_BYTE * compressed):
        raise DataError(
            "compression-bomb",
            f"{len(found)} images claim {claimed} bytes of pixels from {compressed} compressed bytes",
            claimed=claimed,
            compressed=compressed,
        )
    return found, findings


def _check_length(name: str, layout: Layout, offset: int, length: int, size: int) -> list[Finding]:
    needed = layout.nbytes * layout.frames
    if length < needed:
        rows, columns = layout.stored
        many = f"{layout.frames} frames of " if layout.frames > 1 else ""
        raise DataError(
            "pixels-short",
            f"{name} has {length} bytes of pixels; {many}{rows} x {columns} of {layout.bits_allocated} bits are {needed}",
            found=length,
            needed=needed,
        )
    if offset + needed > size:
        raise DataError(
            "truncated-pixels", f"{name} ends {offset + needed - size} bytes before its pixels do", size=size
        )
    # An odd length is padded to an even one.
    if length > needed + needed % 2:
        what = (
            "one frame: the first frame is used"
            if layout.frames == 1
            else f"{layout.frames} frames: the first ones are used"
        )
        text = f"{name} has {length - needed} bytes of pixels more than {what}"
        return [Finding("pixels-long", text, {"found": length, "needed": needed})]
    return []


def _layout(instance: Instance) -> Layout:
    name, syntax = shown(instance.path), str(instance.get("TransferSyntaxUID"))
    if syntax not in SYNTAXES:
        raise _no_such_syntax(name, syntax)
    form = SYNTAXES[syntax].form
    rows, columns = instance.attributes["Rows"], instance.attributes["Columns"]
    allocated, stored = instance.get("BitsAllocated"), instance.get("BitsStored")
    representation, high = instance.get("PixelRepresentation"), instance.get("HighBit")
    floating = bool(instance.get("FloatPixelData") or instance.get("DoubleFloatPixelData"))
    if floating:
        # Neither attribute belongs to floating point pixels (PS3.3 C.7.6.24, C.7.6.25).
        wanted = 32 if instance.get("FloatPixelData") else 64
        if allocated != wanted or SYNTAXES[syntax].encapsulated or form == "deflated":
            raise DataError(
                "bad-bits", f"{name} has floating point pixels in {_said(allocated)} bits, {SYNTAXES[syntax].name}"
            )
        stored, high, representation = wanted, wanted - 1, 1
    numbers = (allocated, stored, representation)
    if not all(isinstance(n, int) for n in numbers) or representation not in (0, 1):
        said = ", ".join(map(_said, numbers))
        raise DataError("bad-bits", f"{name} has BitsAllocated, BitsStored, PixelRepresentation {said}")
    high = stored - 1 if high is None else high
    if allocated not in (8, 16, 32, 64 if floating else 32):
        raise DataError("unsupported-bits", f"{name} has {allocated} bits allocated in {SYNTAXES[syntax].name}")
    if not isinstance(high, int) or not 0 < stored <= high + 1 <= allocated:
        raise DataError(
            "bad-bits", f"{name} has BitsStored {stored} and HighBit {shown(str(high))} in {allocated} bits allocated"
        )
    if SYNTAXES[syntax].encapsulated and form != "rle" and high != stored - 1:
        raise DataError(
            "bad-bits", f"{name} has HighBit {high} with BitsStored {stored} in a {SYNTAXES[syntax].name} image"
        )
    samples, photometric = instance.get("SamplesPerPixel", 1), str(instance.get("PhotometricInterpretation"))
    if samples != 1:
        encapsulated = SYNTAXES[syntax].encapsulated
        odd = photometric not in PHOTOMETRICS or (photometric == "YBR_FULL_422" and not encapsulated)
        if samples != 3 or allocated != 8 or odd or representation:
            raise DataError(
                "unsupported-colour",
                f"{name} has {_said(samples)} samples of {allocated} bits a pixel, {_said(photometric)}, {SYNTAXES[syntax].name}",
            )
    return Layout(
        rows,
        columns,
        allocated,
        stored,
        high,
        bool(representation),
        syntax,
        samples,
        instance.get("PlanarConfiguration", 0) == 1,
        photometric,
        floating,
        _frames_of(instance),
        (instance.tile[2], instance.tile[3]) if instance.tile else (0, 0),
    )


def _frames_of(instance: Instance) -> int:
    frames = instance.get("NumberOfFrames", 1) if instance.frame is not None else 1
    return frames if isinstance(frames, int) and frames > 0 else 1


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
        DataError: `no-rescale` (CT or PET without; a CT localizer may be), `bad-rescale` (no number, one of the two alone, or not
            in every slice), `not-ct`.

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
    scout = all("LOCALIZER" in _texts(instance.get("ImageType")) for instance in instances)
    tabled = all(instance.get("ModalityLUTSequence") is not None for instance in instances)
    if bare and modality in ("CT", "PT") and not assume_hu and not scout and not tabled:
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


def _texts(value: Any) -> list[str]:
    return [str(v) for v in value] if isinstance(value, (list, tuple)) else [str(value)]


def _said(value: Any) -> str:
    return "absent" if value is None else shown(str(value))


def container(found: Sequence[Layout]) -> np.dtype[Any]:
    """Return the smallest type that holds the stored values of all layouts; signed and unsigned 32 bits together take 64.

    Raises:
        DataError: `mixed-bits` where integers and floating point meet, `mixed-kinds` where gray and colour do.
    """
    if len({layout.samples for layout in found}) > 1:
        raise DataError("mixed-kinds", "some images have one sample a pixel, others three")
    kinds = {layout.floating for layout in found}
    if len(kinds) > 1:
        raise DataError("mixed-bits", "some images have integer, others floating point pixels")
    return np.result_type(*{layout.dtype for layout in found})


def room_for(instances: Sequence[Instance], found: Sequence[Layout]) -> NDArray[Any]:
    """Return an array (k, j, i), of colour (k, j, i, 3), that holds the stored values of all images, not yet written.

    `np.empty` would ask for huge pages, which a virtual machine may first have to get back from its host: reading 150 MiB then
    took 0.2 s more of 0.4.
    """
    shape, dtype = (len(instances), *found[0].shape), container(found)
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}
    return np.frombuffer(mmap.mmap(-1, math.prod(shape) * dtype.itemsize, **private), dtype).reshape(shape)


def places_of(files: SourceFiles, instances: Sequence[Instance], found: Sequence[Layout]) -> list[Place | None]:
    """Return where the fragments of every frame lie, for the compressed files that hold several; None for the others.

    Raises:
        DataError: `bad-encapsulation`, `truncated-pixels`, `bad-offsets`; each names the file.
    """
    known: dict[str, list[Place]] = {}
    places: list[Place | None] = []
    for instance, layout in zip(instances, found, strict=True):
        if not is_shared(instance) or not SYNTAXES[layout.syntax].encapsulated:
            places.append(None)
            continue
        if instance.path not in known:
            known[instance.path] = _located(files, instance, layout)
        places.append(known[instance.path][instance.frame or 0])
    return places


def _located(files: SourceFiles, instance: Instance, layout: Layout) -> list[Place]:
    name = shown(instance.path)
    with files.open(instance.path, instance.size) as file:

        def read(offset: int, length: int) -> bytes:
            file.seek(offset)
            return file.read(min(length, instance.size - offset))

        try:
            form = SYNTAXES[layout.syntax].form
            extended = _extended_offsets(read, instance)
            found = locate_frames(read, instance.pixel_offset or 0, instance.size, layout.frames, form, extended)
        except DataError as error:
            raise DataError(error.code, f"{name}: {error.message}", hint=error.hint, **error.numbers) from error
    return [tuple(frame) for frame in found]


def _extended_offsets(read: Callable[[int, int], bytes], instance: Instance) -> tuple[list[int], list[int]] | None:
    """Return offsets and lengths of an Extended Offset Table, or None. Source: DICOM PS3.3 C.7.6.3.1.8."""
    if not instance.get("ExtendedOffsetTable"):
        return None
    from mdcli.dicom.sources import whole_header

    header = whole_header(read(0, instance.pixel_offset or 0))
    tables = [header.get(f"ExtendedOffsetTable{part}") for part in ("", "Lengths")]
    if not all(isinstance(table, bytes) and len(table) % 8 == 0 for table in tables):
        raise DataError("bad-offsets", "its Extended Offset Table can't be read")
    offsets, lengths = (np.frombuffer(table, "<u8").astype(np.int64).tolist() for table in tables)
    return offsets, lengths


def is_shared(instance: Instance) -> bool:
    """Say whether an instance is one of several frames or tiles of its file."""
    return instance.frame is not None or instance.tile is not None


def read_slice(
    files: SourceFiles,
    instance: Instance,
    layout: Layout,
    padding: tuple[int, int] | None,
    out: NDArray[Any],
    place: Place | None = None,
) -> SliceRead:
    """Read one image's stored values; hash its file on the way where it holds this image alone.

    Args:
        files: where the instance's path is opened.
        instance: as the scan saw it.
        layout: how its pixels are encoded.
        padding: lowest and highest stored value that mean padding.
        out: (rows, columns), or (rows, columns, 3), contiguous, of the type that `container` gave: takes the stored values, of
            colour red, green and blue.
        place: of a compressed frame among several, where it lies.

    Raises:
        DataError: `source-changed` where size or header are not as scanned; `bad-artifact` where the instance is not what its
            header says; `padding-out-of-range`; those of `decode_frame`, `deflate-bomb`; each names the file.
        MissingError: `source-missing`.
    """
    form, name = SYNTAXES[layout.syntax].form, shown(instance.path)
    direct = out.dtype == layout.dtype and not instance.tile and not layout.planar
    plane = out if direct else np.empty(layout.shape, layout.dtype)
    try:
        if is_shared(instance):
            sha256, facts = "", _read_shared(files, instance, layout, place, plane)
        else:
            sha256, facts = _read_alone(files, instance, layout, plane)
        low, high, masked, padded = _settled(plane, layout, padding, form, facts)
    except DataError as error:
        if error.code in ("source-changed", "bad-artifact", "source-unreadable"):
            raise
        raise DataError(error.code, f"{name}: {error.message}", hint=error.hint, **error.numbers) from error
    if plane is not out:
        out[...] = plane
    return SliceRead(sha256, low, high, padded, masked, **facts)


def _read_alone(
    files: SourceFiles, instance: Instance, layout: Layout, plane: NDArray[Any]
) -> tuple[str, dict[str, Any]]:
    """Read the only image of a file into `plane`; return the file's SHA-256 and what the codestream says."""
    form = SYNTAXES[layout.syntax].form
    facts: dict[str, Any] = {}
    digest = hashlib.sha256()
    with files.open(instance.path, instance.size) as file:
        if form in ("raw", "big"):
            header = file.read(instance.pixel_offset or 0)
            digest.update(header)
            check_header(instance, header, digest.hexdigest())
            if _in_words(layout, header[-12:]):
                words = file.read(layout.nbytes + layout.nbytes % 2)
                digest.update(words)
                raw = _swapped(words)[: layout.nbytes]
            else:
                raw = np.empty(layout.nbytes, np.uint8) if layout.planar else plane.reshape(-1).view(np.uint8)
                file.fill(raw.data)
                digest.update(raw.data)
            digest.update(file.read())
            _place_raw(raw, layout, plane, big=form == "big")
            return digest.hexdigest(), facts
        data = file.read()
    offset = len(data) if instance.pixel_offset is None else instance.pixel_offset
    digest.update(memoryview(data)[:offset])
    check_header(instance, data if instance.pixel_offset is None else data[:offset], digest.hexdigest())
    digest.update(memoryview(data)[offset:])
    if form == "deflated":
        _place_raw(_inflated(data, layout.nbytes), layout, plane)
    else:
        view = memoryview(data)
        (place,) = locate_frames(lambda at, length: bytes(view[at : at + length]), offset, len(data), 1, form)
        facts = _decoded(form, b"".join(view[at : at + length] for at, length in place), layout, plane)
    return digest.hexdigest(), facts


def _read_shared(
    files: SourceFiles, instance: Instance, layout: Layout, place: Place | None, plane: NDArray[Any]
) -> dict[str, Any]:
    """Read one frame, or one tile of a picture, into `plane`; return what the codestream says."""
    form, frame = SYNTAXES[layout.syntax].form, instance.frame or 0
    if form in ("raw", "big"):
        start = (instance.pixel_offset or 0) + frame * layout.nbytes
        with files.open(instance.path, instance.size) as file:
            if form == "big" and layout.bits_allocated == 8:
                file.seek((instance.pixel_offset or 0) - 12)
                if _in_words(layout, file.read(12)):
                    picture = _picture_in_words(file, instance, layout)
                    plane[...] = _tile(picture, instance, layout)
                    return {}
            if not instance.tile:
                raw = np.empty(layout.nbytes, np.uint8) if layout.planar else plane.reshape(-1).view(np.uint8)
                file.seek(start)
                file.fill(raw.data)
                _place_raw(raw, layout, plane, big=form == "big")
                return {}
            row, column, rows, columns = instance.tile
            width = columns * layout.dtype.itemsize
            if row + layout.rows > rows or column + layout.columns > columns or layout.samples != 1:
                raise DataError("mosaic", f"a tile at row {row}, column {column} lies outside its picture")
            file.seek(start + row * width)
            band = np.frombuffer(
                file.read(layout.rows * width), layout.dtype.newbyteorder(">" if form == "big" else "<")
            )
        plane[...] = band.reshape(layout.rows, columns)[:, column : column + layout.columns]
        return {}
    picture, facts = files.kept((instance.path, frame), lambda: _picture(files, instance, layout, place))
    plane[...] = _tile(picture, instance, layout)
    return dict(facts)


def _in_words(layout: Layout, element: bytes) -> bool:
    """Say whether bytes lie in pairs, the second one first: of 8 bits, in big endian, with the value representation OW.

    Source: DICOM PS3.5 8.1.1 and A.3: words are swapped, bytes (OB) are not.
    """
    big = SYNTAXES[layout.syntax].form == "big"
    return big and layout.bits_allocated == 8 and element[4:6] == b"OW"


def _swapped(words: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(words, "<u2").byteswap().view(np.uint8)


def _picture_in_words(file: OpenSource, instance: Instance, layout: Layout) -> NDArray[Any]:
    """Return one picture of a file with several, whose bytes lie in pairs; the first pair may begin in the picture before."""
    whole = replace(layout, rows=layout.stored[0], columns=layout.stored[1])
    start = (instance.frame or 0) * layout.nbytes
    first, end = start & ~1, start + layout.nbytes
    file.seek((instance.pixel_offset or 0) + first)
    raw = _swapped(file.read(end + end % 2 - first))[start - first : end - first]
    picture = np.empty(whole.shape, layout.dtype)
    _place_raw(raw, whole, picture, big=True)
    return picture


def _picture(
    files: SourceFiles, instance: Instance, layout: Layout, place: Place | None
) -> tuple[NDArray[Any], dict[str, Any]]:
    """Return a whole decoded picture of a file that holds several frames or tiles, and what its codestream says."""
    form, frame = SYNTAXES[layout.syntax].form, instance.frame or 0
    whole = replace(layout, rows=layout.stored[0], columns=layout.stored[1])
    picture = np.empty(whole.shape, layout.dtype)
    with files.open(instance.path, instance.size) as file:
        if form == "deflated":
            pixels = files.kept((instance.path, -1), lambda: _inflated(file.read(), layout.nbytes * layout.frames))
            _place_raw(pixels[frame * layout.nbytes : (frame + 1) * layout.nbytes], whole, picture)
            return picture, {}
        stream = bytearray()
        for offset, length in place or ():
            file.seek(offset)
            stream += file.read(length)
    return picture, _decoded(form, bytes(stream), whole, picture)


def _tile(picture: NDArray[Any], instance: Instance, layout: Layout) -> NDArray[Any]:
    if not instance.tile:
        return picture
    row, column = instance.tile[:2]
    tile = picture[row : row + layout.rows, column : column + layout.columns]
    if tile.shape[:2] != (layout.rows, layout.columns):
        raise DataError("mosaic", f"a tile at row {row}, column {column} lies outside its picture")
    return tile


def _place_raw(raw: NDArray[np.uint8], layout: Layout, plane: NDArray[Any], *, big: bool = False) -> None:
    """Put the bytes of one uncompressed picture into `plane`, which may be the same memory."""
    if layout.planar:
        plane[...] = raw.reshape(layout.samples, *layout.shape[:2]).transpose(1, 2, 0)
    elif not np.shares_memory(raw, plane):
        plane.reshape(-1).view(np.uint8)[...] = raw
    if big != (sys.byteorder == "big") and layout.dtype.itemsize > 1:
        plane.byteswap(inplace=True)
    if layout.samples == 3:
        to_rgb(plane, layout.photometric)


def _settled(
    plane: NDArray[Any], layout: Layout, padding: tuple[int, int] | None, form: str, facts: dict[str, Any]
) -> tuple[float, float, bool, int]:
    """Return lowest and highest stored value, whether bits were masked, and how many pixels are padding."""
    if layout.floating:
        finite = plane[np.isfinite(plane)]
        return (float(finite.min()), float(finite.max()), False, 0) if finite.size else (0.0, 0.0, False, 0)
    if layout.samples == 3:
        return int(plane.min()), int(plane.max()), False, 0
    low, high, masked = _settle_bits(plane, layout, padding, from_codestream=bool(facts))
    padded = 0
    if padding and low <= padding[1] and high >= padding[0]:
        if padding[0] == padding[1]:
            padded = int(np.count_nonzero(plane == padding[0]))
        else:
            padded = int(np.count_nonzero((plane >= padding[0]) & (plane <= padding[1])))
    return low, high, masked, padded


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


def check_header(instance: Instance, header: bytes, sha256: str) -> None:
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


def _inflated(data: bytes, needed: int) -> NDArray[np.uint8]:
    """Return the first bytes of a deflated file's pixels (DICOM PS3.5 A.5); inflates no more than those and a header need."""
    from io import BytesIO

    from pydicom.filereader import read_dataset

    pixel_data, most = 0x7FE00010, needed + MOST_INFLATED_HEADER
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
    if len(pixels) < needed:
        raise DataError("pixels-short", f"it has {len(pixels)} bytes of pixels, {needed} are needed")
    return np.frombuffer(pixels, np.uint8, needed)


def _decoded(form: str, stream: bytes, layout: Layout, plane: NDArray[Any]) -> dict[str, Any]:
    """Decode a frame into `plane` by the one rule for precision and sign, and return what the codestream says.

    The rule: the codestream gives each sample's bits (its precision P), the header their meaning: the low P bits are two's
    complement where PixelRepresentation is 1, unsigned where it is 0. A value that BitsStored can't hold, or a negative one where
    the header says unsigned, is a contradiction and refused. So is a value with the highest of P bits set where the codestream has
    no signs, the header has, and P is less than BitsStored: it may be large or negative. (JPEG has no signs, nor has JPEG-LS: DICOM
    PS3.5 8.2.1, 8.2.3.)
    """
    found = decode_frame(form, stream, layout.rows, layout.columns, layout.samples, layout.bits_allocated)
    if layout.samples == 3:
        plane[...] = found.samples
        to_rgb(plane, layout.photometric if found.colour is None else found.colour)
        facts = {"precision": found.precision, "stream_signed": found.signed, "lossy": found.lossy}
        return {**facts, "colour": found.colour}
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


@dataclass(frozen=True)
class Span:
    """What modality values there are, as far as the choice of a type needs it.

    Attributes:
        low: the lowest.
        high: the highest.
        whole: all are whole numbers.
        single: float32 holds every one exactly.
        floating: they are floating point as stored, of this many bytes each; 0 for integers.
    """

    low: float
    high: float
    whole: bool
    single: bool
    floating: int = 0

    def __or__(self, other: Span) -> Span:
        return Span(
            min(self.low, other.low),
            max(self.high, other.high),
            self.whole and other.whole,
            self.single and other.single,
            max(self.floating, other.floating),
        )

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the first of int16, uint16, int32, float32, float64 that holds every value exactly."""
        if not self.floating and self.whole:
            for name in _INTEGERS:
                limits = np.iinfo(name)
                if limits.min <= self.low and self.high <= limits.max:
                    return np.dtype(name)
        return np.dtype("float32" if self.single else "float64")


def possible_span(found: Sequence[Layout], rescale: Rescale) -> Span | None:
    """Return the span of all values that the headers allow, where every one of them is a whole number; None elsewhere."""
    pairs = list(zip(found, rescale.slopes, rescale.intercepts, strict=True))
    if not all(a.is_integer() and b.is_integer() and not x.floating for x, a, b in pairs):
        return None
    ends = [int(a) * v + int(b) for x, a, b in pairs for v in x.range]
    return Span(min(ends), max(ends), True, max(map(abs, ends)) <= 1 << 24)


def modality_span(stored: NDArray[Any], reads: Sequence[SliceRead], rescale: Rescale) -> Span:
    """Return what modality values a volume has. The value is slope x stored + intercept in float64.

    Args:
        stored: (k, j, i), stored values.
        reads: what reading each slice found, in the order of k.
        rescale: slopes and intercepts.

    Raises:
        DataError: `bad-rescale` where a value is beyond float64.
    """
    pairs = list(zip(rescale.slopes, rescale.intercepts, strict=True))
    if not all(math.isfinite(a * v + b) for (a, b), r in zip(pairs, reads, strict=True) for v in (r.low, r.high)):
        raise DataError("bad-rescale", "RescaleSlope and RescaleIntercept lead beyond what float64 holds")
    integers = stored.dtype.kind in "iu"
    if integers and all(a.is_integer() and b.is_integer() for a, b in pairs):
        ends = [int(a) * int(v) + int(b) for (a, b), r in zip(pairs, reads, strict=True) for v in (r.low, r.high)]
        limits = np.iinfo("int32")
        if limits.min <= min(ends) and max(ends) <= limits.max:
            return Span(min(ends), max(ends), True, max(map(abs, ends)) <= 1 << 24)
    if not integers and all(pair == (1.0, 0.0) for pair in pairs):
        size = stored.dtype.itemsize
        return Span(min(r.low for r in reads), max(r.high for r in reads), False, size == 4, size)
    span = Span(math.inf, -math.inf, True, True)
    for plane, (slope, intercept) in zip(stored, pairs, strict=True):
        values = plane.astype(np.float64) * slope + intercept
        with np.errstate(over="ignore", invalid="ignore"):
            narrow = values.astype(np.float32)
        finite = np.isfinite(values)
        here = values[finite] if not finite.all() else values
        low, high = (float(here.min()), float(here.max())) if here.size else (0.0, 0.0)
        whole = bool((np.rint(values) == values).all())
        span |= Span(low, high, whole, bool((narrow == values)[finite].all()))
    return span


def modality_slabs(stored: NDArray[Any], rescale: Rescale, dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    """Yield the modality values in slabs along k, contiguous and little endian; stored colours as they are.

    Args:
        stored: (k, j, i), stored values; overwritten where the type has the same size.
        rescale: slopes and intercepts.
        dtype: the span's.
    """
    depth = max(1, SLAB_BYTES // max(1, stored[0].size * dtype.itemsize))
    unchanged = all(a == 1 and b == 0 for a, b in zip(rescale.slopes, rescale.intercepts, strict=True))
    little = dtype.newbyteorder("<")
    for start in range(0, len(stored), depth):
        part = stored[start : start + depth]
        slopes, intercepts = rescale.slopes[start : start + depth], rescale.intercepts[start : start + depth]
        if unchanged and part.dtype.kind == dtype.kind and part.dtype.itemsize == dtype.itemsize:
            slab = part
        elif "f" in (dtype.kind, part.dtype.kind) or not all(v.is_integer() for v in (*slopes, *intercepts)):
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
    stated = [None if x.samples == 1 else "YBR" if x.photometric.startswith("YBR_FULL") else "RGB" for x in found]
    apart = [r.colour for r, s in zip(reads, stated, strict=True) if r.colour is not None and s not in (None, r.colour)]
    if apart:
        text = f"{len(apart)} codestreams say that they are {apart[0]}, their headers something else: the codestream is believed"
        findings.append(Finding("codestream-colour-differs", text, {"images": len(apart)}))
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
