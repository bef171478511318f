"""The way to a server over gRPC, against a small server of ours that fails on request. Real servers: test_kserve_servers.py."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest

from mdcli.errors import ConfigError, UnavailableError
from mdcli.inference.engines.kserve import KServeSession, _transport
from mdcli.inference.engines.kserve_address import parse_address
from tests.inference.engines.servers import free_port

grpc = pytest.importorskip("grpc", reason="grpcio is not installed: pip install 'mdcli[triton]'")
pytest.importorskip("google.protobuf", reason="protobuf is not installed: pip install 'mdcli[triton]'")

from mdcli.inference.engines.kserve_grpc import messages  # noqa: E402

X = np.arange(6, dtype=np.float32).reshape(2, 3) / 3
Y = X + np.float32(1)


class Pretender(grpc.GenericRpcHandler):
    """The model `plus` (y = x + 1, any size); `script` holds what happens to the next inferences."""

    def __init__(self):
        self.script, self.metadata, self.inferences, self.typed = [], [], 0, False

    def service(self, details):
        self.metadata.append(dict(details.invocation_metadata))
        method = details.method.removeprefix("/inference.GRPCInferenceService/")
        return grpc.unary_unary_rpc_method_handler(getattr(self, method))

    def ServerMetadata(self, request, context):
        return messages().ServerMetadataResponse(name="pretender", version="0.1").SerializeToString()

    def ModelReady(self, request, context):
        asked = messages().ModelReadyRequest.FromString(request)
        return messages().ModelReadyResponse(ready=asked.name == "plus").SerializeToString()

    def ModelMetadata(self, request, context):
        x, y = ({"name": name, "datatype": "FP32", "shape": [-1, -1]} for name in "xy")
        return (
            messages().ModelMetadataResponse(name="plus", versions=["1"], inputs=[x], outputs=[y]).SerializeToString()
        )

    def ModelInfer(self, request, context):
        self.inferences += 1
        if self.script:
            found = self.script.pop(0)(context)
            if found is not None:
                return found
        said = messages().ModelInferRequest.FromString(request)
        y = np.frombuffer(said.raw_input_contents[0], np.float32) + np.float32(1)
        return answer(shape=said.inputs[0].shape, numbers=y, typed=self.typed)


def answer(*, name="y", datatype="FP32", shape=(2, 3), numbers=Y, typed=False, **said):
    output = {"name": name, "datatype": datatype, "shape": list(shape)}
    if typed:
        output["contents"] = {"fp32_contents": np.ravel(numbers).tolist()}
    else:
        said = {"raw_output_contents": [np.asarray(numbers, np.float32).tobytes()], **said}
    return messages().ModelInferResponse(model_version="1", outputs=[output], **said).SerializeToString()


def abort(code):
    return lambda context: context.abort(getattr(grpc.StatusCode, code), "no t0k3n here\nor there")


@contextmanager
def pretending():
    pretender, server = Pretender(), grpc.server(ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((pretender,))
    pretender.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield pretender
    finally:
        server.stop(None).wait()


@pytest.fixture
def server():
    with pretending() as server:
        yield server


def opened(port, *, host="127.0.0.1", model="plus", **options):
    address = parse_address(f"triton+grpc://{host}:{port}/{model}")
    return KServeSession(address, _transport(address, options), pauses_s=(0.1, 0.3))


def run(session, x=X):
    out = np.full_like(x, np.nan)
    session.run({"x": x}, {"y": out})
    return out


@pytest.mark.parametrize("typed", [False, True], ids=["raw numbers", "typed numbers"])
def test_a_model_runs_into_the_memory_that_it_is_given(server, typed):
    server.typed = typed
    session = opened(server.port)
    np.testing.assert_array_equal(run(session), Y)
    assert session.facts()["transport"] == "grpc, binary"
    np.testing.assert_array_equal(session.run({"x": X}, {"y": None})["y"], Y)


def test_several_runs_are_in_flight_at_once(server):
    meeting = threading.Barrier(4, timeout=30)

    def meet(context):
        # Nobody is answered before all four are there.
        meeting.wait()

    server.script = [meet] * 4
    session = opened(server.port)
    inputs = [X * n for n in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for x, y in zip(inputs, pool.map(lambda x: run(session, x), inputs), strict=True):
            np.testing.assert_array_equal(y, x + np.float32(1))


def test_what_may_pass_is_tried_again(server):
    server.script = [abort("UNAVAILABLE")] * 2
    np.testing.assert_array_equal(run(opened(server.port)), Y)
    assert server.inferences == 3


def test_a_server_that_goes_on_failing_is_not_there(server):
    server.script = [abort("UNAVAILABLE")] * 9
    with pytest.raises(UnavailableError) as error:
        run(opened(server.port))
    assert error.value.code == "no-server" and server.inferences == 3


def test_a_server_that_is_not_started_is_not_there():
    with pytest.raises(UnavailableError) as error:
        opened(free_port())
    assert error.value.code == "no-server"


@pytest.mark.parametrize(
    "status, code",
    [
        ("INVALID_ARGUMENT", "network-failed"),
        ("INTERNAL", "network-failed"),
        ("RESOURCE_EXHAUSTED", "network-failed"),
        ("UNIMPLEMENTED", "network-failed"),
        ("UNAUTHENTICATED", "server-refused"),
        ("PERMISSION_DENIED", "server-refused"),
    ],
)
def test_what_the_server_refuses_is_not_tried_again_and_the_token_not_said(server, status, code):
    server.script = [abort(status)]
    session = opened(server.port, token="t0k3n")
    with pytest.raises(ConfigError) as error:
        run(session)
    assert error.value.code == code and server.inferences == 1
    assert "no *** here or there" in error.value.message and "t0k3n" not in str(error.value)
    assert all(metadata["authorization"] == "Bearer t0k3n" for metadata in server.metadata)


def test_a_model_that_is_not_there_is_refused(server):
    with pytest.raises(UnavailableError) as error:
        opened(server.port, model="minus")
    assert error.value.code == "model-not-ready"


def test_a_server_that_never_answers_is_given_up_in_time(server):
    over = threading.Event()
    server.script = [lambda context: None if over.wait(60) else b""] * 9
    session = opened(server.port, timeout_s=0.5)
    try:
        with pytest.raises(UnavailableError) as error:
            run(session)
    finally:
        over.set()
    assert error.value.code == "no-server" and server.inferences == 1


WRONG = {
    "another shape": (lambda: answer(shape=(3, 2)), "network-does-not-fit"),
    "other numbers": (lambda: answer(datatype="INT32"), "network-does-not-fit"),
    "another output": (lambda: answer(name="z"), "bad-reply"),
    "no output": (lambda: messages().ModelInferResponse().SerializeToString(), "bad-reply"),
    "too few bytes": (lambda: answer(numbers=Y[:1]), "bad-reply"),
    "too few typed numbers": (lambda: answer(numbers=Y[:1], typed=True), "bad-reply"),
    "no numbers": (lambda: answer(raw_output_contents=[]), "bad-reply"),
    "no message": (lambda: b"\xff\xff\xff\xff hello", "bad-reply"),
    # Four megabytes where 24 bytes are wanted: it is cut off before it is held.
    "more than it may hold": (lambda: answer(numbers=np.zeros(1 << 20)), "network-failed"),
}


@pytest.mark.parametrize("said, code", WRONG.values(), ids=WRONG)
def test_a_wrong_answer_is_refused_at_once(server, said, code):
    server.script = [lambda context: said()]
    session = opened(server.port)
    with pytest.raises(ConfigError) as error:
        run(session)
    assert error.value.code == code and server.inferences == 1
    np.testing.assert_array_equal(run(session), Y)


def test_no_more_memory_is_taken_than_is_sent(server):
    server.script = [lambda context: answer(shape=(1 << 20, 1 << 18))]
    with pytest.raises(ConfigError) as error:
        opened(server.port).run({"x": X}, {"y": None})
    assert error.value.code == "bad-reply"


def test_no_proxy_is_asked(server, monkeypatch):
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    np.testing.assert_array_equal(run(opened(server.port, host="localhost")), Y)


def test_the_messages_are_the_protocol_s():
    """Held to the code that a vendor's client was generated with, where it is installed."""
    service_pb2 = pytest.importorskip("tritonclient.grpc.service_pb2", exc_type=ImportError)
    ours = messages()
    for name, theirs in (("ModelInferRequest", "ModelInferRequest"), ("ModelInferResponse", "ModelInferResponse"),
                         ("ModelMetadataResponse", "ModelMetadataResponse"), ("InferTensorContents", "InferTensorContents"),
                         ("SystemSharedMemoryRegisterRequest", "SystemSharedMemoryRegisterRequest")):  # fmt: skip
        numbers = {field.name: field.number for field in getattr(service_pb2, theirs).DESCRIPTOR.fields}
        for field in getattr(ours, name).DESCRIPTOR.fields:
            assert numbers[field.name] == field.number


@pytest.mark.parametrize("failure", ["never answers", "is always busy"])
def test_a_run_that_is_stopped_ends_at_once_and_none_follows(server, failure):
    over, errors = threading.Event(), []
    fail = abort("UNAVAILABLE") if failure == "is always busy" else lambda context: over.wait(60) and None
    server.script = [fail] * 99
    session = opened(server.port)
    session._pauses_s = (60.0,) * 5

    def go():
        with pytest.raises(UnavailableError) as error:
            run(session)
        errors.append(error.value)

    threads = [threading.Thread(target=go, daemon=True) for _ in range(3)]
    try:
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        session.stop()
        for thread in threads:
            thread.join(10)
        assert not any(thread.is_alive() for thread in threads)
        assert [error.code for error in errors] == ["no-server"] * 3
        assert all("stopped" in error.message for error in errors)
        inferences = server.inferences
        with pytest.raises(UnavailableError) as error:
            run(session)
        assert error.value.code == "no-server" and server.inferences == inferences
    finally:
        over.set()
    session.close()
