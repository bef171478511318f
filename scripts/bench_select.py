"""Measure `md select-series` over many instances with real headers, against a loop over pydicom in the same run.

    python scripts/bench_select.py [--instances 10000] [--series 40] [--rounds 5]

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
        ours = [sys.executable, "-m", "mdcli", "select-series", str(work), "--dicom", str(tree), "--series", uid, "-f"]
        calls = {"md": ours, "pydicom": [sys.executable, "-c", PEER, str(tree)]}
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(asked.rounds):
            for name, call in calls.items():
                start = time.perf_counter()
                subprocess.run(
                    call, check=True, capture_output=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
                )
                seconds[name].append(time.perf_counter() - start)
    print(f"{asked.instances} instances in {asked.series} series, whole process, median of {asked.rounds}")
    for name, taken in seconds.items():
        median = statistics.median(taken)
        print(f"{name:8s} {median:6.2f} s  {asked.instances / median:7.0f} instances/s")
    print(f"md takes {statistics.median(seconds['md']) / statistics.median(seconds['pydicom']):.3f} of pydicom's time")


if __name__ == "__main__":
    main()
