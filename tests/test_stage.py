"""The declaration: every field an option, what is wrong with it said early."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest

from mdcli.execution import params_that_matter
from mdcli.stage import Option, Stage, fields_of


@dataclass(frozen=True)
class Params:
    needed: Annotated[int, "A number"]
    level: Annotated[float, Option("Lowest value kept, HU")] = 300.0
    threads: Annotated[int, Option("Threads", result=False)] = 2
    dicom: Annotated[Path | None, Option("Where from", source=True)] = None
    study: Annotated[str | None, Option("Which study", source="study_instance_uid")] = None


def test_fields_carry_type_default_help_and_flag():
    needed, level, threads, *_ = fields_of(Params)
    assert (needed.required, needed.type, needed.option.help) == (True, int, "A number")
    assert (level.flag, level.default, level.option.help) == ("--level", 300.0, "Lowest value kept, HU")
    assert threads.option.result is False


def test_only_parameters_that_can_change_the_result_and_name_no_path_matter():
    stage = Stage("toy", Params, lambda ws, params: None)
    assert params_that_matter(stage, Params(1, dicom=Path("/x"), study="1.2")) == {
        "needed": 1,
        "level": 300.0,
        "study": "1.2",
    }


@pytest.mark.parametrize("name", ["Two Words", "under_score", "", "-x"])
def test_a_stage_is_named_with_lower_case_words(name):
    with pytest.raises(ValueError, match="lower-case"):
        Stage(name, Params, lambda ws, params: None)


def test_params_is_a_dataclass():
    with pytest.raises(ValueError, match="dataclass"):
        Stage("toy", dict, lambda ws, params: None)
