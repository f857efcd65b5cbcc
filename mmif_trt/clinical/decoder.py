"""Reading in a child process with limits of memory and time: a bad file costs one case, never the run.

This is the parent's side. The child (decoder_child.py) takes one JSON request per line and answers in one
line; pixels are passed in an unnamed scratch file, so that no kill leaves a patient's pixels in a folder. The
parent restarts the child if it dies.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mmif_trt.clinical.child import Child
from mmif_trt.clinical.header import PLAIN, parsed
from mmif_trt.files import TMP_SUFFIX, OutputError, temporary_prefix
from mmif_trt.image import Image, InputError
from mmif_trt.io.dicom import registration as dicom_registration
from mmif_trt.io.which import ANY, Which
from mmif_trt.running import refuse_without, refuse_without_posix
from mmif_trt.stages import geometry

MEGABYTES, SECONDS = 6144, 300.0
HEADERS_AT_ONCE = 128


def _megabytes() -> int:
    """The default limit: less on a small machine, where the system would kill others first."""
    try:
        with open("/proc/meminfo") as file:
            free_kb = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return MEGABYTES
    return max(1024, min(MEGABYTES, free_kb * 8 // 10 // 1024))


class Decoder:
    """read(paths) like io.read, in a child. Not for several threads at once. Close it, or use `with`.

    folder: where pixels are kept until read; None: the temporary folder.
    """

    def __init__(
        self, megabytes: int | None = None, seconds: float = SECONDS, folder: Path | None = None
    ) -> None:
        refuse_without_posix(
            "reading volumes in a process with limits",
            "Python's mmif_trt.read and mmif_trt.fuse read them in their own process",
        )
        self.megabytes, self.seconds = megabytes or _megabytes(), seconds
        try:  # O_TMPFILE if the file system has it; otherwise a name for a moment
            self._pixels = tempfile.TemporaryFile(  # noqa: SIM115
                dir=folder, prefix=temporary_prefix(), suffix=TMP_SUFFIX
            )
        except OSError as error:
            where = folder or tempfile.gettempdir()
            raise OutputError(f"{where}: {error.strerror}; expected a folder with room for pixels") from error
        pixels = self._pixels.fileno()
        module = "mmif_trt.clinical.decoder_child"
        self._child = Child(module, str(self.megabytes), str(pixels), pass_fds=(pixels,))

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._child.stop()
        self._pixels.close()

    def start(self) -> None:
        """Starts the reading process now, and waits until it answers. Raises InputError."""
        self._ask({"headers": []}, "the reading process")

    def read(self, paths: tuple[str, ...], which: Which = ANY) -> Image:
        """paths: one file or folder, or the DICOM files of a series. which: of several volumes.

        Raises InputError, also if the child died or took too long, and OutputError if there was no room for
        the pixels in transit.
        """
        name = paths[0] if len(paths) == 1 else f"{os.path.dirname(paths[0])} ({len(paths)} files)"
        try:
            answer = self._ask({"paths": list(paths), "name": name, "which": asdict(which)}, name)
            if answer.get("is_disk"):
                raise OutputError(answer["error"])
            if "error" in answer:
                if "memory" in answer["error"]:
                    self._child.stop()  # memory it still holds would be lost to the next file
                raise InputError(answer["error"])
            self._pixels.seek(0)
            return _image(answer, np.load(self._pixels, allow_pickle=False))
        finally:
            self._pixels.truncate(0)

    def registration(self, path: str, a: Image, b: Image) -> geometry.Stated:
        """What a DICOM Spatial Registration file says about a and b. Raises InputError."""
        sides = [asdict(dicom_registration.side_of(image)) for image in (a, b)]
        answer = self._ask({"registration": path, "sides": sides}, path)
        if "error" in answer:
            raise InputError(answer["error"])
        return geometry.Stated(np.array(answer["matrix"]), answer["words"])

    def foresee(self, path: str, which: Which = ANY) -> str:
        """Why `read` will refuse a file or folder, as far as its headers tell; "" where they do not."""
        request = {"foresee": path, "name": path, "which": asdict(which)}
        try:
            return str(self._ask(request, path).get("error", ""))
        except InputError as error:
            return str(error)

    def headers(self, paths: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """(path, its keys, see keys.py) of every DICOM file of `paths` that can be read.

        A file that kills or blocks the child is left out, like one that is not DICOM. Raises InputError
        without pydicom.
        """
        refuse_without("pydicom", "DICOM headers")  # or else all files seem damaged
        for at in range(0, len(paths), HEADERS_AT_ONCE):
            part = paths[at : at + HEADERS_AT_ONCE]
            try:
                yield from self._ask({"headers": part}, "headers")["headers"]
            except (InputError, KeyError):  # one of them: which?
                for path in part:
                    with contextlib.suppress(InputError, KeyError):
                        yield from self._ask({"headers": [path]}, path)["headers"]

    def _ask(self, request: dict[str, Any], name: str) -> dict[str, Any]:
        try:
            return self._child.ask(request, self.seconds)
        except EOFError:
            why = f"the reader died on it (memory over {self.megabytes} MB?); expected a valid file"
        except TimeoutError:
            why = f"not read within {self.seconds:g} s; expected a faster file"
        except ValueError:
            why = "headers without an end; expected less"
        raise InputError(f"{name}: {why}")


def _image(answer: dict[str, Any], data: np.ndarray) -> Image:
    headers = tuple(parsed(text) for text in answer["headers"])
    affine = None if answer["affine"] is None else np.array(answer["affine"])
    limits = None if answer["value_range"] is None else tuple(answer["value_range"])
    rest = {key: answer[key] for key in PLAIN}
    return Image(data, limits, affine=affine, headers=headers, notes=tuple(answer["notes"]), **rest)
