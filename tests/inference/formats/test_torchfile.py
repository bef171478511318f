"""Files of torch are told apart without torch, hostile ones are refused before anything of them runs, the rest becomes ONNX."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mdcli.errors import ConfigError, MdError, MissingError, OutOfTimeError, UnavailableError
from mdcli.inference import isolation
from mdcli.inference.formats import torchfile
from mdcli.inference.formats.torchfile import NetworkDefinition, TorchSession, kind_of, to_onnx

UNET = NetworkDefinition(
    "monai.networks.nets.UNet",
    {"spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": [4, 8], "strides": [2]},
)
SHAPE = (1, 1, 16, 16, 16)
MAKER = Path(__file__).with_name("make_torch_files.py")


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def zipped(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def convert(file: Path, tmp_path: Path, *, trust: frozenset[str] = frozenset(), network=UNET, **options):
    return to_onnx(file, cache=tmp_path / "cache", trust=trust, input_shape=SHAPE, network=network, **options)


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def no_child(monkeypatch):
    """Fail where a child is started: what the test opens has to be refused before."""

    def started(*_, **__):
        raise AssertionError("a child was started")

    monkeypatch.setattr(torchfile, "run_child", started)


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("name", ["model.pt", "model.pth", "model.ts", "model.safetensors"])
def test_a_pickle_in_a_weights_file_is_not_run_whatever_the_file_is_called(tmp_path, canary, no_child, name, protocol):
    content = pickle.dumps({"weight": Touch(canary)}, protocol)
    file = zipped(tmp_path / name, {"model/data.pkl": content, "model/version": b"3\n"})
    with pytest.raises(ConfigError) as caught:
        convert(file, tmp_path)
    assert caught.value.code == "refused-pickle"
    assert not canary.exists()


@pytest.mark.parametrize("protocol", range(2, 6))
def test_a_pickle_in_a_file_of_an_old_torch_is_not_run(tmp_path, canary, no_child, protocol):
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    file = tmp_path / "model.pth"
    file.write_bytes(b"".join(pickle.dumps(p, 2) for p in parts) + pickle.dumps(Touch(canary), protocol))
    with pytest.raises(ConfigError) as caught:
        convert(file, tmp_path)
    assert caught.value.code == "refused-pickle"
    assert not canary.exists()


def test_a_bare_pickle_is_not_run(tmp_path, canary, no_child):
    file = tmp_path / "model.pt"
    file.write_bytes(pickle.dumps(Touch(canary), 2))
    with pytest.raises(ConfigError) as caught:
        convert(file, tmp_path)
    assert caught.value.code == "refused-pickle"
    file.write_bytes(pickle.dumps({"weight": 1}, 2))
    with pytest.raises(ConfigError, match="and not one that") as caught:
        convert(file, tmp_path)
    assert caught.value.code == "bad-network"
    assert not canary.exists()


@pytest.mark.parametrize(
    "opcodes",
    [
        pytest.param(b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00trueR.", id="os.system"),
        pytest.param(b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.", id="eval"),
        pytest.param(b"\x80\x02ctorch.hub\nload\n.", id="torch.hub.load"),
        pytest.param(b"(S'true'\nios\nsystem\n.", id="INST, protocol 0"),
        pytest.param(b"\x80\x02\x82\x01.", id="EXT1"),
        pytest.param(b"\x80\x02ctorch\nload\n.", id="torch.load"),
        pytest.param(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2 os\n.", id="a name with a blank"),
    ],
)
def test_what_weights_do_not_need_is_refused_in_a_pickle(tmp_path, no_child, opcodes):
    file = zipped(tmp_path / "model.pt", {"model/data.pkl": opcodes})
    with pytest.raises(ConfigError) as caught:
        convert(file, tmp_path)
    assert caught.value.code == "refused-pickle"


@pytest.mark.parametrize(
    "entries, what",
    [
        ({"model/code/__torch__.py": b"", "model/data.pkl": b"."}, "TorchScript"),
        ({"model/constants.pkl": b".", "model/data.pkl": b"."}, "TorchScript"),
        ({"model/archive_format": b"pt2", "model/models/model.json": b"{}"}, "torch.export"),
        ({"serialized_exported_program.json": b"{}", "version": b"8"}, "torch.export"),
    ],
    ids=["code", "constants", "pt2", "an early pt2"],
)
@pytest.mark.parametrize("name", ["model.ts", "model.pt", "model.pt2"])
def test_a_program_is_refused_without_trust_and_its_sha256_is_said(tmp_path, canary, no_child, entries, what, name):
    poisoned = {**entries, "model/data/weights/w": pickle.dumps(Touch(canary))}
    file = zipped(tmp_path / name, poisoned)
    for trust in (frozenset(), frozenset({"0" * 64})):
        with pytest.raises(ConfigError, match=what) as caught:
            convert(file, tmp_path, trust=trust, network=None)
        assert caught.value.code == "program-not-trusted"
        assert sha256(file) in caught.value.message
        assert f"--trust-model {sha256(file)}" in str(caught.value.hint)
    assert not canary.exists()


@pytest.mark.parametrize("name", ["/etc/passwd", "model/../../data.pkl", "..\\data.pkl"])
def test_a_zip_with_an_odd_name_in_it_is_refused(tmp_path, no_child, name):
    file = zipped(tmp_path / "model.pt", {"model/data.pkl": b"\x80\x02}.", name: b"x"})
    with pytest.raises(ConfigError) as caught:
        convert(file, tmp_path)
    assert caught.value.code == "bad-network"


def test_two_entries_of_one_name_are_refused_for_readers_take_different_ones(tmp_path, canary, no_child):
    file = tmp_path / "model.pt"
    with zipfile.ZipFile(file, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("model/data.pkl", pickle.dumps(Touch(canary), 2))
        archive.writestr("model/data.pkl", b"\x80\x02}.")
    with pytest.raises(ConfigError, match="two entries of one name"):
        convert(file, tmp_path)


def test_a_zip_that_unpacks_to_much_more_than_it_is_gets_refused(tmp_path, no_child):
    file = tmp_path / "model.pt"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", b"\x80\x02}.")
        archive.writestr("model/data/0", bytes(100 << 20))
    with pytest.raises(ConfigError, match="would unpack to 1048") as caught:
        convert(file, tmp_path)
    assert caught.value.code == "bad-network"


def test_the_tar_files_of_the_first_torch_are_refused(tmp_path, no_child):
    file = tmp_path / "model.pth"
    with tarfile.open(file, "w") as archive:
        entry = tarfile.TarInfo("pickle")
        archive.addfile(entry, io.BytesIO())
    with pytest.raises(ConfigError) as caught:
        convert(file, tmp_path)
    assert caught.value.code == "bad-network"


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x03\x04" + bytes(40), b"\x80\x02", bytes(100), b"\x08\x03"])
def test_a_damaged_file_is_refused(tmp_path, no_child, content):
    file = tmp_path / "model.pt"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        convert(file, tmp_path)
    assert caught.value.code == "bad-network"


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(shape: object, first: object, last: object, dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(safetensors({"w": tensor([1 << 40], 0, 1 << 42)}), id="larger than the file"),
        pytest.param(safetensors({"w": tensor([4], 0, 8)}, bytes(8)), id="longer than its bytes"),
        pytest.param(safetensors({"w": tensor([-1, -2], 0, 8)}, bytes(8)), id="negative sizes"),
        pytest.param(safetensors({"w": tensor([True], 0, 4)}, bytes(4)), id="a truth value as size"),
        pytest.param(
            safetensors({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, bytes(12)), id="two over one another"
        ),
        pytest.param(safetensors({"w": tensor([1], 0, 4, "Q9")}, bytes(4)), id="an unknown type"),
        pytest.param(safetensors({"w": [1]}), id="no mapping"),
        pytest.param(safetensors(b"{" + b"[" * 5000), id="nested deep"),
        pytest.param(safetensors(b"{}", length=1 << 60), id="a header longer than the file"),
    ],
)
def test_safetensors_whose_header_does_not_fit_the_file_are_refused(tmp_path, no_child, content):
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        convert(file, tmp_path)
    assert caught.value.code == "bad-network"


def test_kinds_are_told_apart_by_content(tmp_path):
    file = tmp_path / "model.bin"
    file.write_bytes(safetensors({"__metadata__": {"a": "b"}, "w": tensor([2], 0, 8)}, bytes(8)))
    assert kind_of(file) == "safetensors"
    assert kind_of(zipped(file, {"m/data.pkl": b"\x80\x02}.", "m/version": b"3"})) == "weights"
    assert kind_of(zipped(file, {"m/data.pkl": b"\x80\x02}.", "m/code/__torch__.py": b""})) == "torchscript"
    assert kind_of(zipped(file, {"m/archive_format": b"pt2"})) == "export"


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "monai.bundle.ConfigParser",
        "monai.networks.nets",
        "monai.networks.nets.UNet.__init__",
        "torch.nn.Conv3d",
        "monai.networks.nets.unet;os",
        "monai.networks.nets..UNet",
        "dynamic_network_architectures.building_blocks.x.Y",
    ],
)
def test_weights_go_into_listed_networks_only(tmp_path, no_child, target):
    file = zipped(tmp_path / "model.pt", {"m/data.pkl": b"\x80\x02}."})
    with pytest.raises(ConfigError) as caught:
        convert(file, tmp_path, network=NetworkDefinition(target))
    assert caught.value.code == "unsupported-network"


@pytest.mark.parametrize(
    "arguments", [{"act": object()}, {"pretrained": "https://example.org/w.pt"}, {"a": "x" * 70_000}]
)
def test_arguments_are_plain_and_fetch_nothing(tmp_path, no_child, arguments):
    file = zipped(tmp_path / "model.pt", {"m/data.pkl": b"\x80\x02}."})
    with pytest.raises(ConfigError) as caught:
        convert(file, tmp_path, network=NetworkDefinition("monai.networks.nets.UNet", arguments))
    assert caught.value.code == "unsupported-network"


def test_weights_without_a_network_and_a_program_with_one_are_refused(tmp_path, no_child):
    weights = zipped(tmp_path / "model.pt", {"m/data.pkl": b"\x80\x02}."})
    with pytest.raises(ConfigError, match="nothing says which network") as caught:
        convert(weights, tmp_path, network=None)
    assert caught.value.code == "unsupported-network"
    program = zipped(tmp_path / "model.ts", {"m/code/a.py": b""})
    with pytest.raises(ConfigError, match="a definition is given too"):
        convert(program, tmp_path, trust=frozenset({sha256(program)}))


def test_a_file_that_is_not_there_is_missing(tmp_path, no_child):
    with pytest.raises(MissingError) as caught:
        convert(tmp_path / "model.pt", tmp_path)
    assert caught.value.code == "no-network"


def test_nothing_is_left_in_the_cache_of_what_was_refused(tmp_path, no_child):
    file = zipped(tmp_path / "model.pt", {"m/data.pkl": b"\x80\x02cos\nsystem\n."})
    with pytest.raises(ConfigError):
        convert(file, tmp_path)
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_a_killed_conversion_left_is_removed_after_a_day(tmp_path, no_child):
    file = zipped(tmp_path / "model.pt", {"m/data.pkl": b"\x80\x02cos\nsystem\n."})
    cache = tmp_path / "cache"
    for name, days in ((".converting-old", 2), (".converting-new", 0), ("entry", 2)):
        (cache / name).mkdir(parents=True)
        then = time.time() - days * 86_400
        os.utime(cache / name, (then, then))
    with pytest.raises(ConfigError):
        convert(file, tmp_path)
    assert sorted(path.name for path in cache.iterdir()) == [".converting-new", "entry"]


# The child, without torch: scripts that keep to its protocol.


def child(tmp_path: Path, text: str, timeout_s: float = 60.0):
    script = tmp_path / "child.py"
    head = (
        "import json, os, sys\nfrom pathlib import Path\nfolder = Path(sys.argv[1]).parent\n"
        "def answer(facts): (folder / 'answer.json').write_text(json.dumps("
        "{'isolated': True, 'facts': facts, 'notes': [], 'outputs': 1}))\n"
    )
    script.write_text(head + text)
    folder = tmp_path / "folder"
    folder.mkdir()
    return isolation.run_child(folder, {}, name="m.pt", python=None, timeout_s=timeout_s, script=script)


def test_the_child_sees_no_variable_of_ours(tmp_path, monkeypatch):
    monkeypatch.setenv("MD_SECRET", "token")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    found = child(tmp_path, "answer(dict(os.environ))").facts
    assert set(found) - {"LC_CTYPE"} == {"PATH", "HOME", "TMPDIR"}
    assert found["HOME"] == str(tmp_path / "folder")


def test_a_child_that_takes_too_long_is_killed_with_what_it_started(tmp_path):
    text = "import subprocess, time\np = subprocess.Popen(['sleep', '1000'])\n(folder / 'pid').write_text(str(p.pid))\np.wait()"
    with pytest.raises(OutOfTimeError) as caught:
        child(tmp_path, text, timeout_s=2)
    assert caught.value.code == "conversion-timeout"
    pid = int((tmp_path / "folder" / "pid").read_text())
    for _ in range(100):
        if not is_running(pid):
            return
        time.sleep(0.1)
    raise AssertionError("what the child started still runs")


def is_running(pid: int) -> bool:
    try:
        # A killed process stays as a zombie until the first process of the system takes it away.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize(
    "text, said",
    [
        ("os.kill(os.getpid(), 9)", "signal 9"),
        ("sys.exit('so \\x1b[31mred')", "so \\\\x1b\\[31mred"),
        ("(folder / 'answer.json').write_text('[1]')", "status 0"),
        ("(folder / 'answer.json').write_text('{' * 100)", "status 0"),
        ("(folder / 'answer.json').write_text(json.dumps({'isolated': True}))", "status 0"),
    ],
    ids=["killed", "exits with control characters", "a list", "no JSON", "half an answer"],
)
def test_a_child_that_dies_or_answers_nonsense_is_a_failed_conversion(tmp_path, text, said):
    with pytest.raises(ConfigError, match=said) as caught:
        child(tmp_path, text)
    assert caught.value.code == "conversion-failed"


def test_a_child_without_torch_says_what_to_install(tmp_path):
    text = "(folder / 'answer.json').write_text(json.dumps({'error': 'no-engine', 'message': 'no torch'}))"
    with pytest.raises(UnavailableError) as caught:
        child(tmp_path, text)
    assert (caught.value.code, caught.value.hint) == ("no-engine", "pip install 'mdcli[torch]'")


ISOLATED = (
    "import socket, resource, importlib.util\n"
    "spec = importlib.util.spec_from_file_location('c', {child!r})\nc = importlib.util.module_from_spec(spec)\n"
    "spec.loader.exec_module(c)\nalone = c.isolate(1 << 30)\n"
    "def reaches():\n"
    "    try:\n        socket.create_connection(('127.0.0.1', {port}), 2).close()\n        return True\n"
    "    except OSError:\n        return False\n"
    "def fills():\n"
    "    try:\n        return len(bytearray(2 << 30)) > 0\n    except MemoryError:\n        return False\n"
    "answer(dict(alone=alone, reaches=reaches(), fills=fills()))\n"
)


def test_an_isolated_child_reaches_no_network_and_takes_no_more_memory_than_allowed(tmp_path):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        text = ISOLATED.format(child=str(isolation.CHILD_FILE), port=server.getsockname()[1])
        found = child(tmp_path, text).facts
    if not found["alone"]:
        pytest.skip("this system lets no process without network start")
    assert found == {"alone": True, "reaches": False, "fills": False}


def test_the_child_needs_nothing_of_mdcli():
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-c",
            f"import runpy, sys; sys.modules['mdcli'] = None; runpy.run_path({str(isolation.CHILD_FILE)!r})",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


# With torch.


@pytest.fixture(scope="module")
def made(torch_python, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("torch")
    subprocess.run([torch_python, str(MAKER)], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.mark.torch
@pytest.mark.parametrize("name", ["weights.pt", "legacy.pth", "checkpoint.pt", "net.ts", "net.pt2", "net.safetensors"])
def test_the_onnx_network_gives_what_torch_gives_for_every_batch(made, torch_python, tmp_path, name):
    import onnxruntime

    file = made / name
    program = file.suffix in (".ts", ".pt2")
    trust = frozenset({sha256(file)} if program else ())
    found = convert(file, tmp_path, trust=trust, network=None if program else UNET, python=torch_python)
    session = onnxruntime.InferenceSession(str(found.path), providers=["CPUExecutionProvider"])
    assert [value.name for value in (*session.get_inputs(), *session.get_outputs())] == ["input", "output"]
    batch = np.random.default_rng(5).normal(size=(3, 1, 16, 16, 16)).astype("f4")
    (ours,) = session.run(None, {"input": batch})
    np.testing.assert_allclose(ours, np.load(made / "expected.npy"), atol=1e-5)
    assert found.facts["largest_difference"] < 1e-5
    assert found.facts["checkpoint"] == ({"epoch": 7} if name == "checkpoint.pt" else {})
    assert {code for code, _ in found.notes} <= {"not-isolated"}
    content = found.path.read_bytes()
    assert b"site-packages" not in content and str(tmp_path).encode() not in content


@pytest.mark.torch
def test_a_second_call_needs_no_torch_and_a_damaged_cache_is_made_anew(made, torch_python, tmp_path):
    first = convert(made / "weights.pt", tmp_path, python=torch_python)
    assert convert(made / "weights.pt", tmp_path, python="/no/such/python") == first
    first.path.write_bytes(b"damaged")
    assert convert(made / "weights.pt", tmp_path, python=torch_python).sha256 == first.sha256
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [first.path.parent.name]


@pytest.mark.torch
def test_one_of_several_outputs_is_kept(made, torch_python, tmp_path):
    import onnxruntime

    file = made / "two.pt2"
    options = {"trust": frozenset({sha256(file)}), "network": None, "python": torch_python}
    session = onnxruntime.InferenceSession(str(convert(file, tmp_path, select_output=1, **options).path))
    batch = np.random.default_rng(5).normal(size=(3, 1, 16, 16, 16)).astype("f4")
    assert [value.name for value in session.get_outputs()] == ["output"]
    np.testing.assert_allclose(session.run(None, {"input": batch})[0], np.load(made / "second.npy"), atol=1e-5)
    session = onnxruntime.InferenceSession(str(convert(file, tmp_path, **options).path))
    assert [value.name for value in session.get_outputs()] == ["output_0", "output_1"]


@pytest.mark.torch
def test_a_network_whose_batch_is_fixed_says_so(made, torch_python, tmp_path):
    file = made / "fixed.ts"
    found = convert(file, tmp_path, trust=frozenset({sha256(file)}), network=None, python=torch_python)
    assert found.facts["batch"] == 1
    assert "fixed-batch" in {code for code, _ in found.notes}


@pytest.mark.torch
@pytest.mark.parametrize(
    "name, network, code",
    [
        ("short.pt", UNET, "network-does-not-fit"),
        ("whole.pt", UNET, "refused-pickle"),
        ("weights.pt", NetworkDefinition("monai.networks.nets.UNet", {"spatial_dims": 3}), "unsupported-network"),
        ("weights.pt", NetworkDefinition("monai.networks.nets.NoSuchNet"), "unsupported-network"),
        ("weights.pt", NetworkDefinition("monai.networks.nets.Sequence"), "unsupported-network"),
    ],
)
def test_weights_that_are_not_the_networks_are_refused(made, torch_python, tmp_path, name, network, code):
    with pytest.raises(MdError) as caught:
        convert(made / name, tmp_path, network=network, python=torch_python)
    assert caught.value.code == code


@pytest.mark.torch
def test_a_storage_that_says_it_is_huge_is_refused_by_torchs_loader(made, torch_python, tmp_path):
    with zipfile.ZipFile(made / "weights.pt") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in entries if name.endswith("data.pkl"))
    # BININT1 108 (the first storage: 4 * 1 * 27 numbers) becomes BININT 2^31 - 1.
    assert b"K\x6ct" in entries[pickled]
    entries[pickled] = entries[pickled].replace(b"K\x6ct", b"J\xff\xff\xff\x7ft", 1)
    file = zipped(tmp_path / "huge.pt", entries)
    with pytest.raises(ConfigError) as caught:
        convert(file, tmp_path, python=torch_python)
    assert caught.value.code == "bad-network"


@pytest.fixture
def converted(made, torch_python, tmp_path):
    from mdcli.inference.engines import find_engine

    found = convert(made / "weights.pt", tmp_path, python=torch_python)
    return find_engine("onnxruntime").open(found.path, device="cpu", threads=1)


@pytest.mark.torch
def test_torch_itself_is_run_for_a_reference(made, torch_python, tmp_path, converted):
    batch = np.random.default_rng(5).normal(size=(3, 1, 16, 16, 16)).astype("f4")
    cache = tmp_path / "live"
    options = {"cache": cache, "trust": frozenset(), "network": UNET, "python": torch_python}
    with TorchSession(made / "weights.pt", converted, **options) as session:
        out = np.zeros((2, 3, 16, 16, 16), np.float32)
        first = session.run({"input": batch[:1]}, {"output": None})["output"]
        assert session.run({"input": batch[1:]}, {"output": out})["output"] is out
        assert session.facts()["engine"] == "torch"
        with pytest.raises(ConfigError) as caught:
            session.run({"input": np.repeat(batch, 2, axis=1)}, {"output": None})
        assert caught.value.code == "network-does-not-fit"
        again = session.run({"input": batch[:1]}, {"output": None})["output"]
        folder = session._checked.folder
    np.testing.assert_allclose(np.concatenate([first, out]), np.load(made / "expected.npy"), atol=1e-6)
    np.testing.assert_array_equal(again, first)
    assert not folder.exists() and list(cache.iterdir()) == []


@pytest.mark.torch
def test_a_child_that_can_not_load_leaves_nothing(made, torch_python, tmp_path, converted):
    options = {"cache": tmp_path / "live", "trust": frozenset(), "network": UNET, "python": torch_python}
    with pytest.raises(ConfigError) as caught:
        TorchSession(made / "short.pt", converted, **options)
    assert caught.value.code == "network-does-not-fit"
    assert list((tmp_path / "live").iterdir()) == []
