"""What is found in folders and zip files, and what is left alone."""

import io
import os
import socket
import struct
import zipfile
from pathlib import Path

import pytest

from mdcli.dicom import tree
from mdcli.dicom.headers import Skipped
from mdcli.dicom.instance import Instance
from mdcli.dicom.tree import list_source, read_entry, study_folders
from mdcli.errors import DataError, MissingError
from tests.dicom.test_headers import saved, small_ct


def put(path, data=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def ct(**changes):
    dataset = small_ct()
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    return saved(dataset)


def skipped(listing):
    return {s.path: s.code for s in listing.skipped}


def test_files_come_by_name_and_before_the_folders_beside_them(tmp_path):
    for name in ("b/2", "b/1", "a/deep/3", "z", "c"):
        put(tmp_path / name)
    assert list_source(tmp_path).names == ("c", "z", "a/deep/3", "b/1", "b/2")


def test_a_folder_sixty_levels_deep_is_reached(tmp_path):
    put(tmp_path.joinpath(*["n"] * 60, "last"))
    assert list_source(tmp_path).names == ("/".join(["n"] * 60) + "/last",)


def test_what_is_no_regular_file_is_skipped_and_not_opened(tmp_path):
    put(tmp_path / "good")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    with socket.socket(socket.AF_UNIX) as door:
        here = Path.cwd()
        os.chdir(tmp_path)  # a socket's path may not be long
        try:
            door.bind("socket")
        finally:
            os.chdir(here)
        listing = list_source(tmp_path)
    assert listing.names == ("good",)
    assert skipped(listing) == {
        "fifo": "not-a-file",
        "socket": "not-a-file",
        "broken": "broken-link",
        "itself": "broken-link",
    }


def test_links_to_folders_never_lead_in_a_circle(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    put(root / "a" / "1")
    put(outside / "2")
    (root / "a" / "up").symlink_to(root)
    (root / "top").symlink_to("/")
    (root / "beside").symlink_to(root / "a")
    (root / "out").symlink_to(outside)
    (outside / "back").symlink_to(root)
    (outside / "further").symlink_to(tmp_path)
    listing = list_source(root)
    assert listing.names == ("a/1", "out/2")
    assert skipped(listing) == {
        "a/up": "folder-link",
        "top": "folder-link",
        "beside": "folder-link",
        "out/back": "folder-link",
        "out/further": "folder-link",
    }


def test_a_link_to_a_file_outside_the_tree_is_followed(tmp_path):
    put(tmp_path / "store" / "x", ct())
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "store" / "x")
    listing = list_source(tmp_path / "root")
    assert listing.names == ("link",)
    (found,) = read_entry(listing.root, "link")
    assert isinstance(found, Instance)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_listed_is_named(tmp_path):
    put(tmp_path / "shut" / "1")
    (tmp_path / "shut").chmod(0)
    try:
        assert skipped(list_source(tmp_path)) == {"shut": "unreadable"}
    finally:
        (tmp_path / "shut").chmod(0o700)


def test_a_name_that_is_no_utf8_is_kept_as_it_is(tmp_path):
    name = os.fsdecode(b"M\xfcller")
    put(tmp_path / name, ct())
    listing = list_source(tmp_path)
    (found,) = read_entry(listing.root, listing.names[0])
    assert found.path == name


def test_a_source_that_is_not_there_or_no_file_is_an_error(tmp_path):
    with pytest.raises(MissingError, match="no-source"):
        list_source(tmp_path / "gone")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(DataError, match="bad-source"):
        list_source(tmp_path / "fifo")


def test_one_file_is_a_source(tmp_path):
    listing = list_source(put(tmp_path / "one.dcm", ct()))
    (found,) = read_entry(listing.root, *listing.names)
    assert (listing.root, found.path) == (tmp_path, "one.dcm")


def make_zip(path, members, **how):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **how) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def test_members_of_a_zip_file_are_read_in_memory_and_in_order(tmp_path):
    names = ["b/2.dcm", "a/1.dcm", "../../evil.dcm", "/abs.dcm"]
    path = make_zip(tmp_path / "study.zip", [(n, ct(SOPInstanceUID=f"1.2.{k}")) for k, n in enumerate(names)])
    before = sorted(tmp_path.parent.rglob("*"))
    listing = list_source(path)
    found = read_entry(listing.root, *listing.names)
    assert [f.path for f in found] == ["!/../../evil.dcm", "!//abs.dcm", "!/a/1.dcm", "!/b/2.dcm"]
    assert all(isinstance(f, Instance) for f in found)
    assert sorted(tmp_path.parent.rglob("*")) == before


