"""`md rules`, as it is called: what a rule file means, what it chooses, and where the old selector chose otherwise."""

import json
from importlib.resources import files

import jsonschema
import pytest

from mdcli.cli.adapter import plain_command
from mdcli.commands.rules import rules
from mdcli.errors import AnswerNo, ConfigError, MdError, UsageError
from tests.stages.test_select_series import series

SCHEMAS = files("mdcli") / "schemas"
MONAI = '{"selections": [{"name": "CT one", "conditions": {"Modality": "CT", "SliceThickness": [1, 3]}}]}'


@pytest.fixture
def tree(tmp_path):
    folder = tmp_path / "dicom"
    folder.mkdir()
    return folder


@pytest.fixture
def rule_file(tmp_path):
    def write(text):
        path = tmp_path / "rules.json"
        path.write_text(text)
        return str(path)

    return write


@pytest.fixture
def call(capsys):
    """Return a function that calls the command in process: what it prints, and the error that ends it."""

    def run(*arguments):
        error = None
        try:
            plain_command(rules, "rules", "help").main(list(arguments), prog_name="rules", standalone_mode=False)
        except MdError as caught:
            error = caught
        return capsys.readouterr().out, error

    return run


def document(schema, text):
    found = json.loads(text)
    jsonschema.validate(found, json.loads((SCHEMAS / f"{schema}.json").read_text()))
    return found


def test_check_says_what_the_file_means(call, rule_file):
    out, error = call("check", rule_file(MONAI))
    assert error is None
    assert out == (
        "1 selection(s), in MONAI's form\nCT one: Modality contains CT and SliceThickness >= 1 and SliceThickness <= 3\n"
    )
    out, _ = call("check", rule_file(MONAI), "--json", "--prefer", "newest")
    (one,) = document("rules-check", out)["selections"]
    assert (one["where"], one["prefer"]) == (
        "Modality contains CT and SliceThickness >= 1 and SliceThickness <= 3",
        ["newest"],
    )


def test_check_refuses_a_bad_file_and_a_wrong_call(call, rule_file, tree):
    _, error = call("check", rule_file("selections: [{name: a, were: x}]"))
    assert isinstance(error, ConfigError) and error.code == "bad-rules"
    for wrong in (
        ["check", rule_file(MONAI), "--rules", "x"],
        ["diff", str(tree)],
        ["diff", str(tree), "--rules", rule_file(MONAI), "--file", "x"],
    ):
        _, error = call(*wrong)
        assert isinstance(error, UsageError) and error.code == "usage"


def test_check_tries_the_rules_on_one_file_or_a_folder(call, rule_file, tree):
    series(tree, "1.2.3.4")
    series(tree, "1.2.3.5", modality="MR")
    path = rule_file(MONAI)
    out, error = call("check", path, "--file", str(tree), "--json")
    assert error is None
    (selection,) = document("explain", out)["selections"]
    assert [one["result"] for one in selection["series"]] == ["chosen", "no-match"]
    out, error = call("check", path, "--file", str(tree / "1.2.3.5" / "1.dcm"))
    assert isinstance(error, AnswerNo) and error.code == "rules-choose-nothing"
    assert "no  Modality contains CT" in out and "found MR" in out and "anary" not in out


def test_diff_says_nothing_where_both_choose_alike(call, rule_file, tree):
    series(tree, "1.2.3.4")
    out, error = call("diff", str(tree), "--rules", rule_file(MONAI), "--json")
    assert error is None
    (row,) = document("rules-diff", out)["selections"]
    assert (row["differs"], row["why"]) == (False, [])
    assert row["monai"]["series_instance_uid"] == row["md"][0]["series_instance_uid"] == "1.2.3.4"


def test_diff_says_for_each_study_what_both_choose_and_why(call, rule_file, tree):
    series(tree, "1.2.3.4", image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"))
    series(tree, "1.2.3.5")
    series(tree, "1.2.9.7", StudyInstanceUID="1.2.9")
    out, error = call("diff", str(tree), "--rules", rule_file(MONAI))
    assert isinstance(error, AnswerNo) and error.code == "rules-differ"
    assert error.numbers == {"differing": 1, "cases": 2}
    lines = out.splitlines()
    assert lines[0] == "study 1.2.3, selection CT one: differs"
    assert lines[1].startswith("  md:    CT, series 5") and lines[2].startswith("  MONAI: CT, series 4")
    assert "left-out: ImageType says LOCALIZER" in lines[3] and "not the first match" in lines[4]
    assert "study 1.2.9, selection CT one: same" in lines


def test_a_tie_differs_until_a_preference_decides(call, rule_file, tree):
    series(tree, "1.2.3.4", count=4)
    series(tree, "1.2.3.5")
    path = rule_file(MONAI)
    _, error = call("diff", str(tree), "--rules", path)
    assert isinstance(error, AnswerNo)
    _, error = call("diff", str(tree), "--rules", path, "--prefer", "most-slices")
    assert error is None


def test_a_crash_of_the_old_selector_is_a_difference(call, rule_file, tree):
    series(tree, "1.2.3.4")
    path = rule_file('{"selections": [{"name": "a", "conditions": {"Modality": ["CT", "MR"]}}]}')
    out, error = call("diff", str(tree), "--rules", path, "--json")
    assert isinstance(error, AnswerNo)
    (row,) = document("rules-diff", out)["selections"]
    assert row["crash"] and row["monai"] is None and len(row["md"]) == 1


def test_the_two_agree_on_two_files_of_one_series_in_any_folder(call, rule_file, tree):
    series(tree / "b", "1.2.3.4", count=2)
    series(tree / "a", "1.2.3.4", count=2)
    _, error = call("diff", str(tree), "--rules", rule_file(MONAI))
    assert error is None
