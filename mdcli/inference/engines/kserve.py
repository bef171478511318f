"""Models on a server of the KServe v2 protocol (Triton, MLServer, KServe): HTTP or gRPC, shared memory on one machine.

A server's model is known by its name and its version: its bytes are never seen, so nothing here vouches for them.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mdcli.errors import ConfigError, MissingError, UnavailableError, UsageError
from mdcli.inference.engines import Session, Tensor, misfit
from mdcli.inference.engines.kserve_address import Address, parse_address
from mdcli.inference.engines.kserve_memory import Region, Regions, aligned, offered
from mdcli.inference.engines.kserve_protocol import (
    BINARY,
    DATATYPES,
    SHARED_MEMORY,
    Given,
    Late,
    Lost,
    Place,
    Refused,
    Reply,
    Transport,
    Wanted,
    fits,
    shown,
)

T = TypeVar("T")

PROTOCOL = "v2"
# What comes between one try and the next, in seconds: a server that restarts is back within these.
PAUSES_S = (0.25, 0.5, 1.0, 2.0, 4.0)
CONNECT_S, ASK_S, INFER_S = 10.0, 10.0, 600.0
# A bearer token's signs (RFC 6750, 2.1): nothing that ends a header line.
_TOKEN_SIGNS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~+/=")


class KServe:
    """Models on a server. It says itself what it runs them on."""

    def identity(self, device: str) -> dict[str, str]:
        """Return what decides the numbers as far as it is known without asking: the server is in the card's address."""
        return {"engine": "kserve", "version": PROTOCOL, "precision": "the server's", "device": "the server's"}

    def open(
        self, network: Path | str, *, device: str, threads: int, options: Mapping[str, Any] | None = None
    ) -> Session:
        """Reach a model. See `Engine.open`.

        Args:
            network: `triton://HOST:PORT/MODEL[/VERSION]`. The caller has asked `check_server` about it.
            device: not used; the server's matter.
            threads: not used.
            options: `token`: sent as a bearer token, to another machine with TLS only. `ca_file`: path of the certificates (PEM)
                that the server's must lead to, in place of the system's. `timeout_s`: the longest that one inference may take.
                `shared_memory`: False never uses it.

        Raises:
            ConfigError: `bad-address`, `credentials-in-address`, `bad-token`, `token-without-tls`, `bad-ca-file`, `server-refused`;
                `bad-network` where the server has no such model; `bad-reply`.
            MissingError: `no-ca-file`.
            UnavailableError: `no-server`, `bad-certificate`, `model-not-ready`, `no-engine`.
        """
        address, said = parse_address(str(network)), options or {}
        return KServeSession(address, _transport(address, said), shared_memory=said.get("shared_memory") is not False)


def _transport(address: Address, options: Mapping[str, Any]) -> Transport:
    token, roots = _token(address, options.get("token")), _roots(options.get("ca_file"))
    infer_s = float(options.get("timeout_s") or INFER_S)
    if not 0 < infer_s <= threading.TIMEOUT_MAX:
        raise UsageError("bad-timeout", f"{infer_s:g} s is no time that a server can be given")
    if address.grpc:
        from mdcli.inference.engines.kserve_grpc import Grpc

        return Grpc(address, token=token, roots=roots, ask_s=ASK_S, infer_s=infer_s)
    from mdcli.inference.engines.kserve_http import Http, tls_context

    tls = tls_context(roots) if address.tls else None
    return Http(address, token=token, tls=tls, connect_s=CONNECT_S, ask_s=ASK_S, infer_s=infer_s)


def _token(address: Address, token: Any) -> str | None:
    if not token:
        return None
    if not isinstance(token, str) or not _TOKEN_SIGNS.issuperset(token):
        raise ConfigError("bad-token", "the token for the server holds signs that no bearer token has")
    if not address.tls and not address.loopback:
        message = f"the token would go to {address.server} in clear"
        raise ConfigError("token-without-tls", message, hint="tritons:// or triton+grpcs:// encrypts the connection")
    return token


def _roots(ca_file: Any) -> bytes | None:
    if not ca_file:
        return None
    path = Path(ca_file)
    if not path.is_file():
        raise MissingError("no-ca-file", f"there is no file {path.name} with the server's CA")
    content = path.read_bytes()
    if b"-----BEGIN CERTIFICATE-----" not in content:
        raise ConfigError("bad-ca-file", f"{path.name} holds no certificate in PEM")
    return content


@dataclass(frozen=True)
class _Layout:
    """Where the tensors of one run lie in a piece of shared memory: offsets by name, and all bytes."""

    inputs: Mapping[str, int]
    outputs: Mapping[str, int]
    size: int


