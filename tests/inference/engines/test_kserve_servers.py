"""The engine for servers against real ones: Triton and MLServer. What they need is said in servers.py."""

from __future__ import annotations

import http.client
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mdcli.errors import ConfigError, UnavailableError
from mdcli.imaging.nifti import read_nifti
from mdcli.inference.engines.kserve import PAUSES_S, KServe, KServeSession, _transport
from mdcli.inference.engines.kserve_address import parse_address
from mdcli.registry import load_stage
from mdcli.testing import run_stage
from tests.inference.engines.servers import LANDMARKS, MlServer, Triton, made_certificate, running
from tests.test_landmark_chain import AXIAL, write_ct

pytestmark = [pytest.mark.slow, pytest.mark.servers]

A = np.arange(48, dtype=np.float32).reshape(2, 2, 3, 4) / 7
B = np.arange(48, dtype=np.float32).reshape(2, 4, 3, 2) ** 2 / 11
# By hand, element by element: a[n, c, y, x] - 2 b[n, x, y, c].
DIFFERENCE = np.array(
    [[[[A[n, c, y, x] - 2 * B[n, x, y, c] for x in range(4)] for y in range(3)] for c in range(2)] for n in range(2)]
)
BACK = B + np.float32(0.5)


@pytest.fixture(scope="module")
def triton(tmp_path_factory):
    with running(Triton(tmp_path_factory.mktemp("triton"))) as server:
        yield server


@pytest.fixture(scope="module")
def mlserver(tmp_path_factory):
    with running(MlServer(tmp_path_factory.mktemp("mlserver"))) as server:
        yield server


def url(server, way, model):
    return (
        f"triton://127.0.0.1:{server.http}/{model}"
        if way == "http"
        else f"triton+grpc://127.0.0.1:{server.grpc}/{model}"
    )


def opened(server, way, model, pauses_s=PAUSES_S, **options):
    if way == "grpc":
        pytest.importorskip("grpc", reason="grpcio is not installed: pip install 'mdcli[triton]'")
    address = parse_address(url(server, way, model))
    return KServeSession(
        address, _transport(address, options), pauses_s=pauses_s, shared_memory=options.get("shared", True)
    )


def run_asymmetric(session):
    difference, back = np.full(A.shape, np.nan, np.float32), np.full(B.shape, np.nan, np.float32)
    # In another order than the server names them: the names count.
    session.run({"b": B, "a": A}, {"back": back, "difference": difference})
    np.testing.assert_array_equal(difference, DIFFERENCE)
    np.testing.assert_array_equal(back, BACK)


def regions(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.http, timeout=10)
    connection.request("GET", "/v2/systemsharedmemory/status")
    found = json.loads(connection.getresponse().read())
    connection.close()
    return found


@pytest.mark.parametrize("shared", [True, False], ids=["shared memory", "sent"])
@pytest.mark.parametrize("way", ["http", "grpc"])
def test_triton_gets_every_input_by_its_name_and_in_its_axes(triton, way, shared):
    session = opened(triton, way, "asymmetric", shared=shared)
    assert [(t.name, t.shape, t.dtype) for t in session.inputs] == [
        ("a", (None, 2, 3, 4), "float32"),
        ("b", (None, 4, 3, 2), "float32"),
    ]
    for _ in range(3):
        run_asymmetric(session)
    facts = session.facts()
    assert facts["server"] == {"name": "triton", "version": "2.51.0"} and facts["model_version"] == "1"
    assert facts["transport"] == f"{way}, {'shared memory' if shared else 'binary'}"


@pytest.mark.parametrize("way", ["http", "grpc"])
def test_mlserver_gets_every_input_by_its_name_and_in_its_axes(mlserver, way):
    session = opened(mlserver, way, "asymmetric/v1")
    run_asymmetric(session)
    facts = session.facts()
    assert facts["version"] == "mlserver 1.7.1" and facts["model_version"] == "v1"
    # It takes no binary numbers over HTTP, and says so by listing no extension.
    assert facts["transport"] == ("http, json" if way == "http" else "grpc, binary")


