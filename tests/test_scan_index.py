"""The index lies in the user's cache, under a name that tells nothing."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from mdcli.scan_index import KEPT_DAYS, index_file


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a cache folder for the test, which MD_INDEX does not turn off."""
    monkeypatch.delenv("MD_INDEX", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_folder_is_made_for_the_user_alone_and_the_name_holds_nothing_of_the_path(cache: Path) -> None:
    found = index_file(Path("/data/DOE^JOHN"))
    assert found is not None and found.parent == cache / "mdcli" / "scans"
    assert stat.S_IMODE(found.parent.stat().st_mode) == 0o700
    assert "DOE" not in found.name and len(found.stem) == 32


def test_a_source_has_one_index_however_its_path_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scan").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "scan")
    monkeypatch.chdir(tmp_path)
    assert index_file(Path("scan")) == index_file(tmp_path / "scan") == index_file(tmp_path / "link")
    assert index_file(tmp_path) != index_file(tmp_path / "scan")


def test_a_folder_that_others_could_read_is_closed(cache: Path) -> None:
    (cache / "mdcli" / "scans").mkdir(parents=True)
    (cache / "mdcli" / "scans").chmod(0o755)
    assert index_file(Path("/data")) is not None
    assert stat.S_IMODE((cache / "mdcli" / "scans").stat().st_mode) == 0o700


def test_without_xdg_it_is_the_home_folders_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in ("", "relative/cache"):
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        found = index_file(Path("/data"))
        assert found is not None and found.parent == tmp_path / ".cache" / "mdcli" / "scans"


def test_a_home_that_is_not_there_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert index_file(Path("/data")) is None and not (tmp_path / "nobody").exists()


def test_there_is_none_where_it_is_turned_off_or_cant_be_made(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write_text("a file where the folder should be")
    assert index_file(Path("/data")) is None
    cache.unlink()
    (cache / "mdcli").mkdir(parents=True)
    (cache / "mdcli" / "scans").symlink_to(cache)
    assert index_file(Path("/data")) is None
    (cache / "mdcli" / "scans").unlink()
    monkeypatch.setenv("MD_INDEX", "off")
    assert index_file(Path("/data")) is None
    assert not (cache / "mdcli" / "scans").exists()


def test_what_was_not_used_for_long_is_removed_when_another_is_begun(cache: Path) -> None:
    first = index_file(Path("/data/1"))
    assert first is not None
    first.write_text("old")
    other = first.with_name("note.txt")
    other.write_text("a person's")
    for path in (first, other):
        os.utime(path, (0, 0))
    recent = first.with_name("f" * 32 + ".json")
    recent.write_text("new")
    os.utime(recent, (recent.stat().st_mtime - (KEPT_DAYS - 1) * 86_400,) * 2)
    assert index_file(Path("/data/1")) == first and first.exists()
    index_file(Path("/data/2"))
    assert not first.exists() and recent.exists() and other.exists()
