"""One HTTP request with nothing but urllib: bounded in time, whatever the server does, and careful with tokens.

Proxies are those of the environment (HTTPS_PROXY, NO_PROXY), as urllib reads them. A token goes to the origin
that it belongs to and to no other, also not after a redirect, and is in no message.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from typing import IO, Any, Self
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from plan_llama import __version__
from plan_llama.errors import ModelError, RemoteError

# Seconds without a byte, and for everything that one model needs.
QUIET_S = 15.0
TOTAL_S = 90.0
MAX_REDIRECTS = 5

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_URL_SAFE = "%/:=&?~#+!$,;'@()*[]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """A bearer token and the one origin (`https://host`, `https://host:port`) that may see it."""

    token: str = field(repr=False)
    origin: str


class Deadline:
    """A point in time that several requests share."""

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = TOTAL_S if seconds is None else seconds
        self._end = time.monotonic() + self.seconds

    def left(self) -> float:
        """Seconds until then; 0 or less where it is over."""
        return self._end - time.monotonic()

    def end(self) -> None:
        """Lets the other requests under it stop at their next byte."""
        self._end = 0.0


def origin(url: str) -> str:
    """Scheme, host and port of a URL, the default port left out. Raises ValueError where it has none."""
    parts = urlsplit(url)
    scheme, host, port = parts.scheme.lower(), (parts.hostname or "").lower(), parts.port
    if scheme not in ("http", "https") or not host:
        raise ValueError(url)
    default = 443 if scheme == "https" else 80
    return f"{scheme}://{host}" + ("" if port in (None, default) else f":{port}")


def shown(url: str) -> str:
    """A URL for messages: without what may be secret (a password, the query of a signed link)."""
    try:
        parts = urlsplit(url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    except ValueError:
        return "a URL that cannot be read"


def checked(url: str) -> str:
    """A URL as it can be requested. Raises ModelError for what is none, or holds a password."""
    try:
        parts = urlsplit(url)
        origin(url)
    except ValueError:
        raise ModelError(f"{shown(url)}: not a usable URL", hint="expected https://HOST/PATH") from None
    if "@" in parts.netloc:
        raise ModelError(
            f"{shown(url)}: a URL with a name or password in it is not requested", hint="leave it out"
        )
    return quote(urlunsplit(parts._replace(fragment="")), safe=_URL_SAFE)


class _Connections:
    """Opens one request and shuts its sockets down when the deadline is over, in whatever read they hang.

    A timeout of the socket alone would not do: a server that sends a byte now and then never reaches it.
    """

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline
        self._sockets: list[socket.socket] = []
        self._over = False
        self._timer = threading.Timer(max(0.0, deadline.left()), self._cut)
        self._timer.daemon = True

    def open(self, asked: urllib.request.Request, *, timeout: float) -> Any:
        """The answer, redirects not followed. Raises urllib's HTTPError for all that is not 2xx."""
        self._timer.start()
        opener = urllib.request.build_opener(_Plain(self), _Encrypted(self), _Unfollowed())
        return opener.open(asked, timeout=max(0.01, min(timeout, self._deadline.left())))

    def add(self, connection: http.client.HTTPConnection) -> None:
        """A connection that was made."""
        self._sockets.append(connection.sock)
        if self._over:
            self._cut()

    def close(self) -> None:
        """The request is over."""
        self._timer.cancel()

    def check(self, where: str) -> None:
        """Raises RemoteError where the time is over."""
        if self._over or self._deadline.left() <= 0:
            raise self._too_slow(where)

    @contextmanager
    def translated(self, where: str) -> Iterator[None]:
        """Whatever a connection can fail with becomes a RemoteError; HTTPError passes."""
        try:
            yield
        except urllib.error.HTTPError as error:
            if self._over:
                error.close()
                raise self._too_slow(where) from None
            raise
        except RemoteError:
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            if self._over or self._deadline.left() <= 0:
                raise self._too_slow(where) from None
            raise _unreachable(error, where) from None

    def _cut(self) -> None:
        self._over = True
        for connected in self._sockets:
            with suppress(OSError):  # closed already
                connected.shutdown(socket.SHUT_RDWR)

    def _too_slow(self, where: str) -> RemoteError:
        return RemoteError(
            f"{where}: the server is too slow, not done after {self._deadline.seconds:g} s",
            hint="try again, or download the model and give the file",
        )


def _unreachable(error: Exception, where: str) -> RemoteError:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    check = "check the network and the proxy (HTTPS_PROXY)"
    if isinstance(reason, TimeoutError):
        return RemoteError(f"{where}: the server does not answer", hint=check)
    if isinstance(reason, ssl.SSLCertVerificationError):
        text = reason.verify_message or "unknown reason"
        return RemoteError(
            f"{where}: the server's certificate is not trusted ({text})",
            hint="SSL_CERT_FILE names a file with the certificates to trust",
        )
    if isinstance(reason, http.client.HTTPException):
        return RemoteError(f"{where}: not an HTTP answer ({type(reason).__name__})", hint=check)
    text = (reason.strerror if isinstance(reason, OSError) else None) or type(reason).__name__
    if str(reason).startswith("Tunnel connection failed"):  # what http.client says of a proxy's refusal
        text = str(reason)[:100]
    return RemoteError(f"{where}: cannot be reached ({text})", hint=check)


