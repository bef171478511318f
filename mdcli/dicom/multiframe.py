"""Give every frame of a multi-frame object, and every tile of a mosaic, the attributes that a single-frame image has.

A frame's attributes are those of its object, then those of the shared, then of its own functional groups, under the keywords
of single-frame images: FrameType is ImageType, EffectiveEchoTime is EchoTime, and so on.

Source: DICOM PS3.3 C.7.6.16 (multi-frame functional groups), C.7.6.17 (dimensions), C.7.6.6 (multi-frame without them).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from struct import iter_unpack
from typing import Any

from mdcli.dicom.headers import EXPLICIT_BIG, EXPLICIT_LITTLE, IMPLICIT_LITTLE, KEYWORDS
from mdcli.dicom.instance import Instance
from mdcli.dicom.mosaic import is_mosaic, tiles_of
from mdcli.dicom.nested import Block, Element, Header, open_header
from mdcli.dicom.opening import SourceFiles, shown
from mdcli.errors import DataError

MAX_FRAMES = 1 << 17
"""Frames of one object: more is `too-many-frames`."""

_PER_FRAME, _SHARED, _DIMENSIONS = 0x52009230, 0x52009229, 0x00209222
_CHARSET, _POINTER = 0x00080005, 0x00209165
_INCREMENT, _FRAME_TIME, _FRAME_TIMES = 0x00280009, 0x00181063, 0x00181065
_PLACING = frozenset((0x00209113, 0x00209116, 0x00289110, 0x00289145))
"""Macros that say where a frame lies and what its values mean: with two items neither is known."""

# Attributes of functional groups that the scan does not read. DICOM keyword: (tag, value representation, one value only).
# Source: DICOM PS3.6 section 6.
FRAME_KEYWORDS: dict[str, tuple[int, str, bool]] = {
    "ReferencedSOPInstanceUID": (0x00081155, "UI", True),
    "FrameType": (0x00089007, "CS", False),
    "VolumetricProperties": (0x00089206, "CS", True),
    "ComplexImageComponent": (0x00089208, "CS", True),
    "AcquisitionContrast": (0x00089209, "CS", True),
    "FrameAcquisitionDateTime": (0x00189074, "DT", True),
    "DiffusionDirectionality": (0x00189075, "CS", True),
    "InversionTimes": (0x00189079, "FD", False),
    "EffectiveEchoTime": (0x00189082, "FD", True),
    "VelocityEncodingDirection": (0x00189090, "FD", False),
    "FrameReferenceDateTime": (0x00189151, "DT", True),
    "RespiratoryCyclePosition": (0x00189214, "CS", True),
    "FrameAcquisitionDuration": (0x00189220, "FD", True),
    "CardiacCyclePosition": (0x00189236, "CS", True),
    "NominalCardiacTriggerDelayTime": (0x00209153, "FD", True),
    "FrameAcquisitionNumber": (0x00209156, "US", True),
    "DimensionIndexValues": (0x00209157, "UL", False),
    "NominalPercentageOfCardiacPhase": (0x00209241, "FL", True),
    "NominalPercentageOfRespiratoryPhase": (0x00209245, "FL", True),
    "NominalRespiratoryTriggerDelayTime": (0x00209255, "FD", True),
    "TemporalPositionTimeOffset": (0x0020930D, "FD", True),
    "FrameLabel": (0x00209453, "LO", True),
}
_TAGS = {**KEYWORDS, **FRAME_KEYWORDS}

_FRAME_TYPE = ("FrameType", "VolumetricProperties", "ComplexImageComponent", "AcquisitionContrast")
# Functional group macro: what a frame takes from it.
# Source: DICOM PS3.3 C.7.6.16.2 (common), C.8.13.5 (MR), C.8.15.3 (CT), C.8.19.6 (XA), C.8.21.3 (X-ray 3D), C.8.22.5 (PET),
# C.8.32.3 (parametric map).
_MACROS: dict[int, tuple[str, ...]] = {
    0x00189114: ("EffectiveEchoTime",),  # MREchoSequence
    0x00189115: ("InversionTimes",),  # MRModifierSequence
    0x00189112: ("RepetitionTime", "FlipAngle"),  # MRTimingAndRelatedParametersSequence
    0x00189117: ("DiffusionBValue", "DiffusionDirectionality"),  # MRDiffusionSequence
    0x00189118: ("NominalCardiacTriggerDelayTime", "NominalPercentageOfCardiacPhase"),  # CardiacSynchronizationSequence
    0x00189197: ("VelocityEncodingDirection",),  # MRVelocityEncodingSequence
    0x00189226: _FRAME_TYPE,  # MRImageFrameTypeSequence
    0x00189304: ("GantryDetectorTilt",),  # CTAcquisitionDetailsSequence
    0x00189314: ("ConvolutionKernel",),  # CTReconstructionSequence
    0x00189325: ("KVP",),  # CTXRayDetailsSequence
    0x00189329: _FRAME_TYPE,  # CTImageFrameTypeSequence
    0x00189417: ("KVP",),  # FrameAcquisitionSequence
    0x00189504: _FRAME_TYPE,  # XRay3DFrameTypeSequence
    0x00189751: _FRAME_TYPE,  # PETFrameTypeSequence
    0x00289443: (  # FramePixelDataPropertiesSequence
        "FrameType",
        "ImagerPixelSpacing",
        "PixelIntensityRelationship",
        "PixelIntensityRelationshipSign",
    ),
    0x00409092: _FRAME_TYPE,  # ParametricMapFrameTypeSequence
    0x00209111: (  # FrameContentSequence
        "FrameAcquisitionDateTime",
        "FrameReferenceDateTime",
        "FrameAcquisitionDuration",
        "FrameAcquisitionNumber",
        "CardiacCyclePosition",
        "RespiratoryCyclePosition",
        "StackID",
        "InStackPositionNumber",
        "TemporalPositionIndex",
        "DimensionIndexValues",
        "FrameLabel",
    ),
    0x00209113: ("ImagePositionPatient",),  # PlanePositionSequence
    0x00209116: ("ImageOrientationPatient",),  # PlaneOrientationSequence
    0x00209253: (  # RespiratorySynchronizationSequence
        "NominalPercentageOfRespiratoryPhase",
        "NominalRespiratoryTriggerDelayTime",
    ),
    0x00209310: ("TemporalPositionTimeOffset",),  # TemporalPositionSequence
    0x00289110: ("PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),  # PixelMeasuresSequence
    0x00289132: ("WindowCenter", "WindowWidth", "VOILUTFunction"),  # FrameVOILUTSequence
    0x00289145: ("RescaleIntercept", "RescaleSlope", "RescaleType"),  # PixelValueTransformationSequence
}
_DIFFUSION, _DIRECTION = 0x00189117, 0x00189076
_MAPPING, _INTENSITY_LUT = 0x00409096, 0x00289422
_SOURCE = "ReferencedSOPInstanceUID"
_UNASSIGNED_SHARED, _UNASSIGNED, _CONVERTED_FROM = 0x00209170, 0x00209171, 0x00209172
_ALL_MACROS = frozenset((*_MACROS, _MAPPING, _INTENSITY_LUT, _UNASSIGNED_SHARED, _UNASSIGNED, _CONVERTED_FROM))
# What a single-frame image calls it. Source: DICOM PS3.3 C.7.6.16.2, the notes of the macros.
_AS_SINGLE = {
    "FrameType": "ImageType",
    "EffectiveEchoTime": "EchoTime",
    "InversionTimes": "InversionTime",
    "FrameAcquisitionNumber": "AcquisitionNumber",
    "FrameAcquisitionDateTime": "AcquisitionDateTime",
    "NominalCardiacTriggerDelayTime": "TriggerTime",
}
# What describes the object and its pixels stays the object's, whatever a converter left over (PS3.3 C.7.6.16.2.25).
_OF_OBJECT = frozenset(
    (
        "TransferSyntaxUID",
        "ImplementationVersionName",
        "SpecificCharacterSet",
        "SOPClassUID",
        "SOPInstanceUID",
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "FrameOfReferenceUID",
        "Modality",
        "SamplesPerPixel",
        "PhotometricInterpretation",
        "PlanarConfiguration",
        "NumberOfFrames",
        "Rows",
        "Columns",
        "BitsAllocated",
        "BitsStored",
        "HighBit",
        "PixelRepresentation",
        "OverlayRows",
        *(keyword for keyword, (_, vr, _) in KEYWORDS.items() if vr in ("SQ", "OV", "OF", "OD")),
    )
)
_LEFT_OVER = {tag: keyword for keyword, (tag, _, _) in KEYWORDS.items() if keyword not in _OF_OBJECT}

# Correction: its word in CorrectedImage. Source: DICOM PS3.3 C.8.22.6 and C.8.9.4.
_CORRECTIONS = {
    0x00189758: "DECY",
    0x00189759: "ATTN",
    0x00189760: "SCAT",
    0x00189761: "DTIM",
    0x00189762: "MOTN",
    0x00189763: "PMOT",
    0x00189764: "CLN",
    0x00189765: "RAN",
    0x00189766: "RADL",
    0x00189767: "DCAL",
    0x00189768: "NORM",
}
_DECAY_CORRECTED_TO = 0x00189701
# UCUM code: Units (0054,1001). Source: DICOM PS3.16 CID 84 and PS3.3 C.8.9.1.1.3.
_PET_UNITS = {
    "Bq/ml": "BQML",
    "{counts}": "CNTS",
    "{counts}/s": "CPS",
    "{propcounts}": "PROPCNTS",
    "{propcounts}/s": "PROPCPS",
    "g/ml{SUVbw}": "GML",
    "%": "PCNT",
}

_REAL_WORLD = "real world"
"""Stands for what a frame's real world value mapping says, until the frame is whole; no keyword has a blank."""
_SAME_SCALE = (("slope", "RescaleSlope"), ("intercept", "RescaleIntercept"))

