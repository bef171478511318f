"""MMARs of Clara Train 3 and 4: one card, whatever the words; everything else refused by name, and nothing run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from archives import of_version_3, of_version_4, write
from md_mmar.format import FORMAT

from mdcli.errors import ConfigError, MissingError, UnavailableError
from mdcli.inference.card import Clip, Normalize, Scale
from mdcli.inference.engines import find_engine
from mdcli.inference.formats import ModelFolder, Opening

LOAD = {"name": "LoadNifti", "args": {"fields": "image"}}


@pytest.fixture
def opening(tmp_path: Path) -> Opening:
    return Opening(cache=tmp_path / "cache", orientation="LAS")


def refused(path: Path, opening: Opening) -> ConfigError:
    with pytest.raises((ConfigError, MissingError, UnavailableError)) as found:
        FORMAT.read(path, opening)
    return found.value


@pytest.mark.parametrize("workflow", [of_version_3(), of_version_4()], ids=["Clara Train 3", "Clara Train 4"])
def test_the_configuration_becomes_a_card(tmp_path, opening, workflow):
    path = write(tmp_path, workflow)
    assert FORMAT.recognises(path)
    model = FORMAT.read(path, opening)
    card, (said,), (output,) = model.card, model.card.inputs, model.card.outputs
    assert (said.axes, said.orientation, said.spacing, said.unit) == (
        ("C", "x", "y", "z"),
        "RAS",
        (1.5, 2.0, 3.0),
        "HU",
    )
    assert said.intensity == (Scale((-57.0, 164.0), (0.0, 1.0)), Clip(0.0, 1.0))
    assert said.interpolation == "linear"
    assert (card.window.size, card.window.overlap, card.window.blending) == ((16, 24, 32), 0.5, "constant")
    assert [label.name for label in card.labels] == ["spleen"]
    assert card.accepts["modality"].one_of == ("CT",)
    assert (card.name, output.task, output.form) == ("clara_spleen_ct", "segmentation", "labels")
    assert model.folder == path


def test_where_a_class_is_decided_says_what_comes_back_to_the_images_grid(tmp_path, opening):
    old = FORMAT.read(write(tmp_path / "3", of_version_3()), opening).card.outputs[0]
    new = FORMAT.read(write(tmp_path / "4", of_version_4()), opening).card.outputs[0]
    # Version 3 restores the shape after the highest class, the other inverts the transforms before it.
    assert (old.inversion, old.activation) == ("labels", "none")
    assert (new.inversion, new.activation) == ("scores", "softmax")


def test_its_network_keeps_its_axes(tmp_path, opening):
    model = FORMAT.read(write(tmp_path, of_version_3()), opening)
    session = find_engine("onnxruntime").open(model.networks[0], device="cpu", threads=1)
    image = np.zeros((1, 1, 16, 24, 32), np.float32)
    image[0, 0, 3, 5, 7] = 1
    (scores,) = session.run({"image": image}, {"scores": None}).values()
    assert np.argwhere(scores[0].argmax(axis=0)).tolist() == [[4, 5, 7]]


def test_without_an_orientation_the_one_of_the_training_is_asked_for(tmp_path, opening):
    steps = [LOAD, *of_version_3()["pre_transforms"][1:]]
    path = write(tmp_path, of_version_3(pre_transforms=steps))
    assert FORMAT.read(path, opening).card.input.orientation == "LAS"
    error = refused(path, Opening(cache=opening.cache))
    assert error.code == "orientation-unknown"
    assert "--orientation" in error.hint


def test_steps_of_version_3_stand_for_those_of_monai(tmp_path, opening):
    steps = [
        LOAD,
        {"name": "ConvertToChannelsFirst", "args": {"fields": "image"}},
        {"name": "CropForegroundObject", "args": {"fields": ["image", "label"], "source_field": "image"}},
        {"name": "transforms.NormalizeNonzeroIntensities", "args": {"fields": ["image"]}},
        {"name": "CastToType", "args": {"fields": ["image"], "dtype": "float32"}},
    ]
    (said,) = FORMAT.read(write(tmp_path, of_version_3(pre_transforms=steps)), opening).card.inputs
    assert said.crop.above == 0
    assert said.intensity == (Normalize(None, None, "nonzero"),)
    assert (said.padding, said.spacing) == ("include", "as-acquired")


def test_a_shape_is_a_resize(tmp_path, opening):
    steps = [LOAD, {"name": "ScaleToShape", "args": {"fields": "image", "target_shape": [16, 24, 32]}}]
    (said,) = FORMAT.read(write(tmp_path, of_version_3(pre_transforms=steps)), opening).card.inputs
    assert (said.resize, said.resize_mode) == ((16, 24, 32), "linear")


def test_the_largest_part_is_kept(tmp_path, opening):
    steps = [*of_version_3()["post_transforms"], {"name": "KeepLargestCC", "args": {"fields": "model"}}]
    (step,) = FORMAT.read(write(tmp_path, of_version_3(post_transforms=steps)), opening).card.outputs[0].after
    assert type(step).__name__ == "KeepLargest"


def test_variables_are_put_in_as_text_or_as_values(tmp_path, opening):
    inferer = {"name": "TFScanWindowInferer", "args": {"roi_size": "{ROI}", "overlap": "@OVERLAP"}}
    path = write(tmp_path, of_version_3(inferer=inferer), environment={"ROI": [32, 16, 24], "OVERLAP": 0.25})
    window = FORMAT.read(path, opening).card.window
    assert (window.size, window.overlap) == ((32, 16, 24), 0.25)


def test_the_annotation_servers_configuration_does_where_there_is_no_other(tmp_path, opening):
    said = of_version_3()
    inference = {
        "image": "image",
        "name": "TRTISInference",
        "args": {"batch_size": 1, "roi": [16, 24, 32], "scanning_window": "true"},
        "node_mapping": {"NV_MODEL_INPUT": "image", "NV_MODEL_OUTPUT": "model"},
    }
    steps = {"pre_transforms": said["pre_transforms"], "post_transforms": said["post_transforms"]}
    path = write(tmp_path, said, aiaa={"inference": inference, **steps})
    (path / "config" / "config_validation.json").unlink()
    model = FORMAT.read(path, opening)
    assert model.card.window.size == (16, 24, 32)
    assert model.card.window.overlap == 0.25
    assert "overlap-assumed" in [code for code, _ in model.notes]


def test_the_modality_is_asked_for_where_nothing_says_it(tmp_path, opening):
    path = write(tmp_path, of_version_3(), aiaa={"description": "Segments a spleen, CT or MRI"})
    error = refused(path, opening)
    assert error.code == "modality-unknown"
    assert '"MODALITY"' in error.hint
    environment = path / "config" / "environment.json"
    environment.write_text(json.dumps({**json.loads(environment.read_text()), "MODALITY": "MR"}))
    model = FORMAT.read(path, opening)
    assert model.card.accepts["modality"].one_of == ("MR",)
    assert model.card.input.unit != "HU"


def test_a_file_of_the_model_makes_it_another_one(tmp_path, opening):
    path = write(tmp_path, of_version_3())
    before = FORMAT.read(path, opening)
    (path / "docs.txt").write_text("no part of it")
    assert FORMAT.read(path, opening) == before
    with (path / "models" / "model.onnx").open("ab") as file:
        file.write(b"\x22\x00")  # GraphProto-less field 4 of ModelProto: an empty domain
    assert FORMAT.read(path, opening).sha256 != before.sha256


def test_each_network_comes_from_its_own_copy(tmp_path, opening):
    path = write(tmp_path, of_version_3())
    before = FORMAT.read(path, opening).networks[0].read_bytes()
    changed = (path / "models" / "model.onnx").read_bytes() + b"\x22\x00"
    (path / "models" / "model.onnx").write_bytes(changed)
    assert FORMAT.read(path, opening).networks[0].read_bytes() == changed != before


@pytest.mark.parametrize(
    ("network", "says"),
    [
        ("model.pt", "model.ts"),
        ("model.ckpt.index", "model.fzn.pb"),
        ("model.trt.pb", "one GPU"),
        ("model.ckpt.meta", "checkpoint"),
    ],
)
def test_other_networks_are_refused_by_name_with_a_way_out(tmp_path, opening, network, says):
    error = refused(write(tmp_path, of_version_3(), network=network), opening)
    assert error.code == "unsupported-mmar"
    assert network in error.message and says in error.message
    assert "model.onnx" in error.hint


@pytest.mark.parametrize(
    ("network", "code"),
    [(None, "no-network"), ("model.ts", "program-not-trusted"), ("model.fzn.pb", "program-not-trusted")],
)
def test_a_program_needs_trust(tmp_path, opening, network, code):
    if network == "model.fzn.pb":
        pytest.importorskip("md_tensorflow", reason="plugins/md-tensorflow is not installed")
    path = write(tmp_path, of_version_3(), network=network)
    if network == "model.ts":
        import zipfile

        with zipfile.ZipFile(path / "models" / network, "w") as archive:
            archive.writestr("model/constants.pkl", b"\x80\x02).")
            archive.writestr("model/code/__torch__.py", "")
    assert refused(path, opening).code == code


def test_a_frozen_graph_without_the_plugin_names_it(tmp_path, opening, monkeypatch):
    monkeypatch.setitem(sys.modules, "md_tensorflow.convert", None)
    error = refused(write(tmp_path, of_version_3(), network="model.fzn.pb"), opening)
    assert error.code == "no-engine"
    assert "md-mmar[tensorflow]" in error.hint


def step(name: str, **args: object) -> dict[str, object]:
    return {"name": name, "args": args}


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        (
            {"pre_transforms": [LOAD, step("ScaleByFactor", fields="image", factor=0.5)]},
            "unsupported-transform",
            "ScaleByFactor",
        ),
        ({"pre_transforms": [LOAD, step("AddExtremePointsChannel", fields="image")]}, "unsupported-transform", "[1]"),
        (
            {"pre_transforms": [LOAD, step("ScaleIntensityRange", fields="image", a_min=0, a_max=1, gamma=2)]},
            "unsupported-transform",
            "'gamma'",
        ),
        ({"pre_transforms": [{"path": "lib.my.Mine", "args": {}}]}, "unsupported-transform", "code of the model's own"),
        ({"pre_transforms": [step("os.system", fields="image")]}, "unsupported-transform", "another library's"),
        ({"post_transforms": [step("ThresholdValues", fields="model")]}, "unsupported-transform", "ThresholdValues"),
        (
            {"post_transforms": [step("RestoreOriginalShape", field="model", src_field="other")]},
            "unsupported-transform",
            "'other'",
        ),
        ({"inferer": step("CustomInferer")}, "unsupported-transform", "CustomInferer"),
        ({"inferer": step("TFScanWindowInferer", batch_size=1)}, "unsupported-transform", "roi_size"),
        ({"inferer": None}, "unsupported-mmar", "no inferer"),
        ({"pre_transforms": "LoadNifti"}, "bad-mmar", "not a list"),
        ({"pre_transforms": [{"args": {}}]}, "bad-mmar", "name"),
        ({"pre_transforms": [{**LOAD, "extra": 1}]}, "bad-mmar", "'extra'"),
    ],
)
def test_what_version_3_does_otherwise_is_refused_by_name(tmp_path, opening, changes, code, says):
    error = refused(write(tmp_path, of_version_3(**changes)), opening)
    assert error.code == code
    assert says in error.message


CODE = "#__import__('os').system('touch canary')"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"pre_transforms": [step("LoadImaged", keys="image", reader=CODE)]}, "refused-expression"),
        ({"pre_transforms": [step("LoadImaged", keys="image", reader=CODE.replace("#", "$"))]}, "refused-expression"),
        ({"pre_transforms": [step("Lambdad", keys="image", func="@anything")]}, "refused-expression"),
        ({"pre_transforms": [step("LoadImaged", keys="image", reader="%/etc/passwd::x")]}, "refused-expression"),
        ({"pre_transforms": [step("Resized", keys="image", spatial_size=[1, [CODE]])]}, "refused-expression"),
        (
            {"pre_transforms": [step("LoadImaged", keys="image", reader={"_target_": "os.system"})]},
            "unsupported-transform",
        ),
        ({"pre_transforms": [step("LoadImaged", keys="image", reader={"a": {"b": CODE}})]}, "refused-expression"),
        ({"inferer": step("SlidingWindowInferer", roi_size=[16, 24, 32], mode=CODE)}, "refused-expression"),
        ({"post_transforms": [step("Invertd", keys="pred", transform=CODE)]}, "unsupported-transform"),
        ({"pre_transforms": [step("RandFlipd", keys="image")]}, "unsupported-transform"),
    ],
)
def test_code_in_version_4_is_refused_and_does_not_run(tmp_path, opening, monkeypatch, changes, code):
    monkeypatch.chdir(tmp_path)
    assert refused(write(tmp_path, of_version_4(**changes)), opening).code == code
    assert not (tmp_path / "canary").exists()


def test_variables_that_grow_or_go_round_are_refused(tmp_path, opening):
    grows = {f"V{n}": f"{{V{n + 1}}}" * 16 for n in range(6)}
    for n, environment in enumerate([{**grows, "V6": "x" * 16}, {"V0": "{V1}x", "V1": "{V0}"}]):
        inferer = step("TFScanWindowInferer", roi_size="{V0}")
        path = write(tmp_path / str(n), of_version_3(inferer=inferer), environment=environment)
        assert refused(path, opening).code == "bad-mmar"


def test_no_path_is_followed_outside(tmp_path, opening):
    outside = tmp_path / "secret.onnx"
    outside.write_bytes(b"secret")
    loader = step("FrozenGraphModelLoader", model_file_path="{MMAR_CKPT_DIR}/../../../secret.onnx")
    path = write(tmp_path, of_version_3(model_loader=loader))
    assert FORMAT.read(path, opening).networks[0].read_bytes() == (path / "models" / "model.onnx").read_bytes()
    (path / "models" / "model.onnx").unlink()
    (path / "models" / "model.onnx").symlink_to(outside)
    assert refused(path, opening).code == "outside-folder"
    (path / "config" / "config_train.json").symlink_to(outside)
    assert refused(path, opening).code == "outside-folder"


@pytest.mark.parametrize(
    "content", ["", "[]", '{"a": 1, "a": 2}', "{" * 5000, '{"pre_transforms": [' * 300, "\xff", "null"]
)
def test_a_damaged_configuration_is_refused(tmp_path, opening, content):
    path = write(tmp_path, of_version_3())
    (path / "config" / "config_validation.json").write_bytes(content.encode("latin-1"))
    assert refused(path, opening).code in ("bad-mmar", "unsupported-mmar")


def test_another_task_is_refused_by_name(tmp_path, opening):
    error = refused(write(tmp_path, of_version_3(), aiaa={"type": "deepgrow"}), opening)
    assert (error.code, "deepgrow" in error.message) == ("unsupported-mmar", True)


def test_other_folders_are_left_to_other_formats(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "models").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text("{}")
    assert not FORMAT.recognises(tmp_path)
    assert not FORMAT.recognises(tmp_path / "missing")


def test_importing_it_loads_nothing_heavy():
    code = "import sys, md_mmar.format; print(sorted({'numpy', 'yaml', 'md_tensorflow', 'onnx'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def trusting(path: Path, opening: Opening) -> ModelFolder:
    """Return the model, its program trusted."""
    error = refused(path, opening)
    assert error.code == "program-not-trusted"
    return FORMAT.read(path, Opening(cache=opening.cache, trust=frozenset({error.hint.split()[-1]})))


def test_a_frozen_graph_of_clara_train_runs_as_onnx(tmp_path, opening):
    pytest.importorskip("md_tensorflow", reason="plugins/md-tensorflow is not installed")
    python = os.environ.get("MD_TENSORFLOW_PYTHON")
    if python is None:
        pytest.skip("MD_TENSORFLOW_PYTHON names no Python that has TensorFlow")
    path = write(tmp_path, of_version_3(), network=None)
    script = Path(__file__).parents[2] / "md-tensorflow" / "tests" / "make_networks.py"
    subprocess.run([python, str(script), str(tmp_path / "networks")], check=True, capture_output=True, cwd=tmp_path)
    (tmp_path / "networks" / "clara.pb").rename(path / "models" / "model.fzn.pb")
    model = trusting(path, opening)
    session = find_engine("onnxruntime").open(model.networks[0], device="cpu", threads=1)
    assert session.inputs[0].shape[1:] == (1, 16, 24, 32)
    image = np.zeros((1, 1, 16, 24, 32), np.float32)
    image[0, 0, 3, 5, 7] = 3
    (scores,) = session.run({session.inputs[0].name: image}, {session.outputs[0].name: None}).values()
    assert np.argwhere(scores[0].argmax(axis=0)).tolist() == [[3, 5, 6], [3, 5, 7], [4, 5, 7]]


SCRIPT = """
import sys, torch
class Shifted(torch.nn.Module):
    def forward(self, image):
        before = torch.nn.functional.pad(image, (0, 0, 0, 0, 1, 0))[:, :, :-1]
        return torch.cat([0.5 - before, before - 0.5], 1)
torch.jit.trace(Shifted(), torch.zeros(1, 1, 16, 24, 32)).save(sys.argv[1])
"""


def test_torchscript_of_clara_train_runs_as_onnx(tmp_path, opening):
    python = os.environ.get("MD_TORCH_PYTHON")
    if python is None:
        pytest.skip("MD_TORCH_PYTHON names no Python that has torch")
    from mdcli.inference.isolation import use_python

    path = write(tmp_path, of_version_4(), network=None)
    subprocess.run([python, "-c", SCRIPT, str(path / "models" / "model.ts")], check=True, capture_output=True)
    use_python(python)
    try:
        model = trusting(path, opening)
    finally:
        use_python(None)
    session = find_engine("onnxruntime").open(model.networks[0], device="cpu", threads=1)
    image = np.zeros((1, 1, 16, 24, 32), np.float32)
    image[0, 0, 3, 5, 7] = 1
    (scores,) = session.run({session.inputs[0].name: image}, {session.outputs[0].name: None}).values()
    assert np.argwhere(scores[0].argmax(axis=0)).tolist() == [[4, 5, 7]]
