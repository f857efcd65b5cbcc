"""The search for a rigid registration by mutual information: of two SimpleITK volumes, from one start."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmif_trt.image import RAS_LPS, InputError

# (voxels, Gaussian's sigma, both in mm; share of the voxels that is drawn) of each resolution. Larger voxels
# stay as they are: a pyramid in powers of two left 450 samples of a 4.5 mm MRI, too few for a histogram of
# 32 x 32, and the search ended anywhere. No sigma: _FINEST of the voxels.
_LEVELS = ((8.0, 8.0, 0.8), (4.0, 4.0, 0.3), (2.0, None, 0.5))
_FINEST = 2 / 3
_FEWEST = 8  # voxels along an axis that is thinned out
# Two runs of the same registration, whose distance is the repeatability: from other samples and from another
# start, as two from one start may run into the same wrong place. Each: seed; turn about each axis, degrees;
# shift along each, mm, up to _LONGEST of the shortest side.
RUNS = ((20, 0.0, 0.0), (40, 6.0, 8.0))
_LONGEST = 0.1
_STEP_MM = (2.0, 0.002)  # the first and the last of the search


def descend(
    fixed: Any, moving: Any, seed: int, turn_deg: float, shift_mm: float
) -> tuple[np.ndarray, float, float]:
    """([4, 4] RAS+ mm of fixed to that of moving, the metric before and after at the finest resolution). The
    start is off by turn and shift. Raises InputError where the volumes do not overlap."""
    import SimpleITK as sitk

    start = sitk.Euler3DTransform(
        sitk.CenteredTransformInitializer(
            fixed, moving, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.GEOMETRY
        )
    )
    if _overlap(fixed, moving) > 0.25:
        start.SetTranslation((0.0, 0.0, 0.0))
    shortest = min(min(np.multiply(x.GetSize(), x.GetSpacing())) for x in (fixed, moving))
    aside = min(shift_mm, _LONGEST * float(shortest))
    end = sitk.Euler3DTransform(start)
    end.SetRotation(*(float(x) for x in np.radians((turn_deg, -turn_deg, turn_deg))))
    end.SetTranslation([x + by for x, by in zip(start.GetTranslation(), (aside, -aside, aside), strict=True)])
    try:
        for voxels_mm, sigma_mm, share in _LEVELS:
            thinned = [
                max(1, min(round(voxels_mm / mm), side // _FEWEST))
                for mm, side in zip(fixed.GetSpacing(), fixed.GetSize(), strict=True)
            ]
            if sigma_mm is None:
                sigma_mm = _FINEST * float(np.prod(np.multiply(thinned, fixed.GetSpacing()))) ** (1 / 3)
            one, other = (sitk.SmoothingRecursiveGaussian(x, [sigma_mm] * 3) for x in (fixed, moving))
            one = sitk.Shrink(one, thinned)
            method = _method(share, seed)
            method.SetInitialTransform(start, inPlace=False)
            before = method.MetricEvaluate(one, other)
            method.SetInitialTransform(end, inPlace=True)
            method.Execute(one, other)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].rpartition("): ")[2][:120]  # before it, an address
        if "outside" in reason:
            reason = "the search left their overlap"
        raise InputError(f"rigid registration failed ({reason}); expected overlapping volumes") from None
    matrix, centre = np.eye(4), np.array(end.GetCenter())
    matrix[:3, :3] = np.reshape(end.GetMatrix(), (3, 3))
    matrix[:3, 3] = np.array(end.GetTranslation()) + centre - matrix[:3, :3] @ centre
    return RAS_LPS @ matrix @ RAS_LPS, round(before, 5), round(float(method.GetMetricValue()), 5)


def _method(share: float, seed: int) -> Any:
    """A search by mutual information on that share of the voxels."""
    import SimpleITK as sitk

    method = sitk.ImageRegistrationMethod()
    method.SetGlobalDefaultNumberOfThreads(1)  # several threads sum in varying order: runs would differ
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(share, seed)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(*_STEP_MM, 200, relaxationFactor=0.85)
    method.SetOptimizerScalesFromPhysicalShift()
    return method


def _overlap(fixed: Any, moving: Any) -> float:
    """Share of the fixed grid's central half that lies inside the moving one, by their headers."""
    size = np.array(fixed.GetSize())
    points = [size * share for share in np.array(np.meshgrid(*[[0.25, 0.5, 0.75]] * 3)).reshape(3, -1).T]
    inside = 0
    for point in points:
        place = moving.TransformPhysicalPointToContinuousIndex(
            fixed.TransformContinuousIndexToPhysicalPoint(point.tolist())
        )
        inside += all(0 <= x <= side - 1 for x, side in zip(place, moving.GetSize(), strict=True))
    return inside / len(points)
