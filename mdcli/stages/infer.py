"""Run a segmentation model over the volume."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from mdcli.model_folders import model_names
from mdcli.stage import Option, Sources, Stage

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from mdcli.imaging.nifti import Volume
    from mdcli.inference.card import Card
    from mdcli.inference.formats import ModelFolder
    from mdcli.inference.engines import Session
    from mdcli.inference.scope import Violation
    from mdcli.workspace import Workspace

# With `-` one model goes over many cases: it is opened once.
_opened: dict[tuple[str, str, str, int], tuple[Session, int]] = {}


@dataclass(frozen=True)
class Params:
    """What you can ask."""

    model: Annotated[
        str,
        Option(
            "Model: a name (md models lists them) or a path", result=False, metavar="NAME|PATH", complete=model_names
        ),
    ]
    device: Annotated[
        str, Option("Where it runs: cpu, cuda, cuda:N or auto", result=False, complete=lambda: ("auto", "cpu", "cuda"))
    ] = "auto"
    engine: Annotated[str, Option("Engine that runs it: onnxruntime, or a plugin's", result=False)] = "onnxruntime"
    accept_out_of_scope: Annotated[
        str | None,
        Option(
            "Run on what the model was not made for; the reason goes into the result", loosens=True, metavar="REASON"
        ),
    ] = None


def run(ws: Workspace, params: Params) -> None:
    """Check that the volume suits the model, run it window by window, write labels and what they mean."""
    from concurrent.futures import ThreadPoolExecutor

    from mdcli.inference.grid import network_grid
    from mdcli.inference.predict import make_plan, predict
    from mdcli.inference.preprocess import Preprocessor

    model = _model(params)
    card = model.card
    _check_codes(card)
    # Loading the engine takes as long as looking at the volume: side by side.
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(_session, model, params, ws.jobs)
        with ws.span("check"):
            volume, geometry = ws.read_volume("volume"), ws.read_json("geometry")
            _check_grid(volume, geometry)
            _check_plane(volume, card)
            out_of_scope = _check_scope(ws, card, volume, geometry, params.accept_out_of_scope)
            upright = _upright(ws, volume)
            grid = network_grid(upright.array.shape, upright.affine, card.input)
        with ws.span("statistics"):
            on_slices = upright is volume and geometry.get("resampled") is None
            padding = _padding(geometry, on_slices) if card.input.padding == "exclude" else None
            preprocessor = Preprocessor(upright.array, grid, card.input.intensity, padding)
        with ws.span("open"):
            session, workers = opening.result()
    plan = make_plan(card, session, upright.array.shape, upright.affine)
    with ws.span("predict"):
        slabs = predict(plan, card, session, preprocessor, workers)
        found = _write_labels(
            ws, card, volume, slabs if upright is volume else _brought_back(ws, volume, upright, slabs)
        )
    ws.engine_facts(session.facts())
    _write_segments(ws, model, session, geometry, found, out_of_scope)


def _check_codes(card: Card) -> None:
    """Refuse a card whose codes no writer would take, before the work and not after it. The embedded ones are tested."""
    from mdcli.dicom.codes import checked_code
    from mdcli.errors import ConfigError, DataError
    from mdcli.inference.formats import find_model
    from mdcli.model_folders import EMBEDDED

    if (EMBEDDED / card.name).is_dir() and find_model(str(EMBEDDED / card.name), ()).card == card:
        return
    for label in card.labels:
        for code in (label.category, label.type):
            try:
                checked_code({"value": code.value, "scheme": code.scheme, "meaning": code.meaning}, label.name)
            except DataError as error:
                raise ConfigError(
                    error.code, f"model.yaml: {error.message}", hint=error.hint, **error.numbers
                ) from error


@dataclass(frozen=True)
class _Found:
    """What the labels hold: voxels of each value, and those of the first and the last slice."""

    voxels: NDArray[np.int64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]


def _model(params: Params) -> ModelFolder:
    from mdcli.inference.formats import Opening, find_model
    from mdcli.model_folders import model_folders

    return find_model(params.model, model_folders(), Opening(engine=params.engine))


def _session(model: ModelFolder, params: Params, jobs: int) -> tuple[Session, int]:
    """Return the network, opened, and how many windows are run side by side."""
    from mdcli.inference.engines import check_device, find_engine
    from mdcli.inference.predict import windows_at_once

    device = check_device(params.device)
    key = (model.sha256, params.engine, device, jobs)
    if key not in _opened:
        _opened.clear()
        # A GPU works on one window at a time.
        workers = min(jobs, windows_at_once(model.card)) if device == "cpu" else 1
        session = find_engine(params.engine).open(model.networks[0], device=device, threads=max(jobs // workers, 1))
        _opened[key] = session, workers
    return _opened[key]


def _check_grid(volume: Volume, geometry: Mapping[str, Any]) -> None:
    """Refuse a volume that is not the one of `geometry.json`: its labels could not go back to the source slices."""
    import numpy as np

    from mdcli.errors import DataError

    shape, affine = tuple(geometry["shape"]), np.array(geometry["affine_lps"], np.float64)
    if volume.array.shape != shape:
        raise DataError("grids-differ", f"volume is {volume.array.shape}, geometry says {shape} (k, j, i)")
    corners = np.array([[i, j, k, 1] for i in (0, shape[2] - 1) for j in (0, shape[1] - 1) for k in (0, shape[0] - 1)])
    apart = float(np.abs((volume.affine - affine) @ corners.T).max())
    # NIfTI keeps the affine as float32: over a large volume that alone is some ten-thousandths of a millimetre.
    if apart > 1e-3:
        raise DataError(
            "grids-differ", f"a corner of volume lies {apart:.3g} mm from where geometry says", apart_mm=apart
        )


def _check_plane(volume: Volume, card: Card) -> None:
    """Refuse an image without a plane in the patient for a model that asks for one, or for millimetres."""
    from mdcli.errors import DataError
    from mdcli.imaging.nifti import PATIENT
    from mdcli.inference.card import AS_ACQUIRED

    wanted = (card.input.orientation, card.input.spacing)
    if volume.plane != PATIENT and wanted != (AS_ACQUIRED, AS_ACQUIRED):
        raise DataError(
            "no-patient-plane",
            f"the image has no plane in the patient (its spacing: {volume.plane}), the model {card.name} wants one",
            plane=volume.plane,
        )


def _upright(ws: Workspace, volume: Volume) -> Volume:
    """Return the volume with its axes at right angles, as a network was trained on: resampled where it is sheared."""
    from dataclasses import replace

    import numpy as np

    from mdcli.imaging.resample import orthogonal_grid, outside_value, resample
    from mdcli.inference.grid import shear_of

    sheared = shear_of(volume.array.shape, volume.affine)
    if sheared is None:
        return volume
    text = f"the volume is sheared by {sheared[0]:.2f} degrees: the model runs at right angles, the labels go back to its slices"
    ws.warn("sheared-volume", text, degrees=sheared[0], voxels=sheared[1])
    shape, affine = orthogonal_grid(volume.array.shape, volume.affine)
    lowest = min(float(np.nanmin(plane)) for plane in volume.array)
    lowest = outside_value(lowest, volume.unit, None)
    slabs = resample(volume.array, volume.affine, shape, affine, order="linear", fill=lowest, jobs=ws.jobs)
    return replace(volume, array=np.concatenate(list(slabs)), affine=affine)


def _brought_back(
    ws: Workspace, volume: Volume, upright: Volume, slabs: Iterator[NDArray[Any]]
) -> Iterator[NDArray[Any]]:
    """Give labels of the upright grid on the volume's own, each voxel by the nearest one."""
    import numpy as np

    from mdcli.imaging.resample import resample

    labels = np.concatenate(list(slabs))
    shape = volume.array.shape
    yield from resample(labels, upright.affine, shape, volume.affine, order="nearest", fill=0, jobs=ws.jobs)


