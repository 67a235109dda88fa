"""Strategies that draw headers of the PROXY protocol."""

import socket

from hypothesis import strategies as st

from layers.proxy_headers import ALPN, AUTHORITY, CRC32C, NETNS, NOOP, SSL, UNIQUE_ID
from socketkit import ProxyHeader, ProxySSL

ports = st.integers(0, 65535)
words = st.text("aZ09.-_ ~", max_size=12)
names = st.text("a.-\0\N{LATIN SMALL LETTER O WITH DIAERESIS}\N{SNOWMAN}\N{ROCKET}", max_size=12)
kinds = st.sampled_from(["stream", "datagram"])


def inet(version):
    plain = st.ip_addresses(v=version).map(str) if version == 4 else st.binary(min_size=16, max_size=16).map(written)
    return st.tuples(plain, ports) if version == 4 else st.tuples(plain, ports, st.just(0), st.just(0))


def written(packed):
    """Return an IPv6 address as the system writes it: one that maps IPv4 ends with dots."""
    return socket.inet_ntop(socket.AF_INET6, packed)


def ends(addresses):
    return st.fixed_dictionaries({"source": addresses, "destination": addresses})


unix = st.one_of(
    st.text("abc/.\N{LATIN SMALL LETTER E WITH ACUTE}", max_size=50),
    st.binary(min_size=1, max_size=100).map(lambda name: b"\0" + name + b"x"),
)


def others(known):
    return st.lists(st.tuples(st.sampled_from(sorted(set(range(256)) - known)), st.binary(max_size=9)), max_size=3).map(tuple)


ssls = st.builds(
    ProxySSL,
    client=st.integers(0, 255),
    verify=st.integers(0, 2**32 - 1),
    version=st.none() | words,
    common_name=st.none() | names,
    cipher=st.none() | words,
    signature_algorithm=st.none() | words,
    key_algorithm=st.none() | words,
    group=st.none() | words,
    signature_scheme=st.none() | words,
    certificate=st.none() | st.binary(max_size=9),
    others=others(set(range(0x21, 0x29))),
)
with_fields = st.fixed_dictionaries(
    {
        "alpn": st.none() | st.binary(max_size=9),
        "authority": st.none() | names,
        "unique_id": st.none() | st.binary(max_size=128),
        "ssl": st.none() | ssls,
        "netns": st.none() | words,
        "others": others({ALPN, AUTHORITY, CRC32C, NOOP, UNIQUE_ID, SSL, NETNS}),
    }
)
lines = (
    st.just(ProxyHeader(version=1))
    | st.one_of(ends(inet(4)), ends(inet(6))).map(lambda each: ProxyHeader(version=1, kind="stream", **each))
)  # fmt: skip
blocks = st.sampled_from([ProxyHeader(version=2), ProxyHeader(version=2, command="local")]) | st.builds(
    lambda each, kind, fields: ProxyHeader(version=2, kind=kind, **each, **fields),
    st.one_of(ends(inet(4)), ends(inet(6)), ends(unix)),
    kinds,
    with_fields,
)
headers = lines | blocks
