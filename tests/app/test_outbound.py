"""The outbound client reaches public addresses and nothing else."""

import asyncio
import ssl
from collections.abc import Iterator
from typing import Any

import pytest
import trustme

from app.errors import UrlRefused
from app.outbound import OutboundClient, Resolve
from app.settings import Settings
from tests.app.conftest import eventually
from tests.app.origins import Origin, ok, origin, redirect

TRUST = ssl.create_default_context()  # made once: loading the certificates takes longer than a test
NOT_PUBLIC = "The URL's host has no public address."
# Names as an attacker's name server may resolve them.
NAMES = {
    "public.example": ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"],
    "private.example": ["10.1.2.3"],
    "mixed.example": ["93.184.215.14", "127.0.0.1"],
    "mixed6.example": ["2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::1"],
    "mapped.example": ["::ffff:169.254.169.254"],
    "metadata.example": ["169.254.169.254"],
    "localhost": ["127.0.0.1", "::1"],
    "localhost.": ["127.0.0.1"],
    "store.internal": ["10.0.0.5"],
    "127.1": ["127.0.0.1"],
    "2130706433": ["127.0.0.1"],
    "0x7f000001": ["127.0.0.1"],
    "0x7f.0.0.1": ["127.0.0.1"],
    "0": ["0.0.0.0"],
    "nonsense.example": ["not an address"],
    "empty.example": [],
}
REFUSED_ADDRESSES = [
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.0.9"),
    *("169.254.169.254", "169.254.0.1", "172.16.0.1", "172.31.255.255", "192.0.0.8", "192.0.0.192", "192.0.2.1"),
    *("192.88.99.1", "192.168.1.1", "198.18.0.1", "198.51.100.7", "203.0.113.9", "224.0.0.1", "239.255.255.250"),
    *("240.0.0.1", "255.255.255.255", "168.63.129.16"),
    *("[::]", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:10.0.0.1]", "[::ffff:93.184.215.14]", "[::127.0.0.1]"),
    *("[64:ff9b::7f00:1]", "[64:ff9b::a9fe:a9fe]", "[64:ff9b:1::a00:1]", "[100::1]", "[2001::1]", "[2001:db8::1]"),
    *("[2002:7f00:1::]", "[2002:a9fe:a9fe::1]", "[3fff::1]", "[5f00::1]", "[fc00::1]", "[fd00:ec2::254]", "[fe80::1]"),
    *("[fec0::1]", "[ff02::1]", "[ff0e::1]"),
]
REFUSED_NAMES = sorted(set(NAMES) - {"public.example"} | {"unknown.example"})
REFUSED_TEXTS = [
    *(
        "",
        "/etc/passwd",
        "file:///etc/passwd",
        "ftp://public.example/a",
        "gopher://public.example/",
        "data:,a",
        "http:",
    ),
    *("http://", "http:///a", "https://?a", "//public.example/a", "javascript:alert(1)", "unix:///run/redis.sock"),
    *("http://user@public.example/", "http://user:word@public.example/", "http://:@public.example/"),
    *("http://public.example:22/", "http://public.example:6379/", "http://public.example:0/", "http://a:99999/"),
    *("http://public.example\\@127.0.0.1/", "http://0177.0.0.1/", "http://a b/", "http://a%00b/"),
    *(
        "http://public.example\r\nHost: x/",
        "http://①②⑦.⓪.⓪.①/",
        "http://[::1",
        "http://[fe80::1%25eth0]/",
        "http://[v1.a]/",
    ),
    *("http://[2606:4700::1%eth0]/", "http://-/", "http://" + "a" * 300 + "/", "http://public.example/" + "a" * 3000),
    *("HTTP://127.0.0.1/\t", "http://exa mple/", "http://public.example:80:80/", "http://pub\x00lic.example/"),
]


def resolver(names: dict[str, list[str]] = NAMES) -> Resolve:
    async def resolve(name: str) -> list[str]:
        if name not in names:
            raise OSError("no such name")
        return names[name]

    return resolve


def fetch(client: OutboundClient, url: str, seconds: float = 60.0) -> bytes:
    async def read() -> bytes:
        async with client.fetch(url, seconds) as fetched:
            return b"".join([chunk async for chunk in fetched.chunks])

    return asyncio.run(read())


def refusal(client: OutboundClient, url: str, seconds: float = 60.0) -> str:
    with pytest.raises(UrlRefused) as refused:
        fetch(client, url, seconds)
    return refused.value.detail


@pytest.fixture
def site() -> Iterator[Origin]:
    with origin() as served:
        yield served


def make_client(site: Origin, resolve: Resolve | None = None, **settings: Any) -> OutboundClient:
    """An outbound client for which the origin's address, and no other of the loopback network, is public."""
    return OutboundClient(
        Settings(outside_ports=str(site.port), outside_networks=f"{site.address}/32", **settings),
        resolve or resolver({"public.example": [site.address]}),
        TRUST,
    )


