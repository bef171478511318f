"""Make one label map of several, by priority."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from mdcli.errors import DataError, UsageError
from mdcli.stage import Option, Stage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mdcli.imaging.merging import Part, Tally
    from mdcli.imaging.nifti import Volume
    from mdcli.workspace import Workspace

_UNNAMED = "labels"
_LARGEST_LABEL = 65535
_DEFAULT_REGULATORY = "Research use only, not reviewed."
# What two structures that become one must agree in.
_CODES = ("category", "type", "type_modifiers", "anatomic_region", "anatomic_region_modifiers")


@dataclass(frozen=True)
class Params:
    """What you can ask."""

    maps: Annotated[
        str,
        Option(
            "Names of the label maps or masks, the first one wins; 'labels' is the one without a name",
            metavar="NAME,NAME",
        ),
    ]
    priority: Annotated[
        tuple[str, ...],
        Option("Names of structures that come before all others, the first one wins; may repeat", metavar="A,B"),
    ] = ()
    join: Annotated[bool, "Make one structure of those that have one name and the same codes"] = False


@dataclass(frozen=True)
class _Input:
    """One of the maps.

    Attributes:
        role: of the label map or the masks.
        document: its `segments.json`.
    """

    role: str
    document: Mapping[str, Any]

    @property
    def is_masks(self) -> bool:
        """Say whether its structures lie in masks of their own."""
        return self.role.partition("-")[0] == "masks"


@dataclass
class _Structure:
    """One structure of the merged map: several of one name where they were joined.

    Attributes:
        entries: its descriptions, with the input that each is of.
        value: in the merged map.
        rank: place in the order of priority, from 1.
        is_listed: it was named by `--priority`.
    """

    entries: list[tuple[_Input, Mapping[str, Any]]]
    value: int
    rank: int = 0
    is_listed: bool = False

    @property
    def name(self) -> str:
        """Return its name."""
        return str(self.entries[0][1]["name"])


def run(ws: Workspace, params: Params) -> None:
    """Place every map on the whole grid, let the first structure of the list have each voxel, describe what came of it."""
    import numpy as np

    from mdcli.imaging.merging import Tally, merge

    geometry = ws.read_json("geometry")
    inputs = [_Input(role, ws.read_json(segments)) for role, segments in _roles(ws, params)]
    with _reading():
        shape = (int(geometry["shape"][0]), int(geometry["shape"][1]), int(geometry["shape"][2]))
        affine = np.array(geometry["affine_lps"], np.float64)
        for one in inputs:
            _check_space(one, geometry)
        structures = _ranked(_structures(inputs, params.join), inputs, params.priority)
    with ws.span("read"):
        parts = _parts(ws, inputs, structures, shape, affine)
    values = np.zeros(len(structures) + 1, np.uint8 if len(structures) <= 255 else np.uint16)
    for structure in structures:
        values[structure.rank] = structure.value
    tally = Tally()
    with ws.span("merge"), ws.volume_writer("labels", shape, values.dtype, affine) as out:
        for plane in ws.progress(merge(parts, shape, tally), "merging"):
            out.write(np.ascontiguousarray(values[plane], values.dtype.newbyteorder("<")))
    voxel_mm3 = float(abs(np.linalg.det(affine[:3, :3])))
    _say_overlaps(ws, structures, tally, voxel_mm3)
    document = _document(inputs, structures, geometry, tally)
    _say_edges(ws, document, structures, tally)
    ws.write_json("segments", document)
    if document["result"] == "nothing-found":
        ws.nothing_found("nothing-found", "none of the maps has a labelled voxel")


@contextmanager
def _reading() -> Iterator[None]:
    """Refuse a JSON artifact that has another form than it should."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        message = f"geometry.json or a segments.json has not the form that it should have ({type(error).__name__})"
        raise DataError("bad-artifact", message) from error


def _roles(ws: Workspace, params: Params) -> list[tuple[str, str]]:
    """Return for each of the maps the role of its voxels and that of its segments."""
    from mdcli.workspace import check_name, role_of

    names = [check_name(name.strip()) for name in params.maps.split(",")]
    double = next((name for n, name in enumerate(names) if name in names[:n]), None)
    if double is not None:
        raise UsageError("same-name", f"--maps names {double} twice")
    found = []
    for name in names:
        kinds = ("labels", "masks")
        own: str | None = name
        if name == _UNNAMED and not any(ws.locate(role_of(kind, name)).exists() for kind in kinds):
            own = None
        segments = role_of("segments", own)
        there = [role_of(kind, own) for kind in kinds if ws.locate(role_of(kind, own)).exists()]
        if len(there) > 1:
            # One of the two is of an earlier run: its segments are another's.
            described = ws.record(segments)
            records = {role: ws.record(role) for role in there}
            there = [r for r in there if described and (rec := records[r]) and rec.key == described.key] or there
        found.append((there[0] if there else role_of("labels", own), segments))
    return found


