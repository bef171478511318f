"""The values that a display would show of an image: the chain that a network trained on displayed images wants.

Modality values go through the window or the VOI LUT of the image, and come out from 0 to 1; with `presentation` 0 is black and 1 is
white, whichever way the image stores it.

Source: DICOM PS3.3 C.11.2 (VOI LUT), C.7.6.3.1.2 (MONOCHROME1), C.11.6 (Presentation LUT Shape), C.8.11.1 (Presentation Intent).
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mdcli.errors import DataError

Mode = Literal["modality", "voi", "presentation"]

LINEAR, LINEAR_EXACT, SIGMOID = "LINEAR", "LINEAR_EXACT", "SIGMOID"
FOR_PROCESSING = "FOR PROCESSING"


@dataclass(frozen=True)
class Window:
    """A window over modality values.

    Attributes:
        centre: its middle.
        width: of the values between black and white: at least 1 for `LINEAR`, above 0 for the others.
        function: `LINEAR`, `LINEAR_EXACT` or `SIGMOID`.
    """

    centre: float
    width: float
    function: str = LINEAR

    def __call__(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Return values from 0 to 1. Source: PS3.3 C.11.2.1.2.1, C.11.2.1.3.1 and C.11.2.1.3.2."""
        x = values.astype(np.float64)
        if self.function == SIGMOID:
            with np.errstate(over="ignore"):
                return 1 / (1 + np.exp(-4 * (x - self.centre) / self.width))
        if self.function == LINEAR_EXACT:
            return np.clip((x - self.centre) / self.width + 0.5, 0, 1)
        if self.width == 1:
            return (x > self.centre - 0.5).astype(np.float64)
        return np.clip((x - (self.centre - 0.5)) / (self.width - 1) + 0.5, 0, 1)


