"""The model card: what a network wants and gives, said without defaults wherever a wrong guess would give wrong labels.

`model.yaml` (`md.model/1`) becomes one frozen `Card`. Its keys are the fields of the dataclasses here; the same format as JSON
Schema is `mdcli/schemas/model.json`. A card is a download: it is read with the safe loader, its size is bounded, and no file that
it names may lie outside its folder.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from mdcli.dicom.plain_yaml import PlainYamlError, load_yaml
from mdcli.dicom.rules import Rule, parse
from mdcli.errors import ConfigError, MissingError, UsageError
from mdcli.inference.onnxfile import external_files

SCHEMA = "md.model/1"
CARD_FILE = "model.yaml"
AS_ACQUIRED = "as-acquired"
MAX_CARD_BYTES = 1 << 20
MAX_LABELS = 65535

# What `accepts` may ask for, and whether it is a number, or a text that equals one of the card's (ignoring case).
ATTRIBUTES: Mapping[str, Literal["number", "text"]] = {
    "modality": "text",
    "body_part_examined": "text",
    "orientation": "text",
    "obliquity_deg": "number",
    "spacing_mm": "number",
    "slice_count": "number",
    "coverage_mm": "number",
    "slice_thickness": "number",
    "contrast_bolus_agent": "text",
    "image_type": "text",
    "patient_position": "text",
    "patient_age": "number",
    "patient_sex": "text",
    "view_position": "text",
}
WHERE = "where"
"""The key of `accepts` that takes an expression."""


@dataclass(frozen=True)
class Code:
    """A coded term: value, coding scheme designator, meaning."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True)
class Label:
    """One structure: the label value that stands for it, its name and its codes."""

    value: int
    name: str
    category: Code
    type: Code
    colour: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Clip:
    """Values below `low` become `low`, those above `high` become `high`."""

    low: float
    high: float


@dataclass(frozen=True)
class Scale:
    """A straight line that takes `source` to `target`; values outside go on along the line."""

    source: tuple[float, float]
    target: tuple[float, float]


@dataclass(frozen=True)
class Normalize:
    """Subtract the mean, divide by the standard deviation; both None: those of the volume (population)."""

    mean: float | None
    std: float | None

    @property
    def of_volume(self) -> bool:
        """Say whether the volume gives the numbers."""
        return self.mean is None


Step = Clip | Scale | Normalize


@dataclass(frozen=True)
class Input:
    """What the network wants.

    Attributes:
        axes: `C`, then `x`, `y`, `z` in the order of the network's array.
        orientation: three letters, where the index along x, y, z grows to (`RAS`: right, front, head); or `as-acquired`: x, y, z
            are the volume's own i, j, k.
        spacing: mm, in the order of `axes` without C; or `as-acquired`.
        unit: what the values mean; must equal the volume's.
        role: which artifact it is.
        tensor: the network's input; not needed where it has one.
        grayscale: which values: `modality`.
        padding: whether voxels with the padding value count in statistics; needed where the volume's statistics are used.
        intensity: what is done to the values, in order.
    """

    axes: tuple[str, str, str, str]
    orientation: str
    spacing: tuple[float, float, float] | Literal["as-acquired"]
    unit: str
    role: Literal["volume"] = "volume"
    tensor: str | None = None
    grayscale: Literal["modality"] = "modality"
    padding: Literal["include", "exclude"] | None = None
    intensity: tuple[Step, ...] = ()


@dataclass(frozen=True)
class Output:
    """What the network gives.

    Attributes:
        axes: `C`, then `x`, `y`, `z` in the order of the array.
        activation: what turns the array into probabilities. With `sigmoid` channel c is label c + 1, else channel c is label c and
            channel 0 is the background.
        inversion: `scores`: interpolate the scores to the source grid, then take the highest; `labels`: take the highest, then the
            nearest.
        tensor: the network's output; not needed where it has one.
    """

    axes: tuple[str, str, str, str]
    activation: Literal["none", "softmax", "sigmoid"]
    inversion: Literal["scores", "labels"]
    tensor: str | None = None


