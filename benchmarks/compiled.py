"""torch.compile as a rival: what is timed under its name is compiled code, or an error.

Rivals of one benchmark share code objects. Dynamo keeps at most 8 compilations of one, and from the ninth on
runs the plain function with no more than a line in a log. So every case begins with `forget()`, and a whole
graph is asked for, with which torch raises where it would fall back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def compiled(call: Callable[..., Any]) -> Callable[..., Any]:
    """call, compiled for the shapes it meets. Raises at a call for which it cannot be."""
    made: Callable[..., Any] = torch.compile(call, dynamic=False, fullgraph=True)
    return made


def forget() -> None:
    """Drop what was compiled before: the next case counts its compilations from none."""
    torch.compiler.reset()
