"""What a file of a fused picture or volume says about how it was made; no path and no patient value."""

from __future__ import annotations

import re

from mmif_trt import weights
from mmif_trt.about import RESEARCH_USE, VERSION
from mmif_trt.image import Picture

Label = tuple[tuple[str, str], ...]
_WEIGHTS = "weights sha256 {}"
_FOUND = re.compile(_WEIGHTS.format("([0-9a-f]{64})").encode())


def of(a: Picture, b: Picture, network: str) -> Label:
    """(keyword, text) pairs in ASCII, the same for the same sources, software and weights. network: that
    fused them, by its name. The keywords are those that PNG predefines (ISO/IEC 15948, 11.3.4.2); io/ writes
    them in each format's own place."""
    by = f"{weights.title(network)}, {_WEIGHTS.format(weights.onnx_sha256(network))}"
    sources = ", ".join(f"{name} sha256 {image.sha256 or 'unknown'}" for name, image in (("A", a), ("B", b)))
    return (
        ("Software", f"mmif_trt {VERSION}"),
        ("Description", f"A and B fused by {by}"),
        ("Source", sources),
        ("Disclaimer", RESEARCH_USE),
    )


def of_other_weights(data: bytes, network: str) -> bool:
    """Whether a file's bytes state weights that are not those of `network`. False where they state none: it
    was edited, or is of another program. Every format of pictures holds the label as plain text."""
    found = _FOUND.search(data)
    return found is not None and found[1].decode() != weights.onnx_sha256(network)
