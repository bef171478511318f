"""The way to a server over HTTP/1.1, by the standard library: connections that stay open, nothing copied that need not be.

No proxy is asked and no redirection followed: images go to the server that the caller allowed, or nowhere.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from mdcli.errors import ConfigError, DataError, UnavailableError
from mdcli.inference.engines.kserve_address import Address
from mdcli.inference.engines.kserve_protocol import (
    DATATYPES,
    FAREWELL_S,
    JSON_BYTES_PER_NUMBER,
    MAX_OUTPUT_BYTES,
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

T = TypeVar("T")

_HEADER = "Inference-Header-Content-Length"
_LATER = {HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT}
_ACCESS = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.PROXY_AUTHENTICATION_REQUIRED}


class Http:
    """A model on a server, over HTTP or HTTPS. See `Transport`.

    Args:
        address: the model.
        token: sent as a bearer token; None sends none.
        tls: what checks the server's certificate; None without TLS.
        connect_s: the longest that a connection may take.
        ask_s: the longest that an answer about the server or the model may take, whole.
        infer_s: the longest that an inference may take, the transfers included.
    """

    def __init__(
        self,
        address: Address,
        *,
        token: str | None,
        tls: ssl.SSLContext | None,
        connect_s: float,
        ask_s: float,
        infer_s: float,
    ) -> None:
        self._address, self._tls = address, tls
        self._connect_s, self._ask_s, self._infer_s = connect_s, ask_s, infer_s
        self._headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self._idle: list[http.client.HTTPConnection] = []
        self._used: set[socket.socket] = set()
        self._stopped = False
        self._lock = threading.Lock()
        version = f"/versions/{address.version}" if address.version else ""
        self._model = f"/v2/models/{address.model}{version}"

    def server(self) -> Server:
        """Return what the server says of itself."""
        return server_of(self._ask("GET", "/v2"))

    def ready(self) -> bool:
        """Return whether the model is ready."""
        try:
            self._exchange("GET", f"{self._model}/ready", [], {}, self._ask_s, _drain)
        except (Refused, Lost) as refused:
            # A model that is not ready is 400 or 404 with Triton and 503 or 400 elsewhere.
            if isinstance(refused, Lost) or refused.access:
                raise
            return False
        return True

    def model(self) -> Model:
        """Return what the server says of the model."""
        return model_of(self._ask("GET", self._model))

    def register(self, region: str, key: str, size: int) -> None:
        """Make a piece of POSIX shared memory known to the server."""
        said = {"key": key, "offset": 0, "byte_size": size}
        self._post(f"/v2/systemsharedmemory/region/{region}/register", said)

    def unregister(self, region: str) -> None:
        """Take it back."""
        limit_s = min(self._ask_s, FAREWELL_S) if self._stopped else self._ask_s
        path = f"/v2/systemsharedmemory/region/{region}/unregister"
        self._exchange("POST", path, [b"{}"], {"Content-Type": "application/json"}, limit_s, _drain, farewell=True)

    def infer(self, given: Sequence[Given], wanted: Sequence[Wanted], *, binary: bool) -> Reply:
        """Run the model once."""
        said = {
            "inputs": [_input(entry, binary) for entry in given],
            "outputs": [_output(entry, binary) for entry in wanted],
        }
        words = json.dumps(said, separators=(",", ":")).encode()
        parts: list[Any] = [words]
        headers = {"Content-Type": "application/json"}
        if binary:
            sent = [entry.array for entry in given if entry.place is None]
            parts += [array.reshape(-1).view(np.uint8).data for array in sent]
            headers = {"Content-Type": "application/octet-stream", _HEADER: str(len(words))}
        return self._exchange(
            "POST", f"{self._model}/infer", parts, headers, self._infer_s, lambda answer: _reply(answer, wanted)
        )

    def stop(self) -> None:
        """End what is in flight at once, and refuse what comes after it."""
        with self._lock:
            self._stopped = True
            for sock in self._used:
                _cut(sock)

    def close(self) -> None:
        """Give the connections back."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _ask(self, method: str, path: str) -> dict[str, Any]:
        return self._exchange(method, path, [], {}, self._ask_s, _words)

    def _post(self, path: str, said: Mapping[str, Any]) -> None:
        body = json.dumps(said).encode()
        self._exchange("POST", path, [body], {"Content-Type": "application/json"}, self._ask_s, _drain)

    def _exchange(
        self,
        method: str,
        path: str,
        parts: Sequence[Any],
        headers: Mapping[str, str],
        limit_s: float,
        read: Callable[[http.client.HTTPResponse], T],
        *,
        farewell: bool = False,
    ) -> T:
        """Send a request and return what `read` makes of the answer, or raise what happened to it.

        A farewell is sent after a stop, too.
        """
        with self._lock:
            idle = self._idle.pop() if self._idle else None
        if idle is not None:
            # A server closes what has been idle, and so the others too: a fresh connection tells whether it is there.
            with suppress(Lost):
                return self._once(idle, method, path, parts, headers, limit_s, read, farewell)
            self.close()
        connection = self._connect(min(self._connect_s, limit_s), farewell)
        return self._once(connection, method, path, parts, headers, limit_s, read, farewell)

    @contextmanager
    def _using(self, sock: socket.socket, farewell: bool) -> Iterator[None]:
        """Let `stop` cut a socket for as long as a thread waits for it.

        Raises:
            Lost: it is too late, and this is no farewell.
        """
        with self._lock:
            if self._stopped and not farewell:
                raise Lost("it was stopped")
            self._used.add(sock)
        try:
            yield
        finally:
            with self._lock:
                self._used.discard(sock)

    def _dial(self, limit_s: float, farewell: bool) -> socket.socket:
        """Return a connected socket. `socket.create_connection` would keep the one that it waits for to itself."""
        error = OSError("it has no address")
        found = socket.getaddrinfo(self._address.host, self._address.port, type=socket.SOCK_STREAM)
        for family, kind, protocol, _, where in found:
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(limit_s)
                # A request goes out in several writes; Nagle would hold the second back.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self._using(sock, farewell):
                    sock.connect(where)
            except OSError as failed:
                sock.close()
                error = failed
            except BaseException:
                sock.close()
                raise
            else:
                return sock
        raise error

    def _encrypted(self, sock: socket.socket, tls: ssl.SSLContext, farewell: bool) -> ssl.SSLSocket:
        try:
            wrapped = tls.wrap_socket(sock, server_hostname=self._address.host, do_handshake_on_connect=False)
        except BaseException:
            sock.close()
            raise
        try:
            with self._using(wrapped, farewell):
                wrapped.do_handshake()
        except BaseException:
            wrapped.close()
            raise
        return wrapped

    def _connect(self, limit_s: float, farewell: bool) -> http.client.HTTPConnection:
        host, port = self._address.host, self._address.port
        kind = http.client.HTTPConnection if self._tls is None else http.client.HTTPSConnection
        connection = kind(host, port)
        try:
            sock = self._dial(limit_s, farewell)
            connection.sock = sock if self._tls is None else self._encrypted(sock, self._tls, farewell)
        except ssl.SSLCertVerificationError as error:
            message = f"{self._address.server} shows a certificate that is not trusted: {plain(error.verify_message)}"
            raise UnavailableError("bad-certificate", message, hint="the server's CA must be known here") from error
        except ssl.SSLError as error:
            raise UnavailableError(
                "no-server", f"{self._address.server} speaks no TLS: {plain(error.reason)}"
            ) from error
        except OSError as error:
            raise Lost(plain(error.strerror or error)) from None
        return connection

    def _once(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        parts: Sequence[Any],
        headers: Mapping[str, str],
        limit_s: float,
        read: Callable[[http.client.HTTPResponse], T],
        farewell: bool,
    ) -> T:
        length = {"Content-Length": str(sum(len(part) for part in parts))} if parts else {}
        keep = False
        try:
            with self._using(connection.sock, farewell), _deadline(connection, limit_s):
                broken = False
                try:
                    connection.request(method, path, list(parts) or None, {**self._headers, **length, **headers})
                except (BrokenPipeError, ConnectionResetError):
                    # It may have said why before it had read everything.
                    broken = True
                answer = connection.getresponse()
                if answer.status != HTTPStatus.OK:
                    self._refuse(answer)
                if answer.length is None and not answer.chunked:
                    # Also what is left of an answer that ended in its headers.
                    raise Lost("it does not say how long its answer is")
                found = read(answer)
                keep = answer.isclosed() and not answer.will_close and not broken
        except TimeoutError:
            raise Late(f"no whole answer within {limit_s:g} s") from None
        except (OSError, http.client.IncompleteRead) as error:
            raise Lost(plain(getattr(error, "strerror", None) or type(error).__name__)) from None
        except http.client.HTTPException as error:
            bad_reply(f"is no HTTP: {plain(error, 80) or type(error).__name__}")
        finally:
            if keep:
                with self._lock:
                    self._idle.append(connection)
            else:
                connection.close()
        return found

    def _refuse(self, answer: http.client.HTTPResponse) -> NoReturn:
        status = f"{answer.status} {plain(answer.reason, 60)}".strip()
        if answer.status in _LATER:
            raise Lost(f"it answers {status}")
        body = answer.read(MAX_WORDS_BYTES)
        try:
            said = json.loads(body)
            text = said["error"] if isinstance(said["error"], str) else body.decode(errors="replace")
        except (ValueError, RecursionError, KeyError, TypeError):
            text = body.decode(errors="replace")
        token = self._headers.get("Authorization", "").removeprefix("Bearer ")
        # A server may repeat what it was sent.
        text = plain(text.replace(token, "***") if token else text)
        raise Refused(
            f"{status}: {text}" if text else status,
            access=answer.status in _ACCESS,
        )


