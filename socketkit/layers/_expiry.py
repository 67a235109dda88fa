"""When certificates expire, and what the log says of that."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

import attrs

from socketkit.logs import Log

log = Log("socketkit.layers.tls")

SOON = timedelta(days=14)
"""How long before a certificate expires the warnings begin, at most."""

DAY = timedelta(days=1)
"""Time between two warnings about the same certificate."""

FOR_EVER = datetime.max.replace(tzinfo=UTC)


@attrs.frozen
class Validity:
    """The period in which a certificate is valid."""

    begin: datetime
    end: datetime

    @property
    def warn_from(self) -> datetime:
        """When the warnings begin. Certificates that live for a few days only are renewed later than `SOON`, but in time."""
        return self.end - min(SOON, (self.end - self.begin) / 3)


def validity(cert: str) -> Validity:
    """Return the validity of the first certificate in a file. Raises: OSError, ssl.SSLError, ValueError."""
    decoded = ssl._ssl._test_decode_cert(cert)  # type: ignore[attr-defined] # noqa: SLF001 - Python has no public way
    begin, end = (datetime.fromtimestamp(ssl.cert_time_to_seconds(decoded[field]), UTC) for field in ("notBefore", "notAfter"))
    return Validity(begin, end)


def now() -> datetime:
    """Return the time by the wall clock, which the dates in certificates refer to."""
    return datetime.now(UTC)


class ExpiryLog:
    """Logs which certificates expire soon, once a day, and which have expired, once. clock: the wall clock."""

    def __init__(self, clock: Callable[[], datetime] = now) -> None:
        self._clock = clock
        self._silent_until: dict[tuple[str, Validity], datetime] = {}

    def look(self, certificates: Mapping[str, Validity]) -> None:
        """Log what is due about these certificates, by their files."""
        moment = self._clock()
        for certificate in certificates.items():
            file, valid = certificate
            if moment < self._silent_until.get(certificate, valid.warn_from):
                continue
            if moment < valid.end:
                days = (valid.end - moment).days
                when = f"on {valid.end:%Y-%m-%d}, in {days} day{'s' * (days != 1)}"
                log.warning("the certificate in %s expires %s; renew it", file, when, about=file)
                self._silent_until[certificate] = min(moment + DAY, valid.end)
            else:
                log.error("the certificate in %s has expired, on %s; renew it", file, f"{valid.end:%Y-%m-%d}", about=file)
                self._silent_until[certificate] = FOR_EVER
