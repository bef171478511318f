"""From DICOM to DICOM: every landmark is where the patient has it, whatever way the slices lie. Read by header arithmetic alone."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from mdcli.errors import MdError
from mdcli.phantom.anatomy import CENTRE_MM, LANDMARKS
from mdcli.phantom.study import SeriesFacts, oriented_affine, write_series
from mdcli.registry import load_stage
from mdcli.testing import run_stage

NAMES = [landmark.name for landmark in LANDMARKS]
# Half of the coarsest voxel below (2.5 x 3 x 4 mm), and half of the network's (2.5 x 2.5 x 3.5 mm), on top of each other.
NEAR_MM = 2.5
MIDDLE_MM = np.array(CENTRE_MM) + np.array([4.0, -11.0, -3.0])
# Half of a box that holds all four landmarks with 4 mm to spare.
HALF_MM = np.array([116.0, 63.0, 75.0])
AXES = [np.array(axis) * sign for axis in np.eye(3).tolist() for sign in (1, -1)]
ORIENTATIONS = [(row, column) for row, column in product(AXES, repeat=2) if not (row @ column)]
POSITIONS = ("HFS", "HFP", "HFDR", "HFDL", "FFS", "FFP", "FFDR", "FFDL")
SPACINGS = list(permutations((2.5, 3.0, 4.0)))
AXIAL = (np.array([1.0, 0, 0]), np.array([0, 1.0, 0]))
CORONAL = (np.array([1.0, 0, 0]), np.array([0, 0, -1.0]))
SAGITTAL = (np.array([0, 1.0, 0]), np.array([0, 0, -1.0]))


def turned(vector: np.ndarray, axis: tuple[float, float, float], degrees: float) -> np.ndarray:
    """Rotate a vector by Rodrigues' formula."""
    unit, angle = np.array(axis) / np.linalg.norm(axis), np.deg2rad(degrees)
    along = (vector @ unit) * unit
    return np.cos(angle) * (vector - along) + np.sin(angle) * np.cross(unit, vector) + along


def write_ct(
    folder: Path, orientation, spacing_mm, *, oblique_deg=0.0, position="HFS", descending=False, tilt_deg=0.0
) -> None:
    """Write a series that holds all landmarks on a grid of that orientation, each slice shifted along the columns by the tilt."""
    row, column = (turned(vector, (1, 2, 1), oblique_deg) for vector in orientation)
    axes = np.stack([row, column, np.cross(row, column)])
    counts = np.ceil(2 * np.abs(axes) @ HALF_MM / spacing_mm).astype(int) + 1
    shift = np.tan(np.deg2rad(tilt_deg)) * spacing_mm[2]
    counts[1] += int(np.ceil(abs(shift) * (counts[2] - 1) / spacing_mm[1]))
    shape = (int(counts[2]), int(counts[1]), int(counts[0]))
    affine = oriented_affine(row, column, spacing_mm, shape, MIDDLE_MM)
    affine[:3, 2] += shift * column
    affine[:3, 3] -= shift * column * (shape[0] - 1) / 2
    write_series(folder, shape, affine, SeriesFacts(patient_position=position), descending=descending, noise_hu=10.0)


def run_chain(dicom: Path, case: Path, **load) -> Path:
    """Run the four stages and return where the SEG is, or would be."""
    run_stage(load_stage("select-series"), case, dicom=dicom)
    run_stage(load_stage("load-volume"), case, **load)
    run_stage(load_stage("infer"), case, model="landmarks")
    run_stage(load_stage("write-seg"), case)
    return case / "seg.dcm"


def centroids_mm(seg: Path) -> dict[str, np.ndarray]:
    """Return each segment's centroid, LPS+, from pixels and header alone (PS3.3 C.7.6.2.1.1), without md or highdicom."""
    data = dcmread(seg)
    frames = data.pixel_array.reshape(-1, data.Rows, data.Columns)
    shared = data.SharedFunctionalGroupsSequence[0]
    names = {segment.SegmentNumber: segment.SegmentLabel for segment in data.SegmentSequence}
    points: dict[str, list[np.ndarray]] = {}
    for frame, groups in zip(frames, data.PerFrameFunctionalGroupsSequence, strict=True):

        def group(name: str, groups=groups):
            return (groups if name in groups else shared)[name].value[0]

        cosines = np.array(group("PlaneOrientationSequence").ImageOrientationPatient, float)
        between_rows, between_columns = group("PixelMeasuresSequence").PixelSpacing
        corner = np.array(group("PlanePositionSequence").ImagePositionPatient, float)
        rows, columns = np.nonzero(frame)
        places = corner + columns[:, None] * between_columns * cosines[:3] + rows[:, None] * between_rows * cosines[3:]
        number = group("SegmentIdentificationSequence").ReferencedSegmentNumber
        points.setdefault(names[number], []).append(places)
    return {name: np.concatenate(parts).mean(axis=0) for name, parts in points.items()}


