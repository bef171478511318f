"""A bundle's configuration says what MONAI's parser says, item by item; nothing leads out of its folder."""

from __future__ import annotations

import json
import stat
import zipfile

import pytest

from mdcli.errors import ConfigError, MissingError
from mdcli.inference.formats.bundle_config import (
    BundleConfig,
    Component,
    inference_file,
    is_bundle,
    unpack,
    zipped_root,
)


@pytest.fixture
def make(tmp_path):
    """Return a function that writes configuration files (name=content) and opens inference.json or .yaml."""

    def made(**files):
        folder = tmp_path / "bundle"
        (folder / "configs").mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            name = name.replace("_json", ".json").replace("_yaml", ".yaml")
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / "configs" / name).write_text(text)
        return BundleConfig(folder, inference_file(folder))

    return made


def code_of(call):
    with pytest.raises((ConfigError, MissingError)) as caught:
        call()
    return caught.value.code


@pytest.mark.parametrize("reference", ["@a::b::1", "@a#b#1", "$@a::b::1", "$@a#b[1]", "@short::b::1"])
def test_a_reference_is_followed_in_both_spellings(make, reference):
    config = make(inference_json={"a": {"b": [5, 7]}, "short": "@a", "wanted": reference})
    assert config.get("wanted") == 7


def test_a_relative_reference_starts_from_its_place(make):
    # The example of ConfigParser.resolve_relative_ids.
    said = {"A": 1, "B": {"key": "@##A", "value1": 2, "value2": "%#value1", "value3": [3, 4, "@#1"]}}
    config = make(inference_json=said)
    assert config.get("B") == {"key": 1, "value1": 2, "value2": 2, "value3": [3, 4, 4]}


def test_a_piece_of_another_file_stands_in_the_place_of_its_name(make):
    config = make(
        inference_json={"x": "%parts.json::deep#list", "y": "%configs/parts.yaml::n", "n": 4},
        parts_json={"deep": {"list": ["@n", 2]}},
        parts_yaml="n: 3\n",
    )
    assert config.get("x") == [4, 2]
    assert config.get("y") == 3
    assert sorted(path.name for path in config.files) == ["inference.json", "parts.json", "parts.yaml"]


def test_yaml_says_the_same(make):
    config = make(inference_yaml="a: {b: [5, 7]}\nwanted: '$@a::b[0] + 1'\n")
    assert config.get("wanted") == 6


def test_only_what_is_asked_for_is_worked_out(make):
    config = make(
        inference_json={
            "net": {"_target_": "UNet", "channels": [1, 2], "device": "$torch.device('cuda:0')"},
            "run": ["$@evaluator.run()"],
        }
    )
    net = config.get("net")
    assert isinstance(net, Component)
    assert (net.target, net.get("channels"), net.get("missing", 9)) == ("UNet", [1, 2], 9)
    assert code_of(lambda: net.get("device")) == "refused-expression"


@pytest.mark.parametrize("flag", [True, "true", "$not False", "@flag"])
def test_a_disabled_component_is_none(make, flag):
    config = make(inference_json={"flag": True, "x": {"_target_": "Resized", "_disabled_": flag}})
    assert config.get("x") is None


@pytest.mark.parametrize(
    "said, code",
    [
        ({"x": "@x"}, "bad-bundle"),
        ({"x": "@y", "y": "@x"}, "bad-bundle"),
        ({"x": "@x::a"}, "bad-bundle"),
        ({"x": "@y::a", "y": "@x::b"}, "bad-bundle"),
        ({"x": "$@y + [1]", "y": ["@x"]}, "bad-bundle"),
        ({"x": "@nothing"}, "bad-bundle"),
        ({"x": "@####y"}, "bad-bundle"),
        ({"x": "%y", "y": "%z", "z": 1}, "bad-bundle"),
        ({"x": "%nothing.json::a"}, "bad-bundle"),
        ({"x": "%../../etc/passwd"}, "outside-folder"),
        ({"x": "%../../etc/passwd.json"}, "outside-folder"),
        ({"x": "%/etc/passwd.json::a"}, "outside-folder"),
        ({"x": "%models/weights.json::a"}, "bad-bundle"),
        ({"x": {"_target_": "$__import__('os').system"}}, "refused-expression"),
        ({"x": {"_target_": "os system"}}, "refused-expression"),
        ({"x": {"_target_": "UNet", "_mode_": "debug"}}, "refused-expression"),
        ({"x": "$__import__('os')"}, "refused-expression"),
    ],
)
def test_what_leads_nowhere_or_out_is_refused(make, said, code):
    assert code_of(lambda: make(inference_json=said).get("x")) == code


