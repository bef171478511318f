"""Say in a card's words what MONAI's transforms and inferers ask for; what cannot be said is refused by name, never left out.

Arguments, defaults and meanings are those of MONAI 1.6 (monai/transforms, monai/inferers). Arrays of MONAI are (C, x, y, z), their
first axis of space being the first of the file: x, y, z here.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NoReturn, cast

from mdcli.errors import ConfigError
from mdcli.inference.card import Clip, Crop, Normalize, Percentiles, Scale, ScaleVolume, Step, Window, of_volume
from mdcli.inference.formats.bundle_config import Component
from mdcli.inference.formats.expressions import Lambda, Word, dotted, evaluate
from mdcli.inference.steps_after import Connectivity, KeepLargest

Notes = list[tuple[str, str]]

# Arguments that say which items of a dictionary are meant, or where the work is done.
_ASIDE = frozenset(
    [
        "keys",
        "allow_missing_keys",
        "meta_keys",
        "meta_key_postfix",
        "device",
        "track_meta",
        "wrap_sequence",
        "data_type",
    ]
)
_FLOATS = (None, "float32", "float64", "float", "double")
_PREFIX = "monai."


def refuse(key: str, name: str, why: str, hint: str | None = None) -> NoReturn:
    """Refuse a transform by name.

    Raises:
        ConfigError: `unsupported-transform`.
    """
    raise ConfigError("unsupported-transform", f"{key}: {name}: {why}", hint=hint)


def base_name(component: Component, known: Iterable[str]) -> str | None:
    """Return which of some transforms a component is, or None: `Resize` for `Resized`, `ResizeD`, `ResizeDict` too."""
    module, _, name = component.target.rpartition(".")
    if module and not f"{module}.".startswith(_PREFIX):
        return None
    names = set(known)
    return next((each for each in (name, *(name.removesuffix(s) for s in ("Dict", "D", "d"))) if each in names), None)


class Arguments:
    """A component's arguments, each checked for its kind; one that is not known is refused.

    Args:
        component: the component.
        known: its arguments with their defaults.
        ignored: arguments that change nothing here.
    """

    def __init__(self, component: Component, known: Mapping[str, Any], ignored: Iterable[str] = ()) -> None:
        self._component, self._known = component, known
        self.name = component.target.rpartition(".")[2]
        aside = _ASIDE.union(ignored)
        for name in component:
            if name not in known and name not in aside:
                self.refuse(f"argument {name!r} is not reproduced")

    def refuse(self, why: str, hint: str | None = None) -> NoReturn:
        """Refuse the transform."""
        refuse(self._component.key, self.name, why, hint)

    def __getitem__(self, name: str) -> Any:
        """Return an argument; where it is a list of one, for the one key, that one."""
        value = self._component.get(name, self._known[name])
        return value[0] if isinstance(value, list) and len(value) == 1 else value

    def flag(self, name: str) -> bool:
        """Return a truth value."""
        value = self[name]
        # Some bundles put it in quotes; Python takes any text as true, which is not what "False" was meant to say.
        if value in ("True", "true"):
            return True
        if not isinstance(value, (bool, int)):
            self.refuse(f"{name} is {_shown(value)}, not true or false")
        return bool(value)

    def number(self, name: str) -> float:
        """Return a finite number."""
        value = self[name]
        if not _is_number(value):
            self.refuse(f"{name} is {_shown(value)}, not a number")
        return float(value)

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        """Return so many finite numbers."""
        value = self._component.get(name, self._known[name])
        if not isinstance(value, (list, tuple)) or len(value) != count or not all(map(_is_number, value)):
            self.refuse(f"{name} is {_shown(value)}, where {count} numbers are wanted")
        return tuple(map(float, value))

    def whole(self, name: str) -> int:
        """Return a whole number."""
        value = self[name]
        if not isinstance(value, int) or isinstance(value, bool):
            self.refuse(f"{name} is {_shown(value)}, not a whole number")
        return value

    def only(self, name: str, *allowed: Any) -> Any:
        """Return an argument that may have only some values."""
        value = self[name]
        word = value.name if isinstance(value, Word) else value
        if not any(word is each or (word == each and type(word) is type(each)) for each in allowed):
            known = " or ".join(map(_shown, allowed))
            self.refuse(f"{name} is {_shown(word)}, and only {known} is reproduced")
        return word

    def floating(self, name: str = "dtype") -> None:
        """Refuse a type that would cut the numbers off."""
        self.only(name, *_FLOATS)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: Any) -> str:
    text = value.target if isinstance(value, Component) else str(value) if isinstance(value, Lambda) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def transforms_of(component: Component | None, key: str) -> list[Component]:
    """Return the transforms of a `Compose`, those within another one too; disabled ones left out.

    Raises:
        ConfigError: `unsupported-transform`.
    """
    if component is None:
        return []
    if not isinstance(component, Component):
        refuse(key, "transforms", f"{_shown(component)} where a Compose is wanted")
    if base_name(component, ("Compose",)) is None:
        return [component]
    said = Arguments(
        component,
        {"transforms": [], "lazy": False, "overrides": None, "unpack_items": False},
        ("map_items", "log_stats"),
    )
    for name in ("lazy", "unpack_items"):
        if said[name]:
            said.refuse(f"{name} is not reproduced")
    said.only("overrides", None)
    inner = component.get("transforms", [])
    if not isinstance(inner, (list, tuple)):
        inner = [inner]
    return [each for item in inner for each in transforms_of(item, component.key)]


# ---- before the network


@dataclass
class Preparation:
    """What is done to an image before the network.

    Attributes:
        channels: how many the image has.
        axes: the array's axes after C, in order.
        key: which item of a dictionary is the image; None until one is loaded.
        orientation: three letters; None: as it was acquired.
        spacing: mm, in the order of `axes`; None: as it was acquired.
        before: steps before resampling: one for all channels, or one for each.
        steps: those after it.
        crop: what is left out; `above` is meant of the values at its place.
        crop_place: how many steps stand before `crop`, and its key.
        resize: voxels in the order of `axes`.
        resize_mode: how `resize` finds values.
        interpolation: how `spacing` does.
        notes: what a person should know.
    """

    channels: int
    old_crop: bool = False
    axes: list[str] = field(default_factory=lambda: ["x", "y", "z"])
    key: str | None = None
    orientation: str | None = None
    spacing: tuple[float, ...] | None = None
    before: list[Step | tuple[Step, ...]] = field(default_factory=list)
    steps: list[Step | tuple[Step, ...]] = field(default_factory=list)
    crop: Crop | None = None
    crop_place: tuple[int, str] = (0, "")
    resize: tuple[int, ...] | None = None
    resize_mode: Literal["linear", "area", "nearest"] = "area"
    interpolation: Literal["linear", "nearest"] = "linear"
    notes: Notes = field(default_factory=list)

    @property
    def resampled(self) -> bool:
        """Say whether the network's voxels are others than the image's."""
        return self.spacing is not None or self.resize is not None

    def add(self, step: Step | tuple[Step, ...]) -> None:
        """Put a step where it stands among the others."""
        (self.steps if self.resampled or self.crop else self.before).append(step)

    def steps_of(self, channel: int) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
        """Return the steps of one channel before and after resampling."""
        before, after = (
            [step[channel] if isinstance(step, tuple) else step for step in steps]
            for steps in (self.before, self.steps)
        )
        # A straight line and interpolation may change places: the weights of an interpolation add up to 1.
        while before and (not self.resampled or _is_line(before[-1])):
            after.insert(0, before.pop())
        return tuple(before), tuple(after)

    @property
    def card_crop(self) -> Crop | None:
        """Return the crop as a card means it: by the values on the network's grid, before the steps that stand after resampling."""
        if self.crop is None or self.crop.above is None:
            return self.crop
        count, key = self.crop_place
        before, after = self.steps_of(0)
        passed = after[: count - len(before)]
        return replace(self.crop, above=_before_steps(self.crop.above, passed, key))