@pytest.mark.parametrize("way", ["http", "grpc"])
@pytest.mark.parametrize("kind", ["triton", "mlserver"])
def test_the_landmarks_come_as_from_the_engine_here(kind, way, request):
    onnx = pytest.importorskip("mdcli.inference.engines.onnx")
    pytest.importorskip("onnxruntime")
    server = request.getfixturevalue(kind)
    image = np.random.default_rng(1).uniform(-1, 1, (1, 1, 40, 36, 28)).astype(np.float32)
    here, there = (np.full((1, 5, 40, 36, 28), np.nan, np.float32) for _ in range(2))
    local = onnx.OnnxRuntime().open(LANDMARKS, device="cpu", threads=1)
    local.run({"image": image}, {"scores": here})
    opened(server, way, "landmarks").run({"image": image}, {"scores": there})
    assert np.abs(here).max() > 0
    # Another version of the same runtime: its sums may be ordered otherwise.
    np.testing.assert_allclose(there, here, rtol=0, atol=1e-6)


@pytest.mark.parametrize("way", ["http", "grpc"])
def test_outputs_of_unknown_size_come_too(triton, way):
    x = np.random.default_rng(2).normal(size=(1, 2, 3, 4, 5)).astype(np.float32)
    np.testing.assert_array_equal(opened(triton, way, "same").run({"x": x}, {"y": None})["y"], x)


@pytest.mark.parametrize("way", ["http", "grpc"])
def test_what_is_shared_has_no_name_and_is_taken_back(triton, way):
    before = regions(triton)
    session = opened(triton, way, "asymmetric")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: run_asymmetric(session), range(12)))
    # One for each run at once at most, known to the server, and with no name left in the system.
    ours = [entry for entry in regions(triton) if entry not in before]
    assert 1 <= len(ours) <= 4
    assert not [path for path in Path("/dev/shm").iterdir() if path.name.startswith(f"md-{os.getpid()}-")]
    session.close()
    assert regions(triton) == before


@pytest.mark.parametrize("way", ["http", "grpc"])
def test_several_sizes_go_through_one_session(triton, way):
    session = opened(triton, way, "same")
    for size in (3, 40, 7, 64, 1):
        x = np.random.default_rng(size).normal(size=(1, 1, size, size, 2)).astype(np.float32)
        y = np.full_like(x, np.nan)
        session.run({"x": x}, {"y": y})
        np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("way", ["http", "grpc"])
def test_a_model_that_fails_says_why(triton, way):
    x = np.zeros((1, 1, 1, 1, 1), np.float32)
    with pytest.raises(ConfigError) as error:
        opened(triton, way, "failing").run({"x": x}, {"y": x.copy()})
    assert error.value.code == "network-failed" and "out of everything" in error.value.message


@pytest.mark.parametrize("model", ["nothing", "same/7"])
@pytest.mark.parametrize("way", ["http", "grpc"])
@pytest.mark.parametrize("kind", ["triton", "mlserver"])
def test_a_model_or_version_that_is_not_there_is_refused(kind, way, model, request):
    with pytest.raises(UnavailableError) as error:
        opened(request.getfixturevalue(kind), way, model)
    assert error.value.code == "model-not-ready"


def test_the_wrong_port_is_refused_with_a_code(triton):
    pytest.importorskip("grpc", reason="grpcio is not installed: pip install 'mdcli[triton]'")
    for address in (f"triton://127.0.0.1:{triton.grpc}/same", f"triton+grpc://127.0.0.1:{triton.http}/same"):
        assert parse_address(address)
        with pytest.raises((ConfigError, UnavailableError)) as error:
            KServe().open(address, device="cpu", threads=1)
        assert error.value.code in ("bad-reply", "no-server", "bad-network")


