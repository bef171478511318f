"""Model cards: what is read, and what is refused by name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from importlib.resources import files
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from mdcli.errors import ConfigError, MissingError
from mdcli.inference.card import Card, Clip, Crop, Input, Normalize, Output, Scale, Window, read_card
from mdcli.inference.formats import Opening, find_model
from mdcli.inference.onnxfile import external_files
from mdcli.inference.tasks.settings import Detection, Instances
from tests.inference.nets import bands, card, label, network, write_model

EMBEDDED = Path(str(files("mdcli") / "models"))


def text(**changes) -> str:
    return yaml.safe_dump(card(**changes), sort_keys=False)


def refused(said: str) -> ConfigError:
    with pytest.raises(ConfigError) as error:
        read_card(said)
    assert error.value.code == "bad-card" and error.value.status == 78
    return error.value


def without(*path) -> str:
    """Return a card without one key."""
    said = card()
    inner = said
    for part in path[:-1]:
        inner = inner[part]
    del inner[path[-1]]
    return yaml.safe_dump(said)


@pytest.mark.parametrize(
    "path",
    [
        ("inputs", 0, "axes"),
        ("inputs", 0, "orientation"),
        ("inputs", 0, "spacing"),
        ("inputs", 0, "unit"),
        ("output", "axes"),
        ("output", "activation"),
        ("output", "inversion"),
        ("window", "size"),
        ("window", "blending"),
        ("labels", 0, "category"),
        ("name",),
        ("empty",),
    ],
    ids=lambda path: ".".join(map(str, path)),
)
def test_a_missing_key_that_has_no_default_is_named(path):
    error = refused(without(*path))
    assert path[-1] in error.message and "missing" in error.message


def test_overlap_or_halo_is_wanted_and_not_both():
    assert "overlap or halo" in refused(without("window", "overlap")).message
    assert "overlap or halo" in refused(text(window={"halo": [1, 1, 1]})).message


def test_statistics_of_the_volume_need_a_word_on_padding():
    said = {"intensity": [{"normalize": "volume"}]}
    assert "padding missing" in refused(text(inputs0=said)).message
    assert read_card(text(inputs0={**said, "padding": "exclude"})).input.padding == "exclude"


@pytest.mark.parametrize(
    "changes, unknown, near",
    [
        ({"labls": []}, "labls", "labels"),
        ({"inputs0": {"spacin": 1}}, "spacin", "spacing"),
        ({"window": {"sizes": 1}}, "sizes", "size"),
        ({"accepts": {"modalty": ["CT"]}}, "modalty", "modality"),
        ({"inputs0": {"intensity": [{"clips": [0, 1]}]}}, "clips", "clip"),
        ({"inputs0": {"intensity": [{"scale": {"form": [0, 1], "to": [0, 1]}}]}}, "form", "from"),
        ({"accepts": {"slice_count": {"mim": 3}}}, "mim", "min"),
        ({"accepts": {"where": "Modalty = CT"}}, "Modalty", "Modality"),
        ({"resources": {"memory": 3}}, "memory", "memory_mib"),
    ],
)
def test_an_unknown_key_is_an_error_that_names_the_near_one(changes, unknown, near):
    error = refused(text(**changes))
    assert repr(unknown) in error.message and f"did you mean {near}?" == error.hint


@pytest.mark.parametrize(
    "changes, word",
    [
        pytest.param({"inputs0": {"axes": ["x", "y", "z", "C"]}}, "axes", id="channels last"),
        pytest.param({"inputs0": {"axes": ["C", "x", "y", "y"]}}, "axes", id="an axis twice"),
        pytest.param({"inputs0": {"orientation": "RAA"}}, "orientation", id="no head to foot"),
        pytest.param({"inputs0": {"orientation": "ras"}}, "orientation", id="small letters"),
        pytest.param({"inputs0": {"spacing": [1, 1, 0]}}, "spacing", id="no spacing"),
        pytest.param({"inputs0": {"spacing": [1, 1]}}, "spacing", id="two spacings"),
        pytest.param({"inputs0": {"spacing": [1, 1, float("nan")]}}, "spacing", id="not a number"),
        pytest.param({"inputs0": {"spacing": "same"}}, "as-acquired", id="another word"),
        pytest.param({"window": {"size": [96, 96, "all"]}}, "full", id="another word for a whole axis"),
        pytest.param({"window": {"overlap": 1}}, "overlap", id="overlap of all"),
        pytest.param({"version": 1.0}, "version", id="a number for a version"),
        pytest.param({"task": "detection"}, "detection", id="a task without its settings"),
        pytest.param({"task": "guessing"}, "segmentation", id="another task"),
        pytest.param({"network": "http://host/model"}, "network", id="a server of another protocol"),
        pytest.param({"labels": [label(1, "a"), label(3, "b")]}, "labels", id="a hole in the values"),
        pytest.param({"labels": [label(1, "a"), label(2, "a")]}, "twice", id="a name twice"),
        pytest.param({"labels": []}, "labels", id="no labels"),
        pytest.param({"inputs0": {"intensity": [{"clip": [1, 0]}]}}, "clip", id="clip upside down"),
        pytest.param({"inputs0": {"intensity": [{"scale": {"from": [1, 1], "to": [0, 1]}}]}}, "from", id="no range"),
        pytest.param({"inputs0": {"intensity": [{"normalize": {"mean": 0, "std": 0}}]}}, "std", id="std of 0"),
        pytest.param({"inputs0": {"grayscale": "photometric"}}, "modality", id="a grayscale that md can't make"),
        pytest.param({"schema": "md.model/2"}, "md.model/2", id="a later schema"),
        pytest.param({"name": "../up"}, "name", id="a path for a name"),
        pytest.param({"regulatory": "a\x1b[2Jb"}, "regulatory", id="control characters"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_value(changes, word):
    assert word in refused(text(**changes)).message


def test_a_halo_leaves_something_of_its_window():
    said = card(window={"size": [4, "full", "full"], "halo": [2, 1, 1]})
    del said["window"]["overlap"], said["window"]["blending"]
    assert "halo" in refused(yaml.safe_dump(said)).message


@pytest.mark.parametrize(
    "said, word",
    [
        pytest.param("&x [*x]", "alias", id="a list that holds itself"),
        pytest.param(
            "a0: &a0 [1, 1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)),
            "items",
            id="a billion laughs",
        ),
        pytest.param("a: 1\na: 2", "twice", id="key twice"),
        pytest.param("[" * 100_000, "YAML", id="deep, not closed"),
        pytest.param("a: " + "[" * 50_000 + "]" * 50_000, "deep", id="deep"),
        pytest.param("!!python/object/apply:os.system [true]", "YAML", id="python object"),
        pytest.param("- 1", "keys", id="a list"),
        pytest.param("", "keys", id="nothing"),
        pytest.param("x" * (1 << 21), "over", id="two megabytes"),
    ],
)
def test_a_hostile_card_is_refused(said, word):
    assert word in refused(said).message or word == "YAML"


@given(st.text(max_size=60))
def test_any_text_is_a_card_or_refused(said):
    with pytest.raises(ConfigError):
        read_card(said)


def test_the_intensity_steps_keep_their_order():
    steps = [
        {"clip": [-100, 100]},
        {"scale": {"from": [-100, 100], "to": [0, 1]}},
        {"normalize": {"mean": 0.5, "std": 2}},
    ]
    found = read_card(text(inputs0={"intensity": steps})).input.intensity
    assert found == (Clip(-100, 100), Scale((-100, 100), (0, 1)), Normalize(0.5, 2))


@pytest.mark.parametrize(
    "place, kind",
    [
        ((), Card),
        (("$defs", "input"), Input),
        (("$defs", "output"), Output),
        (("$defs", "window"), Window),
        (("$defs", "crop"), Crop),
        (("$defs", "detection"), Detection),
        (("$defs", "instances"), Instances),
    ],
)
def test_the_schema_has_the_keys_of_the_reader(place, kind):
    schema = json.loads((files("mdcli") / "schemas" / "model.json").read_text())
    for part in place:
        schema = schema[part]
    assert set(schema["properties"]) == {field.name for field in dataclasses.fields(kind)}


def test_the_schema_agrees_with_the_reader():
    schema = json.loads((files("mdcli") / "schemas" / "model.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    good = [
        card(),
        *(yaml.safe_load((EMBEDDED / name / "model.yaml").read_text()) for name in ("landmarks", "ct-tissue")),
    ]
    for said in good:
        validator.validate(said)
        read_card(yaml.safe_dump(said))
    for changes in ({"labls": []}, {"inputs0": {"spacin": 1}}, {"version": 1.0}, {"window": {"size": [96, 96, "all"]}}):
        assert not validator.is_valid(card(**changes))


# Where models lie


def test_a_model_is_found_by_name_by_folder_by_card_and_by_network(tmp_path):
    folder = write_model(tmp_path / "first" / "tiny", bands())
    write_model(tmp_path / "second" / "tiny", bands(), card(version="2.0.0"))
    folders = [tmp_path / "first", tmp_path / "second"]
    by_name = find_model("tiny", folders)
    assert by_name.card.version == "1.0.0" and by_name.networks == (folder / "network.onnx",)
    for path in (folder, folder / "model.yaml", folder / "network.onnx"):
        assert find_model(str(path), ()) == by_name


def test_an_unknown_name_names_the_near_one(tmp_path):
    write_model(tmp_path / "liver", bands())
    with pytest.raises(MissingError) as error:
        find_model("livre", [tmp_path])
    assert error.value.code == "no-model" and error.value.hint == "did you mean liver?"


def test_the_digest_is_that_of_the_lines_of_sha256sum(tmp_path):
    folder = write_model(tmp_path / "tiny", bands())
    lines = "".join(
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("model.yaml", "network.onnx")
    )
    assert find_model(str(folder), ()).sha256 == hashlib.sha256(lines.encode()).hexdigest()


def test_the_digest_follows_card_and_network(tmp_path):
    one = find_model(str(write_model(tmp_path / "a", bands())), ()).sha256
    other_card = find_model(str(write_model(tmp_path / "b", bands(), card(regulatory="none"))), ()).sha256
    other_net = find_model(str(write_model(tmp_path / "c", bands((0.0, 50.0)))), ()).sha256
    assert len({one, other_card, other_net}) == 3


@pytest.mark.parametrize("name", ["../network.onnx", "/etc/passwd", "link.onnx"])
def test_a_network_outside_its_folder_is_refused(tmp_path, name):
    folder = write_model(tmp_path / "tiny", bands(), card(network=name))
    (tmp_path / "network.onnx").write_bytes(b"")
    (folder / "link.onnx").symlink_to(tmp_path / "network.onnx")
    with pytest.raises(ConfigError) as error:
        find_model(str(folder), ())
    assert error.value.code in ("outside-folder", "bad-card")


def external(location: str):
    """Return a network whose weight lies in another file, inside the subgraph of an If."""
    tensor = numpy_helper.from_array(np.ones(4, np.float32), "w")
    onnx.external_data_helper.set_external_data(tensor, location)
    tensor.ClearField("raw_data")
    branch = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "branch", [], [], [tensor])
    node = helper.make_node("If", ["image"], ["scores"], then_branch=branch, else_branch=branch)
    return network([node])


def test_weights_outside_the_folder_are_refused_before_the_network_is_opened(tmp_path):
    (tmp_path / "secret").write_bytes(b"0" * 16)
    folder = write_model(tmp_path / "tiny", external("../secret"))
    with pytest.raises(ConfigError) as error:
        find_model(str(folder), ())
    assert error.value.code == "outside-folder" and "../secret" in error.value.message


def test_weights_beside_the_network_count_in_the_digest(tmp_path):
    folder = write_model(tmp_path / "tiny", external("weights.bin"))
    with pytest.raises(MissingError, match=r"weights\.bin"):
        find_model(str(folder), ())
    digests = set()
    for weights in (b"0" * 16, b"1" * 17):
        (folder / "weights.bin").write_bytes(weights)
        digests.add(find_model(str(folder), ()).sha256)
    assert len(digests) == 2


@pytest.mark.parametrize("name", ["net.bin", "net", "net.ONNX"])
def test_weights_are_found_whatever_the_network_is_called(tmp_path, name):
    folder = write_model(tmp_path / "tiny", external("../secret"), card(network=name))
    (folder / "network.onnx").rename(folder / name)
    (tmp_path / "secret").write_bytes(b"0" * 16)
    for onnx_only in (True, False):
        with pytest.raises(ConfigError) as error:
            find_model(str(folder), (), Opening(engine="onnxruntime" if onnx_only else "other"))
        assert error.value.code == "outside-folder"


def test_another_engines_network_need_not_be_onnx(tmp_path):
    folder = write_model(tmp_path / "tiny", bands(), card(network="net.pt"))
    (folder / "net.pt").write_bytes(b"PK of another kind")
    assert find_model(str(folder), (), Opening(engine="other")).networks == (folder / "net.pt",)
    with pytest.raises(ConfigError) as error:
        find_model(str(folder), (), Opening(cache=tmp_path / "cache"))
    assert error.value.code == "bad-card" and "fixed sizes" in error.value.message


@given(st.binary(min_size=1, max_size=200))
def test_any_bytes_are_a_network_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("onnx") / "network.onnx"
    path.write_bytes(content)
    try:
        assert isinstance(external_files(path), set)
    except ConfigError as error:
        assert error.code == "bad-network"


def test_a_network_nested_without_end_is_refused(tmp_path):
    # A graph (field 7) in a graph attribute (1 node, 5 attribute, 6 graph), again and again.
    content = b""
    for _ in range(200):
        for tag in (6, 5, 1):
            size = len(content)
            length = bytes([size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14])
            content = bytes([tag << 3 | 2]) + length + content
    length = bytes([len(content) & 0x7F | 0x80, len(content) >> 7 & 0x7F | 0x80, len(content) >> 14])
    path = tmp_path / "network.onnx"
    path.write_bytes(bytes([7 << 3 | 2]) + length + content)
    with pytest.raises(ConfigError, match="deep"):
        external_files(path)
