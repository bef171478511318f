"""Where a server's model is, as a card says it, and which servers the caller allows.

An address is `triton://HOST:PORT/MODEL[/VERSION]` (HTTP), `triton+grpc://` (gRPC), and `tritons://`, `triton+grpcs://` with TLS.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from mdcli.errors import ConfigError, UsageError

# Scheme to (gRPC, TLS).
SCHEMES = {
    "triton": (False, False),
    "tritons": (False, True),
    "triton+grpc": (True, False),
    "triton+grpcs": (True, True),
}
_EXAMPLE = "triton://HOST:PORT/MODEL or triton://HOST:PORT/MODEL/VERSION"
# A letter or digit first: `..` is no model, and nothing in it needs escaping in a path.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,252})")


@dataclass(frozen=True)
class Address:
    """A model on a server.

    Attributes:
        host: name or IP address, lower case, without brackets.
        port: of TCP.
        model: its name on the server.
        version: None leaves it to the server.
        grpc: gRPC, else HTTP.
        tls: the connection is encrypted and the server's certificate checked.
    """

    host: str
    port: int
    model: str
    version: str | None
    grpc: bool
    tls: bool

    @property
    def server(self) -> str:
        """HOST:PORT, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether the server is this machine by its name alone; nothing is looked up."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def is_address(network: str) -> bool:
    """Say whether a card's `network` is a server's model, not a file."""
    return "://" in network


def parse_address(url: str) -> Address:
    """Return a server's model from its address.

    Raises:
        ConfigError: `credentials-in-address` where the address carries a user name or a password; `bad-address` for all else.
    """
    if not url.isprintable():
        # urlsplit drops tabs and line ends without a word.
        raise _bad("has signs that are in no address")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _bad("is no address") from None
    if "@" in parts.netloc:
        # The address itself is not repeated: it would put the secret into a log.
        message = "the address of the server carries a user name or a password"
        raise ConfigError(
            "credentials-in-address", message, hint="a token goes into MD_TRITON_TOKEN, never into a card"
        )
    if parts.scheme not in SCHEMES:
        raise _bad(f"begins with {parts.scheme[:20]!r}, which is none of {', '.join(SCHEMES)}")
    if parts.query or parts.fragment or "?" in url or "#" in url:
        raise _bad("has a query or a fragment")
    host = _host(parts)
    if port is None or port == 0:
        raise _bad("names no port")
    names = parts.path.split("/")[1:]
    if not 1 <= len(names) <= 2 or not all(_NAME.fullmatch(name) for name in names):
        raise _bad("names no model, or has more than a model and a version, or has signs that are in no name")
    grpc, tls = SCHEMES[parts.scheme]
    return Address(host, port, names[0], names[1] if len(names) == 2 else None, grpc, tls)


def _host(parts: SplitResult) -> str:
    host = (parts.hostname or "").removesuffix(".")
    try:
        return str(ipaddress.ip_address(host)) if ":" in host else _name(host)
    except ValueError:
        raise _bad("names no host") from None


def _name(host: str) -> str:
    if not _HOST.fullmatch(host):
        raise ValueError(host)
    return host.lower()


def _bad(what: str) -> ConfigError:
    return ConfigError("bad-address", f"the address of the server {what}", hint=_EXAMPLE)


def check_server(url: str, allowed: Collection[str]) -> None:
    """Refuse a server that the caller did not allow: a card alone must not send a patient's images to another machine.

    Args:
        url: the card's `network`.
        allowed: HOST or HOST:PORT, each as the caller said it. This machine (`localhost`, 127.0.0.0/8, ::1) needs none.

    Raises:
        ConfigError: `server-not-allowed`; `bad-address`, `credentials-in-address`.
        UsageError: `bad-server` where an allowed one is neither HOST nor HOST:PORT.
    """
    address = parse_address(url)
    servers = [_allowed(text) for text in allowed]
    if address.loopback or any(host == address.host and port in (None, address.port) for host, port in servers):
        return
    message = f"the model is on {address.server}: running it would send the images there"
    raise ConfigError("server-not-allowed", message, hint=f"--allow-server {address.server} allows it")


def _allowed(text: str) -> tuple[str, int | None]:
    try:
        host: str | None
        try:
            # An IPv6 address may stand without brackets where no port follows.
            host, port = str(ipaddress.IPv6Address(text)), None
        except ValueError:
            parts = urlsplit(f"//{text}")
            host, port = parts.hostname, parts.port
            if host is None or parts.netloc != text or "@" in text:
                raise ValueError(text) from None
            host = str(ipaddress.IPv6Address(host)) if ":" in host else _name(host.removesuffix("."))
    except ValueError:
        raise UsageError("bad-server", f"{text!r} is no server", hint="HOST or HOST:PORT") from None
    return host, port
