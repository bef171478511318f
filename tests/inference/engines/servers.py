"""Servers for the tests: a real Triton and a real MLServer, each in a process of its own, and one of ours that fails on request.

All listen on 127.0.0.1 only, on ports that were free a moment before. A real one needs a venv of its own, whose Python an
environment variable names; a test without it is skipped and says so:

    MD_TEST_TRITON_PYTHON    a venv of Debian's python3.11 with: pip install nvidia-pytriton==0.7.0 onnxruntime
    MD_TEST_MLSERVER_PYTHON  a venv with: pip install mlserver==1.7.1 onnxruntime
"""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
LANDMARKS = HERE.parents[2] / "mdcli" / "models" / "landmarks" / "network.onnx"
HEADER = "Inference-Header-Content-Length"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def _python(variable: str) -> str:
    python = os.environ.get(variable)
    if not python:
        pytest.skip(f"{variable} names no Python of a venv with the server: see tests/inference/engines/servers.py")
    return python


class Real:
    """A server in a process of its own, on ports that stay the same when it is started anew."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.http, self.grpc = folder, free_port(), free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        log = (self.folder / "server.log").open("ab")
        self.process = subprocess.Popen(
            self.command(), stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True, cwd=self.folder
        )

    def wait(self) -> None:
        for _ in range(600):
            assert self.process is not None and self.process.poll() is None, self.log()
            if self.is_ready():
                return
            time.sleep(0.2)
        raise AssertionError(self.log())

    def kill(self) -> None:
        """End it and all that it started, at once."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def stop(self) -> None:
        """Let it end by itself, which gives back the shared memory of its own; end it where it does not."""
        if self.process is not None and self.process.poll() is None:
            self.ask_to_end()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
        self.kill()

    def log(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")[-4000:]

    def ask_to_end(self) -> None:
        self.process.terminate()

    def command(self) -> list[str]:
        raise NotImplementedError

    def is_ready(self) -> bool:
        raise NotImplementedError


class Triton(Real):
    def __init__(self, folder: Path, certificate: tuple[Path, Path] | None = None) -> None:
        super().__init__(folder)
        self.python, self.certificate = _python("MD_TEST_TRITON_PYTHON"), certificate or ()

    def command(self) -> list[str]:
        ports = [str(self.http), str(self.grpc)]
        return [self.python, str(HERE / "triton_models.py"), *ports, str(LANDMARKS), *map(str, self.certificate)]

    def ask_to_end(self) -> None:
        self.process.stdin.close()

    def is_ready(self) -> bool:
        return self.log().splitlines().count("ready") > self.before

    def start(self) -> None:
        log = self.folder / "server.log"
        self.before = log.read_text(errors="replace").splitlines().count("ready") if log.exists() else 0
        super().start()


class MlServer(Real):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.python = _python("MD_TEST_MLSERVER_PYTHON")
        settings = {
            "host": "127.0.0.1",
            "http_port": self.http,
            "grpc_port": self.grpc,
            "metrics_endpoint": None,
            "parallel_workers": 0,
            "debug": False,
        }
        (folder / "settings.json").write_text(json.dumps(settings))
        (folder / "mlserver_models.py").write_text((HERE / "mlserver_models.py").read_text())
        a, b = (("a", [-1, 2, 3, 4]), ("b", [-1, 4, 3, 2]))
        self._model("asymmetric", "Asymmetric", [a, b], [("difference", a[1]), ("back", b[1])])
        self._model("landmarks", "Onnx", [("image", [-1, 1, -1, -1, -1])], [("scores", [-1, 5, -1, -1, -1])])

    def _model(self, name, kind, inputs, outputs) -> None:
        (self.folder / name).mkdir()
        tensors = [
            [{"name": word, "datatype": "FP32", "shape": shape} for word, shape in side] for side in (inputs, outputs)
        ]
        settings = {
            "name": name,
            "implementation": f"mlserver_models.{kind}",
            "inputs": tensors[0],
            "outputs": tensors[1],
            "parameters": {"version": "v1", "uri": str(LANDMARKS)},
        }
        (self.folder / name / "model-settings.json").write_text(json.dumps(settings))

    def command(self) -> list[str]:
        return [str(Path(self.python).parent / "mlserver"), "start", str(self.folder)]

    def is_ready(self) -> bool:
        from http.client import HTTPConnection, HTTPException

        connection = HTTPConnection("127.0.0.1", self.http, timeout=5)
        try:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status == 200
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()


@contextmanager
def running(server: Real) -> Iterator[Real]:
    server.start()
    try:
        server.wait()
        yield server
    finally:
        server.stop()


class Pretender(ThreadingHTTPServer):
    """A small v2 server of the model `plus` (y = x + 1, any size), which can be told how to fail.

    `script` holds what happens to the next inferences, each a function of the handler; when it is empty they go well.
    """

    daemon_threads = True

    def __init__(self, tls: tuple[Path, Path] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script: list[Callable[[_Handler], None]] = []
        self.extensions: list[str] = ["binary_tensor_data"]
        self.model = {
            "name": "plus",
            "versions": ["1"],
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, -1]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, -1]}],
        }
        self.ready = 200
        self.version = "1"
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.connections = 0
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self.socket = context.wrap_socket(self.socket, server_side=True)

    @property
    def url(self) -> str:
        return f"triton://127.0.0.1:{self.server_port}/plus"

    @property
    def inferences(self) -> int:
        return sum(path.endswith("/infer") for path in self.asked)

    def get_request(self):
        found = super().get_request()
        self.connections += 1
        return found

    def handle_error(self, request, client_address) -> None:
        """Be silent of clients that go away."""


