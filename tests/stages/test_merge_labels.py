"""The stage `merge-labels`, run as `md` runs it."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import pydicom
import pytest

from mdcli.errors import DataError, MissingError, UsageError
from mdcli.imaging.nifti import read_nifti, write_nifti
from mdcli.stages import crop
from mdcli.stages.merge_labels import STAGE
from mdcli.testing import ListReporter, run_stage
from mdcli.workspace import Workspace
from tests.chain import stage_of
from tests.made_series import workspace, write_series

SHAPE = (4, 6, 8)
SCHEMA = json.loads((Path(__file__).parents[2] / "mdcli" / "schemas" / "segments.json").read_text())
REGION = {"value": "309825002", "scheme": "SCT", "meaning": "Spatial and Relational Concept"}


def entry(value, name, code=None, algorithm="AUTOMATIC", by=("net", "1")):
    """Return one segment."""
    return {
        "value": value,
        "name": name,
        "category": REGION,
        "type": {"value": code or f"T-{name.upper()}", "scheme": "99MDCLI", "meaning": f"Test {name}"},
        "colour": None,
        "algorithm": {"type": algorithm, "name": by[0], "version": by[1]},
    }


def describe(ws, name, entries, model="net", **more):
    """Write segments-NAME.json of a model's."""
    geometry = json.loads((ws / "geometry.json").read_text())
    document = {
        "schema": "md.segments/1",
        "segments": entries,
        **({"model": {"name": model, "version": "1", "sha256": f"{len(model):064x}"}} if model else {}),
        "empty": "valid",
        **{key: geometry[key] for key in ("series_instance_uid", "frame_of_reference_uid")},
        "series_description_prefix": "AI ",
        "regulatory": "Research use only, not reviewed.",
        "made": [],
        **more,
    }
    end = f"-{name}" if name else ""
    (ws / f"segments{end}.json").write_text(json.dumps(document))


def put(path: Path, labels, affine):
    """Write voxels as a person's program would."""
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        write_nifti(file, labels, affine)


@pytest.fixture
def case(tmp_path):
    """Return a workspace with a volume and two maps that overlap in two voxels."""
    ws = workspace(tmp_path / "ws", write_series(tmp_path / "dicom", np.zeros(SHAPE, np.int16)))
    run_stage(stage_of("load-volume"), ws)
    affine = read_nifti(ws / "volume.nii").affine
    first, second = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint16)
    first[1, 2, 1:4] = 1
    first[2, 2, 1] = 4
    second[1, 2, 2:6] = 2
    second[3, 5, 7] = 300
    put(ws / "labels-a.nii", first, affine)
    put(ws / "labels-b.nii", second, affine)
    describe(ws, "a", [entry(1, "liver"), entry(4, "cyst")])
    describe(ws, "b", [entry(2, "vessel", by=("tubes", "2")), entry(300, "stone", by=("tubes", "2"))], model="tubes")
    return ws


def merged(ws, **params):
    """Run the stage and return the map, its document and the reporter."""
    reporter = ListReporter()
    run_stage(STAGE, ws, reporter=reporter, **params)
    end = f"-{params['as_name']}" if params.get("as_name") else ""
    document = json.loads((ws / f"segments{end}.json").read_text())
    jsonschema.validate(document, SCHEMA)
    return read_nifti(ws / f"labels{end}.nii"), document, reporter


def refused(ws, kind=DataError, **params):
    """Return the code that the stage refuses with; nothing is written."""
    with pytest.raises(kind) as caught:
        run_stage(STAGE, ws, **params)
    assert not (ws / "labels.nii").exists()
    assert not (ws / "labels.record.json").exists()
    return caught.value.code


