"""convert: a tree in, the same tree out, nothing lost, nothing half written."""

import gzip
import hashlib
import os
import signal
import subprocess
import sys
import time

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from mdcli.errors import MissingError, UsageError
from mdcli.imaging.foreign import read_foreign
from tests.chain import md_environment
from tests.imaging.test_foreign import VALUES, mha, nifti, nrrd
from tests.made_series import ROOT, write_series


def convert(source, destination, **more):
    from mdcli.commands.convert import convert as command

    asked = {"to": "nii.gz", "resolution": None, "isotropic": False, "labels": False, "force": False, "dry_run": False}
    return command(source, destination, **{**asked, "jobs": 1, **more})


@pytest.fixture
def tree(tmp_path):
    """A tree of every kind that is read."""
    root = tmp_path / "in"
    for name in ("a/deep", "b", "c"):
        (root / name).mkdir(parents=True)
    nifti(root / "a" / "deep", name="one.nii")
    nrrd(root / "b" / "two.nrrd")
    mha(root / "b" / "three.mha")
    (root / "c" / "four.raw").write_bytes(VALUES.tobytes())
    mha(root / "c" / "four.mhd", data=b"", file="four.raw")
    write_series(root / "dicom", np.arange(3 * 4 * 5, dtype=np.uint16).reshape(3, 4, 5), SeriesNumber=7)
    (root / "notes.txt").write_text("no image")
    return root


def stem(number, series):
    """Return the name of a series: its number, and what SHA-256 makes of study and series UID."""
    return f"series_{number}{hashlib.sha256(f'{ROOT}2 {series}'.encode()).hexdigest()[:8]}"


EXPECTED = ["a/deep/one", "b/three", "b/two", "c/four", f"dicom/{stem('007_', f'{ROOT}3')}"]


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("form", ["nii", "nii.gz", "nrrd", "mha"])
def test_every_kind_becomes_any_form_in_its_own_place(tree, tmp_path, capsys, form):
    assert convert(tree, tmp_path / "out", to=form) == 0
    assert files(tmp_path / "out") == [f"{name}.{form}" for name in EXPECTED]
    printed = capsys.readouterr()
    assert sorted(printed.out.split()) == [str(tmp_path / "out" / f"{name}.{form}") for name in EXPECTED]
    assert "5 written, 0 kept, 0 failed" in printed.err
    for name in ("a/deep/one", "b/three", "b/two", "c/four"):
        np.testing.assert_array_equal(read_foreign(tmp_path / "out" / f"{name}.{form}").volume.array, VALUES)
    series = read_foreign(tmp_path / "out" / f"{EXPECTED[-1]}.{form}").volume
    np.testing.assert_array_equal(series.array, np.arange(60).reshape(3, 4, 5) - 1024)
    np.testing.assert_allclose(series.affine, [[1.5, 0, 0, -10], [0, 2, 0, 20], [0, 0, 3, 100], [0, 0, 0, 1]])
    assert series.unit == "HU"


def test_what_is_there_is_kept_unless_forced(tree, tmp_path, capsys):
    out = tmp_path / "out"
    convert(tree, out)
    for path in out.rglob("*.gz"):
        path.write_bytes(b"a person's")
    assert convert(tree, out) == 0
    assert "0 written, 5 kept, 0 failed" in capsys.readouterr().err
    assert {p.read_bytes() for p in out.rglob("*.gz")} == {b"a person's"}
    assert convert(tree, out, force=True) == 0
    np.testing.assert_array_equal(read_foreign(out / "b" / "two.nii.gz").volume.array, VALUES)


def test_a_dry_run_says_what_would_be_written_and_writes_nothing(tree, tmp_path, capsys):
    assert convert(tree, tmp_path / "out", dry_run=True) == 0
    assert len(capsys.readouterr().out.split()) == 5
    assert not (tmp_path / "out").exists()


def test_failures_are_listed_at_the_end_and_the_rest_goes_on(tree, tmp_path, capsys):
    (tree / "b" / "broken.nii").write_bytes(b"no image")
    nrrd(tree / "b" / "nowhere.nrrd", space=None)
    gap = np.zeros((4, 4, 5), np.uint16)
    write_series(
        tree / "gap", gap, SeriesInstanceUID="1.2.3", ImagePositionPatient=[[0.0, 0.0, z] for z in (0, 3, 9, 12)]
    )
    assert convert(tree, tmp_path / "out") == 65
    assert files(tmp_path / "out") == [f"{name}.nii.gz" for name in EXPECTED]
    lines = capsys.readouterr().err.splitlines()
    assert [line[line.index("[") :] for line in lines if "error" in line] == [
        "[not-nifti]",
        "[no-affine]",
        "[missing-slices]",
    ]
    assert lines[-1] == "md: note: 5 written, 0 kept, 3 failed"