def _is_line(step: Step) -> bool:
    return isinstance(step, Scale) or not (isinstance(step, (Clip, Percentiles)) or of_volume(step))


def read_preparation(transforms: Sequence[Component], channels: int, *, old_crop: bool = False) -> Preparation:
    """Return what a bundle's transforms before the network ask for.

    Args:
        transforms: in order.
        channels: of the image.
        old_crop: CropForeground keeps within the image (MONAI before 1.5).

    Raises:
        ConfigError: `unsupported-transform`.
    """
    done = Preparation(channels, old_crop)
    for component in transforms:
        name = base_name(component, _BEFORE)
        if name is None:
            refuse(component.key, component.target, "this transform is not reproduced", _HINT)
        _check_keys(component, done)
        _BEFORE[name](component, done)
    return done


_HINT = "md export-model and a model.yaml run the same network, if the card can say what the bundle does"


def _check_keys(component: Component, done: Preparation) -> None:
    if "keys" not in component:
        return
    keys = component.get("keys")
    keys = keys if isinstance(keys, list) else [keys]
    if len(keys) != 1 or not isinstance(keys[0], str):
        refuse(component.key, component.target, f"keys are {_shown(keys)}, where one image is wanted")
    if done.key is None:
        done.key = keys[0]
    if keys[0] != done.key:
        refuse(component.key, component.target, f"works on {keys[0]!r}, where the image is {done.key!r}")


_READERS = ("NibabelReader", "ITKReader", "PydicomReader", "PILReader", "NrrdReader")


def _load(component: Component, done: Preparation) -> None:
    said = Arguments(
        component,
        {"reader": None, "dtype": "float32", "ensure_channel_first": False},
        ("image_only", "simple_keys", "prune_meta_pattern", "prune_meta_sep", "overwriting"),
    )
    reader = said["reader"]
    name = reader.rpartition(".")[2] if isinstance(reader, str) else reader
    if name is not None and name.lower() not in [each.lower() for each in _READERS]:
        said.refuse(f"reader is {_shown(reader)}, and only {', '.join(_READERS)} are reproduced")
    said.floating()


