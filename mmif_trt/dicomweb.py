"""DICOMweb (PS3.18) by dicomweb-client: stores results by STOW-RS, fetches sources by QIDO-RS and WADO-RS.

Requests go to the stated service only: no proxy, .netrc or redirect is followed, so neither patient data nor
credentials go anywhere else. Every answer has a deadline and a size limit.
"""

from __future__ import annotations

import base64
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any
from urllib.parse import urlsplit

from mmif_trt import privacy
from mmif_trt.files import read_regular, refuse_irregular
from mmif_trt.image import InputError
from mmif_trt.running import why

privacy.patient_values_off()
TIMEOUT_S = (10.0, 60.0)  # to connect; between two parts of an answer
MAX_ANSWER_S = 3600.0
MAX_QUERY_BYTES, MAX_STUDY_BYTES = 64 << 20, 16 << 30
MAX_INSTANCE_BYTES = 512 << 20
TAIL_BYTES = 1024  # a boundary is shorter, and little follows the last
SENT, REFUSED, UNREACHABLE = "sent", "refused", "unreachable"
# The instance is at fault, not the service, its load or our credentials (PS3.18 10.5.3).
FOR_THE_INSTANCE = {400, 409, 411, 413, 415, 422}
# What the kinds of error of requests mean.
WHY = {
    "SSLError": "its certificate is not trusted",
    "ConnectTimeout": "does not answer in time",
    "ReadTimeout": "does not answer in time",
    "ConnectionError": "does not answer, or hangs up",
    "ChunkedEncodingError": "breaks off its answer",
}
LOOPBACK = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True)
class Service:
    """authorization: a header's value. authority: PEM file of the signer of the service's certificate; None:
    those that Python's certifi trusts."""

    url: str
    authorization: str = field(default="", repr=False)
    authority: str | None = None


def service(url: str, auth: str | None = None, authority: str | None = None) -> Service:
    """auth: a file with one line, "Bearer TOKEN" or "Basic USER:PASSWORD", mode 0600. Raises InputError."""
    try:
        parts = urlsplit(url)
        named = parts.port != 0 and bool(parts.hostname)  # .port raises ValueError if it is not a number
    except ValueError:
        named = False
    if not named or parts.scheme not in ("http", "https") or parts.query or parts.fragment:
        raise InputError("--dicomweb: not the URL of a service; expected http(s)://HOST[:PORT]/PATH")
    if parts.username or parts.password:
        raise InputError("--dicomweb: a URL with a user or password; expected them in --dicomweb-auth FILE")
    if authority is not None:
        refuse_irregular(authority, "--dicomweb-ca", "PEM")
    if auth is None:
        return Service(url.rstrip("/"), authority=authority)
    if parts.scheme != "https" and parts.hostname not in LOOPBACK:
        raise InputError("--dicomweb-auth: over plain http, where others can read it; expected https")
    return Service(url.rstrip("/"), _authorization(auth), authority)


def _authorization(path: str) -> str:
    try:
        text = read_regular(path).decode("utf-8").strip()
        others = hasattr(os, "geteuid") and bool(os.stat(path).st_mode & 0o077)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"--dicomweb-auth {path}: cannot be read ({why(error)}); expected a text file"
        ) from None
    if others:
        raise InputError(f"--dicomweb-auth {path}: others can read it; expected mode 0600 (chmod 600)")
    kind, _, rest = text.partition(" ")
    if "\n" in text or not rest or kind not in ("Bearer", "Basic") or kind == "Basic" and ":" not in rest:
        raise InputError(
            f"--dicomweb-auth {path}: expected one line, 'Bearer TOKEN' or 'Basic USER:PASSWORD'"
        )
    return text if kind == "Bearer" else f"Basic {base64.b64encode(rest.encode()).decode()}"


class _Refused(OSError):
    """What a service sends and we do not take, in our own words."""


class _Bounded:
    """urllib3's response, with limits on its body and, if it is multipart, on each part: a part is collected
    in memory. A multipart body without its last boundary was cut off: dicomweb-client would take what there
    is of a part for a whole one."""

    def __init__(self, raw: Any, most: int, boundary: bytes) -> None:
        self._raw, self._most, self._boundary = raw, most, boundary

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def stream(self, *args: Any, **words: Any) -> Iterator[bytes]:
        got, in_part, tail, end = 0, 0, b"", time.monotonic() + MAX_ANSWER_S
        for data in self._raw.stream(*args, **words):
            got += len(data)
            seen = tail + data  # a boundary may lie across two
            at = seen.rfind(self._boundary) if self._boundary else -1
            in_part = len(seen) - at if at >= 0 else in_part + len(data)
            tail = seen[-TAIL_BYTES:] if self._boundary else b""
            if got > self._most or in_part > MAX_INSTANCE_BYTES or time.monotonic() > end:
                self._raw.close()
                raise _Refused("an answer without an end")
            yield data
        if self._boundary and self._boundary + b"--" not in tail:
            raise _Refused("an answer that is cut off")