@pytest.mark.parametrize(
    ("params", "row"),
    [
        pytest.param({"maps": "a,b"}, [0, 1, 1, 1, 3, 3, 0, 0], id="the first map wins"),
        pytest.param({"maps": "b,a"}, [0, 3, 1, 1, 1, 1, 0, 0], id="the other one named first"),
        pytest.param(
            {"maps": "a,b", "priority": ("vessel",)}, [0, 1, 3, 3, 3, 3, 0, 0], id="a structure before all maps"
        ),
        pytest.param({"maps": "a,b", "priority": ("stone,liver",)}, [0, 1, 1, 1, 3, 3, 0, 0], id="a list"),
    ],
)
def test_where_two_claim_a_voxel_the_first_of_the_list_has_it(case, params, row):
    found, document, reporter = merged(case, **params)
    assert found.array[1, 2].tolist() == row
    assert np.count_nonzero(found.array) == 7
    (event,) = [e for e in reporter.events if e["code"] == "overlap-resolved"]
    (pair,) = event["numbers"]["pairs"]
    assert {pair[0], pair[1]} == {"liver", "vessel"} and pair[2] == 2
    voxels = {s["name"]: s["voxels"] for s in document["segments"]}
    won = pair[0]
    assert voxels == {"liver": 3 if won == "liver" else 1, "cyst": 1, "vessel": 4 if won == "vessel" else 2, "stone": 1}


def test_values_are_counted_on_and_every_segment_keeps_what_made_it(case):
    found, document, _ = merged(case, maps="a,b")
    assert found.array.dtype == np.uint8
    told = [
        (s["value"], s["name"], s["model"]["name"], s["algorithm"]["name"], s["from"]) for s in document["segments"]
    ]
    assert told == [
        (1, "liver", "net", "net", [{"role": "labels-a", "value": 1}]),
        (2, "cyst", "net", "net", [{"role": "labels-a", "value": 4}]),
        (3, "vessel", "tubes", "tubes", [{"role": "labels-b", "value": 2}]),
        (4, "stone", "tubes", "tubes", [{"role": "labels-b", "value": 300}]),
    ]
    assert "model" not in document
    assert [one["role"] for one in document["merged_from"]] == ["labels-a", "labels-b"]
    touches = {s["name"]: (s["touches_first_slice"], s["touches_last_slice"]) for s in document["segments"]}
    assert touches["stone"] == (False, True) and touches["liver"] == (False, False)
    # Nobody's records stand behind maps that a person put there.
    assert set(Workspace(case).record("labels").edited) >= {"labels-a", "labels-b"}


