"""A scan by the index gives what a scan without one gives, opens only what changed, and keeps nobody's name."""

from __future__ import annotations

import json
import os
import stat
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdcli.dicom import index as module
from mdcli.dicom.headers import KEYWORDS, Skipped
from mdcli.dicom.index import scan
from mdcli.dicom.instance import Instance
from mdcli.dicom.series import drop_copies, group_series, series_to_json, without_strangers
from mdcli.dicom.tree import Listing, list_source
from mdcli.workspace import json_bytes
from tests.made_series import UNCOMPRESSED, write_series, write_slice

PATIENT = {"PatientID": (0x00100020, "LO", True), "IssuerOfPatientID": (0x00100021, "LO", True)}
SEX = {"PatientSex": (0x00100040, "CS", True)}
STATION = {"StationName": (0x00081010, "SH", True)}
LATERALITY = {"Laterality": (0x00200060, "CS", True)}
PLANES = np.arange(3 * 4 * 6, dtype=np.uint16).reshape(3, 4, 6)


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files that were written just now be noted, as nobody can set the time of a file's last change."""
    monkeypatch.setattr(module, "RACY_S", -60.0)


@pytest.fixture
def tree(tmp_path: Path, steady: None) -> Path:
    """Return a tree with two series, a zip file, and what is no instance."""
    root = tmp_path / "DOE^JOHN"
    write_series(root / "one", PLANES)
    write_series(root / "two", PLANES, UNCOMPRESSED["deflated"], SeriesInstanceUID="1.2.3", StationName="CT7")
    (root / "note.txt").write_text("not DICOM")
    (root / "empty").touch()
    (root / "cut.dcm").write_bytes((root / "one" / "0000.dcm").read_bytes()[:400])
    write_series(tmp_path / "zipped", PLANES, SeriesInstanceUID="1.2.4")
    with zipfile.ZipFile(root / "DOE.zip", "w") as archive:
        for path in sorted((tmp_path / "zipped").iterdir()):
            archive.write(path, f"DOE^JANE/{path.name}")
        archive.writestr("readme", "not DICOM")
        archive.writestr("inner.zip", "PK")
    return root


class Scan:
    """One scan, and the names of the files that it opened."""

    def __init__(self, root: Path, index: Path | None, extra: Any = None, compare: Any = None, **more: Any) -> None:
        self.opened: list[str] = []

        def progress(names: Iterable[str]) -> Iterable[str]:
            self.opened = list(names)
            return self.opened

        self.found = scan(list_source(root), extra, compare, index=index, progress=progress, **more)

    @property
    def instances(self) -> list[Instance]:
        return [one for one in self.found if isinstance(one, Instance)]


def documents(found: Iterable[Instance | Skipped]) -> list[bytes]:
    """Return `series.json` of every series, as the stage would write it."""
    made = []
    for series in group_series([one for one in found if isinstance(one, Instance)]):
        images, strangers = without_strangers(series)
        kept, copies = drop_copies(images.instances, lambda one: one.path)
        made.append(json_bytes(series_to_json(kept, copies, strangers)))
    return made


def same(one: Scan, other: Scan) -> bool:
    """Say whether all is equal, types and order of attributes too."""
    return repr(one.found) == repr(other.found) and documents(one.found) == documents(other.found)


def test_the_second_scan_opens_nothing_and_finds_the_same(tree: Path, tmp_path: Path) -> None:
    plain, first, second = Scan(tree, None), Scan(tree, tmp_path / "i"), Scan(tree, tmp_path / "i")
    assert len(plain.instances) == 9 and len(documents(plain.found)) == 3
    codes = {one.code for one in plain.found if isinstance(one, Skipped)}
    assert codes == {"not-dicom", "empty-file", "damaged-header", "nested-zip"}
    assert len(first.opened) == 10 and second.opened == []
    assert same(plain, first) and same(plain, second)


def test_a_zip_file_as_the_source_is_not_read_again(tree: Path, tmp_path: Path) -> None:
    plain = Scan(tree / "DOE.zip", None)
    assert Scan(tree / "DOE.zip", tmp_path / "i").opened == [""]
    again = Scan(tree / "DOE.zip", tmp_path / "i")
    assert again.opened == [] and same(plain, again)


