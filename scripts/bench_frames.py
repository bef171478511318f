"""Time `md load-volume` on an enhanced multi-frame CT beside SimpleITK, and its memory on a 4-D series of many files.

usage: bench_frames.py [--frames 300] [--rows 512] [--files 10000] [--repeat 5] [--only enhanced 4d]

Whole processes, warm cache, in pairs, median; peak memory is the largest sum of PSS over the process tree, sampled. SimpleITK reads
the same file and writes the same NIfTI. The 4-D series is 10,000 small single-frame files of many time points: what counts there is
that the peak is one volume and what the program takes, however many volumes there are.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from measuring import measure
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import EnhancedCTImageStorage, ExplicitVRLittleEndian, MRImageStorage

ROOT = Path(__file__).resolve().parents[1]
UID = "1.2.826.0.1.3680043.8.498.9191."
MD = [sys.executable, "-m", "mdcli"]
PEER = """
import sys, SimpleITK as sitk
sitk.WriteImage(sitk.ReadImage(sys.argv[1]), sys.argv[2])
"""


def base(modality: str, sop_class: str, number: int) -> Dataset:
    """Return what every object of the two series has."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = sop_class
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{UID}1.{number}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = f"{UID}2", f"{UID}3", f"{UID}4"
    ds.Modality, ds.SeriesNumber, ds.InstanceNumber = modality, 1, number
    ds.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    return ds


def write_enhanced(path: Path, frames: int, rows: int) -> None:
    """Write one enhanced CT object with functional groups as scanners write them."""
    ds = base("CT", EnhancedCTImageStorage, 1)
    ds.Rows = ds.Columns = rows
    ds.NumberOfFrames = frames
    shared, measures, plane, rescale = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.8, 0.8], 1.5
    plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = 1, -1024, "HU"
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    shared.PixelValueTransformationSequence = [rescale]
    ds.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for k in range(frames):
        group, place, content = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [-200, -200, 1.5 * k]
        content.StackID, content.InStackPositionNumber, content.DimensionIndexValues = "1", k + 1, [1, k + 1]
        content.FrameAcquisitionNumber, content.FrameReferenceDateTime = 1, "20260101120000"
        group.PlanePositionSequence, group.FrameContentSequence = [place], [content]
        groups.append(group)
    ds.PerFrameFunctionalGroupsSequence = groups
    ds.PixelData = np.random.default_rng(1).integers(0, 4096, (frames, rows, rows)).astype("<u2").tobytes()
    ds.save_as(path, enforce_file_format=True)


def write_times(folder: Path, files: int, slices: int = 40, rows: int = 64) -> None:
    """Write a functional MR series: one file a slice and time point."""
    rng = np.random.default_rng(2)
    for n in range(files):
        t, k = divmod(n, slices)
        ds = base("MR", MRImageStorage, n + 1)
        ds.ImagePositionPatient, ds.ImageOrientationPatient = [-96, -96, 3.0 * k], [1, 0, 0, 0, 1, 0]
        ds.PixelSpacing, ds.SliceThickness, ds.TemporalPositionIdentifier = [3, 3], 3, t + 1
        ds.Rows = ds.Columns = rows
        ds.PixelData = rng.integers(0, 4096, (rows, rows)).astype("<u2").tobytes()
        ds.save_as(folder / f"{n:05d}.dcm", enforce_file_format=True)


def selected(workspace: Path, dicom: Path) -> None:
    """Run select-series, which is not what is measured here."""
    command = [*MD, "select-series", str(workspace), "--dicom", str(dicom), "-q"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def bench_enhanced(work: Path, frames: int, rows: int, repeat: int) -> None:
    """Print one line each for md and SimpleITK."""
    source = work / "enhanced"
    source.mkdir()
    write_enhanced(source / "one.dcm", frames, rows)
    selected(work / "ws", source)
    ours = [*MD, "load-volume", str(work / "ws"), "-q"]
    peer = [sys.executable, "-c", PEER, str(source / "one.dcm"), str(work / "peer.nii")]

    def once(command: list[str], memory: bool) -> tuple[float, float, float]:
        for path in [*(work / "ws").glob("[vg]*"), work / "peer.nii"]:
            path.unlink(missing_ok=True)
        return measure(command, ROOT, 0.005 if memory else None)

    pairs = [(once(ours, False), once(peer, False)) for _ in range(repeat + 1)][1:]
    ratio = statistics.median(a[0] / b[0] for a, b in pairs)
    for n, (name, command) in enumerate((("md", ours), ("SimpleITK", peer))):
        wall, cpu = (statistics.median(pair[n][m] for pair in pairs) for m in (0, 1))
        last = f"   md / SimpleITK {ratio:.2f}" if n == 0 else ""
        print(
            f"enhanced {frames} x {rows} x {rows}  {name:10} {wall:6.2f} s {cpu:6.2f} s CPU {once(command, True)[2]:6.0f} MiB{last}"
        )


def bench_times(work: Path, files: int) -> None:
    """Print the time and the peak memory of a 4-D series."""
    source = work / "times"
    source.mkdir()
    write_times(source, files)
    selected(work / "ws4", source)
    found = measure([*MD, "load-volume", str(work / "ws4"), "-q", "--on-many", "4d"], ROOT, 0.02)
    volume = 40 * 64 * 64 * 2 / (1 << 20)
    print(
        f"4-D {files} files  md {found.wall_s:6.2f} s {found.cpu_s:6.2f} s CPU {found.peak_mib:6.0f} MiB "
        f"(one volume {volume:.1f} MiB, allowed {volume + 400:.0f})"
    )


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=["enhanced", "4d"], default=["enhanced", "4d"])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        if "enhanced" in args.only:
            bench_enhanced(work, args.frames, args.rows, args.repeat)
        if "4d" in args.only:
            bench_times(work, args.files)


if __name__ == "__main__":
    main()
