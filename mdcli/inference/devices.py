"""What a network may run on: the words of `--device` and `--memory`, the GPUs that are there, the memory that is free."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from mdcli.errors import UnavailableError, UsageError

AUTO, CPU, CUDA, TENSORRT = "auto", "cpu", "cuda", "tensorrt"
PROVIDER_SUFFIX = "ExecutionProvider"
DEVICE_WORDS = "auto, cpu, cuda, cuda:N, cuda:0,1, tensorrt, tensorrt:N or the name of an onnxruntime provider"
MIB = 1 << 20

_LISTED = re.compile(r"(cuda|tensorrt)(?::([0-9]{1,3}(?:,[0-9]{1,3})*))?")
_PROVIDER = re.compile(rf"([A-Za-z][A-Za-z0-9]*{PROVIDER_SUFFIX})(?::([0-9]{{1,3}}))?")
_OWN_PROVIDERS = {"CPUExecutionProvider": CPU, "CUDAExecutionProvider": CUDA, "TensorrtExecutionProvider": TENSORRT}
_UNITS = {"B": 0, "KIB": 1, "MIB": 2, "GIB": 3, "TIB": 4}
_DECIMAL_UNITS = {"KB": 1, "MB": 2, "GB": 3, "TB": 4}
# Control groups of version 1 write "no limit" as the largest multiple of a page.
_NO_LIMIT = 1 << 62


class OutOfDeviceMemory(UnavailableError):
    """A device has too little memory for a run; a smaller batch may fit. What runs networks catches it first."""


def out_of_device_memory(network: str, shapes: str, text: str) -> OutOfDeviceMemory:
    """Return the error for a run that its device has too little memory for."""
    hint = "smaller windows, another device, or nothing else on this one"
    message = f"{network} does not fit into the device's memory on {shapes}: {text}"
    return OutOfDeviceMemory("out-of-device-memory", message, hint=hint)


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU as CUDA counts them, `CUDA_VISIBLE_DEVICES` obeyed.

    Attributes:
        index: the N of `cuda:N`.
        name: its model.
        uuid: 32 hexadecimal digits; the same whatever a process calls its index.
        memory_mib: all of its memory.
    """

    index: int
    name: str
    uuid: str
    memory_mib: int


@dataclass(frozen=True)
class Devices:
    """What `--device` comes to.

    Attributes:
        names: one word for each device, as an engine's `open` takes it: `cpu`, `cuda:0`, `tensorrt:1` ...
        said: for `auto`, the sentence that says what was taken and why; else None.
    """

    names: tuple[str, ...]
    said: str | None = None


def parse_devices(text: str, gpus: Callable[[], Iterable[Gpu]], *, gpu_engine: bool) -> Devices:
    """Return the devices that `--device` names.

    Args:
        text: `auto`, `cpu`, `cuda`, `cuda:N`, `cuda:0,1`, the same with `tensorrt`; or an onnxruntime provider and `:N` or not.
        gpus: what GPUs are there; asked for `auto` only, and only where the engine could use one.
        gpu_engine: whether the engine that will run can use an NVIDIA GPU.

    Raises:
        UsageError: `bad-device`.
    """
    if text == AUTO:
        return _taken(next(iter(gpus()), None) if gpu_engine else None, gpu_engine)
    if text == CPU:
        return Devices((CPU,))
    if listed := _LISTED.fullmatch(text):
        kind, numbers = listed[1], [int(number) for number in (listed[2] or "0").split(",")]
        if len(set(numbers)) < len(numbers):
            raise UsageError("bad-device", f"{text!r} names a GPU twice")
        return Devices(tuple(f"{kind}:{number}" for number in numbers))
    if found := _PROVIDER.fullmatch(text):
        # By whatever name: NVIDIA's providers have rules of ours (TF32, slots, caches).
        word = _OWN_PROVIDERS.get(found.group(1))
        if word == CPU:
            return Devices((CPU,))
        return Devices((text if word is None else f"{word}:{int(found.group(2) or 0)}",))
    raise UsageError("bad-device", f"{text!r} is no device", hint=DEVICE_WORDS)


def _taken(gpu: Gpu | None, gpu_engine: bool) -> Devices:
    if gpu is not None:
        return Devices((f"{CUDA}:{gpu.index}",), f"--device auto took {CUDA}:{gpu.index}, {gpu.name}")
    why = "no NVIDIA GPU answers" if gpu_engine else "the engine installed here uses no GPU"
    return Devices((CPU,), f"--device auto took cpu: {why}")


def split_device(device: str) -> tuple[str, int]:
    """Return the kind of one device and its index: (`cuda`, 1) for `cuda:1`, (`cpu`, 0), (`DmlExecutionProvider`, 0).

    Raises:
        UsageError: `bad-device`.
    """
    kind, _, number = device.partition(":")
    known = kind in (CPU, CUDA, TENSORRT) or _PROVIDER.fullmatch(kind)
    if not known or (":" in device and (kind == CPU or not re.fullmatch(r"[0-9]{1,3}", number))):
        raise UsageError("bad-device", f"{device!r} is no device", hint=DEVICE_WORDS)
    return kind, int(number or 0)