def misses(dicom: Path, case: Path, **load) -> dict[str, float]:
    """Return the landmarks that are not where they must be, with the distance in mm (infinite where there is none)."""
    try:
        seg = run_chain(dicom, case, **load)
    except MdError as error:
        return {error.code: np.inf}
    found = centroids_mm(seg) if seg.exists() else {}
    distances = {
        landmark.name: float(np.linalg.norm(found[landmark.name] - landmark.position_mm))
        if landmark.name in found
        else np.inf
        for landmark in LANDMARKS
    }
    return {name: distance for name, distance in distances.items() if not distance < NEAR_MM}


def test_there_are_24_right_handed_orientations():
    assert len(ORIENTATIONS) == 24


@pytest.mark.parametrize(
    "orientation, spacing_mm, oblique_deg",
    [
        pytest.param(AXIAL, (2.5, 3.0, 4.0), 0, id="axial"),
        pytest.param(CORONAL, (3.0, 2.5, 4.0), 12, id="coronal, 12 degrees oblique"),
        pytest.param(SAGITTAL, (4.0, 2.5, 3.0), 20, id="sagittal, 20 degrees oblique, rows coarsest"),
    ],
)
def test_every_landmark_is_found_at_its_millimetre(tmp_path, orientation, spacing_mm, oblique_deg):
    write_ct(tmp_path / "dicom", orientation, spacing_mm, oblique_deg=oblique_deg)
    assert misses(tmp_path / "dicom", tmp_path / "case") == {}


@pytest.mark.slow
@pytest.mark.parametrize("untilt", [False, True], ids=["sheared", "untilted"])
@pytest.mark.parametrize(
    "orientation, spacing_mm, oblique_deg, tilt_deg",
    [
        pytest.param(AXIAL, (2.5, 3.0, 4.0), 0, 18.5, id="axial, a gantry tilt of 18.5 degrees"),
        pytest.param(AXIAL, (3.0, 2.5, 4.0), 10, -25.0, id="axial, 10 degrees oblique, a tilt of -25 degrees"),
        pytest.param(CORONAL, (2.5, 4.0, 3.0), 5, 12.0, id="coronal, 5 degrees oblique, sheared by 12 degrees"),
    ],
)
def test_every_landmark_is_found_in_a_tilted_series(tmp_path, orientation, spacing_mm, oblique_deg, tilt_deg, untilt):
    write_ct(tmp_path / "dicom", orientation, spacing_mm, oblique_deg=oblique_deg, tilt_deg=tilt_deg)
    assert misses(tmp_path / "dicom", tmp_path / "case", untilt=untilt) == {}


@pytest.mark.slow
@pytest.mark.parametrize("descending", [False, True], ids=["numbers along", "numbers against"])
@pytest.mark.parametrize("number", range(24))
def test_every_landmark_is_found_in_every_orientation(tmp_path, number, descending):
    oblique_deg = (0, 7, 14, 20)[(number + descending) % 4]
    position = POSITIONS[(number + 3 * descending) % 8]
    spacing_mm = SPACINGS[(number + 2 * descending) % 6]
    write_ct(
        tmp_path / "dicom",
        ORIENTATIONS[number],
        spacing_mm,
        oblique_deg=oblique_deg,
        position=position,
        descending=descending,
    )
    assert misses(tmp_path / "dicom", tmp_path / "case") == {}


def without_flips(monkeypatch) -> None:
    from mdcli.inference.grid import Grid

    monkeypatch.setattr(Grid, "to_network", lambda self, window: window.transpose(self.order))


def labels_not_flipped_back(monkeypatch) -> None:
    from mdcli.inference.grid import Grid

    monkeypatch.setattr(
        Grid, "from_network", lambda self, scores, order: scores.transpose(0, *(1 + order.index(n) for n in range(3)))
    )


def network_sees(change):
    """Change what the network sees, and undo it in what it says, so that only the network can notice."""

    def put_in(monkeypatch) -> None:
        from mdcli.inference.engines.onnx import OnnxSession

        plain = OnnxSession.run

        def run(self, feeds, out):
            seen = {name: np.ascontiguousarray(change(values)) for name, values in feeds.items()}
            scores = {name: np.empty(change(array).shape, np.float32) for name, array in out.items()}
            plain(self, seen, scores)
            for name, array in out.items():
                array[...] = change(scores[name])
            return out

        monkeypatch.setattr(OnnxSession, "run", run)

    return put_in