def _channel_first(component: Component, done: Preparation) -> None:
    # Where the channel was is not a question here: md's inputs say it.
    Arguments(component, {}, ("strict_check", "channel_dim"))


def _as_floats(component: Component, done: Preparation) -> None:
    default = "float32" if base_name(component, ("CastToType",)) else None
    Arguments(component, {"dtype": default}).floating()


def _orientation(component: Component, done: Preparation) -> None:
    said = Arguments(component, {"axcodes": None, "as_closest_canonical": False, "labels": None, "lazy": False})
    letters = "RAS" if said.flag("as_closest_canonical") else said["axcodes"]
    letters = "".join(letters) if isinstance(letters, list) and all(isinstance(x, str) for x in letters) else letters
    if not isinstance(letters, str) or sorted(map(_axis_of, letters)) != ["x", "y", "z"]:
        said.refuse(f"axcodes are {_shown(letters)}, where three letters such as RAS are wanted")
    labels = said["labels"]
    if labels is not None and [list(map(str, each)) for each in labels] != [["L", "R"], ["P", "A"], ["I", "S"]]:
        said.refuse(f"labels are {_shown(labels)}, and only those of RAS are reproduced")
    if done.resampled or done.crop or done.axes != ["x", "y", "z"]:
        said.refuse("stands after a transform that changes the grid, and md turns the image first")
    if done.orientation is not None:
        said.refuse("is there twice")
    done.orientation = letters


def _axis_of(letter: str) -> str:
    return {"R": "x", "L": "x", "A": "y", "P": "y", "S": "z", "I": "z"}.get(letter, letter)


def _spacing(component: Component, done: Preparation) -> None:
    said = Arguments(
        component,
        {
            "pixdim": None,
            "diagonal": False,
            "mode": "bilinear",
            "padding_mode": "border",
            "align_corners": False,
            "dtype": "float64",
            "scale_extent": False,
            "recompute_affine": False,
            "min_pixdim": None,
            "max_pixdim": None,
            "lazy": False,
        },
        # Of several keys, whether the later ones are brought to the first one's shape.
        ("ensure_same_shape",),
    )
    for name in ("diagonal", "align_corners", "scale_extent", "lazy"):
        said.only(name, False, None)
    for name in ("min_pixdim", "max_pixdim"):
        said.only(name, None)
    said.only("padding_mode", "border")
    mode = said.only("mode", "bilinear", "linear", "trilinear", "nearest", 1, 0)
    pixdim = said["pixdim"]
    count = len(done.axes)
    if not isinstance(pixdim, (list, tuple)) or len(pixdim) != count:
        said.refuse(f"pixdim is {_shown(pixdim)}, where {count} numbers are wanted")
    if not all(_is_number(each) and each > 0 for each in pixdim):
        said.refuse(f"pixdim is {_shown(pixdim)}: an axis that keeps its own spacing is not reproduced")
    if done.resampled or done.crop:
        said.refuse("stands after another transform that changes the grid")
    done.spacing = tuple(map(float, pixdim))
    done.interpolation = "nearest" if mode in ("nearest", 0) else "linear"


def _scale_range(component: Component, done: Preparation) -> None:
    known = {"a_min": None, "a_max": None, "b_min": None, "b_max": None, "clip": False, "dtype": "float32"}
    said = Arguments(component, known)
    said.floating()
    source = (said.number("a_min"), said.number("a_max"))
    if source[0] >= source[1]:
        said.refuse(f"a_min {source[0]:g} is not below a_max {source[1]:g}")
    target = (0.0, 1.0)
    if said["b_min"] is not None or said["b_max"] is not None:
        target = (said.number("b_min"), said.number("b_max"))
    elif said.flag("clip"):
        # MONAI clips to b_min and b_max, which are not there: it does nothing.
        said.refuse("clip without b_min and b_max")
    done.add(Scale(source, target))
    if said.flag("clip"):
        if target[0] >= target[1]:
            said.refuse(f"b_min {target[0]:g} is not below b_max {target[1]:g}")
        done.add(Clip(*target))


def _scale(component: Component, done: Preparation) -> None:
    said = Arguments(component, {"minv": 0.0, "maxv": 1.0, "factor": None, "channel_wise": False, "dtype": "float32"})
    said.floating()
    if said["minv"] is None and said["maxv"] is None:
        if said["factor"] is not None:
            done.add(ScaleVolume(None, said.number("factor")))
        return
    _one_by_one(said, done)
    done.add(ScaleVolume((said.number("minv"), said.number("maxv"))))


def _one_by_one(said: Arguments, done: Preparation) -> None:
    """Refuse statistics over several channels together."""
    if done.channels > 1 and not said.flag("channel_wise"):
        said.refuse(f"statistics over {done.channels} channels together are not reproduced, only channel_wise")


