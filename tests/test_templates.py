"""What `md init` copies works as it is."""

from pathlib import Path

from mdcli.commands.init import init


def test_the_model_template_is_a_card_once_a_network_lies_beside_it(tmp_path):
    from mdcli.inference.formats import find_model

    init("model", tmp_path)
    embedded = Path(__file__).parents[1] / "mdcli" / "models" / "ct-tissue" / "network.onnx"
    (tmp_path / "network.onnx").write_bytes(embedded.read_bytes())
    assert find_model(str(tmp_path), ()).card.name == "my-model"


def test_the_codes_of_the_model_template_are_those_a_writer_takes(tmp_path):
    import yaml

    from mdcli.dicom.codes import checked_code

    init("model", tmp_path)
    for label in yaml.safe_load((tmp_path / "model.yaml").read_text())["labels"]:
        for code in (label["category"], label["type"]):
            assert checked_code(code, label["name"])[1] == []


def test_the_stage_template_keeps_the_contract(tmp_path, monkeypatch):
    from mdcli.phantom.study import write_study
    from mdcli.testing import contract_problems
    from tests.chain import run_chain

    init("stage", tmp_path / "plugin")
    monkeypatch.syspath_prepend(str(tmp_path / "plugin"))
    from md_threshold.stage import STAGE

    write_study(tmp_path / "study")
    run_chain(tmp_path / "ws", tmp_path / "study", until="load-volume")
    (tmp_path / "scratch").mkdir()
    assert contract_problems(STAGE, tmp_path / "ws", tmp_path / "scratch", level=300.0) == []


def test_every_template_says_what_it_is():
    templates = Path(__file__).parents[1] / "templates"
    assert {p.name for p in templates.iterdir()} == {"makefile", "model", "stage", "two-stage"}
    assert all((p / "ABOUT.txt").read_text().strip() for p in templates.iterdir())
