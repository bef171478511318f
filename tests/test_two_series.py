"""Two series of one grid in one workspace: labels, geometry and sources never mix."""

import pydicom
import pytest

from mdcli.phantom.study import SeriesFacts, demo_affine, write_series
from mdcli.testing import run_stage
from tests.chain import stage_of


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Two phases on one grid, both loaded and both labelled: one without a name, one named p2."""
    folder = tmp_path_factory.mktemp("phases")
    ws = folder / "ws"
    for number, name in ((2, None), (5, "p2")):
        source = folder / f"phase_{number}"
        write_series(source, (6, 40, 48), demo_affine(), SeriesFacts(number=number))
        run_stage(stage_of("select-series"), ws, dicom=source, as_name=name)
        run_stage(stage_of("load-volume"), ws, as_name=name, use={"series": name} if name else {})
        run_stage(stage_of("infer"), ws, model="ct-tissue", as_name=name, use={"volume": name} if name else {})
    return folder, ws


def referenced_series(path):
    return str(pydicom.dcmread(path).ReferencedSeriesSequence[0].SeriesInstanceUID)


def series_of(folder):
    return str(pydicom.dcmread(next(folder.glob("*.dcm"))).SeriesInstanceUID)


@pytest.mark.parametrize(("name", "number"), [(None, 2), ("p2", 5)])
def test_a_seg_refers_to_the_series_that_its_labels_were_made_of(both, name, number):
    folder, ws = both
    run_stage(stage_of("write-seg"), ws, as_name=name, use={"labels": name} if name else {})
    seg = ws / (f"seg-{name}.dcm" if name else "seg.dcm")
    assert referenced_series(seg) == series_of(folder / f"phase_{number}")


def test_labels_without_a_name_know_their_volume_too(both):
    folder, ws = both
    run_stage(stage_of("infer"), ws, model="ct-tissue", as_name="late", use={"volume": "p2"})
    run_stage(stage_of("write-seg"), ws, as_name="late", use={"labels": "late"})
    assert referenced_series(ws / "seg-late.dcm") == series_of(folder / "phase_5")
