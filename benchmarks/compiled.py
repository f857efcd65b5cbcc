"""torch.compile as a rival: under its name only compiled code is timed, or an error reported.

Rivals of one benchmark share code objects. Dynamo keeps at most 8 compilations of one, and from the ninth on
runs the plain function with only a line in a log. So every case starts with `forget()` and requires a full
graph, with which torch raises instead of falling back.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch


def compiled(call: Callable[..., Any]) -> Callable[..., Any]:
    """call, compiled for the shapes it receives. Raises at a call that cannot be compiled."""
    made: Callable[..., Any] = torch.compile(call, dynamic=False, fullgraph=True)
    return made


def forget() -> None:
    """Drop earlier compilations: the next case counts from zero. Until something is compiled there are none,
    and to ask torch would take it more than a second to import its compiler."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
