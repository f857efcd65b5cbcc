"""The page: a Triple in one HTML file that opens from disk, offline, under a strict content policy."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from datetime import datetime, timezone
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from mmif_trt.about import RESEARCH_USE, VERSION
from mmif_trt.files import write_atomic
from mmif_trt.image import SHOWN, Image
from mmif_trt.stages import geometry
from mmif_trt.view import pack
from mmif_trt.view.triple import Triple

PAGE_BYTES = 60_000_000  # a page stays below this if fewer levels make that possible
LEVELS = (4096, 1024, 256)  # of a grey source: the first with which the page is small enough
SCRIPTS = ("niivue.js", "programs.js", "slices.js", "unpack.js", "desk.js", "view.js")
Block = tuple[str, str]  # id and text of an inert script element


def write(path: str | Path, triple: Triple, title: str, files: dict[str, str]) -> int:
    """Writes the page, whole or not at all; returns its bytes. files: of a, b and fused, as the page names
    them. Raises OutputError."""
    data = render(triple, title, files).encode(errors="replace")  # of names in another encoding
    write_atomic(path, data)
    return len(data)


def render(triple: Triple, title: str, files: dict[str, str], page_bytes: int = PAGE_BYTES) -> str:
    """The page's text. Names from files and users are always escaped."""
    packed = _packed(triple, page_bytes - 3_000_000)
    blocks = [
        (f"{key}{i}", _text(plane)) for key, one in packed.items() for i, plane in enumerate(one.planes)
    ]
    scripts = [_asset(name) for name in SCRIPTS]
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts
    )
    warnings = [text for text in (triple.in_doubt, triple.reduced) if text]
    values = {
        "title": html.escape(title),
        "policy": "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; worker-src blob:; "
        f"script-src {hashes}",
        "css": _asset("view.css"),
        "about": html.escape(f"Made {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC by mmif-trt {VERSION}."),
        "research_use": html.escape(RESEARCH_USE),
        "label_a": html.escape(_label(triple.a, "A")),
        "label_b": html.escape(_label(triple.b, "B")),
        "warnings": "".join(f'<p class="warning">{html.escape(_sentence(text))}</p>' for text in warnings),
        "notes": "".join(f"<p>{html.escape(text)}</p>" for text in triple.notes),
        "facts": _rows(facts(triple, packed, files)),
        "data": inert_json(_data(triple, packed)),
        "blocks": "\n".join(
            f'<script type="text/plain" id="{name}">{text}</script>' for name, text in blocks
        ),
        "scripts": "\n".join(f"<script>{text}</script>" for text in scripts),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], _asset("view.html"))


def _asset(name: str) -> str:
    text = resources.files("mmif_trt.view").joinpath(name).read_text(encoding="utf-8")
    assert "</script" not in text.lower() or name.endswith(".html"), name
    return text


def inert_json(data: Any) -> str:
    """JSON for a script element: no name can close the element."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _text(plane: bytes) -> str:
    return base64.b64encode(plane).decode()


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _packed(triple: Triple, budget: int) -> dict[str, pack.Packed]:
    fused = pack.pack_of(triple.fused, 256)
    packed: dict[str, pack.Packed] = {}
    for levels in LEVELS:
        packed = {"a": pack.pack_of(triple.a, levels), "b": pack.pack_of(triple.b, levels), "fused": fused}
        if triple.before is not None:
            packed["before"] = pack.pack_of(triple.before, 256)
        if sum(one.size for one in packed.values()) <= budget:
            break
    return packed


def _data(triple: Triple, packed: dict[str, pack.Packed]) -> dict[str, Any]:
    """The scripts' data apart from the voxels."""
    limits = {
        "a": triple.limits_a,
        "b": triple.limits_b,
        "before": triple.limits_b,
        "fused": triple.fused.value_range or (0.0, 255.0),
    }
    images = {"a": triple.a, "b": triple.b, "before": triple.before, "fused": triple.fused}
    volumes = {}
    for key, one in packed.items():
        image = images[key]
        assert image is not None
        volumes[key] = {
            "kind": one.kind,
            "planes": len(one.planes),
            "slope": one.slope,
            "inter": one.inter,
            "low": limits[key][0],
            "high": limits[key][1],
            "units": image.units or "",
            "modality": image.modality or "",
            "label": "fused" if key == "fused" else _label(image, key[:1].upper()),
        }
    return {
        **grid_of(triple.a),
        "volumes": volumes,
        "palette": None if triple.palette is None else triple.palette.tolist(),
        "paletteName": triple.palette_name,
    }


