"""What both releases do with mmif_trt/weights: new files replace those before together, the manifest last."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmif_trt import files, weights
from mmif_trt.image import InputError
from mmif_trt.running import explain


@contextmanager
def replacing() -> Iterator[Path]:
    """A folder for new files, which replace those of the same names at the end. After an error none does: an
    installation refuses a network of which only some files are new."""
    with tempfile.TemporaryDirectory(dir=weights.FOLDER, prefix=".") as made:
        yield Path(made)
        for file in sorted(Path(made).iterdir()):
            file.chmod(0o644)  # whatever the umask: others install it
            os.replace(file, weights.FOLDER / file.name)


def write_manifest(table: dict[str, Any]) -> None:
    files.write_atomic(weights.FOLDER / "manifest.json", (json.dumps(table, indent=1) + "\n").encode())


def exit_code(release: Callable[[], dict[str, Any]]) -> int:
    """Of a command that releases and prints the entry of the manifest: 0, or 2 after one line that says why
    nothing was replaced."""
    try:
        print(json.dumps(release(), indent=1))
    except (InputError, OSError) as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        return 2
    return 0
