"""Source files, on disk and in zip files, as they were scanned."""

import os
import zipfile

import pytest

from mdcli.dicom.opening import SourceFiles, shown, split_path
from mdcli.errors import DataError, MissingError


def content(files, path, size):
    with files.open(path, size) as file:
        start = file.read(2)
        rest = bytearray(size - 2)
        file.fill(memoryview(rest))
        return start + bytes(rest) + file.read()


@pytest.mark.parametrize(
    "path, expected",
    [
        ("ct/1.dcm", ("ct/1.dcm", None)),
        ("ct.zip!/a/1.dcm", ("ct.zip", "a/1.dcm")),
        ("ct.zip!/a!/1.dcm", ("ct.zip", "a!/1.dcm")),
        ("x!/1.dcm", ("x!/1.dcm", None)),
        ("x!/in.zip!/1.dcm", ("x!/in.zip", "1.dcm")),
        ("gone.zip!/1.dcm", ("gone.zip!/1.dcm", None)),
    ],
)
def test_a_path_is_a_file_and_perhaps_a_member_by_what_is_on_disk(tmp_path, path, expected):
    (tmp_path / "x!").mkdir()
    for name in ("ct.zip", "x!/in.zip"):
        (tmp_path / name).write_bytes(b"PK")
    assert split_path(tmp_path, path) == expected


def test_a_member_of_a_zip_file_that_is_the_root_has_no_name_before_it(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK")
    assert split_path(tmp_path / "a.zip", "!/1.dcm") == ("", "1.dcm")


def test_files_and_zip_members_are_read_alike(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"0123456789")
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("in/side.dcm", b"9876543210")
    with SourceFiles(tmp_path) as files:
        assert content(files, "a.dcm", 10) == b"0123456789"
        assert content(files, "b.zip!/in/side.dcm", 10) == b"9876543210"
    with SourceFiles(tmp_path / "b.zip") as files:
        assert content(files, "!/in/side.dcm", 10) == b"9876543210"


@pytest.mark.parametrize("path", ["../outside.dcm", "/etc/passwd", "a/../../outside.dcm"])
def test_nothing_outside_the_root_is_opened(tmp_path, path):
    with SourceFiles(tmp_path) as files, pytest.raises(DataError, match="bad-artifact"):
        content(files, path, 10)


@pytest.mark.parametrize("path", ["a.dcm", "a.dcm/b", "b.zip!/nothing.dcm", "none.zip!/a.dcm"])
def test_what_is_gone_is_missed(tmp_path, path):
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("a", b"")
    with SourceFiles(tmp_path) as files, pytest.raises(MissingError, match="source-missing"):
        content(files, path, 10)


def test_another_size_is_another_file(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"0123456789")
    with SourceFiles(tmp_path) as files, pytest.raises(DataError, match="source-changed"):
        content(files, "a.dcm", 11)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_a_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.dcm")
    with SourceFiles(tmp_path) as files, pytest.raises(DataError, match="source-changed"):
        content(files, "a.dcm", 10)


def test_a_damaged_zip_member_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a.dcm", b"0123456789")
    data = (tmp_path / "b.zip").read_bytes().replace(b"0123456789", b"012345678X")
    (tmp_path / "b.zip").write_bytes(data)
    with SourceFiles(tmp_path) as files, pytest.raises(DataError, match="source-unreadable"):
        content(files, "b.zip!/a.dcm", 10)


def test_control_characters_are_escaped():
    assert shown("a\x1b[31m\nb\u202e") == "a\\x1b[31m\\nb\\u202e"
    assert shown("Müller 7") == "Müller 7"
    assert len(shown("x" * 500)) == 120
