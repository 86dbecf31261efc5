"""Pictures and clips at addresses in a request, of the hosts that the operator named.

A request must not make this server reach what its sender cannot. So a host is compared before its
name is looked up, a name must lead to public addresses, the connection goes to an address that was
looked at, and a redirect is a new address. Who allows a private place names its address.
"""

import asyncio
import dataclasses
import functools
import ipaddress
import re
import ssl
import urllib.parse
from collections.abc import Collection

import h11

from srum_jax.core.errors import BadInput, quoted
from srum_jax.serving.pictures import Bytes, Link
from srum_jax.serving.refusals import Refusal

_PORTS = {"http": 80, "https": 443}
_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 3
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?")


@dataclasses.dataclass(frozen=True)
class Host:
    """A host of which addresses are opened: its name or address in lower case, and the port; None:
    that of the scheme."""

    name: str
    port: int | None = None

    @classmethod
    def of(cls, told: str) -> "Host":
        """Of "HOST" or "HOST:PORT". Raises BadInput for anything else."""
        found = _HOST.fullmatch(told.lower())
        port = int(found[2]) if found and found[2] else None
        if not found or port is not None and not 0 < port < 65536:
            raise BadInput(
                f"--allow_urls: {quoted(told)} is no HOST or HOST:PORT, without https://"
            )
        return cls(found[1].strip("[]").rstrip("."), port)


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a file is: what is asked for at a host's port."""

    secure: bool
    host: str
    port: int
    target: str
    said: str  # the host as the request's head names it


@dataclasses.dataclass(frozen=True)
class Fetcher:
    """hosts: of which addresses are opened · most: bytes of a file · seconds: that it may take."""

    hosts: Collection[Host] = ()
    most: int = 32 * 2**20
    seconds: float = 15.0

    async def fetch(self, link: Link, most: int | None = None) -> Bytes:
        """The file at an address; most: bytes of it, where that is less than of any file.

        Raises Refusal 400 for an address that is not to be opened, 422 where it gives no file.
        """
        try:
            async with asyncio.timeout(self.seconds):
                return await self._followed(
                    link, self.most if most is None else min(most, self.most)
                )
        except TimeoutError:
            raise _unavailable(link, f"did not come within {self.seconds:g} seconds") from None
        except (OSError, ValueError, h11.ProtocolError):
            raise _unavailable(link, "could not be fetched from its host") from None

    async def _followed(self, link: Link, most: int) -> Bytes:
        url = link.url
        for _ in range(_MOST_REDIRECTS + 1):
            place = self._place(url, link.name)
            answer, data = await _got(place, link, most)
            head = {key.decode("latin-1"): value for key, value in answer.headers}
            if answer.status_code in _REDIRECTS and "location" in head:
                url = urllib.parse.urljoin(url, head["location"].decode("latin-1"))
                continue
            if answer.status_code != 200:
                raise _unavailable(link, f"was answered by its host with {answer.status_code}")
            media = head.get("content-type", b"").decode("latin-1").partition(";")[0]
            return Bytes(data, link.name, media.strip().lower())
        raise _unavailable(link, f"is behind more than {_MOST_REDIRECTS} redirects")

    def _place(self, url: str, name: str) -> _Place:
        """Raises Refusal 400 for an address that is not to be opened."""
        try:
            parts = urllib.parse.urlsplit(url)
            host, port = (parts.hostname or "").rstrip("."), parts.port
        except ValueError:  # brackets, ports that are no number
            raise _not_opened(url, name) from None
        plain = re.fullmatch(r"[\x21-\x7e]{1,4000}", url) and "@" not in parts.netloc
        usual = _PORTS.get(parts.scheme)
        port = port or usual
        known = any((one.name, one.port or usual) == (host, port) for one in self.hosts)
        if not plain or not usual or not known:
            raise _not_opened(url, name)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return _Place(parts.scheme == "https", host, port, target, parts.netloc)


async def _connected(
    place: _Place, link: Link
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the first address of a place that takes one. Raises OSError if none does."""
    secure = {"ssl": _tls(), "server_hostname": place.host} if place.secure else {}
    error = None
    for address in await _addresses(place, link):
        try:
            return await asyncio.open_connection(address, place.port, **secure)
        except OSError as e:
            error = e
    raise error


async def _got(place: _Place, link: Link, most: int) -> tuple[h11.Response, bytes]:
    """What one request is answered with; the body of status 200 alone."""
    reader, writer = await _connected(place, link)
    try:
        wire, body = h11.Connection(h11.CLIENT), bytearray()
        head = {"Host": place.said, "Accept": "image/*, video/*", "Connection": "close"}
        head |= {"Accept-Encoding": "identity", "User-Agent": "srum_jax"}
        asked = h11.Request(method="GET", target=place.target, headers=list(head.items()))
        writer.write(wire.send(asked) + wire.send(h11.EndOfMessage()))
        answer = None
        while True:
            event = wire.next_event()
            if event is h11.NEED_DATA:
                wire.receive_data(await reader.read(2**16))
            elif isinstance(event, h11.Response):
                answer = event
                if event.status_code != 200:
                    return answer, b""
                _check(event, link, most)
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > most:
                    raise _too_large(link, most)
            elif not isinstance(event, h11.InformationalResponse):
                return answer, bytes(body)
    finally:
        writer.transport.abort()


def _check(answer: h11.Response, link: Link, most: int) -> None:
    """Raises Refusal 422 for what is too large by its head, or packed."""
    head = dict(answer.headers)
    if int(head.get(b"content-length", b"0")) > most:
        raise _too_large(link, most)
    if head.get(b"content-encoding", b"identity") != b"identity":
        raise _unavailable(link, "came packed, and was asked for as it is")


def _too_large(link: Link, most: int) -> Refusal:
    return _unavailable(link, f"has more than {most} bytes")


async def _addresses(place: _Place, link: Link) -> list[str]:
    """What a name leads to; an address that the operator named is taken as it is."""
    try:
        return [str(ipaddress.ip_address(place.host))]
    except ValueError:
        pass
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(place.host, place.port, type=1)  # of a stream
    several = [one for one in dict.fromkeys(info[4][0] for info in found) if public(one)]
    if not several:
        raise _unavailable(link, "is at a name that leads to no public address")
    return several


def public(address: str) -> bool:
    """Whether an IP address is one of the internet at large; of an IPv6 address that carries an
    IPv4 address, whether that is."""
    ip = ipaddress.ip_address(address)
    if ip.version == 6:
        last = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else None
        ip = ip.ipv4_mapped or ip.sixtofour or last or ip
    inner = ip.version == 6 and ip.is_site_local
    return ip.is_global and not ip.is_multicast and not inner


@functools.cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _not_opened(url: str, name: str) -> Refusal:
    told = f"{name} must be data:image/png;base64,… or an address of a host that this server was "
    told += f"told to open (--allow_urls), got {quoted(url, 60)}"
    return Refusal(400, told, param=name, code="invalid_image_url")


def _unavailable(link: Link, why: str) -> Refusal:
    told = f"{link.name}: {quoted(link.url, 60)} {why}"
    return Refusal(422, told, param=link.name, code="image_unavailable")
