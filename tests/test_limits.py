"""The recipe of limits: what it takes, in Python, as text and in a file, and what it refuses."""

import pytest

from socketkit import TCP, Limits, Server, compose
from socketkit.composition import config
from socketkit.errors import ConfigError

ANYWHERE = TCP("127.0.0.1", 0)


def test_the_same_limits_in_three_forms():
    limits = Limits(max_connections=100, overflow="shed", allow=["10.0.0.0/8", "::1"], rate=2.5, request=60, first_byte=None)
    table = {"max_connections": 100, "overflow": "shed", "allow": ["10.0.0.0/8", "::1"], "rate": 2.5, "request": "1m", "first_byte": "none"}
    text = "max_connections=100,overflow=shed,allow=10.0.0.0/8%2C::1,rate=2.5,request=1m,first_byte=none"
    assert config.limits(limits) is limits
    assert config.limits(table) == config.limits(text) == limits
    for given in (limits, table, text):
        assert Server(ANYWHERE, print, limits=given).limits == limits
        assert compose({"listen": "tcp://127.0.0.1:0", "handler": print, "limits": given}).limits == limits


def test_a_composed_server_has_finite_limits_unless_it_is_told_otherwise():
    limits = Server(ANYWHERE, print).limits
    assert limits == Limits()
    assert (limits.max_connections, limits.first_byte, limits.request, limits.write_stall) == (16384, 30, 3600, 60)


@pytest.mark.parametrize(
    "option",
    [
        {"max_connections": 0},
        {"max_connections": True},
        {"overflow": "drop"},
        {"early": 1},
        {"early": -0.1},
        {"early": True},
        {"reply": b"x"},
        {"max_per_peer": 0},
        {"v4_prefix": 33},
        {"v6_prefix": 0},
        {"allow": "10.0.0.0/8"},
        {"allow": ["10.0.0.1/8"]},
        {"deny": ["here"]},
        {"allow_users": "root"},
        {"allow_users": ["nobody-has-this-name"]},
        {"allow_users": [-1]},
        {"allow_users": [True]},
        {"allow_users": [2**32 - 1]},
        {"rate": 0},
        {"rate": float("inf")},
        {"burst": 0},
        {"line": 0},
        {"first_byte": 0},
        {"request": -1},
        {"write_stall": "soon"},
        {"idle": -1},
    ],
)
def test_an_option_that_cannot_be_is_refused_by_name(option):
    with pytest.raises((ValueError, TypeError), match=next(iter(option))):
        Limits(**option)


def test_what_is_wrong_in_a_file_is_told_by_its_key():
    with pytest.raises(ConfigError) as caught:
        compose({"listen": "tcp://127.0.0.1:0", "handler": print, "limits": {"max_conections": 5, "request": "soon", "rate": "2"}})
    faults = {fault.key: fault.message for fault in caught.value.faults}
    assert set(faults) == {"limits.max_conections", "limits.request", "limits.rate"}
    assert "did you mean 'max_connections'" in faults["limits.max_conections"]


@pytest.mark.parametrize("spec", [5, "max_connections", "max_connections=1,max_connections=2", ["max_connections=5"]])
def test_what_are_no_limits_is_refused(spec):
    with pytest.raises(ConfigError):
        config.limits(spec)


def test_users_are_given_by_name_or_by_number():
    limits = Limits(allow_users=["root", 1000])
    assert limits.allow_users == ("root", 1000)
    assert config.limits("allow_users=root%2C1000") == config.limits({"allow_users": ["root", 1000]}) == limits


def test_where_the_system_does_not_tell_who_a_peer_is_no_list_of_users_is_taken(monkeypatch):
    monkeypatch.setattr("socketkit.seams.limits.ARE_KNOWN", False)
    with pytest.raises(ValueError, match="SO_PEERCRED"):
        Limits(allow_users=["root"])
    Limits()


def test_they_are_explained():
    told = str(Server(ANYWHERE, print, limits="max_connections=7").explain())
    assert "limits: Limits, from" in told
    assert "max_connections = 7\n" in told
    assert "write_stall = 60.0 (default)" in told