def _normalize(component: Component, done: Preparation) -> None:
    known = {"subtrahend": None, "divisor": None, "nonzero": False, "channel_wise": False, "dtype": "float32"}
    said = Arguments(component, known)
    said.floating()
    nonzero = said.flag("nonzero")
    if said["subtrahend"] is None and said["divisor"] is None:
        _one_by_one(said, done)
        done.add(Normalize(None, None, "nonzero" if nonzero else "volume"))
        return
    if nonzero:
        said.refuse("numbers for the voxels that are not zero alone are not reproduced")
    if said["subtrahend"] is None or said["divisor"] is None:
        said.refuse("subtrahend and divisor are wanted, both or none")
    count = done.channels if said.flag("channel_wise") and done.channels > 1 else 1
    if count > 1:
        means, stds = said.numbers("subtrahend", count), said.numbers("divisor", count)
    else:
        means, stds = (said.number("subtrahend"),), (said.number("divisor"),)
    if min(stds) <= 0:
        # MONAI divides by 1 where the divisor is 0.
        said.refuse(f"divisor is {min(stds):g}, not above 0")
    steps = tuple(Normalize(mean, std) for mean, std in zip(means, stds, strict=True))
    done.add(steps if count > 1 else steps[0])


def _percentiles(component: Component, done: Preparation) -> None:
    known: dict[str, Any] = {"lower": None, "upper": None, "b_min": None, "b_max": None, "clip": False}
    said = Arguments(component, {**known, "relative": False, "channel_wise": False, "dtype": "float32"})
    said.floating()
    said.only("relative", False)
    lower, upper = said.number("lower"), said.number("upper")
    if not 0 <= lower < upper <= 100:
        said.refuse(f"lower {lower:g} and upper {upper:g}, where 0 <= lower < upper <= 100 is wanted")
    _one_by_one(said, done)
    done.add(Percentiles(lower, upper, (said.number("b_min"), said.number("b_max")), said.flag("clip")))


def _crop(component: Component, done: Preparation) -> None:
    said = Arguments(
        component,
        {
            "source_key": done.key,
            "select_fn": None,
            "channel_indices": None,
            "margin": 0,
            "allow_smaller": done.old_crop,
            "k_divisible": 1,
            "mode": "constant",
            "lazy": False,
            "return_coords": False,
        },
        ("start_coord_key", "end_coord_key"),
    )
    said.only("source_key", done.key)
    said.only("k_divisible", 1)
    said.only("lazy", False)
    if done.channels > 1:
        said.refuse(f"the part of an image of {done.channels} channels is not reproduced")
    said.only("channel_indices", None, 0)
    margin = said.whole("margin")
    if margin < 0 or (margin and not said.flag("allow_smaller")):
        said.refuse(f"margin {margin} beyond the image's edge (allow_smaller: false) is not reproduced")
    if done.resize or done.crop:
        said.refuse("stands after another transform that changes the grid")
    select = said["select_fn"]
    above = 0.0 if select is None else _bound_of(select)
    if above is None:
        said.refuse(f"select_fn is {_shown(select)}, and only a comparison such as lambda x: x > 0 is reproduced")
    done.crop = Crop(above, margin)
    done.crop_place = (len(done.before) + len(done.steps), component.key)


def _bound_of(select: Any) -> float | None:
    """Return what values must be above, of `lambda x: x > NUMBER`."""
    if not isinstance(select, Lambda) or not isinstance(select.body, ast.Compare):
        return None
    body = select.body
    if not _is_argument(body.left, select) or len(body.ops) != 1 or not isinstance(body.ops[0], ast.Gt):
        return None
    return _constant(body.comparators[0], select)


def _before_steps(above: float, steps: Sequence[Step], key: str) -> float:
    """Return a bound on values after some steps as one on values before them; all of the steps must keep the order."""
    for step in reversed(steps):
        match step:
            case Clip():
                if not step.low <= above < step.high:
                    refuse(key, "CropForeground", f"no value is above {above:g} after clipping to {step.high:g}")
            case Scale() if (step.target[1] - step.target[0]) / (step.source[1] - step.source[0]) > 0:
                part = (above - step.target[0]) / (step.target[1] - step.target[0])
                above = step.source[0] + part * (step.source[1] - step.source[0])
            case Normalize() if step.mean is not None and step.std is not None:
                above = above * step.std + step.mean
            case _:
                refuse(key, "CropForeground", "stands after a step that takes its numbers from the whole image")
    return above


