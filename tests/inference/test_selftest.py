"""A model is run on the volumes that it comes with: what it sees, gives and says is held to numbers worked out by hand."""

from __future__ import annotations

import io
import json
import zipfile
from importlib.resources import files

import jsonschema
import numpy as np
import pytest

from mdcli.errors import ConfigError, MissingError
from mdcli.inference.card import read_card
from mdcli.inference.engines import find_engine
from mdcli.inference.parity import judge
from mdcli.inference.selftest import (
    Case,
    check,
    checked,
    compare,
    middle_window,
    read_selftest,
    record_check,
    run_case,
)
from tests.inference.nets import bands, card, conv, write_model
from tests.inference.selftests import case, model_with_selftest, seen_by_hand, volume

SCHEMAS = files("mdcli") / "schemas"


def opened(folder):
    said = read_card((folder / "model.yaml").read_text())
    return said, [find_engine("onnxruntime").open(folder / "network.onnx", device="cpu", threads=1)]


def test_a_run_gives_what_the_formula_gives(tmp_path):
    said, sessions = opened(write_model(tmp_path / "m", bands((0.0, 100.0)), card()))
    found, expected = run_case(said, sessions, case(), margins=True), seen_by_hand(volume())
    np.testing.assert_array_equal(found.tensor["image"], expected.tensor["image"])
    np.testing.assert_array_equal(found.scores["scores"], expected.scores["scores"])
    np.testing.assert_array_equal(found.labels[0], expected.labels[0])
    np.testing.assert_array_equal(found.margins[0], expected.margins[0])


@pytest.mark.parametrize("inversion", ["scores", "labels"])
def test_windows_give_the_same_and_the_middle_one_is_kept(tmp_path, inversion):
    window = {"size": [8, 10, 12], "overlap": 0.0, "blending": "constant"}
    said, sessions = opened(
        write_model(tmp_path / "m", bands((0.0, 100.0)), card(window=window, output={"inversion": inversion}))
    )
    found, expected = run_case(said, sessions, case(), margins=True), seen_by_hand(volume())
    np.testing.assert_array_equal(found.labels[0], expected.labels[0])
    np.testing.assert_allclose(found.margins[0], expected.margins[0])
    assert found.tensor["image"].shape == (1, 1, 8, 10, 12)
    # Two windows along each axis: the fifth of eight is the first of the second half along the outermost.
    view = middle_window(said, sessions[0], case())
    np.testing.assert_array_equal(found.tensor["image"][0], view.tensor["image"])


def test_margins_of_masks_are_distances_to_the_threshold(tmp_path):
    weight = np.array([0.01, -0.02], np.float32).reshape(2, 1, 1, 1, 1)
    output = {"activation": "sigmoid", "form": "masks", "threshold": 0.25}
    said, sessions = opened(write_model(tmp_path / "m", conv(weight), card(output=output)))
    found = run_case(said, sessions, case(), margins=True)
    scores = [1 / (1 + np.exp(-factor * volume().astype(np.float64))) for factor in (0.01, -0.02)]
    np.testing.assert_array_equal(found.labels[0], [score >= 0.25 for score in scores])
    np.testing.assert_allclose(found.margins[0], [abs(score - 0.25) for score in scores], atol=1e-6)


def test_the_margin_of_exclusive_sigmoids_counts_the_background_as_the_threshold(tmp_path):
    weight = np.array([0.01, -0.02], np.float32).reshape(2, 1, 1, 1, 1)
    said, sessions = opened(write_model(tmp_path / "m", conv(weight, [-1, -1]), card(output={"activation": "sigmoid"})))
    found = run_case(said, sessions, case(), margins=True)
    x = volume().astype(np.float64)
    scores = np.sort([np.full(x.shape, 0.5), *(1 / (1 + np.exp(1 - factor * x)) for factor in (0.01, -0.02))], axis=0)
    np.testing.assert_allclose(found.margins[0], scores[2] - scores[1], atol=1e-6)


def test_a_self_test_comes_back_as_it_was_written_and_as_its_schema_says(tmp_path):
    folder = model_with_selftest(tmp_path / "m")
    document = json.loads((folder / "selftest" / "selftest.json").read_text())
    jsonschema.validate(document, json.loads((SCHEMAS / "selftest.json").read_text()))
    read = read_selftest(folder)
    ((found_case, found),) = read.cases
    expected = seen_by_hand(volume())
    np.testing.assert_array_equal(found_case.arrays[0], volume())
    for one, other in (
        (found.tensor, expected.tensor),
        (found.labels, expected.labels),
        (found.margins, expected.margins),
    ):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[key], other[key]) for key in one)
    again = model_with_selftest(tmp_path / "again")
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert all((folder / name).read_bytes() == (again / name).read_bytes() for name in names)


def test_a_model_passes_its_own_self_test(tmp_path):
    folder = model_with_selftest(tmp_path / "m")
    verdict = judge(check(*opened(folder), read_selftest(folder)))
    assert verdict.passes()
    assert [number.name for number in verdict.reports[0].numbers] == ["tensor image", "scores scores"]