_UNCOMPRESSED = frozenset((IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG))
_FRAME_ITEM_BYTES = 8
"""What a frame takes at least where pixels are encapsulated: its item's tag and length (PS3.5 A.4)."""

# Objects of these classes hold frames, even if they hold one. Source: DICOM PS3.6 table A-1.
_MULTI_FRAME_CLASSES = frozenset(
    "1.2.840.10008.5.1.4.1.1." + last
    for last in (
        "2.1",  # enhanced CT
        "2.2",  # legacy converted enhanced CT
        "4.1",  # enhanced MR
        "4.3",  # enhanced MR colour
        "4.4",  # legacy converted enhanced MR
        "130",  # enhanced PET
        "128.1",  # legacy converted enhanced PET
        "6.2",  # enhanced US volume
        "12.1.1",  # enhanced XA
        "12.2.1",  # enhanced XRF
        "13.1.1",  # X-ray 3D angiographic
        "13.1.2",  # X-ray 3D craniofacial
        "13.1.3",  # breast tomosynthesis
        "30",  # parametric map
    )
)
_NM_CLASS = "1.2.840.10008.5.1.4.1.1.20"


def is_multi_frame(instance: Instance) -> bool:
    """Say whether an instance of the scan holds frames: NumberOfFrames over 1, functional groups, or a class that has them."""
    return instance.frame is None and (
        instance.get("NumberOfFrames", 1) != 1
        or "PerFrameFunctionalGroupsSequence" in instance.attributes
        or instance.get("SOPClassUID") in _MULTI_FRAME_CLASSES
    )


