"""Result folders of nnU-Net: what becomes of them, and what is refused by name."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mdcli.errors import ConfigError, MdError, MissingError
from mdcli.inference.card import Bound, Clip, Crop, Normalize, ScaleVolume
from mdcli.inference.formats import Opening, find_model
from mdcli.inference.formats.nnunet import NnUNet
from mdcli.inference.steps_after import KeepLargest
from tests.nnunet_cases import CASES, DATA, REGIONS, Case

THICK, REGION, SLICES = CASES


@pytest.fixture
def copied(tmp_path) -> Callable[[Case], Path]:
    """Return a function that copies a stored model, under the name that nnU-Net gives it."""

    def copy(case: Case) -> Path:
        return shutil.copytree(DATA / case.name, tmp_path / case.folder)

    return copy


def change(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; `...` removes one."""
    document = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not ...}))


def configure(folder: Path, name: str = "3d_fullres", **changes: Any) -> None:
    """Change keys of a configuration of the plans."""
    said = json.loads((folder / "plans.json").read_text())["configurations"]
    said[name] = {key: value for key, value in {**said.get(name, {}), **changes}.items() if value is not ...}
    change(folder / "plans.json", configurations=said)


def refused(folder: Path, opening: Opening | None = None) -> MdError:
    with pytest.raises(MdError) as caught:
        NnUNet().read(folder, opening or Opening())
    return caught.value


def test_a_folder_of_folds_becomes_one_card(copied):
    folder = copied(THICK)
    model = find_model(str(folder), [])
    card, said = model.card, model.card.input
    assert card.name == "dataset001_thick_ct_3d_fullres"
    assert [network.relative_to(folder).as_posix() for network in model.networks] == [
        "fold_0/network.onnx",
        "fold_1/network.onnx",
    ]
    assert (card.ensemble, card.mirror) == ("mean", ("z", "x"))
    assert (said.axes, said.orientation, said.spacing) == (("C", "z", "y", "x"), "RAS", (2.5, 1.1, 0.9))
    assert (said.unit, said.role, said.padding) == ("HU", "volume", "include")
    assert (said.rule, said.interpolation, said.separate_z, said.crop) == ("edges", "cubic", 3.0, Crop())
    assert said.intensity_before == (Clip(-700.0, 900.0), Normalize(60.0, 350.0))
    assert said.intensity == ()
    window = card.cut
    assert (window.size, window.overlap, window.blending, window.step) == ((16, 24, 20), 0.5, "gaussian-nnunet", "even")
    assert [(label.value, label.name) for label in card.labels] == [(1, "left part"), (2, "right part")]
    assert {label.type.scheme for label in card.labels} == {"99MDCLI"}
    output = card.first_output
    assert (output.axes, output.activation, output.inversion, output.form) == (said.axes, "none", "logits", "labels")
    assert output.after == (KeepLargest((1, 2), together=True, connectivity=3),)
    assert card.accepts == {"modality": Bound(one_of=("CT",))}
    assert [code for code, _ in model.notes] == ["private-code"]


def test_regions_say_which_value_each_channel_writes_and_what_is_left_of_the_outer_ones(copied):
    model = NnUNet().read(copied(REGION), Opening())
    output = model.card.first_output
    assert (output.form, output.activation, output.inversion) == ("regions", "sigmoid", "logits")
    assert output.regions_order == (1, 2, 3)
    names = ["whole without core", "core without enhancing", "enhancing"]
    assert [(label.value, label.name) for label in model.card.labels] == list(enumerate(names, 1))
    # transpose_forward [1, 0, 2] of z, y, x; mirroring over 0 and 1 of those.
    assert model.card.input.axes == ("C", "y", "z", "x")
    assert model.card.mirror == ("y", "z")
    assert model.card.input.intensity_before == (Normalize(None, None, "mask"),)
    assert (model.card.input.unit, model.card.accepts) == ("arbitrary", {})


def test_regions_that_write_other_values_are_numbered_anew_and_it_is_said(copied):
    folder = copied(REGION)
    change(folder / "dataset.json", regions_class_order=[2, 5, 3])
    model = NnUNet().read(folder, Opening())
    assert model.card.first_output.regions_order == (1, 3, 2)
    assert [label.name for label in model.card.labels] == ["whole without core", "enhancing", "core without enhancing"]
    assert "label-values-changed" in dict(model.notes)