def slices_reversed_under_their_affine(monkeypatch) -> None:
    from mdcli.dicom import loading

    plain = loading.modality_slabs

    def reversed_slabs(*args):
        yield np.ascontiguousarray(np.concatenate(list(plain(*args)))[::-1])

    monkeypatch.setattr(loading, "modality_slabs", reversed_slabs)


def row_and_column_spacing_swapped(monkeypatch) -> None:
    from dataclasses import replace

    from mdcli.dicom import loading

    plain = loading.volume_geometry

    def swapped(*args, **named):
        found = plain(*args, **named)
        affine = found.affine.copy()
        lengths = np.linalg.norm(affine[:3, :2], axis=0)
        affine[:3, :2] *= lengths[::-1] / lengths
        return replace(found, affine=affine)

    monkeypatch.setattr(loading, "volume_geometry", swapped)


def network_grid_too_large(monkeypatch) -> None:
    """Enlarge the grid on the way there and back alike, so that only the network can notice."""
    from mdcli.inference import grid, preprocess

    plain = grid.network_grid

    def enlarged(shape, affine, *wanted):
        return plain(shape, affine @ np.diag([1.18, 1.18, 1.18, 1.0]), *wanted)

    for module in (grid, preprocess):
        monkeypatch.setattr(module, "network_grid", enlarged)


def labels_mirrored_before_they_are_written(monkeypatch) -> None:
    from dataclasses import replace

    from mdcli.workspace import Workspace

    plain = Workspace.read_volume

    def read(self, kind, **more):
        volume = plain(self, kind, **more)
        return replace(volume, array=np.ascontiguousarray(volume.array[:, :, ::-1])) if kind == "labels" else volume

    monkeypatch.setattr(Workspace, "read_volume", read)


@pytest.fixture(scope="module")
def axial(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("axial")
    write_ct(folder, AXIAL, (2.5, 3.0, 4.0))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "mistake",
    [
        pytest.param(without_flips, id="the axes are not flipped for the network"),
        pytest.param(labels_not_flipped_back, id="the labels are not flipped back"),
        pytest.param(network_sees(lambda a: a[:, :, ::-1]), id="the network sees a mirrored patient"),
        pytest.param(network_sees(lambda a: a[:, :, :, :, ::-1]), id="the network sees the patient upside down"),
        pytest.param(network_sees(lambda a: a[:, :, ::-1, ::-1]), id="the network sees the patient lying prone"),
        pytest.param(network_sees(lambda a: a.swapaxes(2, 3)), id="the network sees x and y swapped"),
        pytest.param(network_sees(lambda a: a.swapaxes(2, 4)), id="the network sees x and z swapped"),
        pytest.param(network_grid_too_large, id="the network's grid is 18 percent too large"),
        pytest.param(slices_reversed_under_their_affine, id="the slices are stacked the wrong way"),
        pytest.param(row_and_column_spacing_swapped, id="row and column spacing are swapped"),
        pytest.param(labels_mirrored_before_they_are_written, id="the labels are mirrored before they are written"),
    ],
)
def test_a_mistake_put_in_on_purpose_shows(tmp_path, axial, monkeypatch, mistake):
    mistake(monkeypatch)
    wrong = misses(axial, tmp_path / "case")
    # Either the chain refuses (one error code), or not one landmark is where it must be.
    assert wrong
    assert set(wrong) == set(NAMES) or not set(wrong) & set(NAMES)


def test_bands_at_the_first_and_last_slice_are_those_of_the_slices_alone(tmp_path):
    """A volume thinner than the card's window: nothing that was not measured may be smoothed into its ends."""
    from mdcli.imaging.nifti import read_nifti
    from mdcli.phantom.anatomy import sample
    from mdcli.phantom.gold import tissue_labels

    shape, affine = (5, 40, 60), oriented_affine(*CORONAL, (4.0, 4.0, 4.0), (5, 40, 60))
    write_series(tmp_path / "dicom", shape, affine, noise_hu=20.0)
    run_stage(load_stage("select-series"), tmp_path / "case", dicom=tmp_path / "dicom")
    run_stage(load_stage("load-volume"), tmp_path / "case")
    run_stage(load_stage("infer"), tmp_path / "case", model="ct-tissue")
    found = read_nifti(tmp_path / "case" / "labels.nii").array
    assert np.array_equal(found, tissue_labels(sample(shape, affine, noise_hu=20.0, seed=SeriesFacts().number)))