def frames_of(files: SourceFiles, instances: Sequence[Instance]) -> list[Instance]:
    """Replace each multi-frame instance by its frames and each mosaic by its tiles; leave all others as they are.

    Beside the keywords of `mdcli.dicom.headers.KEYWORDS`, a frame may have those of `FRAME_KEYWORDS`, and
    `DimensionIndexPointers` (what each of DimensionIndexValues counts: a keyword, or a tag as eight hexadecimal digits),
    `ConversionSourceUID` (the single-frame image that it was converted from), `FrameTimeMs` (ms since the first frame),
    `PixelIntensityRelationshipLUTSequence` (True), and for PET `DecayCorrectionDateTime`. Where one frame's functional
    groups give an attribute, the object's own value of it counts for no frame.

    Args:
        files: the scanned folder or zip file; only files with frames are opened.
        instances: of one series, in any order.

    Returns:
        The instances, frames in the order of their file; the parts of a concatenation one after another.

    Raises:
        MissingError: `source-missing`.
        DataError: `source-unreadable`, `source-changed`, `damaged-header`, `frames-mismatch`, `too-many-frames`,
            `multi-frame-nm`, `mosaic`, `concatenation-incomplete`; each names the file.
    """
    found: list[Instance] = []
    parts: dict[str, list[_Part]] = {}
    for instance in instances:
        if is_multi_frame(instance):
            if is_mosaic(instance):
                raise DataError("mosaic", f"{shown(instance.path)} is a mosaic that has frames as well")
            header = open_header(files, instance)
            frames = _frames(header, instance)
            uid = instance.get("ConcatenationUID")
            if uid is None:
                found += frames
            else:
                parts.setdefault(str(uid), []).append(_part(header, instance, frames))
        elif is_mosaic(instance):
            found += tiles_of(open_header(files, instance), instance)
        else:
            found.append(instance)
    for joined in parts.values():
        found += _joined(joined)
    return found