def test_real_series_are_the_same_by_the_index(shared_data: Path, tmp_path: Path, steady: None) -> None:
    for name in (
        "02_pet_rescale_per_slice",
        "15_mr_enhanced_philips",
        "26_dicomdir_fileset",
        "34_charsets",
        "31_odd_syntaxes",
    ):
        root = shared_data / name
        plain, _, again = Scan(root, None), Scan(root, tmp_path / name), Scan(root, tmp_path / name)
        assert again.opened == [] and same(plain, again) and plain.instances


def change(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b"1.2.826")] = ord("2")
    path.write_bytes(data)


def replace_alike(path: Path) -> None:
    """Put another file of the same size and time in its place."""
    before = path.stat()
    other = path.with_name("other")
    other.write_bytes(path.read_bytes().replace(b"1.2.826", b"2.2.826"))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def change_in_place_keeping_time(path: Path) -> None:
    before = path.stat()
    change(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    ("act", "opened"),
    [
        (change, ["one/0000.dcm"]),
        (replace_alike, ["one/0000.dcm"]),
        (change_in_place_keeping_time, ["one/0000.dcm"]),
        (lambda path: path.unlink(), []),
        (lambda path: path.rename(path.with_name("renamed.dcm")), ["one/renamed.dcm"]),
        (lambda path: path.with_name("new").write_bytes(path.read_bytes()), ["one/new"]),
    ],
    ids=["changed", "replaced by one alike", "changed with the time put back", "removed", "renamed", "added"],
)
def test_only_a_file_that_is_not_as_it_was_is_opened(
    tree: Path, tmp_path: Path, act: Callable[[Path], object], opened: list[str]
) -> None:
    Scan(tree, tmp_path / "i")
    time.sleep(0.02)  # the clock of a file's times may tick every 10 ms
    act(tree / "one" / "0000.dcm")
    second = Scan(tree, tmp_path / "i")
    assert second.opened == opened and same(Scan(tree, None), second)
    third = Scan(tree, tmp_path / "i")
    assert third.opened == [] and same(second, third)


def test_a_changed_zip_file_is_read_again(tree: Path, tmp_path: Path) -> None:
    Scan(tree, tmp_path / "i")
    with zipfile.ZipFile(tree / "DOE.zip", "a") as archive:
        archive.write(tree / "one" / "0000.dcm", "more")
    again = Scan(tree, tmp_path / "i")
    assert again.opened == ["DOE.zip"] and same(Scan(tree, None), again)


def test_a_file_that_was_touched_just_now_is_not_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path / "s", PLANES)
    for _ in range(2):
        assert len(Scan(tmp_path / "s", tmp_path / "i").opened) == 3
    later = time.time_ns() + 3_000_000_000
    monkeypatch.setattr(module.time, "time_ns", lambda: later)
    assert len(Scan(tmp_path / "s", tmp_path / "i").opened) == 3
    assert Scan(tmp_path / "s", tmp_path / "i").opened == []
    # A time of modification that was set back does not help: the time of the change counts too.
    os.utime(tmp_path / "s" / "0000.dcm", (0, 0))
    monkeypatch.undo()
    assert Scan(tmp_path / "s", tmp_path / "i").opened == ["0000.dcm"]
    assert Scan(tmp_path / "s", tmp_path / "i").opened == ["0000.dcm"]


