"""Group instances into series, say which series are image volumes, and keep a series as JSON.

Source: DICOM PS3.3 C.7.3.1 (series), C.7.6.1.1.2 (image type), PS3.4 table B.5-1 (storage SOP classes).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mdcli.dicom.headers import DEFLATED, KEYWORDS
from mdcli.dicom.instance import Instance
from mdcli.dicom.opening import shown
from mdcli.errors import DataError

SCHEMA = "md.series/1"

# PS3.4 table B.5-1. Pixels, but no image of the patient: segmentations, dose, slides.
_NO_SOURCE_IMAGE = {
    "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "a label map segmentation",
    "1.2.840.10008.5.1.4.1.1.481.2": "a dose distribution",
    "1.2.840.10008.5.1.4.1.1.77.1.6": "a whole-slide image",
}
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_PARAMETRIC_MAP = "1.2.840.10008.5.1.4.1.1.30"

INCLUDABLE = {
    "localizer": "ImageType says LOCALIZER",
    "screen-save": "secondary capture, or ImageType says SCREEN SAVE",
    "derived": "ImageType starts with DERIVED\\SECONDARY",
    "parametric-map": "it holds a parametric map",
    "md": "md made it",
}
"""Kinds of image series that are left out unless asked for (`--include`), and what makes one."""


def snake(keyword: str) -> str:
    """Return a DICOM keyword in snake case.

    >>> snake("SOPInstanceUID")
    'sop_instance_uid'
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", keyword).lower()


_SNAKE = {keyword: snake(keyword) for keyword in KEYWORDS}
_CAMEL = {name: keyword for keyword, name in _SNAKE.items()}
# What says which series it is; the rest stays with the instances.
_FACTS = (
    "SeriesInstanceUID",
    "StudyInstanceUID",
    "FrameOfReferenceUID",
    "Modality",
    "SOPClassUID",
    "SeriesNumber",
    "SeriesDescription",
    "StudyDate",
    "ImageType",
)


@dataclass(frozen=True)
class Series:
    """The instances of one series, in the order in which their files were found."""

    instances: tuple[Instance, ...]

    @property
    def uid(self) -> str:
        """Return SeriesInstanceUID."""
        return str(self.instances[0].get("SeriesInstanceUID"))

    @property
    def slice_count(self) -> int:
        """Return how many images with pixels it has, frames counted, those of one SOPInstanceUID once."""
        images = {i.get("SOPInstanceUID") or n: i for n, i in enumerate(self.instances) if has_pixels(i)}
        return sum(map(_frames, images.values()))

    def describe(self) -> str:
        """Return one line for a person: modality, number, description, images, plane, UID; everything unprintable escaped."""
        first = self.instances[0]
        number = first.get("SeriesNumber")
        said = [
            shown(str(first.get("Modality", "no modality"))),
            "no number" if number is None else f"series {shown(str(number))}",
            f"'{shown(str(first.get('SeriesDescription', '')))}'",
            f"{self.slice_count} images",
            *([plane] if (plane := _plane(first)) else []),
            f"UID {shown(self.uid)}",
        ]
        return ", ".join(said)


def has_pixels(instance: Instance) -> bool:
    """Say whether an instance has pixel data of any kind, as far as its header tells."""
    deflated = instance.get("TransferSyntaxUID") == DEFLATED and instance.get("Rows") is not None
    floats = instance.get("FloatPixelData") or instance.get("DoubleFloatPixelData")
    return instance.pixel_offset is not None or deflated or bool(floats)


def _frames(instance: Instance) -> int:
    frames = instance.get("NumberOfFrames", 1)
    return frames if isinstance(frames, int) and frames > 0 else 1


def _plane(instance: Instance) -> str | None:
    cosines = instance.get("ImageOrientationPatient")
    if not isinstance(cosines, list) or len(cosines) != 6 or not all(isinstance(c, float) for c in cosines):
        return None
    from mdcli.dicom.geometry import PLANE_DEGREES

    (a, b, c), (d, e, f) = cosines[:3], cosines[3:]
    normal = [abs(b * f - c * e), abs(c * d - a * f), abs(a * e - b * d)]
    length = math.hypot(*normal)
    if not math.isfinite(length) or length == 0:
        return None
    near = max(normal) / length >= math.cos(math.radians(PLANE_DEGREES))
    return ("sagittal", "coronal", "axial")[normal.index(max(normal))] if near else "oblique"