@dataclass(frozen=True)
class _Part:
    """One object of a concatenation (PS3.3 C.7.6.16.1.2)."""

    name: str
    identity: tuple[Any, str]
    number: int | None
    total: int | None
    offset: int | None
    frames: list[Instance]


def _part(header: Header, instance: Instance, frames: list[Instance]) -> _Part:
    tags = {0x00209162: "US", 0x00209163: "US", 0x00209228: "UL"}
    found = header.elements(header.top, tags)
    values = [header.value(found[tag], vr, single=True) if tag in found else None for tag, vr in tags.items()]
    number, total, offset = (value if isinstance(value, int) else None for value in values)
    return _Part(header.name, (instance.get("SOPInstanceUID"), instance.header_sha256), number, total, offset, frames)


def _joined(parts: list[_Part]) -> Iterator[Instance]:
    """Return the frames of a concatenation, in order, if all are there."""
    parts = sorted(
        {part.identity: part for part in parts}.values(), key=lambda part: (part.offset or 0, part.number or 0)
    )
    totals = {part.total for part in parts if part.total}
    first = parts[0].name
    if len(totals) > 1 or (totals and totals != {len(parts)}):
        said = " and ".join(map(str, sorted(totals)))
        message = f"{first} is part of a concatenation of {said} objects, of which {len(parts)} are there"
        raise DataError("concatenation-incomplete", message, found=len(parts), total=max(totals))
    next_frame = 0
    for part in parts:
        # Where the offset is absent, as in old objects, the number has to do.
        if part.offset is None and part.number is None:
            raise DataError("concatenation-incomplete", f"{part.name} does not say which part of a concatenation it is")
        if part.offset is not None and part.offset != next_frame:
            message = f"{part.name} starts at frame {part.offset + 1} of a concatenation, after frame {next_frame}"
            raise DataError("concatenation-incomplete", message, found=part.offset, wanted=next_frame)
        next_frame += len(part.frames)
    numbers = [part.number for part in parts if part.number is not None]
    if numbers != list(range(1, len(numbers) + 1)):
        listed = ", ".join(map(str, numbers))
        raise DataError(
            "concatenation-incomplete", f"{first} is part of a concatenation of which parts {listed} are there"
        )
    return (frame for part in parts for frame in part.frames)


def _frames(header: Header, instance: Instance) -> list[Instance]:
    count = instance.get("NumberOfFrames", 1)
    if not isinstance(count, int) or count < 1:
        raise DataError("frames-mismatch", f"{header.name} has {shown(str(count))[:16]} as its number of frames")
    if count > MAX_FRAMES:
        raise DataError(
            "too-many-frames", f"{header.name} says it has {count} frames, {MAX_FRAMES} are read", frames=count
        )
    top = header.elements(
        header.top,
        (
            _CHARSET,
            _PER_FRAME,
            _SHARED,
            _DIMENSIONS,
            _INCREMENT,
            _FRAME_TIME,
            _FRAME_TIMES,
            *_CORRECTIONS,
            _DECAY_CORRECTED_TO,
        ),
    )
    if instance.get("SOPClassUID") == _NM_CLASS:
        own = _nuclear(header, instance, count)
    elif _PER_FRAME in top:
        own = _Groups(header, top, instance).frames(count)
    else:
        _check_room(header.name, instance, count)
        own = _timed(header, top, count)
        if _SHARED in top:
            shared = _Groups(header, top, instance).shared()
            own = [{**shared, **frame} for frame in own]
    own = [_named_unit(frame, instance.get("Modality")) for frame in own]
    given = {keyword for frame in own for keyword in frame}
    base = {keyword: value for keyword, value in instance.attributes.items() if keyword not in given}
    base |= _pet(header, top)
    return [replace(instance, attributes={**base, **frame}, frame=n) for n, frame in enumerate(own)]


