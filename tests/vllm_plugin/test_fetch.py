import asyncio
import contextlib
import gzip
import ipaddress
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from pathlib import Path

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from hypothesis import given, settings
from hypothesis import strategies as st
from yarl import URL

from balsa_ray.vllm_plugin import fetch as module
from balsa_ray.vllm_plugin.fetch import FetchError, allowed_host, fetch, is_public

PUBLIC = "127.0.0.2"  # taken for a public address here; 127.0.0.1 stays what it is
FORBIDDEN = "127.0.0.1"
LIMIT = 1000

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


class Names(AbstractResolver):
    """Resolves names by a table: a list of answers each, one after the other, the last one for ever."""

    def __init__(self, table: dict[str, list[list[str]]]) -> None:
        self.table = {name: list(answers) for name, answers in table.items()}
        self.asked: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked.append(host)
        answers = self.table[host]
        addresses = answers.pop(0) if len(answers) > 1 else answers[0]
        return [
            {
                "hostname": host,
                "host": address,
                "port": port,
                "family": socket.AF_INET6 if ":" in address else socket.AF_INET,
                "proto": 0,
                "flags": 0,
            }
            for address in addresses
        ]

    async def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def _one_loopback_address_is_public(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_public", lambda address: address == PUBLIC or is_public(address))


def answer(status: str = "200 OK", body: bytes = b"sound", length: bool = True, **headers: str) -> Answer:
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    lines += [f"Content-Length: {len(body)}"] if length else []

    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        await writer.drain()

    return write


def pair() -> tuple[socket.socket, socket.socket]:
    """Sockets at the public and the forbidden address, with one port."""
    first = socket.create_server((PUBLIC, 0))
    try:
        return first, socket.create_server((FORBIDDEN, first.getsockname()[1]))
    except OSError:  # taken there by somebody else
        first.close()
        return pair()


@contextlib.asynccontextmanager
async def server(given: Answer, at: socket.socket, tls: ssl.SSLContext | None = None) -> AsyncIterator[list[str]]:
    """A server that gives one answer to everything; yields the heads of all requests."""
    requests: list[str] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append("")
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            requests[-1] = (await reader.readuntil(b"\r\n\r\n")).decode()
            await given(writer)
        writer.close()

    listening = await asyncio.start_server(talk, sock=at, ssl=tls)
    try:
        yield requests
    finally:
        listening.close()


def run(
    given: Answer,
    url: str = "http://audio.example:{port}/a.wav",
    hosts: Collection[str] = ("audio.example:{port}",),
    table: dict[str, list[list[str]]] | None = None,
    seconds: float = 5.0,
    connect_seconds: float = 5.0,
    tls: ssl.SSLContext | None = None,
) -> tuple[bytes | FetchError, list[str], list[str]]:
    """Fetches from a server on the public address, while another listens on the forbidden one, at the same port.

    Returns:
        What was fetched or the reason why not, the requests that the former got, and the names that were resolved.
    """

    async def both() -> tuple[bytes | FetchError, list[str], list[str]]:
        names = Names(table or {"audio.example": [[PUBLIC]]})
        allowed, forbidden = pair()
        port = allowed.getsockname()[1]
        async with server(given, allowed, tls) as requests, server(given, forbidden) as never:
            result: bytes | FetchError
            try:
                result = await fetch(
                    url.format(port=port),
                    {host.format(port=port) for host in hosts},
                    max_bytes=LIMIT,
                    seconds=seconds,
                    connect_seconds=connect_seconds,
                    resolver=names,
                )
            except FetchError as error:
                result = error
            assert never == [], "the forbidden server was reached"
        return result, requests, names.asked

    return asyncio.run(both())


def reason(result: object) -> str:
    assert isinstance(result, FetchError), result
    assert not any(secret in str(result) for secret in ("127.", "169.254", "10.0", "::1", "sound", "internal")), result
    return str(result)


@pytest.mark.parametrize(
    "url",
    [
        "http://audio.example:{port}/a.wav?x=1#part",
        "HTTP://AUDIO.Example:{port}/a.wav?x=1",
        "http://audio.example.:{port}/a.wav?x=1",
        "http://\uff41udio\u3002example:{port}/a.wav?x=1",  # full-width, as browsers read it
    ],
)
def test_a_file_of_an_allowed_host_is_fetched(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://{FORBIDDEN}:1")
    result, requests, asked = run(answer(Set_Cookie="a=b"), url)
    assert result == b"sound"
    assert asked == ["audio.example"], "resolved once, under the name that was compared"
    (request,) = requests
    assert request.startswith("GET /a.wav?x=1 HTTP/1.1\r\nHost: audio.example:")
    assert "Accept-Encoding: identity" in request
    assert "cookie" not in request.lower()
    assert "authorization" not in request.lower()


def test_a_name_in_another_script_is_compared_in_ascii() -> None:
    hosts = [allowed_host("Bücher.example") + ":{port}"]
    result, _, asked = run(answer(), "http://b\u00fccher.example:{port}/", hosts, {"xn--bcher-kva.example": [[PUBLIC]]})
    assert (result, asked) == (b"sound", ["xn--bcher-kva.example"])


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file:///etc/passwd", "not of http or https"),
        ("ftp://audio.example/a.wav", "not of http or https"),
        ("gopher://audio.example:{port}/", "not of http or https"),
        ("javascript:alert(1)", "not of http or https"),
        ("//audio.example:{port}/a.wav", "not of http or https"),
        ("/etc/passwd", "not of http or https"),
        ("", "not of http or https"),
        ("http://user:word@audio.example:{port}/", "a user or a password"),
        ("http://user@audio.example:{port}/", "a user or a password"),
        ("http://:word@audio.example:{port}/", "a user or a password"),
        ("http://audio.example@127.0.0.1:{port}/", "a user or a password"),
        ("http://audio.example\\@127.0.0.1:{port}/", "not valid"),
        ("http://[::1", "not valid"),
        ("http://[]audio.example@", "not valid"),
        ("http://audio.example:99999/", "not valid"),
        ("http://audio.example:{port}/" + "a" * 9000, "longer than"),
        ("http://audio.example/", "not among those"),  # another port
        ("https://audio.example/", "not among those"),
        ("http://plain.example:{port}/", "not among those"),
        ("http://other.example:{port}/", "not among those"),
        ("http://sub.audio.example:{port}/", "not among those"),
        ("http://audio.example.evil.example:{port}/", "not among those"),
        ("http://audio.example..:{port}/", "not among those"),
        ("http://audio%2eexample:{port}/", "not among those"),
        ("http://localhost:{port}/", "not among those"),
        ("http://127.0.0.1:{port}/", "not among those"),
        ("http://127.0.0.2:{port}/", "not among those"),
        ("http://[::1]:{port}/", "not among those"),
        ("http://[::ffff:127.0.0.1]:{port}/", "not among those"),
        ("http://2130706433:{port}/", "not among those"),
        ("http://0177.0.0.1:{port}/", "not among those"),
        ("http://0x7f.1:{port}/", "not among those"),
        ("http://127.1:{port}/", "not among those"),
        ("http://0:{port}/", "not among those"),
        ("http:///a.wav", "not among those"),
        ("http:audio.example", "not among those"),
    ],
)
def test_another_url_is_refused_before_anything_is_resolved(url: str, message: str) -> None:
    hosts = ["audio.example:{port}", "plain.example"]
    result, requests, asked = run(answer(), url, hosts)
    assert message in reason(result)
    assert (requests, asked) == ([], [])


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("http://127.0.0.1/", "not among those"),
        ("http://169.254.169.254/latest/meta-data", "not among those"),
        ("http://[::1]/", "not among those"),
        ("http://localhost/", "not among those"),
        ("//internal.example/", "not among those"),
        ("https://audio.example/", "not among those"),
        ("file:///etc/passwd", "not of http or https"),
        ("data:audio/wav;base64,AAAA", "not of http or https"),
        ("http://user:word@audio.example/", "a user or a password"),
        ("http://[", "not valid"),
    ],
)
def test_a_redirect_is_checked_like_the_url(location: str, message: str, status: int) -> None:
    result, requests, asked = run(answer(f"{status} Elsewhere", Location=location))
    assert message in reason(result)
    assert (len(requests), asked) == (1, ["audio.example"])


