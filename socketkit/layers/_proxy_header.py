"""The header of the PROXY protocol, versions 1 and 2, decoded from bytes. Knows no socket.

Source: HAProxy, doc/proxy-protocol.txt, sections 2.1 and 2.2.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Literal

import attrs

from socketkit.seams import Address, Kind

LONGEST_LINE = 107
"""Most bytes of a header of version 1, with its CRLF."""

LONGEST_UNIQUE_ID = 128
"""Most bytes of a connection's unique ID."""

_LINE = b"PROXY "
_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED = 16  # bytes of version 2: the signature, version and command, family and protocol, the length of the rest in two bytes

_SHORTEST = {1: len(b"PROXY UNKNOWN\r\n"), 2: _FIXED}


@attrs.frozen(kw_only=True)
class ProxySSL:
    """What the proxy says about the TLS connection between the client and itself."""

    client: int
    """Bits: 1, the client used TLS; 2, it sent a certificate on this connection; 4, it sent one in this TLS session."""
    verify: int
    """0 if the proxy has verified the client's certificate. Also 0 from some proxies for a client without one: ask `verified`."""
    version: str | None = None
    """TLS version, such as "TLSv1.3"."""
    common_name: str | None = None
    """Common name of the client's certificate."""
    cipher: str | None = None
    """Cipher, such as "TLS_AES_256_GCM_SHA384"."""
    signature_algorithm: str | None = None
    """Algorithm that the proxy's certificate was signed with, such as "RSA-SHA256"."""
    key_algorithm: str | None = None
    """Algorithm of the key of the proxy's certificate, such as "RSA2048"."""
    group: str | None = None
    """Group of the key exchange, such as "secp256r1"."""
    signature_scheme: str | None = None
    """Algorithm that the proxy signed its part of the handshake with, such as "rsa_pss_rsae_sha256"."""
    certificate: bytes | None = None
    """The client's certificate, DER."""
    others: tuple[tuple[int, bytes], ...] = ()
    """Type and value of every other field, as sent."""

    @property
    def verified(self) -> bool:
        """Whether the client has sent a certificate, and the proxy has verified it."""
        return bool(self.client & (2 | 4)) and self.verify == 0


@attrs.frozen(kw_only=True)
class ProxyHeader:
    """A PROXY header. An attribute is None if the header does not have it; version 1 has only addresses."""

    version: Literal[1, 2]
    """Version of the protocol."""
    command: Literal["proxy", "local"] = "proxy"
    """proxy: the connection is a client's. local: it is the proxy's own, such as a health check."""
    kind: Kind | None = None
    """How the client talks to the proxy: "stream" or "datagram"."""
    source: Address = None
    """The client's address, in the form of `getpeername`; None: the proxy does not say, so the peer's own address counts."""
    destination: Address = None
    """The address that the client connected to, in the form of `getsockname`."""
    alpn: bytes | None = None
    """Protocol on the connection, as negotiated by ALPN, such as ``b"h2"``."""
    authority: str | None = None
    """Host that the client asked for: with TLS, its server name (SNI)."""
    unique_id: bytes | None = None
    """The proxy's identifier of the connection, at most 128 bytes."""
    ssl: ProxySSL | None = None
    """The TLS connection between the client and the proxy."""
    netns: str | None = None
    """Name of the network namespace."""
    others: tuple[tuple[int, bytes], ...] = ()
    """Type and value of every other field, as sent."""


def decode(data: bytes, versions: Collection[int], most: int) -> tuple[ProxyHeader, int] | int:
    """Return the header that the data begins with, and its size in bytes; or how many more bytes the header has for certain.

    `data` is all that was received so far. Whoever reads no more than that number never reads a byte behind the header.

    versions: the versions to accept, 1 and 2 or one of them. most: most bytes of a header of version 2.
    Raises: ValueError as soon as the data cannot become a header, with a reason for the log.
    """
    if not data:
        return min(_SHORTEST[version] for version in versions)
    version = 2 if data[:1] == _SIGNATURE[:1] else 1
    start = _SIGNATURE if version == 2 else _LINE  # noqa: PLR2004
    if not start.startswith(data[: len(start)]):
        raise ValueError("proxy: no header")
    if version not in versions:
        raise ValueError(f"proxy: no header of version {' or '.join(map(str, versions))}")
    return _line(data) if version == 1 else _block(data, most)


# --- version 1 -------------------------------------------------------------------------------------------------------