def _check_room(name: str, instance: Instance, count: int) -> None:
    """Refuse more frames than the file has room for, before anything is made of each."""
    room = instance.size if instance.pixel_length is None else min(instance.pixel_length, instance.size)
    sides = [instance.get(keyword) for keyword in ("Rows", "Columns", "BitsAllocated")]
    samples = instance.get("SamplesPerPixel", 1)
    needed = count * _FRAME_ITEM_BYTES
    if instance.get("TransferSyntaxUID") in _UNCOMPRESSED and all(isinstance(n, int) for n in (*sides, samples)):
        rows, columns, bits = sides
        # Chroma at half the columns: two samples a pixel where three are named (PS3.3 C.7.6.3.1.2).
        samples = 2 if instance.get("PhotometricInterpretation") == "YBR_FULL_422" else samples
        needed = (count * rows * columns * samples * bits + 7) // 8
    if needed > room:
        message = f"{name} says it has {count} frames, which its {room} bytes of pixels can't hold"
        raise DataError("frames-mismatch", message, frames=count, found=room, needed=needed)


class _Groups:
    """The functional groups of one object.

    Args:
        header: of the object.
        top: its sequences at the top level.
        instance: that holds them.
    """

    def __init__(self, header: Header, top: Mapping[int, Element], instance: Instance) -> None:
        self._header, self._top = header, top
        self._charset = header.raw(top[_CHARSET]) if _CHARSET in top else b""
        self._stored = "SS" if instance.get("PixelRepresentation") == 1 else "US"
        # Most macros recur from frame to frame, byte for byte.
        self._memo: dict[tuple[int, bool, bytes], dict[str, Any]] = {}

    def shared(self) -> dict[str, Any]:
        """Return what the shared functional groups give."""
        if _SHARED not in self._top:
            return {}
        items = self._header.items(self._top[_SHARED], 1)
        return self._group(items[0]) if items else {}

    def frames(self, count: int) -> list[dict[str, Any]]:
        """Return what the functional groups give each frame."""
        name = self._header.name
        items = self._header.items(self._top[_PER_FRAME], MAX_FRAMES)
        if len(items) != count:
            message = f"{name} says it has {count} frames and describes {len(items)}"
            raise DataError("frames-mismatch", message, frames=count, described=len(items))
        shared = self.shared()
        pointers = self._pointers()
        if pointers:
            shared["DimensionIndexPointers"] = pointers
        return [{**shared, **self._group(item)} for item in items]

    def _group(self, item: Block) -> dict[str, Any]:
        macros = self._header.elements(item, _ALL_MACROS)
        found: dict[str, Any] = {}
        # What a converter left over says less than a macro does: it comes first.
        for tag in sorted(macros, key=lambda tag: tag not in (_UNASSIGNED_SHARED, _UNASSIGNED)):
            found |= self._macro(tag, macros[tag])
        return found

    def _macro(self, tag: int, element: Element) -> dict[str, Any]:
        key = (tag, element.implicit, self._header.raw(element))
        if key not in self._memo:
            self._memo[key] = self._read_macro(tag, element)
        return self._memo[key]

    def _read_macro(self, tag: int, element: Element) -> dict[str, Any]:
        header = self._header
        items = header.items(element, 1 if tag in _PLACING else 1 << 16)
        if not items:
            return {}
        if tag == _MAPPING:
            return {"RealWorldValueMappingSequence": True, **self._mapped(items)}
        if tag == _INTENSITY_LUT:
            return {"PixelIntensityRelationshipLUTSequence": True}
        if tag in (_UNASSIGNED, _UNASSIGNED_SHARED):
            return self._values(items[0], _LEFT_OVER)
        if tag == _CONVERTED_FROM:
            source = self._values(items[0], _by_tag((_SOURCE,)))
            return {"ConversionSourceUID": source[_SOURCE]} if _SOURCE in source else {}
        found = self._values(items[0], _by_tag(_MACROS[tag]))
        if tag == _DIFFUSION:
            for direction in header.elements(items[0], (_DIRECTION,)).values():
                for block in header.items(direction, 1):
                    found |= self._values(block, _by_tag(("DiffusionGradientOrientation",)))
        for keyword, single in _AS_SINGLE.items():
            # Only the list of inversion times of one frame may be longer than what a single-frame image can say.
            if keyword in found and (single == "ImageType" or not isinstance(found[keyword], list)):
                found[single] = found[keyword]
        return found

    def _values(self, block: Block, wanted: Mapping[int, str]) -> dict[str, Any]:
        found = {}
        for tag, element in self._header.elements(block, wanted).items():
            keyword = wanted[tag]
            _, vr, single = _TAGS[keyword]
            if vr == "US or SS":
                vr = element.vr if element.vr in ("US", "SS") else self._stored
            found[keyword] = self._header.value(element, vr, single, self._charset)
        return found

    def _mapped(self, items: Sequence[Block]) -> dict[str, Any]:
        """Return the slope, intercept and unit of a linear real world value mapping, if there is one only (PS3.3 C.7.6.16.2.11)."""
        if len(items) != 1:
            return {}
        header, found = self._header, {}
        tags = {0x00409225: "slope", 0x00409224: "intercept"}
        elements = header.elements(items[0], (*tags, 0x004008EA))
        for tag, element in elements.items():
            if tag in tags:
                found[tags[tag]] = header.value(element, "FD", single=True)
                continue
            for block in header.items(element, 1):
                for code in header.elements(block, (0x00080100,)).values():
                    found["unit"] = header.value(code, "SH", single=True)
        return {_REAL_WORLD: found}

    def _pointers(self) -> list[str]:
        """Return what each of DimensionIndexValues counts (PS3.3 C.7.6.17.1)."""
        if _DIMENSIONS not in self._top:
            return []
        found = []
        for item in self._header.items(self._top[_DIMENSIONS], 1 << 10):
            pointer = self._header.elements(item, (_POINTER,)).get(_POINTER)
            raw = b"" if pointer is None else self._header.raw(pointer)
            tags = _tags(raw, self._header.little)
            found.append(_KEYWORD.get(tags[0], f"{tags[0]:08X}") if tags else "")
        return found


