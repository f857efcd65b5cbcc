"""Our rigid registration: its error on phantoms with known truth, and beside ANTs and elastix: do the three
agree?

    python benchmarks/registration.py --phantoms
    pip install antspyx itk-elastix
    python benchmarks/registration.py TEMPLATES

Phantoms: pairs of an MRI and a CT, PET or SPECT of one head that is a function of millimetres, drawn at
random from seeds: field of view, slices, noise, and a movement that b's header adds. The error is the largest
over the corners of a box about the head; over FAILURE_MM the registration failed. The settings were chosen on
the pairs of CHOSEN_ON, without a look at those of FRESH.

All maximise Mattes' mutual information over six parameters from the headers' position; ANTs by its own
schedule of "Rigid", elastix by its default map of "rigid" with 1,000 iterations, ours as
geometry.register_rigid does.
Distances are taken at the corner of A's grid where they are largest.

Each of the two writes its part of results/registration.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import report

import mmif_trt
from mmif_trt.image import RAS_LPS, Image
from mmif_trt.stages import geometry

RESULT = report.RESULTS / "registration.json"
CHOSEN_ON, FRESH = ((103, 17), (104, 14)), ((105, 30), (106, 30))  # (seed, number of pairs)
FAILURE_MM, GOOD_MM = 5.0, 3.0
BOX = np.array([(x, y, z, 1.0) for x in (-50, 50) for y in (-60, 60) for z in (-40, 40)])  # RAS+ mm
GROUPS = {"noise": "noise of B, %", "field": "B covers", "moved_mm": "moved by, mm", "b": "B"}
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


def pairs(seed: int, count: int) -> Iterator[tuple[dict[str, Any], Image, Image, np.ndarray]]:
    """(what it is, a, b, [4, 4] truth) of each pair."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from phantoms import affine_of, grid, head, uptake
    from scipy.ndimage import gaussian_filter

    def direction() -> np.ndarray:
        drawn = draw.normal(size=3)
        return np.asarray(drawn / np.linalg.norm(drawn))

    draw = np.random.default_rng(seed)
    shape_a = (29, 40, 34)
    affine_a = affine_of("SPL", (4.5, 4.5, 4.5), shape_a)
    for number in range(1, count + 1):
        moved_mm, turned_deg = ((3, 2), (10, 6), (25, 15), (40, 25))[number % 4]
        middle, turn = moved_mm * direction(), turned_deg * direction()
        truth = affine_of("RAS", (1, 1, 1), (1, 1, 1), tuple(turn), middle=tuple(middle))
        kind = ("pet", "ct", "spect")[draw.integers(3)]
        thick = max(float(draw.choice([1.5, 3, 4, 6])), 3.0)
        field = str(draw.choice(["whole", "whole", "truncated", "small"]))
        noise = int(draw.choice([0, 30, 100]))
        spacing, side = (thick, 3.5, 3.5), 28 if field == "small" else 56
        extent = {"whole": 150, "truncated": 70, "small": 60}[field]
        shape_b = (max(4, int(extent / thick)), side, side)
        affine_b = affine_of("SPL", spacing, shape_b)
        affine_b[2, 3] += 25 if field == "truncated" else 0  # the top of the head
        values_a = head(grid(affine_a, shape_a)) + draw.normal(size=shape_a) * noise * 0.3
        points = grid(affine_b, shape_b)
        values_b = uptake(points)
        if kind == "ct":  # bright where the head ends, as a skull
            inside = head(points)
            values_b = 1000 * np.exp(-(((inside - 175) / 80) ** 2)) + 0.15 * inside
        elif kind == "spect":
            values_b = gaussian_filter(values_b, [8 / mm / 2.35 * 1.5 for mm in spacing])
        values_b = values_b + draw.normal(size=shape_b) * noise
        a = Image(values_a.astype(np.float32), None, affine=affine_a, source="a")
        b = Image(values_b.astype(np.float32), None, affine=truth @ affine_b, source="b")
        what = {"b": kind, "field": field, "noise": noise // 10, "moved_mm": moved_mm}
        yield {**what, "turned_deg": turned_deg, "slices_mm": thick}, a, b, truth


def measured(seed: int, count: int) -> Iterator[dict[str, Any]]:
    """A row per pair."""
    for what, a, b, truth in pairs(seed, count):
        start = time.process_time()
        matrix, told = geometry.register_rigid(a, b)
        seconds = round(time.process_time() - start, 2)
        error = farthest(BOX, matrix, truth)
        row = {"seed": seed, **what, "error_mm": error, "repeatability_mm": told.repeatability_mm}
        yield {**row, "cpu_s": seconds}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts over rows. warned: failures with a warning; false_alarms: warnings where the error is at most
    GOOD_MM, of so many good."""
    errors = [row["error_mm"] for row in rows]
    apart_mm = [np.inf if row["repeatability_mm"] is None else row["repeatability_mm"] for row in rows]
    warned = [apart > geometry.WARN_MM for apart in apart_mm]
    return {
        "pairs": len(rows),
        "median_mm": round(float(np.median(errors)), 1),
        "worst_mm": round(max(errors), 1),
        "failures": sum(x > FAILURE_MM for x in errors),
        "warned": sum(y for x, y in zip(errors, warned, strict=True) if x > FAILURE_MM),
        "good": sum(x <= GOOD_MM for x in errors),
        "false_alarms": sum(y for x, y in zip(errors, warned, strict=True) if x <= GOOD_MM),
        "covered": sum(apart >= error for apart, error in zip(apart_mm, errors, strict=True)),
        "cpu_s": round(float(np.mean([row["cpu_s"] for row in rows])), 1),
    }


def table(result: dict[str, Any]) -> str:
    """Of readme.py: a line per set of pairs, and per condition of all."""
    rows = result["phantoms"]["rows"]
    chosen = {seed for seed, _ in CHOSEN_ON}
    lines = {
        "all": rows,
        "settings were chosen on": [row for row in rows if row["seed"] in chosen],
        "fresh": [row for row in rows if row["seed"] not in chosen],
    }
    for key, words in GROUPS.items():
        for value in sorted({row[key] for row in rows}):
            lines[f"{words}: {value}"] = [row for row in rows if row[key] == value]
    columns = {
        "number": "pairs",
        "error, mm: median": "median_mm",
        "worst": "worst_mm",
        "over 5 mm": "failures",
        "of these warned": "warned",
        "within 3 mm": "good",
        "of these warned, too": "false_alarms",
    }
    body = [[words, *(summary(some)[x] for x in columns.values())] for words, some in lines.items()]
    at = result["phantoms"]["conditions"]
    made = report.markdown(["pairs", *columns], body)
    return f"{made}\n\nMeasured on {at['date'][:10]} at commit {at['commit']}."


def write(part: dict[str, Any]) -> None:
    """The other part of the file stays."""
    there = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    report.write_json(RESULT, {**there, **part})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("templates", type=Path, nargs="?")
    parser.add_argument(
        "--phantoms", action="store_true", help="the error on phantoms, without other programs"
    )
    args = parser.parse_args()
    if args.phantoms == bool(args.templates):
        parser.error("expected either TEMPLATES or --phantoms")
    if args.phantoms:
        of_phantoms()
    else:
        of_templates(args.templates)


def of_phantoms() -> None:
    conditions = report.conditions()
    conditions["versions"]["SimpleITK"] = version("SimpleITK")
    rows = [row for seed, count in (*CHOSEN_ON, *FRESH) for row in measured(seed, count)]
    write({"phantoms": {"conditions": conditions, "rows": rows}})
    for of in (CHOSEN_ON, FRESH):
        print(summary([row for row in rows if row["seed"] in dict(of)]))


def of_templates(folder: Path) -> None:
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
        write(result)
    print(json.dumps(result["conditions"]["versions"]))


if __name__ == "__main__":
    main()
