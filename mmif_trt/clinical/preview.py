"""A contact sheet of a fused volume: orientation letters, a scale in millimetres, square pixels."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from mmif_trt.image import Image, letter_of

TILES, COLUMNS, TILE_PX = 20, 5, 220  # slices shown, in rows of
TITLE_PX, SCALES_MM = 44, (50, 20, 10, 5, 2, 1)  # of the bar: the first that takes half a tile at most
BACKGROUND, TEXT, BAR = (18, 20, 24), (232, 234, 238), (255, 190, 92)


def sheet(image: Image, title: str) -> bytes:
    """PNG of evenly spaced slices of `image`, a volume in display order (volume.orient), RGB or grey.

    The letters at the edges of each slice name the patient's side; empty slices at either end are left out.
    """
    import PIL.Image
    from PIL import ImageDraw, ImageFont

    assert image.affine is not None and image.spacing_mm is not None
    top = np.iinfo(image.data.dtype).max
    pixels = image.data if top == 255 else (image.data >> 8).astype(np.uint8)
    shown = _shown(pixels)
    _, row_mm, column_mm = image.spacing_mm
    height, width = image.size
    per_mm = TILE_PX / max(height * row_mm, width * column_mm)  # px
    scale_mm = next((mm for mm in SCALES_MM if mm * per_mm <= TILE_PX / 2), SCALES_MM[-1])
    size = (max(1, round(width * column_mm * per_mm)), max(1, round(height * row_mm * per_mm)))
    rows = -(-len(shown) // COLUMNS)
    canvas = PIL.Image.new("RGB", (COLUMNS * TILE_PX, TITLE_PX + rows * TILE_PX), BACKGROUND)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    draw.text((8, 14), f"{title}  |  research use only, not for diagnosis", TEXT, font)
    outlined: Any = {"stroke_width": 2, "stroke_fill": BACKGROUND}  # letters are read on white bone, too
    down, right = image.affine[:3, 1], image.affine[:3, 2]
    for tile, index in enumerate(shown):
        picture = (
            PIL.Image.fromarray(pixels[index]).convert("RGB").resize(size, PIL.Image.Resampling.BILINEAR)
        )
        x, y = tile % COLUMNS * TILE_PX, TITLE_PX + tile // COLUMNS * TILE_PX
        canvas.paste(picture, (x + (TILE_PX - size[0]) // 2, y + (TILE_PX - size[1]) // 2))
        middle, far = TILE_PX // 2, TILE_PX - 16
        places = (
            ((middle, 2), -down),
            ((middle, far), down),
            ((3, middle), -right),
            ((far + 3, middle), right),
        )
        for (dx, dy), direction in places:
            draw.text((x + dx, y + dy), letter_of(direction), TEXT, font, **outlined)
        draw.text((x + 4, y + 2), str(index + 1), TEXT, font, **outlined)
        bar = round(scale_mm * per_mm)
        draw.line((x + 6, y + TILE_PX - 6, x + 6 + bar, y + TILE_PX - 6), BAR, 2)
    draw.text((COLUMNS * TILE_PX - 110, 14), f"bar: {scale_mm} mm", BAR, font)
    stream = io.BytesIO()
    canvas.save(stream, "PNG")
    return stream.getvalue()


def _shown(pixels: np.ndarray) -> list[int]:
    """Indices of up to TILES slices, evenly spaced over those between the first and last with any light."""
    lit = np.flatnonzero(pixels.reshape(len(pixels), -1).max(axis=1))
    first, last = (int(lit[0]), int(lit[-1])) if lit.size else (0, len(pixels) - 1)
    return sorted({round(x) for x in np.linspace(first, last, min(TILES, last - first + 1))})