_KEYWORD = {tag: keyword for keyword, (tag, _, _) in _TAGS.items()}


def _by_tag(keywords: Sequence[str]) -> dict[int, str]:
    return {_TAGS[keyword][0]: keyword for keyword in keywords}


def _tags(raw: bytes, little: bool) -> list[int]:
    """Return the values of an AT element."""
    if len(raw) % 4:
        return []
    return [group << 16 | number for group, number in iter_unpack("<HH" if little else ">HH", raw)]


def _timed(header: Header, top: Mapping[int, Element], count: int) -> list[dict[str, Any]]:
    """Return the time of each frame where nothing but time tells them apart (PS3.3 C.7.6.5.1.1, C.7.6.5.1.2)."""
    pointers = _tags(header.raw(top[_INCREMENT]), header.little) if _INCREMENT in top else [_FRAME_TIME, _FRAME_TIMES]
    times: list[float] = []
    if _FRAME_TIMES in pointers and _FRAME_TIMES in top:
        # The first entry is 0, each other one the time since the frame before.
        steps = header.value(top[_FRAME_TIMES], "DS", single=False)
        if isinstance(steps, list) and all(isinstance(step, float) for step in steps):
            times = list(accumulate([0.0, *steps[1:]]))
    elif _FRAME_TIME in pointers and _FRAME_TIME in top:
        step = header.value(top[_FRAME_TIME], "DS", single=True)
        if isinstance(step, float) and step > 0:
            times = [n * step for n in range(count)]
    return [{"FrameTimeMs": time} for time in times] if len(times) == count else [{} for _ in range(count)]


