"""Outbound client for URLs that clients name: recordings to fetch, webhooks to call. Guards against SSRF.

Server-side request forgery (SSRF) would let a client reach what only this machine can reach. Therefore a host name is
resolved once per hop, every address that it has must be public, and the connection is made to one of those addresses,
so that a name that resolves differently the next time (DNS rebinding) has no effect. Redirects are followed one by one
and checked like the first URL. Error messages do not tell whether an internal name exists or what it resolves to.
"""

import asyncio
import ipaddress
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import certifi
import httpx

from app.errors import UrlRefused
from app.settings import Settings

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str], Awaitable[list[str]]]

LONGEST_URL = 2048  # characters
_MAX_REDIRECTS = 5
_NOT_PUBLIC = "The URL's host has no public address."  # the same for unknown names, to tell nothing of internal ones
_MAX_ADDRESSES = 3  # of one name to try
_CONNECT_SECONDS = 5.0  # for each address
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_])?\.?")
_NUMERIC_END = re.compile(r"(^|\.)(\d+|0x[0-9a-f]*)\.?$")  # such a name is another spelling of an IPv4 address
_REDIRECTS = (301, 302, 303, 307, 308)
_LOOKUPS = ThreadPoolExecutor(16, "lookup")  # a pool of its own, since a slow name server blocks its threads
# Not public, although `ipaddress` of some Python releases says so.
_NOT_PUBLIC_NETWORKS = tuple(
    ipaddress.ip_network(network)
    for network in (
        "192.0.0.0/24",  # protocol assignments; a cloud's metadata among them
        "192.88.99.0/24",  # 6to4 relays
        "168.63.129.16/32",  # internal services of a cloud, at a public address
        "2001::/23",  # protocol assignments; Teredo among them, which embeds an IPv4 address
        "2002::/16",  # 6to4, which embeds one too
        "3fff::/20",  # documentation
    )
)
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True)
class FetchedResponse:
    """A response with status 200: its URL after redirects, its announced length in bytes, and its body.

    `chunks` can be read once; it raises `UrlRefused` if the body ends early, stalls or exceeds the deadline.
    """

    url: httpx.URL
    length: int | None
    chunks: AsyncIterator[bytes]


