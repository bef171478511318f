"""Networks of TensorFlow: refused until they are trusted, converted once, held to TensorFlow's own output."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from md_tensorflow.convert import Converted, Port, check_trust, compare, files_of, kind_of, to_onnx

from mdcli.errors import ConfigError, MissingError, UnavailableError
from mdcli.inference.engines import find_engine

LAST = Port(None, True)
SEGMENTATION = {"inputs": [Port(None, True, (2, 16, 24, 32))], "outputs": [LAST]}
CUBE = {"inputs": [Port(None, True, (1, 8, 8, 8))], "outputs": [LAST]}


def trusted(source: Path) -> frozenset[str]:
    """Return the trust that the refusal names."""
    with pytest.raises(ConfigError) as refused:
        check_trust(source, frozenset())
    assert refused.value.code == "program-not-trusted"
    (sha256,) = set(re.findall(r"[0-9a-f]{64}", f"{refused.value.message} {refused.value.hint}"))
    return frozenset({sha256})


def convert(source: Path, cache: Path, **ports: object) -> Converted:
    return to_onnx(source, cache=cache, trust=trusted(source), **ports)


def run(converted: Converted, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = find_engine("onnxruntime").open(converted.path, device="cpu", threads=1)
    return session.run(feeds, dict.fromkeys(converted.outputs))


@pytest.mark.parametrize(
    ("name", "channels_last"),
    [("net.keras", True), ("net.h5", True), ("saved", True), ("net.pb", False)],
    ids=["Keras", "Keras as HDF5", "SavedModel", "frozen graph, C first"],
)
def test_every_kind_makes_what_tensorflow_makes(networks, tmp_path, name, channels_last):
    ports = {"inputs": [Port(None, channels_last, (2, 16, 24, 32))], "outputs": [Port(None, channels_last)]}
    converted = convert(networks / name, tmp_path / "cache", **ports)
    with np.load(networks / "net.npz") as reference:
        image, scores = np.moveaxis(reference["image"], -1, 1), np.moveaxis(reference["scores"], -1, 1)
    (found,) = run(converted, {converted.inputs[0]: np.ascontiguousarray(image)}).values()
    assert found.shape == scores.shape == (1, 3, 16, 24, 32)
    # 1e-5 of the range: the two add in different orders.
    assert np.abs(found - scores).max() <= 1e-5 * np.ptp(scores)
    assert converted.output_shapes[converted.outputs[0]][1:] == (3, 16, 24, 32)


def test_a_graph_that_has_c_first_inside_keeps_its_axes(networks, tmp_path):
    ports = {"inputs": [Port("NV_MODEL_INPUT", False, (1, 8, 12, 16))], "outputs": [Port("NV_MODEL_OUTPUT", False)]}
    converted = convert(networks / "clara.pb", tmp_path, **ports)
    image = np.zeros((1, 1, 8, 12, 16), np.float32)
    image[0, 0, 3, 5, 7] = 3
    (found,) = run(converted, {"NV_MODEL_INPUT": image}).values()
    # The three places whose own voxel, whose neighbour at x - 1, or whose neighbour at z + 1 is the bright one.
    assert np.argwhere(found[0].argmax(axis=0)).tolist() == [[3, 5, 6], [3, 5, 7], [4, 5, 7]]


def test_the_batch_is_free_and_each_of_it_counts_alone(networks, tmp_path):
    converted = convert(networks / "net.keras", tmp_path, **SEGMENTATION)
    batch = np.random.default_rng(5).standard_normal((3, 2, 16, 24, 32)).astype(np.float32)
    (together,) = run(converted, {"image": batch}).values()
    (alone,) = run(converted, {"image": batch[1:2]}).values()
    assert np.abs(together[1] - alone[0]).max() <= 1e-6


def test_several_inputs_and_outputs_keep_their_names_in_the_order_asked_for(networks, tmp_path):
    ports = [Port(name, True, (1, 24, 40)) for name in ("second", "first")]
    converted = convert(
        networks / "two.keras", tmp_path, inputs=ports, outputs=[Port("grades", False), Port("maps", True)]
    )
    assert (converted.inputs, converted.outputs) == (("second", "first"), ("grades", "maps"))
    random = np.random.default_rng(6)
    one, other = (random.standard_normal((1, 1, 24, 40)).astype(np.float32) for _ in range(2))
    found = run(converted, {"first": one, "second": other})
    swapped = run(converted, {"first": other, "second": one})
    assert found["maps"].shape == (1, 2, 24, 40)
    assert found["grades"].shape == (1, 3)
    # The network says so itself: maps are of first - second without a bias, grades of the sum.
    assert np.abs(found["maps"] + swapped["maps"]).max() <= 1e-5
    assert np.abs(found["grades"] - swapped["grades"]).max() <= 1e-5


def test_a_second_call_starts_no_process(networks, tmp_path, monkeypatch):
    import md_tensorflow.convert as module

    first = convert(networks / "net.keras", tmp_path, **SEGMENTATION)
    monkeypatch.setattr(module, "_run", lambda *_: pytest.fail("it was converted again"))
    assert convert(networks / "net.keras", tmp_path, **SEGMENTATION) == first
    assert [path.name for path in tmp_path.iterdir()] == [first.path.parent.name]


def test_another_window_is_another_conversion(networks, tmp_path):
    first = convert(networks / "net.keras", tmp_path, **SEGMENTATION)
    other = convert(networks / "net.keras", tmp_path, inputs=[Port(None, True, (2, 32, 24, 16))], outputs=[LAST])
    assert first.path != other.path
    assert other.output_shapes["scores"][2:] == (32, 24, 16)


@pytest.mark.parametrize(
    ("name", "ports", "code", "said"),
    [
        pytest.param("two.keras", CUBE, "network-does-not-fit", "'first', 'second'", id="two inputs, none named"),
        pytest.param(
            "net.keras",
            {"inputs": [Port("picture", True, (2, 16, 24, 32))], "outputs": [LAST]},
            "network-does-not-fit",
            "no input 'picture', but 'image'",
            id="an input by another name",
        ),
        pytest.param("net.keras", CUBE, "network-does-not-fit", "makes it (batch, 8, 8, 8, 1)", id="a channel too few"),
        pytest.param(
            "net.keras",
            {"inputs": [Port(None, False, (2, 16, 24, 32))], "outputs": [LAST]},
            "network-does-not-fit",
            "makes it (batch, 2, 16, 24, 32)",
            id="C first where TensorFlow has it last",
        ),
        pytest.param(
            "net.keras",
            {**SEGMENTATION, "outputs": [Port("masks", True)]},
            "network-does-not-fit",
            "'masks'",
            id="output",
        ),
        pytest.param(
            "unknown.pb",
            {"inputs": [Port(None, False, (3, 3))], "outputs": [Port(None, False)]},
            "conversion-failed",
            "'Cholesky'",
            id="an operator that ONNX lacks",
        ),
        pytest.param(
            "half.keras",
            {"inputs": [Port(None, True, (1, 16, 24, 32))], "outputs": [LAST]},
            "conversion-differs",
            "off TensorFlow's",
            id="sums of half precision, which ONNX's engine makes in another order",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(networks, tmp_path, name, ports, code, said):
    with pytest.raises(ConfigError) as refused:
        convert(networks / name, tmp_path, **ports)
    assert refused.value.code == code
    assert said in refused.value.message
    assert not [path for path in tmp_path.iterdir() if (path / "conversion.json").exists()]


@pytest.mark.parametrize("name", ["pyfunc", "writes", "writes.pb"])
def test_a_graph_that_calls_python_or_touches_files_is_refused_even_where_it_is_trusted(networks, tmp_path, name):
    with pytest.raises(ConfigError) as refused:
        convert(networks / name, tmp_path, **CUBE)
    assert refused.value.code == "refused-operator"
    assert "WriteFile" in refused.value.message or "EagerPyFunc" in refused.value.message
    assert not list(tmp_path.rglob("canary"))


@pytest.mark.parametrize("name", ["lambda.keras", "lambda.h5", "pyfunc", "writes", "writes.pb", "net.keras", "saved"])
def test_a_program_that_nobody_trusts_starts_nothing(networks, tmp_path, no_python, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as refused:
        to_onnx(networks / name, cache=tmp_path / "cache", trust=frozenset({"0" * 64}), **CUBE)
    assert refused.value.code == "program-not-trusted"
    assert no_python() == []
    assert not (tmp_path / "canary").exists() and not (tmp_path / "cache").exists()


def attack(folder: Path, kind: str) -> Path:
    """Write a network that would touch `canary`, as far as that is possible without TensorFlow, and return it."""
    code = {"class_name": "Lambda", "config": {"function": "__import__('os').system('touch canary')"}}
    if kind == "saved":
        path = saved_model(folder / "saved")
        (path / "saved_model.pb").write_bytes(b"\x08\x01PyFunc WriteFile canary")
        return path
    path = folder / f"net.{kind}"
    if kind == "keras":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", json.dumps(code))
    else:
        path.write_bytes({"h5": b"\x89HDF\r\n\x1a\n", "pb": b""}[kind] + json.dumps(code).encode())
    return path


@pytest.mark.parametrize("kind", ["keras", "h5", "pb", "saved"])
def test_no_kind_of_program_is_opened_without_trust(tmp_path, no_python, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    path = attack(tmp_path / "model", kind)
    with pytest.raises(ConfigError) as refused:
        to_onnx(path, cache=tmp_path / "cache", trust=frozenset({"0" * 64}), **CUBE)
    assert refused.value.code == "program-not-trusted"
    assert no_python() == []
    assert not (tmp_path / "canary").exists() and not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda ours: ours, None),
        (lambda ours: ours + np.float32(5e-4), None),
        (lambda ours: ours + np.float32(2e-3), "conversion-differs"),
        (lambda ours: ours[:, ::-1], "conversion-differs"),
        (lambda ours: ours.swapaxes(2, 3), "conversion-differs"),
        (lambda ours: ours[:, :, :-1], "conversion-differs"),
        (lambda ours: np.where(ours > 0.9999, np.float32(np.nan), ours), "conversion-differs"),
    ],
    ids=["equal", "off by half", "off by twice", "channels turned", "axes exchanged", "another shape", "not finite"],
)
def test_the_gate_lets_a_thousandth_of_the_range_through(change, code):
    reference = np.random.default_rng(9).uniform(0, 1, (1, 3, 20, 20, 20)).astype(np.float32)
    if code is None:
        found = compare(reference, change(reference), "net")
        assert found["range"] == pytest.approx(1, abs=1e-3)
    else:
        with pytest.raises(ConfigError) as refused:
            compare(reference, change(reference), "net")
        assert refused.value.code == code


def test_the_gate_refuses_classes_that_change_within_the_tolerance():
    # Two channels that lie so close that a thousandth of the range decides between them, everywhere.
    reference = np.zeros((1, 3, 20, 20, 20), np.float32)
    reference[:, 0] += 0.4
    reference[:, 1] += 0.4005
    reference[0, 2, 0, 0, 0] = 1
    ours = reference.copy()
    ours[:, 0] += 8e-4
    with pytest.raises(ConfigError) as refused:
        compare(reference, ours, "net")
    assert refused.value.code == "conversion-differs"
    assert "channel 1 has Dice 0.0" in refused.value.message or "channel 0 has Dice 0.0" in refused.value.message


def test_code_that_is_trusted_runs_where_it_leaves_nothing(networks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    convert(networks / "lambda.keras", tmp_path / "cache", **CUBE)
    assert not (tmp_path / "canary").exists()
    assert {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()} == {
        "network.onnx",
        "conversion.json",
    }


def test_the_child_has_no_network(networks, tmp_path):
    converted = convert(networks / "devices.keras", tmp_path, **CUBE)
    if converted.notes:
        pytest.skip(f"this system does not take a process's network away: {converted.notes[0][0]}")
    (found,) = run(converted, {"image": np.zeros((1, 1, 8, 8, 8), np.float32)}).values()
    # Two lines of a heading, and the loopback device alone.
    assert np.unique(found).tolist() == [3.0]


def saved_model(folder: Path) -> Path:
    """Write what looks like a SavedModel."""
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"\x08\x01")
    (folder / "variables" / "variables.index").write_bytes(b"index")
    return folder


def test_the_sha256_of_a_saved_model_covers_every_file(tmp_path):
    folder = saved_model(tmp_path / "saved")
    before = trusted(folder)
    (folder / "variables" / "variables.index").write_bytes(b"other")
    assert trusted(folder) != before
    (folder / "variables" / "variables.index").write_bytes(b"index")
    assert trusted(folder) == before
    (folder / "assets").mkdir()
    (folder / "assets" / "words.txt").write_text("more")
    assert trusted(folder) != before


def test_a_link_out_of_a_saved_model_is_refused(tmp_path):
    folder = saved_model(tmp_path / "saved")
    (tmp_path / "secret").write_text("secret")
    (folder / "assets").symlink_to(tmp_path)
    with pytest.raises(ConfigError) as refused:
        files_of(folder)
    assert refused.value.code == "outside-folder"
    assert "saved/assets" in refused.value.message


def test_what_is_no_network_of_tensorflow_is_not_taken_for_one(tmp_path):
    for name, content in [("a.keras", b"not a zip"), ("a.h5", b"PK no HDF5"), ("a.onnx", b"\x08\x08")]:
        (tmp_path / name).write_bytes(content)
    assert [kind_of(path) for path in (tmp_path, *tmp_path.iterdir())] == [None] * 4


def test_without_tensorflow_the_line_to_type_is_named(tmp_path, no_python):
    folder = saved_model(tmp_path / "saved")
    with pytest.raises(UnavailableError) as refused:
        convert(folder, tmp_path / "cache", **CUBE)
    assert refused.value.code == "no-engine"
    assert "md-tensorflow[convert]" in str(refused.value.hint)
    assert len(no_python()) == 1


def test_without_a_folder_to_convert_into_it_is_refused(tmp_path):
    folder = saved_model(tmp_path / "saved")
    with pytest.raises(MissingError) as refused:
        to_onnx(folder, cache=None, trust=trusted(folder), **CUBE)
    assert refused.value.code == "no-cache"


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"\xff" * 4096, b"\x0a\xff\xff\xff\xff\x0f"])
def test_a_damaged_graph_is_refused(python, tmp_path, content):
    (tmp_path / "net.pb").write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        convert(tmp_path / "net.pb", tmp_path / "cache", **CUBE)
    assert refused.value.code in ("conversion-failed", "network-does-not-fit")