class _Handler(BaseHTTPRequestHandler):
    server: Pretender
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        """Be silent."""

    def do_GET(self) -> None:
        self._note()
        if self.path == "/v2":
            self.answer({"name": "pretender", "version": "0.1", "extensions": self.server.extensions})
        elif self.path.endswith("/ready"):
            self.answer({}, self.server.ready)
        else:
            self.answer(self.server.model)

    def do_POST(self) -> None:
        self._note()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.path.endswith("/infer"):
            return self.answer({})
        length = int(self.headers.get(HEADER, len(body)))
        self.said, self.tail = json.loads(body[:length]), body[length:]
        if self.server.script:
            return self.server.script.pop(0)(self)
        self.go_well()
        return None

    def _note(self) -> None:
        self.server.asked.append(self.path)
        self.server.headers.append(dict(self.headers))

    def result(self) -> np.ndarray:
        (entry,) = self.said["inputs"]
        numbers = np.frombuffer(self.tail, np.float32) if self.tail else np.array(entry["data"], np.float32)
        return numbers.reshape(entry["shape"]) + np.float32(1)

    def output(self, **said) -> dict:
        result = self.result()
        return {"name": "y", "datatype": "FP32", "shape": list(result.shape), **said}

    def go_well(self) -> None:
        result = self.result()
        if self.tail:
            output = self.output(parameters={"binary_data_size": result.nbytes})
            self.binary({"outputs": [output]}, result.tobytes())
        else:
            self.answer({"model_version": self.server.version, "outputs": [self.output(data=result.ravel().tolist())]})

    def binary(self, said: dict, tail: bytes, length: int | None = None) -> None:
        words = json.dumps({"model_name": "plus", "model_version": self.server.version, **said}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(words) + len(tail) if length is None else length))
        self.send_header(HEADER, str(len(words)))
        self.end_headers()
        self.wfile.write(words + tail)

    def answer(self, said: object, status: int = 200, **headers: str) -> None:
        body = said if isinstance(said, bytes) else json.dumps(said).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def pretending(tls: tuple[Path, Path] | None = None) -> Iterator[Pretender]:
    server = Pretender(tls)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def made_certificate(folder: Path) -> tuple[Path, Path]:
    """Return a certificate of 127.0.0.1 that signs itself, and its key; skip without openssl."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    return certificate, key
