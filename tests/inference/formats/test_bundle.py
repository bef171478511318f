"""A MONAI Bundle becomes one card, or is refused by name; what MONAI makes of the same files is what md makes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from mdcli.errors import ConfigError, MdError
from mdcli.inference.card import Bound, Clip, Crop, Normalize, Percentiles, Scale, ScaleVolume, Window
from mdcli.inference.formats import Opening, find_model
from mdcli.inference.formats.bundle import MonaiBundle
from mdcli.inference.steps_after import KeepLargest
from mdcli.registry import load_stage
from mdcli.testing import ListReporter, run_stage
from mdcli.workspace import Workspace
from tests.inference.formats.bundles import LOAD, compose, invert, transform, write_bundle

MONAI = np.load(Path(__file__).parents[1] / "data" / "bundles.npz")


def read(folder, **opening):
    return MonaiBundle().read(folder, Opening(**opening))


@pytest.fixture
def made(tmp_path):
    """Return a function that writes one of the bundles, changed, and reads it."""

    def make(name="spleen", edit=None, **opening):
        return read(write_bundle(tmp_path / name, name, edit=edit), **opening)

    return make


def before(*transforms):
    """Return an edit: other transforms before the network, after loading."""
    return lambda said, config: config.update(preprocessing=compose(*LOAD, *transforms))


def after(*transforms):
    return lambda said, config: config.update(postprocessing=compose(*transforms))


def refused(call, code):
    with pytest.raises(MdError) as caught:
        call()
    assert caught.value.code == code, caught.value
    return caught.value.message


# ---- what is read


def test_a_bundle_as_the_zoo_s_spleen_becomes_a_card(made):
    found = made("spleen")
    card = found.card
    assert (card.name, card.version, card.task, card.networks) == (
        "spleen",
        "0.1.0",
        "segmentation",
        ("models/model.onnx",),
    )
    said = card.input
    assert (said.axes, said.orientation, said.spacing, said.unit) == (
        ("C", "x", "y", "z"),
        "RAS",
        (1.5, 1.4, 2.0),
        "HU",
    )
    assert said.intensity == (Scale((-57, 164), (0, 1)), Clip(0, 1)) and said.intensity_before == ()
    assert said.padding is None
    assert card.window == Window((24, 20, 16), overlap=0.5, blending="constant")
    output = card.first_output
    assert (output.activation, output.inversion, output.form) == ("softmax", "scores", "labels")
    assert [(label.value, label.name) for label in card.labels] == [(1, "spleen"), (2, "Left kidney"), (3, "liver")]
    assert {label.type.scheme for label in card.labels} == {"99MDCLI"}
    assert card.labels[1].type.meaning == "Left kidney"
    assert card.accepts == {"modality": Bound(one_of=("CT",))}
    assert card.intended_use == "Tests only"
    assert [code for code, _ in found.notes] == ["private-code"]


def test_the_order_of_argmax_and_invert_decides_what_comes_back(made):
    card = made("whole_body").card
    assert card.first_output.inversion == "labels"
    assert card.input.spacing == (1.65, 1.7, 1.75) and card.input.orientation == "LPS"
    assert card.input.intensity == (Normalize(None, None, "nonzero"), ScaleVolume((-1, 1)))
    # MONAI knows no padding value: it counts every voxel.
    assert card.input.padding == "include"
    assert card.window == Window((20, 20, 20), overlap=0.25, blending="gaussian")


def test_four_channels_are_four_volumes_and_overlap_is_kept(made):
    found = made("brats", orientation="LPS")
    card = found.card
    assert [said.role for said in card.inputs] == ["volume-t1c", "volume-t1", "volume-t2", "volume-flair"]
    assert {said.orientation for said in card.inputs} == {"LPS"}
    assert (card.first_output.form, card.first_output.activation) == ("masks", "sigmoid")
    assert [label.name for label in card.labels] == ["Tumor core", "Whole tumor", "Enhancing tumor"]
    assert card.accepts == {"modality": Bound(one_of=("MR",))} and card.input.unit == "arbitrary"
    assert "overlap-kept" in [code for code, _ in found.notes]


def test_labels_that_a_bundle_would_interpolate_come_back_by_the_nearest(made):
    # As prostate_mri_anatomy: the highest class, largest parts, then Invert with nearest_interp: false.
    found = made(
        "spleen",
        edit=after(
            transform("AsDiscreted", "pred", argmax=True),
            transform("KeepLargestConnectedComponentd", "pred", applied_labels=[1, 2]),
            invert(False),
        ),
    )
    output = found.card.first_output
    assert (output.inversion, output.after) == ("labels", (KeepLargest((1, 2), False, 3),))
    assert {"nearest-labels", "components-on-source-grid"} <= {code for code, _ in found.notes}


def test_a_bundle_that_turns_nothing_asks_how_its_training_images_lay(made):
    assert "Orientation" in refused(lambda: made("brats"), "orientation-unknown")


def test_a_crop_is_meant_of_the_values_before_the_steps(made):
    card = made("cropped").card
    # 0 after scaling -150 ... 350 to 0 ... 1.
    assert card.input.crop == Crop(above=-150.0, margin=0)
    assert card.first_output.after == (KeepLargest((2,), False, 3),)


def test_a_classification_has_a_class_for_every_channel(made):
    card = made("classes").card
    assert (card.task, card.window, card.first_output.axes) == ("classification", None, ("C",))
    assert card.input.resize == (16, 14, 12) and card.input.resize_mode == "area"
    # Statistics of the image as it was: before it is brought to another size.
    assert card.input.intensity_before == (ScaleVolume((0, 1)),)
    assert [label.name for label in card.labels] == ["mild", "moderate", "severe"]


def picture(said, config):
    """Make of the classification one of pictures, as endoscopic_inbody_classification."""
    given = said["network_data_format"]["inputs"]["image"]
    given |= {"format": "RGB", "modality": "regular", "num_channels": 3, "spatial_shape": [32, 24]}
    said["data_type"] = "jpeg"
    config["preprocessing"] = compose(
        transform("LoadImaged"),
        transform("AsChannelFirstd"),
        transform("Resized", spatial_size=[32, 24], mode="bilinear"),
        transform("CastToTyped", dtype="$torch.float32"),
        transform("NormalizeIntensityd", nonzero=True, channel_wise=True),
        transform("EnsureTyped"),
    )
    config["postprocessing"] = compose(transform("AsDiscreted", "pred", argmax=True, to_onehot=3))


def test_a_colour_picture_is_one_input_of_three_channels(made):
    card = made("classes", edit=picture).card
    assert len(card.inputs) == 1
    said = card.input
    assert (said.axes, said.channels, said.grayscale) == (("C", "x", "y"), 3, "modality")
    assert (said.orientation, said.spacing, said.resize) == ("as-acquired", "as-acquired", (32, 24))


def test_a_grey_picture_is_seen_as_it_is_displayed(made):
    def edit(said, config):
        picture(said, config)
        next(iter(said["network_data_format"]["inputs"].values())).update(format="magnitude", num_channels=1)

    said = made("classes", edit=edit).card.input
    assert (said.channels, said.grayscale) == (1, "presentation")


def test_a_background_that_is_cut_off_one_hot_classes_changes_no_label(made):
    # As endoscopic_tool_segmentation.
    edit = after(
        invert(False),
        transform("AsDiscreted", "pred", argmax=True, to_onehot=4),
        transform("Lambdad", ["pred"], func="$lambda x : x[1:]"),
    )
    assert made("spleen", edit=edit).card.first_output.inversion == "scores"


def slices(said, config):
    """Make of the spleen bundle one whose network takes slices, as ventricular_short_axis_3label."""
    for each in ("inputs", "outputs"):
        next(iter(said["network_data_format"][each].values()))["spatial_shape"] = [32, 28]
    config["preprocessing"] = compose(*LOAD, transform("ScaleIntensityd"))
    config["inferer"] = {"_target_": "SliceInferer", "roi_size": [32, 28], "spatial_dim": 2}


def test_a_network_that_takes_slices_sees_two_axes(made):
    card = made("spleen", edit=slices, orientation="LPS").card
    assert card.input.axes == ("C", "x", "y") == card.first_output.axes
    assert card.window == Window((32, 28), overlap=0.25, blending="constant")


@pytest.mark.parametrize(
    "transforms, steps",
    [
        ([transform("ScaleIntensityRanged", a_min=-100, a_max=300)], (Scale((-100, 300), (0, 1)),)),
        ([transform("NormalizeIntensityd", subtrahend=40.0, divisor=12.5)], (Normalize(40.0, 12.5),)),
        ([transform("NormalizeIntensityD")], (Normalize(None, None, "volume"),)),
        ([transform("NormalizeIntensityd", nonzero="True", channel_wise="True")], (Normalize(None, None, "nonzero"),)),
        ([transform("ScaleIntensityDict", minv=None, maxv=None, factor=0.5)], (ScaleVolume(None, 0.5),)),
        (
            [transform("ScaleIntensityRangePercentilesd", lower=1, upper=99, b_min=0, b_max=1, clip=True)],
            (Percentiles(1, 99, (0, 1), True),),
        ),
        ([{"_target_": "monai.transforms.CastToTyped", "keys": ["image"], "dtype": "$np.float32"}], ()),
        ([transform("ToTensord")], ()),
        ([transform("Lambdad", func="$lambda x: (x + 1024) / 2000")], None),
        ([transform("Lambdad", func="$lambda x: torch.clip(x, -1000, 400)")], (Clip(-1000, 400),)),
        ([transform("Lambdad", func="$lambda v: v.clamp(min=-10, max=10)")], (Clip(-10, 10),)),
        ([transform("Lambdad", func="$lambda x: x")], ()),
        ([compose(transform("ScaleIntensityd"))], (ScaleVolume((0, 1)),)),
        ([{"_target_": "RandFlipd", "_disabled_": True}], ()),
    ],
)
def test_transforms_are_said_in_the_card_s_words(made, transforms, steps):
    card = made("spleen", edit=before(transform("Orientationd", axcodes="RAS"), *transforms)).card
    if steps is None:
        # (x + 1024) / 2000 at -1024 and at 976.
        from mdcli.inference.preprocess import apply_steps

        found = apply_steps(np.array([-1024, 976], np.float32), card.input.intensity)
        np.testing.assert_allclose(found, [0, 1], atol=1e-6)
    else:
        assert card.input.intensity == steps


def test_a_straight_line_may_change_places_with_resampling_and_a_clip_may_not(made):
    spacing = transform("Spacingd", pixdim=[1, 1, 1])
    turn = transform("Orientationd", axcodes="RAS")
    line, clip = (
        transform("ScaleIntensityRanged", a_min=0, a_max=100, b_min=0, b_max=1, clip=each) for each in (False, True)
    )
    said = made("spleen", edit=before(turn, line, spacing)).card.input
    assert (said.intensity_before, said.intensity) == ((), (Scale((0, 100), (0, 1)),))
    said = made("whole_body", edit=before(turn, clip, spacing)).card.input
    assert (said.intensity_before, said.intensity) == ((Scale((0, 100), (0, 1)), Clip(0, 1)), ())


def test_a_transposed_image_has_its_axes_in_that_order(made):
    edit = before(
        transform("Orientationd", axcodes="RAS"),
        transform("Spacingd", pixdim=[1, 2, 3]),
        transform("Transposed", indices=[0, 3, 2, 1]),
    )
    said = made("spleen", edit=edit).card.input
    assert (said.axes, said.spacing) == (("C", "z", "y", "x"), (3.0, 2.0, 1.0))


def test_a_structure_without_a_name_gets_its_channel_s_number_and_two_alike_are_told_apart(made):
    def edit(said, config):
        said["network_data_format"]["outputs"]["pred"]["channel_def"] = {"0": "background", "1": "lung", "2": "lung"}

    found = made("spleen", edit=edit)
    assert [label.name for label in found.card.labels] == ["lung", "lung 2", "channel 3"]
    assert "name-missing" in [code for code, _ in found.notes]


def test_long_names_that_begin_alike_get_codes_of_their_own(made):
    def edit(said, config):
        names = ["background", "Lung upper lobe left", "Lung upper lobe right", "Lung upper"]
        said["network_data_format"]["outputs"]["pred"]["channel_def"] = {str(n): name for n, name in enumerate(names)}

    codes = [label.type.value for label in made("spleen", edit=edit).card.labels]
    assert len(set(codes)) == 3 and max(map(len, codes)) <= 16


def test_the_hash_covers_the_configuration_and_the_network(tmp_path):
    folder = write_bundle(tmp_path / "b", "spleen")
    first = read(folder).sha256
    assert read(folder).sha256 == first
    path = folder / "configs" / "inference.json"
    path.write_text(path.read_text() + "\n")
    second = read(folder).sha256
    with (folder / "models" / "model.onnx").open("ab") as file:
        # An unknown field of the protobuf: number 1000, of no bytes.
        file.write(b"\xc2\x3e\x00")
    assert len({first, second, read(folder).sha256}) == 3


def test_a_zip_is_read_from_the_cache_and_found_by_its_path(tmp_path):
    write_bundle(tmp_path / "in" / "spleen", "spleen")
    path = Path(shutil.make_archive(str(tmp_path / "spleen"), "zip", tmp_path / "in"))
    refused(lambda: find_model(str(path), ()), "no-network")
    found = find_model(str(path), (), Opening(cache=tmp_path / "cache"))
    assert found.card == read(tmp_path / "in" / "spleen").card
    assert found.sha256 == read(tmp_path / "in" / "spleen").sha256
    assert isinstance(found.networks[0], Path) and found.networks[0].is_relative_to(tmp_path / "cache")


# ---- what is refused


@pytest.mark.parametrize(
    "edit, named",
    [
        (before(transform("RandGaussianNoised")), "RandGaussianNoised"),
        (before({"_target_": "scripts.mine.ScaleIntensityd", "keys": "image"}), "scripts.mine.ScaleIntensityd"),
        (before(transform("ScaleIntensityRanged", a_min=0, a_max=1, b_min=0, b_max=1, strange=1)), "strange"),
        (before(transform("Spacingd", pixdim=[1, 1, -1])), "pixdim"),
        (before(transform("Spacingd", pixdim=[1, 1, 1], mode=3)), "mode"),
        (before(transform("Spacingd", pixdim=[1, 1, 1], padding_mode="zeros")), "padding_mode"),
        (before(transform("Spacingd", pixdim=[1, 1, 1]), transform("Orientationd", axcodes="RAS")), "Orientationd"),
        (before(transform("Orientationd", axcodes="RAX")), "axcodes"),
        (before(transform("Orientationd", axcodes="RAS", labels=[["R", "L"], ["P", "A"], ["I", "S"]])), "labels"),
        (before(transform("NormalizeIntensityd", subtrahend=1.0, divisor=0.0)), "divisor"),
        (before(transform("NormalizeIntensityd", subtrahend=1.0)), "subtrahend and divisor"),
        (before(transform("NormalizeIntensityd", subtrahend=1.0, divisor=2.0, nonzero=True)), "not zero"),
        (before(transform("NormalizeIntensityd", nonzero="False")), "nonzero"),
        (before(transform("CastToTyped", dtype="$torch.uint8")), "dtype"),
        (before(transform("EnsureTyped", dtype="$torch.float16")), "dtype"),
        (before(transform("Lambdad", func="$lambda x: x.numpy().tofile('canary')")), "func"),
        (before(transform("Lambdad", func="$lambda x: x ** 2")), "func"),
        (before(transform("CropForegroundd", source_key="image", select_fn="$lambda x: x < 0")), "select_fn"),
        (before(transform("CropForegroundd", source_key="image", k_divisible=16)), "k_divisible"),
        (before(transform("CropForegroundd", source_key="label")), "source_key"),
        (before(transform("ScaleIntensityd"), transform("CropForegroundd", source_key="image")), "CropForeground"),
        (before(transform("Resized", spatial_size=64, size_mode="longest")), "size_mode"),
        (before(transform("Resized", spatial_size=[8, 8, 8], align_corners=True, mode="trilinear")), "align_corners"),
        (before(transform("SqueezeDimd", dim=0)), "dim"),
        (before(transform("ScaleIntensityd", key=["image", "label"])), "keys"),
        (before(transform("ScaleIntensityd", key="label")), "label"),
        (lambda said, config: config["preprocessing"].update(lazy=True), "lazy"),
        (lambda said, config: config.update(inferer={"_target_": "SaliencyInferer"}), "SaliencyInferer"),
        (lambda said, config: config["inferer"].update(roi_size=[96, 96]), "roi_size"),
        (lambda said, config: config["inferer"].update(overlap=[0.5, 0.25, 0.5]), "overlap"),
        (lambda said, config: config["inferer"].update(mode="gaussian", sigma_scale=0.25), "sigma_scale"),
        (lambda said, config: config["inferer"].update(padding_mode="reflect"), "padding_mode"),
        (after(transform("Activationsd", "pred", other="$torch.nn.functional.gelu")), None),
        (after(transform("Activationsd", "pred", softmax=True, sigmoid=True)), "together"),
        (after(invert(False), transform("Activationsd", "pred", sigmoid=True)), "Activationsd"),
        (after(transform("AsDiscreted", "pred", argmax=True, threshold=0.5)), "together"),
        (
            after(transform("AsDiscreted", "pred", argmax=True), transform("AsDiscreted", "pred", threshold=0.5)),
            "second time",
        ),
        (after(transform("AsDiscreted", "pred", rounding="torchrounding")), "rounding"),
        (after(transform("KeepLargestConnectedComponentd", "pred")), "KeepLargestConnectedComponentd"),
        (
            after(
                transform("AsDiscreted", "pred", argmax=True),
                transform("KeepLargestConnectedComponentd", "pred", num_components=2),
            ),
            "num_components",
        ),
        (
            after(
                transform("AsDiscreted", "pred", argmax=True),
                transform("KeepLargestConnectedComponentd", "pred", applied_labels=[9]),
            ),
            "label 9",
        ),
        (after(transform("Invertd", "pred", transform="@dataset")), None),
        (
            after(transform("AsDiscreted", "pred", argmax=True), transform("Lambdad", "pred", func="$lambda x: x + 1")),
            "func",
        ),
        (after(transform("VoteEnsembled", "pred")), "VoteEnsembled"),
    ],
)
def test_what_is_not_reproduced_is_refused_by_name(made, edit, named):
    with pytest.raises(ConfigError) as caught:
        made("spleen", edit=edit, orientation="RAS")
    assert caught.value.code in ("unsupported-transform", "refused-expression")
    assert named is None or named in caught.value.message
    assert (
        "preprocessing" in caught.value.message or "inferer" in caught.value.message or "post" in caught.value.message
    )


def change(place, **values):
    """Return an edit of the metadata's one input or output."""
    return lambda said, config: next(iter(said["network_data_format"][place].values())).update(values)