_PORT = rb"(0|[1-9][0-9]{0,4})"
_INET_LINE = re.compile(rb"PROXY (TCP[46]) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) " + _PORT + b" " + _PORT + rb"\r\n")
_UNKNOWN_LINE = re.compile(rb"PROXY UNKNOWN(?: [^\r\n]*)?\r\n")


def _line(data: bytes) -> tuple[ProxyHeader, int] | int:
    size = data.find(b"\n", 0, LONGEST_LINE) + 1
    if not size:
        missing = max(_SHORTEST[1] - len(data), 1 if data.endswith(b"\r") else 2)
        if len(data) + missing > LONGEST_LINE:
            raise ValueError(f"proxy: the header does not end within {LONGEST_LINE} bytes")
        return missing
    line = data[:size]
    if _UNKNOWN_LINE.fullmatch(line):
        return ProxyHeader(version=1), size
    found = _INET_LINE.fullmatch(line)
    if found is None:
        raise ValueError("proxy: the header is malformed")
    pack, form = (_v4, _inet) if found[1] == b"TCP4" else (_v6, _inet6)
    source, destination = (form(pack(found[host].decode()), _port(found[port])) for host, port in ((2, 4), (3, 5)))
    return ProxyHeader(version=1, kind="stream", source=source, destination=destination), size


def _port(digits: bytes) -> int:
    if int(digits) > 0xFFFF:  # noqa: PLR2004
        raise ValueError("proxy: a port in the header is out of range")
    return int(digits)


def _v4(text: str) -> bytes:
    packed = _packed(socket.AF_INET, text)
    if socket.inet_ntoa(packed) != text:  # with leading zeros, which some systems accept, and some of those as octal
        raise ValueError("proxy: an address in the header is not IPv4")
    return packed


def _v6(text: str) -> bytes:
    return _packed(socket.AF_INET6, text)


def _packed(family: socket.AddressFamily, text: str) -> bytes:
    try:
        return socket.inet_pton(family, text)
    except OSError:
        raise ValueError(f"proxy: an address in the header is not {'IPv4' if family == socket.AF_INET else 'IPv6'}") from None


# --- version 2 -------------------------------------------------------------------------------------------------------

_COMMANDS: Mapping[int, Literal["proxy", "local"]] = {0: "local", 1: "proxy"}
_KINDS: Mapping[int, Kind | None] = {0: None, 1: "stream", 2: "datagram"}


def _block(data: bytes, most: int) -> tuple[ProxyHeader, int] | int:
    if len(data) < _FIXED:
        return _FIXED - len(data)
    version_and_command, family_and_kind = data[12:14]
    version, command = version_and_command >> 4, _COMMANDS.get(version_and_command & 0xF)
    if version != 2 or command is None:  # noqa: PLR2004
        raise ValueError(f"proxy: unknown version or command {version_and_command:#04x}")
    size = _FIXED + int.from_bytes(data[14:16], "big")
    if size > most:
        raise ValueError(f"proxy: a header of {size} bytes is longer than {most}")
    if len(data) < size:
        return size - len(data)
    if command == "local":  # its family, addresses and fields mean nothing
        return ProxyHeader(version=2, command="local"), size
    return _proxied(data[:size], family_and_kind >> 4, family_and_kind & 0xF), size


def _proxied(header: bytes, family: int, number: int) -> ProxyHeader:
    """Decode the rest of a whole header whose command is "proxy"."""
    if family > max(_FAMILIES) or number > max(_KINDS):
        raise ValueError(f"proxy: unknown family or protocol {family << 4 | number:#04x}")
    kind = _KINDS[number]
    if family == 0 or kind is None:  # unspecified: nobody can know where its addresses end and its fields begin
        return ProxyHeader(version=2)
    layout, form = _FAMILIES[family]
    end = _FIXED + layout.size
    if len(header) < end:
        raise ValueError("proxy: the header ends within its addresses")
    source, destination, *ports = layout.unpack_from(header, _FIXED)
    ends = {"source": form(source, *ports[:1]), "destination": form(destination, *ports[1:])}
    return ProxyHeader(version=2, kind=kind, **ends, **_fields(_checked(header, end), _FIELDS))


def _inet(host: bytes, port: int) -> Address:
    return socket.inet_ntop(socket.AF_INET, host), port


def _inet6(host: bytes, port: int) -> Address:
    return socket.inet_ntop(socket.AF_INET6, host), port, 0, 0


def _unix(name: bytes) -> Address:
    """Return a path as text and an abstract name as bytes, as `getpeername` does. Source: unix(7)."""
    path, _, rest = name.partition(b"\0")
    return name.rstrip(b"\0") if not path and rest.strip(b"\0") else os.fsdecode(path)


