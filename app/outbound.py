"""Requests to addresses that strangers name: recordings to fetch, webhooks to call.

What only this machine reaches must stay out of their reach (server-side request forgery): a name is looked up once a
hop, every address that it has must be public, and the connection is made to one of those very addresses, so that a
name that answers differently the next time gains nothing. Redirects are followed by hand, each checked like the
first. Refusals say what the caller may know: not whether a name exists inside, nor where it leads.
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
_REDIRECTS = 5
_NOT_PUBLIC = "The URL's host has no public address."  # of unknown names too: it tells of none inside
_TRIES = 3  # addresses of one name that are tried
_CONNECT = 5.0  # s, each
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_])?\.?")
_NUMBER = re.compile(r"(^|\.)(\d+|0x[0-9a-f]*)\.?$")  # at its end a name is no name, but an address by another spelling
_MOVED = (301, 302, 303, 307, 308)
_LOOKUPS = ThreadPoolExecutor(16, "lookup")  # threads of their own, for a slow name server holds them up
# Not public, though `ipaddress` (of some release) takes them for it.
_REFUSED = tuple(
    ipaddress.ip_network(network)
    for network in (
        "192.0.0.0/24",  # protocol assignments; a cloud's metadata among them
        "192.88.99.0/24",  # 6to4 relays
        "168.63.129.16/32",  # a cloud's own services, at a public address
        "2001::/23",  # protocol assignments; Teredo among them, which holds an IPv4 address
        "2002::/16",  # 6to4, which holds one too
        "3fff::/20",  # documentation
    )
)
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True)
class FetchedResponse:
    """An answer of 200: the URL that it came from in the end, the bytes that it announces, and its body, to be read
    once.

    `chunks` raises `UrlRefused` when the body ends early, stalls, or is not over in time.
    """

    url: httpx.URL
    length: int | None
    chunks: AsyncIterator[bytes]


class OutboundClient:
    """The way out of one deployment. `resolve` answers a name's addresses; `trust` holds the certificates believed."""

    def __init__(self, settings: Settings, resolve: Resolve | None = None, trust: ssl.SSLContext | None = None) -> None:
        self._idle = settings.upload_idle
        self._ports = {int(port) for port in settings.outside_ports.split(",")}
        self._networks = [ipaddress.ip_network(text) for text in settings.outside_networks.split(",") if text]
        self._resolve = resolve or _look_up
        self._trust = trust or ssl.create_default_context(cafile=certifi.where())

    def check(self, text: str) -> httpx.URL:
        """The URL, as far as its text shows that it may be asked; looks no name up. Raises `UrlRefused`."""
        try:
            url = httpx.URL(text)
        except httpx.InvalidURL as error:
            raise UrlRefused("This is no URL that can be fetched.") from error
        if len(text) > LONGEST_URL:
            raise UrlRefused(f"The URL may have {LONGEST_URL} characters.")
        if url.scheme not in ("http", "https"):
            raise UrlRefused("The URL must begin with http:// or https://.")
        if url.userinfo:
            raise UrlRefused("The URL must not hold a user name or a password.")
        host = url.raw_host.decode("ascii")
        address = _literal(host)
        if address is None and not _NAME.fullmatch(host):
            raise UrlRefused("The URL's host is no name and no address.")
        if _NUMBER.search(host) if address is None else not self.is_public(address):
            raise UrlRefused(_NOT_PUBLIC)
        if _port(url) not in self._ports:
            raise UrlRefused(f"The port {_port(url)} is not allowed.")
        return url.copy_with(fragment=None)

    def is_public(self, address: Address) -> bool:
        """Whether strangers may have us ask there: it is on the public internet, or the settings allow it."""
        if any(address in network for network in self._networks):
            return True
        if isinstance(address, ipaddress.IPv6Address):
            if address in _NAT64:
                return self.is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
            if address not in _GLOBAL_UNICAST:
                return False
        return address.is_global and not (
            address.is_multicast or address.is_reserved or any(address in network for network in _REFUSED)
        )

    @asynccontextmanager
    async def fetch(self, text: str, seconds: float) -> AsyncIterator[FetchedResponse]:
        """What GET answers after at most five redirects, all of it within so many seconds.

        Raises `UrlRefused`: for what may not be asked, for an answer other than 200, and for a body that is compressed.
        """
        deadline = time.monotonic() + seconds
        async with AsyncExitStack() as hop:
            async with _within(deadline):
                url, answer = await self._followed(self.check(text), hop)
            if answer.status_code != 200:
                raise UrlRefused(f"The URL answers {answer.status_code}.")
            if answer.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
                raise UrlRefused("The URL answers with a compressed body, although it was asked not to.")
            yield FetchedResponse(url, _announced(answer), _body(answer, deadline))

    async def post(self, text: str, content: bytes, headers: dict[str, str], seconds: float) -> int:
        """The status that a POST is answered with, in so many seconds; redirects are not followed, bodies not read.

        Raises `UrlRefused`.
        """
        url = self.check(text)
        async with _within(time.monotonic() + seconds), AsyncExitStack() as hop:
            answer = await self._asked(httpx.Request("POST", url, headers=headers, content=content), hop)
            return answer.status_code

    async def _followed(self, url: httpx.URL, hop: AsyncExitStack) -> tuple[httpx.URL, httpx.Response]:
        for _ in range(_REDIRECTS + 1):
            await hop.aclose()
            answer = await self._asked(httpx.Request("GET", url, headers={"Accept-Encoding": "identity"}), hop)
            if answer.status_code not in _MOVED:
                return url, answer
            url = self._next(url, answer)
        raise UrlRefused(f"The URL redirects more than {_REDIRECTS} times.")

    async def _asked(self, request: httpx.Request, hop: AsyncExitStack) -> httpx.Response:
        """The answer, its body unread, of one of the addresses that the URL's host has now; `hop` closes it."""
        url = request.url
        request.headers.setdefault("User-Agent", "Earmark")
        request.extensions = {
            "sni_hostname": url.raw_host.decode("ascii"),
            "timeout": {"connect": _CONNECT, "read": self._idle, "write": self._idle, "pool": _CONNECT},
        }
        addresses = await self._addresses(url)
        # A connection of its own: kept ones are told apart by address, and several names may share one.
        transport = await hop.enter_async_context(httpx.AsyncHTTPTransport(verify=self._trust, trust_env=False))
        answer = await self._first_answer(transport, request, addresses)
        hop.push_async_callback(answer.aclose)
        return answer

    async def _first_answer(
        self, transport: httpx.AsyncHTTPTransport, request: httpx.Request, addresses: list[Address]
    ) -> httpx.Response:
        name = request.url
        for address in addresses[:_TRIES]:
            request.url = name.copy_with(host=str(address))
            try:
                return await transport.handle_async_request(request)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue
            except httpx.HTTPError as error:
                raise UrlRefused("The URL gives no answer that can be read.") from error
        raise UrlRefused("No connection can be made to the URL.")

    async def _addresses(self, url: httpx.URL) -> list[Address]:
        """All addresses of the URL's host, every one of them public."""
        host = url.raw_host.decode("ascii")
        literal = _literal(host)
        try:
            found = [literal] if literal else [ipaddress.ip_address(text) for text in await self._resolve(host)]
        except (OSError, ValueError):
            found = []
        if not found or not all(self.is_public(address) for address in found):
            raise UrlRefused(_NOT_PUBLIC)
        return found

    def _next(self, url: httpx.URL, answer: httpx.Response) -> httpx.URL:
        location = answer.headers.get("location")
        if not location:
            raise UrlRefused("The URL redirects to nowhere.")
        try:
            return self.check(str(url.join(location)))
        except (httpx.InvalidURL, ValueError) as error:
            raise UrlRefused("The URL redirects to what is no URL.") from error