def _boundary(kind: str) -> bytes:
    """What separates the parts, from a Content-Type; empty without one."""
    found = re.search(r'boundary="?([^";,]+)', kind, re.IGNORECASE)
    return b"\r\n--" + found[1].strip().encode("latin-1", "replace") if found else b""


def _client(of: Service, most: int) -> Any:
    try:
        import requests
        from dicomweb_client.api import DICOMwebClient
    except ModuleNotFoundError as error:
        raise InputError(f"--dicomweb: needs {error.name}; try pip install 'mmif-trt[clinical]'") from None
    from mmif_trt.io.dicom.meta import refuse_bomb

    class Adapter(requests.adapters.HTTPAdapter):
        def send(self, *args: Any, **words: Any) -> Any:
            response = super().send(*args, **words)
            kind = response.headers.get("Content-Type", "")
            if kind.partition(";")[0].strip().lower() == "application/dicom":  # would not be checked below
                raise _Refused("an instance outside a multipart message")
            response.raw = _Bounded(response.raw, most, _boundary(kind))
            return response

    class Client(DICOMwebClient):  # type: ignore[misc]
        def _decode_multipart_message(self, *args: Any, **words: Any) -> Iterator[bytes]:
            for part in super()._decode_multipart_message(*args, **words):
                refuse_bomb(part, f"{of.url}: an instance")
                yield part

    session = requests.Session()
    session.trust_env, session.max_redirects = False, 0
    session.verify = of.authority or True
    for scheme in ("http://", "https://"):
        session.mount(scheme, Adapter())
    headers = {"Authorization": of.authorization} if of.authorization else None
    client = Client(of.url, session=session, headers=headers, timeout=TIMEOUT_S)
    client.set_http_retry_params(retry=False)  # the callers have their own pauses
    return client


def store(of: Service, dataset: Any) -> str:
    """One instance by STOW-RS: SENT, REFUSED by its answer, or UNREACHABLE: the outcome is unknown."""
    import requests

    try:
        answer = _client(of, MAX_QUERY_BYTES).store_instances([dataset])
        return REFUSED if answer.get("FailedSOPSequence") else SENT
    except requests.HTTPError as error:
        code = error.response.status_code if error.response is not None else 0
        return REFUSED if code in FOR_THE_INSTANCE else UNREACHABLE
    except (requests.RequestException, OSError, ValueError, LookupError):
        return UNREACHABLE


def holds(of: Service, dataset: Any) -> bool:
    """Whether the service says, by QIDO-RS, that it has an instance."""
    import requests

    uid = str(dataset.SOPInstanceUID)
    try:
        found = _client(of, MAX_QUERY_BYTES).search_for_instances(
            str(dataset.StudyInstanceUID),
            str(dataset.SeriesInstanceUID),
            search_filters={"SOPInstanceUID": uid},
        )
        return any(uid in (item.get("00080018") or {}).get("Value", []) for item in found)
    except (requests.RequestException, OSError, ValueError, LookupError, AttributeError):
        return False


def announced(of: Service, study: str) -> int | None:
    """How many instances the service says a study has, by QIDO-RS; None if it does not say. Raises InputError
    if there is no such study."""
    import requests

    words = {"search_filters": {"StudyInstanceUID": study}, "fields": ["NumberOfStudyRelatedInstances"]}
    try:
        found = _client(of, MAX_QUERY_BYTES).search_for_studies(**words)
    except (requests.RequestException, OSError, ValueError) as error:
        raise InputError(f"{of.url}: {_why(error)}; expected a DICOMweb service") from None
    if not found:
        raise InputError(f"{of.url}: no such study; expected a Study Instance UID that it has")
    try:
        return int(found[0]["00201208"]["Value"][0])
    except (LookupError, TypeError, ValueError):
        return None


def instances(of: Service, study: str, series: list[str]) -> Iterator[Any]:
    """The datasets of a study, or of some of its series, as they are stored, by WADO-RS.

    Raises InputError.
    """
    client = _client(of, MAX_STUDY_BYTES)
    stored = {"media_types": (("application/dicom", "*"),)}
    parts = [client.iter_series(study, one, **stored) for one in series]
    try:
        for dataset in chain.from_iterable(parts or [client.iter_study(study, **stored)]):
            if str(dataset.get("StudyInstanceUID", "")) != study:
                raise InputError(f"{of.url}: sends an instance of another study; expected that one alone")
            yield dataset
    except InputError:
        raise
    except (OSError, ValueError) as error:  # requests' errors among them
        raise InputError(f"{of.url}: {_why(error)}; expected the complete study") from None


def _why(error: Exception) -> str:
    """Without the error's text, which quotes URLs and thereby patients' studies."""
    response = getattr(error, "response", None)
    if response is not None:
        return f"answers {response.status_code}"
    if isinstance(error, _Refused):
        return f"sends {error}"
    if isinstance(error, ValueError):
        return "sends something else than DICOMweb"
    kind = type(error).__name__
    return WHY.get(kind, f"does not answer ({kind})")
