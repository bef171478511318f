"""The way to a server over gRPC, by `grpcio`.

The protocol's messages are described here and made at run time by `protobuf`: generated code would bind us to one of its versions,
and the vendors' client packages do. The descriptions lie in a pool of their own, so that such a client may be in the same process.

Source: KServe's `open_inference_grpc.proto` and Triton's `grpc_service.proto` (field numbers).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdcli.errors import ConfigError, UnavailableError
from mdcli.inference.engines.kserve_address import Address
from mdcli.inference.engines.kserve_protocol import (
    DATATYPES,
    FAREWELL_S,
    MAX_TENSORS,
    MAX_WORDS_BYTES,
    Given,
    Late,
    Lost,
    Model,
    Place,
    Refused,
    Reply,
    Server,
    Wanted,
    array_for,
    bad_reply,
    model_of,
    plain,
    server_of,
)

INSTALL = "pip install 'mdcli[triton]'"
# gRPC and protobuf count a message's bytes in 31 bits.
_MAX_MESSAGE_BYTES = (1 << 31) - 1
# A number takes a byte of a message at least and eight of an array at most.
_BYTES_PER_BYTE = 8
_SERVICE = "/inference.GRPCInferenceService/"
# Message to fields: name, number, type; `*` is repeated, `|` is one of a choice. A map is what it is on the wire: repeated pairs.
_MESSAGES = {
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "name 1 string, version 2 string, extensions 3 *string",
    "ModelReadyRequest": "name 1 string, version 2 string",
    "ModelReadyResponse": "ready 1 bool",
    "ModelMetadataRequest": "name 1 string, version 2 string",
    "TensorMetadata": "name 1 string, datatype 2 string, shape 3 *int64",
    "ModelMetadataResponse": "name 1 string, versions 2 *string, platform 3 string, "
    "inputs 4 *TensorMetadata, outputs 5 *TensorMetadata",
    "InferParameter": "bool_param 1 |bool, int64_param 2 |int64, string_param 3 |string",
    "InferTensorContents": "bool_contents 1 *bool, int_contents 2 *int32, int64_contents 3 *int64, uint_contents 4 *uint32, "
    "uint64_contents 5 *uint64, fp32_contents 6 *float, fp64_contents 7 *double",
    "Parameter": "key 1 string, value 2 InferParameter",
    "InferInputTensor": "name 1 string, datatype 2 string, shape 3 *int64, parameters 4 *Parameter",
    "InferRequestedOutputTensor": "name 1 string, parameters 2 *Parameter",
    "ModelInferRequest": "model_name 1 string, model_version 2 string, inputs 5 *InferInputTensor, "
    "outputs 6 *InferRequestedOutputTensor, raw_input_contents 7 *bytes",
    "InferOutputTensor": "name 1 string, datatype 2 string, shape 3 *int64, contents 5 InferTensorContents",
    "ModelInferResponse": "model_name 1 string, model_version 2 string, outputs 5 *InferOutputTensor, "
    "raw_output_contents 6 *bytes",
    "SystemSharedMemoryRegisterRequest": "name 1 string, key 2 string, offset 3 uint64, byte_size 4 uint64",
    "SystemSharedMemoryRegisterResponse": "",
    "SystemSharedMemoryUnregisterRequest": "name 1 string",
    "SystemSharedMemoryUnregisterResponse": "",
}
_CONTENTS = {
    "bool": "bool_contents",
    **dict.fromkeys(("uint8", "uint16", "uint32"), "uint_contents"),
    "uint64": "uint64_contents",
    **dict.fromkeys(("int8", "int16", "int32"), "int_contents"),
    "int64": "int64_contents",
    "float32": "fp32_contents",
    "float64": "fp64_contents",
}


def grpcio() -> Any:
    """Return the library.

    Raises:
        UnavailableError: `no-engine`.
    """
    try:
        import google.protobuf
        import grpc
    except ImportError as error:
        raise UnavailableError("no-engine", f"gRPC does not load: {plain(error)}", hint=INSTALL) from error
    assert google.protobuf
    return grpc


@cache
def messages() -> SimpleNamespace:
    """Return the protocol's message classes, by name."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="md_inference.proto", package="inference", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for said in filter(None, fields.split(", ")):
            word, number, kind = said.split()
            field = message.field.add(name=word, number=int(number))
            field.label = kinds.LABEL_REPEATED if kind.startswith("*") else kinds.LABEL_OPTIONAL
            if kind.startswith("|"):
                if not message.oneof_decl:
                    message.oneof_decl.add(name="choice")
                field.oneof_index = 0
            kind = kind.lstrip("*|")
            if kind in _MESSAGES:
                field.type, field.type_name = kinds.TYPE_MESSAGE, f".inference.{kind}"
            else:
                field.type = getattr(kinds, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = {name: pool.FindMessageTypeByName(f"inference.{name}") for name in _MESSAGES}
    return SimpleNamespace(**{name: message_factory.GetMessageClass(kind) for name, kind in found.items()})


class Grpc:
    """A model on a server, over gRPC. See `Transport`.

    Args:
        address: the model.
        token: sent as a bearer token; None sends none.
        roots: the certificates (PEM) that the server's must lead to; None takes gRPC's own. Used with TLS only.
        ask_s: the longest that an answer about the server or the model may take.
        infer_s: the longest that an inference may take, the transfers included.
    """

    def __init__(
        self, address: Address, *, token: str | None, roots: bytes | None, ask_s: float, infer_s: float
    ) -> None:
        self._grpc = grpcio()
        self._address, self._token, self._roots = address, token, roots
        self._ask_s, self._infer_s = ask_s, infer_s
        self._channels: dict[int, Any] = {}
        self._calls: set[Any] = set()
        self._stopped = False
        self._lock = threading.Lock()

    def server(self) -> Server:
        """Return what the server says of itself."""
        said = self._ask("ServerMetadata")
        return server_of({"name": said.name, "version": said.version, "extensions": list(said.extensions)})

    def ready(self) -> bool:
        """Return whether the model is ready."""
        try:
            return bool(self._ask("ModelReady", name=self._address.model, version=self._address.version or "").ready)
        except Refused as refused:
            if refused.access:
                raise
            return False

    def model(self) -> Model:
        """Return what the server says of the model."""
        said = self._ask("ModelMetadata", name=self._address.model, version=self._address.version or "")
        lists = {
            key: [{"name": entry.name, "datatype": entry.datatype, "shape": list(entry.shape)} for entry in entries]
            for key, entries in (("inputs", said.inputs[:MAX_TENSORS]), ("outputs", said.outputs[:MAX_TENSORS]))
        }
        return model_of({"versions": list(said.versions), **lists})

    def register(self, region: str, key: str, size: int) -> None:
        """Make a piece of POSIX shared memory known to the server."""
        self._ask("SystemSharedMemoryRegister", name=region, key=key, offset=0, byte_size=size)

    def unregister(self, region: str) -> None:
        """Take it back."""
        kinds = messages()
        request = kinds.SystemSharedMemoryUnregisterRequest(name=region)
        limit_s = min(self._ask_s, FAREWELL_S) if self._stopped else self._ask_s
        response = kinds.SystemSharedMemoryUnregisterResponse
        self._call("SystemSharedMemoryUnregister", request, response, limit_s, 0, farewell=True)

    def infer(self, given: Sequence[Given], wanted: Sequence[Wanted], *, binary: bool) -> Reply:
        """Run the model once. Numbers always travel as they lie in memory: the protocol's gRPC has that in its core."""
        kinds = messages()
        inline = [entry for entry in given if entry.place is None]
        size = sum(entry.array.nbytes for entry in inline)
        if size + MAX_WORDS_BYTES > _MAX_MESSAGE_BYTES:
            message = f"{self._address.model} would be sent {size} bytes at once, over gRPC's {_MAX_MESSAGE_BYTES}"
            raise ConfigError("network-failed", message, hint="HTTP (triton://) sends more")
        request = kinds.ModelInferRequest(
            model_name=self._address.model,
            model_version=self._address.version or "",
            inputs=[
                kinds.InferInputTensor(
                    name=entry.name,
                    datatype=DATATYPES[entry.array.dtype.name],
                    shape=entry.array.shape,
                    parameters=_shared(entry.place),
                )
                for entry in given
            ],
            outputs=[
                kinds.InferRequestedOutputTensor(name=entry.tensor.name, parameters=_shared(entry.place))
                for entry in wanted
            ],
            raw_input_contents=[entry.array.tobytes() for entry in inline],
        )
        limit = sum(entry.limit for entry in wanted if entry.place is None)
        return _reply(self._call("ModelInfer", request, kinds.ModelInferResponse, self._infer_s, limit), wanted)

    def stop(self) -> None:
        """End what is in flight at once, and refuse what comes after it."""
        with self._lock:
            self._stopped = True
            calls = list(self._calls)
        for call in calls:
            call.cancel()

    def close(self) -> None:
        """Give the connections back."""
        with self._lock:
            channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            channel.close()

    def _ask(self, method: str, **said: Any) -> Any:
        kinds = messages()
        request = getattr(kinds, f"{method}Request")(**said)
        return self._call(method, request, getattr(kinds, f"{method}Response"), self._ask_s, 0)

    def _call(
        self, method: str, request: Any, response: Any, limit_s: float, limit_bytes: int, *, farewell: bool = False
    ) -> Any:
        grpc = self._grpc
        if self._stopped and not farewell:
            raise Lost("it was stopped")
        method_called = self._channel(limit_bytes).unary_unary(
            f"{_SERVICE}{method}",
            request_serializer=_written,
            response_deserializer=_reader(response),
        )
        headers = (("authorization", f"Bearer {self._token}"),) if self._token else ()
        try:
            call = method_called.future(request, timeout=limit_s, metadata=headers)
        except grpc.RpcError as error:
            raise self._explained(error, limit_s) from None
        with self._lock:
            self._calls.add(call)
            late = self._stopped and not farewell
        try:
            if late:
                raise Lost("it was stopped")
            return call.result()
        except grpc.FutureCancelledError:
            raise Lost("it was stopped") from None
        except grpc.RpcError as error:
            raise self._explained(error, limit_s) from None
        finally:
            # Nothing where it has ended; an interrupted thread leaves none behind.
            call.cancel()
            with self._lock:
                self._calls.discard(call)

    def _explained(self, error: Any, limit_s: float) -> Exception:
        codes, code = self._grpc.StatusCode, error.code()
        text = str(error.details() or "")
        # A server may repeat what it was sent.
        text = plain(text.replace(self._token, "***") if self._token else text)
        if code == codes.DEADLINE_EXCEEDED:
            return Late(f"no whole answer within {limit_s:g} s")
        if code == codes.UNAVAILABLE:
            if "CERTIFICATE_VERIFY_FAILED" in text:
                message = f"{self._address.server} shows a certificate that is not trusted"
                return UnavailableError("bad-certificate", message, hint="the server's CA must be known here")
            return Lost(text)
        if code == codes.INTERNAL and "deserializing response" in text:
            return ConfigError("bad-reply", "the server's answer is no message of the protocol")
        access = code in (codes.UNAUTHENTICATED, codes.PERMISSION_DENIED)
        return Refused(f"{code.name}: {text}", access=access)

    def _channel(self, limit_bytes: int) -> Any:
        """Return a connection that takes answers of at most about `limit_bytes`: no server makes us hold more."""
        # Few connections for many sizes: the limit is a power of two.
        limit = min(1 << max(limit_bytes + MAX_WORDS_BYTES - 1, 1).bit_length(), _MAX_MESSAGE_BYTES)
        with self._lock:
            if limit not in self._channels:
                self._channels[limit] = self._open(limit)
            return self._channels[limit]

    def _open(self, limit: int) -> Any:
        options = [
            ("grpc.max_receive_message_length", limit),
            ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
            # Images go to the server that the caller allowed: no proxy, no redirection by a name server's configuration.
            ("grpc.enable_http_proxy", 0),
            ("grpc.service_config_disable_resolution", 1),
            ("grpc.enable_retries", 0),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            # Each session has its own connection, with its own token.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        host = self._address.host
        target = f"ipv6:{self._address.server}" if ":" in host else f"dns:///{self._address.server}"
        if not self._address.tls:
            return self._grpc.insecure_channel(target, options)
        credentials = self._grpc.ssl_channel_credentials(root_certificates=self._roots)
        return self._grpc.secure_channel(target, credentials, options)


def _written(message: Any) -> bytes:
    content: bytes = message.SerializeToString()
    return content


def _reader(kind: Any) -> Callable[[bytes], Any]:
    return lambda content: kind.FromString(content)


def _shared(place: Place | None) -> list[Any]:
    if place is None:
        return []
    kinds = messages()
    said: Mapping[str, Mapping[str, Any]] = {
        "shared_memory_region": {"string_param": place.region},
        "shared_memory_offset": {"int64_param": place.offset},
        "shared_memory_byte_size": {"int64_param": place.size},
    }
    return [kinds.Parameter(key=key, value=kinds.InferParameter(**value)) for key, value in said.items()]


def _reply(said: Any, wanted: Sequence[Wanted]) -> Reply:
    if len(said.outputs) > MAX_TENSORS:
        bad_reply(f"holds {len(said.outputs)} outputs")
    asked = {entry.tensor.name: entry for entry in wanted}
    raw, most = list(said.raw_output_contents), _BYTES_PER_BYTE * said.ByteSize()
    outputs: dict[str, NDArray[Any]] = {}
    for entry in said.outputs:
        if entry.name not in asked or entry.name in outputs:
            bad_reply(f"holds an output that was not asked for, or one twice: {plain(entry.name, 60)}")
        want = asked[entry.name]
        array = array_for(want, entry.datatype, list(entry.shape), most)
        outputs[entry.name] = array
        if want.place is not None:
            continue
        if raw and len(raw[0]) == array.nbytes:
            numbers = np.frombuffer(raw.pop(0), array.dtype)
        elif not raw and array.dtype.name in _CONTENTS:
            numbers = np.array(getattr(entry.contents, _CONTENTS[array.dtype.name]), array.dtype)
        else:
            held = f"{len(raw[0])} bytes" if raw else "nothing"
            bad_reply(f"holds {held} of {want.tensor.name}, where its shape makes {array.nbytes}")
        if numbers.size != array.size:
            bad_reply(f"holds {numbers.size} numbers of {want.tensor.name}, where its shape makes {array.size}")
        array[...] = numbers.reshape(array.shape)
    if missing := asked.keys() - outputs.keys():
        bad_reply(f"lacks {', '.join(sorted(missing))}")
    return Reply(plain(said.model_version, 60), outputs)
