"""What plans.json says of the network and its regions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mdcli.errors import ConfigError
from mdcli.inference.formats.nnunet_plans import Configuration, definition_of, labels_of
from tests.nnunet_cases import CASES, plans

PLACE = Path("nnUNetTrainer__nnUNetPlans__3d_fullres")


def configuration(**changes: Any) -> Configuration:
    said = plans(CASES[0])
    values = {**said["configurations"]["3d_fullres"], **changes}
    said["configurations"]["3d_fullres"] = {key: value for key, value in values.items() if value is not ...}
    return Configuration.of(PLACE, said, None)


def test_the_network_is_that_of_the_plans_with_the_data_sets_channels_and_no_deep_supervision():
    definition = definition_of(configuration(), 2, 5)
    assert definition.target == "dynamic_network_architectures.architectures.unet.PlainConvUNet"
    said = definition.arguments
    assert (said["input_channels"], said["num_classes"], said["deep_supervision"]) == (2, 5, False)
    assert said["features_per_stage"] == [6, 8]
    # dropout_op is null: there is nothing to import.
    assert definition.imports == ("conv_op", "norm_op", "nonlin")


@pytest.mark.parametrize(
    "name, blocks", [("PlainConvUNet", "n_conv_per_stage"), ("ResidualEncoderUNet", "n_blocks_per_stage")]
)
def test_plans_of_before_nnunet_2_2_say_the_same_network_in_other_words(name, blocks):
    old = configuration(
        architecture=...,
        UNet_class_name=name,
        UNet_base_num_features=32,
        unet_max_num_features=100,
        n_conv_per_stage_encoder=[2, 2, 3],
        n_conv_per_stage_decoder=[2, 2],
        num_pool_per_axis=[2, 2, 2],
        pool_op_kernel_sizes=[[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        conv_kernel_sizes=[[1, 3, 3], [3, 3, 3], [3, 3, 3]],
    )
    definition = definition_of(old, 1, 3)
    assert definition.target.endswith(f"unet.{name}")
    # The values that nnU-Net 2.8.1 makes of these plans (ConfigurationManager.__init__).
    assert definition.arguments == {
        "n_stages": 3,
        "features_per_stage": [32, 64, 100],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        blocks: [2, 2, 3],
        "n_conv_per_stage_decoder": [2, 2],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
        "input_channels": 1,
        "num_classes": 3,
        "deep_supervision": False,
    }


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "dynamic_network_architectures.architectures.primus.Primus",
        "elsewhere.unet.PlainConvUNet",
        None,
    ],
)
def test_a_network_that_is_none_of_nnunets_own_is_refused_by_name(name):
    said = {"network_class_name": name, "arch_kwargs": {}, "_kw_requires_import": []}
    with pytest.raises(ConfigError) as caught:
        definition_of(configuration(architecture=said), 1, 2)
    assert caught.value.code == "unsupported-nnunet"


def test_regions_beside_one_another_keep_their_names():
    said = {"background": 0, "kidney": [1, 2], "tumour": 2, "liver": 3}
    labels = labels_of({"labels": said, "regions_class_order": [1, 2, 3]}, {})
    assert [label.name for label in labels.labels] == ["kidney without tumour", "tumour", "liver"]
    assert labels.heads == 3


def test_long_names_that_are_alike_once_they_are_cut_are_told_apart():
    long = "a" * 80
    labels = labels_of({"labels": {"background": 0, f"{long}1": 1, f"{long}2": 2}}, {})
    names = [label.name for label in labels.labels]
    assert len(set(names)) == 2
    assert all(len(name) <= 64 for name in names)