def _check_scope(
    ws: Workspace, card: Card, volume: Volume, geometry: Mapping[str, Any], reason: str | None
) -> dict[str, Any] | None:
    from mdcli.errors import DataError
    from mdcli.inference.scope import check_scope, check_unit

    check_unit(card, geometry["unit"] if volume.unit is None else volume.unit, geometry.get("modality"))
    violations, unknown = check_scope(card.accepts, _facts(ws, card, geometry))
    if unknown:
        listed = ", ".join(unknown)
        message = f"not every image says {listed}, which the model {card.name} asks for"
        ws.note("scope-unknown", message, attributes=unknown)
    if not violations:
        return None
    said = "; ".join(map(str, violations))
    numbers = {"violations": [_plain(violation) for violation in violations]}
    if reason is None:
        hint = "--accept-out-of-scope REASON runs it and writes the reason into the result"
        raise DataError("out-of-scope", said, hint=hint, **numbers)
    ws.warn("out-of-scope", f"{said}; run on request: {reason}", **numbers)
    return {"reason": reason, **numbers}


def _plain(violation: Violation) -> dict[str, Any]:
    values = violation.values
    return {
        "attribute": violation.attribute,
        "value": values[0] if len(values) == 1 else list(values),
        "accepts": violation.bound,
    }