def test_a_zip_file_within_a_tree_is_looked_into_but_not_one_within_it(tmp_path):
    inner = make_zip(tmp_path / "inner.zip", [("x.dcm", ct())]).read_bytes()
    root = tmp_path / "root"
    root.mkdir()
    make_zip(root / "Outer.ZIP", [("y.dcm", ct()), ("nested.zip", inner), ("notes.txt", b"hello")])
    listing = list_source(root)
    found = read_entry(listing.root, *listing.names)
    assert [(f.path, getattr(f, "code", "instance")) for f in found] == [
        ("Outer.ZIP!/nested.zip", "nested-zip"),
        ("Outer.ZIP!/notes.txt", "not-dicom"),
        ("Outer.ZIP!/y.dcm", "instance"),
    ]


def test_a_member_says_what_its_file_would(tmp_path):
    data = ct()
    put(tmp_path / "a.dcm", data)
    make_zip(tmp_path / "b.zip", [("a.dcm", data)])
    (plain,) = read_entry(tmp_path, "a.dcm")
    (zipped,) = read_entry(tmp_path, "b.zip")
    assert (plain.size, plain.pixel_offset, plain.header_sha256, plain.attributes) == (
        zipped.size,
        zipped.pixel_offset,
        zipped.header_sha256,
        zipped.attributes,
    )


def test_a_damaged_or_encrypted_member_is_skipped_and_the_others_read(tmp_path):
    data = bytearray(make_zip(tmp_path / "a.zip", [("1.dcm", ct()), ("2.dcm", ct())]).read_bytes())
    second = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
    data[second + 8] |= 1
    first = data.index(b"1.dcm") + 5
    data[first : first + 40] = b"\xff" * 40
    put(tmp_path / "a.zip", bytes(data))
    codes = [f.code for f in read_entry(tmp_path, "a.zip")]
    assert codes == ["zip-damaged", "zip-encrypted"]


@pytest.mark.parametrize("cut", [10, 60, 300])
def test_a_zip_file_that_is_cut_is_damaged_or_no_dicom(tmp_path, cut):
    path = make_zip(tmp_path / "a.zip", [("1.dcm", ct())])
    put(path, path.read_bytes()[:-cut])
    (found,) = read_entry(tmp_path, "a.zip")
    assert isinstance(found, Skipped) and found.code in ("zip-damaged", "not-dicom")


def test_two_members_of_one_name_are_reported(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"):
        make_zip(tmp_path / "a.zip", [("1.dcm", ct()), ("1.dcm", ct())])
    assert [getattr(f, "code", "instance") for f in read_entry(tmp_path, "a.zip")] == ["zip-damaged", "instance"]


def test_a_table_of_members_beyond_the_limit_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tree, "MAX_ZIP_DIRECTORY", 10_000)
    make_zip(tmp_path / "a.zip", [(f"{n}.dcm", b"") for n in range(400)])
    (found,) = read_entry(tmp_path, "a.zip")
    assert found.code == "zip-damaged"


def test_a_member_that_inflates_without_end_costs_only_its_head(tmp_path):
    data = ct()
    at = data.index(b"\xe0\x7f\x10\x00")
    bomb = data[:at] + struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OW", 0, 256 << 20) + bytes(256 << 20)
    make_zip(tmp_path / "a.zip", [("bomb.dcm", bomb)])
    (found,) = read_entry(tmp_path, "a.zip")
    assert (found.pixel_length, found.size) == (256 << 20, len(bomb))


def test_studies_are_found_with_the_deepest_folder_that_holds_them(tmp_path):
    put(tmp_path / "p1" / "ct" / "1", ct(StudyInstanceUID="1.1"))
    put(tmp_path / "p1" / "mr" / "2", ct(StudyInstanceUID="1.1"))
    put(tmp_path / "mixed" / "3", ct(StudyInstanceUID="1.2"))
    put(tmp_path / "mixed" / "4", ct(StudyInstanceUID="1.3"))
    assert study_folders(tmp_path) == [
        ("1.2", tmp_path / "mixed", False),
        ("1.3", tmp_path / "mixed", False),
        ("1.1", tmp_path / "p1", True),
    ]


def test_an_open_file_is_read_without_seeking(tmp_path):
    class Stream(io.BytesIO):
        def seek(self, *_):
            raise io.UnsupportedOperation

    from mdcli.dicom.headers import read_instance

    data = ct()
    assert read_instance(Stream(data), "a", size=len(data)).size == len(data)


def test_the_directory_of_a_file_set_stands_for_its_files(tmp_path):
    put(tmp_path / "DICOMDIR", b"")
    put(tmp_path / "A" / "IM1", ct())
    listing = list_source(tmp_path / "DICOMDIR")
    assert (listing.root, listing.names) == (tmp_path, ("DICOMDIR", "A/IM1"))