async def _body(answer: httpx.Response, deadline: float) -> AsyncIterator[bytes]:
    stream = answer.aiter_raw()
    while True:
        async with _within(deadline):
            try:
                chunk = await anext(stream, None)
            except httpx.HTTPError as error:
                raise UrlRefused("The URL's answer broke off or stalled.") from error
        if chunk is None:
            return
        yield chunk


@asynccontextmanager
async def _within(deadline: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
            yield
    except TimeoutError as error:
        raise UrlRefused("The URL took too long to answer.") from error


async def _look_up(name: str) -> list[str]:
    lookup = partial(socket.getaddrinfo, name, None, type=socket.SOCK_STREAM)
    async with asyncio.timeout(_CONNECT):
        found = await asyncio.get_running_loop().run_in_executor(_LOOKUPS, lookup)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _announced(answer: httpx.Response) -> int | None:
    length = answer.headers.get("content-length", "")
    return int(length[:19]) if length.isascii() and length.isdigit() else None


def _literal(host: str) -> Address | None:
    try:
        return None if "%" in host else ipaddress.ip_address(host)  # no zones of this machine's interfaces
    except ValueError:
        return None


def _port(url: httpx.URL) -> int:
    return url.port if url.port is not None else {"http": 80, "https": 443}.get(url.scheme, 0)
