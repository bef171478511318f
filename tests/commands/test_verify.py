from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from xml.etree import ElementTree

import nibabel
import numpy as np
import pytest
import yaml

from mdcli.cli.main import run as md
from mdcli.imaging.nifti import nifti_header, read_nifti, write_nifti
from tests.checking.segs import masks, series, write_seg

AFFINE = np.array([[0.5, 0, 0, -10], [0, 1, 0, 20], [0, 0, 4, 30], [0, 0, 0, 1.0]])
CODE = {"value": "1", "scheme": "99T", "meaning": "m"}


def labels() -> np.ndarray:
    found = np.zeros((12, 30, 40), np.uint8)
    found[2:9, 4:24, 5:30] = 1
    found[5:9, 6:14, 10:20] = 2
    return found


def write_labels(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    with path.open("wb") as file:
        write_nifti(file, np.ascontiguousarray(array), affine)


def write_segments(path: Path, names: dict[int, str]) -> None:
    segments = [{"value": value, "name": name, "category": CODE, "type": CODE} for value, name in names.items()]
    path.write_text(json.dumps({"schema": "md.segments/1", "segments": segments}))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run's outputs: a label map and what its labels are."""
    folder = tmp_path / "run"
    folder.mkdir()
    write_labels(folder / "labels.nii", labels())
    write_segments(folder / "segments.json", {1: "air", 2: "fat"})
    return folder


@pytest.fixture
def gold(run: Path, tmp_path: Path) -> Path:
    assert md(["verify", str(run), "--gold", str(tmp_path / "gold"), "--write-gold"]) == 0
    return tmp_path / "gold"


def verify(run: Path, gold: Path, *more: str) -> int:
    return md(["verify", str(run), "--gold", str(gold), *more])


def test_a_run_agrees_with_the_gold_made_of_it(run, gold, capsys):
    assert verify(run, gold) == 0
    out, err = capsys.readouterr()
    assert "1 air" in out and "DIFFERS" not in out
    # 7 x 20 x 25 voxels less 4 x 8 x 10, of 2 mm3.
    assert f"{(3500 - 320) * 2 / 1000:.3f}" in out
    assert "dice: 2 |A and B|" in out
    assert "error" not in err


@pytest.mark.parametrize(
    "mutate",
    [
        pytest.param(lambda a: np.roll(a, 1, 2), id="shifted by a voxel"),
        pytest.param(lambda a: a[:, :, ::-1], id="mirrored"),
        pytest.param(lambda a: np.array([0, 2, 1], np.uint8)[a], id="labels swapped"),
        pytest.param(lambda a: a[::-1], id="slices reversed"),
    ],
)
def test_a_mutation_ends_with_status_1(run, gold, mutate, capsys):
    write_labels(run / "labels.nii", mutate(labels()))
    assert verify(run, gold) == 1
    out, err = capsys.readouterr()
    assert "DIFFERS" in out and "[differs]" in err


def test_a_grid_elsewhere_ends_with_status_1(run, gold, capsys):
    moved = AFFINE.copy()
    moved[2, 3] += 4
    write_labels(run / "labels.nii", labels(), moved)
    assert verify(run, gold) == 1
    assert "[affine]" in capsys.readouterr().out


def test_swapped_names_end_with_status_1(run, gold, capsys):
    write_segments(run / "segments.json", {1: "fat", 2: "air"})
    assert verify(run, gold) == 1
    assert "'fat'" in capsys.readouterr().out
    (run / "segments.json").unlink()
    assert verify(run, gold) == 1
    assert "[no-names]" in capsys.readouterr().out


def test_an_output_that_is_missing_or_unreadable_is_a_difference(run, gold, capsys):
    (run / "labels.nii").unlink()
    assert verify(run, gold) == 1
    assert "missing" in capsys.readouterr().out
    (run / "labels.nii").write_bytes(b"hello")
    assert verify(run, gold) == 1
    assert "unreadable" in capsys.readouterr().out
    (run / "labels.nii").unlink()
    os.mkfifo(run / "labels.nii")
    assert verify(run, gold) == 1


def header_with(at: int, value: bytes) -> bytes:
    """Return the header and a few voxels of a NIfTI whose header says something else at one place."""
    header = nifti_header((2, 3, 4), "uint8", AFFINE)
    return header[:at] + value + header[at + len(value) :] + bytes(24)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(header_with(0, b"")[:-5], id="cut off"),
        pytest.param(header_with(0, b"")[:200], id="cut off in the header"),
        pytest.param(header_with(70, b"\xff\xff"), id="unknown type"),
        pytest.param(header_with(42, b"\xff\x7f\xff\x7f\xff\x7f"), id="sizes that no memory holds"),
        pytest.param(header_with(42, b"\x00\x00"), id="no column"),
        pytest.param(header_with(42, b"\xff\xff"), id="less than no column"),
        pytest.param(header_with(280, b"\xff" * 48), id="an affine that is no number"),
        pytest.param(b"", id="empty"),
    ],
)
def test_a_damaged_output_is_a_difference_and_no_crash(run, tmp_path, data, suffix, capsys):
    (tmp_path / "gold").mkdir()
    good = header_with(0, b"")
    pack = gzip.compress if suffix == ".nii.gz" else bytes
    (tmp_path / "gold" / f"labels{suffix}").write_bytes(pack(good))
    (tmp_path / "gold" / "gold.yaml").write_text(f"schema: md.gold/1\nfiles: [{{file: labels{suffix}}}]")
    (run / f"labels{suffix}").write_bytes(pack(good))
    assert verify(run, tmp_path / "gold") == 0
    for damaged in (pack(data), pack(data)[: len(pack(data)) // 2]):
        (run / f"labels{suffix}").write_bytes(damaged)
        assert verify(run, tmp_path / "gold") == 1
        assert "unreadable" in capsys.readouterr().out


def test_the_reports_are_written_whole_and_name_no_path(run, gold, tmp_path):
    write_labels(run / "labels.nii", labels()[::-1])
    report, junit = tmp_path / "r.json", tmp_path / "r.xml"
    assert verify(run, gold, "--json", str(report), "--junit", str(junit)) == 1
    found = json.loads(report.read_text())
    assert found["schema"] == "md.verify/1" and found["result"] == "differs"
    assert ElementTree.parse(junit).getroot().get("failures") == "2"
    assert str(tmp_path) not in report.read_text() + junit.read_text()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_the_reason_for_a_looser_tolerance_is_printed(run, gold, capsys):
    document = yaml.safe_load((gold / "gold.yaml").read_text())
    document["files"][0] |= {"tolerances": {"dice": 0.95, "centroid_voxels": 2}, "reason": "another processor"}
    (gold / "gold.yaml").write_text(yaml.safe_dump(document))
    write_labels(run / "labels.nii", np.roll(labels(), 1, 2))
    assert verify(run, gold) == 1
    document["files"][0]["tolerances"]["dice"] = 0.85
    (gold / "gold.yaml").write_text(yaml.safe_dump(document))
    assert verify(run, gold) == 0
    assert "another processor" in capsys.readouterr().out


def test_a_gold_that_is_missing_or_broken_is_no_answer(run, gold, tmp_path, capsys):
    assert verify(run, tmp_path / "nothing") == 66
    assert verify(tmp_path / "nothing", gold) == 66
    write_labels(gold / "labels.nii", np.full((2, 2, 2), 0.5, np.float32))
    assert verify(run, gold) == 65
    (gold / "labels.nii").unlink()
    assert verify(run, gold) == 66
    (gold / "gold.yaml").write_text("schema: md.gold/1\nfiles: [{file: ../run/labels.nii}]")
    assert verify(run, gold) == 78
    assert "[bad-gold]" in capsys.readouterr().err


def test_a_compressed_label_map_of_another_tool_is_compared(run, gold, tmp_path):
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ AFFINE
    image = nibabel.Nifti1Image(labels().transpose(2, 1, 0).astype(np.int16), ras)
    nibabel.save(image, run / "labels-other.nii.gz")
    (gold / "labels-other.nii.gz").write_bytes(gzip.compress((gold / "labels.nii").read_bytes()))
    (gold / "gold.yaml").write_text("schema: md.gold/1\nfiles: [{file: labels-other.nii.gz}]")
    assert verify(run, gold) == 0


def test_a_gold_folder_is_made_whole_and_never_over_another(run, gold, capsys):
    before = {p.name: p.read_bytes() for p in gold.iterdir()}
    assert before.keys() == {"gold.yaml", "labels.nii"}
    assert gold.stat().st_mode & 0o777 == 0o700
    assert verify(run, gold, "--write-gold") == 73
    assert {p.name: p.read_bytes() for p in gold.iterdir()} == before
    assert "[gold-exists]" in capsys.readouterr().err


def test_a_gold_label_map_carries_no_text_of_its_header(run, tmp_path):
    image = nibabel.Nifti1Image(labels().transpose(2, 1, 0), np.diag([-1.0, -1.0, 1.0, 1.0]) @ AFFINE)
    image.header["descrip"], image.header["db_name"] = b"CANARY", b"CANARY"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"CANARY"))
    for name in ("labels.nii", "labels-a.nii.gz"):
        nibabel.save(image, run / name)
    assert b"CANARY" in (run / "labels.nii").read_bytes()
    gold = tmp_path / "gold"
    assert verify(run, gold, "--write-gold") == 0
    for name, opened in (
        ("labels.nii", Path.read_bytes),
        ("labels-a.nii.gz", lambda p: gzip.decompress(p.read_bytes())),
    ):
        assert b"CANARY" not in opened(gold / name)
        assert np.array_equal(read_nifti(gold / name).array, labels())
    write_segments(run / "segments-a.json", {1: "air", 2: "fat"})
    assert verify(run, gold) == 0


