"""The terminal as a person or script meets it: precedence, statuses, what goes where."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = """
[mdcli.stages]
count = tests.toy:COUNT
double = tests.toy:DOUBLE
broken-example = no_such_module:STAGE
leaving-example = tests.leaves_at_import:STAGE
"""


@pytest.fixture
def md(tmp_path):
    """Return a function that runs `md` with the toy stages installed as plugins, in a folder of its own."""
    site = tmp_path / "site" / "toy_stages-1.2.dist-info"
    site.mkdir(parents=True)
    (site / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-stages\nVersion: 1.2\n")
    (site / "entry_points.txt").write_text(PLUGIN)
    work = tmp_path / "work"
    work.mkdir()
    (work / "text.txt").write_text("hello")
    root = Path(__file__).parents[2]

    def run(*arguments, env=None, text=None):
        paths = os.pathsep.join([str(site.parent), str(root)])
        variables = {**os.environ, "PYTHONPATH": paths, "HOME": str(work), **(env or {})}
        command = [sys.executable, "-m", "mdcli", *map(str, arguments)]
        return subprocess.run(command, cwd=work, env=variables, input=text, capture_output=True, text=True, timeout=60)

    run.work = work
    return run


def unit(md):
    return json.loads((md.work / "ws" / "count.json").read_text())["unit"]


def test_success_prints_the_workspace_and_nothing_else(md):
    done = md("count", "ws", "--source", "text.txt")
    assert (done.returncode, done.stdout, done.stderr) == (0, "ws\n", "")


def test_option_wins_over_environment_over_project_file_over_default(md):
    count = ("count", "ws", "--source", "text.txt")
    md(*count)
    assert unit(md) == "letters"
    (md.work / "md.toml").write_text('[count]\nunit = "from-file"\n')
    md(*count)
    assert unit(md) == "from-file"
    md(*count, env={"MD_COUNT_UNIT": "from-environment"})
    assert unit(md) == "from-environment"
    md(*count, "--unit", "from-option", env={"MD_COUNT_UNIT": "from-environment"})
    assert unit(md) == "from-option"


def test_verbose_shows_that_a_default_came_from_a_file(md):
    (md.work / "md.toml").write_text('[count]\nunit = "words"\n')
    done = md("count", "ws", "--source", "text.txt", "-v")
    assert "--unit comes from" in done.stderr and "md.toml" in done.stderr


def test_a_wrong_option_is_a_wrong_call(md):
    done = md("count", "ws", "--sauce", "text.txt")
    assert done.returncode == 2
    assert done.stderr.startswith("md: error: ") and "[usage]" in done.stderr
    assert done.stdout == ""


def test_an_unknown_word_names_the_near_one(md):
    done = md("selectseries")
    assert done.returncode == 2
    assert "did you mean select-series?" in done.stderr


def test_a_broken_plugin_is_listed_explains_itself_and_breaks_nothing(md):
    assert "broken-example" in md("--help").stdout
    listed = md("plugins")
    assert listed.returncode == 0
    assert "broken-example" in listed.stdout and "toy-stages 1.2" in listed.stdout
    done = md("broken-example", "ws")
    assert done.returncode == 78
    assert "toy-stages" in done.stderr and "[broken-plugin]" in done.stderr
    assert md("count", "ws", "--source", "text.txt").returncode == 0
    assert md("plugins", "--check").returncode == 78


def test_a_pipe_of_stages_and_its_failure(md):
    made = md("count", "ws", "--source", "text.txt")
    assert md("double", "-", text=made.stdout).stdout == "ws\n"
    done = md("double", "-", text="")
    assert (done.returncode, done.stdout) == (66, "")
    assert "[no-input]" in done.stderr


def test_json_log_lines_have_the_documented_keys(md):
    (md.work / "text.txt").write_text("x" * 200)
    done = md("count", "ws", "--source", "text.txt", "--log-format", "json")
    line = json.loads(done.stderr.splitlines()[0])
    assert set(line) == {"schema", "time", "level", "stage", "case", "code", "message", "numbers"}
    assert (line["level"], line["stage"], line["case"], line["code"]) == ("warning", "count", "ws", "long-text")
    assert line["numbers"] == {"letters": 200}


def test_an_error_is_a_json_line_too(md):
    done = md("--log-format", "json", "double", "nowhere")
    assert done.returncode == 66
    assert json.loads(done.stderr.splitlines()[0])["code"] == "no-workspace"


def test_a_missing_source_is_named(md):
    done = md("count", "ws")
    assert done.returncode == 66
    assert "--source is not given" in done.stderr


def test_control_characters_never_reach_the_terminal(md):
    done = md("count", "ws", "--source", "text.txt", "--as", "\x1b[31mred")
    assert done.returncode == 2
    assert "\x1b" not in done.stderr


def test_both_names_of_the_program_answer(md):
    folder = Path(sys.executable).parent
    for name in ("md", "mdcli"):
        if not (folder / name).exists():
            pytest.skip(f"{name} is not installed as a script")
        done = subprocess.run([folder / name, "--version"], capture_output=True, text=True, check=True)
        assert done.stdout.startswith("md ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_come_for_every_shell(md, shell):
    done = md(env={"_MD_COMPLETE": f"source_{shell}"})
    assert done.returncode == 0
    assert "_MD_COMPLETE" in done.stdout


def test_completion_offers_stages_and_options(md):
    words = md(env={"_MD_COMPLETE": "complete_bash", "COMP_WORDS": "md select", "COMP_CWORD": "1"})
    assert "select-series" in words.stdout


def test_help_of_a_stage_tells_its_own_options_from_the_common_ones(md):
    text = md("count", "--help").stdout
    own, common = text.split("Common options:")
    assert "--unit" in own and "--force" in common and "MD_COUNT_" in own


def test_completion_offers_the_models_by_name(md):
    words = md(env={"_MD_COMPLETE": "complete_bash", "COMP_WORDS": "md infer ws --model ", "COMP_CWORD": "4"})
    assert words.stdout.split() == ["ct-tissue", "landmarks"]


@pytest.mark.parametrize("words", ["models", "--help", "count ws --source text.txt"])
def test_a_reader_that_went_away_is_141(md, words):
    reader, writer = os.pipe()
    os.close(reader)
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(md.work.parent / "site"), str(root)])
    done = subprocess.run(
        [sys.executable, "-m", "mdcli", *words.split()],
        cwd=md.work,
        env={**os.environ, "PYTHONPATH": paths},
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_closed_standard_output_is_no_bug(md):
    paths = os.pathsep.join([str(md.work.parent / "site"), str(Path(__file__).parents[2])])
    line = f"{sys.executable} -m mdcli count ws --source text.txt >&-"
    done = subprocess.run(
        ["bash", "-c", line], cwd=md.work, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("init model text.txt", 2),
        ("schema series >/dev/full", 74),
        ("count ws --source text.txt >/dev/full", 74),
        ("cases text.txt --into x", 2),
    ],
)
def test_what_the_file_system_refuses_is_no_bug(md, words, status):
    paths = os.pathsep.join([str(md.work.parent / "site"), str(Path(__file__).parents[2])])
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m mdcli {words}"],
        cwd=md.work,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stderr
    assert "[bug]" not in done.stderr


def test_an_error_names_its_case_where_several_come_in(md):
    done = md("double", "-", "--log-format", "json", text="elsewhere\n")
    assert json.loads(done.stderr.splitlines()[0])["case"] == "elsewhere"


def test_a_table_of_no_stage_is_warned_about(md):
    (md.work / "md.toml").write_text('[cuont]\nunit = "words"\n')
    done = md("count", "ws", "--source", "text.txt")
    assert done.returncode == 0
    assert "[cuont] is no stage" in done.stderr


def test_a_plugin_that_exits_at_import_hides_nothing(md):
    done = md("leaving-example", "ws")
    assert done.returncode == 78
    assert "[broken-plugin]" in done.stderr
    assert "leaving-example" in md("plugins", "--check").stdout


def test_metadata_of_others_that_is_no_text_breaks_nothing(md):
    other = md.work.parent / "site" / "other-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (other / "entry_points.txt").write_bytes(b"[mdcli.stages]\n\xff\xfe = x:y\n")
    assert md("--help").returncode == 0
    assert "count" in md("plugins").stdout


@pytest.mark.parametrize("seconds", ["-1", "0", "nan", "inf"])
def test_a_timeout_that_is_none_is_a_wrong_call(md, seconds):
    done = md("count", "ws", "--source", "text.txt", "--timeout", seconds)
    assert (done.returncode, "[bad-timeout]" in done.stderr) == (2, True)


def test_an_empty_workspace_is_a_wrong_call(md):
    done = md("count", "", "--source", "text.txt")
    assert (done.returncode, "[bad-workspace]" in done.stderr) == (2, True)
    assert sorted(p.name for p in md.work.iterdir()) == ["text.txt"]


def test_nohup_keeps_a_stage_alive(md):
    import signal

    paths = os.pathsep.join([str(md.work.parent / "site"), str(Path(__file__).parents[2])])
    child = subprocess.Popen(
        [sys.executable, "-m", "mdcli", "count", "ws", "--source", "text.txt"],
        cwd=md.work,
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    while child.poll() is None:
        child.send_signal(signal.SIGHUP)
    assert (child.returncode, child.stdout.read()) == (0, b"ws\n")