class KServeSession:
    """A model on a server, ready to run. See `mdcli.inference.engines.Session`.

    Args:
        address: the model.
        transport: the way to it.
        shared_memory: use it where the server offers it and is on this machine.
        pauses_s: between one try and the next.
    """

    def __init__(
        self,
        address: Address,
        transport: Transport,
        *,
        shared_memory: bool = True,
        pauses_s: tuple[float, ...] = PAUSES_S,
    ) -> None:
        self._address, self._transport, self._pauses_s = address, transport, pauses_s
        self._stopped = threading.Event()
        regions = Regions(transport)
        # Also at the end of the process: the server must not keep what we shared.
        self._finalizer = weakref.finalize(self, _end, transport, regions)
        try:
            self._server = self._ask(transport.server)
            if not self._ask(transport.ready):
                raise self._not_ready()
            model = self._ask(transport.model)
        except BaseException:
            self._finalizer()
            raise
        self.inputs, self.outputs, self._versions = model.inputs, model.outputs, model.versions
        self._binary = address.grpc or BINARY in self._server.extensions
        shares = shared_memory and address.loopback and SHARED_MEMORY in self._server.extensions and offered()
        self._regions = regions if shares else None
        self._version = address.version or ""
        self._lock = threading.Lock()

    def run(self, feeds: Mapping[str, NDArray[Any]], out: Mapping[str, NDArray[Any] | None]) -> dict[str, NDArray[Any]]:
        """Run once. See `mdcli.inference.engines.Session.run`.

        A lost connection and a server that is busy or starting are tried again, a few times; what the server refuses is not.

        Raises:
            ConfigError: `network-does-not-fit`, `network-failed`, `bad-reply`, `server-refused`.
            DataError: `nan-in-input` where only JSON goes.
            UnavailableError: `no-server`, also after `stop`; `model-changed` where another version answers than before.
        """
        given = [Given(tensor.name, _feed(tensor, feeds)) for tensor in self.inputs]
        if unknown := feeds.keys() - {tensor.name for tensor in self.inputs}:
            raise misfit(f"the model has no input {', '.join(sorted(unknown))}; it has {_names(self.inputs)}")
        wanted = [self._wanted(name, array) for name, array in out.items()]
        try:
            reply = self._persist(lambda: self._once_ready(given, wanted))
        except Refused as refused:
            raise self._explained(refused, "network-failed") from None
        self._keep_version(reply.version)
        return reply.outputs

    def facts(self) -> dict[str, Any]:
        """Return what is known of what really runs: the server, the model's version, the way the numbers take."""
        way = "grpc" if self._address.grpc else "http"
        numbers = "shared memory" if self._regions else "binary" if self._binary else "json"
        return {
            **KServe().identity(""),
            "version": f"{self._server.name} {self._server.version}",
            "provider": self._server.name,
            "server": {"name": self._server.name, "version": self._server.version},
            "model": self._address.model,
            "model_version": self._version or ", ".join(self._versions),
            "transport": f"{way}, {'TLS, ' if self._address.tls else ''}{numbers}",
        }

    def stop(self) -> None:
        """End every run that is in flight at once, for good: those and all later ones raise `no-server`.

        For another thread, where a run was interrupted; not for a signal handler. `close` still has to follow.
        """
        self._stopped.set()
        self._transport.stop()

    def close(self) -> None:
        """Give back the connections and what is shared with the server."""
        self._finalizer()

    def _wanted(self, name: str, array: NDArray[Any] | None) -> Wanted:
        tensor = next((tensor for tensor in self.outputs if tensor.name == name), None)
        if tensor is None:
            raise misfit(f"the model has no output {name}; it has {_names(self.outputs)}")
        if tensor.dtype not in DATATYPES:
            raise misfit(f"the model's output {name} is {tensor.dtype}, which is no number")
        if array is not None and (array.dtype.name != tensor.dtype or not fits(tensor.shape, array.shape)):
            has, wants = f"{tensor.dtype} {shown(tensor.shape)}", f"{array.dtype.name} {array.shape}"
            raise misfit(f"the model makes {has} as {name}, where the card makes it {wants}")
        if array is not None and not array.flags.c_contiguous:
            raise ValueError(f"the array for {name} is not contiguous")
        return Wanted(tensor, array)

    def _once_ready(self, given: list[Given], wanted: list[Wanted]) -> Reply:
        try:
            return self._once(given, wanted)
        except Refused as refused:
            # A server that was started anew answers before it has loaded its models: that passes.
            if refused.access or self._transport.ready():
                raise
            raise Lost(f"its model {self._address.model} is not ready") from None

    def _once(self, given: list[Given], wanted: list[Wanted]) -> Reply:
        layout = _layout(given, wanted)
        region = self._region(layout)
        if region is not None and layout is not None and self._regions is not None:
            regions = self._regions
            try:
                reply = self._shared(region, layout, given, wanted)
            except Refused:
                # A server that was started anew does not know the piece: the numbers can still be sent.
                regions.drop(region)
            except BaseException:
                # It may still be written to: no other run may have it.
                regions.drop(region)
                raise
            else:
                regions.give(region)
                return reply
        return self._transport.infer(given, wanted, binary=self._binary)

    def _region(self, layout: _Layout | None) -> Region | None:
        """Return shared memory for a run; None where there is none, or the server does not take it: then never again."""
        if self._regions is None or layout is None:
            return None
        try:
            return self._regions.take(layout.size)
        except (Refused, OSError):
            # Another user's server, one in a container, a closed endpoint, a full /dev/shm.
            self._regions = None
            return None

    def _shared(self, region: Region, layout: _Layout, given: list[Given], wanted: list[Wanted]) -> Reply:
        inputs, outputs = [], []
        for entry in given:
            offset = layout.inputs[entry.name]
            region.array(offset, entry.array.shape, entry.array.dtype)[...] = entry.array
            inputs.append(Given(entry.name, entry.array, Place(region.name, offset, entry.array.nbytes)))
        for want in wanted:
            assert want.array is not None
            offset = layout.outputs[want.tensor.name]
            array = region.array(offset, want.array.shape, want.array.dtype)
            # What a server does not write must not be what the last run left.
            array[...] = np.nan if array.dtype.kind == "f" else 0
            outputs.append(Wanted(want.tensor, array, Place(region.name, offset, array.nbytes)))
        reply = self._transport.infer(inputs, outputs, binary=True)
        found = {}
        for want in wanted:
            assert want.array is not None
            want.array[...] = reply.outputs[want.tensor.name]
            found[want.tensor.name] = want.array
        return Reply(reply.version, found)

    def _keep_version(self, version: str) -> None:
        """Refuse that one image is worked on by two versions of a model."""
        with self._lock:
            if version and self._version and version != self._version:
                message = f"version {version} of {self._address.model} answers, where {self._version} did before"
                raise UnavailableError(
                    "model-changed", message, hint="triton://HOST:PORT/MODEL/VERSION in the card keeps to one version"
                )
            self._version = version or self._version

    def _ask(self, question: Callable[[], T]) -> T:
        try:
            return self._persist(question)
        except Refused as refused:
            raise self._explained(refused, "bad-network") from None

    def _persist(self, attempt: Callable[[], T]) -> T:
        """Return what an attempt gives, after as many as may help.

        Raises:
            UnavailableError: `no-server`.
        """
        server = self._address.server
        for pause_s in (*self._pauses_s, None):
            try:
                return self._tried(attempt)
            except Late as late:
                message = f"the server {server} hangs: {late}"
                raise UnavailableError("no-server", message) from None
            except Lost as lost:
                if pause_s is None:
                    message = f"the server {server} is not there, tried {len(self._pauses_s) + 1} times: {lost}"
                    raise UnavailableError("no-server", message) from None
                self._stopped.wait(pause_s)
        raise AssertionError

    def _tried(self, attempt: Callable[[], T]) -> T:
        try:
            if not self._stopped.is_set():
                return attempt()
        except Exception:
            # A connection that was cut shows as anything, down to JSON that ends early.
            if not self._stopped.is_set():
                raise
        raise UnavailableError("no-server", f"the run on the server {self._address.server} was stopped")

    def _explained(self, refused: Refused, code: str) -> ConfigError:
        server, model = self._address.server, self._address.model
        if refused.access:
            hint = "MD_TRITON_TOKEN holds the token that it is sent"
            return ConfigError("server-refused", f"the server {server} does not let us in: {refused}", hint=hint)
        if code == "bad-network":
            return ConfigError(code, f"the server {server} does not say what {model} is: {refused}")
        return ConfigError(code, f"{model} failed on the server {server}: {refused}")

    def _not_ready(self) -> UnavailableError:
        named = self._address.model + (f" version {self._address.version}" if self._address.version else "")
        message = f"the server {self._address.server} has no model {named} that is ready"
        return UnavailableError("model-not-ready", message, hint="is the name right, and has the server loaded it?")