def grid_of(image: Image) -> dict[str, Any]:
    """shape (x, y, z), affine (x, y, z) to RAS+ mm, spacing in mm or null, of a Triple's image."""
    shape = image.data.shape[: image.data.ndim - image.is_colour]
    if image.is_volume:
        assert image.affine is not None and image.spacing_mm is not None
        affine, spacing = image.affine[:3][:, [2, 1, 0, 3]], list(image.spacing_mm[::-1])
    else:
        row, column = image.spacing_mm or (1.0, 1.0)
        affine = np.array([[column, 0, 0, 0], [0, row, 0, 0], [0, 0, 1.0, 0]])
        spacing = [column, row, 1.0] if image.spacing_mm else []
    return {
        "isVolume": image.is_volume,
        "shape": [*shape[::-1], 1][:3],
        "affine": affine.tolist(),
        "spacing": spacing or None,
    }


def _label(image: Image, side: str) -> str:
    return SHOWN.get(image.modality or "", "modality not stated" if side == "B" else "MRI")


def facts(triple: Triple, packed: dict[str, pack.Packed], files: dict[str, str]) -> list[tuple[str, str]]:
    """(what, text) of sources, geometry and the record."""
    record, rows = triple.record, list[tuple[str, str]]()
    for side, image, limits in (("A", triple.a, triple.limits_a), ("B", triple.b, triple.limits_b)):
        one = packed[side.lower()]
        units = image.units or "(no unit)"
        rows.append((side, f"{_label(image, side)}: {files[side.lower()]}"))
        rows.append((f"{side}, black to white", f"{limits[0]:g} to {limits[1]:g} {units}"))
        if one.kind == "grey":
            exact = "exact" if one.slope == 1 else f"to within {one.slope / 2:.3g}"
            rows.append((f"{side}, values shown", exact))
        rows += [(f"{side}, note", note) for note in image.notes]
    rows.append(("Fused", files["fused"]))
    rows.append(("Grid", _geometry(triple.a)))
    if (done := record.get("registration")) is not None:
        how = str(done["registration"])
        if done.get("shift_mm") or done.get("rotation_deg"):
            moved = [done.get(name) or 0.0 for name in ("shift_mm", "rotation_deg")]
            how += f", moved {moved[0]:g} mm and {moved[1]:g} degrees"
        if done.get("repeatability_mm") is not None:
            how += f"; two runs ended {done['repeatability_mm']:g} mm apart (not the error)"
        if geometry.doubts((record.get("b") or {}).get("notes") or ()):
            how += "; not trustworthy: compare the edges"
        rows.append(("Registration", how))
        if done.get("inside") is not None:
            rows.append(("B covers", f"{done['inside']:.0%} of A's grid"))
    rows.append(("Foregrounds share", f"{triple.overlap:.0%} of the smaller one"))
    rows.append(("Palette", triple.palette_name or "none (grey)"))
    if plane := record.get("plane"):
        rows.append(("Plane fused", str(plane)))
    if weights := record.get("weights"):
        rows.append(("Weights", _weights(weights)))
    if made_by := record.get("mmif_trt"):
        rows.append(("Fused by", f"mmif-trt {made_by}"))
    return rows


def _geometry(image: Image) -> str:
    shape = image.data.shape[: image.data.ndim - image.is_colour][::-1]
    sides = " x ".join(map(str, shape))
    if not image.spacing_mm:
        return f"{sides} px, spacing not known"
    pitch = " x ".join(f"{mm:g}" for mm in image.spacing_mm[::-1])
    return f"{sides} {'voxels' if image.is_volume else 'px'} of {pitch} mm"


def _weights(weights: dict[str, Any]) -> str:
    return ", ".join(f"{name}, released {entry.get('released')}" for name, entry in weights.items())


def _rows(found: list[tuple[str, str]]) -> str:
    return "".join(f"<dt>{html.escape(what)}</dt><dd>{html.escape(text)}</dd>" for what, text in found)
