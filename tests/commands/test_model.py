"""`md model`, as it is called: a self-test on this machine, and what the network sees."""

from __future__ import annotations

import json
from importlib.resources import files

import jsonschema
import numpy as np
import pytest
from PIL import Image

from mdcli.cli.main import run as md
from mdcli.inference.engines import find_engine
from mdcli.inference.formats import find_model
from mdcli.inference.selftest import checked
from tests.inference.nets import bands, card, write_model
from tests.inference.selftests import model_with_selftest, seen_by_hand, volume
from tests.made_series import workspace, write_series

SCHEMA = json.loads((files("mdcli") / "schemas" / "model-check.json").read_text())


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def passed(folder, cache) -> bool:
    model = find_model(str(folder), ())
    return checked(model.sha256, find_engine("onnxruntime").identity("cpu"), cache / "mdcli" / "checks")


def test_a_model_that_gives_what_it_should_passes_and_that_is_noted(tmp_path, cache, capsys):
    folder = model_with_selftest(tmp_path / "m")
    assert md(["model", "check", str(folder), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "passes"
    counts = [int((seen_by_hand(volume()).labels[0] == value).sum()) for value in (1, 2)]
    words = [line.split() for line in out.splitlines()]
    assert ["low", str(counts[0]), str(counts[0]), "1.000000"] in words
    assert ["high", str(counts[1]), str(counts[1]), "1.000000"] in words
    assert passed(folder, cache)


def test_a_model_that_does_not_fails_by_the_class(tmp_path, cache, capsys):
    folder = model_with_selftest(tmp_path / "m", edges=(0.0, 90.0))
    assert md(["model", "check", str(folder), "--device", "cpu"]) == 1
    captured = capsys.readouterr()
    assert "FAILS" in captured.out and captured.out.splitlines()[-1] == "does not pass"
    assert "[parity-failed]" in captured.err
    assert not passed(folder, cache)


def test_json_is_what_its_schema_says(tmp_path, capsys):
    for name, edges, status in (("good", (0.0, 100.0), 0), ("bad", (0.0, 90.0), 1)):
        folder = model_with_selftest(tmp_path / name, edges=edges)
        assert md(["model", "check", str(folder), "--device", "cpu", "--json"]) == status
        document = json.loads(capsys.readouterr().out)
        jsonschema.validate(document, SCHEMA)
        assert document["passes"] is (status == 0)


def test_what_is_noted_is_what_the_schema_says_too(tmp_path, cache):
    md(["model", "check", str(model_with_selftest(tmp_path / "m")), "--device", "cpu"])
    (noted,) = (cache / "mdcli" / "checks").glob("*.json")
    jsonschema.validate(json.loads(noted.read_text()), SCHEMA)


def test_a_class_that_is_hardly_there_passes_only_with_a_reason(tmp_path, cache, capsys):
    seen = seen_by_hand(volume())
    # No voxel is over 10,000, so the third label is nowhere.
    x = seen.tensor["image"][0, 0]
    scores = np.stack([np.zeros_like(x), x, 2 * x - 10000])
    ordered = np.sort(scores, axis=0)
    seen.scores["scores"], seen.margins[0] = scores[None], ordered[2] - ordered[1]
    seen.labels[0] = (x > 0).astype(np.uint8)
    folder = model_with_selftest(tmp_path / "m", seen, edges=(0.0, 10000.0))
    assert md(["model", "check", str(folder), "--device", "cpu"]) == 1
    assert "not judged: high" in capsys.readouterr().out
    assert not passed(folder, cache)
    assert md(["model", "check", str(folder), "--device", "cpu", "--allow-unjudged", "rare finding"]) == 0
    assert "allowed: rare finding" in capsys.readouterr().out
    assert passed(folder, cache)


def test_a_model_without_a_self_test_is_66(tmp_path, capsys):
    assert md(["model", "check", str(write_model(tmp_path / "m", bands()))]) == 66
    assert "[no-selftest]" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["check", "m", "ws"], ["show", "m"], ["show", "m", "ws"], ["show", "m", "ws", "--out", "x", "--json"]]
)
def test_wrong_calls_are_2(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    model_with_selftest(tmp_path / "m")
    assert md(["model", *arguments]) == 2


def test_the_picture_shows_three_planes_of_what_the_network_sees(tmp_path, capsys):
    # 0 and 200 HU, for the series says -1024 for its intercept.
    array = np.full((6, 8, 10), 1024, np.int16)
    array[:, :, 5:] += 200
    ws = workspace(tmp_path / "ws", write_series(tmp_path / "dicom", array))
    assert md(["load-volume", str(ws)]) == 0
    folder = write_model(tmp_path / "m", bands(), card(inputs0={"intensity": [{"clip": [0, 100]}]}))
    picture = tmp_path / "x.png"
    assert md(["model", "show", str(folder), str(ws), "--out", str(picture), "--device", "cpu"]) == 0
    grey = np.asarray(Image.open(picture).convert("L"))
    # Axes z, y, x of 18 x 8 x 10 mm, 300 pixels for the longest: x to the right is 167 wide. Each of the two planes that show it is
    # black on its left half and white on its right one, but for letters.
    for top, left, height, width in ((72, 24, 133, 167), (72, 348, 300, 167)):
        plane = grey[top : top + height, left : left + width]
        assert np.median(plane[:, : width // 2 - 2]) == 0
        assert np.median(plane[:, width // 2 + 3 :]) == 255


def test_a_volume_of_another_unit_is_refused(tmp_path, capsys):
    ws = workspace(tmp_path / "ws", write_series(tmp_path / "dicom", np.zeros((3, 4, 5), np.int16)))
    assert md(["load-volume", str(ws)]) == 0
    folder = write_model(tmp_path / "m", bands(), card(inputs0={"unit": "SUV"}))
    assert md(["model", "show", str(folder), str(ws), "--out", str(tmp_path / "x.png"), "--device", "cpu"]) == 65
    assert "[wrong-unit]" in capsys.readouterr().err
