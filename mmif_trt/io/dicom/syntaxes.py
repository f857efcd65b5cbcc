"""The transfer syntaxes whose pixels can be read here: those that the node offers and a file may have."""

from __future__ import annotations

from typing import Any

NOT_USED = "gdcm"  # damaged pixels abort the process in it (found by tests/io/test_fuzz_volumes.py)


def readable() -> list[Any]:
    """pydicom UIDs that the installed codecs support: uncompressed ones first, then by number."""
    from pydicom import uid
    from pydicom.pixels import get_decoder

    plain = [
        uid.ExplicitVRLittleEndian,
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRBigEndian,
        uid.DeflatedExplicitVRLittleEndian,
    ]
    found = []
    for syntax in uid.AllTransferSyntaxes:
        if syntax in plain or syntax.is_private:
            continue
        try:
            plugins = get_decoder(syntax).available_plugins
        except NotImplementedError:  # video, JPIP
            continue
        if any(name != NOT_USED for name in plugins):
            found.append(syntax)
    return plain + found


def table() -> str:
    """For the documentation, in Markdown."""
    rows = [f"| {syntax.name} | {syntax} |" for syntax in readable()]
    return "\n".join(["| Transfer syntax | UID |", "|---|---|", *rows]) + "\n"