def test_what_could_not_be_read_is_tried_again(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = module.read_entry

    def refuse(root: Path, name: str, extra: Any = None) -> list[Instance | Skipped]:
        return [Skipped(name, "unreadable", "no")] if name == "empty" else real(root, name, extra)

    monkeypatch.setattr(module, "read_entry", refuse)
    Scan(tree, tmp_path / "i")
    monkeypatch.undo()
    monkeypatch.setattr(module, "RACY_S", -60.0)
    assert Scan(tree, tmp_path / "i").opened == ["empty"]


# More attributes


def test_a_scan_that_asks_for_more_reads_again_and_one_that_asks_for_less_gets_less(tree: Path, tmp_path: Path) -> None:
    Scan(tree, tmp_path / "i")
    more = Scan(tree, tmp_path / "i", STATION)
    assert len(more.opened) == 10 and same(Scan(tree, None, STATION), more)
    assert {one.get("StationName") for one in more.instances} == {None, "CT7"}
    less = Scan(tree, tmp_path / "i")
    assert less.opened == [] and same(Scan(tree, None), less)
    # What was asked before stays noted beside the new.
    other = Scan(tree, tmp_path / "i", LATERALITY)
    assert len(other.opened) == 10 and same(Scan(tree, None, LATERALITY), other)
    both = Scan(tree, tmp_path / "i", {**STATION, **LATERALITY})
    assert both.opened == [] and same(Scan(tree, None, {**STATION, **LATERALITY}), both)


def test_an_attribute_read_otherwise_is_another(tree: Path, tmp_path: Path) -> None:
    Scan(tree, tmp_path / "i", STATION)
    again = Scan(tree, tmp_path / "i", {"StationName": (0x00081010, "SH", False)})
    assert len(again.opened) == 10


def test_an_attribute_of_the_patient_is_read_each_time_and_never_kept(tree: Path, tmp_path: Path) -> None:
    write_slice(tree / "sex.dcm", PLANES[0], PatientSex="O")
    for _ in range(2):
        asked = Scan(tree, tmp_path / "i", SEX, PATIENT)
        assert len(asked.opened) == 11
        assert [one.get("PatientSex") for one in asked.instances if one.path == "sex.dcm"] == ["O"]
    assert not (tmp_path / "i").exists()


def test_what_is_only_compared_is_equal_where_it_was_and_is_not_told(tree: Path, tmp_path: Path) -> None:
    write_slice(tree / "other.dcm", PLANES[0], PatientID="OTHER-ID")
    write_slice(tree / "none.dcm", PLANES[0], PatientID=None)
    Scan(tree, tmp_path / "i", compare=PATIENT)
    write_slice(tree / "late.dcm", PLANES[0], PatientID="OTHER-ID")
    for index in (tmp_path / "i", None):
        found = Scan(tree, index, compare=PATIENT)
        ids = {one.path: one.get("PatientID") for one in found.instances}
        assert ids["other.dcm"] == ids["late.dcm"] != ids["one/0000.dcm"] and ids["none.dcm"] is None
        assert ids["one/0000.dcm"] == ids["two/0000.dcm"]
        assert "OTHER-ID" not in repr(found.found) and "CANARY" not in repr(found.found)
    assert Scan(tree, tmp_path / "i", compare=PATIENT).opened == []
    assert documents(Scan(tree, tmp_path / "i").found) == documents(Scan(tree, None).found)


def test_the_index_holds_no_name_and_no_id(tree: Path, tmp_path: Path) -> None:
    Scan(tree, tmp_path / "i", STATION, PATIENT)
    data = (tmp_path / "i").read_bytes().lower()
    for word in (b"canary", b"doe", b"jane", b"0000", b"one/", b".dcm", b"note", str(tmp_path).lower().encode()):
        assert word not in data.replace(b"000000", b"") or word == b"0000"
    assert stat.S_IMODE((tmp_path / "i").stat().st_mode) == 0o600


# An index that is no good


def broken(data: bytes) -> dict[str, bytes]:
    head, _, body = data.partition(b"\n")
    return {
        "empty": b"",
        "cut": data[: len(data) // 2],
        "one bit": data[:-40] + bytes([data[-40] ^ 1]) + data[-39:],
        "text": b"hello\n" * 50,
        "another program's": b'{"schema": "other"}',
        "only a head": head + b"\n",
        "deep": head + b"\n" + b"[" * 100_000,
        "body twice": data + body,
    }


@pytest.mark.parametrize("kind", list(broken(b"a\nb" * 40)))
def test_a_damaged_index_is_ignored_and_replaced(tree: Path, tmp_path: Path, kind: str) -> None:
    Scan(tree, tmp_path / "i")
    (tmp_path / "i").write_bytes(broken((tmp_path / "i").read_bytes())[kind])
    again = Scan(tree, tmp_path / "i")
    assert len(again.opened) == 10 and same(Scan(tree, None), again)
    assert Scan(tree, tmp_path / "i").opened == []


def rewrite(path: Path, **values: Any) -> None:
    """Write an index that is whole, but of another content."""
    import hashlib

    document = json.loads(path.read_bytes().partition(b"\n")[2]) | values
    body = json.dumps(document).encode()
    path.write_bytes(b"md.scan-index/1 " + hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


@pytest.mark.parametrize(
    "values",
    [
        {"reader": "another"},
        {"groups": []},
        {"groups": 7},
        {"names": ["a"]},
        {"key": "no hex"},
        {"extra": {"A": 1}},
        {"results": None},
        {"skipped": []},
        {"sizes": []},
    ],
    ids=str,
)
def test_an_index_of_another_reader_or_shape_is_ignored(tree: Path, tmp_path: Path, values: dict[str, Any]) -> None:
    Scan(tree, tmp_path / "i")
    rewrite(tmp_path / "i")
    assert Scan(tree, tmp_path / "i").opened == []
    rewrite(tmp_path / "i", **values)
    again = Scan(tree, tmp_path / "i")
    assert len(again.opened) == 10 and same(Scan(tree, None), again)


def test_an_index_that_is_a_link_or_a_fifo_is_not_followed(tree: Path, tmp_path: Path) -> None:
    Scan(tree, tmp_path / "i")
    (tmp_path / "link").symlink_to(tmp_path / "i")
    assert len(Scan(tree, tmp_path / "link").opened) == 10
    os.mkfifo(tmp_path / "fifo")
    assert len(Scan(tree, tmp_path / "fifo").opened) == 10


def test_an_index_that_cannot_be_written_is_left(tree: Path, tmp_path: Path) -> None:
    found = Scan(tree, tmp_path / "not there" / "i")
    assert same(Scan(tree, None), found)
    (tmp_path / "folder").mkdir()
    assert same(Scan(tree, tmp_path / "folder"), found)
    assert list(tmp_path.glob("*.part")) == []


def test_reread_opens_everything_and_notes_it(tree: Path, tmp_path: Path) -> None:
    Scan(tree, tmp_path / "i")
    assert len(Scan(tree, tmp_path / "i", reread=True).opened) == 10
    assert Scan(tree, tmp_path / "i").opened == []


def test_nothing_is_written_where_nothing_changed(tree: Path, tmp_path: Path) -> None:
    Scan(tree, tmp_path / "i")
    before = (tmp_path / "i").stat()
    Scan(tree, tmp_path / "i")
    assert (tmp_path / "i").stat().st_ino == before.st_ino


def test_many_scans_at_once_agree_and_leave_one_index(tree: Path, tmp_path: Path) -> None:
    plain = Scan(tree, None)
    with ThreadPoolExecutor(8) as pool:
        scans = list(pool.map(lambda _: Scan(tree, tmp_path / "i"), range(16)))
    assert all(same(plain, one) for one in scans)
    assert Scan(tree, tmp_path / "i").opened == []
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["i"]


VALUES = st.one_of(
    st.none(),
    st.just(True),
    st.integers(-(2**63), 2**64),
    st.sampled_from([0, 1, 0.0, -0.0, 1.0]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
    st.lists(st.one_of(st.none(), st.sampled_from([0, 0.0, -0.0, 1, 1.0]), st.text()), min_size=2),
)
ATTRIBUTES = st.lists(st.tuples(st.sampled_from(list(KEYWORDS)), VALUES), unique_by=lambda pair: pair[0]).map(dict)
READ = st.one_of(
    st.builds(
        lambda attributes, offset, length: ("instance", attributes, offset, length),
        ATTRIBUTES,
        st.one_of(st.none(), st.integers(0, 2**40)),
        st.one_of(st.none(), st.integers(0, 2**40)),
    ),
    st.builds(lambda uid: ("skipped", uid), st.one_of(st.none(), st.text())),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(READ, min_size=1, max_size=8))
def test_whatever_a_header_holds_comes_back_as_it_was(read: list[Any]) -> None:
    def entry(root: Path, name: str, extra: Any = None) -> list[Instance | Skipped]:
        what = read[int(name)]
        if what[0] == "skipped":
            return [Skipped(name, "damaged-header", "it is damaged", what[1])]
        return [Instance(name, int(name), what[2], what[3], f"{int(name):064x}", dict(what[1]))]

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "RACY_S", -60.0)
        patch.setattr(module, "read_entry", entry)
        names = tuple(map(str, range(len(read))))
        for name in names:
            (Path(folder) / name).touch()
        listing, index, opened = Listing(Path(folder), names), Path(folder) / "index", list[str]()
        first = scan(listing, index=index)
        second = scan(listing, index=index, progress=lambda names: (opened.extend(names), names)[1])
        assert opened == [] and repr(first) == repr(second)