def test_the_seg_says_of_every_segment_which_model_made_it(case):
    merged(case, maps="a,b")
    run_stage(stage_of("write-seg"), case)
    data = pydicom.dcmread(case / "seg.dcm")
    made = {}
    for segment in data.SegmentSequence:
        (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
        made[segment.SegmentLabel] = (
            algorithm.AlgorithmName,
            algorithm.AlgorithmVersion,
            algorithm.AlgorithmParameters,
        )
    assert {name: said[:2] for name, said in made.items()} == {
        "liver": ("net", "1"),
        "cyst": ("net", "1"),
        "vessel": ("tubes", "2"),
        "stone": ("tubes", "2"),
    }
    assert made["liver"][2].endswith(f"{3:064x}") and made["stone"][2].endswith(f"{5:064x}")
    equipment = [item.ManufacturerModelName for item in data.ContributingEquipmentSequence]
    assert equipment[-3:-1] == ["net", "tubes"]
    assert all("ContributionDateTime" in item for item in data.ContributingEquipmentSequence[-3:])


def test_one_model_behind_all_maps_is_said_once(case):
    describe(case, "b", [entry(2, "vessel"), entry(300, "stone")])
    _, document, _ = merged(case, maps="a,b")
    assert document["model"]["name"] == "net"


def test_a_second_run_does_nothing_and_a_changed_map_is_seen(case):
    merged(case, maps="a,b")
    assert run_stage(STAGE, case, maps="a,b").up_to_date
    labels = np.zeros(SHAPE, np.uint8)
    labels[0, 0, 0] = 4
    put(case / "labels-a.nii", labels, read_nifti(case / "volume.nii").affine)
    found, _, _ = merged(case, maps="a,b")
    assert found.array[0, 0, 0] == 2


def test_a_map_on_a_part_goes_back_to_its_place(case):
    run_stage(crop.STAGE, case, as_name="part", use={"labels": "a", "segments": "a"}, margin=1.0)
    geometry = json.loads((case / "geometry-part.json").read_text())
    assert geometry["crop"] == {"k": [0, 4], "j": [1, 4], "i": [0, 5], "of": list(SHAPE)}
    part = read_nifti(case / "volume-part.nii")
    labels = np.zeros(part.array.shape, np.uint8)
    labels[2, 1, 3] = 9
    labels[1, 2, 4] = 8
    put(case / "labels-fine.nii", labels, part.affine)
    describe(case, "fine", [entry(9, "inner"), entry(8, "rim")])
    found, document, reporter = merged(case, maps="fine")
    whole = read_nifti(case / "volume.nii")
    np.testing.assert_array_equal(found.affine, whole.affine)
    assert np.argwhere(found.array).tolist() == [[1, 3, 4], [2, 2, 3]]
    assert {s["name"]: s["value"] for s in document["segments"]} == {"rim": 1, "inner": 2}
    # `rim` lies on a row and a column of the part beyond which the volume goes on.
    (event,) = [e for e in reporter.events if e["code"] == "touches-crop"]
    assert event["numbers"] == {"labels": ["rim"]}


def test_axes_that_another_program_turned_round_are_put_in_order(case):
    found = read_nifti(case / "labels-a.nii")
    turned, affine = np.ascontiguousarray(found.array[:, ::-1]), found.affine.copy()
    affine[:3, 3] += affine[:3, 1] * (SHAPE[1] - 1)
    affine[:3, 1] *= -1
    put(case / "labels-a.nii", turned, affine)
    assert merged(case, maps="a,b")[0].array[1, 2].tolist() == [0, 1, 1, 1, 3, 3, 0, 0]


@pytest.mark.parametrize(
    "move", [pytest.param([0.01, 0, 0], id="a hundredth of a mm"), pytest.param([0, 0, 3.0], id="a slice beyond")]
)
def test_a_map_beside_the_grid_is_refused(case, move):
    found = read_nifti(case / "labels-a.nii")
    labels, affine = np.array(found.array), found.affine.copy()
    affine[:3, 3] += move
    put(case / "labels-a.nii", labels, affine)
    assert refused(case, maps="a,b") == "grids-differ"


def test_a_map_of_another_frame_of_reference_is_refused(case):
    describe(case, "b", [entry(2, "vessel"), entry(300, "stone")], frame_of_reference_uid="1.2.3.4")
    assert refused(case, maps="a,b") == "frames-of-reference-differ"


def masks(ws, **structures):
    """Write masks-m of structures by name: a list of voxels each."""
    affine = read_nifti(ws / "volume.nii").affine
    for value, places in enumerate(structures.values(), start=1):
        mask = np.zeros(SHAPE, np.uint8)
        for place in places:
            mask[place] = 1
        put(ws / "masks-m" / f"{value:04d}.nii", mask, affine)
    describe(ws, "m", [entry(value, name) for value, name in enumerate(structures, start=1)])


def test_masks_that_overlap_need_a_priority(case):
    masks(case, target=[(0, 0, 0), (0, 0, 1)], margin=[(0, 0, 1), (0, 0, 2)])
    with pytest.raises(DataError) as caught:
        run_stage(STAGE, case, maps="m")
    assert caught.value.code == "overlap"
    # One voxel of 1.5 x 2 x 3 mm.
    assert "target and margin overlap in 1 voxel(s) (0.009 ml)" in caught.value.message
    found, _, _ = merged(case, maps="m", priority=("margin",))
    assert found.array[0, 0, :4].tolist() == [1, 2, 2, 0]
    found, _, _ = merged(case, maps="m", priority=("target", "margin"))
    assert found.array[0, 0, :4].tolist() == [1, 1, 2, 0]


def test_masks_and_label_maps_go_together(case):
    masks(case, target=[(1, 2, 3), (0, 0, 1)], margin=[(0, 0, 2)])
    found, document, _ = merged(case, maps="m,a")
    assert [s["name"] for s in document["segments"]] == ["target", "margin", "liver", "cyst"]
    assert found.array[1, 2].tolist() == [0, 3, 3, 1, 0, 0, 0, 0]
    assert found.array[0, 0, :3].tolist() == [0, 1, 2]
    assert document["merged_from"][0]["role"] == "masks-m"


def test_a_file_that_is_no_mask_of_a_structure_is_refused(case):
    masks(case, target=[(0, 0, 0)])
    (case / "masks-m" / "0007.nii").write_bytes((case / "masks-m" / "0001.nii").read_bytes())
    assert refused(case, maps="m") == "bad-artifact"


def test_two_structures_of_one_name_are_refused_or_joined_on_request(case):
    describe(case, "b", [entry(2, "liver", by=("tubes", "2")), entry(300, "stone")], model="tubes")
    assert refused(case, maps="a,b") == "duplicate-structure"
    found, document, reporter = merged(case, maps="a,b", join=True)
    assert found.array[1, 2].tolist() == [0, 1, 1, 1, 1, 1, 0, 0]
    assert "overlap-resolved" not in reporter.codes()
    first = document["segments"][0]
    assert first["algorithm"] == {"type": "AUTOMATIC", "name": "net + tubes", "version": "1 + 2"}
    assert first["from"] == [{"role": "labels-a", "value": 1}, {"role": "labels-b", "value": 2}]
    assert first["voxels"] == 5


def test_structures_of_one_name_and_other_codes_are_not_joined(case):
    describe(case, "b", [entry(2, "liver", code="T-OTHER"), entry(300, "stone")])
    assert refused(case, maps="a,b", join=True) == "codes-differ"


def test_a_drawn_and_a_computed_part_of_one_structure_are_semiautomatic(case):
    describe(case, "b", [entry(2, "liver", algorithm="MANUAL"), entry(300, "stone")], model=None)
    _, document, _ = merged(case, maps="a,b", join=True)
    assert document["segments"][0]["algorithm"]["type"] == "SEMIAUTOMATIC"


def test_reasons_and_remarks_of_all_maps_are_carried_on(case):
    scope = {"reason": "a trial", "violations": [{"attribute": "modality", "value": "MR", "accepts": "CT"}]}
    describe(case, "a", [entry(1, "liver"), entry(4, "cyst")], out_of_scope=scope, made=["unit HU, by --assume-hu"])
    describe(case, "b", [entry(2, "vessel"), entry(300, "stone")], regulatory="Not for use in children.", empty="error")
    _, document, _ = merged(case, maps="a,b")
    assert document["out_of_scope"] == scope
    assert document["made"] == ["unit HU, by --assume-hu"]
    assert document["regulatory"] == "Research use only, not reviewed. Not for use in children."
    assert document["empty"] == "error"


def test_maps_without_a_voxel_are_nothing_found(case):
    affine = read_nifti(case / "volume.nii").affine
    put(case / "labels-a.nii", np.zeros(SHAPE, np.uint8), affine)
    outcome = run_stage(STAGE, case, maps="a")
    assert outcome.result == "nothing-found"
    assert not read_nifti(case / "labels.nii").array.any()


def test_a_value_that_nothing_describes_is_refused(case):
    describe(case, "a", [entry(1, "liver")])
    assert refused(case, maps="a") == "undescribed-label"


@pytest.mark.parametrize(
    ("params", "kind", "code"),
    [
        ({"maps": "a,a"}, UsageError, "same-name"),
        ({"maps": "a,B"}, UsageError, "bad-name"),
        ({"maps": "a,"}, UsageError, "bad-name"),
        ({"maps": "a,b", "priority": ("livre",)}, UsageError, "no-such-structure"),
        ({"maps": "a,missing"}, MissingError, "no-artifact"),
    ],
)
def test_a_wrong_call_is_refused(case, params, kind, code):
    assert refused(case, kind, **params) == code


def test_the_map_without_a_name_is_called_labels_and_is_not_written_over(case):
    affine = read_nifti(case / "volume.nii").affine
    labels = np.zeros(SHAPE, np.uint8)
    labels[0, 5, 5] = 1
    put(case / "labels.nii", labels, affine)
    describe(case, None, [entry(1, "spleen")])
    with pytest.raises(UsageError) as caught:
        run_stage(STAGE, case, maps="labels,a")
    assert caught.value.code == "same-name"
    found, document, _ = merged(case, maps="labels,a", as_name="all")
    assert found.array[0, 5, 5] == 1
    assert [s["name"] for s in document["segments"]] == ["spleen", "liver", "cyst"]
