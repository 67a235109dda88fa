"""Certificates for tests, made by openssl."""

import functools
import subprocess
import tempfile
from pathlib import Path

_FOLDER = Path(tempfile.mkdtemp(prefix="socketkit-certificates-"))


def openssl(*words, **options):
    return subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=_FOLDER, **options)


@functools.cache
def authority(name):
    """Return the certificate file of an authority; its key is in the file next to it."""
    openssl(
        *"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -batch".split(),
        "-subj",
        f"/CN={name}",
        "-keyout",
        f"{name}.key",
        "-out",
        f"{name}.pem",
    )
    return str(_FOLDER / f"{name}.pem")


@functools.cache
def certificate(name="localhost", *, signed_by="Authority", kind="ec", days=1, password=None):
    """Return the files of a certificate and of its key."""
    ca = authority(signed_by)
    stem = f"{name}-{signed_by}-{kind}-{days}-{password}"
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
    openssl(
        "x509",
        "-req",
        "-in",
        f"{stem}.csr",
        "-CA",
        ca,
        "-CAkey",
        ca.replace(".pem", ".key"),
        "-copy_extensions",
        "copy",
        "-days",
        str(days),
        "-out",
        f"{stem}.pem",
    )
    return str(_FOLDER / f"{stem}.pem"), str(_FOLDER / f"{stem}.key")
