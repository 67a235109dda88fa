import ssl
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from socketkit.testing import certificates
from socketkit.testing.certificates import authority, certificate
from socketkit.testing.programs import run


def test_a_certificate_is_trusted_by_those_who_trust_its_authority():
    cert, key = certificate("one.example", signed_by="Clients", days=3, age=2)
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context(cafile=authority("Clients"))
    server.load_cert_chain(cert, key)
    (to_server, to_client) = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server, server_hostname="one.example")
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    for side in (ours, theirs, ours):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    assert dict(pair for (pair,) in ours.getpeercert()["subject"]) == {"commonName": "one.example"}


def test_a_certificate_is_made_once_whoever_asks_for_it_at_the_same_time():
    with ThreadPoolExecutor(4) as threads:
        assert len(set(threads.map(lambda _: certificate("twice.example"), range(4)))) == 1
    assert certificate("twice.example", issue=1) != certificate("twice.example")


def test_an_authority_is_the_same_whether_its_default_name_is_written_or_not():
    made = Path(authority()).read_text()
    assert authority("Authority") == authority(name="Authority") == authority()
    assert Path(authority()).read_text() == made


def test_the_files_go_with_the_process_that_made_them():
    source = """
import os
from socketkit.testing.certificates import certificate
print(*certificate(), flush=True)
if os.fork() == 0:
    raise SystemExit  # a child that ends leaves them
os.wait()
assert all(map(os.path.exists, certificate()))
"""
    made = run(sys.executable, "-c", source)  # without a faulthandler's timer, which a forked child cannot end
    assert not any(Path(each).exists() for each in made.stdout.split())


def test_without_openssl_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="need the program openssl: install it"):
        certificate("never made before")


def test_what_openssl_complains_of_is_in_the_error():
    with pytest.raises(RuntimeError, match="openssl req failed: "):
        certificates._openssl("req", "-none")