def cuda_gpus(library: str = "libcuda.so.1") -> tuple[Gpu, ...]:
    """Return the NVIDIA GPUs that CUDA would use, in its order; none where there is no driver.

    Asked of the driver itself, so that an index means what it means to every engine. No context is made on a GPU.

    Source: CUDA Driver API, sections Initialization and Device Management.
    """
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return ()
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return ()
    found = (_gpu(driver, index) for index in range(count.value))
    return tuple(gpu for gpu in found if gpu is not None)


def _gpu(driver: ctypes.CDLL, index: int) -> Gpu | None:
    handle, memory = ctypes.c_int(), ctypes.c_size_t()
    name, uuid = ctypes.create_string_buffer(256), (ctypes.c_ubyte * 16)()
    failed = (
        driver.cuDeviceGet(ctypes.byref(handle), index)
        or driver.cuDeviceGetName(name, len(name), handle)
        or driver.cuDeviceGetUuid_v2(ctypes.byref(uuid), handle)
        or driver.cuDeviceTotalMem_v2(ctypes.byref(memory), handle)
    )
    if failed:
        return None
    return Gpu(index, name.value.decode("ascii", "replace"), bytes(uuid).hex(), memory.value // MIB)


def parse_bytes(text: str) -> int:
    """Return the bytes of a size such as `4GiB`, `512 MiB` or `1.5GB` (GB: 10^9, GiB: 2^30); the unit is never guessed.

    Raises:
        UsageError: `bad-size`.

    >>> parse_bytes("1.5KiB")
    1536
    """
    found = re.fullmatch(r"\s*([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*([A-Za-z]{1,3})\s*", text)
    unit = found[2].upper() if found else ""
    if found and unit in _UNITS:
        factor = 1024 ** _UNITS[unit]
    elif found and unit in _DECIMAL_UNITS:
        factor = 1000 ** _DECIMAL_UNITS[unit]
    else:
        raise UsageError("bad-size", f"{text!r} is no size", hint="a number and its unit, such as 4GiB or 512MiB")
    size = int(float(found[1]) * factor)
    if size < 1:
        raise UsageError("bad-size", f"{text!r} is nothing", hint="a number and its unit, such as 4GiB or 512MiB")
    return size


def available_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the bytes that this process may still take: free in the machine, and left under the limits of its control groups.

    Args:
        proc: where the kernel shows processes.
        cgroups: where it shows control groups (version 1 or 2).

    Returns:
        None where the kernel shows neither.

    Source: proc(5), MemAvailable; the kernel's cgroup-v2.rst, memory.max and memory.stat; cgroup-v1/memory.rst.
    """
    bounds = [_mem_available(proc / "meminfo"), *_group_bounds(proc / "self" / "cgroup", cgroups)]
    known = [bound for bound in bounds if bound is not None]
    return max(min(known), 0) if known else None


def _mem_available(meminfo: Path) -> int | None:
    found = re.search(r"^MemAvailable:\s*(\d+) kB", _text(meminfo), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _group_bounds(own: Path, cgroups: Path) -> list[int | None]:
    bounds: list[int | None] = []
    for line in _text(own).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            root, limit, used, cache = cgroups, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root = cgroups / "memory"
            limit, used, cache = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        # A limit of any group above binds too. A path from outside of a container may not exist in it: its root does.
        folder = root / path.strip("/")
        for group in (folder, *folder.parents):
            if group.is_relative_to(root) and ".." not in group.parts:
                bounds.append(_left(group, limit, used, cache))
    return bounds


def _left(group: Path, limit: str, used: str, cache: str) -> int | None:
    most, now = _text(group / limit).strip(), _text(group / used).strip()
    if not most.isdigit() or not now.isdigit() or int(most) >= _NO_LIMIT:
        return None
    # Pages of files that nobody reads are given back when memory is wanted.
    found = re.search(rf"^{cache} (\d+)$", _text(group / "memory.stat"), re.MULTILINE)
    return int(most) - int(now) + (int(found[1]) if found else 0)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def check_memory(needed_mib: int | None, *, allowed: int | None, available: int | None) -> None:
    """Refuse to start what needs more memory than it may have: the system would kill it in the middle.

    Args:
        needed_mib: what the model's card says that one inference needs, MiB; None where it does not say.
        allowed: bytes of `--memory`; None where it was not given.
        available: bytes of `available_memory`; None where it is unknown.

    Raises:
        UnavailableError: `memory-too-small`.
    """
    if needed_mib is None:
        return
    for bound, whose in ((allowed, "--memory allows"), (available, "this machine has")):
        if bound is not None and needed_mib * MIB > bound:
            raise UnavailableError(
                "memory-too-small",
                f"the model says it needs {needed_mib} MiB of memory, {whose} {bound // MIB} MiB",
                hint="give it more, or run fewer cases side by side (--jobs)",
                needed_mib=needed_mib,
                bound_mib=bound // MIB,
            )
