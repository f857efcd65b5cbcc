"""`python -m mmif_trt.clinical.decoder_child MEGABYTES DESCRIPTOR`: the child of decoder.py.

No file content reaches its stderr: libraries and codecs quote what they fail on. The answer reports an error
by its type.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import numpy as np

from mmif_trt import io
from mmif_trt.clinical.child_side import serve
from mmif_trt.clinical.header import PLAIN, header
from mmif_trt.clinical.keys import keys_of
from mmif_trt.io import dicom
from mmif_trt.io.dicom import registration as dicom_registration
from mmif_trt.io.which import Which
from mmif_trt.running import explain


def main() -> None:
    pixels = int(sys.argv[2])
    serve(int(sys.argv[1]), lambda line: _answer(line, pixels))


def _answer(line: str, pixels: int) -> str:
    """One try around everything: values that cannot be converted or written as JSON must not escape."""
    request: dict[str, Any] = {}
    try:
        request = json.loads(line)
        return json.dumps(_reply(request, pixels))
    except MemoryError:
        name = request.get("name") or request.get("registration") or "headers"
        return json.dumps({"error": f"{name}: over the memory limit; expected a smaller file"})
    except Exception as error:
        return json.dumps({"error": explain(error)})


def _reply(request: dict[str, Any], pixels: int) -> dict[str, Any]:
    if "headers" in request:
        return {"headers": [found for path in request["headers"] if (found := keys_of(path))]}
    if "foresee" in request:
        io.foresee(request["foresee"], Which(**request["which"]))
        return {}
    if "registration" in request:
        return _registration(request["registration"], request["sides"])
    image = _read(request["paths"], request["name"], Which(**request["which"]))
    try:
        with os.fdopen(pixels, "r+b", closefd=False) as file:
            file.seek(0)
            file.truncate()
            np.save(file, image.data)
    except OSError as error:  # not the file's fault: another try may succeed
        why = error.strerror or "no room"
        return {
            "is_disk": True,
            "error": f"temporary folder: {why}; expected room for {image.data.nbytes} bytes",
        }
    kept = [header(dataset) for dataset in image.headers]
    left_out = sorted({name for _, names in kept for name in names})
    words = f"{', '.join(left_out)} left out of the result: expected valid, readable values"
    notes = [words] if left_out else []
    return {
        "headers": [text for text, _ in kept],
        "affine": None if image.affine is None else image.affine.tolist(),
        "value_range": image.value_range,
        "notes": [*image.notes, *notes],
        **{key: getattr(image, key) for key in PLAIN},
    }


def _registration(path: str, sides: list[dict[str, Any]]) -> dict[str, Any]:
    name, _, data = io.read_bytes(path)
    a, b = (dicom_registration.Side(**{**side, "instances": tuple(side["instances"])}) for side in sides)
    matrix, words = dicom_registration.decode(data, name, a, b)
    return {"matrix": matrix.tolist(), "words": words}


def _read(paths: list[str], name: str, which: Which) -> Any:
    if len(paths) == 1:
        return io.read(paths[0], series=which.series, volume=which.volume)
    return dicom.read_files(paths, name, which)


if __name__ == "__main__":
    main()
