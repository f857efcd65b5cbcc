"""DALI from files to what the network takes: luma in [0, 1], padded, ahead of whoever uses it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmif_trt.io.dali import BATCH, PREFETCH, Types

# BT.601, as colour.luma: a test compares them.
LUMA = (0.299, 0.587, 0.114)


def unit_pipeline(
    files_a: Sequence[str],
    files_b: Sequence[str],
    types: Types,
    *,
    device_id: int | None = None,
    threads: int = 2,
    batch: int = BATCH,
    shard: int = 0,
    shards: int = 1,
    shuffle: bool = False,
    seed: int = 0,
    multiple: int = 1,
) -> Any:
    """For an engine without a way through the host: a built pipeline of two lists in step.

    Each run gives batches of a, b [H, W, 1] float32 luma in [0, 1], and b's chroma [H, W, 2] (zeros where it
    is grey). Files must be known to be whole and of the stated types; `read_pairs` is for others.
    multiple: the lumas' sides are rounded up to it by reflection at the bottom and right, as tiling.padded
    does for the network; for sides of half of it and more. The chroma keeps the picture's own size.
    """
    from nvidia.dali import fn, pipeline_def
    from nvidia.dali.types import DALIDataType, DALIImageType

    place = "cpu" if device_id is None else "mixed"
    levels = [{"uint8": 255, "uint16": 65535}[x] for x in types]
    kinds = [{"uint8": DALIDataType.UINT8, "uint16": DALIDataType.UINT16}[x] for x in types]
    reading: dict[str, Any] = {
        "random_shuffle": shuffle,
        "seed": seed,
        "shard_id": shard,
        "num_shards": shards,
    }

    # DALI's stubs do not say that device_id may be None: no card.
    settings: dict[str, Any] = {"batch_size": batch, "num_threads": threads, "device_id": device_id}

    @pipeline_def(prefetch_queue_depth=PREFETCH, **settings)
    def pair() -> Any:
        rgb = []
        for side, files in enumerate((files_a, files_b)):
            encoded, _ = fn.readers.file(files=list(files), name="ab"[side], **reading)
            pixels = fn.decoders.image(
                encoded,
                device=place,
                output_type=DALIImageType.RGB,
                dtype=kinds[side],
                adjust_orientation=False,
            )
            rgb.append(fn.cast(pixels, dtype=DALIDataType.FLOAT) / float(levels[side]))
        luma = [fn.reductions.sum(x * np.array(LUMA, np.float32), axes=[2], keep_dims=True) for x in rgb]
        chroma = fn.cat(rgb[1][:, :, 2:3] - luma[1], rgb[1][:, :, 0:1] - luma[1], axis=2)
        if multiple > 1:
            luma = [_reflected(_reflected(x, multiple, 0), multiple, 1) for x in luma]
        return luma[0], luma[1], chroma  # blue and red minus luma

    built = pair()
    built.build()
    return built


def _reflected(x: Any, multiple: int, axis: int) -> Any:
    """The graph that rounds one side of [H, W, C] up to `multiple`: what is before the last row or column,
    turned round, behind it; twice, for one reflection adds less than the side."""
    from nvidia.dali import fn, math
    from nvidia.dali.types import DALIDataType

    for _ in range(2):
        side = x.shape(dtype=DALIDataType.INT32)[axis]
        missing = (side + (multiple - 1)) // multiple * multiple - side
        start = side - 1 - math.min(missing, side - 1)
        behind = x[start : side - 1] if axis == 0 else x[:, start : side - 1]
        x = fn.cat(x, fn.flip(behind, vertical=int(axis == 0), horizontal=int(axis == 1)), axis=axis)
    return x
