"""Reading in a child process with limits of memory and time: a bad file costs one case, never the run.

`python -m mmif_trt.clinical.decoder MEGABYTES` is the child: one JSON request a line in, one answer a line
out, pixels through a file. `Decoder` is the parent's side; it starts the child anew after a death.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mmif_trt import io
from mmif_trt.files import OutputError
from mmif_trt.image import Image, InputError
from mmif_trt.io.dicom import registration as dicom_registration
from mmif_trt.running import explain
from mmif_trt.stages import geometry

MEGABYTES, SECONDS = 6144, 300.0
HEADERS_AT_ONCE = 128
HEADER_BYTES = 1 << 20  # headers end long before
# Of a source's header only this leaves the child: what DICOM out keeps and refers to.
HEADER = ["SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "LossyImageCompression"]


def _megabytes() -> int:
    """The limit where none is given: less on a small machine, where the system would kill others first."""
    try:
        with open("/proc/meminfo") as file:
            free_kb = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return MEGABYTES
    return max(1024, min(MEGABYTES, free_kb * 8 // 10 // 1024))


class Decoder:
    """read(paths) as io.read, in a child. Not for several threads at once. Close it, or use `with`."""

    def __init__(self, megabytes: int | None = None, seconds: float = SECONDS) -> None:
        self.megabytes, self.seconds = megabytes or _megabytes(), seconds
        self._child: subprocess.Popen[bytes] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="mmif-decode-")

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stop()
        self._folder.cleanup()

    def _stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            for stream in (self._child.stdin, self._child.stdout):
                if stream:
                    stream.close()
            self._child = None

    def read(self, paths: tuple[str, ...]) -> Image:
        """paths: one file or folder, or the DICOM files of a series. Raises InputError, also where the child
        died or took too long, and OutputError where there was no room for the pixels on the way."""
        name = paths[0] if len(paths) == 1 else f"{os.path.dirname(paths[0])} ({len(paths)} files)"
        target = str(Path(self._folder.name) / "pixels.npy")
        answer = self._ask({"paths": list(paths), "name": name, "target": target}, name)
        if answer.get("is_disk"):
            raise OutputError(answer["error"])
        if "error" in answer:
            if "memory" in answer["error"]:
                self._stop()  # what it still holds would cost the next file
            raise InputError(answer["error"])
        data = np.load(target, allow_pickle=False)
        os.unlink(target)
        return _image(answer, data)

    def registration(self, path: str, a: Image, b: Image) -> geometry.Stated:
        """What a DICOM Spatial Registration file says on a and b. Raises InputError."""
        sides = [asdict(dicom_registration.side_of(image)) for image in (a, b)]
        answer = self._ask({"registration": path, "sides": sides}, path)
        if "error" in answer:
            raise InputError(answer["error"])
        return geometry.Stated(np.array(answer["matrix"]), answer["words"])

    def headers(self, paths: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """(path, what series.KEYS name, as text) of every DICOM file of `paths` that can be read.

        A file that kills the child, or holds it up, is left out like one that is no DICOM.
        """
        for at in range(0, len(paths), HEADERS_AT_ONCE):
            part = paths[at : at + HEADERS_AT_ONCE]
            try:
                yield from self._ask({"headers": part}, "headers")["headers"]
            except InputError:  # one of them: which?
                for path in part:
                    with contextlib.suppress(InputError):
                        yield from self._ask({"headers": [path]}, path)["headers"]

    def _ask(self, request: dict[str, Any], name: str) -> dict[str, Any]:
        if self._child is None or self._child.poll() is not None:
            command = [sys.executable, "-m", "mmif_trt.clinical.decoder", str(self.megabytes)]
            self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._child.stdin is not None
        try:
            self._child.stdin.write((json.dumps(request) + "\n").encode())
            self._child.stdin.flush()
            return self._answer(name)
        except (BrokenPipeError, EOFError):
            self._stop()
            raise InputError(
                f"{name}: the reader died on it (memory over {self.megabytes} MB?); accepted is a valid file"
            ) from None

    def _answer(self, name: str) -> dict[str, Any]:
        assert self._child is not None and self._child.stdout is not None
        end, got, out = time.monotonic() + self.seconds, b"", self._child.stdout.fileno()
        while not got.endswith(b"\n"):
            if not select.select([out], [], [], max(0.0, end - time.monotonic()))[0]:
                self._stop()
                raise InputError(f"{name}: not read within {self.seconds:g} s; accepted is a file that is")
            part = os.read(out, 1 << 20)
            if not part:
                raise EOFError
            got += part
        answer: dict[str, Any] = json.loads(got)
        return answer


def _image(answer: dict[str, Any], data: np.ndarray) -> Image:
    from pydicom.dataset import Dataset

    headers = tuple(Dataset.from_json(text) for text in answer["headers"])
    affine = None if answer["affine"] is None else np.array(answer["affine"])
    limits = None if answer["value_range"] is None else tuple(answer["value_range"])
    rest = {key: answer[key] for key in ("modality", "source", "units", "frame")}
    return Image(data, limits, affine=affine, headers=headers, notes=tuple(answer["notes"]), **rest)


def _serve() -> None:
    import resource

    limit = int(sys.argv[1]) << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a codec prints is no answer
    for line in sys.stdin:
        answers.write(json.dumps(_reply(json.loads(line))) + "\n")
        answers.flush()


def _reply(request: dict[str, Any]) -> dict[str, Any]:
    if "headers" in request:
        return {"headers": [found for path in request["headers"] if (found := _keys(path))]}
    if "registration" in request:
        return _registration(request["registration"], request["sides"])
    try:
        image = _read(request["paths"], request["name"])
    except MemoryError:
        return {"error": f"{request['name']}: over the memory limit; accepted is a smaller file"}
    except Exception as error:
        return {"error": explain(error)}
    try:
        np.save(request["target"], image.data)
    except OSError as error:  # not the file's fault: another try may do
        with contextlib.suppress(OSError):
            os.unlink(request["target"])
        folder, why = os.path.dirname(request["target"]), error.strerror or "no room"
        return {"is_disk": True, "error": f"{folder}: {why}; accepted is a temporary folder with room"}
    return {
        "headers": [_header(dataset) for dataset in image.headers],
        "affine": None if image.affine is None else image.affine.tolist(),
        "value_range": image.value_range,
        "notes": image.notes,
        **{key: getattr(image, key) for key in ("modality", "source", "units", "frame")},
    }


def _registration(path: str, sides: list[dict[str, Any]]) -> dict[str, Any]:
    try:
        name, _, data = io.read_bytes(path)
        a, b = (dicom_registration.Side(**{**side, "instances": tuple(side["instances"])}) for side in sides)
        matrix, words = dicom_registration.decode(data, name, a, b)
    except Exception as error:
        return {"error": explain(error)}
    return {"matrix": matrix.tolist(), "words": words}


def _keys(path: str) -> tuple[str, dict[str, Any]] | None:
    """The pairing's keys of one DICOM file; None where it cannot be read: its series then has a gap."""
    from mmif_trt.clinical.series import KEYS, TIED
    from mmif_trt.io import dicom

    try:
        with open(path, "rb") as file:
            head = file.read(HEADER_BYTES)
            if dicom.transfer_syntax(head, path)[0] == dicom.DEFLATED:
                head += file.read()
        with dicom.quiet():
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


def _read(paths: list[str], name: str) -> Image:
    from mmif_trt.io import dicom

    if len(paths) == 1:
        return io.read(paths[0])
    return dicom.series([dicom.parse(Path(path).read_bytes(), path) for path in paths], name)


def _header(dataset: Any) -> str:
    from pydicom.dataset import Dataset

    from mmif_trt.io.dicom import quiet
    from mmif_trt.io.dicom.write import KEPT

    with quiet():
        small = Dataset()
        for keyword in (*KEPT, *HEADER):
            if keyword in dataset:
                small[keyword] = dataset[keyword]
        text: str = small.to_json()
    return text


if __name__ == "__main__":
    _serve()
