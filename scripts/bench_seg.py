"""Time `write-seg` against highdicom's plain constructor, in turns, each in its own process, after its imports.

usage: bench_seg.py [--slices 120] [--classes 3] [--rounds 5] [--shared ../shared] [--into FOLDER]

md's figure is the whole stage (`mdcli.execution.execute`: hashes, record, sources read twice, read-back); the peer's is reading the
headers with pydicom, `highdicom.seg.Segmentation(...)` and `save_as`, nothing checked.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

MD = """
import sys, time, gc
import numpy, pydicom, highdicom.seg, pydicom.sr.codedict
import mdcli.dicom.seg, mdcli.dicom.geometry
from mdcli.stages.write_seg import STAGE
from mdcli.execution import Controls, execute
from mdcli.workspace import Workspace
ws = Workspace(sys.argv[1])
start = time.perf_counter()
execute(STAGE, ws, STAGE.params(), Controls(redo=True))
print(time.perf_counter() - start)
"""

PEER = """
import sys, time, json
from pathlib import Path
import numpy as np, pydicom, highdicom as hd, highdicom.seg
from pydicom.sr.codedict import codes
folder = Path(sys.argv[1])
start = time.perf_counter()
labels = np.load(folder / "labels.npy", mmap_mode="r")
slices = json.loads((folder / "ws" / "geometry.json").read_text())["slices"]
files = [pydicom.dcmread(folder / "dicom" / s["path"], stop_before_pixels=True) for s in slices]
kind = hd.AlgorithmIdentificationSequence("peer", codes.cid7162.ArtificialIntelligence, "1")
segments = [
    hd.seg.SegmentDescription(n, f"s{n}", codes.SCT.AnatomicalStructure, codes.SCT.Liver, "AUTOMATIC", kind)
    for n in range(1, int(sys.argv[2]) + 1)
]
seg = hd.seg.Segmentation(files, labels, "BINARY", segments, hd.UID(), 9, hd.UID(), 1, "peer", "peer", "1", "1")
seg.save_as(folder / "peer.dcm")
print(time.perf_counter() - start)
"""


def make(folder: Path, shared: Path, slices: int, classes: int) -> None:
    """Make the CT, the labels and the workspace, by md's own stages and one that gives the labels."""
    import numpy as np

    from mdcli.registry import load_stage
    from mdcli.stage import Stage
    from mdcli.testing import run_stage
    from mdcli.workspace import Workspace

    maker = [sys.executable, str(shared / "bench" / "make_ct.py"), str(folder / "dicom"), "--slices", str(slices)]
    subprocess.run(maker, check=True)
    labeller = [sys.executable, str(shared / "bench" / "make_labels.py"), str(folder / "labels.npz")]
    subprocess.run([*labeller, "--classes", str(classes), "--slices", str(slices)], check=True)
    with np.load(folder / "labels.npz") as made:
        labels = made["labels"]
    np.save(folder / "labels.npy", labels)
    code = {"value": "91723000", "scheme": "SCT", "meaning": "Anatomical Structure"}
    segments = [{"value": v, "name": f"s{v}", "category": code, "type": code} for v in range(1, classes + 1)]
    model = {"name": "bench", "version": "1"}

    @dataclass(frozen=True)
    class Nothing:
        pass

    def give(ws: Workspace, _: Nothing) -> None:
        ws.write_volume("labels", labels, ws.read_volume("volume").affine)
        ws.write_json("segments", {"schema": "md.segments/1", "segments": segments, "model": model, "empty": "valid"})

    run_stage(load_stage("select-series"), folder / "ws", dicom=folder / "dicom")
    run_stage(load_stage("load-volume"), folder / "ws")
    run_stage(Stage("give", Nothing, give, ("volume",), ("labels", "segments")), folder / "ws")


def seconds(code: str, *arguments: str) -> float:
    """Run one side in a process of its own and return the seconds that it prints."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=120)
    parser.add_argument("--classes", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    parser.add_argument("--into", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.into) as name:
        folder = Path(name)
        make(folder, asked.shared, asked.slices, asked.classes)
        pairs = [
            (seconds(MD, str(folder / "ws")), seconds(PEER, str(folder), str(asked.classes)))
            for _ in range(asked.rounds)
        ]
        spans = json.loads((folder / "ws" / "seg.record.json").read_text())["happened"]["spans"]
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"{asked.slices} slices of 512 x 512, {asked.classes} labels, median of {asked.rounds}, after imports")
    print(f"md write-seg  {ours:.3f} s (lowest {min(a for a, _ in pairs):.3f})  spans {spans}")
    print(f"highdicom     {theirs:.3f} s (lowest {min(b for _, b in pairs):.3f})")
    print(f"ratio         {ratio:.2f}")


if __name__ == "__main__":
    main()