@pytest.mark.parametrize(
    "edit, code",
    [
        (lambda said, config: said.pop("network_data_format"), "bad-bundle"),
        (lambda said, config: said["network_data_format"].pop("outputs"), "bad-bundle"),
        (change("outputs", num_channels=0), "bad-bundle"),
        (change("outputs", num_channels="4"), "bad-bundle"),
        (change("outputs", num_channels=10**9), "bad-bundle"),
        (change("inputs", spatial_shape=[96, 96]), "bad-bundle"),
        (change("outputs", type="image", format="latent"), "unsupported-bundle"),
        (lambda said, config: said["network_data_format"]["inputs"].update(label={}), "unsupported-bundle"),
        (change("inputs", num_channels=2), None),
        (after(transform("Activationsd", "pred", softmax=True)), "unsupported-bundle"),
        (after(transform("AsDiscreted", "pred", threshold=0.5)), "unsupported-bundle"),
        (
            after(
                transform("Activationsd", "pred", sigmoid=True),
                transform("AsDiscreted", "pred", threshold=0.5),
                invert(True),
            ),
            "unsupported-bundle",
        ),
    ],
)
def test_metadata_that_does_not_fit_is_refused(made, edit, code):
    if code is None:
        assert [said.role for said in made("spleen", edit=edit).card.inputs] == ["volume-image", "volume-channel_1"]
    else:
        refused(lambda: made("spleen", edit=edit), code)