_FAMILIES: Mapping[int, tuple[struct.Struct, Callable[..., Address]]] = {
    1: (struct.Struct("!4s 4s H H"), _inet),
    2: (struct.Struct("!16s 16s H H"), _inet6),
    3: (struct.Struct("108s 108s"), _unix),
}
"""By the number of the family: how its addresses are laid out, and the function that makes an address of a host and its port."""


# --- fields (TLV: type, length, value) -------------------------------------------------------------------------------

_TYPE_AND_LENGTH = struct.Struct("!B H")
_CRC32C, _NOOP = 0x03, 0x04


def _triples(data: bytes, start: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield the type of each field from `start` to the end of the data, the place of its value, and the value."""
    while start < len(data):
        place = start + _TYPE_AND_LENGTH.size
        if place > len(data):
            raise ValueError("proxy: a field of the header is cut off")
        number, length = _TYPE_AND_LENGTH.unpack_from(data, start)
        start = place + length
        if start > len(data):
            raise ValueError(f"proxy: field {number:#04x} runs past the end of what holds it")
        yield number, place, data[place:start]


def _checked(header: bytes, start: int) -> Iterator[tuple[int, bytes]]:
    """Yield the fields of a header without padding and checksum. Raises: ValueError if the checksum is wrong."""
    for number, place, value in _triples(header, start):
        if number == _CRC32C:
            if len(value) != 4:  # noqa: PLR2004
                raise ValueError("proxy: the header's checksum is malformed")
            if crc32c(header[:place] + bytes(4) + header[place + 4 :]) != int.from_bytes(value, "big"):
                raise ValueError("proxy: the header's checksum is wrong")
        elif number != _NOOP:
            yield number, value


def _fields(fields: Iterable[tuple[int, bytes]], known: Mapping[int, tuple[str, Callable[[bytes], Any]]]) -> dict[str, Any]:
    """Return the known fields by name, and the others. One that is given twice is refused: nobody can know which of them counts."""
    named: dict[str, Any] = {}
    others = []
    for number, value in fields:
        if number not in known:
            others.append((number, value))
            continue
        name, read = known[number]
        if name in named:
            raise ValueError(f"proxy: the header has {name} twice")
        try:
            named[name] = read(value)
        except UnicodeDecodeError:
            raise ValueError(f"proxy: {name} is not text") from None
    return {**named, "others": tuple(others)}


def _ascii(value: bytes) -> str:
    return value.decode("ascii")


def _utf8(value: bytes) -> str:
    return value.decode("utf-8")


def _unique_id(value: bytes) -> bytes:
    if len(value) > LONGEST_UNIQUE_ID:
        raise ValueError(f"proxy: unique_id has {len(value)} bytes, more than {LONGEST_UNIQUE_ID}")
    return value


_CLIENT_AND_VERIFY = struct.Struct("!B I")


def _ssl(value: bytes) -> ProxySSL:
    if len(value) < _CLIENT_AND_VERIFY.size:
        raise ValueError("proxy: ssl is cut off")
    client, verify = _CLIENT_AND_VERIFY.unpack_from(value)
    inner = ((number, each) for number, _, each in _triples(value, _CLIENT_AND_VERIFY.size))
    return ProxySSL(client=client, verify=verify, **_fields(inner, _SSL_FIELDS))


_FIELDS: Mapping[int, tuple[str, Callable[[bytes], Any]]] = {
    0x01: ("alpn", bytes),
    0x02: ("authority", _utf8),
    0x05: ("unique_id", _unique_id),
    0x20: ("ssl", _ssl),
    0x30: ("netns", _ascii),
}
"""By the type of a field: the attribute of `ProxyHeader`, and the function that makes its value."""

_SSL_FIELDS: Mapping[int, tuple[str, Callable[[bytes], Any]]] = {
    0x21: ("version", _ascii),
    0x22: ("common_name", _utf8),
    0x23: ("cipher", _ascii),
    0x24: ("signature_algorithm", _ascii),
    0x25: ("key_algorithm", _ascii),
    0x26: ("group", _ascii),
    0x27: ("signature_scheme", _ascii),
    0x28: ("certificate", bytes),
}
"""The same for `ProxySSL`."""


# --- checksum --------------------------------------------------------------------------------------------------------


def crc32c(data: bytes) -> int:
    """Return the checksum CRC32c (Castagnoli). Source: RFC 4960, appendix B."""
    value = 0xFFFFFFFF
    for byte in data:
        value = _CRC_TABLE[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFFFFFF


def _remainder(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_CRC_TABLE = tuple(map(_remainder, range(256)))
