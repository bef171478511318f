"""Time the ways to a server on this machine: JSON, binary, shared memory, over HTTP and gRPC, and NVIDIA's own client beside them.

    python scripts/bench_server.py --triton-python VENV/bin/python [--runs 5] [--large-mib 300]

VENV holds nvidia-pytriton and onnxruntime (tests/inference/engines/servers.py says how to make it). The model gives back what it
gets: one patch of 96^3 float32, and one tensor of 300 MiB. Prints the median milliseconds of a run and the megabytes that went over
the loopback both ways (whatever else used it is in there too); ends with 1 where an answer is not the input. NVIDIA's client
(pip install 'tritonclient[http,grpc]') is left out where it is not installed, JSON for the large tensor.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mdcli.errors import UnavailableError
from mdcli.inference.engines.kserve import KServe
from mdcli.inference.engines.kserve_address import parse_address
from mdcli.inference.engines.kserve_http import Http
from mdcli.inference.engines.kserve_protocol import Given, Wanted

ROOT = Path(__file__).resolve().parents[1]
LARGE_BYTES = 64 << 20
Floats = NDArray[np.float32]
Run = Callable[[Floats, Floats], None]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def loopback_bytes() -> int:
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[0])


def json_run(address: str) -> Run:
    way = Http(parse_address(address), token=None, tls=None, connect_s=10, ask_s=10, infer_s=600)
    (output,) = way.model().outputs
    return lambda x, y: void(way.infer([Given("x", x)], [Wanted(output, y)], binary=False))


def our_run(address: str, *, shared: bool) -> Run:
    session = KServe().open(address, device="cpu", threads=1, options={"shared_memory": shared})
    return lambda x, y: void(session.run({"x": x}, {"y": y}))


def peer_run(kind: str, port: int) -> Run:
    if kind == "http":
        import tritonclient.http as client
    else:
        import tritonclient.grpc as client
    connection = client.InferenceServerClient(f"127.0.0.1:{port}")

    def run(x: Floats, y: Floats) -> None:
        given = client.InferInput("x", list(x.shape), "FP32")
        given.set_data_from_numpy(x)
        wanted = client.InferRequestedOutput("y")
        y[...] = connection.infer("same", [given], outputs=[wanted]).as_numpy("y")

    return run


def wait_for(address: str, server: subprocess.Popen[bytes]) -> None:
    while server.poll() is None:
        try:
            KServe().open(address, device="cpu", threads=1)
            return
        except UnavailableError:
            time.sleep(0.5)
    raise SystemExit("Triton did not start")


def void(_: object) -> None:
    """Drop a result."""


def ways(http: int, grpc: int) -> Iterator[tuple[str, Callable[[], Run]]]:
    over_http, over_grpc = f"triton://127.0.0.1:{http}/same", f"triton+grpc://127.0.0.1:{grpc}/same"
    yield "HTTP, JSON", lambda: json_run(over_http)
    yield "HTTP, binary", lambda: our_run(over_http, shared=False)
    yield "HTTP, shared memory", lambda: our_run(over_http, shared=True)
    yield "gRPC, binary", lambda: our_run(over_grpc, shared=False)
    yield "gRPC, shared memory", lambda: our_run(over_grpc, shared=True)
    yield "tritonclient, HTTP, binary", lambda: peer_run("http", http)
    yield "tritonclient, gRPC, binary", lambda: peer_run("grpc", grpc)


def time_one(run: Run, x: Floats, runs: int) -> tuple[float, float, bool]:
    """Return the median milliseconds and megabytes of a run, and whether every answer was right.

    The first runs are not counted: TCP and gRPC open their windows by what they have seen.
    """
    cold = 1 if x.nbytes > LARGE_BYTES else 5
    seconds, sent, right = [], [], True
    for number in range(cold + runs):
        y = np.full_like(x, np.nan)
        before, started = loopback_bytes(), time.perf_counter()
        run(x, y)
        if number >= cold:
            seconds.append(time.perf_counter() - started)
            sent.append(loopback_bytes() - before)
        right = right and np.array_equal(x, y)
    return statistics.median(seconds) * 1e3, statistics.median(sent) / 1e6, right


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triton-python", required=True)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--large-mib", type=int, default=300)
    args = parser.parse_args()
    http, grpc = free_port(), free_port()
    models, network = ROOT / "tests/inference/engines/triton_models.py", ROOT / "mdcli/models/landmarks/network.onnx"
    command = [args.triton_python, str(models), str(http), str(grpc), str(network)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert server.stdin is not None
    random = np.random.default_rng(0)
    all_right = True
    try:
        wait_for(f"triton://127.0.0.1:{http}/same", server)
        print(f"{'tensor':<16} {'way':<28} {'ms':>9} {'MB':>9}", flush=True)
        for shape in ((1, 1, 96, 96, 96), (1, args.large_mib, 64, 64, 64)):
            x = random.uniform(-1, 1, shape).astype(np.float32)
            for name, make in ways(http, grpc):
                if "JSON" in name and x.nbytes > LARGE_BYTES:
                    continue
                try:
                    run = make()
                except (ImportError, RuntimeError):
                    # The package raises RuntimeError where its extra is missing.
                    print(f"{'':<16} {name:<28} left out: not installed")
                    continue
                milliseconds, megabytes, right = time_one(run, x, args.runs)
                all_right = all_right and right
                size = f"{x.nbytes / (1 << 20):.1f} MiB"
                print(
                    f"{size:<16} {name:<28} {milliseconds:>9.1f} {megabytes:>9.2f} {'' if right else 'WRONG'}",
                    flush=True,
                )
    finally:
        server.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            server.wait(60)
        server.kill()
    return 0 if all_right else 1


if __name__ == "__main__":
    sys.exit(main())