@pytest.mark.parametrize("host", REFUSED_ADDRESSES + REFUSED_NAMES)
def test_all_hosts_that_are_not_public_get_the_same_error(host: str) -> None:
    """So that it does not tell internal hosts from unknown ones."""
    client = OutboundClient(Settings(), resolver(), TRUST)
    for scheme in ("http", "https"):
        assert refusal(client, f"{scheme}://{host}/a.wav") == NOT_PUBLIC


@pytest.mark.parametrize("url", REFUSED_TEXTS)
def test_invalid_urls_are_refused_without_a_lookup(url: str) -> None:
    async def never(name: str) -> list[str]:
        raise AssertionError(f"looked up {name}")

    client = OutboundClient(Settings(), never, TRUST)
    with pytest.raises(UrlRefused):
        client.check(url)
    assert refusal(client, url)


@pytest.mark.parametrize(
    "url",
    [
        *(
            "http://public.example/",
            "https://public.example/a.wav?b=c#d",
            "HTTPS://PUBLIC.EXAMPLE:443/",
            "http://8.8.8.8/",
        ),
        *("https://exämple.com/ä b.wav", "http://[2606:4700::1]/", "http://public.example.:80/", "http://a_b.example/"),
    ],
)
def test_public_urls_are_accepted(url: str) -> None:
    assert OutboundClient(Settings()).check(url).fragment == ""


def test_networks_and_ports_can_be_allowed() -> None:
    client = OutboundClient(Settings(outside_ports="80,8443", outside_networks="10.1.0.0/16,fd00::/64"), resolver())
    client.check("https://10.1.2.3:8443/")
    for url in ("http://10.2.0.1/", "http://[fd00:1::1]/", "http://127.0.0.1/"):
        assert refusal(client, url) == NOT_PUBLIC
    with pytest.raises(ValueError, match="outside_networks"):
        Settings(outside_networks="10.1.0.1/16")


def test_requests_carry_the_host_name_and_no_other_headers(site: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    site.answer = ok(b"sound")
    assert fetch(make_client(site), f"http://public.example:{site.port}/a%20b.wav?c=d#e") == b"sound"
    lines = site.requests[0].decode().lower().split("\r\n")
    assert lines[0] == "get /a%20b.wav?c=d http/1.1"
    assert sorted(filter(None, lines[1:])) == [
        "accept-encoding: identity",
        f"host: public.example:{site.port}",
        "user-agent: earmark",
    ]


def test_dns_rebinding_has_no_effect(site: Origin) -> None:
    """The connection is made to the address that was checked: one lookup, no connection to the other address."""
    answers = iter([[site.address], ["127.0.0.1"], [site.address], ["127.0.0.1"]])
    looked_up: list[str] = []

    async def rebinding(name: str) -> list[str]:
        looked_up.append(name)
        return next(answers)

    with origin("127.0.0.1", site.port) as inside:
        site.answer, inside.answer = ok(b"public"), ok(b"inside")
        client, url = make_client(site, rebinding), f"http://public.example:{site.port}/"
        assert fetch(client, url) == b"public"
        assert looked_up == ["public.example"]
        assert refusal(client, url) == NOT_PUBLIC
        # A redirect to the same URL is looked up again, and refused.
        site.answer = redirect(url)
        assert refusal(client, url) == NOT_PUBLIC
        assert (len(site.requests), inside.connections) == (2, 0)


@pytest.mark.parametrize(
    "location",
    [
        *(
            "http://127.0.0.1/",
            "//127.0.0.1/",
            "http://169.254.169.254/latest/meta-data",
            "http://[::1]/",
            "file:///etc/passwd",
        ),
        *("ftp://public.example/", "http://user:word@public.example/", "http://unknown.example/", "http://[", ""),
        *("http://public.example:6379/", "https:", "\x00", "http://store.internal/"),
    ],
)
@pytest.mark.parametrize("status", [301, 308])
def test_redirects_are_checked(site: Origin, location: str, status: int) -> None:
    site.answer = redirect(location, status)
    assert refusal(make_client(site), f"http://public.example:{site.port}/")
    assert len(site.requests) == 1


def test_at_most_five_redirects_are_followed(site: Origin) -> None:
    with origin(site.address) as last:
        client = OutboundClient(
            Settings(outside_ports=f"{site.port},{last.port}", outside_networks=f"{site.address}/32"),
            resolver({"public.example": [site.address]}),
        )
        site.answer, last.answer = redirect(f"//public.example:{last.port}/b"), ok(b"sound")
        assert fetch(client, f"http://public.example:{site.port}/a") == b"sound"
        assert last.requests[0].startswith(b"GET /b ")
        site.answer = redirect("/again")
        assert "5 times" in refusal(client, f"http://public.example:{site.port}/a")
        assert len(site.requests) == 1 + 6


@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        (ok(b"x", "Content-Encoding: gzip"), "compressed"),
        (ok(b"x", "Content-Encoding: identity, br"), "compressed"),
        ([b"HTTP/1.1 404 Not Found\r\nContent-Length: 1\r\n\r\nx"], "answers 404"),
        ([b"HTTP/1.1 206 Partial\r\nContent-Length: 1\r\n\r\nx"], "answers 206"),
        ([b"HTTP/1.1 304 Not Modified\r\n\r\n"], "answers 304"),
        ([b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n"], "without a location"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"], "broke off"),
        ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"], "broke off"),
        ([b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000, 300.0], "no answer"),
        ([b"220 smtp.example ready\r\n"], "no answer"),
        ([], "no answer"),
    ],
)
def test_unusable_responses_are_refused(site: Origin, answer: list[bytes | float], detail: str) -> None:
    site.answer = answer
    assert detail in refusal(make_client(site), f"http://public.example:{site.port}/")


