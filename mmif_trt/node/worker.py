"""`python -m mmif_trt.node.worker MEGABYTES SPOOL NETWORK`: what fuses for the node, within limits.

A study that is too large, or that crashes a library, ends this process and not the node. One request is one
case; the answer reports the outcome; the DICOM instance is in the file that the request names.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from mmif_trt.clinical.child_side import serve
from mmif_trt.files import OutputError, write_atomic
from mmif_trt.image import Image
from mmif_trt.node import tries
from mmif_trt.running import explain, why

DONE, FAILED, POSTPONED = "done", "failed", "postponed"
MAX_WORDS = 1024  # of Derivation Description (ST)


class Worker:
    """Keeps the network and the reading process from case to case."""

    def __init__(self, spool: Path, network: str) -> None:
        from mmif_trt.clinical.decoder import Decoder
        from mmif_trt.fuser import Fuser
        from mmif_trt.machine import usable_cores

        self.decoder = Decoder(folder=spool)
        self.fuser = Fuser(streams=usable_cores(), network=network)
        self.decoder.start()
        self._warm()

    def _warm(self) -> None:
        """A small fusion: what takes long at the first one (imports, the network's memory) is there before a
        case could be blamed for a death in these seconds."""
        import numpy as np
        import pydicom  # noqa: F401

        from mmif_trt.clinical import outputs  # noqa: F401

        ramp = np.linspace(0, 1, 2 * 32 * 32, dtype=np.float32).reshape(2, 32, 32)
        a = Image(ramp, (0, 1), "mri", affine=np.eye(4))
        self.fuser.fuse_volumes(a, Image(ramp[::-1].copy(), (0, 1), "pet", affine=np.eye(4)))

    def make(self, request: dict[str, Any]) -> str:
        """Why the registration may be wrong, or ""; the log shows it, so it holds no value of a patient."""
        from mmif_trt.clinical import outputs
        from mmif_trt.clinical.case import Case, fuse, load
        from mmif_trt.io.dicom import write as dicom_write
        from mmif_trt.stages.geometry import doubts
        from mmif_trt.volume import Options

        case = Case("", tuple(request["a"]), tuple(request["b"]), registration=request["registration"])
        loaded = load(case, self.decoder, Options(**request["options"]))
        fused = fuse(loaded, self.fuser)
        dataset = outputs.dataset_of(fused, loaded.a, loaded.b)
        if request["replaces"]:
            words = f"replaces {', '.join(request['replaces'])}, made before all instances had arrived"
            dataset.DerivationDescription = f"{words}; {dataset.DerivationDescription}"[:MAX_WORDS]
        write_atomic(request["result"], dicom_write.encode(dataset))
        return "; ".join(doubts(fused.record["b"]["notes"]))


def main() -> None:
    worker: list[Worker] = []
    attempt: list[Path] = []  # the last one

    def prepare() -> None:
        if not worker:
            worker.append(Worker(Path(sys.argv[2]), sys.argv[3]))

    def answer(line: str) -> str:
        outcome, message, doubt = DONE, "", ""
        try:
            prepare()
            request = json.loads(line)
            if "ready" not in request:
                attempt[:] = [Path(request["attempt"])]
                tries.begin(attempt[0], request["study"])
                doubt = worker[0].make(request)
        except OutputError as error:
            outcome, message = POSTPONED, f"not written ({why(error)})"
        except MemoryError:
            outcome, message = FAILED, "over the memory limit (--max-fusion-mb); expected a smaller study"
        except Exception as error:
            outcome, message = FAILED, explain(error)
        return json.dumps({"outcome": outcome, "message": message, "doubt": doubt})

    def abandoned() -> None:
        if attempt:
            tries.node_left(attempt[0])

    serve(int(sys.argv[1]), answer, prepare, abandoned)


if __name__ == "__main__":
    main()