def test_a_network_of_slices_takes_the_last_two_axes_and_a_reorienting_reader_says_ras(copied):
    folder = copied(SLICES)
    change(folder / "fold_0" / "network.json", orientation=...)
    card = NnUNet().read(folder, Opening()).card
    # transpose_forward [2, 0, 1] of z, y, x is x, z, y: slices across x.
    assert (card.input.axes, card.input.orientation) == (("C", "z", "y"), "RAS")
    assert (card.input.spacing, card.cut.size, card.mirror) == ((1.2, 1.3), (28, 32), ("y",))
    conflict = refused(folder, Opening(orientation="LPS"))
    assert conflict.code == "orientation-conflict"


def test_the_training_orientation_is_asked_for_where_the_reader_ignores_direction(copied):
    folder = copied(REGION)
    change(folder / "fold_0" / "network.json", orientation=...)
    error = refused(folder)
    assert (error.code, error.status) == ("orientation-unknown", 78)
    assert "--orientation" in (error.hint or "")
    assert NnUNet().read(folder, Opening(orientation="LPI")).card.input.orientation == "LPI"
    assert refused(folder, Opening(orientation="LLS")).code == "orientation-unknown"


def test_several_channels_are_inputs_under_names_of_their_own(copied):
    folder = copied(REGION)
    change(folder / "dataset.json", channel_names={"0": "T1", "1": "T1 (contrast)", "2": "t1"})
    configure(
        folder,
        normalization_schemes=["ZScoreNormalization", "NoNormalization", "RescaleTo01Normalization"],
        use_mask_for_norm=[False, False, False],
    )
    inputs = NnUNet().read(folder, Opening()).card.inputs
    assert [said.role for said in inputs] == ["volume-t1_0", "volume-t1_contrast", "volume-t1_2"]
    assert [said.intensity_before for said in inputs] == [
        (Normalize(None, None, "volume"),),
        (),
        (ScaleVolume((0.0, 1.0)),),
    ]


def test_a_configuration_takes_what_it_does_not_say_from_the_one_it_inherits_from(copied, tmp_path):
    folder = copied(THICK).rename(tmp_path / "nnUNetTrainer_100epochs__nnUNetPlans__3d_small")
    configure(folder, "3d_small", inherits_from="3d_fullres", patch_size=[8, 8, 8])
    for fold in ("fold_0", "fold_1"):
        change(folder / fold / "network.json", configuration="3d_small")
    card = NnUNet().read(folder, Opening()).card
    assert (card.cut.size, card.input.spacing) == ((8, 8, 8), (2.5, 1.1, 0.9))


def test_folds_are_those_with_a_number_and_fold_all_alone(copied):
    folder = copied(THICK)
    shutil.copytree(folder / "fold_0", folder / "fold_all")
    model = NnUNet().read(folder, Opening())
    assert len(model.networks) == 2
    shutil.rmtree(folder / "fold_0")
    shutil.rmtree(folder / "fold_1")
    model = NnUNet().read(folder, Opening())
    assert [network.parent.name for network in model.networks] == ["fold_all"]
    assert model.card.ensemble is None


def test_the_digest_covers_plans_data_set_folds_and_postprocessing(copied):
    folder = copied(THICK)
    seen = {NnUNet().read(folder, Opening()).sha256}
    files = ["plans.json", "dataset.json", "postprocessing.json", "fold_1/network.json", "fold_1/network.onnx"]
    for name in files:
        with (folder / name).open("ab") as file:
            file.write(b"\n" if name.endswith("json") else b"\x08\x00")
        seen.add(NnUNet().read(folder, Opening()).sha256)
    assert len(seen) == len(files) + 1


def test_postprocessing_is_found_where_nnunet_leaves_it_for_just_these_folds(copied):
    folder = copied(THICK)
    results = folder / "crossval_results_folds_0_1"
    results.mkdir()
    (folder / "postprocessing.json").rename(results / "postprocessing.json")
    assert NnUNet().read(folder, Opening()).card.first_output.after
    results.rename(folder / "crossval_results_folds_0_1_2_3_4")
    assert not NnUNet().read(folder, Opening()).card.first_output.after