def test_a_response_may_not_pause_for_long(site: Origin) -> None:
    site.answer = [300.0]
    assert "no answer" in refusal(make_client(site, upload_idle=0.2), f"http://public.example:{site.port}/")
    site.answer = [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx", 300.0]
    # Long enough for the head, however busy the machine is.
    assert "stalled" in refusal(make_client(site, upload_idle=2.0), f"http://public.example:{site.port}/")


def test_a_slow_response_exceeds_the_time_limit(site: Origin) -> None:
    site.answer = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n",
        *[part for _ in range(999) for part in (0.1, b"x")],
    ]
    assert "too long" in refusal(make_client(site), f"http://public.example:{site.port}/", seconds=0.5)
    site.answer = [b"HTTP/1.1 200 OK\r\n", *[part for _ in range(999) for part in (0.1, b"X: y\r\n")]]
    assert "too long" in refusal(make_client(site), f"http://public.example:{site.port}/", seconds=0.5)


def test_the_next_address_is_tried_if_one_does_not_connect(site: Origin) -> None:
    site.answer = ok(b"sound")
    client = OutboundClient(
        Settings(outside_ports=str(site.port), outside_networks="127.0.0.0/8"),
        resolver({"public.example": ["127.0.0.3", site.address]}),
    )
    assert fetch(client, f"http://public.example:{site.port}/") == b"sound"
    site.answer = ok(b"x")
    unreachable = OutboundClient(
        Settings(outside_ports=str(site.port), outside_networks="127.0.0.0/8"),
        resolver({"public.example": ["127.0.0.3"]}),
    )
    assert "No connection" in refusal(unreachable, f"http://public.example:{site.port}/")


def test_certificates_are_verified_against_the_name(site: Origin) -> None:
    authority = trustme.CA()
    tls, trust = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("public.example").configure_cert(tls)
    authority.configure_trust(trust)
    with origin(tls=tls) as secure:
        secure.answer = ok(b"sound")
        settings = Settings(outside_ports=str(secure.port), outside_networks=f"{secure.address}/32")
        resolve = resolver({name: [secure.address] for name in ("public.example", "other.example")})
        assert fetch(OutboundClient(settings, resolve, trust), f"https://public.example:{secure.port}/") == b"sound"
        assert secure.names == ["public.example"]
        for client, name in (
            (OutboundClient(settings, resolve, trust), "other.example"),
            (OutboundClient(settings, resolve, trust), secure.address),
            (OutboundClient(settings, resolve), "public.example"),
        ):
            assert "No connection" in refusal(client, f"https://{name}:{secure.port}/")
        assert len(secure.requests) == 1


def test_a_post_does_not_follow_redirects(site: Origin) -> None:
    client, url = make_client(site), f"http://public.example:{site.port}/hook"
    site.answer = [b"HTTP/1.1 204 No Content\r\n\r\n"]
    assert asyncio.run(client.post(url, b"{}", {"webhook-id": "a", "User-Agent": "other"}, 60.0)) == 204
    assert site.requests[0].startswith(b"POST /hook HTTP/1.1\r\n") and site.requests[0].endswith(b"\r\n\r\n{}")
    assert b"webhook-id: a\r\n" in site.requests[0] and b"Content-Length: 2\r\n" in site.requests[0]
    site.answer = redirect("http://127.0.0.1/")
    assert asyncio.run(client.post(url, b"{}", {}, 60.0)) == 302
    site.answer = [300.0]
    for refused in (url, "http://private.example/"):
        with pytest.raises(UrlRefused):
            asyncio.run(client.post(refused, b"{}", {}, 0.3))
    eventually(lambda: len(site.requests) == 3)


def test_names_are_looked_up_by_the_system() -> None:
    assert refusal(OutboundClient(Settings()), "http://localhost/") == NOT_PUBLIC
    assert refusal(OutboundClient(Settings()), "http://0x7f.1/") == NOT_PUBLIC