def _resize(component: Component, done: Preparation) -> None:
    said = Arguments(
        component,
        {
            "spatial_size": None,
            "size_mode": "all",
            "mode": "area",
            "align_corners": None,
            "anti_aliasing": False,
            "dtype": "float32",
            "lazy": False,
        },
        ("anti_aliasing_sigma",),
    )
    said.only("size_mode", "all")
    said.only("anti_aliasing", False)
    said.only("lazy", False)
    said.floating()
    mode = said.only("mode", "area", "bilinear", "trilinear", "linear", "nearest")
    if mode not in ("area", "nearest"):
        said.only("align_corners", None, False)
    sizes = said["spatial_size"]
    sizes = list(sizes) if isinstance(sizes, (list, tuple)) else [sizes] * len(done.axes)
    if len(sizes) == 2 and len(done.axes) == 3:
        # An image of one slice: MONAI loads it without the third axis.
        done.axes.remove("z")
    if len(sizes) != len(done.axes) or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sizes):
        said.refuse(f"spatial_size is {_shown(sizes)}, where {len(done.axes)} whole numbers above 0 are wanted")
    if done.resize is not None:
        said.refuse("is there twice")
    if done.steps:
        said.refuse("stands after spacing and intensities, between which md does nothing else")
    done.resize = tuple(sizes)
    done.resize_mode = cast('Literal["linear", "area", "nearest"]', mode if mode in ("area", "nearest") else "linear")


def _squeeze(component: Component, done: Preparation) -> None:
    said = Arguments(component, {"dim": 0}, ("update_meta",))
    if said["dim"] not in (-1, 3) or done.axes != ["x", "y", "z"] or done.resampled or done.crop:
        said.refuse(
            f"dim {_shown(said['dim'])}: only the third axis of an image of one slice is left out, before resampling"
        )
    done.axes.remove("z")


def _transpose(component: Component, done: Preparation) -> None:
    said = Arguments(component, {"indices": None})
    indices = said["indices"]
    count = len(done.axes)
    if not isinstance(indices, (list, tuple)) or list(indices[:1]) != [0] or sorted(indices) != list(range(count + 1)):
        said.refuse(f"indices are {_shown(indices)}, where 0 and the {count} axes of space in some order are wanted")
    order = [n - 1 for n in indices[1:]]
    done.axes = [done.axes[n] for n in order]
    if done.spacing is not None:
        done.spacing = tuple(done.spacing[n] for n in order)
    if done.resize is not None:
        done.resize = tuple(done.resize[n] for n in order)


def _lambda_before(component: Component, done: Preparation) -> None:
    said = Arguments(component, {"func": None, "inv_func": None, "overwrite": True, "track_meta": True})
    function = said["func"]
    steps = _steps_of(function) if isinstance(function, Lambda) else None
    if steps is None:
        said.refuse(f"func is {_shown(function)}: md runs no code out of a model, and this is no clip, scale or shift")
    for step in steps:
        done.add(step)


def _steps_of(function: Lambda) -> list[Step] | None:
    """Return the steps that a function of one value is: clips, factors, shifts; None where it is anything else."""
    node = function.body
    if _is_argument(node, function):
        return []
    if isinstance(node, ast.Call):
        return _clip_of(node, function)
    if not isinstance(node, ast.BinOp):
        return None
    inner = _steps_of(Lambda(function.argument, node.left, function.key))
    number = _constant(node.right, function)
    if inner is None or number is None:
        return None
    match node.op:
        case ast.Add():
            return [*inner, Scale((0.0, 1.0), (number, number + 1.0))]
        case ast.Sub():
            return [*inner, Scale((0.0, 1.0), (-number, 1.0 - number))]
        case ast.Mult() if number != 0:
            return [*inner, Scale((0.0, 1.0), (0.0, number))]
        case ast.Div() if number != 0:
            return [*inner, Scale((0.0, number), (0.0, 1.0))]
    return None


def _clip_of(node: ast.Call, function: Lambda) -> list[Step] | None:
    """Return the steps of `torch.clip(x, LOW, HIGH)`, `np.clip(...)`, `x.clamp(LOW, HIGH)`."""
    name = dotted(node.func) or ""
    values = list(node.args)
    if name in ("torch.clip", "torch.clamp", "np.clip", "numpy.clip") and values:
        held = values.pop(0)
    elif isinstance(node.func, ast.Attribute) and node.func.attr in ("clip", "clamp"):
        held = node.func.value
    else:
        return None
    named = {each.arg: each.value for each in node.keywords}
    low, high = (named.pop(key, None) for key in ("min", "max"))
    for value in values:
        low, high = (value, high) if low is None else (low, value)
    inner = _steps_of(Lambda(function.argument, held, function.key))
    if inner is None or named or low is None or high is None or len(values) > 2:
        return None
    bounds = (_constant(low, function), _constant(high, function))
    if bounds[0] is None or bounds[1] is None or bounds[0] >= bounds[1]:
        return None
    return [*inner, Clip(bounds[0], bounds[1])]


def _is_argument(node: ast.expr, function: Lambda) -> bool:
    return isinstance(node, ast.Name) and node.id == function.argument


def _constant(node: ast.expr, function: Lambda) -> float | None:
    """Return a number that stands in a function, or None."""

    def nothing(reference: str) -> Any:
        raise ConfigError("refused-expression", f"{function.key}: @{reference} in a function")

    try:
        found = evaluate(ast.unparse(node), function.key, nothing)
    except ConfigError:
        return None
    return float(found) if _is_number(found) else None


