"""Who is let in to the page, and what a browser may do with it."""

from urllib.parse import quote

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from dclip_kit.widgets.access import Access

PORT, TOKEN = 8866, "a-token"
HOME = f"http://127.0.0.1:{PORT}"


def give(_):
    return PlainTextResponse("the page")


async def echo(socket) -> None:
    await socket.accept()
    await socket.send_text(await socket.receive_text())


@pytest.fixture
def visitor() -> TestClient:
    """Somebody's browser, which has no cookie yet."""
    app = Starlette(routes=[Route("/", give), WebSocketRoute("/socket", echo)])
    return TestClient(Access(app, PORT, TOKEN), base_url=HOME)


@pytest.fixture
def known(visitor) -> TestClient:
    """A browser that opened the address."""
    assert visitor.get(f"/?token={TOKEN}").status_code == 200
    return visitor


def talk(client, **headers: str) -> str:
    with client.websocket_connect(f"ws://127.0.0.1:{PORT}/socket", headers=headers) as socket:
        socket.send_text("hello")
        return socket.receive_text()


def test_the_address_is_exchanged_for_a_cookie(visitor) -> None:
    assert visitor.get("/").status_code == 403
    reply = visitor.get(f"/?token={TOKEN}")
    assert reply.status_code == 200 and "the page" not in reply.text
    cookie = reply.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and TOKEN not in cookie
    assert visitor.get("/").text == "the page"


@pytest.mark.parametrize("token", ["", "1234", TOKEN[:-1], f"{TOKEN}x", "é", "\ud800"])
def test_another_token_is_refused(token, visitor) -> None:
    given = quote(token, errors="surrogatepass")
    reply = visitor.get(f"/?token={given}")
    assert reply.status_code == 403 and "set-cookie" not in reply.headers


def test_a_cookie_is_of_one_start(known) -> None:
    """Another start of the app, with the same token even, has another cookie."""
    again = TestClient(Access(Starlette(), PORT, TOKEN), base_url=HOME, cookies=known.cookies)
    assert known.get("/").status_code == 200 and again.get("/").status_code == 403


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        f"evil.example:{PORT}",
        "127.0.0.1",
        "127.0.0.1:80",
        f"127.0.0.1:{PORT}.evil",
        "",
    ],
)
def test_other_names_of_this_machine_lead_nowhere(host, known) -> None:
    for path in ("/", f"/?token={TOKEN}"):
        assert known.get(path, headers={"host": host}).status_code == 403
    with pytest.raises(WebSocketDisconnect):
        talk(known, host=host, origin=f"http://{host}")
    assert known.get("/").status_code == 200


def test_localhost_is_this_machine(known) -> None:
    cookie = "; ".join(f"{name}={value}" for name, value in known.cookies.items())
    host = f"localhost:{PORT}"
    assert known.get("/", headers={"host": host, "cookie": cookie}).status_code == 200


def test_browsers_leave_out_the_usual_port() -> None:
    visitor = TestClient(Access(Starlette(), 80, TOKEN), base_url="http://127.0.0.1")
    assert visitor.get(f"/?token={TOKEN}").status_code != 403


@pytest.mark.parametrize("site", ["cross-site", "same-site", "nonsense"])
@pytest.mark.parametrize("mode", ["navigate", "no-cors"])
def test_other_sites_are_refused_even_with_the_cookie(site, mode, known) -> None:
    headers = {"sec-fetch-site": site, "sec-fetch-mode": mode}
    assert known.get("/", headers=headers).status_code == 403
    # From elsewhere, as from a mail, only the whole address leads here.
    assert known.get(f"/?token={TOKEN}", headers=headers).status_code == 200


@pytest.mark.parametrize("site", ["none", "same-origin"])
def test_the_person_and_the_page_are_let_in(site, known) -> None:
    assert known.get("/", headers={"sec-fetch-site": site}).text == "the page"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"])
def test_nothing_is_written(method, known) -> None:
    assert known.request(method, f"/?token={TOKEN}").status_code == 405


def test_a_socket_is_of_this_page(known) -> None:
    assert talk(known, origin=HOME) == "hello"
    other = (None, "null", "http://evil.example", f"https://127.0.0.1:{PORT}", "http://127.0.0.1")
    for origin in (*other, f"http://localhost:{PORT}"):
        with pytest.raises(WebSocketDisconnect):
            talk(known, **({} if origin is None else {"origin": origin}))


def test_a_socket_needs_the_cookie(visitor) -> None:
    with pytest.raises(WebSocketDisconnect):
        talk(visitor, origin=HOME)


def test_nothing_leads_out_of_the_page(known) -> None:
    """No answer without the policy, refusals included."""
    replies = [known.get("/"), known.get(f"/?token={TOKEN}"), known.get("/", headers={"host": "x"})]
    for reply in replies:
        policy = reply.headers["content-security-policy"]
        rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
        assert rules["default-src"] == rules["frame-ancestors"] == "'none'"
        assert rules["script-src"] == rules["style-src"] == "'self'" and "unsafe" not in policy
        assert rules["connect-src"] in (f"ws://127.0.0.1:{PORT}", "'none'")
        assert reply.headers["cache-control"] == "no-store"
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