def test_a_resolution_is_met_and_a_ramp_stays_a_ramp(tmp_path):
    k, j, i = np.indices((6, 8, 10))
    values = (2 * i + 3 * j + 5 * k).astype(np.int16)
    (tmp_path / "in").mkdir()
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((1.0, 1.0, 2.0))
    sitk.WriteImage(image, str(tmp_path / "in" / "ramp.mha"))
    assert convert(tmp_path / "in", tmp_path / "out", resolution="0.5,1,4", to="nrrd") == 0
    found = read_foreign(tmp_path / "out" / "ramp.nrrd").volume
    assert np.linalg.norm(found.affine[:3, :3], axis=0).tolist() == [0.5, 1, 4]
    # Centres from 0 to at most half a voxel beyond the last: 0 ... 9.5, 0 ... 7, 0 4 8 of 10 + 1.
    assert found.array.shape == (3, 8, 20)
    k, j, i = np.indices((3, 8, 19))
    np.testing.assert_array_equal(found.array[..., :19], i + 3 * j + 10 * k)


def test_labels_are_never_mixed(tmp_path):
    labels = np.random.default_rng(3).choice([0, 1, 7], (6, 8, 10)).astype(np.uint8)
    (tmp_path / "in").mkdir()
    image = nibabel.Nifti1Image(labels.transpose(2, 1, 0), np.diag([-1.0, -1, 3, 1]))
    nibabel.save(image, tmp_path / "in" / "labels.nii.gz")
    assert convert(tmp_path / "in", tmp_path / "out", isotropic=True, labels=True) == 0
    found = read_foreign(tmp_path / "out" / "labels.nii.gz").volume.array
    assert found.dtype == np.uint8 and set(np.unique(found)) == {0, 1, 7}
    np.testing.assert_array_equal(found[::3], labels)


def test_two_files_of_one_name_become_two(tmp_path):
    (tmp_path / "in").mkdir()
    nifti(tmp_path / "in", name="x.nii")
    nrrd(tmp_path / "in" / "x.nrrd")
    assert convert(tmp_path / "in", tmp_path / "out") == 0
    assert files(tmp_path / "out") == ["x_nii.nii.gz", "x_nrrd.nii.gz"]


def test_two_series_of_one_number_become_two_and_no_text_of_a_header_names_a_file(tmp_path):
    values = np.zeros((3, 4, 5), np.uint16)
    for n, uid in enumerate(("1.2.3", "1.2.4", "1.2.5")):
        more = {"SeriesNumber": 4} if n < 2 else {}
        write_series(
            tmp_path / "in" / str(n),
            values,
            SeriesInstanceUID=uid,
            SeriesDescription="../../x",
            ProtocolName="x",
            **more,
        )
        for path in (tmp_path / "in" / str(n)).iterdir():
            path.rename(tmp_path / "in" / f"{n}{path.name}")
        (tmp_path / "in" / str(n)).rmdir()
    assert convert(tmp_path / "in", tmp_path / "out") == 0
    expected = [stem("004_", "1.2.3"), stem("004_", "1.2.4"), stem("", "1.2.5")]
    assert files(tmp_path / "out") == sorted(f"{name}.nii.gz" for name in expected)


def test_a_series_that_comes_later_takes_no_other_ones_place(tmp_path, capsys):
    for n, uid in enumerate(("1.2.9", "1.2.3")):
        write_series(
            tmp_path / "in" / uid,
            np.full((3, 4, 5), n + 1, np.uint16),
            SeriesNumber=4,
            SeriesInstanceUID=uid,
            SOPInstanceUID=[f"{uid}.{k}" for k in range(3)],
        )
        assert convert(tmp_path / "in", tmp_path / "out") == 0
    assert "1 written, 1 kept, 0 failed" in capsys.readouterr().err
    found = {float(read_foreign(path).volume.array.max()) for path in (tmp_path / "out").rglob("*.nii.gz")}
    assert found == {1.0 - 1024, 2.0 - 1024}


def test_two_sources_never_have_one_result(tmp_path, capsys):
    write_series(tmp_path / "in", np.zeros((3, 4, 5), np.uint16), SeriesNumber=4)
    nifti(tmp_path / "in", name=f"{stem('004_', f'{ROOT}3')}.nii")
    assert convert(tmp_path / "in", tmp_path / "out") == 65
    assert "[same-name]" in capsys.readouterr().err