def test_a_pickled_postprocessing_is_not_read_and_it_is_said(copied):
    folder = copied(THICK)
    (folder / "postprocessing.json").unlink()
    (folder / "postprocessing.pkl").write_bytes(b"\x80\x04cos\nsystem\n(S'touch canary'\ntR.")
    model = NnUNet().read(folder, Opening())
    assert not model.card.first_output.after
    assert "no-postprocessing" in dict(model.notes)
    assert not Path("canary").exists()


def unsupported(key: str, value: Any) -> Callable[[Path], None]:
    return lambda folder: configure(folder, **{key: value})


RESAMPLING = "resample_data_or_seg_to_shape"


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(unsupported("previous_stage", "3d_lowres"), id="a cascade"),
        pytest.param(unsupported("preprocessor_name", "MyPreprocessor"), id="another preprocessor"),
        pytest.param(unsupported("resampling_fn_data", "resample_torch_fornnunet"), id="another resampler"),
        pytest.param(unsupported("resampling_fn_probabilities", "no_resampling_hack"), id="another way back"),
        pytest.param(
            unsupported("resampling_fn_data_kwargs", {"order": 1, "order_z": 0, "force_separate_z": None}),
            id="another order",
        ),
        pytest.param(
            unsupported("resampling_fn_data_kwargs", {"order": 3, "order_z": 0, "force_separate_z": True}),
            id="forced apart",
        ),
        pytest.param(unsupported("resampling_fn_data_kwargs", {"mystery": 1}), id="an unknown argument"),
        pytest.param(unsupported("normalization_schemes", ["RGBTo01Normalization"]), id="colour"),
        pytest.param(lambda f: change(f / "plans.json", image_reader_writer="Tiff3DIO"), id="another reader"),
        pytest.param(lambda f: change(f / "plans.json", label_manager="MyLabels"), id="another label manager"),
        pytest.param(
            lambda f: change(f / "fold_0/network.json", trainer_name="nnUNet_Primus_M_Trainer"),
            id="another network's trainer",
        ),
        pytest.param(
            lambda f: change(f / "dataset.json", labels={"background": 0, "a": 1, "b": 3}), id="labels with a gap"
        ),
        pytest.param(
            lambda f: change(f / "postprocessing.json", postprocessing_fns=["my_own_step"]), id="another postprocessing"
        ),
        pytest.param(
            lambda f: change(f / "dataset.json", labels=REGIONS, regions_class_order=[1, 1, 3]),
            id="a value written twice",
        ),
    ],
)
def test_what_is_not_reproduced_is_refused_by_name(copied, spoil):
    folder = copied(THICK)
    spoil(folder)
    error = refused(folder)
    assert (error.code, error.status) == ("unsupported-nnunet", 78)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda f: (f / "plans.json").write_text("{"), id="half a file"),
        pytest.param(lambda f: (f / "plans.json").write_text("[]"), id="no object"),
        pytest.param(lambda f: change(f / "plans.json", configurations={}), id="no configuration"),
        pytest.param(unsupported("inherits_from", "3d_fullres"), id="a configuration that inherits from itself"),
        pytest.param(unsupported("patch_size", [16, 24]), id="a patch of other axes than the spacing"),
        pytest.param(unsupported("patch_size", [16, True, 20]), id="a patch of words"),
        pytest.param(unsupported("spacing", [1.0, 0.0, 1.0]), id="no spacing"),
        pytest.param(unsupported("use_mask_for_norm", []), id="no mask rule"),
        pytest.param(lambda f: change(f / "plans.json", transpose_forward=[0, 0, 2]), id="an axis twice"),
        pytest.param(
            lambda f: change(f / "plans.json", foreground_intensity_properties_per_channel={}), id="no foreground"
        ),
        pytest.param(lambda f: change(f / "dataset.json", labels={"a": 1}), id="no background"),
        pytest.param(lambda f: change(f / "dataset.json", labels={"background": 0}), id="nothing but background"),
        pytest.param(lambda f: change(f / "dataset.json", channel_names={"1": "CT"}), id="no first channel"),
        pytest.param(
            lambda f: change(f / "dataset.json", labels=REGIONS, regions_class_order=...), id="no order of regions"
        ),
        pytest.param(
            lambda f: change(f / "fold_1/network.json", configuration="2d"), id="a fold of another configuration"
        ),
        pytest.param(
            lambda f: change(f / "fold_1/network.json", inference_allowed_mirroring_axes=[0]),
            id="a fold mirrored otherwise",
        ),
        pytest.param(
            lambda f: change(f / "fold_0/network.json", inference_allowed_mirroring_axes=[3]),
            id="an axis that is not there",
        ),
        pytest.param(lambda f: change(f / "fold_0/network.json", schema="md.other/1"), id="another file"),
    ],
)
def test_files_that_do_not_say_what_they_must_are_refused(copied, spoil):
    folder = copied(THICK)
    spoil(folder)
    error = refused(folder)
    assert (error.code, error.status) == ("bad-nnunet", 78)


