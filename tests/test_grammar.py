import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from socketkit.errors import ConfigError
from socketkit.seams import grammar
from socketkit.seams.grammar import Part, Url

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]*", fullmatch=True)
keys = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]*", fullmatch=True)
values = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
options = st.dictionaries(keys, values, max_size=3)
parts = st.recursive(
    st.builds(Part, names, values, options),
    lambda inner: st.builds(Part, names, values, options, inner),
    max_leaves=4,
)
layers = st.lists(st.builds(Part, names, options=options), max_size=3, unique_by=lambda layer: layer.name).map(tuple)


@given(parts)
def test_a_part_reads_back_from_its_text(part):
    assert grammar.part(str(part)) == part


@given(st.builds(Url, st.builds(Part, names, values, options), layers))
def test_a_url_reads_back_from_its_text(url):
    assume(url.transport.name != "tls")  # which is short for something longer
    assert grammar.url(str(url)) == url


@given(st.text() | st.from_regex(r"[a-z+:/?&=.,%@\[\]0-9-]*", fullmatch=True))
@pytest.mark.parametrize("read", [grammar.part, grammar.url, grammar.seconds])
def test_any_text_is_read_or_refused_with_one_sentence_that_shows_it(read, text):
    faults = ()
    try:
        read(text)
    except ConfigError as error:
        faults = error.faults
    assert all(fault.message.startswith(repr(text)) for fault in faults)
    assert len(faults) <= 1


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("sync", Part("sync")),
        ("pool:32", Part("pool", "32")),
        ("pool:32,overflow=reject,queue=5", Part("pool", "32", {"overflow": "reject", "queue": "5"})),
        ("graceful,drain=10", Part("graceful", options={"drain": "10"})),
        ("graceful:drain=10,signals=false", Part("graceful", options={"drain": "10", "signals": "false"})),
        ("prefork:4/pool:16", Part("prefork", "4", inner=Part("pool", "16"))),
        ("a/b,x=1/c:2", Part("a", inner=Part("b", options={"x": "1"}, inner=Part("c", "2")))),
        ("executor:module:factory", Part("executor", "module:factory")),
        ("dask:tcp://h:1", Part("dask", "tcp://h:1")),
        ("prefork:2/dask:tcp://h:1,backlog=2/x", Part("prefork", "2", inner=Part("dask", "tcp://h:1", {"backlog": "2"}, Part("x")))),
        ("dask,scheduler=tls://[::1]:1", Part("dask", options={"scheduler": "tls://[::1]:1"})),
        ("log:%2Fvar%2Flog%2C%25", Part("log", "/var/log,%")),
        ("x,empty=", Part("x", options={"empty": ""})),
        ("x,both=a=b", Part("x", options={"both": "a=b"})),
    ],
)
def test_parts(text, part):
    assert grammar.part(text) == part


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("tcp://host:1", Url(Part("tcp", "host:1"))),
        ("tcp://h:1?backlog=5&nodelay=false", Url(Part("tcp", "h:1", {"backlog": "5", "nodelay": "false"}))),
        ("tcp://[::1]:80", Url(Part("tcp", "[::1]:80"))),
        ("tcp://[fe80::1%25eth0]:80", Url(Part("tcp", "[fe80::1%eth0]:80"))),
        ("tcp://[fe80::1%eth0]:80", Url(Part("tcp", "[fe80::1%eth0]:80"))),
        ("tcp://[fe80::1%12]:80", Url(Part("tcp", "[fe80::1%12]:80"))),
        ("tcp://[fe80::1%2512]:80", Url(Part("tcp", "[fe80::1%12]:80"))),
        ("tcp://[fe80::1%25]:80", Url(Part("tcp", "[fe80::1%25]:80"))),
        ("tcp://[f%230]:80", Url(Part("tcp", "[f#0]:80"))),  # no IPv6 address, so no scope
        ("tls://h:1?tls.cert=a", Url(Part("tcp", "h:1"), (Part("tls", options={"cert": "a"}),))),
        (
            "tcp+proxy+tls://0.0.0.0:443?tls.cert=a.pem&backlog=5&tls.key=b.pem",
            Url(Part("tcp", "0.0.0.0:443", {"backlog": "5"}), (Part("proxy"), Part("tls", options={"cert": "a.pem", "key": "b.pem"}))),
        ),
        ("tcp+my-layer://h:1?my-layer.x=1", Url(Part("tcp", "h:1"), (Part("my-layer", options={"x": "1"}),))),
        ("unix:///run/echo.sock", Url(Part("unix", "/run/echo.sock"))),
        ("unix:///run/a%20%3F%26b.sock", Url(Part("unix", "/run/a ?&b.sock"))),
        ("unix:@abstract?backlog=1", Url(Part("unix", "@abstract", {"backlog": "1"}))),
        ("unix-dgram:///path", Url(Part("unix-dgram", "/path"))),
        ("fd://3", Url(Part("fd", "3"))),
        ("memory://", Url(Part("memory"))),
        ("x://y?option=a+b", Url(Part("x", "y", {"option": "a+b"}))),
    ],
)
def test_urls(text, url):
    assert grammar.url(text) == url


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "lacks a name"),
        ("pool:", "nothing after the ':' of 'pool'"),
        ("prefork:4/", "lacks a name"),
        ("pool 4", "'pool 4' where a name should be"),
        ("pool,workers", "'workers' where key=value should be"),
        ("pool,=4", "'=4' where key=value should be"),
        ("pool,a=1,a=2", "gives 'a' twice"),
        ("pool:%ff", "'%ff', which is not UTF-8"),
        ("pool:\udcff", r"'\udcff', which is not UTF-8"),
        ("pool:%00", "NUL"),
    ],
)
def test_a_bad_part_is_refused_with_the_reason_and_the_right_form(text, reason):
    with pytest.raises(ConfigError) as caught:
        grammar.part(text)
    assert reason in str(caught.value)
    assert "prefork:4/pool:16" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("127.0.0.1:80", "is not a URL"),
        ("unix:/run/a", "is not a URL"),
        ("://h:1", "lacks a name"),
        ("tcp+://h:1", "lacks a name"),
        ("tcp+tls+tls://h:1", "has a layer twice"),
        ("tcp+tls://h:1?tsl.cert=a", "has an option 'tsl.cert' but no layer 'tsl', did you mean 'tls'?"),
        ("tcp://h:1?backlog", "'backlog' where key=value should be"),
        ("tcp://h:1?a=1&a=2", "gives 'a' twice"),
    ],
)
def test_a_bad_url_is_refused_with_the_reason_and_the_right_form(text, reason):
    with pytest.raises(ConfigError) as caught:
        grammar.url(text)
    assert reason in str(caught.value)
    assert "tcp://127.0.0.1:9999" in str(caught.value)


@pytest.mark.parametrize(("text", "seconds"), [("0", 0), ("1.5", 1.5), ("500ms", 0.5), ("30s", 30), ("5m", 300), ("0.5m", 30)])
def test_durations(text, seconds):
    assert grammar.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1", "+1", "1h", "1 s", "1.", ".5", "nan", "inf", "1e3", "\u0663"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ConfigError, match="write seconds, or 500ms, 30s, 5m"):
        grammar.seconds(text)


def test_a_quoted_path_is_readable_in_a_url():
    assert grammar.quote("/run/my app/100%?.sock") == "/run/my%20app/100%25%3F.sock"


def test_depth_costs_no_stack():
    assert grammar.part("a/" * 100_000 + "b").name == "a"


@pytest.mark.parametrize("place", ["[fe80::%7D]:80", "[fe80::%C3%BF]:80", "[fe80::1 2]:80", "[::1:80", "[fe80::1%]:80"])
def test_what_looks_like_an_ipv6_address_and_is_none_is_refused(place):
    with pytest.raises(ConfigError, match="where an IPv6 address should be"):
        grammar.url(f"tcp://{place}")
