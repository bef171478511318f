"""Time `md load-volume` beside dcm2niix on the same series: whole process, warm cache, in pairs, median.

usage: bench_load.py [--shared ../shared] [--dcm2niix dcm2niix] [--syntax raw j2k jpegls] [--slices 300] [--repeat 5] [--keep DIR]

Prints wall and CPU seconds, the largest sum of PSS over the process tree (sampled, MiB), and md's time over dcm2niix's. The series
comes from `make_ct.py` of the shared folder; JPEG 2000 needs pylibjpeg there, for the encoder only.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from measuring import Measured, measure

ROOT = Path(__file__).resolve().parents[1]


def measured(command: list[str], outputs: Iterable[Path], *, memory: bool = False) -> Measured:
    """Run a command, what it wrote before being gone, and measure it: time without memory, or memory."""
    for path in outputs:
        path.unlink()
    return measure(command, ROOT, 0.005 if memory else None)


def main() -> None:
    """Measure each syntax."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--dcm2niix", default=shutil.which("dcm2niix"))
    parser.add_argument("--syntax", nargs="+", default=["raw", "j2k", "jpegls"])
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="make the series here, and keep them")
    args = parser.parse_args()
    if args.dcm2niix is None:
        parser.error("dcm2niix is not installed: give --dcm2niix")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        print(f"{args.slices} x 512 x 512, {os.cpu_count()} cores, median of {args.repeat} pairs")
        print(f"{'syntax':8} {'tool':10} {'wall s':>7} {'CPU s':>7} {'peak MiB':>9} {'ratio':>6}")
        for syntax in args.syntax:
            data = (args.keep or work) / syntax
            if not data.is_dir():
                make = [sys.executable, str(args.shared / "bench" / "make_ct.py"), str(data)]
                subprocess.run([*make, "--slices", str(args.slices), "--syntax", syntax], check=True)
            workspace, nifti = work / f"ws-{syntax}", work / f"dcm2niix-{syntax}"
            nifti.mkdir()
            md = [sys.executable, "-m", "mdcli"]
            subprocess.run(
                [*md, "select-series", str(workspace), "--dicom", str(data), "-q"],
                cwd=ROOT,
                check=True,
                stdout=subprocess.DEVNULL,
            )
            ours = [*md, "load-volume", str(workspace), "-q"]
            peer = [args.dcm2niix, "-b", "n", "-z", "n", "-f", "out", "-o", str(nifti), str(data)]
            pairs = [
                (measured(ours, workspace.glob("[vg]*")), measured(peer, nifti.iterdir()))
                for _ in range(args.repeat + 1)
            ][1:]
            ratio = statistics.median(a[0] / b[0] for a, b in pairs)
            for n, (name, command, outputs) in enumerate(
                (("md", ours, workspace.glob("[vg]*")), ("dcm2niix", peer, nifti.iterdir()))
            ):
                wall, cpu = (statistics.median(pair[n][m] for pair in pairs) for m in (0, 1))
                last = f"{ratio:6.2f}" if n == 0 else f"{'':6}"
                peak = measured(command, outputs, memory=True).peak_mib
                print(f"{syntax:8} {name:10} {wall:7.2f} {cpu:7.2f} {peak:9.0f} {last}", flush=True)


if __name__ == "__main__":
    main()
