"""Who may use a page that is served at 127.0.0.1: whoever has its address, and no other site."""

import secrets

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# A navigation that this page begins is of the same site, so that the browser sends its cookie.
_ENTER = '<!doctype html><meta http-equiv="refresh" content="0; url=/"><title>DCLIP</title>'


class Access:
    """Lets requests through to an ASGI application, or refuses them.

    A request must name this machine as its Host, so that no name of another site leads here. The
    address with the token is answered with a cookie; everything else needs the cookie, must not
    come from another site and, if it opens a socket, must come from this page.
    """

    def __init__(self, app: ASGIApp, port: int, token: str) -> None:
        """Makes a new cookie.

        Args:
            app: what is served.
            port: where it is served.
            token: which the address ends with.
        """
        self._app, self._token, self._cookie_value = app, token, secrets.token_urlsafe()
        shown = "" if port == 80 else f":{port}"  # browsers leave out http's own
        self._hosts = [name + shown for name in ("127.0.0.1", "localhost")]
        self._cookie_name = f"dclip_{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a request, as ASGI says."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        request, refused = HTTPConnection(scope), 403
        if request.headers.getlist("host") not in [[host] for host in self._hosts]:
            reply: Response | None = PlainTextResponse("Expected this machine as Host.", refused)
        elif scope["type"] == "websocket":
            reply = None if self._is_own_socket(request) else PlainTextResponse("", refused)
        else:
            reply = self._reply(request, scope["method"])
        if reply is None:
            await self._app(scope, receive, self._with_headers(send, request.headers["host"]))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # before it was accepted: a 403
        else:
            host = request.headers.get("host", self._hosts[0])
            await reply(scope, receive, self._with_headers(send, host))

    def _is_own_socket(self, request: HTTPConnection) -> bool:
        origin = f"http://{request.headers['host']}"
        return request.headers.getlist("origin") == [origin] and self._has_cookie(request)

    def _has_cookie(self, request: HTTPConnection) -> bool:
        return _equal(request.cookies.get(self._cookie_name, ""), self._cookie_value)

    def _reply(self, request: HTTPConnection, method: str) -> Response | None:
        """The answer to a page's request; None if the application may give it."""
        if method not in ("GET", "HEAD"):
            return PlainTextResponse("Expected GET.", 405)
        if request.url.path == "/" and "token" in request.query_params:
            if not _equal(request.query_params["token"], self._token):
                return PlainTextResponse("Expected the token that was printed.", 403)
            reply = HTMLResponse(_ENTER)
            reply.set_cookie(
                self._cookie_name, self._cookie_value, httponly=True, samesite="strict"
            )
            return reply
        # Browsers say where a request comes from; other programs do not.
        if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return PlainTextResponse("Expected a request of this page.", 403)
        if not self._has_cookie(request):
            return PlainTextResponse("Open the whole address that the command has printed.", 403)
        return None

    def _with_headers(self, send: Send, host: str) -> Send:
        """Sends what a browser may do with the page: nothing that leads out of it."""
        policy = {
            "default-src": "'none'",
            "script-src": "'self'",
            "style-src": "'self'",
            "img-src": "blob: data:",
            "connect-src": f"ws://{host}" if host in self._hosts else "'none'",
            "base-uri": "'none'",
            "form-action": "'none'",
            "frame-ancestors": "'none'",
        }
        headers = Headers(
            {
                "Content-Security-Policy": "; ".join(f"{name} {policy[name]}" for name in policy),
                "Cache-Control": "no-store",
                "Cross-Origin-Opener-Policy": "same-origin",
                "Cross-Origin-Resource-Policy": "same-origin",
                "Referrer-Policy": "no-referrer",
                "X-Content-Type-Options": "nosniff",
            }
        )

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *headers.raw]
            await send(message)

        return send_with_headers


def _equal(given: str, expected: str) -> bool:
    return secrets.compare_digest(given.encode(), expected.encode())