def _facts(ws: Workspace, card: Card, geometry: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return what each image says, or what is known of the volume, by the names that `accepts` uses."""
    from mdcli.inference.card import WHERE, Where
    from mdcli.inference.scope import PATIENT, keyword_facts

    facts = {name: [value] for name, value in geometry.items() if value is not None}
    facts["slice_count"] = [geometry["shape"][0]]
    series = _series(ws, geometry)
    if series is None:
        if isinstance(where := card.accepts.get(WHERE), Where):
            facts |= keyword_facts(where.rule, [], geometry)
        return facts
    common = series.get("common", {})
    by_path = {entry["path"]: entry["attributes"] for entry in series.get("instances", [])}
    images = [{**common, **by_path.get(entry["path"], {})} for entry in geometry["slices"]]
    for attribute in card.accepts:
        said = [image.get(attribute) for image in images]
        if any(value is not None for value in said):
            facts[attribute] = said
    if isinstance(where := card.accepts.get(WHERE), Where):
        facts |= keyword_facts(where.rule, images, geometry)
    sources = _patient_sources(ws, geometry) if card.accepts.keys() & PATIENT else None
    if sources is not None:
        from mdcli.dicom.patient import read_patient

        patient = read_patient(*sources)
        ws.sources_digest(patient.digest)
        facts |= {"patient_age": list(patient.ages), "patient_sex": list(patient.sexes)}
    return facts


def _series(ws: Workspace, geometry: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return `series.json` where it is that of the volume: it may belong to another one of this workspace."""
    document = ws.read_json("series") if ws.has("series") else {}
    uid = document.get("series", {}).get("series_instance_uid")
    return document if uid is not None and uid == geometry["series_instance_uid"] else None


def _patient_sources(
    ws: Workspace, geometry: Mapping[str, Any]
) -> tuple[Path, list[tuple[str, int]], list[str]] | None:
    """Return where the images lie, and (path, size) and `header_sha256` of each; None where nothing says."""
    from mdcli.errors import DataError

    series = _series(ws, geometry)
    if series is None:
        return None
    scanned = {entry["path"]: entry for entry in series["instances"]}
    slices = geometry["slices"]
    missing = next((entry["k"] for entry in slices if entry["path"] not in scanned), None)
    if missing is not None:
        message = f"series.json does not list the source of slice {missing + 1}"
        raise DataError("bad-artifact", message, hint="run md load-volume again")
    used = [scanned[entry["path"]] for entry in slices]
    # Frames share a file.
    used = list({entry["path"]: entry for entry in used}.values())
    files = [(entry["path"], entry["size"]) for entry in used]
    return ws.source_root("series"), files, [entry["header_sha256"] for entry in used]


def _padding(geometry: Mapping[str, Any], on_slices: bool) -> list[tuple[float, float] | None] | None:
    """Return for each slice the lowest and the highest value that mean padding; none where slices differ and were resampled."""
    padding = geometry.get("padding")
    if not padding or not (on_slices or padding["range"]):
        return None
    ranges = padding["range_by_slice"] or [padding["range"]] * geometry["shape"][0]
    return [tuple(pair) if pair else None for pair in ranges]


def _write_labels(ws: Workspace, card: Card, volume: Volume, slabs: Iterator[NDArray[Any]]) -> _Found:
    import numpy as np

    from mdcli.inference.invert import count_labels, label_type

    shape, largest = volume.array.shape, len(card.labels)
    voxels = np.zeros(largest + 1, np.int64)
    first = last = np.zeros((0,), np.uint8)
    with (
        ws.progress_bar(shape[0], "inferring") as done,
        ws.volume_writer("labels", shape, np.dtype(label_type(largest)), volume.affine) as out,
    ):
        for slab in slabs:
            out.write(slab)
            voxels += count_labels(slab, largest)
            first = first if first.size else slab[0]
            last = slab[-1]
            done(len(slab))
    return _Found(voxels, count_labels(first, largest), count_labels(last, largest))


def _write_segments(
    ws: Workspace,
    model: ModelFolder,
    session: Session,
    geometry: Mapping[str, Any],
    found: _Found,
    out_of_scope: dict[str, Any] | None,
) -> None:
    from dataclasses import asdict

    from mdcli.errors import DataError

    card = model.card
    nothing = not found.voxels[1:].any()
    if nothing and card.empty == "error":
        raise DataError("empty-result", f"the model {card.name} found nothing, which its card calls an error")
    segments = [
        {
            "value": label.value,
            "name": label.name,
            "category": asdict(label.category),
            "type": asdict(label.type),
            "colour": list(label.colour) if label.colour else None,
            "algorithm": {"type": "AUTOMATIC", "name": card.name, "version": card.version},
            "voxels": int(found.voxels[label.value]),
            "touches_first_slice": bool(found.first[label.value]),
            "touches_last_slice": bool(found.last[label.value]),
        }
        for label in card.labels
    ]
    cut = [str(s["name"]) for s in segments if s["touches_first_slice"] or s["touches_last_slice"]]
    if cut:
        message = f"the first or the last slice is touched by {', '.join(cut)}, which may go on beyond"
        ws.note("touches-edge", message, labels=cut)
    facts = session.facts()
    ws.write_json(
        "segments",
        {
            "schema": "md.segments/1",
            "segments": segments,
            "model": {"name": card.name, "version": card.version, "sha256": model.sha256},
            "engine": {
                "name": facts["engine"],
                **{key: facts.get(key) for key in ("version", "precision", "provider", "device")},
            },
            "task": card.task,
            "empty": card.empty,
            "result": "nothing-found" if nothing else "processed",
            "out_of_scope": out_of_scope,
            **{key: geometry.get(key) for key in ("series_instance_uid", "frame_of_reference_uid")},
            "series_description_prefix": card.series_description_prefix,
            "regulatory": card.regulatory,
            **{key: geometry.get(key) for key in ("completeness", "lossy", "padding", "made")},
        },
    )
    if nothing:
        ws.nothing_found("nothing-found", f"the model {card.name} looked and found nothing")


def identity(ws: Workspace, params: Params) -> dict[str, Any]:
    """Say what decides the labels beside volume and parameters: the model, the engine and what it runs on."""
    from mdcli.inference.engines import check_device, find_engine

    engine = find_engine(params.engine).identity(check_device(params.device))
    model = _model(params)
    return {"model": f"{model.card.name} {model.card.version}", "model_sha256": model.sha256, **engine}


def sources(ws: Workspace, params: Params) -> Sources | None:
    """Return the source images where the model's card asks for the patient's age or sex, which no artifact holds."""
    from mdcli.inference.scope import PATIENT

    # A status can't name a model that was given by a path.
    card = _model(params).card if params.model else None
    asked = card is not None and card.accepts.keys() & PATIENT
    found = _patient_sources(ws, ws.read_json("geometry")) if asked else None
    if found is None:
        return None
    from mdcli.dicom.opening import split_path

    root, files, _ = found

    def digest() -> str:
        from mdcli.dicom.sources import open_sources

        return open_sources(root, files).digest

    return Sources(root, tuple(sorted({split_path(root, path)[0] for path, _ in files})), digest)


def preload(params: Params) -> None:
    """Load the libraries and open the model."""
    import os

    _session(_model(params), params, os.cpu_count() or 1)


STAGE = Stage(
    "infer",
    Params,
    run,
    reads=("volume", "geometry"),
    writes=("labels", "segments"),
    optional_reads=("series",),
    version=1,
    identity=identity,
    sources=sources,
    preload=preload,
)
