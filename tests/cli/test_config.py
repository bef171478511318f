"""md.toml: found upwards, owned by the caller, never for what loosens safety."""

import pytest

from mdcli.cli.config import defaults_for, load_config, project_file
from mdcli.errors import ConfigError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    return folder


KNOWN = {"unit": False, "careless": True, "jobs": False}


def test_the_nearest_file_upwards_is_read(home):
    inner = home / "project" / "deep"
    inner.mkdir(parents=True)
    (home / "project" / "md.toml").write_text('[count]\nunit = "words"\n')
    assert defaults_for(load_config(inner), "count", KNOWN) == {"unit": "words"}


def test_the_search_ends_at_home(home):
    (home.parent / "md.toml").write_text('[count]\nunit = "words"\n')
    assert project_file(home) == (None, None)


def test_the_project_wins_over_the_user(home):
    (home / ".config" / "md").mkdir(parents=True)
    (home / ".config" / "md" / "md.toml").write_text('[count]\nunit = "user"\njobs = 3\n')
    (home / "md.toml").write_text('[count]\nunit = "project"\n')
    assert defaults_for(load_config(home), "count", KNOWN) == {"unit": "project", "jobs": 3}


def test_somebody_elses_file_is_passed_over_and_named(home, monkeypatch):
    (home / "md.toml").write_text('[count]\nunit = "words"\n')
    monkeypatch.setattr("os.getuid", lambda: 12345)
    config = load_config(home)
    assert config.values == {}
    assert config.ignored == (home / "md.toml",)


def test_what_loosens_safety_can_not_stand_in_a_file(home):
    (home / "md.toml").write_text("[count]\ncareless = true\n")
    with pytest.raises(ConfigError) as caught:
        defaults_for(load_config(home), "count", KNOWN)
    assert (caught.value.code, caught.value.status) == ("not-in-config", 78)


def test_an_unknown_option_names_the_near_one(home):
    (home / "md.toml").write_text("[count]\nunits = 1\n")
    with pytest.raises(ConfigError) as caught:
        defaults_for(load_config(home), "count", KNOWN)
    assert caught.value.hint == "did you mean unit?"


def test_a_file_that_is_not_toml_is_a_configuration_error(home):
    (home / "md.toml").write_text("not = = toml")
    with pytest.raises(ConfigError):
        load_config(home)
