"""TLS of the node (PS3.15 annex B: TLS 1.2 or newer), its certificate shown to peers and to the PACS."""

from __future__ import annotations

import logging
import os
import ssl
from typing import Any

from mmif_trt.files import refuse_irregular
from mmif_trt.image import InputError
from mmif_trt.node.settings import Settings
from mmif_trt.running import why

log = logging.getLogger("mmif_trt.node")


def for_peers(settings: Settings) -> ssl.SSLContext | None:
    """For the listener; peers must show a certificate signed by the authority, unless tls_any_peer."""
    context = _context(settings.tls, ssl.Purpose.CLIENT_AUTH)
    if context is not None and not settings.tls_any_peer:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def for_pacs(settings: Settings) -> tuple[ssl.SSLContext, str] | None:
    """For pynetdicom: the context, and the name that the PACS's certificate must carry."""
    if settings.tls_plain_pacs or settings.send_to is None:
        return None
    context = _context(settings.tls, ssl.Purpose.SERVER_AUTH)
    return None if context is None else (context, settings.send_to[1])


def from_pacs(files: tuple[str, str, str]) -> ssl.SSLContext:
    """For a listener: who connects must show a certificate signed by the authority. Raises InputError."""
    context = _context(files, ssl.Purpose.CLIENT_AUTH)
    assert context is not None
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def to_pacs(files: tuple[str, str, str]) -> ssl.SSLContext:
    """files: certificate, key and authority, as in --tls. Raises InputError."""
    context = _context(files, ssl.Purpose.SERVER_AUTH)
    assert context is not None
    return context


def readable_by_others(path: str) -> bool:
    try:
        return bool(os.stat(path).st_mode & 0o077)
    except OSError:
        return False


def _context(files: tuple[str, str, str] | None, purpose: Any) -> ssl.SSLContext | None:
    if files is None:
        return None
    for path in files:
        refuse_irregular(path, "--tls", "PEM files: certificate, key, authority")
    certificate, key, authority = files
    if readable_by_others(key):
        log.warning("--tls: the key can be read by other users; expected mode 0600 (chmod 600)")
    try:
        context = ssl.create_default_context(purpose, cafile=authority)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(certificate, key, password=lambda: "")  # never ask on a terminal
    except (OSError, ValueError) as error:  # includes SSLError, which quotes no content
        reason = getattr(error, "reason", None) or why(error)
        raise InputError(
            f"--tls: {reason}; expected PEM files: certificate, its key without password, authority"
        ) from None
    return context
