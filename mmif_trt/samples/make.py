"""Makes the bundled sample pairs: `python -m mmif_trt.samples.make [FOLDER]`. Needs nilearn and scipy.

The MRI is the ICBM152 2009a symmetric average T1 that nilearn carries; CT, PET and SPECT are simulated from
its tissue maps. README.md beside this file states source, licence, physics and simplifications.
Volumes are [X, Y, Z] float32 at 1 mm in RAS+ order; pictures are [row, column], row 0 anterior, column 0 on
the patient's right.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmif_trt.samples import FOLDER, PAIRS, SIDE_PX, SPACING_MM, path

ORIGIN_MM = (-98.0, -134.0, -72.0)  # millimetres of voxel (0, 0, 0) in nilearn's volumes
CENTRE_MM = (0.0, -18.0)  # (x, y) of the picture's centre

# CT. Hounsfield units, typical of adult heads at 120 kV. Window: level 45, width 130.
HU = {
    "white matter": 28.0,
    "grey matter": 37.0,
    "csf": 8.0,
    "falx": 48.0,
    "bone table": 1100.0,
    "diploe": 500.0,
    "calcification": 130.0,
    "muscle": 50.0,
    "fat": -90.0,
    "skin": 50.0,
    "air": -1000.0,
}
WINDOW_HU = (-20.0, 110.0)
CT_SLICE_MM, CT_PSF_MM, CT_NOISE_HU = 5, 1.2, 3.0
# Calcified choroid plexus, common and harmless: (x, y, radius) in mm, the larger on the left (x < 0).
CALCIFICATIONS_MM = ((-24.5, -41.0, 2.2), (25.0, -42.0, 1.4))


@dataclass(frozen=True)
class Tracer:
    """An emission scan. Uptake is relative to grey matter = 1, CSF 0; full widths at half maximum in mm.

    The scanner blurs by scan_fwhm, then counts; the reconstruction filter blurs by filter_fwhm, including
    noise.
    Together they give the stated point spread: 4 and 3 give 5 mm (PET), 8 and 6 give 10 mm (SPECT).
    defect: centre (x, y) in mm in the slice, radius in mm, share of uptake lost.
    """

    white_matter: float
    scan_fwhm_mm: float
    filter_fwhm_mm: float
    counts: float  # in a 1 mm voxel of grey matter
    gain: float  # standard deviation of the slow regional variation
    defect: tuple[float, float, float, float]
    full_scale: float  # uptake shown as the palette's last colour
    seed: int


TRACERS = {
    "pet": Tracer(0.25, 4.0, 3.0, 20.0, 0.06, (-50.0, -45.0, 18.0, 0.50), 1.1, 11),
    "spect": Tracer(0.40, 8.0, 6.0, 3.0, 0.06, (45.0, -10.0, 16.0, 0.40), 0.95, 12),
}
CT_SEED = 10


def pet_palette(uptake: np.ndarray) -> np.ndarray:
    """[H, W] in [0, 1] -> [H, W, 3] in [0, 1]: black, red, yellow, white. R + G + B = 3 uptake."""
    return np.clip(3.0 * uptake[..., None] - np.array([0.0, 1.0, 2.0]), 0.0, 1.0)


def spect_palette(uptake: np.ndarray) -> np.ndarray:
    """[H, W] in [0, 1] -> [H, W, 3] in [0, 1], black, violet, orange, white; R and G rise throughout."""
    t = np.clip(uptake, 0.0, 1.0)
    blue = 0.6 * np.sin(np.pi * np.minimum(t / 0.7, 1.0)) + t**8
    return np.stack([np.sin(0.5 * np.pi * t), t**2, np.clip(blue, 0.0, 1.0)], axis=-1)


def blur(array: np.ndarray, fwhm_mm: float, pixel_mm: float = 1.0) -> np.ndarray:
    """Gaussian point spread of the given full width at half maximum, zero outside the array."""
    from scipy import ndimage  # type: ignore

    sigma = fwhm_mm / pixel_mm / (2.0 * np.sqrt(2.0 * np.log(2.0)))
    return ndimage.gaussian_filter(array, sigma, mode="constant", truncate=4.0)


def load_tissues() -> dict[str, np.ndarray]:
    """T1 and the shares of grey matter, white matter and CSF, each [197, 233, 189] float32 in [0, 1]."""
    from nilearn import datasets  # type: ignore

    t1, grey, white = (
        np.asarray(load(resolution=1).get_fdata(), dtype=np.float32)
        for load in (
            datasets.load_mni152_template,
            datasets.load_mni152_gm_template,
            datasets.load_mni152_wm_template,
        )
    )
    brain = t1 > 0
    grey, white = grey * brain, white * brain
    return {"t1": t1, "grey": grey, "white": white, "csf": np.clip(brain - grey - white, 0.0, 1.0)}


def slab(volume: np.ndarray, z_mm: int, half_mm: int) -> np.ndarray:
    """The 2 half_mm + 1 slices around z_mm, [X, Y, Z]."""
    k = int(z_mm - ORIGIN_MM[2])
    return volume[:, :, k - half_mm : k + half_mm + 1]


def picture(plane: np.ndarray, side: int = SIDE_PX, order: int = 1) -> np.ndarray:
    """An axial [X, Y] plane at 1 mm -> [side, side] over the picture's field of view, zero outside."""
    from scipy import ndimage  # type: ignore

    x_mm, y_mm = axes_mm(side)
    where = np.meshgrid(y_mm - ORIGIN_MM[1], x_mm - ORIGIN_MM[0], indexing="ij")
    return ndimage.map_coordinates(plane, [where[1], where[0]], order=order, mode="constant", cval=0.0)


