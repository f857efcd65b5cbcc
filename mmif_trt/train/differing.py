"""How two configurations differ, in words: of a checkpoint and of the run that would continue it."""

from __future__ import annotations

import json
from typing import Any


def differing(before: dict[str, Any], now: dict[str, Any], within: str = "") -> str:
    """The entries that differ, as "steps 2, now 3"; those of a nested table by "loss.edge"."""
    said = []
    for name in sorted(before.keys() | now.keys()):
        old, new = (json.loads(json.dumps(table.get(name))) for table in (before, now))  # a tuple is a list
        if isinstance(old, dict) and isinstance(new, dict):
            said.append(differing(old, new, f"{within}{name}."))
        elif old != new:
            said.append(f"{within}{name} {old}, now {new}")
    return ", ".join(filter(None, said))
