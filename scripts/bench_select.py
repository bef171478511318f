"""Measure `md select-series` over many instances with real headers, against a loop over pydicom in the same run.

    python scripts/bench_select.py [--instances 10000] [--series 40] [--rounds 5]

`md` reads every header; `md again` has the index of an earlier scan, in a cache folder of its own; `start-up` is `md` until the
stage is loaded, which prints its help; `the scan` is the library's part of `md again` alone, in a process that has started.

The headers are those of the abdomen CT of ../shared/data, or made alike, with UIDs of their own; the pixels are holes in the
files, as no reader here touches them. Whole processes, warm cache, median of the rounds, taken in turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ABDOMEN = ROOT.parent / "shared" / "data" / "35_ct_abdomen" / "dicom"

PEER = """
import sys
from pathlib import Path
import pydicom
series = {}
for path in sorted(Path(sys.argv[1]).rglob("*")):
    if path.is_file():
        header = pydicom.dcmread(path, stop_before_pixels=True)
        series.setdefault(header.SeriesInstanceUID, []).append((header.SOPInstanceUID, header.ImagePositionPatient))
print(len(series))
"""

SCAN = """
import sys, time
from pathlib import Path
from mdcli.dicom.index import scan
from mdcli.dicom.tree import list_source
opened = []
start = time.perf_counter()
found = scan(list_source(Path(sys.argv[1])), index=Path(sys.argv[2]), progress=lambda names: opened.extend(names) or opened)
print(time.perf_counter() - start, len(found), len(opened))
"""


def made_headers(count: int = 41) -> list[tuple[bytes, int]]:
    """Return (header up to the pixels, bytes of pixels) of a made CT series with 134 elements a header."""
    import io

    import pydicom
    from pydicom.data import get_testdata_file
    from pydicom.uid import generate_uid

    heads = []
    for number in range(count):
        dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(number)])
        dataset.ImagePositionPatient = [-198.2, -204.0, -5.0 * number]
        for extra in range(134 - len(dataset) - len(dataset.file_meta)):
            dataset.add_new((0x0043, 0x1100 + extra), "LO", f"value {extra}")
        buffer = io.BytesIO()
        length = len(dataset.PixelData)
        dataset.save_as(buffer)
        heads.append((buffer.getvalue()[: buffer.getvalue().index(dataset.PixelData)], length))
    return heads


def real_headers() -> list[tuple[bytes, int]]:
    """Return the same of the abdomen CT."""
    from mdcli.dicom.headers import read_instance
    from mdcli.dicom.instance import Instance

    heads = []
    for path in sorted(ABDOMEN.iterdir()):
        found = read_instance(path, path.name)
        assert isinstance(found, Instance) and found.pixel_offset is not None and found.pixel_length is not None
        heads.append((path.read_bytes()[: found.pixel_offset], found.pixel_length))
    return heads


def make_tree(folder: Path, instances: int, series: int) -> str:
    """Write the files and return the UID of one of the series."""
    from mdcli.dicom.headers import read_instance
    from mdcli.dicom.instance import Instance

    heads = real_headers() if ABDOMEN.is_dir() else made_headers()
    uid = ""
    for number in range(instances):
        head, pixels = heads[number % len(heads)]
        found = read_instance(head + bytes(pixels), "")
        assert isinstance(found, Instance)
        group = number * series // instances
        for keyword, value in (("SOPInstanceUID", number), ("SeriesInstanceUID", group)):
            old = str(found.get(keyword))
            new = old[:-7] + f"{value + 1_000_000:07d}"
            head = head.replace(old.encode(), new.encode())
        uid = new
        place = folder / f"{group:03d}"
        place.mkdir(exist_ok=True)
        with (place / f"IM{number:05d}").open("wb") as file:
            file.write(head)
            file.truncate(len(head) + pixels)
    return uid


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instances", type=int, default=10_000)
    parser.add_argument("--series", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        tree, work = Path(name) / "tree", Path(name) / "ws"
        tree.mkdir()
        uid = make_tree(tree, asked.instances, asked.series)
        md = [sys.executable, "-m", "mdcli", "select-series"]
        ours = [*md, str(work), "--dicom", str(tree), "--series", uid, "-f"]
        cache = Path(name) / "cache"
        cache.mkdir()
        calls = {
            "md": (ours, {"MD_INDEX": "off"}),
            "md again": (ours, {"XDG_CACHE_HOME": str(cache)}),
            "start-up": ([*md, "--help"], {}),
            "the scan": ([sys.executable, "-c", SCAN, str(tree), str(cache / "index")], {}),
            "pydicom": ([sys.executable, "-c", PEER, str(tree)], {}),
        }
        # What was written just now is not noted in an index.
        time.sleep(3)
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for number in range(asked.rounds + 1):
            for name, (call, more) in calls.items():
                start = time.perf_counter()
                environment = {**os.environ, "PYTHONPATH": str(ROOT), **more}
                done = subprocess.run(call, check=True, capture_output=True, cwd=ROOT, env=environment, text=True)
                taken = time.perf_counter() - start
                if name == "the scan":
                    inside, found, opened = done.stdout.split()
                    assert (int(found), int(opened)) == (asked.instances, 0 if number else asked.instances)
                    taken = float(inside)
                # The first round warms the disk's cache and writes the indexes.
                if number:
                    seconds[name].append(taken)
    print(f"{asked.instances} instances in {asked.series} series, median of {asked.rounds}")
    median = {name: statistics.median(taken) for name, taken in seconds.items()}
    for name, taken in median.items():
        print(
            f"{name:8s} {taken:6.2f} s"
            + (f"  {asked.instances / taken:7.0f} instances/s" if name != "start-up" else "")
        )
    print(f"md takes {median['md'] / median['pydicom']:.3f} of pydicom's time")
    print(f"md again takes {median['md again'] - median['start-up']:.2f} s after start-up")


if __name__ == "__main__":
    main()
