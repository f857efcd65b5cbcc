"""Our rigid registration beside those of ANTs and elastix on the same volumes: do the three agree?

    pip install antspyx itk-elastix
    python benchmarks/registration.py TEMPLATES

All maximise Mattes' mutual information over six parameters from the headers' position; ANTs by its own
schedule of "Rigid", elastix by its default map of "rigid" with 1,000 iterations, ours as
geometry.register_rigid does.
Distances are taken at the corner of A's grid where they are largest. Writes results/registration.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import report

import mmif_trt
from mmif_trt.image import RAS_LPS
from mmif_trt.stages import geometry

RESULT = report.RESULTS / "registration.json"
PAIRS = (("T1", "PET"), ("T1", "SPECT"), ("T1", "CT"), ("T1", "T2"), ("single_subject_T1", "PET"))


def ours(a: Path, b: Path) -> np.ndarray:
    return geometry.register_rigid(mmif_trt.read(a), mmif_trt.read(b))[0]


def by_ants(a: Path, b: Path) -> np.ndarray:
    import ants

    fixed, moving = ants.image_read(str(a)), ants.image_read(str(b))
    found = ants.registration(fixed, moving, type_of_transform="Rigid", aff_metric="mattes", random_seed=1)
    transform = ants.read_transform(found["fwdtransforms"][0])
    return of_points(lambda point: transform.apply_to_point(point))


def by_elastix(a: Path, b: Path) -> np.ndarray:
    import itk
    import SimpleITK as sitk

    fixed, moving = itk.imread(str(a), itk.F), itk.imread(str(b), itk.F)
    parameters = itk.ParameterObject.New()
    rigid = parameters.GetDefaultParameterMap("rigid", 4)
    rigid["MaximumNumberOfIterations"], rigid["NumberOfSpatialSamples"] = ["1000"], ["8000"]
    parameters.AddParameterMap(rigid)
    _, found = itk.elastix_registration_method(fixed, moving, parameter_object=parameters)
    values = found.GetParameterMap(0)
    transform = sitk.Euler3DTransform()
    transform.SetCenter([float(x) for x in values["CenterOfRotationPoint"]])
    transform.SetParameters([float(x) for x in values["TransformParameters"]])
    return of_points(lambda point: transform.TransformPoint(point))


def of_points(move: Callable[[list[float]], Any]) -> np.ndarray:
    """[4, 4] RAS+ mm of a transform of points in LPS mm."""
    origin = np.array(move([0.0, 0.0, 0.0]))
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([np.array(move(list(axis))) - origin for axis in np.eye(3)], axis=1)
    matrix[:3, 3] = origin
    return RAS_LPS @ matrix @ RAS_LPS


def farthest(points: np.ndarray, one: np.ndarray, other: np.ndarray) -> float:
    return round(float(np.linalg.norm((points @ (one - other).T)[:, :3], axis=1).max()), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("templates", type=Path)
    folder = parser.parse_args().templates
    programs = {"ours": ours, "ANTs": by_ants, "elastix": by_elastix}
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {"conditions": report.conditions(), "rows": rows}
    result["conditions"]["versions"] |= {x: version(x) for x in ("SimpleITK", "antspyx", "itk-elastix")}
    print(report.markdown(["A", "B", "program", "middle moves by (R, A, S) mm", "from ours mm", "s"], []))
    for name_a, name_b in PAIRS:
        a, b = folder / f"{name_a}.nii", folder / f"{name_b}.nii"
        points, found = geometry.corners(mmif_trt.read(a)), dict[str, np.ndarray]()
        for program, register in programs.items():
            start = time.perf_counter()
            found[program] = register(a, b)
            seconds = round(time.perf_counter() - start, 1)
            middle = points.mean(axis=0)
            moved = [round(float(x), 2) for x in (found[program] @ middle - middle)[:3]]
            apart = farthest(points, found[program], found["ours"])
            names = {"a": name_a, "b": name_b, "program": program}
            rows.append({**names, "middle_moves_mm": moved, "from_ours_mm": apart, "seconds": seconds})
            print(f"| {' | '.join(str(x) for x in rows[-1].values())} |", flush=True)
        report.write_json(RESULT, result)
    print(json.dumps(result["conditions"]["versions"]))


if __name__ == "__main__":
    main()
