"""A reader that looks for a known lesion at a known place: how far the lesion is above its noise.

The template is the change that the lesion makes to the picture, in CIELAB, 29 x 29 px around its centre:
radius 14, mean of each channel removed. With D the change itself and w the template

    d' = sum(w D) / sqrt(V + 9 sum(w^2))

V: variance of the template's response to the lesion-free picture at 25 shifts, the anatomy from which a
reader must distinguish the lesion. 9 = (3 Delta E)^2: internal noise per pixel and channel, so that a
difference too small to notice counts little. A template reader with internal noise is a model observer of
lesion detection (Barrett and Myers, Foundations of Image Science, 2004); shifts, window and noise are our
choice.
"""

from __future__ import annotations

import numpy as np
from numpy import ndarray

from mmif_trt.measure.colourspace import as_rgb, lab
from mmif_trt.measure.shapes import REACH_PX

SHIFTS_PX = (-2, -1, 0, 1, 2)  # down and across: 25
MARGIN_PX = REACH_PX + SHIFTS_PX[-1]  # a centre is at least this far inside the picture
NOISE_DELTA_E = 3.0
_ROUND = np.hypot(*np.mgrid[-REACH_PX : REACH_PX + 1, -REACH_PX : REACH_PX + 1]) <= REACH_PX
Centre = tuple[int, int]  # row, column


def window(picture: ndarray, centre: Centre, reach_px: int = REACH_PX) -> ndarray:
    """The square of 2 reach + 1 px around centre, [.., ..] or [.., .., 3]; a view."""
    row, column = centre
    return picture[row - reach_px : row + reach_px + 1, column - reach_px : column + reach_px + 1]


class Background:
    """A lesion-free picture around one place, as the reader knows it.

    without: uint8 [H, W] or [H, W, 3]. centre: at least MARGIN_PX from every border.
    """

    def __init__(self, without: ndarray, centre: Centre) -> None:
        around = lab(as_rgb(window(without, centre, MARGIN_PX)))
        at = [MARGIN_PX + shift for shift in SHIFTS_PX]
        self._here = window(around, (MARGIN_PX, MARGIN_PX))
        self._shifted = np.stack([window(around, (row, column)).ravel() for row in at for column in at])

    def detectability(self, with_it: ndarray) -> float:
        """d' of with_it, the window uint8 [29, 29] or [29, 29, 3] of the picture with the lesion, against
        this picture; 0 where they agree."""
        change = lab(as_rgb(with_it)) - self._here
        template = (change - change[_ROUND].mean(axis=0)) * _ROUND[..., None]
        signal = float((template * change).sum())
        if signal <= 0:
            return 0.0
        variance = float(np.var(self._shifted @ template.ravel()))
        return signal / (variance + NOISE_DELTA_E**2 * float((template**2).sum())) ** 0.5
