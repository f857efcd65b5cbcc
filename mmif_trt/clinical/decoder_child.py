"""`python -m mmif_trt.clinical.decoder_child MEGABYTES DESCRIPTOR`: the child of decoder.py.

Nothing of a file reaches its stderr: libraries and codecs quote what they choke on. What goes wrong is told
in the answer, by its type.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import numpy as np

from mmif_trt import io
from mmif_trt.clinical.child_side import serve
from mmif_trt.clinical.header import header
from mmif_trt.files import open_regular, read_regular
from mmif_trt.io.dicom import registration as dicom_registration
from mmif_trt.running import explain

HEADER_BYTES = 1 << 20  # headers end long before


def main() -> None:
    pixels = int(sys.argv[2])
    serve(int(sys.argv[1]), lambda line: _answer(line, pixels))


def _answer(line: str, pixels: int) -> str:
    """One try around all of it: neither a value that cannot be converted nor one that is no JSON gets out."""
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
        return {"headers": [found for path in request["headers"] if (found := _keys(path))]}
    if "registration" in request:
        return _registration(request["registration"], request["sides"])
    image = _read(request["paths"], request["name"])
    try:
        with os.fdopen(pixels, "r+b", closefd=False) as file:
            file.seek(0)
            file.truncate()
            np.save(file, image.data)
    except OSError as error:  # not the file's fault: another try may do
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
        **{key: getattr(image, key) for key in ("modality", "source", "units", "frame")},
    }


def _registration(path: str, sides: list[dict[str, Any]]) -> dict[str, Any]:
    name, _, data = io.read_bytes(path)
    a, b = (dicom_registration.Side(**{**side, "instances": tuple(side["instances"])}) for side in sides)
    matrix, words = dicom_registration.decode(data, name, a, b)
    return {"matrix": matrix.tolist(), "words": words}


def _keys(path: str) -> tuple[str, dict[str, Any]] | None:
    """The pairing's keys of one DICOM file; None where it cannot be read: its series then has a gap."""
    from mmif_trt.clinical.series import KEYS, TIED
    from mmif_trt.io import dicom

    try:
        with open_regular(path) as file:
            head = file.read(HEADER_BYTES)
            if dicom.transfer_syntax(head, path)[0] == dicom.DEFLATED:
                head += file.read()
        dataset = dicom.parse(head, path, pixels=False)
        values = {key: dataset.get(key) for key in KEYS}
        tied = dicom_registration.frames(dataset)
        return path, {
            key: [str(x) for x in value] if key == "ImageType" and value else str(value)
            for key, value in values.items()
            if value is not None
        } | ({TIED: tied} if tied else {})
    except Exception:  # pydicom raises whatever the bytes lead it to, MemoryError too
        return None


def _read(paths: list[str], name: str) -> Any:
    from mmif_trt.io import dicom

    if len(paths) == 1:
        return io.read(paths[0])
    return dicom.series([dicom.parse(read_regular(path), path) for path in paths], name)


if __name__ == "__main__":
    main()