def also_reads(ws: Workspace, params: Params) -> tuple[str, ...]:
    """Return the roles of all maps and of what describes them.

    Raises:
        UsageError: `bad-name`, `same-name`.
    """
    roles = _roles(ws, params)
    written = {ws.role_to_write("labels"), ws.role_to_write("segments")}
    taken = next((role for pair in roles for role in pair if role in written), None)
    if taken is not None:
        message = f"merge-labels would write over {taken}, which it reads"
        raise UsageError("same-name", message, hint="give what it writes a name with --as NAME")
    return tuple(role for pair in roles for role in pair)


def reads_as(ws: Workspace, params: Params) -> Mapping[str, str]:
    """Say which geometry is read: that of the volume which the first map was made on, or was cropped from."""
    from mdcli.workspace import Workspace

    role = _roles(ws, params)[0][0]
    kind, _, name = role.partition("-")
    view = Workspace(ws.path, use={kind: name} if name else None)
    view.reading = (kind, "geometry")
    found = view.role_to_read("geometry")
    while (record := ws.record(found)) is not None and record.stage == "crop" and "geometry" in record.inputs:
        found = str(record.inputs["geometry"]["role"])
    return {"geometry": found.partition("-")[2]}


def _check_space(one: _Input, geometry: Mapping[str, Any]) -> None:
    """Refuse a map that is not known to lie in the volume's frame of reference."""
    mine, theirs = geometry.get("frame_of_reference_uid"), one.document.get("frame_of_reference_uid")
    same_series = geometry.get("series_instance_uid") == one.document.get("series_instance_uid")
    if mine != theirs or (mine is None and not same_series):
        message = f"{one.role} lies in the frame of reference {theirs or 'unknown'}, the volume in {mine or 'unknown'}"
        raise DataError("frames-of-reference-differ", message)


def _structures(inputs: list[_Input], join: bool) -> list[_Structure]:
    """Return the structures of the merged map, their values from 1 in the order of the maps.

    Raises:
        DataError: `duplicate-structure`, `codes-differ`, `too-many-structures`.
    """
    found: dict[str, _Structure] = {}
    for one in inputs:
        for entry in sorted(one.document["segments"], key=lambda entry: int(entry["value"])):
            name = str(entry["name"])
            if name not in found:
                found[name] = _Structure([(one, entry)], len(found) + 1)
                continue
            first, held = found[name].entries[0]
            if not join:
                message = f"{first.role} and {one.role} both describe {name}"
                raise DataError("duplicate-structure", message, hint="--join makes one structure of the two")
            other = next((key for key in _CODES if _code(entry, key) != _code(held, key)), None)
            if other is not None:
                message = f"{name} has another {other.replace('_', ' ')} in {one.role} than in {first.role}"
                raise DataError("codes-differ", message)
            found[name].entries.append((one, entry))
    if len(found) > _LARGEST_LABEL:
        raise DataError("too-many-structures", f"{len(found)} structures are more than a label map holds (65535)")
    return list(found.values())


def _code(entry: Mapping[str, Any], key: str) -> Any:
    """Return a code without its meaning and the release, which say the same in other words."""
    found = entry.get(key)
    if isinstance(found, list):
        return [(code.get("value"), code.get("scheme")) for code in found] or None
    return (found.get("value"), found.get("scheme")) if found else None


def _ranked(structures: list[_Structure], inputs: list[_Input], asked: tuple[str, ...]) -> list[_Structure]:
    """Return the structures with their ranks: those that were asked for, then map by map, then by value."""
    from mdcli.imaging.label_maps import listed, no_such_structure

    names = {structure.name: structure for structure in structures}
    words = listed(asked, names)
    for word in words:
        if word not in names:
            raise no_such_structure(word, list(names))
        names[word].is_listed = True
    order = [names[word] for word in words] + [s for s in structures if not s.is_listed]
    for rank, structure in enumerate(order, start=1):
        structure.rank = rank
    return structures