def hops(most: int) -> Answer:
    """Redirects to itself, by a relative URL, so many times."""
    left = [most]

    async def write(writer: asyncio.StreamWriter) -> None:
        left[0] -= 1
        await (answer() if left[0] < 0 else answer("302 Found", b"not this", Location="other?x=1", Set_Cookie="a=b"))(
            writer
        )

    return write


def test_three_redirects_are_followed_and_no_more() -> None:
    result, requests, _ = run(hops(3))
    assert result == b"sound"
    assert [request.split()[1] for request in requests] == ["/a.wav", "/other?x=1", "/other?x=1", "/other?x=1"]
    assert not any("cookie" in request.lower() for request in requests)
    result, requests, _ = run(hops(4))
    assert "more than 3 redirects" in reason(result)
    assert len(requests) == 4


@pytest.mark.parametrize(
    "addresses",
    [[FORBIDDEN], [PUBLIC, FORBIDDEN], ["::1"], [PUBLIC, "::ffff:127.0.0.1"], ["10.0.0.7"], ["169.254.169.254"], []],
)
def test_an_allowed_name_with_an_address_that_is_not_public_is_refused(addresses: list[str]) -> None:
    result, requests, asked = run(answer(), table={"audio.example": [addresses]})
    assert "no public address" in reason(result)
    assert (requests, asked) == ([], ["audio.example"])


