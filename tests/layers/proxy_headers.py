"""Headers of the PROXY protocol for tests: an encoder, and a second reader that is written in another way.

Source: HAProxy, doc/proxy-protocol.txt.
"""

import os
import struct
from ipaddress import ip_address

SIGNATURE = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a"
ALPN, AUTHORITY, CRC32C, NOOP, UNIQUE_ID, SSL, NETNS = 0x01, 0x02, 0x03, 0x04, 0x05, 0x20, 0x30


def block(command, family, rest=b"", *, version=2, length=None):
    """Return a header of version 2 whose parts may all be wrong."""
    head = bytes(((version << 4) | command, family)) + struct.pack("!H", len(rest) if length is None else length)
    return SIGNATURE + head + rest


def field(number, value):
    return struct.pack("!BH", number, len(value)) + value


def v4(source="192.0.2.7", destination="192.0.2.1", source_port=50000, port=443):
    return ip_address(source).packed + ip_address(destination).packed + struct.pack("!HH", source_port, port)


def summed(header):
    """Return the header with a checksum behind it."""
    longer = header[:14] + struct.pack("!H", int.from_bytes(header[14:16], "big") + 7) + header[16:] + field(CRC32C, bytes(4))
    return longer[:-4] + struct.pack("!I", crc32c(longer))


def crc32c(data):
    """Divide bit by bit, without a table."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 * (value & 1))
    return value ^ 0xFFFFFFFF


# --- encoder ----------------------------------------------------------------------------------------------------------


def encode(header):
    if header.version == 1:
        if header.source is None:
            return b"PROXY UNKNOWN\r\n"
        (host, port, *_), (to, to_port, *_) = header.source, header.destination
        return f"PROXY {'TCP6' if ':' in host else 'TCP4'} {host} {to} {port} {to_port}\r\n".encode()
    if header.command == "local":
        return block(0, 0)
    if header.source is None:
        return block(1, 0)
    low = {"stream": 1, "datagram": 2}[header.kind]
    if isinstance(header.source, tuple):
        (host, port, *_), (to, to_port, *_) = header.source, header.destination
        family, addresses = (2 if ":" in host else 1), v4(host, to, port, to_port)
    else:
        family, addresses = 3, b"".join(name_of(each).ljust(108, b"\0") for each in (header.source, header.destination))
    return block(1, family << 4 | low, addresses + fields_of(header))


def name_of(address):
    return os.fsencode(address)


def fields_of(header):
    known = {ALPN: header.alpn, UNIQUE_ID: header.unique_id}
    known |= {number: None if text is None else text.encode() for number, text in ((AUTHORITY, header.authority), (NETNS, header.netns))}
    if header.ssl:
        known[SSL] = struct.pack("!BI", header.ssl.client, header.ssl.verify) + inner_fields_of(header.ssl)
    return b"".join(field(*each) for each in (*((number, value) for number, value in known.items() if value is not None), *header.others))


def inner_fields_of(ssl):
    texts = (ssl.version, ssl.common_name, ssl.cipher, ssl.signature_algorithm, ssl.key_algorithm, ssl.group, ssl.signature_scheme)
    known = {0x21 + place: text.encode() for place, text in enumerate(texts) if text is not None}
    if ssl.certificate is not None:
        known[0x28] = ssl.certificate
    return b"".join(field(*each) for each in (*known.items(), *ssl.others))


# --- a second reader --------------------------------------------------------------------------------------------------


def meaning(data):
    """Read a whole header naively, and return what it says: version, command, source, destination, and the known fields as bytes.

    It trusts the header, checks nothing, and raises anything if the header is malformed.
    """
    if data.startswith(b"PROXY"):
        _, family, *words = data.removesuffix(b"\r\n").decode("latin-1").split(" ")
        if family == "UNKNOWN":
            return 1, "proxy", None, None, {}
        return 1, "proxy", (str_of(words[0]), int(words[2])), (str_of(words[1]), int(words[3])), {}
    command, family, rest = data[12] & 0xF, data[13], data[16:]
    if command == 0:
        return 2, "local", None, None, {}
    if not family >> 4 or not family & 0xF:
        return 2, "proxy", None, None, {}
    size = {1: 4, 2: 16, 3: 108}[family >> 4]
    source, destination, rest = rest[:size], rest[size : 2 * size], rest[2 * size :]
    if size == 108:
        return 2, "proxy", path_of(source), path_of(destination), fields_in(rest)
    ports = int.from_bytes(rest[:2], "big"), int.from_bytes(rest[2:4], "big")
    ends = [(str(ip_address(host)), port) for host, port in zip((source, destination), ports, strict=True)]
    return 2, "proxy", *ends, fields_in(rest[4:])


def str_of(host):
    return str(ip_address(host))


def path_of(name):
    return name.rstrip(b"\0") if name[0] == 0 else name[: (name + b"\0").index(b"\0")]


def fields_in(data):
    """Return the fields by type; of those of TLS, each one's fields too."""
    found = {number: value for number, value in split(data) if number not in {CRC32C, NOOP}}
    if SSL in found:
        found[SSL] = found[SSL][:5], dict(split(found[SSL][5:]))
    return found


def split(data):
    while data:
        length = data[1] << 8 | data[2]
        assert len(data) >= 3 + length
        yield data[0], data[3 : 3 + length]
        data = data[3 + length :]


def said(header):
    """Return the same for a decoded header."""
    ends = [
        None if end is None else (str_of(end[0]), end[1]) if isinstance(end, tuple) else name_of(end)
        for end in (header.source, header.destination)
    ]
    return header.version, header.command, *ends, fields_in(fields_of(header))