def group_series(instances: Iterable[Instance]) -> list[Series]:
    """Group instances by StudyInstanceUID and SeriesInstanceUID.

    Returns:
        Series in the order of study date, StudyInstanceUID, SeriesNumber, SeriesInstanceUID; so it depends on no file name.
    """
    groups: dict[tuple[Any, Any], list[Instance]] = {}
    for instance in instances:
        attributes = instance.attributes
        groups.setdefault((attributes.get("StudyInstanceUID"), attributes["SeriesInstanceUID"]), []).append(instance)
    return sorted((Series(tuple(group)) for group in groups.values()), key=_order)


def _order(series: Series) -> tuple[str, str, float, str]:
    first = series.instances[0]
    number = first.get("SeriesNumber")
    rank = number if isinstance(number, int) else math.inf
    return str(first.get("StudyDate", "")), str(first.get("StudyInstanceUID", "")), rank, series.uid


def drop_copies(
    instances: Iterable[Instance], digest: Callable[[Instance], str]
) -> tuple[list[Instance], list[tuple[Instance, Instance]]]:
    """Drop instances that are there more than once, byte for byte.

    Args:
        instances: of one series, or of many.
        digest: hashes a whole file; asked only for those whose SOP instance UID, size and header are equal.

    Returns:
        What is left, in the order given, and (dropped, kept) pairs. Two instances of one UID that differ are both left.
    """
    kept: list[Instance] = []
    copies: list[tuple[Instance, Instance]] = []
    alike: dict[tuple[Any, int, str], dict[str, Instance]] = {}
    first: dict[tuple[Any, int, str], Instance] = {}
    for instance in instances:
        key = (instance.get("SOPInstanceUID"), instance.size, instance.header_sha256)
        if key not in first or key[0] is None:
            first[key] = instance
            kept.append(instance)
            continue
        if key not in alike:
            alike[key] = {digest(first[key]): first[key]}
        contents = alike[key]
        original = contents.setdefault(digest(instance), instance)
        if original is instance:
            kept.append(instance)
        else:
            copies.append((instance, original))
    return kept, copies


def without_strangers(series: Series) -> tuple[Series, tuple[Instance, ...]]:
    """Take out what is no image among images (a report or presentation state under the images' series UID).

    Returns:
        The series, and what was taken out. An instance of the images' own SOP class stays, with pixels or without.
    """
    classes = {i.get("SOPClassUID") for i in series.instances if has_pixels(i)}
    if not classes:
        return series, ()
    images: list[Instance] = []
    strangers: list[Instance] = []
    for instance in series.instances:
        belongs = has_pixels(instance) or instance.get("SOPClassUID") in classes or "Rows" in instance.attributes
        (images if belongs else strangers).append(instance)
    return Series(tuple(images)), tuple(strangers)


@dataclass(frozen=True)
class Unsuitable:
    """Why a series is left out.

    Attributes:
        code: `not-image`, `no-pixels`, or one of `INCLUDABLE`.
        message: the reason, as a sentence about "it".
    """

    code: str
    message: str


def why_unsuitable(series: Series, include: Iterable[str] = ()) -> Unsuitable | None:
    """Say why a series is no image volume to work on by default, or None where it is.

    A series is a localizer, a screen save or derived if all its images are; it is md's, or holds a map, if one of them is one.

    Args:
        series: the series.
        include: kinds of `INCLUDABLE` to let through.
    """
    images = [i for i in series.instances if has_pixels(i)]
    if not images:
        if any("Rows" in i.attributes for i in series.instances):
            return Unsuitable("no-pixels", "it has no pixel data")
        return Unsuitable("not-image", "it holds no images")
    for instance in images:
        other = _NO_SOURCE_IMAGE.get(str(instance.get("SOPClassUID")))
        if other:
            return Unsuitable("not-image", f"it holds {other}")
    is_map = any(i.get("SOPClassUID") == _PARAMETRIC_MAP for i in images)
    kinds = {
        "md": any(_is_by_md(i) for i in images),
        "screen-save": all(_is_screen_save(i) for i in images),
        "localizer": all("LOCALIZER" in _image_type(i) for i in images),
        "parametric-map": is_map,
        "derived": not is_map and all(_image_type(i)[:2] == ["DERIVED", "SECONDARY"] for i in images),
    }
    allowed = set(include)
    found = next((kind for kind, is_so in kinds.items() if is_so and kind not in allowed), None)
    return Unsuitable(found, INCLUDABLE[found]) if found else None