@dataclass(frozen=True)
class Window:
    """How the volume is cut for the network.

    Attributes:
        size: voxels in the order of the input's axes without C; `full` is the whole axis.
        overlap: the part of a window that the next one covers again, at least 0 and under 1.
        halo: instead of an overlap: voxels at each side that are computed and thrown away. Exact where the halo is as wide as the
            network sees.
        blending: how overlapping windows are weighted; needed with `overlap`.
        padding_value: what lies outside a volume that is smaller than the window, after the intensity steps.
    """

    size: tuple[int | Literal["full"], int | Literal["full"], int | Literal["full"]]
    overlap: float | None = None
    halo: tuple[int, int, int] | None = None
    blending: Literal["gaussian", "constant"] | None = None
    padding_value: float = 0.0


@dataclass(frozen=True)
class Bound:
    """What `accepts` says about one attribute: between two numbers, or one of these."""

    low: float | None = None
    high: float | None = None
    one_of: tuple[str | float, ...] = ()

    def __str__(self) -> str:
        if self.one_of:
            return " or ".join(f"{item:g}" if isinstance(item, float) else item for item in self.one_of)
        parts = [f"at least {self.low:g}"] if self.low is not None else []
        return " and ".join(parts + ([f"at most {self.high:g}"] if self.high is not None else []))


@dataclass(frozen=True)
class Where:
    """What `accepts` says in the selection grammar (`mdcli.dicom.rules`): every image must fit."""

    rule: Rule

    def __str__(self) -> str:
        return str(self.rule)


@dataclass(frozen=True)
class Resources:
    """What one inference needs."""

    memory_mib: int | None = None
    gpu_memory_mib: int | None = None


@dataclass(frozen=True)
class Card:
    """One model."""

    schema: Literal["md.model/1"]
    name: str
    version: str
    network: str
    task: Literal["segmentation"]
    inputs: tuple[Input, ...]
    output: Output
    window: Window
    labels: tuple[Label, ...]
    empty: Literal["valid", "error"]
    description: str = ""
    accepts: Mapping[str, Bound | Where] = dataclasses.field(default_factory=dict)
    resources: Resources = Resources()
    regulatory: str = "Research use only, not reviewed."
    series_description_prefix: str = "AI "
    licence: str = ""
    source: str = ""
    intended_use: str = ""

    @property
    def input(self) -> Input:
        """Return the one input."""
        return self.inputs[0]

    @property
    def channels(self) -> int:
        """Return how many channels the network's output has."""
        return len(self.labels) + (self.output.activation != "sigmoid")


@dataclass(frozen=True)
class ModelFolder:
    """A model on disk.

    Attributes:
        card: what `model.yaml` says.
        network: the network's file.
        sha256: of the lines `<sha256>  <name>` (as `sha256sum` prints them) of the card, the network and the files that hold the
            network's weights, sorted by name.
    """

    card: Card
    network: Path
    sha256: str


def _bad(place: str, message: str, hint: str | None = None) -> NoReturn:
    raise ConfigError("bad-card", f"{place}: {message}", hint=hint)


@lru_cache(maxsize=8)
def read_card(text: str, name: str = CARD_FILE) -> Card:
    """Return the card that a `model.yaml` says.

    Args:
        text: YAML.
        name: the file's name, for messages.

    Raises:
        ConfigError: `bad-card`: the key at fault, what it says, and for an unknown key the near one.
    """
    if len(text) > MAX_CARD_BYTES:
        _bad(name, f"the card has {len(text)} characters, over {MAX_CARD_BYTES}")
    document = _load_yaml(text, name)
    if isinstance(document, dict) and document.get("schema") != SCHEMA:
        _bad(name, f"schema is {document.get('schema')!r}, not {SCHEMA!r}")
    card: Card = _build(Card, document, name)
    _check(card, name)
    return card


