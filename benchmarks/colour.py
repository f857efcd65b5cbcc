"""Hue error of the recombination on real PET and SPECT pairs, beside naive clipping and rejected rules.

    python benchmarks/colour.py --data DIR [--fused DIR] [--split val train] [--out FILE.json]

--data DIR holds harvard/mri-{pet,spect}/SPLIT/{mri,pet|spect}/NAME.png; --fused DIR holds, for the first
split named, mri-{pet,spect}/NAME.png. The fused luma F is max(MRI, luma(b)), their mean, and the luma of
--fused if given. Hue is measured after rounding to 8 bits, as in a file.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PillowImage

from mmif_trt.measure import hue
from mmif_trt.stages.colour import luma, recombine

HALF_LEVEL = 0.5 / 255  # less than this outside [0, 1] still rounds to 0 or 255
SETS = {"mri-pet": "pet", "mri-spect": "spect"}


def naive(y: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Y replaced in YCbCr, back to RGB, each channel clipped."""
    return np.clip(y[..., None] + (b - luma(b)[..., None]), 0, 1)


def shaded(y: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Not chosen: where y is darker, chroma scaled by y / luma, which keeps saturation; else recombine."""
    ratio = y / np.maximum(luma(b), 1e-12)
    return np.where((ratio < 1)[..., None], b * np.minimum(ratio, 1)[..., None], recombine(y, b))


def saturated(y: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Not chosen: chroma scaled by y / luma both ways, up to the gamut."""
    chroma = b - luma(b)[..., None]
    room = (1 - y) / np.maximum(chroma.max(-1), 1e-12)
    scale = np.minimum(y / np.maximum(luma(b), 1e-12), room)
    return np.clip(y[..., None] + scale[..., None] * chroma, 0, 1)


RULES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "naive clipping": naive,
    "recombine (ours)": recombine,
    "shaded": shaded,
    "saturated": saturated,
}


def read(path: Path, mode: str) -> np.ndarray:
    """8-bit file as float32 in [0, 1]; mode "L" or "RGB"."""
    with PillowImage.open(path) as picture:
        return np.asarray(picture.convert(mode), np.float32) / 255


def pairs(data: Path, name: str, split: str) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(file name, MRI [H, W], b [H, W, 3]) of one set, sorted by name."""
    folder = data / "harvard" / name / split
    paths = sorted((folder / SETS[name]).glob("*.png"))
    if not paths:
        raise SystemExit(f"--data: no PNG in {folder / SETS[name]}; expected the folder that holds harvard/")
    for path in paths:
        yield path.name, read(folder / "mri" / path.name, "L"), read(path, "RGB")


def fused_luma(source: str, mri: np.ndarray, b: np.ndarray, file: Path) -> np.ndarray:
    """F [H, W] in [0, 1] for one of "max", "mean", "fused"."""
    if source == "max":
        return np.maximum(mri, luma(b))
    if source == "mean":
        return (mri + luma(b)) / 2
    return luma(read(file, "RGB"))


def leaves_the_line(out: np.ndarray, y: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[H, W] bool: out is not y + s * chroma for any s >= 0, so some channel was clipped."""
    chroma = (b - luma(b)[..., None]).astype(np.float64)
    moved = out - y[..., None].astype(np.float64)
    s = (moved * chroma).sum(-1) / np.maximum((chroma**2).sum(-1), 1e-12)
    return (np.abs(moved - np.maximum(s, 0)[..., None] * chroma) > 1e-6).any(-1)