def test_a_name_that_changes_its_address_is_checked_each_time() -> None:
    rebinding = {"audio.example": [[PUBLIC], [FORBIDDEN]]}
    result, _, asked = run(answer(), table=rebinding)
    assert (result, asked) == (b"sound", ["audio.example"]), "there is no second resolution between check and use"
    result, requests, asked = run(hops(1), table=rebinding)
    assert "no public address" in reason(result)
    assert (len(requests), len(asked)) == (1, 2)


def test_localhost_on_the_list_is_still_not_public() -> None:
    result, requests, _ = run(
        answer(), "http://localhost:{port}/", ["localhost:{port}"], {"localhost": [[FORBIDDEN, "::1"]]}
    )
    assert "no public address" in reason(result)
    assert requests == []


async def endless(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(bytes(LIMIT))
        await writer.drain()


async def chunked(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + (b"12c\r\n" + bytes(300) + b"\r\n") * 4)
    await writer.drain()
    await asyncio.sleep(60)


async def announced(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n")
    await writer.drain()
    await asyncio.sleep(60)


@pytest.mark.parametrize("given", [endless, chunked, announced, answer(body=bytes(LIMIT + 1))])
def test_a_file_that_is_too_large_is_not_read_to_its_end(given: Answer) -> None:
    assert "larger than" in reason(run(given)[0])


@pytest.mark.parametrize("length", [True, False])
def test_a_file_of_the_largest_size_is_taken(length: bool) -> None:
    assert run(answer(body=bytes(LIMIT), length=length))[0] == bytes(LIMIT)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (answer(body=gzip.compress(bytes(10**6)), Content_Encoding="gzip"), "compressed"),
        (answer(Content_Encoding="deflate"), "compressed"),
        (answer(Content_Encoding="br"), "compressed"),
        (answer("404 Not Found", b"internal"), "status 404"),
        (answer("500 Oops"), "status 500"),
        (answer("206 Partial Content"), "status 206"),
        (answer("302 Found"), "status 302"),
        (answer("200 OK", Content_Length="100"), "can't be reached, or broke off"),
        (answer("what"), "can't be reached, or broke off"),
    ],
)
def test_another_answer_is_refused_and_not_shown(given: Answer, message: str) -> None:
    result, requests, _ = run(given)
    assert message in reason(result)
    assert len(requests) == 1, "not asked again"