def find_model(name_or_path: str, folders: Sequence[Path], *, onnx: bool = True) -> ModelFolder:
    """Return a model by its name or its path.

    Args:
        name_or_path: a name is looked up in `folders`; a path is a folder with `model.yaml`, that file, or a network beside it.
        folders: each holds models as `NAME/model.yaml`; the first that has the name wins.
        onnx: the network must be ONNX whatever its file is called; False: one that is not may be another engine's, unless it is
            called `*.onnx`.

    Raises:
        MissingError: `no-model`; `no-network` where the card's network is not there.
        ConfigError: `bad-card`; `outside-folder` where the network or its weights lie elsewhere; `bad-network`.
    """
    is_name = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name_or_path) is not None
    named = [folder / name_or_path for folder in folders if is_name and (folder / name_or_path / CARD_FILE).is_file()]
    path = named[0] if named else Path(name_or_path)
    is_card = path.is_file() and path.suffix in (".yaml", ".yml")
    card_path = path if is_card else (path.parent if path.is_file() else path) / CARD_FILE
    if not card_path.is_file():
        if path.exists():
            raise MissingError(
                "no-model", f"there is no {CARD_FILE} for {path.name}", hint="md schema model says what is in one"
            )
        near = difflib.get_close_matches(name_or_path, _names(folders), 1) if is_name else []
        hint = f"did you mean {near[0]}?" if near else "md models lists the names; a path works too"
        raise MissingError("no-model", f"there is no model {name_or_path!r}", hint=hint)
    with card_path.open("rb") as file:
        content = file.read(MAX_CARD_BYTES + 1)
    try:
        card = read_card(content.decode("utf-8"), f"{card_path.parent.name}/{card_path.name}")
    except UnicodeDecodeError as error:
        _bad(card_path.name, f"not UTF-8: {error.reason} at byte {error.start}")
    if path.is_file() and path != card_path and path.name != Path(card.network).name:
        _bad(card_path.name, f"network is {card.network!r}, not {path.name!r}")
    folder = card_path.parent
    network = _inside(folder, card.network, card_path.name)
    files = [card_path, network]
    try:
        weights = sorted(external_files(network))
    except ConfigError:
        if onnx or network.suffix == ".onnx":
            raise
        weights = []
    # The locations are relative to the network's own folder (onnx.proto, TensorProto.external_data).
    files += [_inside(network.parent, name, network.name, folder) for name in weights]
    lines = sorted((file.resolve().relative_to(folder.resolve()).as_posix(), _sha256(file)) for file in files)
    digest = hashlib.sha256("".join(f"{sha256}  {name}\n" for name, sha256 in lines).encode())
    return ModelFolder(card, network, digest.hexdigest())


def _names(folders: Sequence[Path]) -> list[str]:
    return [path.parent.name for folder in folders if folder.is_dir() for path in folder.glob(f"*/{CARD_FILE}")]


def _inside(folder: Path, name: str, said_by: str, root: Path | None = None) -> Path:
    path = folder / name
    if not path.resolve().is_relative_to((root or folder).resolve()):
        raise ConfigError("outside-folder", f"{said_by} names {name!r}, which is outside the model's folder")
    if not path.is_file():
        raise MissingError("no-network", f"{said_by} names {name!r}, which is not there")
    return path


_digests: dict[tuple[str, int, int, int], str] = {}


def _sha256(path: Path) -> str:
    """Return a file's SHA-256; within one process, a file whose stat is as before is not read again."""
    stat = path.stat()
    key = (str(path.resolve()), stat.st_ino, stat.st_size, stat.st_mtime_ns)
    if key not in _digests:
        with path.open("rb") as file:
            _digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _digests[key]


def _load_yaml(text: str, name: str) -> Any:
    try:
        return load_yaml(text)
    except PlainYamlError as error:
        _bad(name, str(error))