def tls_context(roots: bytes | None) -> ssl.SSLContext:
    """Return what checks a server's name and certificate.

    Args:
        roots: the certificates (PEM) that it must lead to; None takes the system's.

    Raises:
        ConfigError: `bad-ca-file`.
    """
    try:
        return ssl.create_default_context(cadata=None if roots is None else roots.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(
            "bad-ca-file", "the file with the server's CA holds no certificate that can be read"
        ) from error


def _cut(sock: socket.socket) -> None:
    """End a connection that another thread waits for."""
    with suppress(OSError):
        # Not SSLSocket's own: it would take the connection from under the reader's feet.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


@contextmanager
def _deadline(connection: http.client.HTTPConnection, limit_s: float) -> Iterator[None]:
    """End an exchange after `limit_s`, however little the server sends at a time.

    A socket's own limit holds for each piece that it waits for.

    Raises:
        TimeoutError: the time was over.
    """
    sock, over = connection.sock, threading.Event()
    sock.settimeout(limit_s)

    def end() -> None:
        over.set()
        _cut(sock)

    timer = threading.Timer(limit_s, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except Exception:
        # A cut connection shows as anything, down to JSON that ends early.
        if over.is_set():
            raise TimeoutError from None
        raise
    finally:
        timer.cancel()


def _input(given: Given, binary: bool) -> dict[str, Any]:
    array = given.array
    said: dict[str, Any] = {
        "name": given.name,
        "shape": list(array.shape),
        "datatype": DATATYPES[array.dtype.name],
    }
    if given.place is not None:
        return {**said, "parameters": _shared(given.place)}
    if binary:
        return {**said, "parameters": {"binary_data_size": array.nbytes}}
    if not np.isfinite(array).all():
        raise DataError("nan-in-input", f"input {given.name} holds NaN or inf, which JSON has no word for")
    return {**said, "data": array.reshape(-1).tolist()}


def _output(wanted: Wanted, binary: bool) -> dict[str, Any]:
    if wanted.place is not None:
        return {"name": wanted.tensor.name, "parameters": _shared(wanted.place)}
    return {"name": wanted.tensor.name, **({"parameters": {"binary_data": True}} if binary else {})}


def _shared(place: Place) -> dict[str, Any]:
    return {
        "shared_memory_region": place.region,
        "shared_memory_offset": place.offset,
        "shared_memory_byte_size": place.size,
    }


def _drain(answer: http.client.HTTPResponse) -> None:
    answer.read(MAX_WORDS_BYTES)


def _words(answer: http.client.HTTPResponse) -> dict[str, Any]:
    return _object(_all(answer, MAX_WORDS_BYTES))


def _all(answer: http.client.HTTPResponse, limit: int) -> bytes:
    """Return the whole body, of at most `limit` bytes."""
    if answer.length is not None and answer.length > limit:
        bad_reply(f"has {answer.length} bytes, over {limit}")
    body = answer.read(limit + 1)
    if len(body) > limit:
        bad_reply(f"has over {limit} bytes")
    if answer.length:
        raise Lost("the answer ended early")
    return body


def _object(words: bytes | bytearray) -> dict[str, Any]:
    try:
        said = json.loads(words)
    except (ValueError, RecursionError):
        bad_reply("is no JSON")
    if not isinstance(said, dict):
        bad_reply("is no JSON object")
    return said


def _fill(answer: http.client.HTTPResponse, view: memoryview) -> None:
    """Read straight into memory until it is full."""
    while view:
        count = answer.readinto(view)
        if not count:
            raise Lost("the answer ended early")
        view = view[count:]


def _reply(answer: http.client.HTTPResponse, wanted: Sequence[Wanted]) -> Reply:
    length = answer.getheader(_HEADER)
    if length is None:
        numbers = sum(entry.limit // np.dtype(entry.tensor.dtype).itemsize for entry in wanted)
        said = _object(_all(answer, min(MAX_WORDS_BYTES + JSON_BYTES_PER_NUMBER * numbers, MAX_OUTPUT_BYTES)))
    else:
        if not re.fullmatch(r"\d{1,9}", length) or int(length) > MAX_WORDS_BYTES:
            bad_reply(f"has a header of {plain(length, 20)} bytes, over {MAX_WORDS_BYTES} or no number")
        words = bytearray(int(length))
        _fill(answer, memoryview(words))
        said = _object(words)
    entries = said.get("outputs")
    if not isinstance(entries, list) or len(entries) > MAX_TENSORS:
        bad_reply("holds no list of outputs")
    asked = {entry.tensor.name: entry for entry in wanted}
    outputs = {}
    for entry in entries:
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or name not in asked or name in outputs:
            bad_reply(f"holds an output that was not asked for, or one twice: {plain(name, 60)}")
        outputs[name] = _received(answer, asked[name], entry)
    if missing := asked.keys() - outputs.keys():
        bad_reply(f"lacks {', '.join(sorted(missing))}")
    if answer.read(1):
        bad_reply("is longer than it says")
    version = said.get("model_version")
    return Reply(plain(version, 60) if isinstance(version, str) else "", outputs)


def _received(answer: http.client.HTTPResponse, wanted: Wanted, said: Mapping[str, Any]) -> NDArray[Any]:
    """Return an output, read from where the answer is now."""
    left = wanted.limit if answer.length is None else min(wanted.limit, answer.length)
    parameters = said.get("parameters") or {}
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    data = said.get("data")
    if wanted.place is None and size is None:
        # The numbers are here already: as many as the list holds.
        left = wanted.limit
    array = array_for(wanted, said.get("datatype"), said.get("shape"), left)
    if wanted.place is not None:
        return array
    if size is not None:
        if size != array.nbytes:
            bad_reply(f"holds {plain(size, 20)} bytes of {wanted.tensor.name}, where its shape makes {array.nbytes}")
        if array.nbytes:
            _fill(answer, array.reshape(-1).view(np.uint8).data)
        return array
    try:
        with np.errstate(over="ignore"):
            numbers = np.array(data, array.dtype)
    except (ValueError, TypeError, OverflowError):
        bad_reply(f"holds no numbers for {wanted.tensor.name}")
    if numbers.size != array.size:
        bad_reply(f"holds {numbers.size} numbers of {wanted.tensor.name}, where its shape makes {array.size}")
    array[...] = numbers.reshape(array.shape)
    return array