def _image_type(instance: Instance) -> list[str]:
    value = instance.get("ImageType", [])
    return [str(v).upper() for v in (value if isinstance(value, list) else [value])]


def _is_screen_save(instance: Instance) -> bool:
    uid = str(instance.get("SOPClassUID", ""))
    captured = uid == _SECONDARY_CAPTURE or uid.startswith(_SECONDARY_CAPTURE + ".")
    return captured or not {"SCREEN SAVE", "SCREENSAVE", "SCREEN_SAVE"}.isdisjoint(_image_type(instance))


def _is_by_md(instance: Instance) -> bool:
    # What write-seg and its like put there; the version name is lost once a PACS has stored the object anew.
    by_equipment = (instance.get("Manufacturer"), instance.get("ManufacturerModelName")) == ("mdcli", "md")
    return by_equipment or str(instance.get("ImplementationVersionName", "")).startswith("MDCLI")


def series_to_json(
    instances: Sequence[Instance],
    copies: Iterable[tuple[Instance, Instance]] = (),
    strangers: Iterable[Instance] = (),
) -> dict[str, Any]:
    """Return one series as `series.json` (`md.series/1`) holds it.

    Args:
        instances: at least one, all of one series. Attributes that are not in `KEYWORDS` are left out.
        copies: (dropped, kept) pairs, as `drop_copies` returns them.
        strangers: objects of the series that are no images, as `without_strangers` returns them.

    Returns:
        `series`: what identifies it, by its first instance; `common`: the attributes that are equal in all instances;
        `instances`: the rest, each with path, size, pixel_offset, pixel_length, header_sha256, attributes; `dropped`: the files of
        the series that were left out.
    """
    first = instances[0].attributes
    common = {
        keyword: first[keyword]
        for keyword in KEYWORDS
        if keyword in first and all(i.attributes.get(keyword, i) == first[keyword] for i in instances)
    }
    return {
        "schema": SCHEMA,
        "series": {_SNAKE[keyword]: first.get(keyword) for keyword in _FACTS} | {"instance_count": len(instances)},
        "common": {_SNAKE[keyword]: value for keyword, value in common.items()},
        "instances": [
            {
                "path": instance.path,
                "size": instance.size,
                "pixel_offset": instance.pixel_offset,
                "pixel_length": instance.pixel_length,
                "header_sha256": instance.header_sha256,
                "attributes": {
                    _SNAKE[keyword]: value
                    for keyword, value in instance.attributes.items()
                    if keyword not in common and keyword in _SNAKE
                },
            }
            for instance in instances
        ],
        "dropped": [
            *(_dropped(copy, "exact-copy") | {"copy_of": kept.path} for copy, kept in copies),
            *(_dropped(stranger, "not-image") for stranger in strangers),
        ],
    }


def _dropped(instance: Instance, reason: str) -> dict[str, Any]:
    return {"path": instance.path, "sop_instance_uid": instance.get("SOPInstanceUID"), "reason": reason}


def dropped_from_json(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the files that `series_to_json` was told were left out.

    Raises:
        DataError: `bad-artifact` where the document is not what `series_to_json` writes.
    """
    dropped = document.get("dropped", [])
    if not isinstance(dropped, list) or not all(isinstance(item, dict) for item in dropped):
        raise DataError("bad-artifact", f"series.json is no {SCHEMA}: dropped is no list of files")
    return dropped


def instances_from_json(document: Mapping[str, Any]) -> list[Instance]:
    """Return the instances that `series_to_json` kept.

    Raises:
        DataError: `bad-artifact` where the document is not what `series_to_json` writes.
    """
    try:
        common = {_CAMEL[name]: value for name, value in document["common"].items()}
        instances = [
            Instance(
                path=str(item["path"]),
                size=int(item["size"]),
                pixel_offset=_whole(item["pixel_offset"]),
                pixel_length=_whole(item["pixel_length"]),
                header_sha256=str(item["header_sha256"]),
                attributes=common | {_CAMEL[name]: value for name, value in item["attributes"].items()},
            )
            for item in document["instances"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError("bad-artifact", f"series.json is no {SCHEMA}: {error!r}") from error
    if not instances:
        raise DataError("bad-artifact", "series.json holds no instance")
    return instances


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)