def _build(kind: type, value: Any, place: str) -> Any:
    """Return a dataclass made of a mapping, every value checked against the field's type."""
    mapping = _mapping(value, place)
    hints = get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    _refuse_unknown(mapping, fields, place)
    missing = [
        name
        for name, field in fields.items()
        if name not in mapping and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        _bad(place, f"{', '.join(missing)} missing, which {'has' if len(missing) == 1 else 'have'} no default")
    return kind(**{name: _convert(hints[name], item, f"{place}: {name}") for name, item in mapping.items()})


def _mapping(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        _bad(place, f"{_shown(value)} where keys with values are wanted")
    return value


def _refuse_unknown(mapping: Mapping[str, Any], known: Mapping[str, Any], place: str) -> None:
    for key in mapping:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            _bad(place, f"unknown key {key!r}", f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _convert(hint: Any, value: Any, place: str) -> Any:
    """Return a value of a field's type.

    Raises:
        ConfigError: `bad-card`.
    """
    origin, options = get_origin(hint), get_args(hint)
    if hint is Step:
        return _step(value, place)
    if hint == Mapping[str, Bound | Where]:
        return _bounds(value, place)
    if origin in (Union, UnionType):
        return _convert_union(options, value, place)
    if origin is Literal:
        if value not in options:
            _bad(place, f"{_shown(value)} where {' or '.join(map(str, options))} is wanted")
        return value
    if origin is tuple:
        kinds = options[:1] * len(value) if options[-1] is Ellipsis and isinstance(value, list) else options
        if not isinstance(value, list) or len(value) != len(kinds):
            _bad(
                place, f"{_shown(value)} where a list{'' if options[-1] is Ellipsis else f' of {len(kinds)}'} is wanted"
            )
        return tuple(
            _convert(kind, item, f"{place}[{n}]") for n, (kind, item) in enumerate(zip(kinds, value, strict=True))
        )
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, place)  # type: ignore[arg-type]
    if hint is str:
        if not isinstance(value, str) or not value.isprintable():
            hint_text = f'put it in quotes: "{value}"' if isinstance(value, (int, float)) else None
            _bad(place, f"{_shown(value)} where one line of text is wanted", hint_text)
        return value
    number = int if hint is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, number) or not math.isfinite(value):
        _bad(place, f"{_shown(value)} where a {'whole ' if hint is int else ''}number is wanted")
    return hint(value)


def _convert_union(options: Sequence[Any], value: Any, place: str) -> Any:
    """Try each kind; the message is that of the last, with the words that would do as well."""
    if value is None and type(None) in options:
        return None
    words = [word for option in options if get_origin(option) is Literal for word in get_args(option)]
    if value in words if isinstance(value, str) else False:
        return value
    kinds = [option for option in options if option is not type(None) and get_origin(option) is not Literal]
    if not kinds or (words and isinstance(value, str)):
        _bad(place, f"{_shown(value)} where {' or '.join([*words, *(['numbers'] if kinds else [])])} is wanted")
    return _convert(kinds[0], value, place)


def _step(value: Any, place: str) -> Step:
    mapping = _mapping(value, place)
    known = {"clip": Clip, "scale": Scale, "normalize": Normalize}
    _refuse_unknown(mapping, known, place)
    if len(mapping) != 1:
        _bad(place, f"{len(mapping)} keys where one step is wanted", f"one of {', '.join(known)}")
    (name, said), place = next(iter(mapping.items())), f"{place}: {next(iter(mapping))}"
    pair = tuple[float, float]
    if name == "clip":
        low, high = _convert(pair, said, place)
        if low >= high:
            _bad(place, f"{low:g} is not below {high:g}")
        return Clip(low, high)
    if name == "normalize" and said == "volume":
        return Normalize(None, None)
    keys = ("from", "to") if name == "scale" else ("mean", "std")
    said = _mapping(said, place)
    _refuse_unknown(said, dict.fromkeys(keys), place)
    if missing := [key for key in keys if key not in said]:
        _bad(place, f"{' and '.join(missing)} missing")
    if name == "scale":
        scale = Scale(*(_convert(pair, said[key], f"{place}: {key}") for key in keys))
        if scale.source[0] == scale.source[1]:
            _bad(place, f"from is {scale.source[0]:g} twice")
        return scale
    normalize = Normalize(*(_convert(float, said[key], f"{place}: {key}") for key in keys))
    if normalize.std is not None and normalize.std <= 0:
        _bad(place, f"std is {normalize.std:g}, not above 0")
    return normalize


def _bounds(value: Any, place: str) -> dict[str, Bound | Where]:
    mapping = _mapping(value, place)
    _refuse_unknown(mapping, {**ATTRIBUTES, WHERE: "text"}, place)
    found: dict[str, Bound | Where] = {}
    for name, said in mapping.items():
        inside = f"{place}: {name}"
        found[name] = _where(said, inside) if name == WHERE else _bound(said, ATTRIBUTES[name], inside)
    return found


def _where(said: Any, place: str) -> Where:
    try:
        return Where(parse(_convert(str, said, place)))
    except UsageError as error:
        _bad(place, error.message, error.hint)


def _bound(said: Any, kind: str, place: str) -> Bound:
    if kind == "number" and isinstance(said, dict):
        known = {"min": None, "max": None}
        _refuse_unknown(said, known, place)
        if not said:
            _bad(place, "neither min nor max")
        limits = {key: _convert(float, number, f"{place}: {key}") for key, number in said.items()}
        return Bound(limits.get("min"), limits.get("max"))
    items = said if isinstance(said, list) else [said]
    if not items:
        _bad(place, "an empty list accepts nothing")
    return Bound(one_of=tuple(_convert(float if kind == "number" else str, item, place) for item in items))


def _check(card: Card, place: str) -> None:
    """Refuse what is well formed and makes no sense."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", card.name):
        _bad(f"{place}: name", f"{card.name!r} is not made of a to z, 0 to 9, '.', '_' and '-'")
    if len(card.inputs) != 1:
        _bad(f"{place}: inputs", f"{len(card.inputs)} inputs, where md can run one")
    if "://" in card.network or Path(card.network).is_absolute():
        _bad(f"{place}: network", f"{card.network!r} is not a file in the card's folder")
    _check_input(card.input, f"{place}: inputs[0]")
    _check_axes(card.output.axes, f"{place}: output: axes")
    _check_window(card.window, f"{place}: window")
    values = [label.value for label in card.labels]
    if not values or values != list(range(1, len(values) + 1)):
        _bad(
            f"{place}: labels", f"values {_shown(values)} where 1, 2, 3 ... is wanted: the network's channels in order"
        )
    if len(values) > MAX_LABELS:
        _bad(f"{place}: labels", f"{len(values)} labels, over {MAX_LABELS}")
    names = Counter(label.name for label in card.labels)
    for label in card.labels:
        if not label.name or names[label.name] > 1:
            _bad(f"{place}: labels", f"name {label.name!r} is {'empty' if not label.name else 'there twice'}")
        if label.colour and not all(0 <= part <= 255 for part in label.colour):
            _bad(f"{place}: labels", f"colour {list(label.colour)} of {label.name} is not in 0 to 255")


def _check_axes(axes: tuple[str, ...], place: str) -> None:
    if axes[0] != "C" or sorted(axes[1:]) != ["x", "y", "z"]:
        _bad(place, f"[{', '.join(axes)}] where [C, ...] with x, y and z in the network's order is wanted")


def _check_input(said: Input, place: str) -> None:
    _check_axes(said.axes, f"{place}: axes")
    letters = said.orientation
    pairs = {"R": "x", "L": "x", "A": "y", "P": "y", "S": "z", "I": "z"}
    if letters != AS_ACQUIRED and sorted(pairs.get(letter, letter) for letter in letters) != ["x", "y", "z"]:
        _bad(
            f"{place}: orientation",
            f"{letters!r} where {AS_ACQUIRED} or one each of R/L, A/P, S/I is wanted, such as RAS",
        )
    if not isinstance(said.spacing, str) and min(said.spacing) <= 0:
        _bad(f"{place}: spacing", f"{list(said.spacing)} mm, not all above 0")
    of_volume = [step for step in said.intensity if isinstance(step, Normalize) and step.of_volume]
    if len(of_volume) > 1:
        _bad(f"{place}: intensity", "normalize: volume is there twice")
    if of_volume and said.padding is None:
        _bad(
            place, "padding missing, which has no default where the volume's statistics are used", "include or exclude"
        )


def _check_window(window: Window, place: str) -> None:
    sizes = [size for size in window.size if isinstance(size, int)]
    if any(size < 1 for size in sizes):
        _bad(f"{place}: size", f"{list(window.size)}, not all above 0")
    if (window.overlap is None) == (window.halo is None):
        _bad(place, "overlap or halo is wanted, one of the two")
    if window.overlap is not None:
        if not 0 <= window.overlap < 1:
            _bad(f"{place}: overlap", f"{window.overlap:g} is not at least 0 and under 1")
        if window.blending is None:
            _bad(place, "blending missing, which has no default with overlap", "gaussian or constant")
    if window.halo is not None:
        if window.blending == "gaussian":
            _bad(f"{place}: blending", "gaussian, but with a halo nothing overlaps")
        for size, halo in zip(window.size, window.halo, strict=True):
            if halo < 0 or (isinstance(size, int) and size <= 2 * halo):
                _bad(f"{place}: halo", f"{halo} leaves nothing of a window of {size}")