@dataclass(frozen=True)
class Table:
    """A VOI LUT: values below the first entry take the first one, values above the last one the last.

    Attributes:
        first: the modality value of the first entry.
        bits: of an entry.
        entries: (n,) uint16.
    """

    first: int
    bits: int
    entries: NDArray[np.uint16]

    def __call__(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Return values from 0 to 1. Source: PS3.3 C.11.2.1.1."""
        places = np.clip(np.rint(values.astype(np.float64)) - self.first, 0, len(self.entries) - 1)
        found: NDArray[np.float64] = self.entries[places.astype(np.intp)] / (2.0**self.bits - 1)
        return found


@dataclass(frozen=True)
class Limits:
    """The lowest and the highest value of an image that says no window; both alike show black."""

    low: float
    high: float

    def __call__(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Return values from 0 to 1."""
        width = self.high - self.low
        x = values.astype(np.float64) - self.low
        return np.clip(x / width, 0, 1) if width > 0 else np.zeros(values.shape)


@dataclass(frozen=True)
class Chain:
    """What turns modality values into displayed ones; it works value by value, on any part of an image.

    Attributes:
        voi: the window, the table or the limits; None: values stay what they are.
        inverted: 0 and 1 change places at the end.
        findings: what a person may want to know: (code, sentence).
    """

    voi: Window | Table | Limits | None
    inverted: bool = False
    findings: tuple[tuple[str, str], ...] = ()

    def __call__(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Return the displayed values, float32."""
        if self.voi is None:
            return np.asarray(values, np.float32)
        shown = self.voi(np.asarray(values))
        return np.asarray(1 - shown if self.inverted else shown, np.float32)


def says_window(display: Mapping[str, Any] | None) -> bool:
    """Say whether an image has a window or a VOI LUT; where it has none, `display_chain` wants its lowest and highest value."""
    return display is not None and bool(display.get("voi_lut") or display.get("window_center"))


def display_chain(
    display: Mapping[str, Any] | None,
    mode: Mode,
    *,
    window: int | None = None,
    limits: tuple[float, float] | None = None,
) -> Chain:
    """Return what turns modality values into displayed ones.

    Args:
        display: of `geometry.json`; None where nobody knows.
        mode: `modality`: nothing is done. `voi`: the VOI LUT where there is one, else the window; from 0 to 1, in the direction of
            the modality values. `presentation`: then the polarity, once: 1 is white.
        window: of several windows, counted from 1; it goes before a VOI LUT. None: the VOI LUT, else the first window.
        limits: lowest and highest modality value of the image (without padding), for one that says no window.

    Raises:
        DataError: `no-display` where nobody knows how the image is shown, or it has colours; `displays-differ` where its slices are
            shown differently; `bad-window`, `bad-voi-lut`; `no-window` where there is none, or not so many.
    """
    if mode == "modality":
        return Chain(None)
    if display is None:
        hint = "load the DICOM images with md load-volume"
        raise DataError(
            "no-display", "nothing says how the volume is displayed: it does not come from DICOM images", hint=hint
        )
    if display.get("palette"):
        raise DataError("no-display", "the image has a palette of colours, which no window goes with")
    if not display.get("same_for_all", True):
        raise DataError("displays-differ", "the slices have different windows: their displayed values do not compare")
    findings = []
    voi: Window | Table | Limits
    if display.get("voi_lut") and window is None:
        voi = _table(display.get("voi_lut_table"))
    elif window is not None or says_window(display):
        windows = _windows(display)
        number = window or 1
        if not 1 <= number <= len(windows):
            raise DataError(
                "no-window", f"window {number} is asked for, the image has {len(windows)}", count=len(windows)
            )
        voi = windows[number - 1]
        if window is None and len(windows) > 1:
            findings.append(("several-windows", f"the image has {len(windows)} windows: the first is taken"))
    elif limits is None:
        raise DataError("no-window", "the image has neither a window nor a VOI LUT")
    else:
        voi = Limits(*limits)
        said = f"the image has no window: its values from {limits[0]:g} to {limits[1]:g} are shown from black to white"
        findings.append(("no-window", said))
    return Chain(voi, mode == "presentation" and bool(display["inverted"]), tuple(findings))


def displayed(
    values: NDArray[Any], display: Mapping[str, Any] | None, mode: Mode, *, window: int | None = None
) -> NDArray[np.float32]:
    """Return what a display would show of a whole image.

    Args:
        values: modality values, of any shape; the lowest and the highest count where the image has no window.
        display: of `geometry.json`.
        mode: see `display_chain`.
        window: see `display_chain`.

    Returns:
        float32; from 0 to 1 unless `mode` is `modality`.

    Raises:
        DataError: as `display_chain`.
    """
    limits = None
    if mode != "modality" and values.size:
        limits = float(values.min()), float(values.max())
    return display_chain(display, mode, window=window, limits=limits)(values)


def check_intent(display: Mapping[str, Any] | None, taken: Sequence[str] = ()) -> None:
    """Refuse an image that is FOR PROCESSING, a detector's raw values, unless the model takes those.

    Args:
        display: of `geometry.json`.
        taken: the values of PresentationIntentType that the card accepts.

    Raises:
        DataError: `for-processing`.
    """
    intent = str((display or {}).get("presentation_intent_type") or "").upper()
    if intent == FOR_PROCESSING and FOR_PROCESSING not in (value.upper() for value in taken):
        hint = "take the FOR PRESENTATION image of the same exposure"
        raise DataError("for-processing", "the image is FOR PROCESSING: a detector's raw values", hint=hint)


def _windows(display: Mapping[str, Any]) -> list[Window]:
    centres, widths = display.get("window_center") or [], display.get("window_width") or []
    function = str(display.get("voi_lut_function") or LINEAR).upper()
    if len(centres) != len(widths):
        raise DataError("bad-window", f"the image has {len(centres)} window centres and {len(widths)} widths")
    if function not in (LINEAR, LINEAR_EXACT, SIGMOID):
        raise DataError("bad-window", "the image has a VOILUTFunction that the standard does not know")
    least = 1.0 if function == LINEAR else 0.0
    for number in (*centres, *widths):
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
            raise DataError("bad-window", "a window of the image is no number")
    for width in widths:
        if width < least or width <= 0:
            raise DataError("bad-window", f"the image has a window of width {width:g} for {function}")
    return [Window(float(c), float(w), function) for c, w in zip(centres, widths, strict=True)]


def _table(said: Mapping[str, Any] | None) -> Table:
    if said is None:
        raise DataError(
            "bad-voi-lut", "the VOI LUT of the image can't be read", hint="md load-volume again, or choose a window"
        )
    try:
        content = base64.b64decode(said["entries"], validate=True)
        entries = np.frombuffer(content, "<u2").astype(np.uint16)
        table = Table(int(said["first"]), int(said["bits"]), entries)
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise DataError(
            "bad-voi-lut", "the VOI LUT in geometry.json can't be read", hint="md load-volume again"
        ) from error
    if not len(entries) or not 8 <= table.bits <= 16 or int(entries.max()) >= 1 << table.bits:
        raise DataError("bad-voi-lut", f"the VOI LUT of the image has entries that {table.bits} bits do not hold")
    return table