def axes_mm(side: int = SIDE_PX) -> tuple[np.ndarray, np.ndarray]:
    """(x of each column, y of each row) in mm: x falls rightwards (to the patient's left), y downwards."""
    offset = (np.arange(side) - (side - 1) / 2) * SPACING_MM[0] * SIDE_PX / side
    return CENTRE_MM[0] - offset, CENTRE_MM[1] - offset


def levels(share: np.ndarray, white: int) -> np.ndarray:
    """[0, 1] -> integer grey levels 0..white."""
    return np.rint(np.clip(share, 0.0, 1.0) * white).astype(np.uint16 if white > 255 else np.uint8)


def make_mri(tissues: dict[str, np.ndarray], z_mm: int) -> np.ndarray:
    """[256, 256] in [0, 1]: the T1 slice by cubic spline, exactly 0 outside the brain mask."""
    plane = slab(tissues["t1"], z_mm, 0)[:, :, 0]
    inside = picture((plane > 0).astype(np.float32)) >= 0.5
    return np.where(inside, np.clip(picture(plane, order=3), 0.0, 1.0), 0.0)


def make_tracer(tissues: dict[str, np.ndarray], z_mm: int, tracer: Tracer) -> np.ndarray:
    """[256, 256] uptake in [0, 1] of full scale: tissue, slow gain, defect, scanner blur, counts, filter."""
    rng = np.random.default_rng(tracer.seed)
    half = int(np.ceil(2 * np.hypot(tracer.scan_fwhm_mm, tracer.filter_fwhm_mm)))
    uptake = slab(tissues["grey"], z_mm, half) + tracer.white_matter * slab(tissues["white"], z_mm, half)
    slow = blur(rng.standard_normal(uptake.shape[:2]), 30.0)[:, :, None]
    x, y = (np.arange(n) + o for n, o in zip(uptake.shape[:2], ORIGIN_MM[:2], strict=True))
    cx, cy, radius, loss = tracer.defect
    distance = np.hypot(x[:, None] - cx, y[None, :] - cy)[:, :, None]
    lost = loss / (1.0 + np.exp((distance - radius) / 2.0))  # a soft edge of about 4 mm
    uptake = uptake * (1.0 + tracer.gain * slow / slow.std()) * (1.0 - lost)
    scanned = np.maximum(blur(uptake, tracer.scan_fwhm_mm), 0.0)
    # Counting noise by the normal approximation of Poisson: its draws do not depend on the last bit of the
    # rate.
    counted = scanned + np.sqrt(scanned / tracer.counts) * rng.standard_normal(scanned.shape)
    image = blur(counted, tracer.filter_fwhm_mm)[:, :, half]
    return np.clip(picture(image) / tracer.full_scale, 0.0, 1.0)