def _parts(
    ws: Workspace,
    inputs: list[_Input],
    structures: list[_Structure],
    shape: tuple[int, int, int],
    affine: NDArray[np.float64],
) -> list[Part]:
    """Return all voxels that are merged, each placed on the grid; those that win first come first."""
    from mdcli.dicom.seg import count_labels
    from mdcli.imaging.label_maps import in_order_of, whole_numbers
    from mdcli.imaging.merging import Part
    from mdcli.imaging.nifti import Volume, read_nifti

    ranks: dict[tuple[str, int], int] = {}
    for structure in structures:
        for one, entry in structure.entries:
            ranks[one.role, int(entry["value"])] = structure.rank
    parts = []

    def add(one: _Input, found: Volume, values: dict[int, int]) -> None:
        turned = in_order_of(found, affine)
        whole = Volume(whole_numbers(turned.array), turned.affine)
        unknown = [value for value in count_labels(whole.array) if value not in values]
        if unknown:
            message = f"{one.role} has the label value {unknown[0]}, which its segments.json does not describe"
            raise DataError("undescribed-label", message, values=unknown)
        parts.append(Part(whole.array, _place(one, whole, shape, affine), values))

    for one in inputs:
        own = {value: rank for (role, value), rank in ranks.items() if role == one.role}
        if not one.is_masks:
            add(one, ws.read_volume(one.role), own)
            continue
        for value, path in _mask_files(ws.read(one.role), one.role, own).items():
            add(one, read_nifti(path), {1: own[value]})
    return sorted(parts, key=lambda part: min(part.ranks.values(), default=0))


def _place(one: _Input, labels: Volume, shape: tuple[int, int, int], affine: NDArray[np.float64]) -> Any:
    from mdcli.imaging.cropping import place_in

    try:
        return place_in(labels, shape, affine)
    except DataError as error:
        hint = "merge-labels takes maps on the volume's grid, or on a part of it by md crop"
        raise DataError(error.code, f"{one.role}: {error.message}", hint=hint, **error.numbers) from None


def _mask_files(folder: Path, role: str, described: Mapping[int, int]) -> dict[int, Path]:
    """Return label value to its mask's file.

    Raises:
        DataError: `bad-artifact` for what is no mask of a value that is described.
    """
    found = {}
    for path in sorted(folder.iterdir()):
        value = int(path.stem) if path.suffix == ".nii" and path.stem.isascii() and path.stem.isdecimal() else 0
        if value not in described or value in found:
            from mdcli.dicom.opening import shown

            raise DataError(
                "bad-artifact", f"{role} holds {shown(path.name)}, which its segments.json does not describe"
            )
        found[value] = path
    return found


def _say_overlaps(ws: Workspace, structures: list[_Structure], tally: Tally, voxel_mm3: float) -> None:
    """Tell which structures claimed the same voxels, or refuse where nobody said which one comes first.

    Raises:
        DataError: `overlap`.
    """
    by_rank = {structure.rank: structure for structure in structures}
    pairs = sorted(tally.overlaps.items(), key=lambda item: (-item[1], item[0]))
    for (won, lost), voxels in pairs:
        one, other = by_rank[won], by_rank[lost]
        # Between two maps --maps says which comes first; within one only --priority does.
        homes = [{home.role for home, _ in structure.entries} for structure in (one, other)]
        if homes[0] & homes[1] and not (one.is_listed or other.is_listed):
            message = f"{one.name} and {other.name} overlap in {voxels} voxel(s) ({voxels * voxel_mm3 / 1000:.4g} ml)"
            hint = f"say which comes first: --priority '{one.name}' or --priority '{other.name}'"
            raise DataError("overlap", message, hint=hint, voxels=voxels)
    if pairs:
        told = [
            f"{by_rank[a].name} before {by_rank[b].name} in {n} ({n * voxel_mm3 / 1000:.4g} ml)" for (a, b), n in pairs
        ]
        more = f" and {len(told) - 8} more pairs" if len(told) > 8 else ""
        numbers = [[by_rank[a].name, by_rank[b].name, n] for (a, b), n in pairs[:100]]
        text = f"voxels that several structures claim, by priority: {', '.join(told[:8])}{more}"
        ws.note("overlap-resolved", text, pairs=numbers)


