"""The model card: what a network wants and gives, said without defaults wherever a wrong guess would give wrong labels.

`model.yaml` (`md.model/1`) becomes one frozen `Card`. Its keys are the fields of the dataclasses here; the same format as JSON
Schema is `mdcli/schemas/model.json`. A card is a download: it is read with the safe loader, its size is bounded, and no file that
it names may lie outside its folder.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from mdcli.dicom.plain_yaml import PlainYamlError, load_yaml
from mdcli.dicom.rules import Rule, parse
from mdcli.errors import ConfigError, UsageError
from mdcli.inference.steps_after import FillHoles, KeepLargest, MapLabels, RemoveSmall
from mdcli.inference.tasks.settings import Detection, Instances, detection_problem, instances_problem

SCHEMA = "md.model/1"
CARD_FILE = "model.yaml"
AS_ACQUIRED = "as-acquired"
FULL: Literal["full"] = "full"
Task = Literal["segmentation", "classification", "detection", "instances", "regression"]
MAP_TASKS = ("segmentation", "instances")
"""Tasks whose output has a score for every voxel."""
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
    "presentation_intent_type": "text",
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
    """Subtract the mean, divide by the standard deviation (population).

    Attributes:
        mean: a number, or None: that of the voxels that `over` says.
        std: likewise.
        over: `numbers`: mean and std are given. `volume`: all voxels. `nonzero`: those that are not 0; the others stay 0 (MONAI's
            NormalizeIntensity with nonzero). `mask`: those inside the box's region that is not 0 in any input, its holes filled;
            the others become 0 (nnU-Net's use_mask_for_norm).
    """

    mean: float | None
    std: float | None
    over: Literal["numbers", "volume", "nonzero", "mask"] = "numbers"

    @property
    def of_volume(self) -> bool:
        """Say whether the volume gives the numbers."""
        return self.over != "numbers"


@dataclass(frozen=True)
class ScaleVolume:
    """The volume's own lowest and highest value become those of `target`, or all is multiplied by 1 + `factor`.

    Source: MONAI's ScaleIntensity.
    """

    target: tuple[float, float] | None
    factor: float | None = None

    @property
    def of_volume(self) -> bool:
        """Say whether the volume gives the numbers."""
        return self.target is not None


@dataclass(frozen=True)
class Percentiles:
    """The values of two percentiles of the volume, 0 to 100, become those of `target`.

    Source: MONAI's ScaleIntensityRangePercentiles.
    """

    lower: float
    upper: float
    target: tuple[float, float]
    clip: bool = False

    of_volume: ClassVar[bool] = True


Step = Clip | Scale | Normalize | ScaleVolume | Percentiles


def of_volume(step: Step) -> bool:
    """Say whether a step takes its numbers from the volume, so that it matters whether padding counts."""
    return isinstance(step, (Normalize, ScaleVolume, Percentiles)) and step.of_volume


@dataclass(frozen=True)
class Crop:
    """Leave out what lies outside the box around a part of the volume, before resampling for nnU-Net, after it for MONAI.

    Attributes:
        above: the part is what has values above this (MONAI's CropForeground); None: what is not 0 in any input, its holes filled
            (nnU-Net).
        margin: voxels added at each side, within the volume.
    """

    above: float | None = None
    margin: int = 0


@dataclass(frozen=True)
class Input:
    """What the network wants.

    Attributes:
        axes: `C`, then `x`, `y`, `z` in the order of the network's array; two of them for a network that takes slices.
        orientation: three letters, where the index along x, y, z grows to (`RAS`: right, front, head); or `as-acquired`: x, y, z
            are the volume's own i, j, k.
        spacing: mm, in the order of `axes` without C; or `as-acquired`.
        unit: what the values mean; must equal the volume's.
        role: which artifact it is: `volume`, or `volume-NAME`.
        tensor: the network's input; not needed where it has one. Inputs of one tensor are its channels, in order.
        grayscale: which values: `modality`, after the `voi` window, or as shown (`presentation`: polarity too).
        padding: whether voxels with the padding value count in statistics; needed where the volume's statistics are used.
        intensity: what is done to the values once they are on the network's grid, in order.
        intensity_before: what is done to them before they are resampled.
        channels: numbers a voxel: 3 for red, green and blue.
        rule: of the grid's size and place. `corners`: the first voxel keeps its place, `round((n - 1) * in / out + 1)` voxels
            (MONAI's Spacing). `monai`: the same, but that a turned volume is placed by its middle, as MONAI does
            (`monai_grid`). `edges`: the outer edges keep theirs, `round(n * in / out)` voxels (nnU-Net).
        interpolation: how values between voxels are found.
        separate_z: with `cubic`: where the largest spacing is more than this times the smallest, its axis is resampled apart, by
            the nearest slice (nnU-Net: 3).
        crop: what is left out.
        resize: voxels in the order of `axes` without C, whatever the spacing.
        resize_mode: how `resize` finds values: `linear` (half-voxel centres), `area` (mean of what a voxel covers), `nearest`.
    """

    axes: tuple[str, ...]
    orientation: str
    spacing: tuple[float, ...] | Literal["as-acquired"]
    unit: str
    role: str = "volume"
    tensor: str | None = None
    grayscale: Literal["modality", "voi", "presentation"] = "modality"
    padding: Literal["include", "exclude"] | None = None
    intensity: tuple[Step, ...] = ()
    intensity_before: tuple[Step, ...] = ()
    channels: Literal[1, 3] = 1
    rule: Literal["corners", "edges", "monai"] = "corners"
    interpolation: Literal["linear", "cubic", "nearest"] = "linear"
    separate_z: float | None = None
    crop: Crop | None = None
    resize: tuple[int, ...] | None = None
    resize_mode: Literal["linear", "area", "nearest"] = "linear"


After = KeepLargest | RemoveSmall | FillHoles | MapLabels


@dataclass(frozen=True)
class Output:
    """What the network gives.

    Attributes:
        axes: `C`, then `x`, `y`, `z` in the order of the array; `C` alone for one number a class.
        activation: what turns the array into probabilities. With `sigmoid` channel c is label c + 1, else channel c is label c and
            channel 0 is the background; a classification has no background: channel c is label c + 1.
        inversion: `scores`: interpolate what the activation makes to the source grid, then take the highest; `logits`: interpolate
            what the network gives, then activate (nnU-Net); `labels`: take the highest, then the nearest. Needed for maps.
        tensor: the network's output; not needed where it has one.
        name: of one of several outputs; its artifacts are called so.
        task: the card's, if it is not said.
        labels: the card's, if they are not said.
        form: of a segmentation: `labels`: a voxel has one label. `masks`: structures may overlap, each is where its own score
            reaches `threshold`. `regions`: as masks, then each in the order of `regions_order` is written over the ones before
            (nnU-Net's regions).
        threshold: probability from which a voxel belongs to a structure.
        thresholds: of a classification by sigmoid: of each label, in order, instead of `threshold`.
        regions_order: label values that the channels write, in the order of the channels.
        after: what is done to the label map, on the source grid, in order.
        over: of a classification: of the whole `volume`, or of each of its `slices`.
        vote: how slices decide together.
        detection: how boxes are found.
        instances: how single objects are told apart.
        unit: of a regression.
        scale: of a regression: value * scale + offset.
        offset: see `scale`.
        within: of a regression: the lowest and the highest number that make sense, in the unit.
        outside: what becomes of others: they are refused, or set to the nearer end.
    """

    axes: tuple[str, ...] = ()
    activation: Literal["none", "softmax", "sigmoid"] | None = None
    inversion: Literal["scores", "logits", "labels"] | None = None
    tensor: str | None = None
    name: str | None = None
    task: Task | None = None
    labels: tuple[Label, ...] = ()
    form: Literal["labels", "masks", "regions"] = "labels"
    threshold: float = 0.5
    thresholds: tuple[float, ...] = ()
    regions_order: tuple[int, ...] = ()
    after: tuple[After, ...] = ()
    over: Literal["volume", "slices"] = "volume"
    vote: Literal["mean", "max", "majority"] | None = None
    detection: Detection | None = None
    instances: Instances | None = None
    unit: Code | None = None
    scale: float = 1.0
    offset: float = 0.0
    within: tuple[float, float] | None = None
    outside: Literal["refuse", "clamp"] = "refuse"

    @property
    def background(self) -> bool:
        """Say whether channel 0 is the background and no label."""
        return self.activation != "sigmoid" and self.form == "labels" and self.task in (None, *MAP_TASKS)

    @property
    def multilabel(self) -> bool:
        """Say whether labels of a classification do not exclude each other."""
        return self.activation == "sigmoid" or self.form == "masks"

    @property
    def channels(self) -> int:
        """Return how many channels the array has."""
        return len(self.labels) + self.background


@dataclass(frozen=True)
class Window:
    """How the volume is cut for the network.

    Attributes:
        size: voxels in the order of the input's axes without C; `full` is the whole axis.
        overlap: the part of a window that the next one covers again, at least 0 and under 1.
        halo: instead of an overlap: voxels at each side that are computed and thrown away. Exact where the halo is as wide as the
            network sees.
        blending: how overlapping windows are weighted; needed with `overlap`. `gaussian` is MONAI's, whose middle lies between the
            two voxels in the middle of an even window; `gaussian-nnunet` is nnU-Net's, whose middle is the second of them.
        padding_value: what lies outside a volume that is smaller than the window, after the intensity steps.
        padding_mode: `constant`: that value lies there; `edge`: the volume's own edge goes on.
        step: how windows lie: `fixed` (MONAI: every step but the last is alike) or `even` (nnU-Net: spread evenly).
        skip_below: on request: a window whose values (after the intensity steps) are all below this is not run, its score is that
            of the background.
    """

    size: tuple[int | Literal["full"], ...]
    overlap: float | None = None
    halo: tuple[int, ...] | None = None
    blending: Literal["gaussian", "constant", "gaussian-nnunet"] | None = None
    padding_value: float = 0.0
    padding_mode: Literal["constant", "edge"] = "constant"
    step: Literal["fixed", "even"] = "fixed"
    skip_below: float | None = None


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
class Architecture:
    """The network that a file of weights alone belongs to: a dotted name, and what it is made with. For `.pt` and safetensors."""

    target: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)


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
    task: Task
    inputs: tuple[Input, ...]
    labels: tuple[Label, ...]
    empty: Literal["valid", "error"]
    network: str | None = None
    networks: tuple[str, ...] = ()
    ensemble: Literal["mean", "vote"] | None = None
    output: Output | None = None
    outputs: tuple[Output, ...] = ()
    window: Window | None = None
    mirror: tuple[Literal["x", "y", "z"], ...] = ()
    engine: str | None = None
    architecture: Architecture | None = None
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
        """Return the first input: all others lie on its grid."""
        return self.inputs[0]

    @property
    def first_output(self) -> Output:
        """Return the first output."""
        return self.outputs[0]

    @property
    def cut(self) -> Window:
        """Return how the volume is cut; without a window it is not."""
        axes = len(self.input.axes) - 1
        return self.window or Window(size=(FULL,) * axes, overlap=0.0, blending="constant")


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
    return completed(card, name)


def completed(card: Card, name: str = CARD_FILE) -> Card:
    """Return a card with what it leaves to be understood: `networks` and `outputs`, and each output's task and labels.

    Raises:
        ConfigError: `bad-card` where what is well formed makes no sense.
    """
    if (card.network is None) == (not card.networks):
        _bad(name, "network or networks is wanted, one of the two")
    if (card.output is None) == (not card.outputs):
        _bad(name, "output or outputs is wanted, one of the two")
    said = card.outputs or (card.output,)
    outputs = tuple(
        dataclasses.replace(output, task=output.task or card.task, labels=output.labels or card.labels)
        for output in said
        if output is not None
    )
    card = dataclasses.replace(
        card, networks=card.networks or (str(card.network),), network=None, outputs=outputs, output=None
    )
    _check(card, name)
    return card


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
    if hint == Step:
        return _step(value, place)
    if hint == After:
        return _after(value, place)
    if hint == Mapping[str, Bound | Where]:
        return _bounds(value, place)
    if hint == Mapping[str, Any]:
        return _mapping(value, place)
    if hint == Mapping[int, int]:
        return _label_mapping(value, place)
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
    if hint is bool:
        if not isinstance(value, bool):
            _bad(place, f"{_shown(value)} where true or false is wanted")
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


def _one_key(value: Any, known: Mapping[str, Any], place: str) -> tuple[str, Any]:
    """Return the key and the value of a mapping of one."""
    mapping = _mapping(value, place)
    _refuse_unknown(mapping, known, place)
    if len(mapping) != 1:
        _bad(place, f"{len(mapping)} keys where one step is wanted", f"one of {', '.join(known)}")
    return next(iter(mapping.items()))


def _keys(said: Any, wanted: Sequence[str], optional: Sequence[str], place: str) -> dict[str, Any]:
    mapping = _mapping(said, place)
    _refuse_unknown(mapping, dict.fromkeys((*wanted, *optional)), place)
    if missing := [key for key in wanted if key not in mapping]:
        _bad(place, f"{' and '.join(missing)} missing")
    return mapping


def _step(value: Any, place: str) -> Step:
    """Return an intensity step: a mapping of one key."""
    steps = {"clip": _clip, "scale": _scale, "normalize": _normalize, "percentiles": _percentiles}
    name, said = _one_key(value, steps, place)
    return steps[name](said, f"{place}: {name}")


_PAIR = tuple[float, float]


def _clip(said: Any, place: str) -> Step:
    low, high = _convert(_PAIR, said, place)
    if low >= high:
        _bad(place, f"{low:g} is not below {high:g}")
    return Clip(low, high)


def _scale(said: Any, place: str) -> Step:
    if isinstance(said, dict) and "factor" in said:
        return ScaleVolume(None, _convert(float, _keys(said, ("factor",), (), place)["factor"], f"{place}: factor"))
    said = _keys(said, ("from", "to"), (), place)
    target = _convert(_PAIR, said["to"], f"{place}: to")
    if said["from"] == "volume":
        return ScaleVolume(target)
    source = _convert(_PAIR, said["from"], f"{place}: from")
    if source[0] == source[1]:
        _bad(place, f"from is {source[0]:g} twice")
    return Scale(source, target)


def _normalize(said: Any, place: str) -> Step:
    if said in ("volume", "nonzero", "mask"):
        return Normalize(None, None, said)
    said = _keys(said, ("mean", "std"), (), place)
    mean, std = (_convert(float, said[key], f"{place}: {key}") for key in ("mean", "std"))
    if std <= 0:
        _bad(place, f"std is {std:g}, not above 0")
    return Normalize(mean, std)


def _percentiles(said: Any, place: str) -> Step:
    said = _keys(said, ("lower", "upper", "to"), ("clip",), place)
    lower, upper = (_convert(float, said[key], f"{place}: {key}") for key in ("lower", "upper"))
    if not 0 <= lower < upper <= 100:
        _bad(place, f"{lower:g} and {upper:g} where 0 <= lower < upper <= 100 is wanted")
    clip = _convert(bool, said.get("clip", False), f"{place}: clip")
    return Percentiles(lower, upper, _convert(_PAIR, said["to"], f"{place}: to"), clip)


def _after(value: Any, place: str) -> After:
    """Return a step on the label map: a mapping of one key."""
    steps = {"keep_largest": KeepLargest, "remove_small": RemoveSmall, "fill_holes": FillHoles, "map": MapLabels}
    name, said = _one_key(value, steps, place)
    place = f"{place}: {name}"
    if name == "map":
        return MapLabels(_label_mapping(said, place))
    step: After = _build(steps[name], {} if said is None else said, place)
    if isinstance(step, RemoveSmall) and step.mm3 <= 0:
        _bad(place, f"mm3 is {step.mm3:g}, not above 0")
    return step


def _label_mapping(value: Any, place: str) -> dict[int, int]:
    if not isinstance(value, dict) or not value:
        _bad(place, f"{_shown(value)} where old values with new ones are wanted, such as {{2: 1}}")
    return {_convert(int, old, place): _convert(int, new, place) for old, new in value.items()}


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
    if not card.inputs:
        _bad(f"{place}: inputs", "there is none")
    for n, network in enumerate(card.networks):
        where = f"{place}: network" if len(card.networks) == 1 else f"{place}: networks[{n}]"
        served = "://" in network
        if served and not re.match(r"triton(s|\+grpc|\+grpcs)?://", network):
            _bad(where, f"{network!r} is neither a file in the card's folder nor triton://host:port/model")
        if not served and Path(network).is_absolute():
            _bad(where, f"{network!r} is not a file in the card's folder")
    if (len(card.networks) > 1) != (card.ensemble is not None):
        _bad(f"{place}: ensemble", "mean or vote is wanted with networks, and only there")
    if card.ensemble == "vote" and any(output.task not in MAP_TASKS for output in card.outputs):
        _bad(f"{place}: ensemble", "vote is for maps", "mean")
    if card.ensemble and any(output.detection for output in card.outputs):
        _bad(f"{place}: ensemble", "boxes of several networks can't be averaged")
    if card.mirror and any(output.detection or output.instances for output in card.outputs):
        _bad(f"{place}: mirror", "boxes and offsets of a mirrored run can't be averaged")
    for n, said in enumerate(card.inputs):
        _check_input(said, f"{place}: inputs[{n}]")
        for key in (
            "axes",
            "orientation",
            "spacing",
            "rule",
            "interpolation",
            "separate_z",
            "crop",
            "resize",
            "resize_mode",
        ):
            if getattr(said, key) != getattr(card.input, key):
                _bad(
                    f"{place}: inputs[{n}]: {key}",
                    f"{getattr(said, key)}, that of the first is {getattr(card.input, key)}",
                )
    if len({said.role for said in card.inputs}) < len(card.inputs):
        _bad(f"{place}: inputs", "a role is there twice", "volume, volume-t2 ...")
    _check_window(card.cut, f"{place}: window", len(card.input.axes) - 1)
    for n, output in enumerate(card.outputs):
        _check_output(card, output, f"{place}: " + ("output" if len(card.outputs) == 1 else f"outputs[{n}]"))
    names = [output.name for output in card.outputs]
    if len(names) > 1 and (len(set(names)) < len(names) or None in names):
        _bad(f"{place}: outputs", "each needs a name of its own", "its artifacts are called so")
    if set(card.mirror) - set(card.input.axes):
        _bad(f"{place}: mirror", f"[{', '.join(card.mirror)}] of a network without such an axis")
    _check_labels(card.labels, place)


def _check_labels(labels: tuple[Label, ...], place: str) -> None:
    values = [label.value for label in labels]
    if not values or values != list(range(1, len(values) + 1)):
        _bad(
            f"{place}: labels", f"values {_shown(values)} where 1, 2, 3 ... is wanted: the network's channels in order"
        )
    if len(values) > MAX_LABELS:
        _bad(f"{place}: labels", f"{len(values)} labels, over {MAX_LABELS}")
    names = Counter(label.name for label in labels)
    for label in labels:
        if not label.name or names[label.name] > 1:
            _bad(f"{place}: labels", f"name {label.name!r} is {'empty' if not label.name else 'there twice'}")
        if label.colour and not all(0 <= part <= 255 for part in label.colour):
            _bad(f"{place}: labels", f"colour {list(label.colour)} of {label.name} is not in 0 to 255")


def _check_axes(axes: tuple[str, ...], place: str, spatial: Sequence[str] | None = None) -> None:
    wanted = (["x", "y", "z"],) if spatial is None else (sorted(spatial),)
    two = [["x", "y"], ["x", "z"], ["y", "z"]] if spatial is None else []
    if not axes or axes[0] != "C" or sorted(axes[1:]) not in (*wanted, *two):
        named = "x, y and z, or two of them," if spatial is None else " and ".join(sorted(spatial))
        _bad(place, f"[{', '.join(axes)}] where [C, ...] with {named} in the network's order is wanted")


def _check_output(card: Card, output: Output, place: str) -> None:
    if output.name is not None and not re.fullmatch(r"[a-z0-9_]+", output.name):
        _bad(f"{place}: name", f"{output.name!r} is not made of a to z, 0 to 9 and _")
    _check_labels(output.labels, place)
    is_map = output.task in MAP_TASKS
    if output.task != "detection" and (missing := [n for n in ("axes", "activation") if not getattr(output, n)]):
        _bad(place, f"{', '.join(missing)} missing, which {'has' if len(missing) == 1 else 'have'} no default")
    if is_map:
        _check_axes(output.axes, f"{place}: axes", card.input.axes[1:])
        if output.inversion is None:
            _bad(place, "inversion missing, which has no default for maps", "scores or labels")
        if card.window is None:
            _bad(place.split(":")[0], "window missing, which has no default for maps")
        if output.form != "labels" and output.activation == "softmax":
            _bad(f"{place}: form", f"{output.form} with softmax, whose channels exclude each other")
        if output.form != "labels" and output.inversion == "labels":
            _bad(
                f"{place}: inversion",
                f"labels with form {output.form}: structures may overlap, there is no highest one",
            )
    elif output.task != "detection" and output.axes != ("C",):
        _bad(f"{place}: axes", f"[{', '.join(output.axes)}] where [C] is wanted: one number a class")
    if output.task == "detection" and output.detection is None:
        _bad(place, "detection missing, which has no default for the task detection: how boxes are read")
    if output.task != "detection" and output.detection is not None:
        _bad(f"{place}: detection", f"with the task {output.task}")
    if output.task == "instances" and output.instances is None:
        _bad(f"{place}: instances", "missing, which has no default: how objects are told apart")
    if output.instances is not None and output.task != "instances":
        _bad(f"{place}: instances", f"with the task {output.task}")
    problem = detection_problem(output.detection, card.input.axes) if output.detection else None
    problem = problem or (instances_problem(output.instances, card.input.axes) if output.instances else None)
    if problem:
        _bad(f"{place}: {'detection' if output.detection else 'instances'}", problem)
    if (output.form == "regions") != bool(output.regions_order):
        _bad(f"{place}: regions_order", "is wanted with form: regions, and only there")
    if output.regions_order and len(output.regions_order) != len(output.labels):
        _bad(f"{place}: regions_order", f"{len(output.regions_order)} values for {len(output.labels)} labels")
    if not 0 < output.threshold < 1:
        _bad(f"{place}: threshold", f"{output.threshold:g} is not between 0 and 1")
    if output.thresholds and (output.task != "classification" or not output.multilabel):
        _bad(f"{place}: thresholds", "are for a classification by sigmoid, or of form: masks")
    if (output.task == "regression") != (output.unit is not None):
        _bad(f"{place}: unit", "a code is wanted for a regression, and only there")
    if output.within is not None and output.within[0] >= output.within[1]:
        _bad(f"{place}: within", f"{output.within[0]:g} is not below {output.within[1]:g}")
    if output.thresholds and len(output.thresholds) != len(output.labels):
        _bad(f"{place}: thresholds", f"{len(output.thresholds)} for {len(output.labels)} labels")
    if output.thresholds and not all(0 < value < 1 for value in output.thresholds):
        _bad(f"{place}: thresholds", f"{list(output.thresholds)}, not all between 0 and 1")
    if (output.over == "slices") != (output.vote is not None):
        _bad(f"{place}: vote", "mean, max or majority is wanted with over: slices, and only there")
    if output.over == "slices" and (output.task not in ("classification", "regression") or len(card.input.axes) != 3):
        _bad(f"{place}: over", "slices is for a classification or a regression by a network that takes slices")
    if output.task == "regression" and output.vote == "majority":
        _bad(f"{place}: vote", "majority of numbers", "mean or max")


def _check_input(said: Input, place: str) -> None:
    _check_axes(said.axes, f"{place}: axes")
    if not re.fullmatch(r"volume(-[a-z0-9_]+)?", said.role):
        _bad(f"{place}: role", f"{said.role!r} where volume or volume-NAME is wanted")
    count = len(said.axes) - 1
    letters = said.orientation
    pairs = {"R": "x", "L": "x", "A": "y", "P": "y", "S": "z", "I": "z"}
    if letters != AS_ACQUIRED and sorted(pairs.get(letter, letter) for letter in letters) != ["x", "y", "z"]:
        _bad(
            f"{place}: orientation",
            f"{letters!r} where {AS_ACQUIRED} or one each of R/L, A/P, S/I is wanted, such as RAS",
        )
    for name, numbers in (("spacing", said.spacing), ("resize", said.resize)):
        if numbers is None or isinstance(numbers, str):
            continue
        if len(numbers) != count:
            _bad(f"{place}: {name}", f"{len(numbers)} numbers for {count} axes")
        if min(numbers) <= 0:
            _bad(f"{place}: {name}", f"{list(numbers)}, not all above 0")
    if said.separate_z is not None and (said.interpolation != "cubic" or said.separate_z <= 1):
        _bad(f"{place}: separate_z", f"{said.separate_z:g} where a number above 1 is wanted, with interpolation: cubic")
    if said.crop is not None and said.crop.margin < 0:
        _bad(f"{place}: crop: margin", f"{said.crop.margin} is below 0")
    steps = [step for step in (*said.intensity_before, *said.intensity) if of_volume(step)]
    if steps and said.padding is None:
        _bad(
            place, "padding missing, which has no default where the volume's statistics are used", "include or exclude"
        )


def _check_window(window: Window, place: str, count: int) -> None:
    if len(window.size) != count or (window.halo is not None and len(window.halo) != count):
        _bad(f"{place}: size", f"{len(window.size)} numbers for {count} axes")
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
        if window.blending not in (None, "constant"):
            _bad(f"{place}: blending", f"{window.blending}, but with a halo nothing overlaps")
        for size, halo in zip(window.size, window.halo, strict=True):
            if halo < 0 or (isinstance(size, int) and size <= 2 * halo):
                _bad(f"{place}: halo", f"{halo} leaves nothing of a window of {size}")