def test_another_preprocessing_another_network_and_other_labels_fail_each_by_its_own_name(tmp_path):
    other_steps = card(inputs0={"intensity": [{"clip": [-100, 250]}]})
    for number, (options, words) in enumerate(
        [
            ({"said": other_steps}, "tensor image"),
            ({"edges": (0.0, 90.0)}, "scores scores"),
        ]
    ):
        folder = model_with_selftest(tmp_path / str(number), **options)
        verdict = judge(check(*opened(folder), read_selftest(folder)))
        assert any(words in failure for failure in verdict.failures)
    seen = seen_by_hand(volume())
    seen.labels[0] = np.flip(seen.labels[0], axis=2).copy()
    folder = model_with_selftest(tmp_path / "flipped", seen)
    verdict = judge(check(*opened(folder), read_selftest(folder)))
    assert any("low" in failure for failure in verdict.failures)
    assert not any("tensor" in failure for failure in verdict.failures)


def test_outputs_that_are_no_maps_are_compared_by_their_numbers(tmp_path):
    from onnx import helper

    from tests.inference.nets import network

    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["scores"]),
    ]
    said = card(
        task="regression",
        output={"axes": ["C"], "unit": {"value": "1", "scheme": "UCUM", "meaning": "no units"}},
        labels=[{**card()["labels"][0]}],
    )
    said["output"].pop("inversion")
    said.pop("window")
    folder = write_model(tmp_path / "m", network(nodes, channels=1, out=("n", 1)), said)
    said, sessions = opened(folder)
    found = run_case(said, sessions, case(), margins=True)
    assert found.rows["scores"] == pytest.approx(volume().mean(), rel=1e-4)
    assert compare(said, found, run_case(said, sessions, case()), "x").good


def test_a_folder_without_one_says_what_writes_it(tmp_path):
    with pytest.raises(MissingError) as caught:
        read_selftest(write_model(tmp_path / "m", bands()))
    assert caught.value.code == "no-selftest"


def npz(name: str, header: bytes, data: bytes = b"") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data)
    return file.getvalue()


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }\n",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n",
        b"{'descr': __import__('os').system('true'), 'fortran_order': False, 'shape': (1,), }\n",
        b"nonsense\n",
    ],
    ids=["a huge array", "objects", "code", "nonsense"],
)
def test_hostile_arrays_are_refused_before_they_are_read(tmp_path, header):
    folder = model_with_selftest(tmp_path / "m")
    (folder / "selftest" / "case_0000" / "input.npz").write_bytes(npz("input_0.npy", header, b"cos\nsystem\n."))
    with pytest.raises(ConfigError) as caught:
        read_selftest(folder)
    assert caught.value.code == "bad-selftest"


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "md.selftest/2"},
        {"cases": []},
        {"cases": [{"name": "x", "folder": "../../elsewhere"}]},
        {
            "cases": [
                {"name": "x", "folder": "case_0000", "inputs": 2, "tensor": [], "scores": [], "maps": [], "rows": []}
            ]
        },
    ],
)
def test_a_self_test_that_makes_no_sense_is_refused(tmp_path, change):
    folder = model_with_selftest(tmp_path / "m")
    file = folder / "selftest" / "selftest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ConfigError) as caught:
        read_selftest(folder)
    assert caught.value.code == "bad-selftest"


def test_a_self_test_of_another_card_is_refused(tmp_path):
    folder = model_with_selftest(tmp_path / "m")
    said = card(inputs=[{**card()["inputs"][0], "role": role, "tensor": "image"} for role in ("volume", "volume-b")])
    with pytest.raises(ConfigError) as caught:
        check(read_card(json.dumps(said)), opened(folder)[1], read_selftest(folder))
    assert caught.value.code == "bad-selftest"


def test_a_check_counts_for_its_model_engine_and_device_alone(tmp_path):
    identity = {"engine": "onnxruntime", "version": "1", "precision": "float32", "device": "cpu"}
    assert not checked("a", identity, tmp_path)
    record_check("a", identity, tmp_path, {"passes": False})
    assert not checked("a", identity, tmp_path)
    record_check("a", identity, tmp_path, {"passes": True})
    assert checked("a", identity, tmp_path)
    assert not checked("b", identity, tmp_path)
    assert not checked("a", {**identity, "device": "A100"}, tmp_path)
    assert not checked("a", identity, None)
    for file in tmp_path.iterdir():
        file.write_text("[]")
    assert not checked("a", identity, tmp_path)


def test_the_middle_window_is_in_the_networks_axes_with_the_patients_directions(tmp_path):
    said = card(
        inputs0={"axes": ["C", "x", "y", "z"], "orientation": "RAS"},
        output={"axes": ["C", "x", "y", "z"]},
        window={"size": ["full", "full", "full"], "overlap": 0, "blending": "constant"},
    )
    said, sessions = opened(write_model(tmp_path / "m", bands(), said))
    affine = np.diag([0.5, 0.75, 2.0, 1.0])
    view = middle_window(said, sessions[0], Case("x", (volume(),), affine))
    # The volume runs to the left and the back; RAS to the right and the front, so both are flipped.
    np.testing.assert_array_equal(view.tensor["image"][0], volume().transpose(2, 1, 0)[::-1, ::-1])
    assert view.axes == ("x", "y", "z")
    assert view.directions == ((-0.5, 0, 0), (0, -0.75, 0), (0, 0, 2.0))
