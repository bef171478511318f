"""The engine for servers, against a small server of ours that fails on request. Real servers: test_kserve_servers.py."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdcli.errors import ConfigError, DataError, MdError, MissingError, UnavailableError
from mdcli.inference.engines.kserve import KServe, KServeSession, _transport
from mdcli.inference.engines.kserve_address import parse_address
from mdcli.inference.engines.kserve_protocol import model_of, server_of
from tests.inference.engines.servers import free_port, made_certificate, pretending

X = np.arange(6, dtype=np.float32).reshape(2, 3) / 3
Y = X + np.float32(1)


@pytest.fixture
def server():
    with pretending() as server:
        yield server


def opened(server, *, url=None, pauses_s=(0.0, 0.0), **options):
    """Return a session that tries three times, without waiting."""
    address = parse_address(url or server.url)
    return KServeSession(address, _transport(address, options), pauses_s=pauses_s)


def run(session, x=X):
    out = np.full_like(x, np.nan)
    found = session.run({"x": x}, {"y": out})
    assert found["y"] is out
    return out


def test_a_model_runs_into_the_memory_that_it_is_given(server):
    np.testing.assert_array_equal(run(opened(server)), Y)


def test_a_model_makes_its_own_memory_where_none_is_given(server):
    found = opened(server).run({"x": X}, {"y": None})["y"]
    np.testing.assert_array_equal(found, Y)
    assert found.dtype == np.float32 and found.flags.writeable


def test_where_a_server_takes_no_binary_numbers_they_go_as_text_to_the_last_bit(server):
    server.extensions = []
    x = np.nextafter(np.float32([[1, 2, 3]]), np.float32(9)) * np.float32(1e-3)
    session = opened(server)
    np.testing.assert_array_equal(run(session, x), x + np.float32(1))
    assert session.facts()["transport"] == "http, json"


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_text_has_no_word_for_what_is_not_finite(server, number):
    server.extensions = []
    with pytest.raises(DataError) as error:
        run(opened(server), np.full((1, 2), number, np.float32))
    assert error.value.code == "nan-in-input"


def test_what_is_not_finite_travels_as_it_lies_in_memory(server):
    x = np.array([[np.nan, np.inf, -np.inf]], np.float32)
    np.testing.assert_array_equal(run(opened(server), x), x)


def test_it_says_what_it_is_and_what_really_runs(server):
    session = KServe().open(server.url, device="cpu", threads=1)
    run(session)
    assert session.facts() == {
        "engine": "kserve",
        "version": "pretender 0.1",
        "precision": "the server's",
        "provider": "pretender",
        "device": "the server's",
        "server": {"name": "pretender", "version": "0.1"},
        "model": "plus",
        "model_version": "1",
        "transport": "http, binary",
    }
    assert KServe().identity("cpu")["engine"] == "kserve"


def test_the_version_of_the_address_is_asked_for(server):
    run(opened(server, url=f"{server.url}/1"))
    assert server.asked[1:] == [f"/v2/models/plus/versions/1{end}" for end in ("/ready", "", "/infer")]


def test_one_connection_serves_many_runs(server):
    session = opened(server)
    for _ in range(5):
        run(session)
    assert server.connections == 1


def test_several_runs_are_in_flight_at_once(server):
    meeting = threading.Barrier(4, timeout=30)

    def meet(handler):
        # Nobody is answered before all four are there.
        meeting.wait()
        handler.go_well()

    server.script = [meet] * 4
    session = opened(server)
    inputs = [X * n for n in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for x, y in zip(inputs, pool.map(lambda x: run(session, x), inputs), strict=True):
            np.testing.assert_array_equal(y, x + np.float32(1))


def test_a_connection_that_the_server_closed_while_idle_costs_no_try(server):
    def last(handler):
        handler.go_well()
        handler.wfile.flush()
        handler.hang_up()

    server.script = [last]
    session = opened(server, pauses_s=())
    for _ in range(2):
        np.testing.assert_array_equal(run(session), Y)


TRANSIENT = {
    "503": lambda handler: handler.answer({"error": "busy"}, 503),
    "502 of a gateway": lambda handler: handler.answer(b"<html>", 502),
    "hangs up at once": lambda handler: handler.hang_up(),
    "dies in the numbers": lambda handler: (
        handler.binary({"outputs": [handler.output(parameters={"binary_data_size": 24})]}, bytes(10), 900),
        handler.hang_up(),
    ),
    "dies in the words": lambda handler: (
        handler.send_response(200),
        handler.send_header("Content-Length", "100"),
        handler.end_headers(),
        handler.wfile.write(b'{"outputs": ['),
        handler.hang_up(),
    ),
    "dies in the headers": lambda handler: (handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-"), handler.hang_up()),
}


@pytest.mark.parametrize("failure", TRANSIENT.values(), ids=TRANSIENT)
def test_what_may_pass_is_tried_again(server, failure):
    # Once on the connection that was idle, and on two new ones.
    server.script = [failure, failure]
    np.testing.assert_array_equal(run(opened(server)), Y)
    assert server.inferences == 3


@pytest.mark.parametrize("failure", TRANSIENT.values(), ids=TRANSIENT)
def test_a_server_that_goes_on_failing_is_not_there(server, failure):
    server.script = [failure] * 99
    with pytest.raises(UnavailableError) as error:
        run(opened(server))
    assert error.value.code == "no-server" and error.value.status == 69 and "3 times" in error.value.message
    # The idle connection's is one more, at most.
    assert server.inferences in (3, 4)


def test_a_server_that_is_not_started_is_not_there():
    with pytest.raises(UnavailableError) as error:
        opened(None, url=f"triton://127.0.0.1:{free_port()}/plus")
    assert error.value.code == "no-server"


@pytest.mark.parametrize("status", [400, 404, 413, 429, 500, 501])
def test_what_the_server_refuses_is_not_tried_again(server, status):
    server.script = [lambda handler: handler.answer({"error": "bad\nimage\x1b[31m " + "x" * 999}, status)]
    with pytest.raises(ConfigError) as error:
        run(opened(server))
    assert error.value.code == "network-failed" and server.inferences == 1
    assert "bad image?[31m" in error.value.message and len(error.value.message) < 500


def test_a_redirection_is_not_followed(server):
    with pretending() as other:
        server.script = [lambda handler: handler.answer(b"", 307, Location=other.url.replace("triton", "http"))]
        with pytest.raises(ConfigError) as error:
            run(opened(server))
        assert error.value.code == "network-failed" and "307" in error.value.message and not other.asked


def test_no_proxy_is_asked(server, monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    np.testing.assert_array_equal(run(opened(server)), Y)


def drip_forever(over):
    def drip(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while not over.wait(0.02):
            handler.wfile.write(b" ")

    return drip


def test_a_server_that_sends_a_byte_now_and_then_is_given_up_in_time(server):
    over = threading.Event()
    server.script = [drip_forever(over)] * 9
    session = opened(server, timeout_s=0.5)
    try:
        with pytest.raises(UnavailableError) as error:
            run(session)
    finally:
        over.set()
    assert error.value.code == "no-server" and "0.5 s" in error.value.message and server.inferences == 1


def test_a_server_that_never_answers_is_given_up_in_time(server):
    over = threading.Event()
    server.script = [lambda handler: over.wait(60)] * 9
    session = opened(server, timeout_s=0.3)
    try:
        with pytest.raises(UnavailableError) as error:
            run(session)
    finally:
        over.set()
    assert error.value.code == "no-server" and server.inferences == 1


ENDLESS = {
    "never answers": lambda over: lambda handler: over.wait(60),
    "drips": drip_forever,
    "is always busy": lambda over: TRANSIENT["503"],
}


@pytest.mark.parametrize("failure", ENDLESS.values(), ids=ENDLESS)
def test_a_run_that_is_stopped_ends_at_once_and_none_follows(server, failure):
    over = threading.Event()
    server.script = [failure(over)] * 99
    session = opened(server, pauses_s=(60.0,) * 5)
    try:
        errors = stopped(session)
    finally:
        over.set()
    assert [error.code for error in errors] == ["no-server"] * 3
    asked = len(server.asked)
    with pytest.raises(UnavailableError) as error:
        run(session)
    assert error.value.code == "no-server" and len(server.asked) == asked
    session.close()


def stopped(session, runs=3):
    """Return what the runs raise when they are stopped in flight."""
    errors = []

    def go():
        with pytest.raises(UnavailableError) as error:
            run(session)
        errors.append(error.value)

    threads = [threading.Thread(target=go, daemon=True) for _ in range(runs)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    session.stop()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    assert all("was stopped" in error.message for error in errors)
    return errors


def test_a_run_that_waits_for_a_connection_is_stopped(server):
    session = opened(server)
    # A queue of one that is full: the next connection is neither taken nor refused.
    with socket.create_server(("127.0.0.1", 0), backlog=0) as deaf:
        held = [socket.socket() for _ in range(4)]
        for sock in held:
            sock.setblocking(False)
            sock.connect_ex(deaf.getsockname())
        session._transport.close()
        session._transport._address = replace(session._address, port=deaf.getsockname()[1])
        errors = stopped(session)
        for sock in held:
            sock.close()
    assert [error.code for error in errors] == ["no-server"] * 3


def test_a_run_that_waits_for_the_other_s_tls_is_stopped(tmp_path):
    certificate, key = made_certificate(tmp_path)
    with pretending((certificate, key)) as server, socket.create_server(("127.0.0.1", 0)) as mute:
        session = opened(server, url=server.url.replace("triton", "tritons"), ca_file=str(certificate))
        session._transport.close()
        session._transport._address = replace(session._address, port=mute.getsockname()[1])
        errors = stopped(session)
    assert [error.code for error in errors] == ["no-server"] * 3


def test_a_run_over_tls_is_stopped(tmp_path):
    (certificate, key), over = made_certificate(tmp_path), threading.Event()
    with pretending((certificate, key)) as server:
        server.script = [drip_forever(over)] * 9
        session = opened(server, url=server.url.replace("triton", "tritons"), ca_file=str(certificate))
        try:
            errors = stopped(session)
        finally:
            over.set()
    assert [error.code for error in errors] == ["no-server"] * 3


def test_what_is_shared_is_taken_back_after_a_stop(server):
    over = threading.Event()
    server.extensions = [*server.extensions, "system_shared_memory"]
    server.script = [ENDLESS["never answers"](over)] * 9
    session = opened(server)
    if session._regions is None:
        pytest.skip("this system has no memory to share")
    try:
        stopped(session, runs=1)
    finally:
        over.set()
    assert server.asked[-1].endswith("/unregister")


def outputs(*changes, tail=24):
    """Return a failure that answers with outputs, each the right one but for what is said."""

    def fail(handler):
        entries = [{**handler.output(parameters={"binary_data_size": 24}), **change} for change in changes]
        handler.binary({"outputs": entries}, bytes(tail))

    return fail


def header(length, body=b"{}"):
    return lambda handler: handler.answer(body, 200, **{"Inference-Header-Content-Length": length})


WRONG = {
    "another shape": (outputs({"shape": [3, 2]}), "network-does-not-fit"),
    "another number of axes": (outputs({"shape": [6]}), "network-does-not-fit"),
    "other numbers": (outputs({"datatype": "INT32"}), "network-does-not-fit"),
    "numbers nobody knows": (outputs({"datatype": ["FP32"]}), "network-does-not-fit"),
    "a shape of text": (outputs({"shape": ["2", 3]}), "bad-reply"),
    "a negative shape": (outputs({"shape": [-2, -3]}), "bad-reply"),
    "fewer bytes than the shape": (outputs({"parameters": {"binary_data_size": 20}}), "bad-reply"),
    "more bytes than the shape": (outputs({"parameters": {"binary_data_size": 1 << 60}}), "bad-reply"),
    "bytes that are no number": (outputs({"parameters": {"binary_data_size": "24"}}), "bad-reply"),
    "neither bytes nor numbers": (outputs({"parameters": {}}), "bad-reply"),
    "text for numbers": (outputs({"parameters": {}, "data": ["a"] * 6}), "bad-reply"),
    "too few numbers": (outputs({"parameters": {}, "data": [1.0] * 5}), "bad-reply"),
    "ragged numbers": (outputs({"parameters": {}, "data": [[1, 2], [3]]}), "bad-reply"),
    "a number without end": (outputs({"parameters": {}, "data": [10**400] * 6}), "bad-reply"),
    "more than it says": (outputs({}, tail=25), "bad-reply"),
    "an output twice": (outputs({}, {}, tail=48), "bad-reply"),
    "another output": (outputs({"name": "z"}), "bad-reply"),
    "an output without a name": (outputs({"name": None}), "bad-reply"),
    "no output": (outputs(tail=0), "bad-reply"),
    "outputs that are no list": (lambda handler: handler.answer({"outputs": {"y": 1}}), "bad-reply"),
    "no JSON": (lambda handler: handler.answer(b"hello"), "bad-reply"),
    "no object": (lambda handler: handler.answer([1, 2]), "bad-reply"),
    "JSON that is nested without end": (lambda handler: handler.answer(b"[" * 200_000), "bad-reply"),
    "JSON that is longer than the numbers can be": (lambda handler: handler.answer(b" " * (2 << 20)), "bad-reply"),
    "a header of words that is too long": (header(str(1 << 30)), "bad-reply"),
    "a header's length that is negative": (header("-5"), "bad-reply"),
    "a header's length that is no number": (header("²"), "bad-reply"),
    "a header line without end": (lambda handler: handler.answer({}, 200, X="x" * 100_000), "bad-reply"),
    "a thousand header lines": (
        lambda handler: handler.answer({}, 200, **{f"X{n}": "x" for n in range(1000)}),
        "bad-reply",
    ),
    "no HTTP": (lambda handler: (handler.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n"), handler.hang_up()), "bad-reply"),
}


@pytest.mark.parametrize("failure, code", WRONG.values(), ids=WRONG)
def test_a_wrong_answer_is_refused_at_once(server, failure, code):
    server.script = [failure]
    with pytest.raises(ConfigError) as error:
        run(opened(server))
    assert error.value.code == code and server.inferences == 1


@pytest.mark.parametrize("failure, code", WRONG.values(), ids=WRONG)
def test_after_a_wrong_answer_the_next_run_is_right(server, failure, code):
    session = opened(server)
    server.script = [failure]
    with pytest.raises(ConfigError):
        run(session)
    np.testing.assert_array_equal(run(session), Y)


def test_no_more_memory_is_taken_than_is_sent(server):
    server.script = [outputs({"shape": [1 << 20, 1 << 18], "parameters": {"binary_data_size": 1 << 40}})]
    with pytest.raises(ConfigError) as error:
        opened(server).run({"x": X}, {"y": None})
    assert error.value.code == "bad-reply"


def test_an_answer_of_terabytes_is_not_read(server):
    def huge(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(1 << 44))
        handler.end_headers()

    server.script = [huge]
    with pytest.raises(ConfigError) as error:
        run(opened(server))
    assert error.value.code == "bad-reply" and str(1 << 44) in error.value.message


@pytest.mark.parametrize(
    "feeds, out, said",
    [
        ({}, {"y": np.empty((2, 3), np.float32)}, "wants an input x"),
        ({"x": X, "z": X}, {"y": np.empty((2, 3), np.float32)}, "no input z"),
        ({"x": X[None]}, {"y": np.empty((2, 3), np.float32)}, r"x is float32 (?, ?), the card gives float32 (1, 2, 3)"),
        ({"x": X.astype(np.float64)}, {"y": np.empty((2, 3), np.float32)}, "float64"),
        ({"x": X}, {"scores": None}, "no output scores; it has y"),
        ({"x": X}, {"y": np.empty((1, 2, 3), np.float32)}, "(1, 2, 3)"),
        ({"x": X}, {"y": np.empty((2, 3), np.float16)}, "float16"),
    ],
)
def test_what_does_not_fit_the_server_s_metadata_is_not_sent(server, feeds, out, said):
    with pytest.raises(ConfigError) as error:
        opened(server).run(feeds, out)
    assert error.value.code == "network-does-not-fit" and said in error.value.message and not server.inferences


def test_sizes_that_the_metadata_fixes_are_kept_to(server):
    server.model["inputs"][0]["shape"] = [-1, 4]
    session = opened(server)
    assert session.inputs[0].shape == (None, 4) and session.inputs[0].dtype == "float32"
    with pytest.raises(ConfigError) as error:
        run(session)
    assert error.value.code == "network-does-not-fit" and "(?, 4)" in error.value.message


@pytest.mark.parametrize("status", [400, 404])
def test_a_model_that_is_not_ready_is_refused(server, status):
    server.ready = status
    with pytest.raises(UnavailableError) as error:
        opened(server)
    assert error.value.code == "model-not-ready" and "plus" in error.value.message


@pytest.mark.parametrize(
    "change, code",
    [
        ({"inputs": None}, "bad-network"),
        ({"outputs": []}, "bad-network"),
        ({"inputs": "x"}, "bad-reply"),
        ({"inputs": [{"name": "x"}] * 1000}, "bad-reply"),
        ({"inputs": [{"name": "x\n", "datatype": "FP32", "shape": []}]}, "bad-reply"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1] * 99}]}, "bad-reply"),
        ({"inputs": [{"name": "x", "datatype": 32, "shape": [1]}]}, "bad-reply"),
    ],
)
def test_metadata_that_say_nothing_or_nonsense_are_refused(server, change, code):
    server.model |= change
    with pytest.raises(ConfigError) as error:
        opened(server)
    assert error.value.code == code


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)
TENSORS = st.lists(st.fixed_dictionaries({"name": JSON, "datatype": JSON, "shape": JSON | st.lists(st.integers())}))


@given(JSON, JSON | TENSORS, JSON | TENSORS)
def test_any_metadata_are_taken_or_refused(versions, inputs, outputs):
    for read, said in (
        (model_of, {"versions": versions, "inputs": inputs, "outputs": outputs}),
        (server_of, {"name": versions, "version": inputs, "extensions": outputs}),
    ):
        try:
            read(said)
        except ConfigError as error:
            assert error.code in ("bad-reply", "bad-network")


def test_an_image_is_not_worked_on_by_two_versions_of_a_model(server):
    session = opened(server)
    run(session)
    server.version = "2"
    with pytest.raises(UnavailableError) as error:
        run(session)
    assert error.value.code == "model-changed" and "2" in error.value.message


def test_the_token_is_sent_and_never_said(server):
    secret = "s3cr3t-t0k3n"
    session = opened(server, token=secret)
    run(session)
    assert all(headers["Authorization"] == f"Bearer {secret}" for headers in server.headers)
    assert secret not in json.dumps(session.facts()) and secret not in repr(session)
    for status, code in ((401, "server-refused"), (403, "server-refused"), (400, "network-failed")):
        server.script = [lambda handler, status=status: handler.answer({"error": f"no {secret}"}, status)]
        with pytest.raises(ConfigError) as error:
            run(session)
        assert error.value.code == code
        assert secret not in f"{error.value} {error.value.hint} {error.value.numbers}"


@pytest.mark.parametrize(
    "url, token, code",
    [
        ("triton://127.0.0.1:8000/plus", "two\r\nX-Lines: 1", "bad-token"),
        ("triton://127.0.0.1:8000/plus", "schlüssel", "bad-token"),
        ("triton://gpu.hospital.example:8000/plus", "secret", "token-without-tls"),
        ("triton+grpc://gpu.hospital.example:8000/plus", "secret", "token-without-tls"),
    ],
)
def test_a_token_that_would_leak_is_refused_before_anything_is_sent(url, token, code):
    with pytest.raises(ConfigError) as error:
        KServe().open(url, device="cpu", threads=1, options={"token": token})
    assert error.value.code == code and token not in str(error.value)


def test_tls_is_spoken_with_a_server_whose_certificate_is_trusted_only(tmp_path):
    certificate, key = made_certificate(tmp_path)
    with pretending((certificate, key)) as server:
        url = server.url.replace("triton", "tritons")
        session = opened(server, url=url, ca_file=str(certificate), token="t")
        np.testing.assert_array_equal(run(session), Y)
        assert session.facts()["transport"] == "http, TLS, binary"
        with pytest.raises(UnavailableError) as error:
            opened(server, url=url, token="t")
        assert error.value.code == "bad-certificate"
        with pytest.raises(UnavailableError) as error:
            opened(server)
        assert error.value.code == "no-server"
    assert sum("Authorization" in headers for headers in server.headers) == 4


def test_a_server_without_tls_is_not_spoken_to_where_tls_is_asked(server):
    with pytest.raises(UnavailableError) as error:
        opened(server, url=server.url.replace("triton", "tritons"))
    assert error.value.code == "no-server" and not server.inferences


def test_the_file_of_the_ca_must_be_one(tmp_path):
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    (tmp_path / "key.pem").write_text("hello")
    for name, kind, code in (
        ("ca.pem", ConfigError, "bad-ca-file"),
        ("key.pem", ConfigError, "bad-ca-file"),
        ("none.pem", MissingError, "no-ca-file"),
    ):
        with pytest.raises(kind) as error:
            opened(None, url="tritons://127.0.0.1:1/plus", ca_file=tmp_path / name)
        assert error.value.code == code and str(tmp_path) not in error.value.message


def shares(server):
    server.extensions = ["binary_tensor_data", "system_shared_memory"]
    return opened(server)


def test_a_server_that_does_not_write_what_it_shares_leaves_no_old_numbers(server):
    session = shares(server)
    server.script = [lambda handler: handler.answer({"outputs": [{"name": "y", "datatype": "FP32", "shape": [2, 3]}]})]
    assert np.isnan(run(session)).all()


def test_a_server_that_forgot_what_is_shared_is_sent_the_numbers(server):
    session = shares(server)
    server.script = [lambda handler: handler.answer({"error": "Unable to find shared memory region"}, 400)]
    np.testing.assert_array_equal(run(session), Y)
    registered, forgotten = [path.split("/")[4] for path in server.asked if path.endswith(("/register", "/unregister"))]
    assert registered == forgotten


def test_where_there_is_no_memory_to_share_the_numbers_are_sent(server, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    session = shares(server)
    monkeypatch.setattr("os.posix_fallocate", full)
    np.testing.assert_array_equal(run(session), Y)
    assert session.facts()["transport"] == "http, binary"
    assert not [path for path in server.asked if "systemsharedmemory" in path]


def test_what_is_shared_is_taken_back_at_the_end_of_the_process(server):
    server.extensions = ["binary_tensor_data", "system_shared_memory"]
    script = (
        "import sys, numpy as np\n"
        "from mdcli.inference.engines.kserve import KServe\n"
        "session = KServe().open(sys.argv[1], device='cpu', threads=1)\n"
        "x = np.zeros((2, 3), np.float32)\n"
        "session.run({'x': x}, {'y': x.copy()})\n"
    )
    server.script = [lambda handler: handler.answer({"outputs": [{"name": "y", "datatype": "FP32", "shape": [2, 3]}]})]
    subprocess.run([sys.executable, "-c", script, server.url], check=True)
    ends = [path.split("/")[-1] for path in server.asked if "systemsharedmemory" in path]
    assert ends == ["register", "unregister"]


def test_the_engine_loads_without_grpc_and_says_what_installs_it():
    script = (
        "import sys\n"
        "sys.modules['grpc'] = None\n"
        "from mdcli.inference.engines.kserve import KServe\n"
        "assert 'google.protobuf' not in sys.modules\n"
        "try:\n"
        "    KServe().open('triton+grpc://127.0.0.1:1/plus', device='cpu', threads=1)\n"
        "except Exception as error:\n"
        "    print(error.code, error.status, error.hint)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split(maxsplit=2) == ["no-engine", "69", "pip install 'mdcli[triton]'\n"]


def test_every_error_is_one_of_ours(server):
    """A server that answers anything at all, byte for byte, gives an error with a code and never another exception."""
    random = np.random.default_rng(4)
    session = opened(server, pauses_s=())
    for _ in range(60):
        junk = random.bytes(int(random.integers(0, 400)))
        start = random.choice(
            [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: 9\r\n\r\n"]
        )
        server.script = [lambda handler, said=bytes(start) + junk: (handler.wfile.write(said), handler.hang_up())] * 2
        with pytest.raises(MdError):
            run(session)
