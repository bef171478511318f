"""Serve the tests' models by a real Triton. Run by the Python of a venv with nvidia-pytriton, never imported by the tests.

    python triton_models.py HTTP_PORT GRPC_PORT NETWORK.onnx [CERTIFICATE KEY]

Prints `ready`, and ends with its standard input. With a certificate, gRPC speaks TLS only.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig, TritonSecurityConfig


def asymmetric(requests):
    """Two inputs and two outputs of unlike shapes: names or axes that were swapped show."""
    return [
        {"difference": each["a"] - 2 * each["b"].transpose(0, 3, 2, 1), "back": each["b"] + np.float32(0.5)}
        for each in requests
    ]


def same(requests):
    """Return what came."""
    return [{"y": each["x"]} for each in requests]


def failing(requests):
    """Fail."""
    raise ValueError(f"out of everything after {len(requests)}")


def main():
    """Serve until the standard input ends."""
    http, grpc, network, *tls = sys.argv[1:]
    session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
    secret = {"grpc_use_ssl": True, "grpc_server_cert": Path(tls[0]), "grpc_server_key": Path(tls[1])} if tls else {}
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=int(http),
        grpc_address="127.0.0.1",
        grpc_port=int(grpc),
        allow_metrics=False,
        **secret,
    )

    def landmarks(requests):
        return [{"scores": session.run(["scores"], {"image": each["image"]})[0]} for each in requests]

    any_size = (-1, -1, -1, -1, -1)
    with Triton(config=config, security_config=TritonSecurityConfig(restricted_endpoints=[])) as triton:
        for name, function, inputs, outputs in (
            (
                "asymmetric",
                asymmetric,
                {"a": (-1, 2, 3, 4), "b": (-1, 4, 3, 2)},
                {"difference": (-1, 2, 3, 4), "back": (-1, 4, 3, 2)},
            ),
            ("landmarks", landmarks, {"image": (-1, 1, -1, -1, -1)}, {"scores": (-1, 5, -1, -1, -1)}),
            ("same", same, {"x": any_size}, {"y": any_size}),
            ("failing", failing, {"x": any_size}, {"y": any_size}),
        ):
            triton.bind(
                model_name=name,
                infer_func=function,
                inputs=[Tensor(name=key, dtype=np.float32, shape=shape) for key, shape in inputs.items()],
                outputs=[Tensor(name=key, dtype=np.float32, shape=shape) for key, shape in outputs.items()],
                config=ModelConfig(batching=False),
                strict=True,
            )
        triton.run()
        print("ready", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
