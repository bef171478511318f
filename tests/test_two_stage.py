"""The Makefile of `md init two-stage`: one region, four models on it, one merged map, every landmark at its millimetre."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from mdcli.commands.init import init
from mdcli.phantom.anatomy import LANDMARKS
from mdcli.phantom.study import write_study
from tests.chain import run_chain
from tests.test_landmark_chain import NEAR_MM, centroids_mm

MODELS = Path(__file__).parents[1] / "mdcli" / "models"
NAMES = [landmark.name for landmark in LANDMARKS]
# Half a voxel of the phantom's series and of the network's grid, whose voxels lie elsewhere on a part than on the whole.
SAME_MM = 2.5
MAPS = (*NAMES[:3], "tissue")


def write_models(folder: Path) -> None:
    """Write three models that find one landmark each: the embedded one, its other labels mapped to the background."""
    for value, name in enumerate(NAMES[:3], start=1):
        place = folder / f"find-{name}"
        shutil.copytree(MODELS / "landmarks", place)
        card = yaml.safe_load((place / "model.yaml").read_text())
        card["name"] = f"find-{name}"
        card["output"]["after"] = [{"map": {other: 0 for other in range(1, 5) if other != value}}]
        (place / "model.yaml").write_text(yaml.safe_dump(card))


def read(path: Path):
    """Return voxels (k, j, i) and the affine, RAS+ and (i, j, k), as nibabel has them."""
    import nibabel

    image = nibabel.load(path)
    return np.asarray(image.dataobj).transpose(2, 1, 0), image.affine


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_one_region_four_models_and_one_map(tmp_path):
    init("two-stage", tmp_path)
    write_models(tmp_path / "models")
    write_study(tmp_path / "input" / "one")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "MD_MODELS": str(tmp_path / "models"),
    }
    words = [f"MAPS={' '.join(MAPS)}", *(f"MODEL_{name}=find-{name}" for name in NAMES[:3])]

    def make(*more):
        command = ["make", "-j2", *words, *more]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done

    first = make()
    assert "[overlap-resolved]" in first.stderr
    assert "Nothing to be done" in make().stdout
    case = tmp_path / "work" / "one"

    # The merged map is what arithmetic says: the first map that claims a voxel has it, with values counted on map by map.
    volume, affine = read(case / "volume.nii")
    merged, merged_affine = read(case / "labels.nii")
    np.testing.assert_array_equal(merged_affine, affine)
    crop = json.loads((case / "geometry-part.json").read_text())["crop"]
    part = tuple(slice(*crop[axis]) for axis in "kji")
    assert crop["of"] == list(volume.shape)
    assert all(side.start > 0 and side.stop < n for side, n in zip(part, volume.shape, strict=True))
    np.testing.assert_array_equal(read(case / "volume-part.nii")[0], volume[part])
    expected, described, offset = np.zeros(volume.shape, np.uint8), [], 0
    for name in MAPS:
        labels, _ = read(case / f"labels-{name}.nii")
        segments = json.loads((case / f"segments-{name}.json").read_text())["segments"]
        view = expected[part]
        for number, segment in enumerate(segments, start=offset + 1):
            view[(labels == segment["value"]) & (view == 0)] = number
        described += [segment["name"] for segment in segments]
        offset += len(segments)
    np.testing.assert_array_equal(merged, expected)
    document = json.loads((case / "segments.json").read_text())
    assert [segment["name"] for segment in document["segments"]] == described
    assert [segment["voxels"] for segment in document["segments"]] == np.bincount(expected.ravel())[1:].tolist()
    assert {s["name"]: s["model"]["name"] for s in document["segments"]} == {
        **{name: f"find-{name}" for name in NAMES[:3]},
        **dict.fromkeys(described[3:], "ct-tissue"),
    }

    # Without the cut the same is found: the tissue voxel by voxel, but for the rim whose smoothing sees beyond the part.
    run_chain(tmp_path / "whole", tmp_path / "input" / "one")
    run_chain(tmp_path / "whole_tissue", tmp_path / "input" / "one", model="ct-tissue", until="infer")
    inside = tuple(slice(side.start + 1, side.stop - 1) for side in part)
    tissue, _ = read(tmp_path / "whole_tissue" / "labels.nii")
    cut, _ = read(case / "labels-tissue.nii")
    np.testing.assert_array_equal(cut[1:-1, 1:-1, 1:-1], tissue[inside])
    found, uncut = centroids_mm(case / "seg.dcm"), centroids_mm(tmp_path / "whole" / "seg.dcm")
    for landmark in LANDMARKS[:3]:
        assert np.linalg.norm(found[landmark.name] - landmark.position_mm) < NEAR_MM
        assert np.linalg.norm(found[landmark.name] - uncut[landmark.name]) < SAME_MM

    # Another priority makes the map anew and nothing before it; another margin makes all that was made on the part.
    before = {path.name: path.stat().st_mtime_ns for path in case.glob("*.nii")}
    words[0] = f"MAPS={' '.join(reversed(MAPS))}"
    make()
    after = {path.name: path.stat().st_mtime_ns for path in case.glob("*.nii")}
    assert {name for name in after if after[name] != before[name]} == {"labels.nii"}
    make("MARGIN=40")
    wider = {path.name for path in case.glob("*.nii") if path.stat().st_mtime_ns != after[path.name]}
    made_on_part = {f"labels-{name}.nii" for name in MAPS}
    assert wider == {"volume-part.nii", "labels.nii", *made_on_part}
