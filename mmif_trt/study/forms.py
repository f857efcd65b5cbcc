"""What a form of the study's pages holds, as far as it makes sense."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from mmif_trt.study import volumes

if TYPE_CHECKING:
    from fastapi import Request


async def form_of(request: Request) -> dict[str, str]:
    body = (await request.body()).decode(errors="replace")
    return {key: values[-1] for key, values in parse_qs(body, keep_blank_values=True).items()}


def number(text: str, low: float, high: float) -> float | None:
    """A finite number from low to high, otherwise None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and low <= value <= high and len(text) < 20 else None


def view_of(form: dict[str, str]) -> str:
    """Zoom, window and slices seen when the answer was given, as JSON; {} if none make sense."""
    limits = {"zoom": (1, 64), "brightness": (0.1, 10), "contrast": (0.1, 10)}
    found = {name: number(form.get(name, ""), *limit) for name, limit in limits.items()}
    told = {name: value for name, value in found.items() if value is not None}
    return json.dumps({**told, **volumes.seen_of(form)})
