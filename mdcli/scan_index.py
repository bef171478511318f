"""Where the index of a scanned source lies: in the user's cache folder, by a hash of the source's path."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

from mdcli.user_cache import cache_folder

KEPT_DAYS = 30
"""An index that was not written for so long is removed when another one is begun."""


def index_file(source: Path) -> Path | None:
    """Return the index file of a source, in a folder that is there and nobody else can read; None where there can be none.

    The folder is `mdcli/scans` in XDG_CACHE_HOME, else in `~/.cache`. `MD_INDEX=off` turns it off.

    Args:
        source: the folder, zip file or file that is scanned; need not be there.
    """
    if os.environ.get("MD_INDEX", "").lower() == "off":
        return None
    try:
        folder = cache_folder("scans")
        if folder is None:
            return None
        digest = hashlib.sha256(os.fsencode(os.path.realpath(source))).hexdigest()
        index = folder / f"{digest[:32]}.json"
        if not index.exists():
            _remove_old(folder)
        return index
    except (OSError, RuntimeError, ValueError):
        # Path.home raises RuntimeError where there is no home, realpath ValueError for a name with a zero byte.
        return None


def _remove_old(folder: Path) -> None:
    oldest = time.time() - KEPT_DAYS * 86_400
    for path in folder.iterdir():
        if path.suffix in (".json", ".part") and path.stat().st_mtime < oldest:
            path.unlink(missing_ok=True)