def measure(data: Path, name: str, split: str, source: str, fused: Path | None) -> list[dict[str, Any]]:
    """One row per rule, over all pixels of one set; hue over all judged pixels, and those out of gamut."""
    shares: dict[str, list[float]] = {rule: [] for rule in RULES}
    losses: dict[str, float] = dict.fromkeys(RULES, 0.0)
    everywhere: dict[str, list[dict[str, np.ndarray]]] = {rule: [] for rule in RULES}
    outside: dict[str, list[dict[str, np.ndarray]]] = {rule: [] for rule in RULES}
    shares_outside, shares_darker = [], []
    for file, mri, b in pairs(data, name, split):
        y = fused_luma(source, mri, b, (fused or data) / name / file)
        bare = y[..., None] + (b - luma(b)[..., None])
        out_of_gamut = ((bare < -HALF_LEVEL) | (bare > 1 + HALF_LEVEL)).any(-1)
        shares_outside.append(out_of_gamut.mean())
        shares_darker.append((y < luma(b) - HALF_LEVEL).mean())
        for rule, combine in RULES.items():
            out = combine(y, b)
            shares[rule].append(leaves_the_line(out, y, b).mean())
            losses[rule] = max(losses[rule], float(np.abs(luma(out) - y).max()) * 255)
            rounded = np.rint(out * 255) / 255
            everywhere[rule].append(hue.hue_differences(rounded, b))
            outside[rule].append(hue.hue_differences(rounded[out_of_gamut], b[out_of_gamut]))
    rows = []
    for rule in RULES:
        row: dict[str, Any] = {
            "set": name,
            "split": split,
            "pairs": len(shares_outside),
            "luma": source,
            "rule": rule,
        }
        row["out_of_gamut_before_pct"] = 100 * float(np.mean(shares_outside))
        row["darker_than_b_pct"] = 100 * float(np.mean(shares_darker))
        row["clipped_pixels_after_pct"] = 100 * float(np.mean(shares[rule]))
        row["luma_error_max_levels"] = losses[rule]
        row["all"] = hue.summarise(joined(everywhere[rule]))
        row["out_of_gamut"] = hue.summarise(joined(outside[rule]))
        rows.append(row)
    return rows


def plain(value: Any) -> Any:
    """Floats to 5 decimals and NaN (no pixel to judge) to null, all the way down: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, float):
        return round(value, 5) if np.isfinite(value) else None
    return value


def joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| set, split | F | rule | out of gamut before % | clipped after % | luma error, levels "
        "| dh deg mean (p95), all | dh deg mean (p95), out of gamut | the same, OKLab "
        "| dE00 hue, out of gamut | dE00 without L, all | chroma kept |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        every, out = row["all"], row["out_of_gamut"]
        lines.append(
            f"| {row['set']} {row['split']}, {row['pairs']} | {row['luma']} | {row['rule']} "
            f"| {row['out_of_gamut_before_pct']:.2f} | {row['clipped_pixels_after_pct']:.2f} "
            f"| {row['luma_error_max_levels']:.2f} | {every['dh_deg_mean']:.2f} ({every['dh_deg_p95']:.1f}) "
            f"| {out['dh_deg_mean']:.2f} ({out['dh_deg_p95']:.1f}) "
            f"| {out['dh_oklab_deg_mean']:.2f} ({out['dh_oklab_deg_p95']:.1f}) | {out['de00_hue_mean']:.2f} "
            f"| {every['de00_mean']:.2f} | {every['chroma_kept_mean']:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds harvard/")
    parser.add_argument(
        "--fused", type=Path, help="folder of fused pictures, mri-pet/NAME.png and mri-spect/NAME.png"
    )
    parser.add_argument("--split", nargs="+", choices=("val", "train"), default=["val"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/colour.json"))
    args = parser.parse_args()
    sources = ["max", "mean"] + (["fused"] if args.fused else [])
    jobs = [(name, split, source) for split in args.split for name in SETS for source in sources]
    jobs = [job for job in jobs if job[2] != "fused" or job[1] == args.split[0]]
    rows = [row for job in jobs for row in measure(args.data, *job, args.fused)]
    conditions = {
        "what": "hue of the result against b where C*ab of b >= min_chroma, after 8-bit rounding",
        "min_chroma": hue.MIN_CHROMA,
        "out_of_gamut": "some channel more than half an 8-bit level outside before any correction",
        "clipped_after": "share of pixels, unrounded, more than 1e-6 off y + s * chroma of b, any s >= 0",
        "de00": "CIEDE2000 with equal L*; de00_hue: its hue term |dH'/SH| alone (Sharma 2005)",
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    report = {"conditions": conditions, "rows": [plain(row) for row in rows]}
    args.out.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