def test_statistics_of_several_channels_together_are_refused(made):
    def edit(said, config):
        config["preprocessing"] = compose(transform("LoadImaged"), transform("ScaleIntensityd"))

    assert "channel_wise" in refused(lambda: made("brats", edit=edit, orientation="LPS"), "unsupported-transform")


def test_a_bundle_without_a_network_says_where_it_was_looked_for(tmp_path):
    folder = write_bundle(tmp_path / "b", "spleen", onnx=False)
    assert "models/model.onnx" in refused(lambda: read(folder), "no-network")


def test_external_data_stays_in_the_bundle(tmp_path):
    import onnx

    folder = write_bundle(tmp_path / "b", "spleen")
    network = onnx.load(str(folder / "models" / "model.onnx"))
    tensor = network.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")
    (tmp_path / "secret").write_bytes(bytes(200))
    onnx.save(network, str(folder / "models" / "model.onnx"))
    refused(lambda: read(folder), "outside-folder")


def test_a_linked_network_is_not_followed(tmp_path):
    folder = write_bundle(tmp_path / "b", "spleen")
    shutil.move(folder / "models" / "model.onnx", tmp_path / "elsewhere.onnx")
    (folder / "models" / "model.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    refused(lambda: read(folder), "outside-folder")


def test_weights_need_a_network_of_monai_s_by_name(tmp_path):
    def edit(said, config):
        config["network_def"] = {"_target_": "scripts.networks.unest.UNesT", "in_channels": 1}

    folder = write_bundle(tmp_path / "b", "spleen", onnx=False, edit=edit)
    (folder / "models" / "model.pt").write_bytes(b"PK")
    refused(lambda: read(folder), "no-network")
    assert "scripts.networks" in refused(lambda: read(folder, cache=tmp_path / "cache"), "unsupported-bundle")


def test_torchscript_is_a_program_and_is_not_run_unless_it_is_trusted(tmp_path):
    import zipfile

    folder = write_bundle(tmp_path / "b", "spleen", onnx=False)
    with zipfile.ZipFile(folder / "models" / "model.ts", "w") as archive:
        archive.writestr("model/data.pkl", b"\x80\x02N.")
        archive.writestr("model/code/__torch__.py", "")
        archive.writestr("model/constants.pkl", b"\x80\x02N.")
    refused(lambda: read(folder, cache=tmp_path / "cache"), "program-not-trusted")


CODE = "__import__('pathlib').Path('canary').write_text('ran')"


@pytest.mark.parametrize(
    "edit",
    [
        lambda said, config: config.update(preprocessing=f"${CODE}"),
        lambda said, config: config.update(inferer=f"${CODE}"),
        lambda said, config: config["preprocessing"].update(_disabled_=f"${CODE}"),
        lambda said, config: config["preprocessing"].update(_target_=f"${CODE}"),
        lambda said, config: config["preprocessing"]["transforms"].append(
            {"_target_": "builtins.exec", "source": CODE}
        ),
        lambda said, config: config["preprocessing"]["transforms"].append(f"$[{CODE} for x in [1]][0]"),
        lambda said, config: config["preprocessing"]["transforms"].append({"_target_": "os.system", "command": "id"}),
        before(transform("Lambdad", func=f"$lambda x: {CODE}")),
        before(transform("Lambdad", func=f"$lambda x, y={CODE}: x")),
        before(transform("Lambdad", func=f"$(lambda x: {CODE})(1)")),
        before(transform("ScaleIntensityd", minv=f"${CODE}")),
        before(transform("Resized", spatial_size="$[9**9**9, 1, 1]")),
        lambda said, config: config["inferer"].update(roi_size="%../../../etc/passwd"),
        lambda said, config: config["inferer"].update(overlap="$().__class__.__mro__[1].__subclasses__()"),
    ],
)
def test_nothing_of_a_bundle_runs(tmp_path, monkeypatch, edit):
    monkeypatch.chdir(tmp_path)
    folder = write_bundle(tmp_path / "b", "spleen", edit=edit)
    with pytest.raises(ConfigError) as caught:
        read(folder)
    assert caught.value.code in ("refused-expression", "unsupported-transform", "outside-folder", "bad-bundle")
    assert not list(tmp_path.rglob("canary"))


@pytest.mark.parametrize("name", ["imports", "run", "initialize", "dataset", "device", "datalist", "evaluator"])
def test_what_the_inference_does_not_need_is_not_looked_at(made, name):
    assert made("spleen", edit=lambda said, config: config.update({name: [f"${CODE}"]})).card.name == "spleen"
    assert not Path("canary").exists()


# ---- what MONAI makes


def run(tmp_path, bundle, geometry, **params):
    """Run md over a stored volume by a bundle, and return the workspace."""
    affine, ws = MONAI[f"{geometry}_affine_ras"], tmp_path / "ws"
    roles = {"mr0": "t1c", "mr1": "t1", "mr2": "t2", "mr3": "flair"} if bundle == "brats" else {"ct": None}
    for key, role in roles.items():
        nibabel.save(nibabel.Nifti1Image(MONAI[key], affine), tmp_path / f"{key}.nii")
        unit = {"unit": "HU"} if role is None else {}
        run_stage(load_stage("import-volume"), Workspace(ws, as_name=role), file=tmp_path / f"{key}.nii", **unit)
    folder = write_bundle(tmp_path / bundle, bundle)
    run_stage(load_stage("infer"), ws, model=str(folder), reporter=ListReporter(), **params)
    return ws


def close_voxels(key, shape):
    return np.unpackbits(MONAI[f"{key}_close"])[: np.prod(shape)].reshape(shape).astype(bool)


def same_class_by_class(found, expected, close, count):
    """Hold two label maps to truth 17."""
    assert not ((found != expected) & ~close).any()
    for value in range(count):
        ours, theirs = found == value, expected == value
        assert theirs.sum() > 1000
        assert 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()) >= 0.999
        assert abs(int(ours.sum()) - int(theirs.sum())) <= max(5, 0.001 * theirs.sum())


