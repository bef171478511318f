"""Run a model over the volume."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mdcli.model_folders import model_names
from mdcli.stage import Option, Sources, Stage

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from mdcli.imaging.nifti import Volume
    from mdcli.inference.card import Card, Input, Output
    from mdcli.inference.collect import Allocate, Collector
    from mdcli.inference.engines import Session
    from mdcli.inference.formats import ModelFolder
    from mdcli.inference.predict import Busy, Found, Plan
    from mdcli.inference.preprocess import Prepared
    from mdcli.inference.scope import Violation
    from mdcli.inference.slots import Waiting
    from mdcli.workspace import Workspace

KINDS = ("labels", "masks", "segments", "instances", "objects", "classes", "detections", "scores")
# With `-` one model goes over many cases: it is opened once.
_opened: dict[tuple[str, ...], _Opened] = {}
_read: dict[tuple[str | None, ...], tuple[ModelFolder, list[tuple[str, int, int, int]]]] = {}


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
        str,
        Option(
            "Where it runs: cpu, cuda, cuda:N, cuda:0,1, tensorrt, an onnxruntime provider, or auto",
            result=False,
            complete=lambda: ("auto", "cpu", "cuda", "tensorrt"),
        ),
    ] = "auto"
    engine: Annotated[
        str | None,
        Option("Engine that runs it: onnxruntime, openvino, or a plugin's (default: the card's)", result=False),
    ] = None
    scores: Annotated[bool, "Write the scores of every class too, float16"] = False
    skip_empty: Annotated[bool, "Leave out windows that the card's window: skip_below calls empty"] = False
    orientation: Annotated[
        str | None, Option("Orientation of the training images, where the model does not say it", metavar="RAS|LPS|...")
    ] = None
    batch: Annotated[int, Option("Windows run at once", result=False)] = 1
    memory: Annotated[
        str | None, Option("Most memory that it may plan with, such as 4GiB", result=False, metavar="SIZE")
    ] = None
    trust_model: Annotated[
        tuple[str, ...],
        Option("SHA-256 of a model's file whose code may run, once", result=False, loosens=True, metavar="SHA256"),
    ] = ()
    allow_server: Annotated[
        tuple[str, ...],
        Option("Server that the images may be sent to", result=False, loosens=True, metavar="HOST[:PORT]"),
    ] = ()
    strict_device: Annotated[bool, Option("Refuse what runs on the CPU where a GPU was asked for", result=False)] = (
        False
    )
    deterministic: Annotated[bool, "Same bits on every run of a GPU, at the cost of speed"] = False
    require_check: Annotated[bool, Option("Refuse a model that md model check has not passed here", result=False)] = (
        False
    )
    accept_out_of_scope: Annotated[
        str | None,
        Option(
            "Run on what the model was not made for; the reason goes into the result", loosens=True, metavar="REASON"
        ),
    ] = None


@dataclass(frozen=True)
class _Opened:
    """A model, ready to run.

    Attributes:
        sessions: of each network.
        workers: how many windows are run side by side.
        slots: the GPUs' memory that is held while the networks are there.
    """

    sessions: tuple[Session, ...]
    workers: int
    slots: ExitStack


@dataclass(frozen=True)
class _Case:
    """What a model is run on.

    Attributes:
        volumes: of the card's inputs, in order.
        upright: the same with their axes at right angles.
        geometry: of the first.
        out_of_scope: why the model is run on what it was not made for, or None.
    """

    volumes: tuple[Volume, ...]
    upright: tuple[Volume, ...]
    geometry: dict[str, Any]
    out_of_scope: dict[str, Any] | None

    @property
    def sheared(self) -> bool:
        """Say whether results have to be brought back onto the volume's own grid."""
        return self.upright[0] is not self.volumes[0]