def test_mlserver_s_limit_of_grpc_is_said(mlserver):
    session = opened(mlserver, "grpc", "landmarks")
    image = np.zeros((1, 1, 128, 128, 96), np.float32)
    with pytest.raises(ConfigError) as error:
        session.run({"image": image}, {"scores": None})
    assert error.value.code == "network-failed" and "RESOURCE_EXHAUSTED" in error.value.message


def test_grpc_over_tls_is_spoken_with_a_trusted_certificate_only(tmp_path):
    pytest.importorskip("grpc", reason="grpcio is not installed: pip install 'mdcli[triton]'")
    certificate, key = made_certificate(tmp_path)
    with running(Triton(tmp_path, (certificate, key))) as server:
        secure = url(server, "grpc", "asymmetric").replace("+grpc", "+grpcs")
        session = KServe().open(secure, device="cpu", threads=1, options={"ca_file": certificate, "token": "t"})
        run_asymmetric(session)
        assert session.facts()["transport"] == "grpc, TLS, shared memory"
        with pytest.raises(UnavailableError) as error:
            KServe().open(secure, device="cpu", threads=1)
        assert error.value.code == "bad-certificate"


@pytest.mark.parametrize("way", ["http", "grpc"])
def test_a_server_that_is_killed_and_comes_back_is_used_on_and_one_that_does_not_is_not_there(tmp_path, way):
    with running(Triton(tmp_path)) as server:
        session = opened(server, way, "asymmetric", pauses_s=(0.5,) * 120)
        run_asymmetric(session)
        server.kill()
        again = threading.Timer(1, server.start)
        again.start()
        run_asymmetric(session)
        again.join()
        assert session.facts()["transport"] == f"{way}, shared memory"
        impatient = opened(server, way, "asymmetric", pauses_s=(0.1, 0.1))
        run_asymmetric(impatient)
        server.kill()
        with pytest.raises(UnavailableError) as error:
            run_asymmetric(impatient)
        assert error.value.code == "no-server" and error.value.status == 69


def test_a_server_that_is_killed_in_the_middle_of_a_run_is_not_there(tmp_path):
    with running(Triton(tmp_path)) as server:
        session = opened(server, "http", "same", pauses_s=(0.1, 0.1))
        x = np.zeros((1, 1, 256, 256, 256), np.float32)
        killer = threading.Timer(0.02, server.kill)
        killer.start()
        with pytest.raises(UnavailableError) as error:
            for _ in range(200):
                session.run({"x": x}, {"y": np.empty_like(x)})
        killer.join()
        assert error.value.code == "no-server"


@pytest.mark.parametrize("way", ["http", "grpc"])
def test_a_card_with_an_address_gives_the_labels_of_the_network_here(triton, tmp_path, way):
    if way == "grpc":
        pytest.importorskip("grpc", reason="grpcio is not installed: pip install 'mdcli[triton]'")
    card = (LANDMARKS.parent / "model.yaml").read_text()
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "model.yaml").write_text(
        card.replace("network: network.onnx", f"network: {url(triton, way, 'landmarks')}")
    )
    labels = {}
    for model in ("landmarks", str(tmp_path / "served")):
        case = tmp_path / Path(model).name
        write_ct(tmp_path / "dicom", AXIAL, (2.5, 3.0, 4.0))
        run_stage(load_stage("select-series"), case, dicom=tmp_path / "dicom")
        run_stage(load_stage("load-volume"), case)
        run_stage(load_stage("infer"), case, model=model)
        labels[Path(model).name] = read_nifti(case / "labels.nii").array
    assert set(np.unique(labels["landmarks"])) == {0, 1, 2, 3, 4}
    np.testing.assert_array_equal(labels["served"], labels["landmarks"])
    segments = json.loads((tmp_path / "served" / "segments.json").read_text())
    assert "triton 2.51.0" in json.dumps(segments)