def anonymous(seg) -> None:
    seg.PatientName = seg.PatientID = seg.PatientBirthDate = seg.AccessionNumber = ""
    # highdicom copies people's names from the sources into sequences too.
    seg.walk(lambda _, element: setattr(element, "value", "") if element.VR == "PN" else None)


def test_a_seg_is_gold_only_where_it_names_nobody(run, tmp_path, capsys):
    images = series()
    write_seg(run / "seg.dcm", images)
    gold = tmp_path / "gold"
    assert verify(run, gold, "--write-gold", "--file", "seg.dcm") == 65
    assert not gold.exists() and not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    err = capsys.readouterr().err
    assert "[identifiable]" in err and "anary" not in err

    write_seg(run / "seg.dcm", images, edit=anonymous)
    assert verify(run, gold, "--write-gold", "--file", "seg.dcm", "--file", "labels.nii") == 0
    write_seg(run / "seg.dcm", images)
    assert verify(run, gold) == 0
    write_seg(run / "seg.dcm", images, np.ascontiguousarray(masks()[:, :, ::-1]))
    assert verify(run, gold) == 1

    write_seg(gold / "seg.dcm", images)
    assert verify(run, gold) == 65
    out, err = capsys.readouterr()
    assert "anary" not in (out + err).lower().replace("canaryid", "CANARY")


