"""Names of cases and files that do not reveal a patient: HMAC-SHA256 under a key kept with the output.

A plain hash of a patient's number can be undone by hashing all numbers; this one only with the key.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
from pathlib import Path

from mmif_trt.files import make_folder, read_regular, sync_folder
from mmif_trt.image import InputError
from mmif_trt.running import why

FILE = ".pseudonym-key"  # beside the names it made, mode 0600; without it they cannot be traced
KEY_BYTES = 32


def name_of(key: bytes, text: str, digits: int = 24) -> str:
    """digits: hexadecimal, 4 bits each."""
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()[:digits]


def fresh_key() -> bytes:
    return secrets.token_bytes(KEY_BYTES)


def key_in(root: Path, given: str | None = None, *, make: bool = True) -> bytes | None:
    """The key of an output folder: from the file `given`, otherwise root/FILE, which is created if missing.

    make: False returns None if there is none. Several processes that start at once get the same key. Raises
    InputError for a file that is not a key.
    """
    path = Path(given) if given else root / FILE
    if not given and make and not path.exists():
        try:
            _make(root, path)
        except OSError as error:
            expected = "expected a writable folder with room"
            raise InputError(f"{path}: cannot be written ({error.strerror}); {expected}") from error
    try:
        key = bytes.fromhex(read_regular(path).decode().strip())
    except (FileNotFoundError, NotADirectoryError):
        if not given:
            return None
        raise InputError(
            f"--pseudonym-key {path}: no such file; expected {2 * KEY_BYTES} hex digits in it, "
            f"as `openssl rand -hex {KEY_BYTES}` prints"
        ) from None
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {why(error)}; expected {2 * KEY_BYTES} hex digits") from None
    if len(key) < KEY_BYTES:
        raise InputError(f"{path}: {len(key)} bytes; expected {2 * KEY_BYTES} hex digits or more")
    return key


def _make(root: Path, path: Path) -> None:
    make_folder(root)
    # Written aside and linked: an existing name has a complete key, and the first of several wins.
    aside = root / f"{FILE}.{secrets.token_hex(8)}"
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "w") as file:
            file.write(fresh_key().hex() + "\n")
            file.flush()
            os.fsync(descriptor)
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
    finally:
        aside.unlink()
        sync_folder(root)