def _end(transport: Transport, regions: Regions) -> None:
    with suppress(Lost, Late, Refused):
        regions.close()
    transport.close()


def _feed(tensor: Tensor, feeds: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    array = feeds.get(tensor.name)
    if array is None:
        raise misfit(f"the model wants an input {tensor.name}, and is given {', '.join(sorted(feeds)) or 'none'}")
    if array.dtype.name != tensor.dtype or not fits(tensor.shape, array.shape):
        has, gives = f"{tensor.dtype} {shown(tensor.shape)}", f"{array.dtype.name} {array.shape}"
        raise misfit(f"the model's input {tensor.name} is {has}, the card gives {gives}")
    return np.ascontiguousarray(array)


def _names(tensors: tuple[Tensor, ...]) -> str:
    return ", ".join(tensor.name for tensor in tensors)


def _layout(given: list[Given], wanted: list[Wanted]) -> _Layout | None:
    """Return where the tensors of a run lie in shared memory; None where the size of one is not known beforehand."""
    at, inputs, outputs = 0, {}, {}
    for entry in given:
        inputs[entry.name], at = at, at + aligned(entry.array.nbytes)
    for want in wanted:
        if want.array is None:
            return None
        outputs[want.tensor.name], at = at, at + aligned(want.array.nbytes)
    return _Layout(inputs, outputs, at)
