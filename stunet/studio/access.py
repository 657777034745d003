"""Refuses requests from other web pages, for other host names, or without the password.

A page of another site can make a visitor's browser send requests to the studio (cross-site request
forgery), or let its own host name resolve to the studio's address (DNS rebinding). The headers
`Host`, `Origin` and `Sec-Fetch-Site`, which pages cannot forge, reveal both.
"""

import base64
import dataclasses
import hmac
import ipaddress
import os
import re
import stat
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any, NamedTuple

from stunet.errors import UserError
from stunet.files import read_text
from stunet.paths import is_remote, user_path

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")

_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::\d+)?", re.IGNORECASE)  # with a port
Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]  # of ASGI, Python's interface of servers

# Browsers refuse to show the page, or to use its files, within a page of another site.
_RESPONSE_HEADERS = (
    (b"content-security-policy", b"frame-ancestors 'self'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
)


class Credentials(NamedTuple):
    """Name and password that every request must contain (HTTP basic authentication)."""

    user: str
    password: str


class Refusal(NamedTuple):
    """Response to a refused request.

    Attributes:
      status: HTTP status code.
      reason: One line.
      headers: Further headers of the response.
    """

    status: int
    reason: str
    headers: tuple[tuple[bytes, bytes], ...] = ()


@dataclasses.dataclass(frozen=True)
class Access:
    """Who may use the page.

    Attributes:
      hosts: Host names and addresses in lower case, without ports and brackets, by which the page
        may be requested.
      any_address: Whether any IP address is accepted as well. Other sites cannot use addresses for
        DNS rebinding.
      credentials: Name and password. None requires none.
    """

    hosts: frozenset[str]
    any_address: bool = False
    credentials: Credentials | None = None

    def refusal(self, scope: Scope) -> Refusal | None:
        """Returns why an HTTP or WebSocket request is refused, or None.

        Args:
          scope: ASGI's description of the request.
        """
        host = _single(scope, b"host")
        name = _host_name(host)
        if name is None or not self._is_allowed(name):
            return Refusal(
                403,
                f"Host: {_quote(host)} is not a name of this studio, expected its address; "
                "--allow-host adds names",
            )
        origin = _single(scope, b"origin", default="")
        own = (f"http://{host}".lower(), f"https://{host}".lower())
        if origin is None or (origin and origin.lower() not in own):
            return Refusal(403, f"Origin: {_quote(origin)} is another site, expected {host}")
        if not _is_same_site(scope):
            return Refusal(403, f"Sec-Fetch-Site: another site, expected a request of {host}")
        if self.credentials is not None and not self._is_authorised(scope):
            challenge = (b"www-authenticate", b'Basic realm="stunet studio", charset="UTF-8"')
            return Refusal(401, "Authorization: expected name and password", (challenge,))
        return None

    def _is_allowed(self, name: str) -> bool:
        return name in self.hosts or (self.any_address and _is_address(name))

    def _is_authorised(self, scope: Scope) -> bool:
        scheme, _, token = (_single(scope, b"authorization") or "").partition(" ")
        try:
            found = base64.b64decode(token.strip(), validate=True)
        except ValueError:
            return False
        expected = ":".join(self.credentials).encode()
        return scheme.lower() == "basic" and hmac.compare_digest(found, expected)


def access_for(
    host: str, names: Collection[str] = (), credentials: Credentials | None = None
) -> Access:
    """Returns the rules for a server.

    Args:
      host: Name or address that the server listens on. Of a wildcard (0.0.0.0 or ::) any address of
        the machine is accepted, and its host name.
      names: Further host names, such as that of a proxy.
      credentials: Name and password. None requires none.

    Raises:
      UserError: A name is not a host name.
    """
    for name in names:
        if _host_name(name) != name.lower():
            raise UserError(f"--allow-host: {_quote(name)}, expected a host name without a port")
    is_wildcard = _is_address(host) and ipaddress.ip_address(host).is_unspecified
    own = os.uname().nodename if is_wildcard else host
    hosts = frozenset(name.lower() for name in (*LOOPBACK_HOSTS, own, *names))
    return Access(hosts, is_wildcard, credentials)


def is_loopback(host: str) -> bool:
    """Returns whether only programs on this machine can reach a host."""
    if _is_address(host):
        return ipaddress.ip_address(host).is_loopback
    return host.lower() == "localhost"


def open_page_warning(host: str, access: Access) -> str | None:
    """Returns a warning if other machines can use the page without a password, else None.

    Args:
      host: Name or address that the server listens on.
      access: The server's rules.
    """
    if is_loopback(host) or access.credentials is not None:
        return None
    return f"--host {host} without --auth: everyone who can reach this address can use the page"


def read_credentials(text: str) -> Credentials:
    """Parses the value of `--auth`, USER:FILE, and reads the password from the file.

    Raises:
      UserError: The value has another form, the file cannot be read or is empty, or other users of
        the machine can read it.
    """
    user, _, name = text.partition(":")
    if not user or not name:
        raise UserError(f"--auth: {_quote(text)}, expected USER:FILE (FILE contains the password)")
    path = user_path(name)
    if is_remote(path):
        raise UserError(f"--auth: {path}, expected a file on this machine")
    password = read_text(path).rstrip("\r\n")
    if not password or "\n" in password:
        lines = len(password.splitlines())
        raise UserError(f"--auth: {path} contains {lines} lines, expected one with the password")
    if stat.S_IMODE(path.stat().st_mode) & (stat.S_IRWXG | stat.S_IRWXO):
        raise UserError(
            f"--auth: other users can read {path}, expected a private file (chmod 600 {path})"
        )
    return Credentials(user, password)


class Guard:
    """ASGI application that passes on the requests that `Access` permits.

    Args:
      app: Application that receives them.
      access: The rules.
    """

    def __init__(self, app: App, access: Access):
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request, or the start and the end of the server."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        refusal = self._access.refusal(scope)
        if refusal is None:
            await self._app(scope, receive, _with_headers(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await refuse(send, refusal)


async def refuse(send: Send, refusal: Refusal) -> None:
    """Sends a refusal as a line of plain text."""
    headers = (
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"connection", b"close"),  # the rest of the request is not read
        *_RESPONSE_HEADERS,
        *refusal.headers,
    )
    start = {"type": "http.response.start", "status": refusal.status, "headers": headers}
    await send(start)
    await send({"type": "http.response.body", "body": f"{refusal.reason}\n".encode()})


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *_RESPONSE_HEADERS]}
        await send(message)

    return send_with_headers


def header(scope: Scope, name: bytes) -> list[str]:
    """Returns the values of a header of a request.

    Args:
      scope: ASGI's description of the request.
      name: Name of the header in lower case.
    """
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _single(scope: Scope, name: bytes, default: str | None = None) -> str | None:
    """Returns the value of a header; `default` if it is absent; None if it occurs repeatedly."""
    values = header(scope, name)
    return default if not values else values[0] if len(values) == 1 else None


def _host_name(host: str | None) -> str | None:
    """Returns the name or address in lower case, without port and brackets; None if invalid."""
    match = _HOST.fullmatch(host or "")
    return (match[1] or match[2]).lower() if match else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_same_site(scope: Scope) -> bool:
    """Returns whether a request is not caused by another site, as far as the browser tells.

    Browsers omit `Origin` from requests for images and videos. A link to the page is accepted.
    """
    if _single(scope, b"sec-fetch-site", "none") in ("same-origin", "none"):
        return True
    is_navigation = _single(scope, b"sec-fetch-dest") == "document"
    return is_navigation and scope.get("method") == "GET" and scope["path"] in ("", "/")


def _quote(value: str | None) -> str:
    return "missing or repeated" if value is None else repr(value[:80])
