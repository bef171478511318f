"""The user's cache folder: what is kept there is the user's alone, and can be made again."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def cache_folder(name: str, *, make: bool = True) -> Path | None:
    """Return a folder of ours; None where there is no home, or where it is somebody else's.

    Args:
        name: of the folder, in `mdcli` of XDG_CACHE_HOME, else of `~/.cache`.
        make: make it where it is missing; else whoever writes the first file does.

    Raises:
        OSError: where it can't be made.
    """
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        # The XDG base directory specification: a relative path is invalid and to be ignored.
        if not given.is_absolute() and not Path.home().is_dir():
            return None
        folder = (given if given.is_absolute() else Path.home() / ".cache") / "mdcli" / name
    except RuntimeError:
        # Path.home raises it where there is no home.
        return None
    if not make and not folder.exists():
        return folder
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or (hasattr(os, "geteuid") and status.st_uid != os.geteuid()):
        return None
    if stat.S_IMODE(status.st_mode) != 0o700:
        folder.chmod(0o700)
    return folder