def run(ws: Workspace, params: Params) -> None:
    """Check that the volumes suit the model, run it window by window, write what it says and what that means."""
    from concurrent.futures import ThreadPoolExecutor

    from mdcli.inference.predict import make_plan
    from mdcli.inference.preprocess import prepare

    if params.batch < 1:
        from mdcli.errors import UsageError

        raise UsageError("bad-batch", f"--batch {params.batch} is no number of windows", hint="1 or more")
    model = _model(params)
    card = model.card
    _check_codes(card)
    for code, sentence in model.notes:
        ws.warn(code, sentence)
    taken = _devices(_engine_of(model, params), params)[1]
    if taken and _engine_of(model, params) != "kserve":
        ws.note("device-taken", taken)
    _check_self_test(ws, model, params)
    # Loading the engine takes as long as looking at the volume: side by side.
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(_open, model, params, ws.jobs, partial(_say_waiting, ws))
        case = _read_case(ws, card, params)
        with ws.span("statistics"):
            prepared = _prepared(card, case, prepare)
        with ws.span("open"):
            opened = opening.result()
    # Each of several networks must be what the card says.
    plans = [make_plan(card, session, prepared.grid, skip=_skips(card, params)) for session in opened.sessions]
    plan = plans[0]
    workers = _within_memory(ws, card, plan, opened.workers, params)
    if card.mirror:
        ws.note("mirrored", f"mirroring along {', '.join(card.mirror)} runs every window {len(plan.flips)} times")
    with ExitStack() as stack:
        results = [_result(ws, output, case, params, stack) for output in card.outputs]
        _predict(ws, card, opened, plan, prepared, results, workers, params)
        facts = opened.sessions[0].facts()
        fallen = [str(said) for session in opened.sessions if (said := session.facts().get("fallen_back"))]
        if fallen:
            ws.warn("node-on-cpu", f"on the CPU, where {params.device} was asked for, ran {'; '.join(fallen)}")
        ws.engine_facts(facts)
        with ws.span("write"):
            found = [_write(result, model, case, prepared, plan, facts) for result in results]
    if not any(found):
        if card.empty == "error":
            from mdcli.errors import DataError

            raise DataError("empty-result", f"the model {card.name} found nothing, which its card calls an error")
        ws.nothing_found("nothing-found", f"the model {card.name} looked and found nothing")


def _check_codes(card: Card) -> None:
    """Refuse a card whose codes no writer would take, before the work and not after it. The embedded ones are tested."""
    from mdcli.dicom.codes import checked_code
    from mdcli.errors import ConfigError, DataError
    from mdcli.inference.formats import find_model
    from mdcli.model_folders import EMBEDDED

    if (EMBEDDED / card.name).is_dir() and find_model(str(EMBEDDED / card.name), ()).card == card:
        return
    for label in dict.fromkeys(label for output in card.outputs for label in output.labels):
        for code in (label.category, label.type):
            try:
                checked_code({"value": code.value, "scheme": code.scheme, "meaning": code.meaning}, label.name)
            except DataError as error:
                raise ConfigError(
                    error.code, f"model.yaml: {error.message}", hint=error.hint, **error.numbers
                ) from error


def _model(params: Params) -> ModelFolder:
    """Return the model; what was read before in this process is read again only where its files have changed."""
    key = (params.model, params.engine, params.orientation, *params.trust_model)
    if key in _read and _read[key][1] == _state_of(_read[key][0], params):
        return _read[key][0]
    model = _find(params)
    _read[key] = model, _state_of(model, params)
    return model