@pytest.mark.parametrize(
    ("more", "status"),
    [
        (["--file", "labels.nii"], 2),
        (["--write-gold", "--json", "x.json"], 2),
        (["--write-gold", "--file", "../labels.nii"], 2),
        (["--write-gold", "--file", "labels-none.nii"], 66),
    ],
)
def test_a_wrong_call_is_told(run, tmp_path, more, status):
    assert verify(run, tmp_path / "gold", *more) == status
    assert not (tmp_path / "gold").exists()


@pytest.mark.parametrize("option", ["--json", "--junit"])
@pytest.mark.parametrize(("target", "status"), [("folder", 2), ("none/x", 66), ("file/x", 66)])
def test_a_report_that_can_not_be_written_is_told_by_its_option(run, gold, tmp_path, capsys, option, target, status):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    assert verify(run, gold, option, str(tmp_path / target)) == status
    err = capsys.readouterr().err
    assert option in err and ".part" not in err


def test_a_gold_folder_that_can_not_be_made_is_told_without_a_temporary_name(run, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert verify(run, tmp_path / "file" / "gold", "--write-gold") == 2
    assert ".part" not in capsys.readouterr().err


def test_a_run_without_a_label_map_makes_no_gold(tmp_path):
    (tmp_path / "run").mkdir()
    assert verify(tmp_path / "run", tmp_path / "gold", "--write-gold") == 66
