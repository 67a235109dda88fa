"""Certificates for tests of servers with TLS, made by the program ``openssl``.

Each is made once in a process. The files are in a folder that is removed when the process exits.
"""

from __future__ import annotations

import atexit
import functools
import inspect
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")

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


def _once(make: Callable[_P, _T]) -> Callable[_P, _T]:
    """Have a function make each thing once, whoever asks for it at the same time and however the arguments are written."""
    made: dict[tuple[object, ...], _T] = {}
    signature = inspect.signature(make)

    @functools.wraps(make)
    def ask(*arguments: _P.args, **options: _P.kwargs) -> _T:
        bound = signature.bind(*arguments, **options)
        bound.apply_defaults()
        key = tuple(bound.arguments.values())
        with _making:
            if key not in made:
                made[key] = make(*arguments, **options)
            return made[key]

    return ask


@_once
def authority(name: str = "Authority") -> str:
    """Return the path of the certificate of an authority, a PEM file, for example for `ssl.create_default_context(cafile=...)`.

    It is valid for two days, and its key is beside it, in ``NAME.key``. Raises: RuntimeError if openssl is missing or fails.
    """
    _openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-batch"),
        *("-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem"),
        *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),  # Python 3.13 wants it
    )
    return str(_folder() / f"{name}.pem")


@_once
def certificate(  # noqa: PLR0913 - each is a property of a certificate
    name: str = "localhost",
    *,
    signed_by: str = "Authority",
    kind: Literal["ec", "rsa"] = "ec",
    days: float = 1,
    password: str | None = None,
    age: float = 0,
    issue: int = 0,
) -> tuple[str, str]:
    """Return the paths of a certificate for a name and 127.0.0.1, and of its private key, both PEM files.

    signed_by: the name of its `authority`. kind: of its key. days: until it expires; below 0: since it has expired. age: days since it
    became valid. password: with which the key is encrypted. issue: tells apart certificates that are alike.
    Raises: RuntimeError if openssl is missing or fails.
    """
    ca = authority(signed_by)
    stem = f"{name}-{signed_by}-{kind}-{days}-{password}-{age}-{issue}"
    key = {
        "ec": ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:prime256v1"],
        "rsa": ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
    }[kind]
    _openssl("genpkey", *key, *(["-aes256", "-pass", f"pass:{password}"] if password else []), "-out", f"{stem}.key")
    given = ["-passin", f"pass:{password}"] if password else []
    _openssl(
        *("req", "-new", "-key", f"{stem}.key", *given, "-out", f"{stem}.csr"),
        *("-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name},IP:127.0.0.1"),
    )
    end = datetime.now(UTC) + timedelta(days=days)
    begin = min(end, datetime.now(UTC)) - timedelta(days=age)
    _openssl(
        *("ca", "-config", "ca.cnf", "-batch", "-notext"),
        *("-in", f"{stem}.csr", "-out", f"{stem}.pem", "-cert", ca, "-keyfile", ca.replace(".pem", ".key")),
        *("-startdate", f"{begin:%Y%m%d%H%M%SZ}", "-enddate", f"{end:%Y%m%d%H%M%SZ}"),
    )
    return str(_folder() / f"{stem}.pem"), str(_folder() / f"{stem}.key")


@functools.cache
def _folder() -> Path:
    folder, owner = Path(tempfile.mkdtemp(prefix="socketkit-certificates-")), os.getpid()
    (folder / "ca.cnf").write_text(_CA)
    (folder / "database").touch()

    def remove() -> None:
        if os.getpid() == owner:  # not in a forked child
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


def _openssl(*words: str) -> None:
    try:
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=_folder())  # noqa: S603, S607 - wherever the system has it
    except FileNotFoundError:
        raise RuntimeError(
            "certificates for tests need the program openssl: install it, for example with apt-get install openssl"
        ) from None
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"openssl {words[0]} failed: {error.stderr.decode(errors='backslashreplace')}") from error
