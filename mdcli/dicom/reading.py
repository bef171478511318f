"""Read the stored values of a volume: uncompressed images in threads, compressed ones in worker processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from numpy.typing import NDArray

from mdcli.dicom.codecs import SYNTAXES
from mdcli.dicom.instance import Instance
from mdcli.dicom.opening import SourceFiles
from mdcli.dicom.pixels import Layout, SliceRead, is_shared, places_of, read_slice, room_for


def read_stored(
    files: SourceFiles,
    instances: Sequence[Instance],
    layouts: Sequence[Layout],
    paddings: Sequence[tuple[int, int] | None],
    jobs: int,
    done: Callable[[float], None],
) -> tuple[NDArray[Any], list[SliceRead]]:
    """Read every image.

    Args:
        files: where the paths are opened.
        instances: the slices in the order of k.
        layouts: how each is encoded.
        paddings: the padding range of each.
        jobs: threads or processes.
        done: called with 1 for every image read.

    Returns:
        The stored values, (k, j, i), of colour (k, j, i, 3), and what reading each slice found.

    Raises:
        DataError: those of `mdcli.dicom.pixels.read_slice`, `decoder-crashed`, `decoder-memory`; each names the file.
        MissingError: `source-missing`.
    """
    if any(_needs_worker(i, x) for i, x in zip(instances, layouts, strict=True)):
        from mdcli.dicom.decoding import read_in_workers

        places = places_of(files, instances, layouts)
        return read_in_workers(files.root, instances, layouts, paddings, places, jobs, done)
    stored = room_for(instances, layouts)
    reads = []
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        try:
            for read in pool.map(read_slice, [files] * len(instances), instances, layouts, paddings, stored):
                reads.append(read)
                done(1)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return stored, reads


def _needs_worker(instance: Instance, layout: Layout) -> bool:
    """Say whether a codec works on the image, or a deflated file is inflated for each of its frames."""
    syntax = SYNTAXES[layout.syntax]
    return syntax.encapsulated or (syntax.form == "deflated" and is_shared(instance))