_BEFORE: Mapping[str, Callable[[Component, Preparation], None]] = {
    "LoadImage": _load,
    "EnsureChannelFirst": _channel_first,
    # What MONAI before 1.3 had in its place.
    "AddChannel": _channel_first,
    "AsChannelFirst": _channel_first,
    "EnsureType": _as_floats,
    "CastToType": _as_floats,
    "ToTensor": _as_floats,
    "Orientation": _orientation,
    "Spacing": _spacing,
    "ScaleIntensityRange": _scale_range,
    "ScaleIntensity": _scale,
    "NormalizeIntensity": _normalize,
    "ScaleIntensityRangePercentiles": _percentiles,
    "CropForeground": _crop,
    "Resize": _resize,
    "SqueezeDim": _squeeze,
    "Transpose": _transpose,
    "Lambda": _lambda_before,
}


# ---- the network


@dataclass(frozen=True)
class Inferring:
    """How the network goes over an image.

    Attributes:
        size: the window, in the order of the array's axes; `full` is the whole axis.
        window: overlap and blending; None: the whole image at once.
        slices: the axis that the network does not see: it runs slice by slice along it.
    """

    size: tuple[int | Literal["full"], ...]
    window: Window | None
    slices: int | None = None


def read_inferer(component: Component | None, count: int, notes: Notes) -> Inferring:
    """Return how a bundle's inferer goes over an image.

    Args:
        component: the inferer; None is a simple one.
        count: axes of space of the image.
        notes: gets what a person should know.

    Raises:
        ConfigError: `unsupported-transform`.
    """
    full: Literal["full"] = "full"
    whole = (full,) * count
    if component is None:
        return Inferring(whole, None)
    if not isinstance(component, Component):
        refuse("inferer", "inferer", f"{_shown(component)} where an inferer is wanted")
    names = ("SimpleInferer", "SlidingWindowInferer", "SlidingWindowInfererAdapt", "SliceInferer")
    name = base_name(component, names)
    if name is None:
        refuse(component.key, component.target, f"this inferer is not reproduced, only {', '.join(names)}")
    if name == "SimpleInferer":
        Arguments(component, {})
        return Inferring(whole, None)
    known = {"roi_size": None, "overlap": 0.25, "mode": "constant", "sigma_scale": 0.125, "padding_mode": "constant"}
    said = Arguments(
        component,
        {**known, "cval": 0.0, "with_coord": False, "spatial_dim": 0},
        # Where and in what portions the work is done.
        ("sw_batch_size", "sw_device", "progress", "cache_roi_weight_map", "cpu_thresh", "buffer_steps", "buffer_dim"),
    )
    said.only("with_coord", False)
    slices = said.whole("spatial_dim") if name == "SliceInferer" else None
    if slices is not None and (count != 3 or not 0 <= slices < 3):
        said.refuse(f"spatial_dim {slices} of an image of {count} axes")
    size = _window_size(component.get("roi_size"), count - (slices is not None), said)
    overlaps = component.get("overlap", 0.25)
    overlaps = set(overlaps) if isinstance(overlaps, list) and all(map(_is_number, overlaps)) else {overlaps}
    overlap = overlaps.pop()
    if overlaps or not _is_number(overlap) or not 0 <= overlap < 1:
        said.refuse("overlap is not one number from 0 to 1 for all axes")
    blending = said.only("mode", "constant", "gaussian")
    if blending == "gaussian":
        said.only("sigma_scale", 0.125)
    padding = said.only("padding_mode", "constant", "replicate")
    value = said.number("cval") if padding == "constant" else 0.0
    padding_mode: Literal["constant", "edge"] = "edge" if padding == "replicate" else "constant"
    window = Window(size, float(overlap), blending=blending, padding_value=value, padding_mode=padding_mode)
    return Inferring(size, window, slices)


def _window_size(said: Any, count: int, arguments: Arguments) -> tuple[int | Literal["full"], ...]:
    sizes = list(said) if isinstance(said, (list, tuple)) else [said] * count
    if len(sizes) != count or not all(n is None or (isinstance(n, int) and not isinstance(n, bool)) for n in sizes):
        arguments.refuse(f"roi_size is {_shown(said)}, where {count} whole numbers are wanted")
    return tuple("full" if n is None or n <= 0 else n for n in sizes)


# ---- after the network