def _state_of(model: ModelFolder, params: Params) -> list[tuple[str, int, int, int]]:
    """Return name, inode, size and time of what a model was read from: its folder, and the file that was named."""
    from pathlib import Path

    named = Path(params.model)
    files = [*(model.folder.rglob("*") if model.folder is not None else ()), *([named] if named.is_file() else [])]
    stats = [(str(path), path.stat()) for path in files if path.is_file()]
    return sorted((name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def _find(params: Params) -> ModelFolder:
    from mdcli.inference.engines import DEFAULT_ENGINE
    from mdcli.inference.formats import Opening, find_model
    from mdcli.inference.isolation import use_python
    from mdcli.model_folders import converted_folder, model_folders, torch_python

    use_python(torch_python())
    opening = Opening(
        cache=converted_folder(),
        trust=frozenset(params.trust_model),
        orientation=params.orientation,
        engine=params.engine or DEFAULT_ENGINE,
    )
    return find_model(params.model, model_folders(), opening)


def _engine_of(model: ModelFolder, params: Params) -> str:
    """Return the engine's name: a server's, else what was asked for, else what the card says."""
    from mdcli.errors import UsageError
    from mdcli.inference.engines import DEFAULT_ENGINE

    if any("://" in str(network) for network in model.networks):
        if params.engine not in (None, "kserve"):
            raise UsageError("bad-engine", f"--engine {params.engine}, but the model {model.card.name} is on a server")
        return "kserve"
    return params.engine or model.card.engine or DEFAULT_ENGINE


def _devices(engine: str, params: Params) -> tuple[tuple[str, ...], str | None]:
    """Return the devices, and the sentence that says what `auto` took."""
    from mdcli.inference.devices import cuda_gpus, parse_devices
    from mdcli.inference.engines import DEFAULT_ENGINE, version_of

    gpu_engine = engine == DEFAULT_ENGINE and version_of("onnxruntime-gpu") is not None
    found = parse_devices(params.device, cuda_gpus, gpu_engine=gpu_engine)
    return found.names, found.said


def _say_waiting(ws: Workspace, waiting: Waiting) -> None:
    if waiting.seconds == 0:
        text = f"waits for a GPU: {waiting.held_mib} of {waiting.total_mib} MiB are held by {waiting.ahead} before"
        ws.note("gpu-waiting", text, ahead=waiting.ahead, held_mib=waiting.held_mib)


def _open(
    model: ModelFolder, params: Params, jobs: int, waiting: Callable[[Waiting], None] = lambda _: None
) -> _Opened:
    """Return the networks, opened, and how many windows are run side by side."""
    import os

    from mdcli.inference.engines import Spread, find_engine
    from mdcli.inference.predict import windows_at_once

    name = _engine_of(model, params)
    devices, _ = _devices(name, params)
    key = (model.sha256, name, *devices, str(jobs), str(params.strict_device), str(params.deterministic))
    if key not in _opened:
        for opened in _opened.values():
            opened.slots.close()
        _opened.clear()
        slots = ExitStack()
        # In one order, whatever was typed: two processes with two GPUs each would wait for each other.
        for device in sorted(devices):
            slots.enter_context(_slot(device, model.card, waiting))
        on_cpu = devices == ("cpu",)
        # A GPU works on one window at a time, a server on as many as it likes.
        workers = min(jobs, windows_at_once(model.card)) if on_cpu and name != "kserve" else max(len(devices), 1)
        workers = 4 if name == "kserve" else workers
        options = _options(model, params, workers)
        engine, threads = find_engine(name), max(jobs // workers, 1)
        sessions: list[Session] = []
        for network in model.networks:
            if name == "kserve":
                # gRPC's C core writes lines of its own to standard error.
                os.environ.setdefault("GRPC_VERBOSITY", "NONE")
                from mdcli.inference.engines.kserve_address import check_server

                check_server(str(network), params.allow_server)
            each = tuple(engine.open(network, device=device, threads=threads, options=options) for device in devices)
            sessions.append(each[0] if len(each) == 1 else Spread(each))
        _opened[key] = _Opened(tuple(sessions), workers, slots)
    return _opened[key]


@contextmanager
def _slot(device: str, card: Card, waiting: Callable[[Waiting], None]) -> Iterator[None]:
    """Hold the part of a GPU's memory that the card says, after waiting for it; on other devices nothing."""
    from mdcli.inference.devices import cuda_gpus, split_device
    from mdcli.inference.slots import gpu_slot
    from mdcli.model_folders import slots_folder

    kind, index = split_device(device)
    gpu = next((gpu for gpu in cuda_gpus() if gpu.index == index), None) if kind in ("cuda", "tensorrt") else None
    folder = slots_folder()
    if gpu is None or folder is None:
        yield
        return
    needed = card.resources.gpu_memory_mib
    with gpu_slot(folder / gpu.uuid, needed_mib=needed, total_mib=gpu.memory_mib, waiting=waiting):
        yield


def _options(model: ModelFolder, params: Params, workers: int) -> dict[str, Any]:
    """Return what engines may be told beyond network, device and threads."""
    import os

    from mdcli.model_folders import engine_folder

    if params.device.startswith("tensorrt"):
        # TensorRT has no other way to leave TF32 off, and reads it when its libraries load.
        os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    options: dict[str, Any] = {
        "no_tf32": os.environ.get("NVIDIA_TF32_OVERRIDE") == "0",
        "model_sha256": model.sha256,
        "cache": engine_folder(),
        "workers": workers,
        "strict_device": params.strict_device,
        "deterministic": params.deterministic,
        "memory_mib": model.card.resources.gpu_memory_mib,
        "token": os.environ.get("MD_TRITON_TOKEN"),
        "ca_file": os.environ.get("MD_TRITON_CA_FILE"),
    }
    return {name: value for name, value in options.items() if value}


def _read_case(ws: Workspace, card: Card, params: Params) -> _Case:
    """Read the volumes, and refuse what the model can't be run on."""
    with ws.span("check"):
        volume, geometry = ws.read_volume("volume", colour=card.input.channels == 3), ws.read_json("geometry")
        _check_grid(volume, geometry)
        _check_plane(volume, card)
        out_of_scope = _check_scope(ws, card, volume, geometry, params.accept_out_of_scope)
        volumes = [_shown(ws, volume, geometry, card.input, card)]
        for said in card.inputs[1:]:
            other = ws.read_volume(said.role, colour=said.channels == 3)
            its = ws.read_json(said.role.replace("volume", "geometry", 1))
            _check_grid(other, its)
            _check_beside(volume, geometry, other, its, said)
            _check_unit(said, card, other, its)
            volumes.append(_shown(ws, other, its, said, card))
        return _Case(tuple(volumes), _upright(ws, volumes), geometry, out_of_scope)


def _check_beside(
    volume: Volume, geometry: Mapping[str, Any], other: Volume, its: Mapping[str, Any], said: Input
) -> None:
    """Refuse a second volume that does not lie on the first one's grid."""
    import numpy as np

    from mdcli.errors import DataError

    frames = geometry.get("frame_of_reference_uid"), its.get("frame_of_reference_uid")
    if frames[0] != frames[1] and not its.get("registered"):
        text = f"{said.role} has another frame of reference than volume"
        hint = "md resample-volume with --registration or --assume-registered"
        raise DataError("frames-of-reference-differ", text, hint=hint)
    k, j, i = volume.array.shape[:3]
    corners = np.array([[a, b, c, 1] for a in (0, i - 1) for b in (0, j - 1) for c in (0, k - 1)])
    apart = float(np.abs((volume.affine - other.affine) @ corners.T).max())
    if volume.array.shape[:3] != other.array.shape[:3] or apart > 1e-3:
        text = f"{said.role} is {other.array.shape[:3]} (k, j, i), volume {volume.array.shape[:3]}, corners {apart:.3g} mm apart"
        raise DataError("grids-differ", text, hint="md resample-volume puts one onto the grid of the other")


def _check_unit(said: Input, card: Card, volume: Volume, geometry: Mapping[str, Any]) -> None:
    from dataclasses import replace

    from mdcli.inference.scope import check_unit

    unit = geometry["unit"] if volume.unit is None else volume.unit
    check_unit(replace(card, inputs=(said,)), unit, geometry.get("modality"))


def _shown(ws: Workspace, volume: Volume, geometry: Mapping[str, Any], said: Input, card: Card) -> Volume:
    """Return the volume as the card's `grayscale` asks for it, and refuse a fourth axis or colour that it does not ask for."""
    from dataclasses import replace

    from mdcli.errors import DataError

    colour = volume.array.ndim == 4 and volume.array.shape[-1] == 3
    if colour != (said.channels == 3):
        found = "red, green and blue" if colour else "one number a voxel"
        raise DataError(
            "wrong-channels", f"{said.role} has {found}, the model {card.name} wants {said.channels} channel(s)"
        )
    from mdcli.imaging.display import check_intent, display_chain, says_window

    display = geometry.get("display")
    intents = card.accepts.get("presentation_intent_type")
    check_intent(display, [str(value) for value in getattr(intents, "one_of", ())])
    if said.grayscale == "modality":
        return volume
    limits = None if says_window(display) else _limits(volume, geometry)
    chain = display_chain(display, said.grayscale, limits=limits)
    for code, sentence in chain.findings:
        ws.warn(code, sentence)
    return replace(volume, array=chain(volume.array))


def _limits(volume: Volume, geometry: Mapping[str, Any]) -> tuple[float, float]:
    """Return the lowest and the highest value that is no padding."""
    import numpy as np

    ranges = _padding(geometry, geometry.get("resampled") is None) or [None] * len(volume.array)
    low, high = np.inf, -np.inf
    for plane, padding in zip(volume.array, ranges, strict=True):
        values = plane if padding is None else plane[(plane < padding[0]) | (plane > padding[1])]
        if values.size:
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    return (low, high) if low <= high else (0.0, 0.0)


def _upright(ws: Workspace, volumes: Sequence[Volume]) -> tuple[Volume, ...]:
    """Return the volumes with their axes at right angles, as a network was trained on: resampled where they are sheared."""
    from dataclasses import replace

    import numpy as np

    from mdcli.errors import DataError
    from mdcli.imaging.resample import orthogonal_grid, outside_value, resample
    from mdcli.inference.grid import shear_of

    first = volumes[0]
    sheared = shear_of(first.array.shape[:3], first.affine)
    if sheared is None:
        return tuple(volumes)
    if any(volume.array.ndim == 4 for volume in volumes):
        text = f"the volume is sheared by {sheared[0]:.2f} degrees, and colours are not resampled"
        raise DataError("sheared-volume", text, degrees=sheared[0])
    text = f"the volume is sheared by {sheared[0]:.2f} degrees: the model runs at right angles, the result goes back to its slices"
    ws.warn("sheared-volume", text, degrees=sheared[0], voxels=sheared[1])
    shape, affine = orthogonal_grid(first.array.shape, first.affine)
    found = []
    for volume in volumes:
        lowest = min(float(np.nanmin(plane)) for plane in volume.array)
        lowest = outside_value(lowest, volume.unit, None)
        slabs = resample(volume.array, volume.affine, shape, affine, order="linear", fill=lowest, jobs=ws.jobs)
        found.append(replace(volume, array=np.concatenate(list(slabs)), affine=affine))
    return tuple(found)


def _prepared(card: Card, case: _Case, prepare: Callable[..., Prepared]) -> Prepared:
    """Return what the network sees of the volumes."""
    on_slices = not case.sheared and case.geometry.get("resampled") is None
    padding = _padding(case.geometry, on_slices) if card.input.padding == "exclude" else None
    arrays = [volume.array for volume in case.upright]
    return prepare(arrays, case.upright[0].affine, card.inputs, padding)


def _skips(card: Card, params: Params) -> bool:
    from mdcli.errors import UsageError

    if params.skip_empty and card.cut.skip_below is None:
        text = f"--skip-empty, but the card of {card.name} has no window: skip_below"
        raise UsageError("no-skip-below", text, hint="it says from which value on a window is worth a run")
    return params.skip_empty


def _within_memory(ws: Workspace, card: Card, plan: Plan, workers: int, params: Params) -> int:
    """Return how many windows may be run side by side, within `--memory` and what the machine has left."""
    from mdcli.errors import UnavailableError
    from mdcli.inference.devices import available_memory, check_memory, parse_bytes
    from mdcli.inference.predict import needed_bytes

    allowed = parse_bytes(params.memory) if params.memory else None
    check_memory(card.resources.memory_mib, allowed=allowed, available=available_memory())
    if allowed is None:
        return workers
    while workers > 1 and needed_bytes(plan, workers, params.batch) > allowed:
        workers -= 1
    needed = needed_bytes(plan, workers, params.batch)
    if needed > allowed:
        text = f"the windows need {needed >> 20} MiB, --memory allows {allowed >> 20} MiB"
        raise UnavailableError("memory-too-small", text, hint="a smaller --batch, overlap or window needs less")
    return workers


def _check_self_test(ws: Workspace, model: ModelFolder, params: Params) -> None:
    """Warn where nothing says how the training code's results look; where it is required, ask whether they were met here.

    The embedded models are not trained: the tests hold them to arithmetic.
    """
    from mdcli.errors import ConfigError
    from mdcli.inference.engines import find_engine
    from mdcli.inference.selftest import checked
    from mdcli.model_folders import EMBEDDED, checks_folder

    folder = model.folder
    if folder is not None and folder.parent != EMBEDDED and not (folder / "selftest").is_dir():
        text = (
            f"the model {model.card.name} has no self-test: nothing shows that it gives here what it gave in training"
        )
        ws.warn("no-selftest", text)
    if not params.require_check:
        return

    name = _engine_of(model, params)
    identity = find_engine(name).identity(_devices(name, params)[0][0])
    if not checked(model.sha256, identity, checks_folder()):
        text = f"md model check has not passed for {model.card.name} with {name} on {identity['device']}"
        raise ConfigError("not-checked", text, hint=f"md model check {params.model}")


def _predict(
    ws: Workspace,
    card: Card,
    opened: _Opened,
    plan: Plan,
    prepared: Prepared,
    results: Sequence[_Result],
    workers: int,
    params: Params,
) -> None:
    """Run the networks; an ensemble that votes is run network by network."""
    from mdcli.inference.predict import Busy, predict

    busy = Busy()

    def take(found: Found) -> None:
        for result in results:
            result.collector.take(found)

    groups = [(session,) for session in opened.sessions] if card.ensemble == "vote" else [opened.sessions]
    with (
        ws.span("predict"),
        ws.progress_bar(plan.tiling.count * len(groups), "inferring") as done,
    ):
        for sessions in groups:
            inverters = [inverter for result in results for inverter in result.collector.begin(prepared)]
            predict(
                plan,
                sessions,
                prepared.rows,
                inverters,
                workers=workers,
                batch=params.batch,
                busy=busy,
                take=take,
                progress=done,
            )
            for result in results:
                result.collector.end()
    _say_busy(ws, busy)


def _say_busy(ws: Workspace, busy: Busy) -> None:
    ws.add_span("network", busy.seconds)
    if busy.skipped:
        total = busy.windows + busy.skipped
        ws.note("windows-skipped", f"{busy.skipped} of {total} windows were empty and not run", skipped=busy.skipped)
    if busy.smaller is not None:
        ws.warn("smaller-batch", f"the device's memory did not do: windows were run {busy.smaller} at once")


def _check_grid(volume: Volume, geometry: Mapping[str, Any]) -> None:
    """Refuse a volume that is not the one of `geometry.json`: its labels could not go back to the source slices."""
    import numpy as np

    from mdcli.errors import DataError

    shape, affine = tuple(geometry["shape"]), np.array(geometry["affine_lps"], np.float64)
    if volume.array.shape[:3] != shape:
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


@dataclass
class _Result:
    """One output of the network, and where it is written.

    Attributes:
        ws: the workspace, under the output's name.
        output: of the card.
        collector: what is gathered of it.
        scores: the folder that its scores are written into, where they are asked for.
    """

    ws: Workspace
    output: Output
    collector: Collector
    scores: Path | None = None


def _result(ws: Workspace, output: Output, case: _Case, params: Params, stack: ExitStack) -> _Result:
    from mdcli.inference.collect import Collector

    view = ws.named(_written_as(ws, output)) if output.name else ws
    shape = case.upright[0].array.shape
    collector = Collector(output, (shape[0], shape[1], shape[2]))
    result = _Result(view, output, collector)
    if params.scores and collector.is_map:
        result.scores = stack.enter_context(view.writing("scores"))
        result.scores.mkdir()
        collector.keep_scores = _score_arrays(result.scores, output)
    return result


def _written_as(ws: Workspace, output: Output) -> str:
    """Return the name of one of several outputs' artifacts."""
    return "_".join(part for part in (ws.as_name, output.name) if part)


def _score_arrays(folder: Path, output: Output) -> Allocate:
    """Return what makes the array of a channel in a folder: mapped, float16; the background has none."""
    import numpy as np

    first = int(output.background)

    def allocate(channel: int, shape: tuple[int, int, int]) -> NDArray[Any] | None:
        if channel < first:
            return None
        name = f"{output.labels[channel - first].value:04d}.npy"
        mapped: NDArray[Any] = np.lib.format.open_memmap(folder / name, "w+", np.dtype("<f2"), shape)
        return mapped

    return allocate


def _write(
    result: _Result,
    model: ModelFolder,
    case: _Case,
    prepared: Prepared,
    plan: Plan,
    facts: Mapping[str, Any],
) -> bool:
    """Write what one output says, and return whether anything was found."""
    from mdcli.inference.results import common

    output = result.output
    said = common(model, output.task or model.card.task, facts, case.geometry, case.out_of_scope)
    result.collector.decide()
    if output.task == "segmentation":
        return _write_segmentation(result, model, case, said)
    if output.task == "instances":
        return _write_instances(result, model, case, prepared, said)
    if output.task == "detection":
        return _write_detections(result, model, case, plan, said)
    return _write_classes(result, model, case, plan, said)


def _back(
    result: _Result, case: _Case, array: NDArray[Any], order: Literal["linear", "nearest"] = "nearest"
) -> NDArray[Any]:
    """Return an array of the upright grid on the volume's own."""
    import numpy as np

    from mdcli.imaging.resample import resample

    if not case.sheared:
        return array
    own, upright = case.volumes[0], case.upright[0]
    shape = own.array.shape[:3]
    slabs = resample(array, upright.affine, shape, own.affine, order=order, fill=0, jobs=result.ws.jobs)
    return np.concatenate(list(slabs))


def _write_segmentation(result: _Result, model: ModelFolder, case: _Case, said: Mapping[str, Any]) -> bool:

    from mdcli.inference.after import apply_after
    from mdcli.inference.results import count_map, count_masks, labels_after, segments_document

    ws, output, collector = result.ws, result.output, result.collector
    own = case.volumes[0]
    labels = labels_after(output)
    if collector.masks is not None:
        masks = [_back(result, case, mask) for mask in collector.masks]
        if output.after:
            masks = [
                _mask_after(mask, label.value, output, own.affine, ws.jobs)
                for mask, label in zip(masks, output.labels, strict=True)
            ]
        found = count_masks(masks)
        with ws.writing("masks") as folder:
            folder.mkdir()
            for label, mask in zip(output.labels, masks, strict=True):
                if found.all[label.value]:
                    _write_mask(folder / f"{label.value:04d}.nii", mask, own.affine)
    else:
        assert collector.labels is not None
        array = _back(result, case, collector.labels)
        if output.after:
            array = apply_after(array, output.after, own.affine, jobs=ws.jobs)
        found = count_map(array, max((label.value for label in output.labels), default=0))
        ws.write_volume("labels", array, own.affine)
    document = segments_document(model.card, output, labels, found, said)
    _note_edges(ws, document)
    ws.write_json("segments", document)
    _finish_scores(result, case)
    return bool(document["result"] == "processed")


def _mask_after(mask: NDArray[Any], value: int, output: Output, affine: NDArray[np.float64], jobs: int) -> NDArray[Any]:
    """Return a mask after those of the card's steps that name its label, or none."""
    from dataclasses import replace

    from mdcli.inference.after import apply_after
    from mdcli.inference.steps_after import MapLabels

    steps = [
        replace(step, labels=())
        for step in output.after
        if not isinstance(step, MapLabels) and (not step.labels or value in step.labels)
    ]
    return apply_after(mask, steps, affine, jobs=jobs)


def _write_mask(path: Path, mask: NDArray[Any], affine: NDArray[np.float64]) -> None:
    import numpy as np

    from mdcli.imaging.nifti import nifti_header

    with path.open("wb") as file:
        file.write(nifti_header(mask.shape, np.dtype(np.uint8), affine))
        for plane in mask:
            file.write(np.ascontiguousarray(plane, np.uint8).tobytes())


def _note_edges(ws: Workspace, document: Mapping[str, Any]) -> None:
    edges = ("touches_first_slice", "touches_last_slice")
    cut = [str(segment["name"]) for segment in document["segments"] if any(segment[edge] for edge in edges)]
    if cut:
        message = f"the first or the last slice is touched by {', '.join(cut)}, which may go on beyond"
        ws.note("touches-edge", message, labels=cut)


def _finish_scores(result: _Result, case: _Case) -> None:
    """Bring the scores onto the volume's own grid, and say what they are."""
    import numpy as np

    from mdcli.workspace import json_bytes

    if result.scores is None:
        return
    listed = []
    own = case.volumes[0]
    for label in result.output.labels:
        path = result.scores / f"{label.value:04d}.npy"
        if case.sheared:
            values = _back(result, case, np.load(path).astype(np.float32), "linear")
            np.save(path, values.astype("<f2"))
        listed.append({"value": label.value, "file": path.name})
    document = {
        "schema": "md.scores/1",
        "classes": listed,
        "kind": "score" if result.output.activation == "none" else "probability",
        "shape": list(own.array.shape[:3]),
        "affine_lps": own.affine.tolist(),
    }
    (result.scores / "scores.json").write_bytes(json_bytes(document))


def _write_instances(
    result: _Result, model: ModelFolder, case: _Case, prepared: Prepared, said: Mapping[str, Any]
) -> bool:
    from dataclasses import replace

    from mdcli.imaging.nifti import PATIENT
    from mdcli.inference.after import apply_after
    from mdcli.inference.tasks.instances import instances_document, settled

    ws, output, collector = result.ws, result.output, result.collector
    own, said_of = case.volumes[0], output.instances
    assert said_of is not None and collector.labels is not None
    if output.after:
        collector.labels = apply_after(collector.labels, output.after, case.upright[0].affine, jobs=ws.jobs)
    collector.tell_apart(prepared, case.upright[0].affine, ws.jobs)
    assert collector.objects is not None
    objects = collector.objects
    if case.sheared:
        array = _back(result, case, objects.map)
        # What is thinner than a voxel may be lost on the way.
        objects = settled(array, objects.values, objects.scores, replace(said_of, smallest_mm3=0.0), 1.0)
    ws.write_volume("instances", objects.map, own.affine)
    document = instances_document(objects, output.labels, said_of, own.affine, said, patient=own.plane == PATIENT)
    ws.write_json("objects", document)
    _finish_scores(result, case)
    return bool(document["result"] == "processed")


def _write_detections(result: _Result, model: ModelFolder, case: _Case, plan: Plan, said: Mapping[str, Any]) -> bool:
    import numpy as np

    from mdcli.errors import DataError
    from mdcli.inference.tasks.detection import Boxes, detections_document, on_volume

    output, upright = result.output, case.upright[0]
    if case.sheared:
        text = "the volume is sheared, and boxes at right angles to its own axes are none there"
        raise DataError("sheared-volume", text, hint="md load-volume --untilt makes a volume at right angles")
    assert output.detection is not None
    axes = [(axis, plan.grid.axes[axis]) for axis in plan.grid.order]
    lists = result.collector.boxes(plan, model.card.inputs)
    ends = []
    for boxes, place in lists:
        apart = None
        if place is not None and plan.grid.across is not None:
            apart = {plan.grid.across: (place - 0.5, place + 0.5)}
        ends.append(on_volume(boxes.ends, axes, apart))
    every = Boxes(
        np.concatenate([boxes.ends for boxes, _ in lists]),
        np.concatenate([boxes.scores for boxes, _ in lists]),
        np.concatenate([boxes.labels for boxes, _ in lists]),
    )
    order = np.argsort(-every.scores, kind="stable")
    document = detections_document(
        np.concatenate(ends)[order],
        every.of(order),
        output.labels,
        output.detection,
        case.geometry,
        upright.affine,
        said,
    )
    result.ws.write_json("detections", document)
    return bool(document["result"] == "processed")


def _write_classes(result: _Result, model: ModelFolder, case: _Case, plan: Plan, said: Mapping[str, Any]) -> bool:
    from mdcli.inference.tasks.classification import SliceOf, classes_document, classify
    from mdcli.inference.tasks.regression import regress

    output, collector = result.output, result.collector
    tensor = output.tensor or plan.others[0]
    rows = collector.rows(tensor)
    over: Any = output.over
    slices: list[SliceOf] = []
    if over == "slices" and plan.grid.across is not None:
        listed = case.geometry.get("slices") or []
        for found in collector.found:
            k = found.window.parts[plan.grid.across].start
            own = (
                plan.grid.across == 0
                and not case.sheared
                and case.geometry.get("resampled") is None
                and k < len(listed)
            )
            slices.append(SliceOf(k, listed[k].get("sop_instance_uid") if own else None))
    elif case.volumes[0].array.shape[0] == 1:
        over = "image"
    if output.task == "regression":
        assert output.unit is not None
        vote: Any = output.vote
        one = regress(
            rows,
            output.labels,
            output.unit,
            scale=output.scale,
            offset=output.offset,
            within=output.within,
            outside=output.outside,
            over=over,
            vote=vote,
            slices=slices,
            name=output.name,
        )
    else:
        activation: Any = output.activation
        one = classify(
            rows,
            output.labels,
            activation=activation,
            multilabel=output.multilabel,
            thresholds=output.thresholds or (output.threshold,),
            over=over,
            vote=output.vote,
            slices=slices,
            name=output.name,
        )
    document = classes_document([one], said)
    result.ws.write_json("classes", document)
    return bool(document["result"] == "processed")


def identity(ws: Workspace, params: Params) -> dict[str, Any]:
    """Say what decides the result beside volumes and parameters: the model, the engine and what it runs on."""
    from mdcli.inference.engines import find_engine

    model = _model(params)
    name = _engine_of(model, params)
    engine = find_engine(name).identity(_devices(name, params)[0][0])
    return {"model": f"{model.card.name} {model.card.version}", "model_sha256": model.sha256, **engine}


def also_reads(ws: Workspace, params: Params) -> tuple[str, ...]:
    """Return the further volumes that the card asks for, and their geometry."""
    if not params.model:
        return ()
    roles = [said.role for said in _model(params).card.inputs[1:]]
    return tuple(role for name in roles for role in (name, name.replace("volume", "geometry", 1)))


def reads_as(ws: Workspace, params: Params) -> Mapping[str, str]:
    """Return the name of the first volume, where the card gives it one."""
    name = _model(params).card.input.role.partition("-")[2] if params.model else ""
    return {"volume": name} if name else {}


def names(ws: Workspace, params: Params) -> Mapping[str, bool]:
    """Return the names of several outputs' artifacts."""
    outputs = _model(params).card.outputs if params.model else ()
    return {_written_as(ws, output): True for output in outputs if output.name}


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

    _open(_model(params), params, os.cpu_count() or 1)


STAGE = Stage(
    "infer",
    Params,
    run,
    reads=("volume", "geometry"),
    writes=KINDS,
    optional_reads=("series",),
    optional_writes=KINDS,
    version=2,
    identity=identity,
    sources=sources,
    preload=preload,
    also_reads=also_reads,
    reads_as=reads_as,
    names=names,
)
