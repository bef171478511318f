"""Where the index of a scanned source lies: in the user's cache folder, by a hash of the source's path."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from pathlib import Path

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
        folder = _cache_folder()
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


def _cache_folder() -> Path | None:
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG base directory specification: a relative path is invalid and to be ignored.
    if not given.is_absolute() and not Path.home().is_dir():
        return None
    folder = (given if given.is_absolute() else Path.home() / ".cache") / "mdcli" / "scans"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or (hasattr(os, "geteuid") and status.st_uid != os.geteuid()):
        return None
    if stat.S_IMODE(status.st_mode) != 0o700:
        folder.chmod(0o700)
    return folder


def _remove_old(folder: Path) -> None:
    oldest = time.time() - KEPT_DAYS * 86_400
    for path in folder.iterdir():
        if path.suffix in (".json", ".part") and path.stat().st_mtime < oldest:
            path.unlink(missing_ok=True)