@pytest.mark.parametrize("geometry", ["axial", "sagittal", "oblique"])
@pytest.mark.parametrize("bundle, count", [("spleen", 4), ("whole_body", 4), ("cropped", 3)])
def test_labels_are_those_of_monai_s_own_bundle_code(tmp_path, bundle, count, geometry):
    ws = run(tmp_path, bundle, geometry)
    found = np.asarray(nibabel.load(ws / "labels.nii").dataobj)
    expected = MONAI[f"{bundle}_{geometry}"][0]
    same_class_by_class(found, expected, close_voxels(f"{bundle}_{geometry}", expected.shape), count)


def test_structures_that_overlap_are_those_of_monai_s_own_bundle_code(tmp_path):
    ws = run(tmp_path, "brats", "axial", orientation="LPS")
    expected = MONAI["brats_axial"]
    close = close_voxels("brats_axial", expected.shape)
    files = sorted((ws / "masks").glob("*.nii"))
    assert len(files) == 3
    for file, theirs, near in zip(files, expected, close, strict=True):
        same_class_by_class(np.asarray(nibabel.load(file).dataobj), theirs, near, 2)


@pytest.mark.parametrize("geometry", ["axial", "sagittal", "oblique"])
def test_probabilities_of_classes_are_those_of_monai_s_own_bundle_code(tmp_path, geometry):
    ws = run(tmp_path, "classes", geometry)
    document = json.loads((ws / "classes.json").read_text())
    found = [each["probability"] for each in document["outputs"][0]["labels"]]
    np.testing.assert_allclose(found, MONAI[f"classes_{geometry}"], atol=1e-5)