def _say_edges(ws: Workspace, document: Mapping[str, Any], structures: list[_Structure], tally: Tally) -> None:
    ends = [str(s["name"]) for s in document["segments"] if s["touches_first_slice"] or s["touches_last_slice"]]
    if ends:
        message = f"the first or the last slice is touched by {', '.join(ends)}, which may go on beyond"
        ws.note("touches-edge", message, labels=ends)
    cut = [structure.name for structure in structures if structure.rank in tally.cut]
    if cut:
        message = f"at a side of the part that they were made on lie {', '.join(cut)}: they may have been cut off there"
        ws.warn("touches-crop", message, labels=cut)


def _document(
    inputs: list[_Input], structures: list[_Structure], geometry: Mapping[str, Any], tally: Tally
) -> dict[str, Any]:
    documents = [one.document for one in inputs]
    models = [document.get("model") for document in documents]
    shared = models[0] if all(model == models[0] for model in models) else None
    engines = [document.get("engine") for document in documents]
    same_engine = engines[0] if all(engine == engines[0] for engine in engines) else None
    prefixes = list(dict.fromkeys(str(d.get("series_description_prefix", "AI ")) for d in documents))
    said = list(dict.fromkeys(str(d.get("regulatory") or _DEFAULT_REGULATORY) for d in documents))
    made = dict.fromkeys(str(m) for d in (geometry, *documents) for m in d.get("made") or [])
    nothing = not tally.voxels
    return {
        "schema": "md.segments/1",
        "segments": [_segment(structure, tally) for structure in structures],
        **({"model": shared} if shared else {}),
        **({"engine": same_engine} if same_engine else {}),
        "task": "segmentation",
        "empty": "error" if any(d.get("empty") == "error" for d in documents) else "valid",
        "result": "nothing-found" if nothing else "processed",
        "out_of_scope": _out_of_scope(documents),
        "merged_from": [
            {"role": one.role}
            | {
                key: one.document[key]
                for key in ("model", "engine", "read_from", "merged_from")
                if one.document.get(key)
            }
            for one in inputs
        ],
        **{key: geometry.get(key) for key in ("series_instance_uid", "frame_of_reference_uid")},
        # What a machine had a part in says so.
        "series_description_prefix": max(prefixes, key=len),
        "regulatory": " ".join(said),
        **{key: geometry.get(key) for key in ("completeness", "lossy", "padding")},
        "made": list(made),
    }


def _segment(structure: _Structure, tally: Tally) -> dict[str, Any]:
    one, entry = structure.entries[0]
    found = {**entry, "value": structure.value}
    for key in ("model", "engine"):
        if (held := entry.get(key) or one.document.get(key)) is not None:
            found[key] = held
    if len(structure.entries) > 1:
        found["algorithm"] = _joined_algorithm([held for _, held in structure.entries])
    return found | {
        "voxels": tally.voxels[structure.rank],
        "touches_first_slice": structure.rank in tally.first,
        "touches_last_slice": structure.rank in tally.last,
        "from": [{"role": home.role, "value": held["value"]} for home, held in structure.entries],
    }


def _joined_algorithm(entries: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one algorithm for a structure that several made: all their names, and the type that a part of them makes true."""
    found = [entry.get("algorithm") or {"type": "AUTOMATIC"} for entry in entries]
    types = {str(one.get("type")) for one in found}
    out: dict[str, Any] = {"type": types.pop() if len(types) == 1 else "SEMIAUTOMATIC"}
    for key in ("name", "version"):
        words = list(dict.fromkeys(str(one[key]) for one in found if one.get(key)))
        out[key] = " + ".join(words) or None
    return out


def _out_of_scope(documents: list[Mapping[str, Any]]) -> dict[str, Any] | None:
    found = [scope for document in documents if (scope := document.get("out_of_scope"))]
    if not found:
        return None
    return {
        "reason": "; ".join(dict.fromkeys(str(scope["reason"]) for scope in found)),
        "violations": [violation for scope in found for violation in scope["violations"]],
    }


def preload(params: Params) -> None:
    """Import what every case needs."""
    import mdcli.dicom.seg
    import mdcli.imaging.cropping
    import mdcli.imaging.merging

    assert mdcli.dicom.seg and mdcli.imaging.merging


STAGE = Stage(
    "merge-labels",
    Params,
    run,
    reads=("geometry",),
    writes=("labels", "segments"),
    version=1,
    also_reads=also_reads,
    reads_as=reads_as,
    preload=preload,
)
