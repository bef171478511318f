from __future__ import annotations

import json
from importlib.resources import files
from xml.etree import ElementTree

import jsonschema
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mdcli.checking.compare import DEFINITIONS, FileResult, Identity, LabelResult, Problem, compare_label_maps
from mdcli.checking.report import junit_xml, verify_json
from mdcli.imaging.nifti import Volume

SCHEMA = json.loads((files("mdcli") / "schemas" / "verify.json").read_text())


def results() -> list[FileResult]:
    """Return one file that agrees and one in which label 1 is shifted, 2 missing and 3 extra."""
    gold = np.zeros((2, 4, 8), np.uint8)
    gold[:, 0, 0:4], gold[:, 2, 0:4] = 1, 2
    run = np.zeros_like(gold)
    run[:, 0, 1:5], run[:, 3, 0:4] = 1, 3
    affine = np.eye(4)
    said = {1: Identity("air"), 2: Identity("fat")}
    one = compare_label_maps(Volume(gold, affine), Volume(gold, affine), file="labels.nii")
    other = compare_label_maps(
        Volume(gold, affine), Volume(run, affine), identities=said, run_identities=said, file="labels-t2.nii"
    )
    return [one, other]


def test_the_json_says_what_agrees_what_differs_and_what_its_numbers_mean():
    report = verify_json(results())
    jsonschema.validate(report, SCHEMA)
    assert report["result"] == "differs" and report["definitions"] == DEFINITIONS
    assert [file["result"] for file in report["files"]] == ["ok", "differs"]
    assert [label["result"] for label in report["files"][1]["labels"]] == ["differs", "missing", "extra"]
    assert report["files"][1]["labels"][0]["dice"] == 2 * 3 / 8
    assert verify_json(results()[:1])["result"] == "ok"


def test_a_number_that_is_none_becomes_null():
    broken = FileResult("labels.nii", "labels", affine_mm=float("nan"), problems=(Problem("affine", "off"),))
    report = verify_json([broken])
    assert report["files"][0]["affine_mm"] is None
    json.dumps(report, allow_nan=False)


def test_junit_has_a_suite_for_each_file_and_a_failure_for_each_label_that_differs():
    root = ElementTree.fromstring(junit_xml(results()))
    assert (root.tag, root.get("tests"), root.get("failures")) == ("testsuites", "7", "3")
    suites = root.findall("testsuite")
    assert [(s.get("name"), s.get("tests"), s.get("failures")) for s in suites] == [
        ("labels.nii", "3", "0"),
        ("labels-t2.nii", "4", "3"),
    ]
    failed = {
        case.get("name"): case.find("failure").get("type") for case in suites[1] if case.find("failure") is not None
    }
    assert failed == {"1 air": "dice", "2 fat": "label-missing", "3": "label-extra"}


def test_the_reason_for_a_looser_tolerance_is_in_both_reports():
    loose = FileResult("labels.nii", "labels", reason="rounding <differs> & more")
    assert verify_json([loose])["files"][0]["reason"] == "rounding <differs> & more"
    properties = {p.get("name"): p.get("value") for p in ElementTree.fromstring(junit_xml([loose])).iter("property")}
    assert properties["reason"] == "rounding <differs> & more"
    assert properties["dice"] == "0.999"


@given(st.text(alphabet=st.characters(), max_size=40), st.text(alphabet=st.characters(), max_size=40))
def test_junit_is_xml_whatever_a_name_or_a_message_holds(name, message):
    label = LabelResult(1, name, 1, 1, 1.0, 1.0, problems=(Problem("name", message),))
    root = ElementTree.fromstring(junit_xml([FileResult("labels.nii", "labels", reason=name, labels=(label,))]))
    assert root.get("failures") == "1"
    assert not any(ord(c) < 32 and c != "\n" for text in root.itertext() for c in text)