def test_a_folder_whose_name_does_not_say_which_of_several_configurations_is_refused(copied, tmp_path):
    folder = copied(THICK).rename(tmp_path / "model")
    configure(folder, "2d", patch_size=[8, 8], spacing=[1.0, 1.0])
    for fold in ("fold_0", "fold_1"):
        change(folder / fold / "network.json", configuration=...)
    assert refused(folder).code == "bad-nnunet"


def test_a_trainer_that_is_not_nnunets_own_is_warned_of(copied):
    folder = copied(THICK)
    for fold in ("fold_0", "fold_1"):
        change(folder / fold / "network.json", trainer_name="nnUNetTrainerOfMine")
    assert "unknown-trainer" in dict(NnUNet().read(folder, Opening()).notes)


@pytest.mark.parametrize(
    "name",
    ["nnUNetTrainer", "nnUNetTrainer_4000epochs_NoMirroring", "nnUNetTrainerDA5Segord0", "nnUNetTrainerDiceTopK10Loss"],
)
def test_nnunets_own_trainers_are_known(copied, name):
    folder = copied(REGION)
    change(folder / "fold_0" / "network.json", trainer_name=name)
    assert "unknown-trainer" not in dict(NnUNet().read(folder, Opening()).notes)


def test_a_checkpoint_without_a_cache_and_a_network_without_its_facts_are_refused(copied):
    folder = copied(REGION)
    (folder / "fold_0" / "network.json").unlink()
    assert refused(folder, Opening(orientation="LPS")).code == "no-network"
    (folder / "fold_0" / "checkpoint_final.pth").write_bytes(b"never opened here")
    assert refused(folder, Opening(orientation="LPS")).code == "no-network"


def test_a_network_that_was_made_from_another_checkpoint_is_not_used(copied):
    folder = copied(REGION)
    (folder / "fold_0" / "checkpoint_final.pth").write_bytes(b"a newer checkpoint")
    with pytest.raises(MissingError):
        NnUNet().read(folder, Opening(orientation="LPS"))


def test_a_pickle_in_place_of_a_checkpoint_is_refused_and_does_nothing(copied, tmp_path):
    folder = copied(REGION)
    canary = tmp_path / "canary"
    (folder / "fold_0" / "checkpoint_final.pth").write_bytes(f"cos\nsystem\n(S'touch {canary}'\ntR.".encode())
    with pytest.raises(ConfigError):
        NnUNet().read(folder, Opening(cache=tmp_path / "cache", orientation="LPS"))
    assert not canary.exists()


def test_reading_loads_no_heavy_library():
    code = (
        "import sys; from pathlib import Path; from mdcli.inference.formats.nnunet import NnUNet; "
        f"print(NnUNet().recognises(Path({str(DATA / THICK.name)!r}))); "
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'SimpleITK', 'pydicom'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split("\n")[:2] == ["True", "[]"]


@pytest.mark.parametrize("name", ["plans.json", "dataset.json", "postprocessing.json", "fold_1/network.onnx"])
def test_a_file_that_lies_outside_of_the_folder_is_refused(copied, tmp_path, name):
    folder = copied(THICK)
    elsewhere = (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(elsewhere)
    assert refused(folder).code == "outside-folder"


def test_what_is_refused_is_refused_before_a_checkpoint_is_opened(copied, tmp_path):
    folder = copied(REGION)
    for name in ("network.onnx", "network.json"):
        (folder / "fold_0" / name).unlink()
    (folder / "fold_0" / "checkpoint_final.pth").write_bytes(b"no checkpoint")
    opening = Opening(cache=tmp_path / "cache")
    assert refused(folder, opening).code == "orientation-unknown"
    configure(folder, normalization_schemes=["MyNormalization"])
    assert refused(folder, replace(opening, orientation="LPS")).code == "unsupported-nnunet"
