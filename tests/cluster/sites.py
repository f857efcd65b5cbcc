"""A plan of small volumes, and what this machine alone makes of it: every cluster must make the same."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phantoms import affine_of, grid, head, uptake, write_nifti

from mmif_trt.cli import main
from mmif_trt.clinical import records
from mmif_trt.storage import Store, store_of

SHAPE, AFFINE = (6, 40, 36), affine_of("SAL", (6, 4, 4), (6, 40, 36))
HEAD = "name,a,b,modality_b,low_a,high_a,low_b,high_b"


@dataclass
class Site:
    """made: name of file -> bytes. bad: the one case of the plan that fails."""

    root: Path
    plan: Path
    made: dict[str, bytes]
    bad: str


def make(root: Path, cases: int, mark: str = "case") -> Site:
    """cases: their number, besides the bad one. mark: how their names begin."""
    root.mkdir(parents=True, exist_ok=True)
    write_nifti(root / "mri.nii", head(grid(AFFINE, SHAPE)), AFFINE)
    write_nifti(root / "pet.nii", uptake(grid(AFFINE, SHAPE)), AFFINE)
    (root / "bad.nii").write_bytes(b"no volume")
    rows = [f"{mark}{i:02},mri.nii,pet.nii,pet,0,{900 + i},0,1000" for i in range(cases)]
    rows.append(f"{mark}bad,bad.nii,pet.nii,pet,0,1000,0,1000")
    (root / "list.csv").write_text("\n".join([HEAD, *rows]) + "\n")
    words = ["plan", str(root / "list.csv"), "-o", str(root / "plan"), "--precision", "fp32", "--quiet"]
    assert main(words) == 0
    assert main(["batch", str(root / "plan"), "-o", str(root / "local"), "--quiet"]) == 1
    return Site(root, root / "plan", fused(root / "local"), f"{mark}bad")


def fused(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.rglob("*.nii")}


def done(out: Path | str) -> int:
    store: Store = store_of(str(out))
    return sum(record["status"] == records.DONE for record in records.all_records(store))


def until(what: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> Any:
    """The first true value of `what`; fails if the process ends first."""
    while not (found := what()):
        assert process is None or process.poll() is None, process and process.communicate()
        time.sleep(0.05)
    return found