def head_hu(brain: np.ndarray, pixel_mm: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(HU outside the inner table, mask of the inside), both [S, S], from a brain mask [S, S].

    nilearn's T1 has no skull, so one is drawn around the brain: the mask closed over the fissures, then by
    distance a table, diploe, a table, the temporalis muscle, fat and skin. Thickness depends on the angle.
    """
    from scipy.ndimage import distance_transform_edt as edt  # type: ignore

    grown = edt(~brain) * pixel_mm <= 14.0
    closed = edt(grown) * pixel_mm > 14.0 - 1.5  # leaves 1.5 mm of subarachnoid space outside the mask
    inner = blur(closed.astype(np.float64), 12.0, pixel_mm) > 0.5
    distance = blur((edt(~inner) - edt(inner)) * pixel_mm, 3.0, pixel_mm)
    x_mm, y_mm = axes_mm(brain.shape[0])
    # 0 anterior, positive to the patient's right.
    angle = np.arctan2(x_mm[None, :], y_mm[:, None] - CENTRE_MM[1])
    # Thickness in mm: thick in front and behind, thin at the temples, with seeded waves.
    bone = 5.6 + 1.4 * np.cos(2 * angle)
    for k in range(1, 7):
        bone += rng.normal(0.0, 0.25) * np.cos(k * angle + rng.uniform(0.0, 2 * np.pi))
    # Inward: the frontal crest, and the internal protuberance behind.
    bulge = 3.0 * np.exp(-((angle / 0.06) ** 2)) + 4.0 * np.exp(-(((np.pi - np.abs(angle)) / 0.09) ** 2))
    muscle = 7.0 * np.exp(-(((np.abs(angle) - 1.15) / 0.30) ** 2))
    depth = (distance + bulge) / (bone + bulge)  # 0 at the inner table, 1 at the outer
    above = distance - bone
    hu = np.full(brain.shape, HU["air"])
    for limit, name in ((6.4, "skin"), (4.2, "fat")):
        hu[above < limit + muscle] = HU[name]
    hu[above < muscle + 0.4] = HU["muscle"]
    hu[depth < 1.0] = HU["bone table"]
    hu[(depth > 0.3) & (depth < 0.7) & (bone > 4.5)] = HU["diploe"]
    return hu, depth < 0.0


def make_ct(tissues: dict[str, np.ndarray], z_mm: int) -> np.ndarray:
    """[256, 256] in [0, 1] of the window: tissue shares to HU, drawn skull, scanner blur and noise."""
    rng = np.random.default_rng(CT_SEED)
    fine = 2 * SIDE_PX  # drawn at twice the resolution, so that edges land between pixels
    pixel_mm = SPACING_MM[0] / 2
    shares = {
        name: picture(slab(tissues[name], z_mm, CT_SLICE_MM // 2).mean(axis=2), fine)
        for name in ("grey", "white", "csf")
    }
    brain = shares["grey"] + shares["white"] + shares["csf"]
    hu, within = head_hu(brain >= 0.5, pixel_mm, rng)
    soft = shares["grey"] * HU["grey matter"] + shares["white"] * HU["white matter"]
    soft += (1.0 - shares["grey"] - shares["white"]) * HU[
        "csf"
    ]  # around the brain, inside the skull, all is CSF
    hu = np.where(within, soft, hu)
    x, y = np.meshgrid(*axes_mm(fine))
    falx = within & (np.abs(x - 0.5 * np.sin(y / 17.0)) < 0.7)  # slightly wavy, like a real one
    hu[falx & (shares["white"] < 0.3) & ((y > 38) | (y < -52))] = HU["falx"]
    for cx, cy, radius in CALCIFICATIONS_MM:
        hu[np.hypot(x - cx, y - cy) < radius] = HU["calcification"]
    hu = blur(hu - HU["air"], CT_PSF_MM, pixel_mm) + HU["air"]
    hu = hu.reshape(SIDE_PX, 2, SIDE_PX, 2).mean(axis=(1, 3))
    grain = blur(rng.standard_normal(hu.shape), 1.5, SPACING_MM[0])
    hu = hu + CT_NOISE_HU * grain / grain.std()
    return np.clip((hu - WINDOW_HU[0]) / (WINDOW_HU[1] - WINDOW_HU[0]), 0.0, 1.0)


def make_all() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Every pair by name: (MRI, other) as integer arrays, colour in RGB order."""
    tissues = load_tissues()
    made = {}
    for name, pair in PAIRS.items():
        mri = levels(make_mri(tissues, pair.z_mm), pair.white)
        if pair.other == "ct":
            other = make_ct(tissues, pair.z_mm)
        else:
            palette = pet_palette if pair.other == "pet" else spect_palette
            other = palette(make_tracer(tissues, pair.z_mm, TRACERS[pair.other]))
        made[name] = mri, levels(other, pair.white)
    return made


def main() -> None:
    """Writes the six PNG files to the folder named on the command line, else to this package's own."""
    import cv2

    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    for name, images in make_all().items():
        for modality, data in zip(("mri", PAIRS[name].other), images, strict=True):
            target = folder / path(name, modality).name
            stored = data[..., ::-1] if data.ndim == 3 else data  # cv2 expects BGR order
            if not cv2.imwrite(str(target), stored, [cv2.IMWRITE_PNG_COMPRESSION, 9]):
                raise SystemExit(f"{target}: could not be written")
            print(f"{target.name}: {data.shape} {data.dtype}, {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