class OutboundClient:
    """The outbound client of one deployment.

    resolve: looks up the addresses of a name; by default the system does. trust: the TLS context with the trusted
    certificates; by default certifi's.
    """

    def __init__(self, settings: Settings, resolve: Resolve | None = None, trust: ssl.SSLContext | None = None) -> None:
        self._idle = settings.upload_idle
        self._ports = {int(port) for port in settings.outside_ports.split(",")}
        self._networks = [ipaddress.ip_network(text) for text in settings.outside_networks.split(",") if text]
        self._resolve = resolve or _look_up
        self._trust = trust or ssl.create_default_context(cafile=certifi.where())

    def check(self, text: str) -> httpx.URL:
        """Parse and validate a URL without resolving its host name. Raises `UrlRefused`."""
        try:
            url = httpx.URL(text)
        except httpx.InvalidURL as error:
            raise UrlRefused("This is not a valid URL.") from error
        if len(text) > LONGEST_URL:
            raise UrlRefused(f"A URL may have {LONGEST_URL} characters.")
        if url.scheme not in ("http", "https"):
            raise UrlRefused("The URL must begin with http:// or https://.")
        if url.userinfo:
            raise UrlRefused("The URL must not hold a user name or a password.")
        host = url.raw_host.decode("ascii")
        address = _parse_address(host)
        if address is None and not _NAME.fullmatch(host):
            raise UrlRefused("The URL's host is neither a name nor an address.")
        if _NUMERIC_END.search(host) if address is None else not self.is_public(address):
            raise UrlRefused(_NOT_PUBLIC)
        if _port(url) not in self._ports:
            raise UrlRefused(f"The port {_port(url)} is not allowed.")
        return url.copy_with(fragment=None)

    def is_public(self, address: Address) -> bool:
        """Whether clients may name this address: it is on the public internet, or the settings allow its network."""
        if any(address in network for network in self._networks):
            return True
        if isinstance(address, ipaddress.IPv6Address):
            if address in _NAT64:
                return self.is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
            if address not in _GLOBAL_UNICAST:
                return False
        return address.is_global and not (
            address.is_multicast or address.is_reserved or any(address in network for network in _NOT_PUBLIC_NETWORKS)
        )

    @asynccontextmanager
    async def fetch(self, text: str, seconds: float) -> AsyncIterator[FetchedResponse]:
        """GET a URL, follow at most five redirects, and read the body, all within `seconds`.

        Raises `UrlRefused`: if a URL or address is not allowed, for a status other than 200, and for a compressed body.
        """
        deadline = time.monotonic() + seconds
        async with AsyncExitStack() as hop:
            async with _time_limit(deadline):
                url, response = await self._get(self.check(text), hop)
            if response.status_code != 200:
                raise UrlRefused(f"The URL answers {response.status_code}.")
            if response.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
                raise UrlRefused("The URL answers with a compressed body, although `identity` was requested.")
            yield FetchedResponse(url, _content_length(response), _body(response, deadline))

    async def post(self, text: str, content: bytes, headers: dict[str, str], seconds: float) -> int:
        """POST to a URL within `seconds` and return the status; follows no redirect and does not read the body.

        Raises `UrlRefused`.
        """
        url = self.check(text)
        async with _time_limit(time.monotonic() + seconds), AsyncExitStack() as hop:
            response = await self._send(httpx.Request("POST", url, headers=headers, content=content), hop)
            return response.status_code

    async def _get(self, url: httpx.URL, hop: AsyncExitStack) -> tuple[httpx.URL, httpx.Response]:
        """Follow redirects from `url`; return the last URL and its response, which `hop` closes."""
        for _ in range(_MAX_REDIRECTS + 1):
            await hop.aclose()
            response = await self._send(httpx.Request("GET", url, headers={"Accept-Encoding": "identity"}), hop)
            if response.status_code not in _REDIRECTS:
                return url, response
            url = self._redirect_target(url, response)
        raise UrlRefused(f"The URL redirects more than {_MAX_REDIRECTS} times.")

    async def _send(self, request: httpx.Request, hop: AsyncExitStack) -> httpx.Response:
        """Resolve the host and send the request to one of its addresses; `hop` closes the response, its body unread."""
        url = request.url
        request.headers.setdefault("User-Agent", "Earmark")
        request.extensions = {
            "sni_hostname": url.raw_host.decode("ascii"),
            "timeout": {"connect": _CONNECT_SECONDS, "read": self._idle, "write": self._idle, "pool": _CONNECT_SECONDS},
        }
        addresses = await self._resolve_public(url)
        # No connection pool: it would tell connections apart by address, which several names may share.
        transport = await hop.enter_async_context(httpx.AsyncHTTPTransport(verify=self._trust, trust_env=False))
        response = await self._try_addresses(transport, request, addresses)
        hop.push_async_callback(response.aclose)
        return response

    async def _try_addresses(
        self, transport: httpx.AsyncHTTPTransport, request: httpx.Request, addresses: list[Address]
    ) -> httpx.Response:
        url = request.url
        for address in addresses[:_MAX_ADDRESSES]:
            request.url = url.copy_with(host=str(address))
            try:
                return await transport.handle_async_request(request)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue
            except httpx.HTTPError as error:
                raise UrlRefused("The URL gives no answer that is valid HTTP.") from error
        raise UrlRefused("No connection can be made to the URL.")

    async def _resolve_public(self, url: httpx.URL) -> list[Address]:
        """Return all addresses of the URL's host. Raises `UrlRefused` unless all of them are public."""
        host = url.raw_host.decode("ascii")
        literal = _parse_address(host)
        try:
            addresses = [literal] if literal else [ipaddress.ip_address(text) for text in await self._resolve(host)]
        except (OSError, ValueError):
            addresses = []
        if not addresses or not all(self.is_public(address) for address in addresses):
            raise UrlRefused(_NOT_PUBLIC)
        return addresses

    def _redirect_target(self, url: httpx.URL, response: httpx.Response) -> httpx.URL:
        location = response.headers.get("location")
        if not location:
            raise UrlRefused("The URL redirects without a location.")
        try:
            return self.check(str(url.join(location)))
        except (httpx.InvalidURL, ValueError) as error:
            raise UrlRefused("The URL redirects to an invalid URL.") from error


async def _body(response: httpx.Response, deadline: float) -> AsyncIterator[bytes]:
    stream = response.aiter_raw()
    while True:
        async with _time_limit(deadline):
            try:
                chunk = await anext(stream, None)
            except httpx.HTTPError as error:
                raise UrlRefused("The URL's answer broke off or stalled.") from error
        if chunk is None:
            return
        yield chunk


@asynccontextmanager
async def _time_limit(deadline: float) -> AsyncIterator[None]:
    """Raise `UrlRefused` if the block does not end before `deadline`, a time of the monotonic clock."""
    try:
        async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
            yield
    except TimeoutError as error:
        raise UrlRefused("The URL took too long to answer.") from error


async def _look_up(name: str) -> list[str]:
    lookup = partial(socket.getaddrinfo, name, None, type=socket.SOCK_STREAM)
    async with asyncio.timeout(_CONNECT_SECONDS):
        entries = await asyncio.get_running_loop().run_in_executor(_LOOKUPS, lookup)
    return list(dict.fromkeys(str(entry[4][0]) for entry in entries))


def _content_length(response: httpx.Response) -> int | None:
    length = response.headers.get("content-length", "")
    return int(length[:19]) if length.isascii() and length.isdigit() else None


def _parse_address(host: str) -> Address | None:
    try:
        return None if "%" in host else ipaddress.ip_address(host)  # a zone would name an interface of this machine
    except ValueError:
        return None


def _port(url: httpx.URL) -> int:
    return url.port if url.port is not None else {"http": 80, "https": 443}.get(url.scheme, 0)
