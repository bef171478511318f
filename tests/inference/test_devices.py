"""Devices and memory: what is asked for, what is there, and what is refused."""

from __future__ import annotations

import copy
import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdcli.errors import UnavailableError, UsageError
from mdcli.inference.devices import (
    Gpu,
    OutOfDeviceMemory,
    available_memory,
    check_memory,
    cuda_gpus,
    out_of_device_memory,
    parse_bytes,
    parse_devices,
    split_device,
)

H100 = Gpu(0, "NVIDIA H100", "0" * 32, 81559)
GIB = 1 << 30


def asked():
    raise AssertionError("the driver was asked")


@pytest.mark.parametrize(
    "text, names",
    [
        ("cpu", ["cpu"]),
        ("cuda", ["cuda:0"]),
        ("cuda:3", ["cuda:3"]),
        ("cuda:0,1", ["cuda:0", "cuda:1"]),
        ("cuda:2,0", ["cuda:2", "cuda:0"]),
        ("tensorrt", ["tensorrt:0"]),
        ("tensorrt:1", ["tensorrt:1"]),
        ("DmlExecutionProvider", ["DmlExecutionProvider"]),
        ("MIGraphXExecutionProvider:1", ["MIGraphXExecutionProvider:1"]),
    ],
)
def test_a_device_that_is_named_is_taken_without_asking_the_driver(text, names):
    found = parse_devices(text, asked, gpu_engine=True)
    assert list(found.names) == names and found.said is None


@pytest.mark.parametrize(
    "text", ["gpu", "cuda:", "cuda:x", "cpu:0", "cuda:-1", "", "cuda:0,", "cuda:0,0", "cuda:1000", "Dml", "auto:0"]
)
def test_another_word_is_no_device(text):
    with pytest.raises(UsageError) as error:
        parse_devices(text, asked, gpu_engine=True)
    assert (error.value.code, error.value.status) == ("bad-device", 2)


def test_auto_says_what_it_took():
    found = parse_devices("auto", lambda: [H100], gpu_engine=True)
    assert found.names == ("cuda:0",) and found.said == "--device auto took cuda:0, NVIDIA H100"
    found = parse_devices("auto", lambda: [], gpu_engine=True)
    assert found.names == ("cpu",) and found.said == "--device auto took cpu: no NVIDIA GPU answers"
    found = parse_devices("auto", asked, gpu_engine=False)
    assert found.names == ("cpu",) and found.said == "--device auto took cpu: the engine installed here uses no GPU"


def test_a_device_is_split_into_its_kind_and_its_index():
    assert split_device("cpu") == ("cpu", 0)
    assert split_device("cuda:12") == ("cuda", 12)
    assert split_device("tensorrt") == ("tensorrt", 0)
    assert split_device("QNNExecutionProvider:1") == ("QNNExecutionProvider", 1)
    for text in ("cpu:0", "cuda:", "cuda:0,1", "tpu", ""):
        with pytest.raises(UsageError):
            split_device(text)


class Driver:
    """Answers as CUDA's driver does; `fails` names the call that does not succeed."""

    def __init__(self, fails=None):
        self.fails = fails

    def __getattr__(self, name):
        if name == self.fails:
            return lambda *_: 100
        return getattr(type(self), f"_{name}").__get__(self)

    def _cuInit(self, flags):
        return 0

    def _cuDeviceGetCount(self, count):
        count._obj.value = 2
        return 0

    def _cuDeviceGet(self, handle, index):
        handle._obj.value = 10 + index
        return 0

    def _cuDeviceGetName(self, name, size, handle):
        name.value = b"GPU in slot %d" % handle.value
        return 0

    def _cuDeviceGetUuid_v2(self, uuid, handle):
        uuid._obj[:] = [handle.value] * 16
        return 0

    def _cuDeviceTotalMem_v2(self, memory, handle):
        memory._obj.value = handle.value * GIB
        return 0


def test_gpus_are_counted_as_the_driver_counts_them(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    assert cuda_gpus() == (
        Gpu(0, "GPU in slot 10", "0a" * 16, 10 * 1024),
        Gpu(1, "GPU in slot 11", "0b" * 16, 11 * 1024),
    )


@pytest.mark.parametrize("fails", ["cuInit", "cuDeviceGetCount", "cuDeviceGetName"])
def test_a_driver_that_fails_has_no_gpus(monkeypatch, fails):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(fails))
    assert cuda_gpus() == ()


def test_without_a_driver_there_are_no_gpus():
    assert cuda_gpus("libno-such-driver.so.1") == ()


