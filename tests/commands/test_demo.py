"""`md demo` makes everything it needs, is right by its gold, and says so by its status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mdcli.errors import PersonsFileError

ROOT = Path(__file__).resolve().parents[2]


def run_demo(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mdcli", "demo", str(folder)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("home") / "demo"
    done = run_demo(folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_result_is_the_golds(demo_folder):
    report = json.loads((demo_folder / "verify.json").read_text())
    assert report["result"] == "ok"
    assert [len(file["labels"]) for file in report["files"]] == [5, 4]


def test_both_segmentations_are_clean(demo_folder, judge):
    for name in ("tissue", "landmarks"):
        seg = demo_folder / name / "seg.dcm"
        done = subprocess.run([judge("dciodvfy"), str(seg)], capture_output=True, text=True, check=False)
        assert [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")] == []


def test_the_pictures_are_pictures(demo_folder):
    for name in ("tissue", "landmarks"):
        with Image.open(demo_folder / f"{name}.png") as picture:
            assert picture.size[0] > 1000
            assert np.asarray(picture).std() > 20


def test_nothing_that_is_left_or_printed_names_the_patient(demo_folder):
    for path in demo_folder.rglob("*"):
        # A SEG carries the patient module of its source (PS3.3 A.51); nothing else may.
        if path.is_file() and path.suffix != ".dcm":
            assert b"Phantom^Md" not in path.read_bytes(), path.name
            assert b"MD-DEMO" not in path.read_bytes(), path.name


def test_a_second_run_has_nothing_to_do_and_still_agrees(demo_folder):
    done = run_demo(demo_folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("already up to date") == 8


def test_a_changed_label_map_is_seen(demo_folder, tmp_path):
    import shutil

    copy = tmp_path / "demo"
    shutil.copytree(demo_folder, copy)
    labels = copy / "landmarks" / "labels.nii"
    data = bytearray(labels.read_bytes())
    # 352 bytes of header, then (60, 120, 168) voxels: every slice moves up by one.
    plane = 120 * 168
    data[352:] = data[-plane:] + data[352:-plane]
    labels.write_bytes(data)
    done = run_demo(copy)
    assert done.returncode == 1
    assert "[differs]" in done.stderr


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path):
    from mdcli.commands.demo import demo

    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(PersonsFileError) as error:
        demo(tmp_path)
    assert error.value.code == "persons-file"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
