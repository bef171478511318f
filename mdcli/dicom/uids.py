"""UIDs made from what they name: equal UID means equal bytes.

Nothing here is drawn by chance or from a clock: the caller passes the times that go into the object.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

# Long enough for any 128-bit number with its first bit set, so that a made UID replaces its stand-in byte for byte.
_DIGITS = 39


def uid_from_digest(digest: bytes) -> str:
    """Return the UID of a SHA-256: `2.25.` and a UUID as a number, 44 characters.

    The UUID is of version 8 (made by the owner's own rule, here a hash), and its first bit is set, so that every UID has the same
    length; 121 bits come from the digest.

    Source: DICOM PS3.5 B.2 (UUID derived UIDs), RFC 9562 5.8.
    """
    number = int.from_bytes(digest[:16], "big")
    number |= 1 << 127
    number = number & ~(0xF << 76) | 0x8 << 76
    number = number & ~(0b11 << 62) | 0b10 << 62
    return f"2.25.{number}"


def derived_uid(purpose: str, *parts: str) -> str:
    """Return the UID that belongs to a purpose and to the parts it is made from; the same for the same parts, always."""
    return uid_from_digest(hashlib.sha256("\0".join((purpose, *parts)).encode()).digest())


def stand_in(purpose: str) -> str:
    """Return the UID that stands for one being made, while the object is written and hashed."""
    return derived_uid("stand-in", purpose)


def settle_uids(head: bytes, tail: bytes, purposes: Iterable[str]) -> tuple[bytes, dict[str, str]]:
    """Replace the stand-ins of a finished object by UIDs from its content.

    Args:
        head: an encoded data set, file meta information included, up to the value of its pixel data, with a `stand_in` wherever a
            UID that is being made belongs.
        tail: what follows, hashed but not searched.
        purposes: what the UIDs are for, for example `sop-instance`.

    Returns:
        `head` with the made UIDs in place, and purpose to UID. All come from one SHA-256 over `head` and `tail`: the stand-ins are
        the same in every object, so that the digest covers all but the UIDs being made.
    """
    digest = hashlib.sha256(head)
    digest.update(tail)
    made = {purpose: derived_uid(purpose, digest.hexdigest()) for purpose in purposes}
    for purpose, uid in made.items():
        head = head.replace(stand_in(purpose).encode(), uid.encode())
    return head, made
