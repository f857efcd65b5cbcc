"""May this engine run? It is native code: this user or root must have written it, and nobody else may change
it.

A hash in the manifest beside it shows that a file is complete, not who made it. So owner and mode of engine,
manifest and folder are checked. If $MMIF_ENGINE_KEY names a file with a secret (32 bytes or more, mode 0600),
`engine build` signs the manifest with it (HMAC-SHA-256), and an engine without its signature is refused: for
engines that are copied from machine to machine.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import stat
from dataclasses import asdict, replace
from pathlib import Path

from mmif_trt.files import read_regular
from mmif_trt.image import InputError
from mmif_trt.runtimes.trt.manifest import Manifest

KEY = "MMIF_ENGINE_KEY"
MIN_KEY_BYTES = 32


def refuse_strangers(*paths: Path) -> None:
    """Raises InputError if a file or its folder belongs to a user other than this one or root, or if others
    may write it. Skipped on a file system without owners (Windows)."""
    if not hasattr(os, "geteuid"):
        return
    for path in dict.fromkeys(x for file in paths for x in (file.resolve(), file.resolve().parent)):
        status = os.stat(path)
        if status.st_uid not in (0, os.geteuid()):
            owner = f"owned by user {status.st_uid}"
            raise InputError(
                f"{path}: {owner}; expected this user or root (an engine is native code): chown it"
            )
        private = status.st_gid == status.st_uid  # the owner's private group, as Debian creates them
        loose = stat.S_IWOTH | (0 if private else stat.S_IWGRP)
        if status.st_mode & loose:
            mode = f"mode {stat.S_IMODE(status.st_mode):o}"
            raise InputError(
                f"{path}: {mode}, others may write it; expected an engine that only its owner may change: "
                "chmod go-w"
            )


def key() -> bytes:
    """The secret that $MMIF_ENGINE_KEY names; b"" if it is unset. Raises InputError."""
    name = os.environ.get(KEY)
    if not name:
        return b""
    try:
        secret = read_regular(name).strip()
        others = bool(hasattr(os, "geteuid") and os.stat(name).st_mode & 0o077)
    except OSError as error:
        raise InputError(f"${KEY}: {name}: {error.strerror}; expected a file with a secret") from None
    if len(secret) < MIN_KEY_BYTES or others:
        found = f"{len(secret)} bytes" if not others else "readable by others"
        raise InputError(f"${KEY}: {name}: {found}; expected {MIN_KEY_BYTES} bytes or more, mode 0600")
    return secret


def signed(manifest: Manifest) -> Manifest:
    """With its signature, if there is a key."""
    secret = key()
    return replace(manifest, signature=_signature(manifest, secret)) if secret else manifest


def refuse_unsigned(engine: Path, manifest: Manifest) -> None:
    """Raises InputError if there is a key and the manifest was not signed with it."""
    secret = key()
    if secret and not hmac.compare_digest(manifest.signature, _signature(manifest, secret)):
        found = "another signature" if manifest.signature else "no signature"
        raise InputError(
            f"{engine}: {found}; expected one by the key in ${KEY}: build it with that key, or unset ${KEY}"
        )


def _signature(manifest: Manifest, secret: bytes) -> str:
    text = json.dumps({**asdict(manifest), "signature": ""}, sort_keys=True)
    return hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()