def _nuclear(header: Header, instance: Instance, count: int) -> list[dict[str, Any]]:
    """Return the planes of a reconstructed NM volume, the only NM frames that one rule places (PS3.3 C.8.4.15).

    The first frame's plane is in DetectorInformationSequence; slice n lies (n - 1) x SpacingBetweenSlices along row x column, to
    the other side where the spacing is negative.
    """
    increment, slices, detectors = _INCREMENT, 0x00540080, 0x00540022
    kind = instance.get("ImageType")
    kind = kind[2] if isinstance(kind, list) and len(kind) > 2 else None
    if kind != "RECON TOMO":
        said = shown(str(kind))[:16]
        hint = "only reconstructed volumes (RECON TOMO) of nuclear medicine can be read"
        raise DataError("multi-frame-nm", f"{header.name} holds NM frames of the kind {said}", hint=hint)
    _check_room(header.name, instance, count)
    top = header.elements(header.top, (increment, slices, detectors))
    pointers = _tags(header.raw(top[increment]), header.little) if increment in top else []
    numbers = header.value(top[slices], "US", single=False) if slices in top else None
    if pointers != [slices] or sorted(numbers if isinstance(numbers, list) else [numbers or 0]) != list(
        range(1, count + 1)
    ):
        raise DataError("multi-frame-nm", f"{header.name} does not number its NM frames as slices 1 to {count}")
    numbers = numbers if isinstance(numbers, list) else [numbers]
    plane = {keyword: instance.get(keyword) for keyword in ("ImagePositionPatient", "ImageOrientationPatient")}
    blocks = header.items(top[detectors], 1 << 10) if detectors in top else []
    if len(blocks) == 1:
        tags = _by_tag(tuple(plane))
        for tag, element in header.elements(blocks[0], tags).items():
            plane[tags[tag]] = header.value(element, "DS", single=False)
    position, orientation = _numbers(plane["ImagePositionPatient"], 3), _numbers(plane["ImageOrientationPatient"], 6)
    spacing = instance.get("SpacingBetweenSlices")
    if position is None or orientation is None or not isinstance(spacing, float) or not spacing:
        text = f"{header.name} lacks the position, orientation or spacing of its NM slices"
        raise DataError("multi-frame-nm", text)
    a, b, c, d, e, f = orientation
    normal = (b * f - c * e, c * d - a * f, a * e - b * d)
    return [
        {
            "ImagePositionPatient": [p + (n - 1) * spacing * v for p, v in zip(position, normal, strict=True)],
            "ImageOrientationPatient": orientation,
        }
        for n in numbers
    ]


def _numbers(value: Any, count: int) -> list[float] | None:
    whole = isinstance(value, list) and len(value) == count and all(isinstance(v, float) for v in value)
    return value if whole else None


def _pet(header: Header, top: Mapping[int, Element]) -> dict[str, Any]:
    """Return what enhanced PET says about its corrections, as single-frame PET says it."""
    done = [
        word for tag, word in _CORRECTIONS.items() if tag in top and header.value(top[tag], "CS", single=True) == "YES"
    ]
    found: dict[str, Any] = {"CorrectedImage": done} if done else {}
    if _DECAY_CORRECTED_TO in top:
        found["DecayCorrectionDateTime"] = header.value(top[_DECAY_CORRECTED_TO], "DT", single=True)
    return found


def _named_unit(frame: dict[str, Any], modality: Any) -> dict[str, Any]:
    """Name a PET frame's Units, where its real world values are its rescaled values.

    Enhanced PET has no Units, and its RescaleType says nothing (`US`): the unit stands in the real world value mapping, which
    starts from stored values and so speaks of the rescaled ones only if slope and intercept are the same.
    """
    mapped = frame.pop(_REAL_WORLD, None)
    if mapped is None or modality != "PT":
        return frame
    same = all(mapped.get(name) == frame.get(keyword) is not None for name, keyword in _SAME_SCALE)
    unit = _PET_UNITS.get(mapped.get("unit")) if same else None
    if unit is None:
        return frame
    return {**frame, "Units": unit, **({"SUVType": "BW"} if unit == "GML" else {})}
