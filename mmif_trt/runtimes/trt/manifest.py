"""What an engine is, as the manifest beside it tells (engine_file.py), and which shapes it takes."""

from __future__ import annotations

from dataclasses import dataclass, field

from mmif_trt.image import InputError
from mmif_trt.models.pixels import LUMA
from mmif_trt.stages.tiling import MULTIPLE_PX

Shape = tuple[int, int, int]  # batch, height, width


@dataclass(frozen=True)
class Manifest:
    """What an engine is. Hashes are SHA-256.

    form: inputs and outputs, see models.pixels.Form.
    flavour: the module, "tensorrt" or "tensorrt_rtx"; version: the module's. compute_capabilities: such as
    "8.6".
    smallest, typical, largest: (batch, height, width) of the profile; all equal: the shape is fixed.
    fused_attention: kernels that hold a whole attention block, of attention_blocks; None: the builder printed
    no layer table. float_convolutions: ONNX names of those computed in FP32. psnr_db: the lowest of the
    golden pairs against FP32 torch, and psnr_of what ran; None if nothing could, and why.
    """

    model: str
    precision: str
    engine_sha256: str
    onnx_sha256: str
    weights_sha256: str
    flavour: str
    version: str
    compute_capabilities: tuple[str, ...]
    smallest: Shape
    typical: Shape
    largest: Shape
    attention_blocks: int
    fused_attention: int | None
    float_convolutions: tuple[str, ...]
    psnr_db: float | None
    psnr_of: str
    build_s: float
    command: str
    built: str
    bytes: int = field(default=0)
    form: str = str(LUMA)
    signature: str = ""  # see trust.py

    @property
    def psnr(self) -> str:
        return (
            self.psnr_of
            if self.psnr_db is None
            else f"{self.psnr_db:g} dB on the golden pairs, {self.psnr_of}"
        )

    def refuse_shape(self, name: str, shape: Shape) -> None:
        """Raises InputError if (batch, height, width) is outside the profile or, where the engine does not
        pad by itself, off the window grid."""
        low, high = self.smallest, self.largest
        multiple = MULTIPLE_PX if self.form == str(LUMA) else 1
        odd = any(side % multiple for side in shape[1:])
        if odd or not all(x <= y <= z for x, y, z in zip(low, shape, high, strict=True)):
            batch, height, width = (
                f"{x}" if x == z else f"{x} to {z}" for x, z in zip(low, high, strict=True)
            )
            raise InputError(
                f"{name}: batch {shape[0]} of {shape[1]} x {shape[2]} px; this engine takes batch "
                f"{batch}, {height} x {width} px{f', sides multiples of {multiple}' if multiple > 1 else ''}"
            )
