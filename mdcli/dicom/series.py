"""Group instances into series, say which series are image volumes, and keep a series as JSON.

Source: DICOM PS3.3 C.7.3.1 (series), C.7.6.1.1.2 (image type), PS3.4 table B.5-1 (storage SOP classes).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mdcli.dicom.headers import KEYWORDS
from mdcli.dicom.instance import Instance
from mdcli.errors import DataError

SCHEMA = "md.series/1"


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


def series_to_json(instances: Sequence[Instance]) -> dict[str, Any]:
    """Return one series as `series.json` (`md.series/1`) holds it.

    Args:
        instances: at least one, all of one series. Attributes that are not in `KEYWORDS` are left out.

    Returns:
        `series`: what identifies it, by its first instance; `common`: the attributes that are equal in all instances;
        `instances`: the rest, each with path, size, pixel_offset, pixel_length, header_sha256, attributes.
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
    }


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
