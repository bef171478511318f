"""The Makefile of `md init makefile` over two cases."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mdcli.commands.init import init
from mdcli.phantom.study import write_study


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_does_each_thing_once_and_rebuilds_only_what_follows(tmp_path):
    import pydicom

    init("makefile", tmp_path)
    for case in ("first", "second one"):
        write_study(tmp_path / "input" / case.replace(" ", "_"))
    # Blanks in file names are met in the wild.
    odd = tmp_path / "input" / "first" / "axial" / "IM0003.dcm"
    odd = odd.rename(odd.with_name("IM 3.dcm"))
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path),
    }

    def make():
        done = subprocess.run(
            ["make", "-j2"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def times():
        return {
            p.relative_to(tmp_path).as_posix(): p.stat().st_mtime_ns
            for p in (tmp_path / "work").rglob("*")
            if p.suffix in (".nii", ".dcm")
        }

    make()
    assert len(times()) == 6
    before = times()
    assert "Nothing to be done" in make()
    assert times() == before

    dataset = pydicom.dcmread(odd)
    pixels = dataset.pixel_array.copy()
    pixels[40:60, 60:90] = pixels.max()
    dataset.PixelData = pixels.tobytes()
    dataset.save_as(odd)
    hashes = (tmp_path / "work" / "first" / "seg.dcm").read_bytes()
    make()
    changed = {name for name, time in times().items() if time != before[name]}
    assert changed == {f"work/first/{name}" for name in ("volume.nii", "labels.nii", "seg.dcm")}
    assert (tmp_path / "work" / "first" / "seg.dcm").read_bytes() != hashes

    whole = (tmp_path / "work" / "first" / "seg.dcm").read_bytes()
    odd.touch()
    make()
    assert (tmp_path / "work" / "first" / "seg.dcm").read_bytes() == whole
    assert "Nothing to be done" in make()
