"""Cases out of lists: names come from the list, never from folders or DICOM."""

import json

import pytest

from mdcli.cohort import read_cases
from mdcli.errors import DataError, MissingError, UsageError


def folders(root, *names):
    for name in names:
        (root / name).mkdir(parents=True)
    return root


def test_a_folder_of_folders_is_numbered_in_order(tmp_path):
    cases = read_cases(folders(tmp_path, "SMITH^JOHN", "ADAMS"))
    assert [(c.name, c.source.name) for c in cases] == [("case_0001", "ADAMS"), ("case_0002", "SMITH^JOHN")]


def test_a_csv_names_cases_by_its_id_column_and_paths_are_relative_to_it(tmp_path):
    folders(tmp_path, "a", "b")
    (tmp_path / "list.csv").write_text("id,dicom\nPat-01,a\nPat-02,b\n")
    cases = read_cases(tmp_path / "list.csv")
    assert [(c.name, c.source) for c in cases] == [("pat_01", tmp_path / "a"), ("pat_02", tmp_path / "b")]


def test_an_msd_datalist_takes_training_and_test_images(tmp_path):
    for name in ("x.nii", "y.nii"):
        (tmp_path / name).write_text("")
    document = {"training": [{"image": "./x.nii", "label": "./l.nii"}], "test": ["./y.nii"]}
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    assert [c.source.name for c in read_cases(tmp_path / "dataset.json")] == ["x.nii", "y.nii"]


@pytest.mark.parametrize(
    ("text", "kind", "code"),
    [
        ("id,dicom\nA 1,a\na-1,a\n", UsageError, "bad-name"),
        ("id,dicom\n1,gone\n", MissingError, "source-missing"),
        ("id,where\n1,a\n", DataError, "bad-list"),
        ("id,dicom\n", MissingError, "no-cases"),
        ("id,dicom\n1,\n", DataError, "bad-list"),
    ],
)
def test_a_bad_list_says_what_is_wrong(tmp_path, text, kind, code):
    folders(tmp_path, "a")
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(kind) as caught:
        read_cases(tmp_path / "list.csv")
    assert caught.value.code == code


def test_no_such_source(tmp_path):
    with pytest.raises(MissingError) as caught:
        read_cases(tmp_path / "gone")
    assert caught.value.code == "no-source"