@dataclass
class Finish:
    """What is done to the network's output.

    Attributes:
        key: which item of a dictionary is the output.
        activation: what turns it into probabilities.
        inverted: how it comes back to the image's grid before a class is decided (`linear`, `nearest`), or None.
        decided: `highest` class, or each class by a `threshold`; None while it is not.
        onehot: whether the highest class is said as a channel of 0 and 1 for each class.
        threshold: from which probability.
        labels_inverted: whether what is decided comes back to the image's grid.
        keep: largest components: (labels or channels; together; connectivity), in order.
        folded: whether structures that overlap are written into one map in the end.
        notes: what a person should know.
    """

    key: str | None = None
    activation: Literal["none", "softmax", "sigmoid"] = "none"
    inverted: Literal["linear", "nearest"] | None = None
    decided: Literal["highest", "threshold"] | None = None
    onehot: bool = False
    threshold: float = 0.5
    labels_inverted: bool = False
    keep: list[tuple[tuple[int, ...] | None, bool, Connectivity]] = field(default_factory=list)
    folded: bool = False
    notes: Notes = field(default_factory=list)

    @property
    def back(self) -> bool:
        """Say whether the result comes back to the image's grid."""
        return self.inverted is not None or self.labels_inverted


def read_finish(transforms: Sequence[Component], preparation: str | None, axes: int) -> Finish:
    """Return what a bundle's transforms after the network ask for.

    Args:
        transforms: in order.
        preparation: where the transforms before the network stand, which `Invert` must name.
        axes: axes of space of the output.

    Raises:
        ConfigError: `unsupported-transform`.
    """
    done = Finish()
    for component in transforms:
        name = base_name(component, (*_AFTER, *_SAVING))
        if name in _SAVING:
            continue
        if name is None:
            refuse(component.key, component.target, "this transform is not reproduced", _HINT)
        if "keys" in component:
            keys = component.get("keys")
            keys = keys if isinstance(keys, list) else [keys]
            done.key = done.key or (keys[0] if len(keys) == 1 and isinstance(keys[0], str) else None)
            if keys != [done.key]:
                refuse(component.key, component.target, f"works on {_shown(keys)}, where one output is wanted")
        _AFTER[name](component, done, preparation, axes)
    return done


def _activations(component: Component, done: Finish, preparation: str | None, axes: int) -> None:
    said = Arguments(component, {"sigmoid": False, "softmax": False, "other": None, "dim": 0})
    said.only("other", None)
    said.only("dim", 0)
    sigmoid, softmax = said.flag("sigmoid"), said.flag("softmax")
    if sigmoid and softmax:
        said.refuse("sigmoid and softmax together")
    if not sigmoid and not softmax:
        return
    if done.activation != "none" or done.decided or done.keep:
        said.refuse("stands after another activation, or after a class was decided")
    if done.inverted == "linear":
        said.refuse("stands after Invert: scores that come back before they are probabilities are not reproduced")
    done.activation = "sigmoid" if sigmoid else "softmax"


def _as_discrete(component: Component, done: Finish, preparation: str | None, axes: int) -> None:
    said = Arguments(
        component,
        {"argmax": False, "to_onehot": None, "threshold": None, "rounding": None, "dim": 0},
        ("keepdim", "dtype"),
    )
    said.only("rounding", None)
    said.only("dim", 0)
    highest, threshold = said.flag("argmax"), said["threshold"]
    if highest and threshold is not None:
        said.refuse("argmax and threshold together")
    if not highest and threshold is None:
        return
    if done.decided:
        said.refuse("decides a second time")
    if threshold is not None:
        done.threshold = said.number("threshold")
        if not 0 < done.threshold < 1:
            said.refuse(f"threshold {done.threshold:g} is not between 0 and 1")
    done.decided = "highest" if highest else "threshold"
    done.onehot = highest and said["to_onehot"] is not None


def _invert(component: Component, done: Finish, preparation: str | None, axes: int) -> None:
    said = Arguments(
        component,
        {"transform": None, "nearest_interp": True, "post_func": None},
        ("orig_keys", "orig_meta_keys", "to_tensor"),
    )
    said.only("post_func", None)
    transform = component.get("transform")
    if not isinstance(transform, Component) or transform.key != preparation:
        said.refuse(f"transform is {_shown(transform)}, where the transforms before the network are wanted")
    if done.back:
        said.refuse("is there twice")
    nearest = said.flag("nearest_interp")
    if not done.decided:
        done.inverted = "nearest" if nearest else "linear"
        return
    done.labels_inverted = True
    if not nearest:
        # Between labels 1 and 3 lies no label 2.
        done.notes.append(
            ("nearest-labels", "the bundle interpolates label values on their way back, md takes the nearest label")
        )
    if done.keep:
        done.notes.append(
            (
                "components-on-source-grid",
                "the bundle looks for the largest part on the network's grid, md on the image's",
            )
        )


def _keep_largest(component: Component, done: Finish, preparation: str | None, axes: int) -> None:
    said = Arguments(
        component,
        {"applied_labels": None, "is_onehot": None, "independent": True, "connectivity": None, "num_components": 1},
    )
    if done.decided is None:
        said.refuse("stands before a class is decided")
    said.only("num_components", 1)
    said.only("is_onehot", *((None, False) if done.decided == "highest" else (None, True)))
    applied = component.get("applied_labels")
    if applied is not None:
        applied = applied if isinstance(applied, (list, tuple)) else [applied]
        if not applied or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in applied):
            said.refuse(f"applied_labels are {_shown(applied)}, where whole numbers are wanted")
    connectivity = axes if said["connectivity"] is None else said.whole("connectivity")
    if not 1 <= connectivity <= axes:
        said.refuse(f"connectivity {connectivity} of an image of {axes} axes")
    labels = None if applied is None else tuple(applied)
    done.keep.append((labels, not said.flag("independent"), cast(Connectivity, connectivity)))


