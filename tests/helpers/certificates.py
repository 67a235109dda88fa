"""Certificates for tests, made by openssl."""

import functools
import subprocess
import tempfile
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

_FOLDER = Path(tempfile.mkdtemp(prefix="socketkit-certificates-"))

_CA = """
[ca]
default_ca = ours
[ours]
database = database
rand_serial = yes
new_certs_dir = .
default_md = sha256
unique_subject = no
copy_extensions = copy
x509_extensions = issued
policy = any
[issued]
authorityKeyIdentifier = keyid
[any]
commonName = supplied
"""


_making = threading.RLock()  # handlers in several threads may ask for the same certificate, and openssl's database bears one at a time


def once(make):
    """Have a function make each thing once, whoever asks for it at the same time."""
    made = functools.cache(make)

    @functools.wraps(make)
    def ask(*words, **options):
        with _making:
            return made(*words, **options)

    return ask


def openssl(*words, **options):
    return subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=_FOLDER, **options)


@once
def authority(name):
    """Return the certificate file of an authority; its key is in the file next to it."""
    openssl(
        *"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -batch".split(),
        "-subj",
        f"/CN={name}",
        "-addext",
        "keyUsage=critical,keyCertSign,cRLSign",  # Python 3.13 wants it
        "-keyout",
        f"{name}.key",
        "-out",
        f"{name}.pem",
    )
    return str(_FOLDER / f"{name}.pem")


@once
def certificate(  # noqa: PLR0913 - each is a property of a certificate
    name="localhost", *, signed_by="Authority", kind="ec", days=1, password=None, age=0, issue=0
):
    """Return the files of a certificate and of its key.

    days: until it expires. age: days since it became valid. issue: tells apart certificates that are alike.
    """
    ca = authority(signed_by)
    stem = f"{name}-{signed_by}-{kind}-{days}-{password}-{age}-{issue}"
    key = {
        "ec": ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:prime256v1"],
        "rsa": ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
    }[kind]
    openssl("genpkey", *key, *(["-aes256", "-pass", f"pass:{password}"] if password else []), "-out", f"{stem}.key")
    given = ["-passin", f"pass:{password}"] if password else []
    openssl(
        "req",
        "-new",
        "-key",
        f"{stem}.key",
        *given,
        "-subj",
        f"/CN={name}",
        "-addext",
        f"subjectAltName=DNS:{name},IP:127.0.0.1",
        "-out",
        f"{stem}.csr",
    )
    (_FOLDER / "ca.cnf").write_text(_CA)
    (_FOLDER / "database").touch()
    end = datetime.now(UTC) + timedelta(days=days)
    begin = min(end, datetime.now(UTC)) - timedelta(days=age)
    openssl(
        *"ca -config ca.cnf -batch -notext".split(),
        *("-in", f"{stem}.csr", "-out", f"{stem}.pem", "-cert", ca, "-keyfile", ca.replace(".pem", ".key")),
        *("-startdate", f"{begin:%Y%m%d%H%M%SZ}", "-enddate", f"{end:%Y%m%d%H%M%SZ}"),
    )
    return str(_FOLDER / f"{stem}.pem"), str(_FOLDER / f"{stem}.key")
