"""Who may connect: requests of the page itself, under a name of this computer or with the token."""

import secrets
from collections.abc import Collection
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN_PATHS = ("/page/",)  # the code of the page, which is public
HEADERS = {
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self' ws://{host} wss://{host}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Guard:
    """Refuses requests with status 403, a WebSocket before it is accepted.

    ``hosts``: names in the Host header, without the port; None for any. That refuses a foreign name that resolves to
    this computer (DNS rebinding). An Origin header has to be that of the page itself, so that no other site's script
    connects. ``token``: in the query of the page and of the connection; None for none.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None, token: str | None):
        self.app, self.hosts, self.token = app, hosts, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        host = Headers(scope=scope).get("host", "")
        refusal = self._refusal(scope, host)
        if refusal is None:
            await self.app(scope, receive, with_headers(send, host))
        elif scope["type"] == "http":
            await Response(refusal, 403)(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008, "reason": refusal})

    def _refusal(self, scope: Scope, host: str) -> str | None:
        if self.hosts is not None and hostname(host) not in self.hosts:
            return "wrong Host header: open the address that the server printed"
        origin = Headers(scope=scope).get("origin")
        if origin is not None and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
            return "wrong Origin header: only the server's own page may connect"
        if self.token is not None and not scope["path"].startswith(OPEN_PATHS):
            given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
            if not secrets.compare_digest(given.encode(), self.token.encode()):
                return "wrong token: open the address that the server printed"
        return None


def hostname(host: str) -> str | None:
    """The name in a Host header, without the port."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def with_headers(send: Send, host: str) -> Send:
    """Adds the headers of a page that loads nothing from other hosts."""

    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(HEADERS | {"Content-Security-Policy": POLICY.format(host=host)})
        await send(message)

    return wrapped
