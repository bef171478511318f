"""One DICOM instance as the scan sees it, or one frame of one: header facts and where its pixels lie in the file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Instance:
    """Header facts of one file, and where its pixels lie.

    Attributes:
        path: relative to the scanned root, `/` between parts; a member of a zip file is `inner.zip!/member`; where the root itself
            is a zip file, `!/member`.
        size: of the file (or member), bytes.
        pixel_offset: where the value of PixelData starts in the file, bytes; None without PixelData (or where it is deflated).
        pixel_length: its length in bytes; None where it is encapsulated (undefined length).
        header_sha256: of all bytes before `pixel_offset` (of the whole file where that is None).
        attributes: DICOM keyword to value, only what is in the file: an empty element is None, DS and IS are numbers (an unreadable
            one stays its text), multi-valued ones lists, text is decoded and stripped. Always holds `TransferSyntaxUID` and what
            `mdcli.dicom.headers.KEYWORDS` lists; never an attribute of the patient module. Of a frame: the instance's, with the
            frame's own functional groups over them, by the keywords that a single-frame image has.
        frame: which frame of the file, from 0; None where the file holds one image.
        tile: of a mosaic, (first row, first column, stored rows, stored columns): where the tile starts in the stored picture, and
            that picture's size; `Rows` and `Columns` are then the tile's. None elsewhere.
    """

    path: str
    size: int
    pixel_offset: int | None
    pixel_length: int | None
    header_sha256: str
    attributes: dict[str, Any] = field(default_factory=dict)
    frame: int | None = None
    tile: tuple[int, int, int, int] | None = None

    def get(self, keyword: str, default: Any = None) -> Any:
        """Return an attribute's value, or `default` where it is absent or empty."""
        value = self.attributes.get(keyword)
        return default if value is None else value
