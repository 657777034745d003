"""Which requests reach the studio's page: host names, origins, passwords, and response headers."""

import asyncio
import base64

import pytest

from stunet.errors import UserError
from stunet.studio.access import (
    Credentials,
    Guard,
    access_for,
    is_loopback,
    open_page_warning,
    read_credentials,
)

LOCAL = "127.0.0.1:7860"


def send_request(app, method="GET", path="/", kind="http", **headers):
    """Sends one request to an ASGI application.

    Args:
      app: The application.
      method: HTTP method.
      path: Path of the URL.
      kind: "http" or "websocket".
      **headers: Value by name with "_" for "-"; several values in a tuple, None for an absent one.

    Returns:
      Status (None for a closed WebSocket), headers and body of the response.
    """
    headers = {"host": LOCAL, **headers}
    pairs = [
        (name.replace("_", "-").encode(), value.encode())
        for name, values in headers.items()
        if values is not None
        for value in (values if isinstance(values, tuple) else (values,))
    ]
    scope = {"type": kind, "method": method, "path": path, "headers": pairs}
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    if sent[0]["type"] == "websocket.close":
        return None, {}, b""
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], dict(sent[0]["headers"]), body


async def page(scope, receive, send):
    """Answers every request."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-page", b"1")]})
    await send({"type": "http.response.body", "body": b"page"})


def status(access, *arguments, **headers):
    code, _, body = send_request(Guard(page, access), *arguments, **headers)
    assert (body == b"page") == (code == 200)
    return code, body.decode()


@pytest.mark.parametrize(
    ("host", "accepted", "refused"),
    [
        (
            "127.0.0.1",
            ("127.0.0.1:7860", "localhost:7860", "LOCALHOST", "[::1]:7860"),
            ("evil.com:7860", "localhost.evil.com", "192.168.0.7:7860", "a@localhost", "", None),
        ),
        ("192.168.0.7", ("192.168.0.7:7860", "localhost"), ("192.168.0.8", "evil.com")),
        ("0.0.0.0", ("10.1.2.3:7860", "[2001:db8::1]:7860", "localhost"), ("evil.com",)),
        ("studio.lan", ("studio.lan:7860", "Studio.LAN"), ("evil.lan", "10.1.2.3")),
        ("127.0.0.1", (), (("127.0.0.1", "evil.com"),)),
    ],
)
def test_only_names_of_the_studio_are_accepted_as_host(host, accepted, refused):
    access = access_for(host)
    for name in accepted:
        assert status(access, host=name)[0] == 200, name
    for name in refused:
        code, line = status(access, host=name)
        assert code == 403 and line.startswith("Host: ") and line.count("\n") == 1, name
    assert status(access_for(host, ["proxy.lan"]), host="proxy.lan")[0] == 200
    assert status(access, kind="websocket", host="evil.com")[0] is None


def test_names_to_allow_are_host_names():
    for name in ("https://proxy.lan", "proxy.lan:80", "a b", ""):
        with pytest.raises(UserError, match="--allow-host: "):
            access_for("127.0.0.1", [name])


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
@pytest.mark.parametrize("path", ["/", "/gradio_api/upload", "/gradio_api/queue/data", "/config"])
def test_requests_of_other_origins_are_refused(method, path):
    access = access_for("127.0.0.1")
    assert status(access, method, path, origin=f"http://{LOCAL}")[0] == 200
    assert status(access, method, path, origin="https://localhost", host="localhost")[0] == 200
    others = ("http://evil.com", "null", "http://127.0.0.1:8000", "http://localhost:7860")
    for origin in (*others, "file://", f"ftp://{LOCAL}", (f"http://{LOCAL}", "http://evil.com")):
        code, line = status(access, method, path, origin=origin)
        assert code == 403 and line.startswith("Origin: "), origin
    assert status(access, method, path, "websocket", origin="http://evil.com")[0] is None


def test_other_sites_can_link_to_the_page_but_not_embed_its_files():
    access = access_for("127.0.0.1")
    link = {"sec_fetch_site": "cross-site", "sec_fetch_dest": "document"}
    assert status(access, "GET", "/", **link)[0] == 200
    assert status(access, "POST", "/", **link)[0] == 403
    assert status(access, "GET", "/gradio_api/file=x.mp4", **link)[0] == 403
    for site in ("cross-site", "same-site"):  # another port is the same site
        for dest in ("iframe", "image", "video", "script", "empty"):
            code, line = status(access, sec_fetch_site=site, sec_fetch_dest=dest)
            assert code == 403 and line.startswith("Sec-Fetch-Site: ")
    for site in ("none", "same-origin"):
        assert status(access, "GET", "/x", sec_fetch_site=site, sec_fetch_dest="video")[0] == 200


def test_responses_cannot_be_embedded_or_read_by_other_sites():
    guard = Guard(page, access_for("127.0.0.1"))
    for host, code in ((LOCAL, 200), ("evil.com", 403)):
        found, headers, _ = send_request(guard, host=host)
        assert found == code and (b"x-page" in headers) == (code == 200)
        assert headers[b"content-security-policy"] == b"frame-ancestors 'self'"
        assert headers[b"cross-origin-resource-policy"] == b"same-origin"
        assert b"access-control-allow-origin" not in headers


def basic(text):
    return f"Basic {base64.b64encode(text.encode()).decode()}"


def test_every_request_needs_the_password():
    access = access_for("127.0.0.1", credentials=Credentials("anna", "pa:ssé"))
    guard = Guard(page, access)
    assert status(access, authorization=basic("anna:pa:ssé"))[0] == 200
    assert status(access, authorization=basic("anna:pa:ssé").replace("Basic", "basic"))[0] == 200
    wrong = map(basic, ("anna:pass", "ben:pa:ssé", "anna:", "", "anna:pa:ssé "))
    for value in (None, "", "Basic", "Basic %", "Bearer x", "Basic é", *wrong):
        for path in ("/", "/gradio_api/upload", "/login", "/theme.css"):
            assert status(access, "GET", path, authorization=value)[0] == 401, value
    _, headers, body = send_request(guard)
    assert headers[b"www-authenticate"].startswith(b"Basic realm=")
    assert b"pa:ss" not in body and body.startswith(b"Authorization: ")


def test_the_password_is_in_a_private_file(tmp_path):
    path = tmp_path / "password"
    path.write_text("secret word\n")
    path.chmod(0o600)
    assert read_credentials(f"anna:{path}") == ("anna", "secret word")
    for mode in (0o640, 0o604):
        path.chmod(mode)
        with pytest.raises(UserError, match=rf"--auth: .*{path}.*chmod 600"):
            read_credentials(f"anna:{path}")
    path.chmod(0o600)
    for content, found in (("", "0 lines"), ("\n", "0 lines"), ("a\nb\n", "2 lines")):
        path.write_text(content)
        with pytest.raises(UserError, match=rf"--auth: {path} contains {found}"):
            read_credentials(f"anna:{path}")
    for value in ("anna", f":{path}", "anna:"):
        with pytest.raises(UserError, match=r"--auth: .*USER:FILE"):
            read_credentials(value)
    with pytest.raises(UserError, match="nowhere"):
        read_credentials(f"anna:{tmp_path / 'nowhere'}")


def test_loopback_addresses():
    assert all(map(is_loopback, ("127.0.0.1", "127.0.0.2", "::1", "localhost", "Localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.7", "studio.lan", "")))


def test_other_machines_without_a_password_are_a_warning():
    secret = Credentials("anna", "secret")
    assert "--host 0.0.0.0 without --auth" in open_page_warning("0.0.0.0", access_for("0.0.0.0"))
    assert open_page_warning("0.0.0.0", access_for("0.0.0.0", credentials=secret)) is None
    for host in ("127.0.0.1", "localhost", "::1"):
        assert open_page_warning(host, access_for(host)) is None
