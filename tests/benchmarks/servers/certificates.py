"""The settings of TLS that all servers in Python share."""

from __future__ import annotations

import ssl


def context(certificate: str) -> ssl.SSLContext:
    """Return Python's default settings for servers, with the certificate and key of this file. Raises: OSError."""
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    made.load_cert_chain(certificate)
    return made