def _lambda_after(component: Component, done: Finish, preparation: str | None, axes: int) -> None:
    said = Arguments(component, {"func": None, "inv_func": None, "overwrite": True, "track_meta": True})
    function = said["func"]
    if not isinstance(function, Lambda):
        said.refuse(f"func is {_shown(function)}, where a function is wanted")
    if _is_argument(function.body, function):
        return
    match function.body:
        case ast.Subscript(value=held, slice=ast.Slice(lower=ast.Constant(value=1), upper=None, step=None)):
            # One-hot classes without that of the background: no other labels.
            if _is_argument(held, function) and done.onehot:
                return
    channels = _folded_channels(function.body, function)
    if channels is not None and done.decided == "threshold":
        done.folded = True
        done.notes.append(
            ("overlap-kept", "the bundle writes its structures over one another into one map, md keeps each as it is")
        )
        return
    said.refuse(f"func is {_shown(function)}: md runs no code out of a model")


def _folded_channels(node: ast.expr, function: Lambda) -> list[int] | None:
    """Return the channels of `torch.where(x[[2]] > 0, 4, torch.where(... 0))`, the uppermost first; None for anything else."""
    if isinstance(node, ast.Constant):
        return [] if node.value == 0 else None
    if not isinstance(node, ast.Call) or dotted(node.func) != "torch.where" or len(node.args) != 3 or node.keywords:
        return None
    test, value, rest = node.args
    inner = _folded_channels(rest, function)
    match test:
        case ast.Compare(
            left=ast.Subscript(value=held, slice=ast.List(elts=[ast.Constant(value=int(channel))])),
            ops=[ast.Gt()],
            comparators=[ast.Constant(value=0)],
        ) if _is_argument(held, function) and isinstance(value, ast.Constant):
            return None if inner is None else [channel, *inner]
    return None


def _nothing(component: Component, done: Finish, preparation: str | None, axes: int) -> None:
    Arguments(component, {"dtype": None}).floating()


def _squeeze_after(component: Component, done: Finish, preparation: str | None, axes: int) -> None:
    said = Arguments(component, {"dim": 0}, ("update_meta",))
    if done.decided != "highest":
        said.refuse("of what has several channels")


_AFTER: Mapping[str, Callable[[Component, Finish, str | None, int], None]] = {
    "Activations": _activations,
    "AsDiscrete": _as_discrete,
    "Invert": _invert,
    "KeepLargestConnectedComponent": _keep_largest,
    "Lambda": _lambda_after,
    "EnsureType": _nothing,
    "ToTensor": _nothing,
    "SqueezeDim": _squeeze_after,
}
# What writes files or moves data about; md does that itself.
_SAVING = ("SaveImage", "SaveClassification", "ToDevice", "FromMetaTensor", "ToMetaTensor")


def kept_largest(done: Finish, channels: int) -> tuple[KeepLargest, ...]:
    """Return the steps that keep largest components, by label value.

    Args:
        done: of `read_finish`.
        channels: of the network's output.

    Raises:
        ConfigError: `unsupported-transform` where a label is named that there is not.
    """
    steps = []
    masks = done.decided == "threshold"
    for applied, together, connectivity in done.keep:
        # Of channels MONAI leaves out the first where none is named; of labels the background, 0.
        said = applied if applied is not None else tuple(range(1, channels)) if masks and channels > 1 else ()
        # By a threshold channel c is label c + 1, but a single channel's voxels are 1 themselves.
        shift = 1 if masks and channels > 1 else 0
        labels = tuple(n + shift for n in said if n or shift)
        top = channels if masks else channels - 1
        if labels and max(labels) > top:
            refuse("postprocessing", "KeepLargestConnectedComponent", f"label {max(labels)} of {top}")
        if masks and together and channels > 1:
            refuse("postprocessing", "KeepLargestConnectedComponent", "of structures that overlap, taken together")
        steps.append(KeepLargest(labels, together, connectivity))
    return tuple(steps)


def statistics_of(steps: Iterable[Step]) -> bool:
    """Say whether any step takes its numbers from the image."""
    return any(map(of_volume, steps))


def slice_axes(axes: Sequence[str], slices: int | None) -> tuple[str, ...]:
    """Return the axes that the network sees."""
    return tuple(axis for n, axis in enumerate(axes) if n != slices)


def version_before(said: Any, major: int, minor: int) -> bool:
    """Say whether a MONAI version is before another."""
    match = re.match(r"(\d{1,3})\.(\d{1,3})", said) if isinstance(said, str) else None
    return match is not None and (int(match[1]), int(match[2])) < (major, minor)
