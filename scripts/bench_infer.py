"""Time `md infer` against MONAI's sliding window on one network, whole processes, in pairs, and compare the labels.

    python scripts/bench_infer.py --peer-python VENV/bin/python [--pairs 5] [--peer monai_infer.py ...]

VENV holds torch, monai and nibabel, and makes the network (a small 3-D U-Net with fixed random weights, two classes) and runs the
peer. Prints wall and CPU seconds and peak PSS of both, their ratios, and the parity of every class: Dice, volume, and the largest
margin between the two highest scores of the reference where labels differ.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from measuring import measure

from mdcli.imaging.nifti import read_nifti
from mdcli.inference.parity import compare_labels, judge, table

ROOT = Path(__file__).resolve().parents[1]
WINDOW, OVERLAP = 96, 0.25
CARD = """\
schema: md.model/1
name: bench
version: 1.0.0
network: {network}
task: segmentation
inputs:
  - axes: [C, x, y, z]
    orientation: as-acquired
    spacing: as-acquired
    unit: HU
    padding: include
    intensity:
      - normalize: volume
output: {{axes: [C, x, y, z], activation: none, inversion: scores}}
window: {{size: [{window}, {window}, {window}], overlap: {overlap}, blending: gaussian, skip_below: {skip}}}
labels:
{labels}
empty: valid
"""
LABEL = (
    "  - {{value: {n}, name: class-{n}, category: {{value: A, scheme: 99MD, meaning: A}}, "
    "type: {{value: B{n}, scheme: 99MD, meaning: B}}}}"
)
# The reference's own scores, for the margin between the two highest: the same calls as the peer's.
SCORES = """
import sys, nibabel, numpy, torch
from monai.inferers import sliding_window_inference
net = torch.jit.load(sys.argv[1]).eval()
x = torch.from_numpy(numpy.ascontiguousarray(nibabel.load(sys.argv[2]).dataobj).astype(numpy.float32))[None, None]
x = (x - x.mean()) / x.std()
with torch.inference_mode():
    y = sliding_window_inference(x, (96, 96, 96), 1, net, overlap=float(sys.argv[4]), mode="gaussian")[0]
top = y.topk(2, dim=0).values
numpy.save(sys.argv[3], (top[0] - top[1]).numpy().transpose(2, 1, 0))
"""


def make_workspace(maker: Path, folder: Path, rows: int, slices: int) -> Path:
    """Make a CT and load it; return the workspace."""
    dicom, workspace = folder / "dicom", folder / "ws"
    subprocess.run([sys.executable, str(maker), str(dicom), "--rows", str(rows), "--slices", str(slices)], check=True)
    for stage in (["select-series", str(workspace), "--dicom", str(dicom)], ["load-volume", str(workspace)]):
        subprocess.run([sys.executable, "-m", "mdcli", *stage], check=True, capture_output=True, cwd=ROOT)
    return workspace


def busy_share(workspace: Path) -> tuple[float, float]:
    """Return for how much of the prediction, and of the whole stage with its imports, the network was at work, by the record."""
    happened = json.loads((workspace / "labels.record.json").read_bytes())["happened"]
    network, predict = happened["spans"]["network"], happened["spans"]["predict"]
    return float(network / predict), float(network / happened["seconds"])


def main() -> int:
    shared = ROOT.parent / "shared" / "bench"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", required=True, help="Python that has torch, monai and nibabel")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--classes", type=int, default=2)
    parser.add_argument("--channels", type=int, default=8, help="of the first level of the U-Net")
    parser.add_argument("--light", action="store_true", help="a 1 x 1 x 1 convolution makes the classes, as in nnU-Net")
    parser.add_argument("--rows", type=int, default=192)
    parser.add_argument("--slices", type=int, default=144)
    parser.add_argument("--overlap", type=float, default=0.25)
    parser.add_argument("--engine", action="append", help="may repeat; onnxruntime if it is not said")
    parser.add_argument("--skip-below", type=float, default=-1.5, help="of the card, for --option=--skip-empty")
    parser.add_argument("--option", action="append", default=[], help="for md infer, such as --option=--skip-empty")
    parser.add_argument("--no-peer", action="store_true", help="where MONAI's accumulators do not fit into memory")
    parser.add_argument("--ct-maker", type=Path, default=shared / "make_ct.py")
    parser.add_argument("--net-maker", type=Path, default=shared / "make_net.py")
    parser.add_argument("--peer", type=Path, default=shared / "monai_infer.py")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="md-bench-") as name:
        folder = Path(name)
        workspace = make_workspace(options.ct_maker, folder, options.rows, options.slices)
        made = [options.peer_python, str(options.net_maker), str(folder), str(options.classes), str(options.channels)]
        subprocess.run(made + ["light"] * options.light, check=True, capture_output=True)
        network = next(folder.glob("*.onnx"))
        labels = "\n".join(LABEL.format(n=n) for n in range(1, options.classes))
        card = CARD.format(
            network=network.name, window=WINDOW, overlap=options.overlap, labels=labels, skip=options.skip_below
        )
        (folder / "model.yaml").write_text(card)
        image, reference = str(workspace / "volume.nii"), str(folder / "reference.nii")
        script = str(network.with_suffix(".ts"))
        theirs = [options.peer_python, str(options.peer), script, image, reference, str(options.overlap)]
        good = True
        margin = None
        for engine in options.engine or ["onnxruntime"]:
            ours = [
                sys.executable,
                "-m",
                "mdcli",
                "infer",
                str(workspace),
                "--model",
                name,
                "--force",
                "--device",
                "cpu",
            ]
            ours += ["--engine", engine, *options.option]
            shares, rows = [], []
            for _ in range(options.pairs + (not options.no_peer)):
                mine = measure(ours, ROOT)
                shares.append(busy_share(workspace))
                rows.append((mine, (float("nan"),) * 3 if options.no_peer else measure(theirs, ROOT)))
            rows = rows[0 if options.no_peer else 1 :]
            predicting, whole = (statistics.median(share[n] for share in shares) for n in (0, 1))
            print(f"\n{engine}: the network was busy for {predicting:.0%} of the prediction, {whole:.0%} of the stage")
            for title, n, unit in (("wall", 0, "s"), ("CPU", 1, "s"), ("peak PSS", 2, "MiB")):
                mine, peer = (statistics.median(row[side][n] for row in rows) for side in (0, 1))
                ratio = statistics.median(row[1][n] / row[0][n] for row in rows)
                print(f"{title:<9} md {mine:8.2f} {unit:<4} MONAI {peer:8.2f} {unit:<4} ratio {ratio:.2f}")
            if options.no_peer:
                continue
            if margin is None:
                margin = folder / "margin.npy"
                asked = [options.peer_python, "-c", SCORES, script, image, str(margin), str(options.overlap)]
                subprocess.run(asked, check=True)
            found = (read_nifti(workspace / "labels.nii").array, read_nifti(Path(reference)).array)
            classes = [(n, f"class-{n}") for n in range(1, options.classes)]
            verdict = judge([compare_labels(found[1], found[0], np.load(margin), classes)])
            print("\n".join(table(verdict)))
            good &= verdict.passes()
    print("parity holds" if good else "parity does not hold")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