async def silent(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def trickling(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("given", [silent, trickling])
def test_a_slow_host_is_not_waited_for(given: Answer) -> None:
    assert "longer than 5 s to connect or 0.3 s in all" in reason(run(given, seconds=0.3)[0])


def test_a_host_that_accepts_no_connection_is_not_waited_for() -> None:
    # Nobody speaks TLS there, and nobody answers either.
    hung = run(silent, "https://audio.example:{port}/", connect_seconds=0.3)[0]
    assert "longer than 0.3 s to connect" in reason(hung)


def test_nobody_at_home_is_told_without_the_address() -> None:
    with socket.socket() as free:
        free.bind((PUBLIC, 0))
        port = free.getsockname()[1]
    result = run(answer(), f"http://audio.example:{port}/", [f"audio.example:{port}"])[0]
    assert "can't be reached" in reason(result)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=audio.example", "-addext", "subjectAltName=DNS:audio.example",
         "-keyout", folder / "both.pem", "-out", folder / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    with (folder / "both.pem").open("a") as file:
        file.write((folder / "cert.pem").read_text())
    return folder / "both.pem"


@pytest.mark.parametrize(
    ("name", "trusted", "message"),
    [
        ("audio.example", True, None),
        ("audio.example", False, "no valid TLS certificate"),
        ("other.example", True, "no valid TLS certificate"),
    ],
)
def test_tls_is_checked_against_the_name_and_not_the_address(
    certificate: Path, monkeypatch: pytest.MonkeyPatch, name: str, trusted: bool, message: str | None
) -> None:
    named: list[str | None] = []
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    tls.sni_callback = lambda _socket, asked, _context: named.append(asked)
    if trusted:  # aiohttp makes the context of the system's authorities when it is imported
        context = ssl.create_default_context(cafile=certificate)
        monkeypatch.setattr("aiohttp.connector._SSL_CONTEXT_VERIFIED", context)
    url, hosts = f"https://{name}:{{port}}/", [f"{name}:{{port}}"]
    result, requests, _ = run(answer(), url, hosts, {name: [[PUBLIC]]}, tls=tls)
    assert named == [name]
    if message is None:
        assert result == b"sound"
    else:
        assert message in reason(result)
        assert requests == []


@pytest.mark.parametrize(
    ("entry", "form"),
    [
        ("audio.example", "audio.example"),
        ("Audio.Example.", "audio.example"),
        ("audio.example:8080", "audio.example:8080"),
        ("bücher.example:443", "xn--bcher-kva.example:443"),
        ("minio", "minio"),
    ],
)
def test_entries_of_the_list_are_brought_to_one_form(entry: str, form: str) -> None:
    assert allowed_host(entry) == form


@pytest.mark.parametrize(
    "entry",
    [
        "", "*", "*.example", "http://audio.example", "audio.example/path", "audio.example?x", "u@audio.example",
        "audio.example:0", "audio.example:x", "a,b", "a b", "audio..example", "127.0.0.1", "2130706433", "0x7f000001",
        "127.1", "0177.0.0.1", "[::1]", "::1", "a" * 64, "a." * 130 + "b",
    ],
)  # fmt: skip
def test_what_is_no_name_is_refused_as_an_entry(entry: str) -> None:
    with pytest.raises(ValueError, match="not the name of a host"):
        allowed_host(entry)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True), ("2606:4700::1111", True), ("64:ff9b::8.8.8.8", True),
        ("127.0.0.1", False), ("0.0.0.0", False), ("10.1.2.3", False), ("172.16.0.1", False), ("192.168.0.1", False),
        ("100.64.0.1", False), ("100.100.100.200", False), ("169.254.169.254", False), ("192.0.0.192", False),
        ("168.63.129.16", False), ("198.18.0.1", False), ("203.0.113.1", False), ("224.0.0.1", False),
        ("240.0.0.1", False), ("255.255.255.255", False),
        ("::", False), ("::1", False), ("::127.0.0.1", False), ("fe80::1", False), ("fe80::1%eth0", False),
        ("fc00::1", False), ("fd00:ec2::254", False), ("fec0::1", False), ("ff02::1", False), ("2001:db8::1", False),
        ("64:ff9b:1::1", False),
    ],
)  # fmt: skip
def test_an_address_is_public_or_not(address: str, public: bool) -> None:
    assert is_public(address) == public


@given(st.ip_addresses(v=4))
@settings(deadline=None)
def test_an_address_hides_in_no_other(ip: ipaddress.IPv4Address) -> None:
    for mapped in (
        int(ip) | 0xFFFF << 32,
        int(ip),
        0x2002 << 112 | int(ip) << 80,
        0x20010000 << 96 | int(ip) ^ 2**32 - 1,
    ):
        assert not is_public(str(ipaddress.IPv6Address(mapped)))
    assert is_public(str(ipaddress.IPv6Address(0x64FF9B << 96 | int(ip)))) == is_public(str(ip))


AUTHORITIES = st.text(alphabet="audio.exmpl:@/\\?#[]%0172\u3002 \t", max_size=30)


@given(before=AUTHORITIES, after=AUTHORITIES, base=st.sampled_from([None, URL("http://audio.example/a/b")]))
@settings(deadline=None)
def test_what_passes_has_an_allowed_host_whatever_stands_around_it(before: str, after: str, base: URL | None) -> None:
    with contextlib.suppress(FetchError):
        url = module._checked(f"http://{before}audio.example{after}", base, {"audio.example"})
        again = URL(str(url))
        assert (again.host, again.port, again.user, again.password) == ("audio.example", 80, None, None)