AXES = np.array([[0.9, -0.1, 0.0], [0.1, 0.9, 0.3], [0.05, -0.3, 0.9]])


def oblique_series(folder):
    """Write the stored CT as a turned DICOM series, its cosines with six digits as scanners write them."""
    from tests.made_series import ROOT, write_slice

    folder.mkdir()
    axes, _ = np.linalg.qr(AXES)
    axes *= np.sign(np.diag(axes))
    cosines = [round(float(c), 6) for c in (*axes[:, 0], *axes[:, 1])]
    normal = np.cross(cosines[:3], cosines[3:])
    for k, plane in enumerate(MONAI["ct"].transpose(2, 1, 0)):
        write_slice(
            folder / f"{k:03d}.dcm",
            plane,
            InstanceNumber=k + 1,
            SOPInstanceUID=f"{ROOT}9.{k + 1}",
            ImageOrientationPatient=cosines,
            ImagePositionPatient=[round(float(c), 4) for c in np.array([-20, -30, 40]) + 2.6 * k * normal],
            PixelSpacing=[1.2, 1.1],
            SliceThickness=2.6,
            RescaleIntercept=0,
        )
    return folder


@pytest.mark.torch
@pytest.mark.slow
def test_torch_s_own_network_from_dicom_gives_what_monai_gives_from_dicom(torch_python, tmp_path, monkeypatch):
    import hashlib
    import os
    import subprocess

    from mdcli.inference import isolation

    root = Path(__file__).parents[3]
    dicom, folder = oblique_series(tmp_path / "dicom"), tmp_path / "unet"
    script = root / "scripts" / "make_bundle_reference.py"
    said = subprocess.run(
        [torch_python, str(script), "--torch", str(folder), str(dicom), str(tmp_path / "monai.npz")],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    if "No module named" in said.stderr:
        pytest.skip(f"{torch_python} has not all that the script needs: {said.stderr.splitlines()[-1]}")
    assert said.returncode == 0, said.stderr
    monkeypatch.setattr(isolation, "_python", torch_python)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monai = np.load(tmp_path / "monai.npz")
    # Both in the same order of voxels, whatever order each reader has.
    expected, close = (
        np.asarray(
            nibabel.as_closest_canonical(nibabel.Nifti1Image(monai[key][0].astype("u1"), monai["affine_ras"])).dataobj
        )
        for key in ("labels", "close")
    )
    trusted = hashlib.sha256((folder / "models" / "model.ts").read_bytes()).hexdigest()
    for name, params in (("weights", {}), ("torchscript", {"trust_model": (trusted,)})):
        ws = tmp_path / name
        run_stage(load_stage("select-series"), ws, dicom=dicom)
        run_stage(load_stage("load-volume"), ws)
        run_stage(load_stage("infer"), ws, model=str(folder), **params)
        found = np.asarray(nibabel.as_closest_canonical(nibabel.load(ws / "labels.nii")).dataobj)
        same_class_by_class(found, expected, close.astype(bool), 4)


def test_the_wrong_training_orientation_gives_other_masks(tmp_path):
    ws = run(tmp_path, "brats", "axial", orientation="RAS")
    found = np.stack([np.asarray(nibabel.load(file).dataobj) for file in sorted((ws / "masks").glob("*.nii"))])
    assert (found != MONAI["brats_axial"]).sum() > 500