def test_a_link_in_the_configuration_s_folder_leads_nowhere(make, tmp_path):
    (tmp_path / "secret.json").write_text('{"a": 1}')
    config = make(inference_json={"x": "%linked.json::a"})
    (tmp_path / "bundle" / "configs" / "linked.json").symlink_to(tmp_path / "secret.json")
    assert code_of(lambda: config.get("x")) == "outside-folder"


def test_references_that_double_at_each_step_end(make):
    said = {f"x{n}": f"$@x{n + 1} + @x{n + 1}" for n in range(40)} | {"x40": [1]}
    assert code_of(lambda: make(inference_json=said).get("x0")) == "refused-expression"
    said = {f"x{n}": [f"@x{n + 1}", f"@x{n + 1}"] for n in range(40)} | {"x40": 1}
    assert len(make(inference_json=said).get("x0")) == 2
    said = {f"x{n}": f"@x{n + 1}" for n in range(200)} | {"x200": 1}
    assert code_of(lambda: make(inference_json=said).get("x0")) == "bad-bundle"


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[1, 2]",
        "{",
        '{"a": 1, "a": 2}',
        "\xff\xfe",
        "a: &a [*a]",
        "!!python/object/apply:os.system ['touch canary']",
        '{"a": "' + "x" * (5 << 20) + '"}',
    ],
)
def test_a_file_that_is_no_plain_mapping_is_refused(make, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert code_of(lambda: make(inference_yaml=text)) == "bad-bundle"
    assert not (tmp_path / "canary").exists()


def test_a_bundle_without_an_inference_configuration_says_so(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text("{}")
    assert is_bundle(tmp_path)
    assert code_of(lambda: inference_file(tmp_path)) == "no-network"


def zip_of(path, entries, *, mode=None):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("b/configs/metadata.json", "{}")
        archive.writestr("b/configs/inference.json", '{"a": 1}')
        for name, content in entries.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            if mode is not None:
                info.external_attr = mode << 16
            archive.writestr(info, content)
    return path


def test_a_zipped_bundle_is_unpacked_once(tmp_path):
    path = zip_of(tmp_path / "x.zip", {"b/models/model.onnx": "net", "b/docs/README.md": "long"})
    assert zipped_root(path) == "b/"
    folder = unpack(path, tmp_path / "cache")
    assert folder.name == "b"
    assert sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()) == [
        "configs/inference.json",
        "configs/metadata.json",
        "models/model.onnx",
    ]
    (folder / "models" / "model.onnx").write_text("kept")
    assert unpack(path, tmp_path / "cache") == folder
    assert (folder / "models" / "model.onnx").read_text() == "kept"
    assert [each.name for each in (tmp_path / "cache").iterdir()] == [folder.parent.name]


@pytest.mark.parametrize(
    "name", ["../canary", "b/../../canary", "/canary", "b/configs/../../../canary", "C:\\canary", "b\\..\\canary"]
)
def test_a_zip_whose_entries_lead_out_is_refused_whole(tmp_path, name):
    path = zip_of(tmp_path / "x.zip", {name: "ran"})
    assert code_of(lambda: unpack(path, tmp_path / "cache")) == "outside-folder"
    assert not list(tmp_path.rglob("canary"))
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_a_zip_with_a_link_or_a_device_is_refused(tmp_path, kind):
    path = zip_of(tmp_path / "x.zip", {"b/configs/more.json": "/etc/passwd"}, mode=kind | 0o644)
    assert code_of(lambda: unpack(path, tmp_path / "cache")) == "outside-folder"


def test_a_zip_made_to_fill_the_disk_is_refused(tmp_path):
    path = zip_of(tmp_path / "x.zip", {"b/models/model.onnx": bytes(64 << 20)})
    assert path.stat().st_size < 1 << 20
    assert code_of(lambda: unpack(path, tmp_path / "cache")) == "bad-bundle"


def test_a_damaged_zip_is_refused(tmp_path):
    path = zip_of(tmp_path / "x.zip", {"b/models/model.onnx": "net" * 1000})
    content = bytearray(path.read_bytes())
    at = content.index(b"model.onnx") + 12
    content[at : at + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    assert code_of(lambda: unpack(path, tmp_path / "cache")) == "bad-bundle"


def test_a_zip_with_an_entry_twice_is_refused(tmp_path):
    path = zip_of(tmp_path / "x.zip", {"b/configs/twice.json": "{}"})
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("b/configs/twice.json", "[]")
    assert code_of(lambda: unpack(path, tmp_path / "cache")) == "bad-bundle"


def test_other_files_are_no_zipped_bundles(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"PK\x03\x04nothing")
    with zipfile.ZipFile(tmp_path / "y.zip", "w") as archive:
        archive.writestr("model/data.pkl", "")
    assert zipped_root(tmp_path / "x.zip") is None
    assert zipped_root(tmp_path / "y.zip") is None
    assert zipped_root(tmp_path / "nothing.zip") is None