def test_a_file_is_never_written_over_itself(tmp_path, capsys):
    source = tmp_path / "a.nii"
    nifti(tmp_path, name="a.nii")
    before = source.read_bytes()
    assert convert(source, tmp_path, to="nii", force=True, resolution="5") == 2
    assert source.read_bytes() == before and "[bad-destination]" in capsys.readouterr().err


def test_several_volumes_of_one_series_become_several_files(tmp_path):
    values = np.arange(6 * 4 * 5, dtype=np.uint16).reshape(6, 4, 5)
    positions = [[0.0, 0.0, 3.0 * (k % 3)] for k in range(6)]
    write_series(
        tmp_path / "in", values, Modality="MR", ImagePositionPatient=positions, EchoTime=[10.0] * 3 + [80.0] * 3,
        EchoNumbers=[1, 1, 1, 2, 2, 2], SeriesNumber=5,
    )  # fmt: skip
    assert convert(tmp_path / "in", tmp_path / "out") == 0
    names = files(tmp_path / "out")
    assert len(names) == 2 and all(name.startswith("series_005_") for name in names)
    found = [read_foreign(tmp_path / "out" / name).volume.array for name in names]
    np.testing.assert_array_equal(np.concatenate(found), values.astype(float) - 1024)


def test_a_sheared_volume_fails_for_mha_and_goes_when_resampled(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    nrrd(tmp_path / "in" / "x.nrrd", space_directions="(2,0,0) (0,3,0) (0,1,4)")
    assert convert(tmp_path / "in", tmp_path / "out", to="mha") == 65
    assert "[sheared-volume]" in capsys.readouterr().err
    assert files(tmp_path) == ["in/x.nrrd"]
    assert convert(tmp_path / "in", tmp_path / "out", to="mha", resolution="2,3,4") == 0


@pytest.mark.parametrize(
    "more, code",
    [
        ({"to": "jpg"}, "unknown-form"),
        ({"resolution": "1", "isotropic": True}, "no-grid"),
        ({"resolution": "x"}, "bad-spacing"),
        ({"jobs": 0}, "bad-jobs"),
    ],
)
def test_a_wrong_call_is_refused(tree, tmp_path, more, code):
    with pytest.raises(UsageError) as caught:
        convert(tree, tmp_path / "out", **more)
    assert caught.value.code == code


def test_a_destination_within_the_source_is_refused(tree):
    for place in (tree, tree / "out"):
        with pytest.raises(UsageError) as caught:
            convert(tree, place)
        assert caught.value.code == "bad-destination"


def test_a_tree_without_a_volume_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(MissingError) as caught:
        convert(tmp_path / "in", tmp_path / "out")
    assert caught.value.code == "no-image"


def test_a_link_that_leads_out_and_a_name_that_is_no_utf_8_do_no_harm(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    nifti(tmp_path / "in").rename(tmp_path / "in" / os.fsdecode(b"\xff\xfe.nii"))
    command = [sys.executable, "-m", "mdcli", "convert", str(tmp_path / "in"), str(tmp_path / "out")]
    done = subprocess.run(command, env=md_environment(), capture_output=True)
    assert done.returncode == 0, done.stderr
    assert [os.fsencode(p.name) for p in (tmp_path / "out").iterdir()] == [b"\xff\xfe.nii.gz"]


def test_an_interrupted_call_leaves_no_half_file(tmp_path):
    (tmp_path / "in").mkdir()
    noise = np.random.default_rng(0).integers(0, 60000, (120, 400, 400)).astype(np.uint16)
    image = nibabel.Nifti1Image(noise.transpose(2, 1, 0), np.eye(4))
    nibabel.save(image, tmp_path / "in" / "large.nii")
    command = [sys.executable, "-m", "mdcli", "convert", str(tmp_path / "in"), str(tmp_path / "out")]
    with subprocess.Popen(command, env=md_environment(), stderr=subprocess.PIPE) as child:
        while child.poll() is None and not (tmp_path / "out").exists():
            time.sleep(0.01)
        child.send_signal(signal.SIGINT)
        child.communicate()
    assert child.returncode in (0, 130)
    for path in (tmp_path / "out").iterdir():
        # Either whole, or not there.
        assert path.name == "large.nii.gz" and len(gzip.decompress(path.read_bytes())) == 352 + noise.nbytes
