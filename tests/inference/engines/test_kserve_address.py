"""Addresses of servers: what a card may say, and where images may go."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdcli.errors import ConfigError, UsageError
from mdcli.inference.engines.kserve_address import Address, check_server, is_address, parse_address


@pytest.mark.parametrize(
    "url, expected",
    [
        ("triton://localhost:8000/liver", Address("localhost", 8000, "liver", None, False, False)),
        (
            "triton://GPU-1.Hospital.example.:8000/liver/3",
            Address("gpu-1.hospital.example", 8000, "liver", "3", False, False),
        ),
        ("tritons://10.0.0.7:443/liver_v2.1", Address("10.0.0.7", 443, "liver_v2.1", None, False, True)),
        ("triton+grpc://127.0.0.1:8001/a/b", Address("127.0.0.1", 8001, "a", "b", True, False)),
        ("triton+grpcs://[0:0::1]:8001/a", Address("::1", 8001, "a", None, True, True)),
    ],
)
def test_an_address_says_host_port_model_and_version(url, expected):
    assert parse_address(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("http://localhost:8000/liver", id="another scheme"),
        pytest.param("triton://localhost/liver", id="no port"),
        pytest.param("triton://localhost:0/liver", id="port 0"),
        pytest.param("triton://localhost:99999/liver", id="a port that is none"),
        pytest.param("triton://:8000/liver", id="no host"),
        pytest.param("triton://localhost:8000", id="no model"),
        pytest.param("triton://localhost:8000/", id="an empty model"),
        pytest.param("triton://localhost:8000/liver/", id="an empty version"),
        pytest.param("triton://localhost:8000/liver/1/infer", id="more than a version"),
        pytest.param("triton://localhost:8000/../v2", id="a way up"),
        pytest.param("triton://localhost:8000/liver%2f..", id="escapes"),
        pytest.param("triton://localhost:8000/liver?x=1", id="a query"),
        pytest.param("triton://localhost:8000/liver#x", id="a fragment"),
        pytest.param("triton://[::1:8000/liver", id="a broken bracket"),
        pytest.param("triton://a b:8000/liver", id="a space"),
        pytest.param("triton://host\r\nX: y:8000/liver", id="a line end"),
        pytest.param("triton://local\thost:8000/liver", id="a tab, which urlsplit would drop"),
        pytest.param("triton://unix%3a/liver", id="another kind of socket"),
    ],
)
def test_anything_else_is_refused(url):
    with pytest.raises(ConfigError) as error:
        parse_address(url)
    assert error.value.code == "bad-address"


@pytest.mark.parametrize("secret", ["user:hunter2", "hunter2", ":hunter2"])
def test_credentials_in_an_address_are_refused_and_not_repeated(secret):
    with pytest.raises(ConfigError) as error:
        parse_address(f"triton://{secret}@localhost:8000/liver")
    assert error.value.code == "credentials-in-address"
    assert "hunter2" not in f"{error.value} {error.value.hint} {error.value.numbers}"


@given(st.text() | st.from_regex(r"triton(s|\+grpcs?)?://[^/]{0,20}(/[^/]{0,9}){0,3}", fullmatch=True))
def test_any_text_is_an_address_or_refused(text):
    try:
        address = parse_address(text)
    except ConfigError:
        return
    assert 0 < address.port < 65536 and address.host and "/" not in address.model


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.1", "[::1]"])
def test_this_machine_needs_no_leave(host):
    check_server(f"triton://{host}:8000/liver", ())


@pytest.mark.parametrize(
    "host",
    [
        "10.0.0.7",
        "gpu",
        "0.0.0.0",
        "127.1",
        "localhost.example",
        "127.0.0.1.example",
        "[fe80::1]",
    ],
)
def test_another_machine_does(host):
    with pytest.raises(ConfigError) as error:
        check_server(f"triton://{host}:8000/liver", ("other", "10.0.0.77", "gpu:8001"))
    assert error.value.code == "server-not-allowed" and f"--allow-server {host}:8000" in error.value.hint


@pytest.mark.parametrize(
    "host, allowed",
    [("gpu", "GPU"), ("gpu", "gpu:8000"), ("GPU.example.", "gpu.example"), ("10.0.0.7", "10.0.0.7:8000"), ("[fe80::1]", "fe80::1"),
     ("[fe80::1]", "[fe80:0::1]:8000")],
)  # fmt: skip
def test_a_machine_may_be_allowed_whole_or_one_port_of_it(host, allowed):
    check_server(f"triton+grpcs://{host}:8000/liver", ("other:1", allowed))


@pytest.mark.parametrize("text", ["", "http://gpu", "gpu:x", "gpu:8000/liver", "me@gpu", "*", "gpu:99999"])
def test_what_is_allowed_must_be_a_server(text):
    with pytest.raises(UsageError) as error:
        check_server("triton://gpu:8000/liver", (text,))
    assert error.value.code == "bad-server"


def test_a_file_is_no_address():
    assert is_address("triton://localhost:8000/liver") and not is_address("network.onnx")