@pytest.mark.parametrize(
    "text, size",
    [
        ("4GiB", 4 * GIB),
        ("512 MiB", 512 << 20),
        ("1.5gib", 3 * GIB // 2),
        ("2GB", 2_000_000_000),
        ("1B", 1),
        ("1TiB", 1 << 40),
        (" 10kb ", 10_000),
    ],
)
def test_a_size_is_read_by_its_unit(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "4", "4G", "GiB", "-1GiB", "0GiB", "1e3MiB", "nanGiB", "4GiBs", "0.1B", "9" * 13 + "B", "\u0663GiB"]
)
def test_a_size_without_a_unit_or_number_is_refused(text):
    with pytest.raises(UsageError) as error:
        parse_bytes(text)
    assert error.value.code == "bad-size"


@given(st.integers(1, 1 << 20), st.sampled_from(["B", "KiB", "MiB", "GiB"]))
def test_whole_sizes_are_exact(number, unit):
    assert parse_bytes(f"{number}{unit}") == number << (10 * ["B", "KiB", "MiB", "GiB"].index(unit))


def system(folder, *, free_kib=None, groups="", files=()):
    """Write what the kernel would show; return (proc, cgroups)."""
    proc, cgroups = folder / "proc", folder / "cgroup"
    (proc / "self").mkdir(parents=True)
    cgroups.mkdir()
    if free_kib is not None:
        (proc / "meminfo").write_text(f"MemTotal:       99999999 kB\nMemFree:  1 kB\nMemAvailable:   {free_kib} kB\n")
    (proc / "self" / "cgroup").write_text(groups)
    for path, text in dict(files).items():
        (cgroups / path).parent.mkdir(parents=True, exist_ok=True)
        (cgroups / path).write_text(text)
    return proc, cgroups


def test_without_limits_the_machine_says_what_is_free(tmp_path):
    assert available_memory(*system(tmp_path, free_kib=2048, groups="0::/\n")) == 2 << 20


def test_a_limit_binds_and_the_cache_of_files_does_not_count(tmp_path):
    files = {
        "job/memory.max": f"{4 * GIB}\n",
        "job/memory.current": f"{3 * GIB}\n",
        "job/memory.stat": f"anon {GIB}\nfile {2 * GIB}\ninactive_file {GIB}\nactive_file {GIB}\n",
    }
    assert available_memory(*system(tmp_path, free_kib=99 << 20, groups="0::/job\n", files=files)) == 2 * GIB


def test_the_limit_of_a_group_above_binds_too(tmp_path):
    files = {
        "a/memory.max": str(2 * GIB),
        "a/memory.current": str(GIB),
        "a/b/memory.max": "max\n",
        "a/b/memory.current": "0",
    }
    assert available_memory(*system(tmp_path, free_kib=99 << 20, groups="0::/a/b\n", files=files)) == GIB


def test_version_1_of_control_groups_is_read_in_a_container_that_sees_only_its_root(tmp_path):
    files = {
        "memory/memory.limit_in_bytes": str(GIB),
        "memory/memory.usage_in_bytes": str(GIB // 2),
        "memory/memory.stat": "total_inactive_file 0\n",
    }
    groups = "12:cpu,cpuacct:/docker/abc\n9:memory:/docker/abc\n"
    assert available_memory(*system(tmp_path, free_kib=99 << 20, groups=groups, files=files)) == GIB // 2


def test_no_limit_in_version_1_is_no_limit(tmp_path):
    files = {"memory/memory.limit_in_bytes": "9223372036854771712", "memory/memory.usage_in_bytes": "5"}
    assert available_memory(*system(tmp_path, free_kib=1024, groups="9:memory:/\n", files=files)) == 1 << 20


def test_more_in_use_than_allowed_leaves_nothing(tmp_path):
    files = {"memory.max": "100", "memory.current": "200"}
    assert available_memory(*system(tmp_path, free_kib=1024, groups="0::/\n", files=files)) == 0


def test_where_the_kernel_shows_nothing_it_is_unknown(tmp_path):
    assert available_memory(tmp_path / "proc", tmp_path / "cgroup") is None


def test_this_machine_has_some():
    assert (available_memory() or 1) > 0


def test_what_needs_more_than_it_may_have_is_refused_before_the_work():
    check_memory(None, allowed=1, available=1)
    check_memory(1024, allowed=GIB, available=None)
    check_memory(1024, allowed=None, available=GIB)
    for allowed, available, whose in ((GIB - 1, None, "--memory allows"), (2 * GIB, GIB - 1, "this machine has")):
        with pytest.raises(UnavailableError) as error:
            check_memory(1024, allowed=allowed, available=available)
        assert (error.value.code, error.value.status) == ("memory-too-small", 69)
        assert f"1024 MiB of memory, {whose} 1023 MiB" in error.value.message


def test_a_device_without_memory_is_told_apart_and_survives_a_process_border():
    error = out_of_device_memory("network.onnx", "(4, 1, 96, 96, 96)", "no room")
    again = copy.copy(error)
    assert type(again) is OutOfDeviceMemory and (again.code, again.status) == ("out-of-device-memory", 69)
