"""Time the four-stage pipe, DICOM to SEG, whole: 120 slices of 512 x 512 and the embedded ct-tissue model.

usage: bench_pipe.py [--shared ../shared] [--slices 120] [--repeat 5]

The peer, MONAI Deploy 4.0.0 with a NumPy threshold for a model, needs a CUDA runtime to start and can't run beside md; its stored
figures on the same work and a machine of the same size are 8.8 s and 899 MiB.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from measuring import Measured, measure

ROOT = Path(__file__).resolve().parents[1]
MD = str(Path(sys.executable).parent / "md")
PEER_SECONDS, PEER_MIB = 8.8, 899.0


def main() -> None:
    """Measure the pipe, and the second call that finds everything up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--slices", type=int, default=120)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        make = [sys.executable, str(args.shared / "bench" / "make_ct.py"), str(work / "dicom")]
        subprocess.run([*make, "--slices", str(args.slices)], check=True)
        pipe = (
            f"set -o pipefail; {MD} select-series ws --dicom dicom -q | {MD} load-volume - -q | "
            f"{MD} infer - --model ct-tissue -q | {MD} write-seg - -q"
        )
        rows: dict[str, list[Measured]] = {"the pipe": [], "again, up to date": []}
        for turn in range(args.repeat + 2):
            shutil.rmtree(work / "ws", ignore_errors=True)
            for found in rows.values():
                # Time and memory in turns of their own: sampling takes time. The first turn warms up.
                one = measure(["bash", "-c", pipe], cwd=work, interval_s=0.02 if turn == 1 else None)
                if turn:
                    found.append(one)
        print(f"{args.slices} x 512 x 512, ct-tissue, median of {args.repeat}")
        print(f"{'work':20} {'wall s':>7} {'CPU s':>7} {'peak MiB':>9} {'of the peer':>12}")
        for name, found in rows.items():
            wall, cpu = (statistics.median(getattr(m, key) for m in found[1:]) for key in ("wall_s", "cpu_s"))
            peak = found[0].peak_mib
            print(f"{name:20} {wall:7.2f} {cpu:7.2f} {peak:9.0f} {wall / PEER_SECONDS:12.2f}")
        print(f"{'MONAI Deploy, stored':20} {PEER_SECONDS:7.2f} {'':7} {PEER_MIB:9.0f} {1:12.2f}")


if __name__ == "__main__":
    main()
