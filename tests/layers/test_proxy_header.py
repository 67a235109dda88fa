"""The header of the PROXY protocol as bytes: what is read from it, what is refused, and that nothing behind it is touched."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layers.proxy_headers import (
    ALPN,
    AUTHORITY,
    CRC32C,
    NETNS,
    NOOP,
    SIGNATURE,
    SSL,
    UNIQUE_ID,
    block,
    crc32c,
    encode,
    field,
    meaning,
    said,
    split,
    summed,
    v4,
)
from layers.proxy_strategies import blocks, headers
from socketkit import ProxyHeader, ProxySSL
from socketkit.layers import _proxy_header
from socketkit.layers._proxy_header import decode

BOTH, MOST = (1, 2), 4096

calm = settings(deadline=None)  # the machine may be loaded


def read(data, versions=BOTH, most=MOST):
    """Decode a header that is all of the data."""
    header, size = decode(data, versions, most)
    assert size == len(data)
    return header


V6 = (("2001:db8::7", 50000, 0, 0), ("2001:db8::1", 443, 0, 0))
V4 = (("192.0.2.7", 50000), ("192.0.2.1", 443))
V6_BYTES = bytes.fromhex("20010db8000000000000000000000007 20010db8000000000000000000000001 c350 01bb")


def line(source, destination):
    return ProxyHeader(version=1, kind="stream", source=source, destination=destination)


def of(source, destination, kind="stream", **fields):
    return ProxyHeader(version=2, kind=kind, source=source, destination=destination, **fields)


def path(name):
    return name.ljust(108, b"\0")


UNKNOWN, UNSPECIFIED, LOCAL = ProxyHeader(version=1), ProxyHeader(version=2), ProxyHeader(version=2, command="local")
EIGHT = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"

VALID = {
    # section 2.1
    b"PROXY TCP4 192.0.2.7 192.0.2.1 50000 443\r\n": line(*V4),
    b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n": line(("255.255.255.255", 65535), ("255.255.255.255", 65535)),
    b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n": line(("0.0.0.0", 0), ("0.0.0.0", 0)),
    b"PROXY TCP6 2001:db8::7 2001:db8::1 50000 443\r\n": line(*V6),
    b"PROXY TCP6 2001:DB8::7 2001:0db8:0:0:0:0:0:0001 50000 443\r\n": line(*V6),
    f"PROXY TCP6 {EIGHT} {EIGHT} 65535 65535\r\n".encode(): line((EIGHT, 65535, 0, 0), (EIGHT, 65535, 0, 0)),
    b"PROXY TCP6 ::ffff:192.0.2.7 ::1 1 2\r\n": line(("::ffff:192.0.2.7", 1, 0, 0), ("::1", 2, 0, 0)),  # so write HAProxy and nginx
    b"PROXY UNKNOWN\r\n": UNKNOWN,
    b"PROXY UNKNOWN \r\n": UNKNOWN,
    b"PROXY UNKNOWN anything \0\xff at all\r\n": UNKNOWN,
    f"PROXY UNKNOWN {EIGHT} {EIGHT} 65535 65535\r\n".encode(): UNKNOWN,  # 107 bytes, the longest
    # section 2.2, each byte of family and protocol
    block(1, 0x00): UNSPECIFIED,
    block(1, 0x00, b"skipped"): UNSPECIFIED,
    block(1, 0x01, b"skipped"): UNSPECIFIED,
    block(1, 0x10, v4()): UNSPECIFIED,
    block(1, 0x11, v4()): of(*V4),
    block(1, 0x12, v4()): of(*V4, kind="datagram"),
    block(1, 0x21, V6_BYTES): of(*V6),
    block(1, 0x22, V6_BYTES): of(*V6, kind="datagram"),
    block(1, 0x31, path(b"/run/a") + path(b"/run/b")): of("/run/a", "/run/b"),
    block(1, 0x32, path(b"") + path(b"\0name")): of("", b"\0name", kind="datagram"),
    block(1, 0x31, path(b"a\0rubbish") + b"b" * 108): of("a", "b" * 108),
    block(0, 0x00): LOCAL,
    block(0, 0x11, v4()): LOCAL,
    block(0, 0xFF, b"skipped"): LOCAL,
    # sections 2.2.1 to 2.2.8
    block(1, 0x11, v4() + field(ALPN, b"h2")): of(*V4, alpn=b"h2"),
    block(1, 0x11, v4() + field(AUTHORITY, "münchen.example".encode())): of(*V4, authority="münchen.example"),
    block(1, 0x11, v4() + field(UNIQUE_ID, b"\xff" * 128)): of(*V4, unique_id=b"\xff" * 128),
    block(1, 0x11, v4() + field(NETNS, b"blue")): of(*V4, netns="blue"),
    block(1, 0x11, v4() + field(NOOP, b"") + field(NOOP, b"padding") + field(ALPN, b"")): of(*V4, alpn=b""),
    block(1, 0x11, v4() + field(0xEA, b"\1vpce") + field(0xEA, b"")): of(*V4, others=((0xEA, b"\1vpce"), (0xEA, b""))),
    block(1, 0x11, v4() + field(SSL, b"\1\0\0\0\1" + field(0x21, b"TLSv1.3"))): of(
        *V4, ssl=ProxySSL(client=1, verify=1, version="TLSv1.3")
    ),
    block(
        1,
        0x11,
        v4()
        + field(
            SSL,
            b"\7\0\0\0\0"
            + b"".join(field(0x21 + n, text) for n, text in enumerate((b"v", b"c\xc3\xb6", b"ci", b"si", b"ke", b"gr", b"sc", b"\0\xff")))
            + field(0x99, b"?"),
        ),
    ): of(
        *V4,
        ssl=ProxySSL(
            client=7,
            verify=0,
            version="v",
            common_name="cö",
            cipher="ci",
            signature_algorithm="si",
            key_algorithm="ke",
            group="gr",
            signature_scheme="sc",
            certificate=b"\0\xff",
            others=((0x99, b"?"),),
        ),
    ),
    summed(block(1, 0x11, v4())): of(*V4),
    summed(block(1, 0x21, V6_BYTES + field(ALPN, b"h2"))): of(*V6, alpn=b"h2"),
}

MALFORMED, V4_WRONG, V6_WRONG = "the header is malformed", "an address in the header is not IPv4", "an address in the header is not IPv6"
CUT, OVERRUN = "a field of the header is cut off", "runs past the end"
REFUSED = {
    b"GET / HTTP/1.1\r\n": "no header",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03": "no header",  # TLS
    b"POST": "no header",
    b"proxy TCP4": "no header",
    b"PROXY\tTCP4": "no header",
    SIGNATURE[:11] + b"\r": "no header",
    b"PROXY \r\n": MALFORMED,
    b"PROXY  TCP4 192.0.2.7 192.0.2.1 50000 443\r\n": MALFORMED,
    b"PROXY TCP4 192.0.2.7 192.0.2.1 50000  443\r\n": MALFORMED,
    b"PROXY TCP4 192.0.2.7 192.0.2.1 50000 443 \r\n": MALFORMED,
    b"PROXY TCP4 192.0.2.7 192.0.2.1 50000\r\n": MALFORMED,
    b"PROXY TCP4 192.0.2.7 192.0.2.1 50000 443\n": MALFORMED,
    b"PROXY TCP4 192.0.2.7 192.0.2.1 50000 443\r\r\n": MALFORMED,
    b"PROXY TCP4 192.0.2.7 192.0.2.1 50000\r443\r\n": MALFORMED,
    b"PROXY UNKNOWN a\rb\r\n": MALFORMED,
    b"PROXY UNKNOWN\n": MALFORMED,
    b"PROXY UNKNOWNS\r\n": MALFORMED,
    b"PROXY UDP4 192.0.2.7 192.0.2.1 50000 443\r\n": MALFORMED,
    b"PROXY TCP 192.0.2.7 192.0.2.1 50000 443\r\n": MALFORMED,
    b"PROXY tcp4 192.0.2.7 192.0.2.1 50000 443\r\n": MALFORMED,
    b"PROXY TCP4 192.0.2.7 192.0.2.1 050000 443\r\n": MALFORMED,
    b"PROXY TCP4 192.0.2.7 192.0.2.1 00 443\r\n": MALFORMED,
    b"PROXY TCP4 192.0.2.7 192.0.2.1 +1 443\r\n": MALFORMED,
    b"PROXY TCP4 192.0.2.7 192.0.2.1 -1 443\r\n": MALFORMED,
    b"PROXY TCP4 192.0.2.7 192.0.2.1 1_0 443\r\n": MALFORMED,
    b"PROXY TCP4 192.0.2.7 192.0.2.1 0x1 443\r\n": MALFORMED,
    "PROXY TCP4 192.0.2.7 192.0.2.1 \u0663 443\r\n".encode(): MALFORMED,  # a digit, for Python
    b"PROXY TCP4 192.0.2.7 192.0.2.1 65536 443\r\n": "a port in the header is out of range",
    b"PROXY TCP4 192.0.2.7 192.0.2.1 1 99999\r\n": "a port in the header is out of range",
    b"PROXY TCP4 192.0.2.07 192.0.2.1 50000 443\r\n": V4_WRONG,
    b"PROXY TCP4 192.0.2.256 192.0.2.1 50000 443\r\n": V4_WRONG,
    b"PROXY TCP4 192.0.2 192.0.2.1 50000 443\r\n": V4_WRONG,
    b"PROXY TCP4 192.0.2.7 1.2.3.4.5 50000 443\r\n": V4_WRONG,
    b"PROXY TCP4 c0000207 192.0.2.1 50000 443\r\n": V4_WRONG,
    b"PROXY TCP4 ::1 ::1 50000 443\r\n": V4_WRONG,
    b"PROXY TCP4 example.com 192.0.2.1 50000 443\r\n": MALFORMED,
    b"PROXY TCP6 192.0.2.7 192.0.2.1 50000 443\r\n": V6_WRONG,
    b"PROXY TCP6 1::2::3 ::1 50000 443\r\n": V6_WRONG,
    b"PROXY TCP6 1:2:3:4:5:6:7 ::1 50000 443\r\n": V6_WRONG,
    b"PROXY TCP6 12345:: ::1 50000 443\r\n": V6_WRONG,
    b"PROXY TCP6 fe80::1%lo ::1 50000 443\r\n": MALFORMED,
    b"PROXY TCP6 [::1] ::1 50000 443\r\n": MALFORMED,
    b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n": "does not end within 107 bytes",
    block(1, 0x11, v4(), version=1): "unknown version or command 0x11",
    block(1, 0x11, v4(), version=3): "unknown version or command 0x31",
    block(2, 0x11, v4()): "unknown version or command 0x22",
    block(15, 0x11, v4()): "unknown version or command 0x2f",
    block(1, 0x13, v4()): "unknown family or protocol 0x13",
    block(1, 0x41, v4()): "unknown family or protocol 0x41",
    block(1, 0xF0, v4()): "unknown family or protocol 0xf0",
    block(1, 0x11, v4()[:-1]): "ends within its addresses",
    block(1, 0x11): "ends within its addresses",
    block(1, 0x21, v4()): "ends within its addresses",
    block(1, 0x31, path(b"a")): "ends within its addresses",
    block(1, 0x11, v4() + b"\1"): CUT,
    block(1, 0x11, v4() + b"\1\0"): CUT,
    block(1, 0x11, v4() + field(ALPN, b"h2")[:-1]): OVERRUN,
    block(1, 0x11, v4() + b"\x99\xff\xff"): OVERRUN,
    block(1, 0x11, v4() + field(ALPN, b"a") + field(ALPN, b"a")): "has alpn twice",
    block(1, 0x11, v4() + field(AUTHORITY, b"\xff")): "authority is not text",
    block(1, 0x11, v4() + field(NETNS, b"\xc3\xb6")): "netns is not text",
    block(1, 0x11, v4() + field(UNIQUE_ID, b"i" * 129)): "unique_id has 129 bytes, more than 128",
    block(1, 0x11, v4() + field(SSL, b"\0\0\0\0")): "ssl is cut off",
    block(1, 0x11, v4() + field(SSL, b"\0\0\0\0\0\x21")): CUT,
    block(1, 0x11, v4() + field(SSL, b"\0\0\0\0\0\x21\0\2v") + field(ALPN, b"")): OVERRUN,
    block(1, 0x11, v4() + field(SSL, b"\0\0\0\0\0" + field(0x21, b"\xff"))): "version is not text",
    block(1, 0x11, v4() + field(SSL, b"\0\0\0\0\0" + field(0x23, b"") * 2)): "has cipher twice",
    block(1, 0x11, v4() + field(CRC32C, bytes(4))): "checksum is wrong",
    block(1, 0x11, v4() + field(CRC32C, bytes(3))): "checksum is malformed",
    block(1, 0x11, v4() + field(CRC32C, bytes(5))): "checksum is malformed",
    summed(block(1, 0x11, v4() + field(AUTHORITY, b"a"))).replace(b"a", b"b"): "checksum is wrong",
    block(1, 0x11, v4(), length=4097 - 16): "a header of 4097 bytes is longer than 4096",
    block(1, 0x11, length=0xFFFF): "a header of 65551 bytes is longer than 4096",
}


@pytest.mark.parametrize(("data", "header"), VALID.items(), ids=repr)
def test_a_header_of_the_specification_is_read(data, header):
    assert read(data) == header
    assert decode(data + b"\r\nmore", BOTH, MOST) == (header, len(data))


@pytest.mark.parametrize(("data", "reason"), REFUSED.items(), ids=repr)
def test_a_malformed_header_is_refused_with_a_reason(data, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        decode(data, BOTH, MOST)
    assert str(caught.value).startswith("proxy: ")


def test_every_checksum_is_verified():
    with pytest.raises(ValueError, match="checksum is wrong"):
        read(summed(summed(block(1, 0x11, v4()))))  # the second is right, and has made the first wrong


def test_only_the_accepted_versions_are_read():
    one, two = encode(line(*V4)), encode(of(*V4))
    assert read(one, (1,)) == line(*V4)
    assert read(two, (2,)) == of(*V4)
    for data, versions in ((one, (2,)), (two, (1,))):
        with pytest.raises(ValueError, match=f"no header of version {versions[0]}"):
            read(data, versions)


def test_a_header_as_long_as_the_bound_is_read():
    data = block(1, 0x11, v4() + field(NOOP, bytes(4096 - 16 - 12 - 3)))
    assert len(data) == 4096
    assert read(data) == of(*V4)
    with pytest.raises(ValueError, match="a header of 4096 bytes is longer than 4095"):
        decode(data[:16], BOTH, 4095)  # before the rest is there


def test_an_endless_line_is_refused_when_it_can_no_longer_end_in_time():
    endless = b"PROXY UNKNOWN " + b"x" * 1000
    waits = [size for size in range(1, 1000) if isinstance(outcome(endless[:size]), int)]
    assert waits == list(range(1, 106))


def outcome(data, versions=BOTH, most=MOST):
    try:
        return decode(data, versions, most)
    except ValueError as error:
        if not str(error).startswith("proxy: "):
            raise  # not one of ours
        return None


@pytest.mark.parametrize(
    ("client", "verify", "verified"), [(7, 0, True), (2, 0, True), (4, 0, True), (7, 1, False), (1, 0, False), (0, 0, False)]
)
def test_a_client_is_verified_only_if_it_has_sent_a_certificate(client, verify, verified):
    assert ProxySSL(client=client, verify=verify).verified is verified


# --- properties -------------------------------------------------------------------------------------------------------


@calm
@given(headers)
def test_what_is_encoded_is_decoded(header):
    assert read(encode(header)) == header


@calm
@given(blocks)
def test_a_right_checksum_changes_nothing(header):
    assert read(summed(encode(header))) == header


@calm
@given(st.binary(max_size=300))
def test_the_checksum_is_that_of_long_division(data):
    assert _proxy_header.crc32c(data) == crc32c(data)
    assert crc32c(b"123456789") == 0xE3069283  # the check value that catalogues of checksums give


@calm
@given(headers, st.sampled_from([BOTH, (1,), (2,)]), st.binary(max_size=9))
def test_every_start_of_a_header_asks_for_no_byte_behind_it(header, versions, behind):
    data = encode(header)
    if header.version not in versions:
        return
    for size in range(len(data)):
        missing = decode(data[:size], versions, MOST)
        assert isinstance(missing, int)
        assert 1 <= missing <= len(data) - size
    assert decode(data + behind, versions, MOST) == (header, len(data))


@calm
@given(headers)
def test_who_reads_only_what_is_asked_for_stops_at_the_end(header):
    data, size = encode(header), 0
    while isinstance(found := decode(data[:size], BOTH, MOST), int):
        size += found
    assert found == (header, size) == (header, len(data))


@calm
@given(headers, st.booleans(), st.data())
def test_a_changed_byte_is_refused_or_read_as_it_is_now_written(header, with_checksum, data):
    """What is read then equals what a second reader, written in another way, reads from the changed bytes: nothing is guessed."""
    valid = encode(header)
    valid = summed(valid) if with_checksum and header.version == 2 and header.source is not None else valid
    place = data.draw(st.integers(0, len(valid) - 1))
    changed = valid[:place] + bytes((data.draw(st.integers(0, 255)),)) + valid[place + 1 :]
    found = outcome(changed)
    if isinstance(found, tuple):
        read_as, size = found
        assert said(read_as) == meaning(changed[:size])


@calm
@given(blocks.filter(lambda header: header.source is not None), st.data())
def test_a_changed_byte_of_an_address_or_a_field_is_found_by_the_checksum(header, data):
    valid = summed(encode(header))
    addresses = 16 + {1: 12, 2: 36, 3: 216}[valid[13] >> 4]
    place = data.draw(st.integers(16, len(valid) - 8))
    changed = valid[:place] + bytes((valid[place] ^ data.draw(st.integers(1, 255)),)) + valid[place + 1 :]
    found = outcome(changed)
    if found is not None:  # a length was changed so that the checksum is now part of another field
        assert CRC32C not in dict(split(changed[addresses:]))


@calm
@given(st.binary(max_size=40) | st.binary(max_size=40).map(SIGNATURE.__add__) | st.binary(max_size=110).map(b"PROXY ".__add__))
def test_no_bytes_raise_anything_but_a_refusal(data):
    outcome(data)


@calm
@given(st.integers(0, 255), st.binary(max_size=60))
def test_no_fields_raise_anything_but_a_refusal(family, fields):
    outcome(block(1, family, v4() + fields))
    outcome(block(1, 0x11, v4() + field(SSL, fields)))
