"""Fetches a recording from an http(s) URL that a stranger chose, without reaching anything that isn't meant for them.

The host has to be on a list, and its addresses have to be public ones: a name on the list may come to point into the
network of the server (DNS rebinding), and a redirect may lead there. aiohttp connects to the very addresses that were
checked, since they are its resolver's answer, and checks the certificate against the name.
"""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Collection

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

MAX_URL = 8192
MAX_REDIRECTS = 3

# The last label begins with a letter, so that no form of an IP address is a name (127.1, 0x7f000001, 2130706433).
_NAME = re.compile(r"([a-z0-9_-]{1,63}\.)*[a-z][a-z0-9_-]{0,62}")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HEADERS = {"Accept": "audio/*, */*;q=0.5", "Accept-Encoding": "identity", "User-Agent": "balsa_ray"}

# `is_global` takes most of IPv6 for public, and addresses in which an IPv4 address of any kind may hide.
_UNICAST = ipaddress.IPv6Network("2000::/3")
_6TO4 = ipaddress.IPv6Network("2002::/16")
_TEREDO = ipaddress.IPv6Network("2001::/32")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# Public by their numbers, but answered by the cloud that the server runs in: Oracle's and Azure's own services.
_OF_CLOUDS = (ipaddress.IPv4Network("192.0.0.0/24"), ipaddress.IPv4Network("168.63.129.16/32"))


class FetchError(ValueError):
    """A URL from which nothing could be fetched; the message says why, without addresses and without the answer."""


def allowed_host(entry: str) -> str:
    """Returns an entry of the list of allowed hosts in the form in which hosts are compared.

    Args:
        entry: `host`, on the default ports of http and https, or `host:port`.

    Raises:
        ValueError: If it is something else, such as a URL, a pattern or an IP address.
    """
    try:
        url = URL(f"http://{entry}")
        host = _host(url)
    except (ValueError, IndexError):
        host = ""
    if not _NAME.fullmatch(host) or len(host) > 253 or url.port == 0 or re.search(r"[/?#@\\\s]", entry):
        raise ValueError(f"{entry!r} is not the name of a host, or host:port")
    return host if url.explicit_port is None else f"{host}:{url.port}"


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the internet, and to no network that only this machine can reach."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        return ip.is_global and ip in _UNICAST and ip not in _6TO4 and ip not in _TEREDO
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _OF_CLOUDS)


async def fetch(
    url: str,
    hosts: Collection[str],
    *,
    max_bytes: int,
    seconds: float,
    connect_seconds: float = 5.0,
    resolver: AbstractResolver | None = None,
) -> bytes:
    """Returns what stands at a URL.

    Args:
        url: `http://…` or `https://…`, without a user and a password.
        hosts: Those from which something may be fetched, as `allowed_host` returns them; redirects included.
        max_bytes: Largest body.
        seconds: Longest time for all of it.
        connect_seconds: Longest time for one connection, its name's resolution and TLS included.
        resolver: What turns names into addresses (default: the system).

    Raises:
        FetchError: If the URL is of another kind, its host not allowed or not public, the answer not 200, compressed or
            too large, or if it takes too long.
    """
    if len(url) > MAX_URL:
        raise FetchError(f"the URL is longer than {MAX_URL} characters")
    target = _checked(url, None, hosts)
    connector = aiohttp.TCPConnector(
        resolver=_PublicAddresses(resolver or aiohttp.ThreadedResolver()), use_dns_cache=False, force_close=True
    )
    session = aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        auto_decompress=False,
        headers=_HEADERS,
        timeout=aiohttp.ClientTimeout(connect=connect_seconds),
    )
    try:
        async with asyncio.timeout(seconds), session:
            for _ in range(MAX_REDIRECTS + 1):
                async with session.get(target, allow_redirects=False) as response:
                    location = response.headers.get("Location")
                    if response.status not in _REDIRECTS or location is None:
                        return await _body(response, max_bytes)
                target = _checked(location, target, hosts)
    except TimeoutError as error:
        raise FetchError(
            f"the host took longer than {connect_seconds:g} s to connect or {seconds:g} s in all"
        ) from error
    except aiohttp.ClientSSLError as error:
        raise FetchError("the host has no valid TLS certificate") from error
    except (aiohttp.ClientError, OSError) as error:
        raise FetchError("the host can't be reached, or broke off its answer") from error
    raise FetchError(f"more than {MAX_REDIRECTS} redirects")


class _PublicAddresses(AbstractResolver):
    """Resolves names as another resolver does, and refuses one that has an address which isn't public."""

    def __init__(self, resolver: AbstractResolver) -> None:
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        if not found or not all(is_public(result["host"]) for result in found):
            raise FetchError("the host has no public address")
        return found

    async def close(self) -> None:
        await self._resolver.close()


def _host(url: URL) -> str:
    """Returns the host in ASCII (IDNA) and lower case, without the dot at its end."""
    return (url.raw_host or "").removesuffix(".").lower()


def _checked(text: str, base: URL | None, hosts: Collection[str]) -> URL:
    """Parses a URL, or the redirect that `base` answered with, and checks all that can be without a connection.

    aiohttp gets the parsed URL, so that it can't read another host out of it than was checked.
    """
    which = "the URL" if base is None else "a redirect"
    try:
        url = URL(text) if base is None else base.join(URL(text))
        host = _host(url)
    except (ValueError, IndexError) as error:  # the latter: yarl 1.25 at http://[]@
        raise FetchError(f"{which} is not valid") from error
    if url.scheme not in ("http", "https"):
        raise FetchError(f"{which} is not of http or https")
    if url.user is not None or url.password is not None:
        raise FetchError(f"{which} has a user or a password in it")
    if not (host in hosts and url.is_default_port()) and f"{host}:{url.port}" not in hosts:
        raise FetchError(f"the host and port of {which} are not among those that this server fetches audio from")
    return url.with_host(host)


async def _body(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    if response.status != 200:
        raise FetchError(f"the host answered with status {response.status}")
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise FetchError("the host sent a compressed answer")
    too_large = f"the file is larger than {max_bytes / 2**20:g} MiB"
    if (response.content_length or 0) > max_bytes:
        raise FetchError(too_large)
    body = bytearray()
    async for block in response.content.iter_any():
        body += block
        if len(body) > max_bytes:
            raise FetchError(too_large)
    return bytes(body)