class _Unfollowed(urllib.request.HTTPRedirectHandler):
    """Redirects are errors here: urllib would read their bodies without a bound and send the token on."""

    def http_error_302(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
    ) -> None:
        """Leaves the answer to urllib's default, which raises HTTPError."""

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


class _Plain(urllib.request.HTTPHandler):
    def __init__(self, connections: _Connections) -> None:
        super().__init__()
        self._connections = connections

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        made = self._connections

        class Watched(http.client.HTTPConnection):
            def connect(self) -> None:
                super().connect()
                made.add(self)

        return self.do_open(Watched, req)


class _Encrypted(urllib.request.HTTPSHandler):
    def __init__(self, connections: _Connections) -> None:
        super().__init__()
        self._connections = connections

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        made = self._connections

        class Watched(http.client.HTTPSConnection):
            def connect(self) -> None:
                super().connect()
                made.add(self)

        return self.do_open(Watched, req)


class Response:
    """An answer being read. Close it; what is left of the body is not read then."""

    def __init__(self, raw: http.client.HTTPResponse, connections: _Connections, where: str) -> None:
        self._raw = raw
        self._connections = connections
        self.where = where
        self.status = raw.status
        self.headers: Message = raw.headers

    def read(self, most: int) -> bytes:
        """Up to `most` bytes; fewer only where the body ends, rightly or not."""
        parts: list[bytes] = []
        left = most
        with self._connections.translated(self.where):
            while left > 0:
                part: bytes = self._raw.read1(min(left, 1 << 18))
                if not part:
                    break
                parts.append(part)
                left -= len(part)
                self._connections.check(self.where)
        self._connections.check(self.where)
        return b"".join(parts)

    def close(self) -> None:
        """Ends the connection."""
        self._connections.close()
        self._raw.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def request(
    url: str,
    *,
    deadline: Deadline,
    access: Access | None = None,
    headers: Mapping[str, str] | None = None,
    name: str | None = None,
) -> Response:
    """GET, following up to MAX_REDIRECTS redirects. Raises RemoteError for everything but a 2xx answer.

    `name` is what messages call it. A redirect to an unencrypted URL from an encrypted one is refused.
    """
    where = name or shown(url)
    sent = {"User-Agent": f"plan-llama/{__version__}", "Accept-Encoding": "identity", **(headers or {})}
    current = checked(url)
    for _ in range(MAX_REDIRECTS + 1):
        asked = urllib.request.Request(current, headers=sent)  # noqa: S310  checked: http and https only
        if access is not None and origin(current) == access.origin:
            asked.add_unredirected_header("Authorization", f"Bearer {access.token}")
        connections = _Connections(deadline)
        try:
            with connections.translated(where):
                raw = connections.open(asked, timeout=QUIET_S)
        except urllib.error.HTTPError as error:
            connections.close()
            error.close()  # the body of an error is not read
            if error.code not in _REDIRECTS:
                raise _refused(error.code, error.headers, where) from None
            current = _redirected(current, error.headers.get("Location", ""), where)
            continue
        except RemoteError:
            connections.close()
            raise
        response = Response(raw, connections, where)
        try:
            connections.check(where)  # a connection that was cut can look like one that ended
        except RemoteError:
            response.close()
            raise
        encoding = response.headers.get("Content-Encoding", "identity").lower()
        if encoding not in ("", "identity"):
            response.close()
            raise RemoteError(
                f"{where}: the server compresses the file ({encoding}), which was not asked for"
            )
        return response
    raise RemoteError(f"{where}: more than {MAX_REDIRECTS} redirects", status=302)


def _redirected(current: str, location: str, where: str) -> str:
    try:
        target = checked(urljoin(current, location)) if location else ""
    except (ValueError, ModelError):
        target = ""
    if not target:
        raise RemoteError(f"{where}: redirected to no usable URL ({shown(location)[:200]!r})", status=302)
    if current.lower().startswith("https:") and not target.lower().startswith("https:"):
        raise RemoteError(f"{where}: redirected to an unencrypted URL ({shown(target)[:200]})", status=302)
    return target


def _refused(status: int, headers: Message, where: str) -> RemoteError:
    """One line for an error status. Who knows the server better (the hub) says it again with better advice."""
    wait = str(headers.get("Retry-After", ""))
    wait = f"in {int(wait):,} s" if re.fullmatch(r"[0-9]{1,6}", wait) else "later"
    said = {
        401: ("wants a login", "download it with a program that has one, and give the file"),
        403: ("refuses access", "check the link: signed ones expire"),
        404: ("no such file", "check the URL"),
        407: ("the proxy wants a login", "put it into HTTPS_PROXY"),
        410: ("no such file any more", "check the URL"),
        416: ("the file is empty", "check the URL"),
        429: ("too many requests", f"try again {wait}"),
    }
    if status >= 500:
        what, hint = "the server has a problem", f"try again {wait}"
    else:
        what, hint = said.get(status, ("the server refuses the request", "check the URL"))
    code = str(headers.get("X-Error-Code", ""))[:80]
    return RemoteError(f"{where}: {what} (HTTP {status})", hint=hint, status=status, code=code, wait=wait)
