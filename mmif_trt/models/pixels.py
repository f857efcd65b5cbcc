"""LAGN from pixels to pixels, one ONNX graph: value range, luma, padding, network, colour and rounding.

The work of `fuser.py` on the host, as ONNX around the released network: a console in C++, Triton, or an
engine on a GPU then needs none of our Python. The formulas and their order are those of `normalise.unit`,
`colour.luma`, `tiling.padded`, `colour.recombine` and `normalise.from_unit`; a test compares the two. The
graph is derived from lagn.onnx on demand, so it always matches the release, and no weight is stored twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmif_trt import weights
from mmif_trt.image import MIN_SIDE_PX, InputError
from mmif_trt.stages.colour import LUMA_WEIGHTS
from mmif_trt.stages.tiling import MULTIPLE_PX

if TYPE_CHECKING:
    from onnx import ModelProto

LAYOUTS = ("grey", "rgb", "rgb-last", "luma")
_TEXT_TYPES = {"uint8": "uint8", "uint16": "uint16", "float32": "float"}  # NumPy's name -> ONNX text's
TYPES = tuple(_TEXT_TYPES)
GRAPH, OUTPUT = "lagn_pixels", "fused"


@dataclass(frozen=True)
class Form:
    """Inputs and outputs: inputs "a" and "b", output "fused", all of `dtype`; sides of 16 px or more.

    a: [B, 1, H, W] the MRI. b and fused, by `layout`: "grey" [B, 1, H, W], "rgb" [B, 3, H, W], "rgb-last"
    [B, H, W, 3]. uint8 runs from black 0 to white 255. For uint16 and float32 two more inputs, "range_a" and
    "range_b", float32 [2], hold the values of black and white; the result is in a's range.
    float32-luma is the network alone, in [0, 1], sides multiples of 32: a and fused [B, 1, H, W], b
    [B, 2, H, W], its luma and max(red, green, blue) less it (`colour.planes`).
    Raises InputError.
    """

    dtype: str = "uint8"
    layout: str = "rgb"

    def __post_init__(self) -> None:
        known = self.dtype in TYPES and self.layout in LAYOUTS
        if not known or (self.layout == "luma" and self.dtype != "float32"):
            raise InputError(
                f"pixel form '{self.dtype}-{self.layout}'; expected TYPE-LAYOUT of {', '.join(TYPES)} and "
                f"{', '.join(LAYOUTS)} (float32 alone), such as uint8-rgb"
            )

    @classmethod
    def named(cls, name: str) -> Form:
        """The form whose str() is `name`. Raises InputError."""
        return cls(*name.partition("-")[::2])

    def __str__(self) -> str:
        return f"{self.dtype}-{self.layout}"

    @property
    def ranges(self) -> tuple[str, ...]:
        """The inputs that hold black and white."""
        return () if self.dtype == "uint8" or self == LUMA else ("range_a", "range_b")

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("a", "b", *self.ranges)

    def shapes(self, batch: int, height: int, width: int) -> dict[str, tuple[int, ...]]:
        """Of every input, and of the output."""
        a = batch, 1, height, width
        if self.layout == "luma":
            return {"a": a, "b": (batch, 2, height, width), OUTPUT: a}
        b = {"rgb": (batch, 3, height, width), "rgb-last": (batch, height, width, 3)}.get(self.layout, a)
        return {"a": a, "b": b, OUTPUT: b} | dict.fromkeys(self.ranges, (2,))

    def dtype_of(self, name: str) -> str:
        return "float32" if name in self.ranges else self.dtype


LUMA = Form("float32", "luma")


def released(
    form: Form, model: str = "lagn", change: Callable[[ModelProto], ModelProto] | None = None
) -> ModelProto:
    """The shipped network as `form`; its metadata names the file it was derived from.

    change: applied to the network first, such as half.half. Raises InputError if onnx is missing or the
    released file differs from the manifest.
    """
    try:
        import onnx
    except ImportError:
        raise InputError("onnx is not installed; expected pip install 'mmif-trt[console]'") from None
    path = weights.verified_path(model, "onnx")
    network = onnx.load(path)
    made = pixels(change(network) if change else network, form)
    facts = {"form": str(form), "derived_from": path.name, "sha256": weights.sha256(path)}
    onnx.helper.set_model_props(made, facts | {"use": "research only, not for diagnosis"})
    return made


def pixels(network: ModelProto, form: Form) -> ModelProto:
    """`network` (LAGN in [0, 1], FP32 or mixed precision) as `form`, any batch and size.

    Pictures run whole, whatever their size: there are no tiles, and memory grows with the picture.
    """
    if form == LUMA:
        return network
    import onnx
    from onnx import compose, parser

    graph = parser.parse_graph(_text(form))
    inner = compose.add_prefix_graph(
        network.graph, "network_", rename_nodes=False, rename_edges=False, rename_initializers=False
    )
    outer = list(graph.node)
    at = next(i for i, node in enumerate(outer) if node.op_type == "Network")
    takes = [
        onnx.helper.make_node("Identity", [x], [f"network_{y}"])
        for x, y in zip(("whole_a", "whole_b"), "ab", strict=True)
    ]
    del graph.node[:]
    graph.node.extend([*outer[:at], *takes, *inner.node, *outer[at + 1 :]])
    used = {name for node in graph.node for name in node.input}
    kept = [x for x in (*graph.initializer, *inner.initializer) if x.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    made = onnx.helper.make_model(graph, opset_imports=network.opset_import, producer_name="mmif_trt")
    made.ir_version = network.ir_version
    onnx.checker.check_model(made, full_check=True)
    return made


def _text(form: Form) -> str:
    """The graph in ONNX's text format; the node `Network` stands for LAGN."""
    kind = _TEXT_TYPES[form.dtype]
    hw = "height, width"
    b = {"grey": f"batch, 1, {hw}", "rgb": f"batch, 3, {hw}", "rgb-last": f"batch, {hw}, 3"}[form.layout]
    ranges = "".join(f", float[2] {name}" for name in form.ranges)
    grey = form.layout == "grey"
    return f"""
{GRAPH} ({kind}[batch, 1, {hw}] a, {kind}[{b}] b{ranges}) => ({kind}[{b}] {OUTPUT}) <{_CONSTANTS}> {{
{_unit("a", form, last=False)}
{_unit("b", form, last=form.layout == "rgb-last")}
{_GREY_PLANES if grey else _COLOUR_PLANES}
{_PADDING}
network_fused = Network (whole_a, whole_b)
y = Slice (network_fused, none, size, side_axes)
{"shown = Identity (y)" if grey else _RECOMBINE}
{_values(form)}
}}"""


_CONSTANTS = f"""
float zero = {{0}}, float one = {{1}}, float tiny = {{1e-12}},
float white8 = {{255}}, float white16 = {{65535}},
float red_weight = {{{LUMA_WEIGHTS[0]}}}, float blue_weight = {{{LUMA_WEIGHTS[2]}}},
int64[2] none = {{0, 0}}, int64[2] side_axes = {{2, 3}}, int64[6] unpadded = {{0, 0, 0, 0, 0, 0}},
int64 one_px = {{1}}, int64 multiple = {{{MULTIPLE_PX}}}, int64 multiple_less_one = {{{MULTIPLE_PX - 1}}}
"""

# colour.planes
_GREY_PLANES = """
no_colour = Sub (unit_b, unit_b)
planes_b = Concat <axis = 1> (unit_b, no_colour)
"""
_COLOUR_PLANES = """
red, green, blue = Split <axis = 1> (unit_b)
red_over = Sub (red, green)
blue_over = Sub (blue, green)
red_part = Mul (red_weight, red_over)
blue_part = Mul (blue_weight, blue_over)
green_red = Add (green, red_part)
grey_b = Add (green_red, blue_part)
most_red_green = Max (red, green)
most = Max (most_red_green, blue)
above = Sub (most, grey_b)
above_zero = Max (above, zero)
planes_b = Concat <axis = 1> (grey_b, above_zero)
"""

# tiling.padded. One reflection adds at most a side less one pixel; sides of 16 px need a second one.
assert MULTIPLE_PX - MIN_SIDE_PX <= 2 * (MIN_SIDE_PX - 1)
_PADDING = """
size = Shape <start = 2, end = 4> (a)
beyond = Add (size, multiple_less_one)
windows = Div (beyond, multiple)
whole = Mul (windows, multiple)
missing = Sub (whole, size)
reach = Sub (size, one_px)
first = Min (missing, reach)
second = Sub (missing, first)
pads_first = Concat <axis = 0> (unpadded, first)
pads_second = Concat <axis = 0> (unpadded, second)
part_a = Pad <mode = "reflect"> (unit_a, pads_first)
whole_a = Pad <mode = "reflect"> (part_a, pads_second)
part_b = Pad <mode = "reflect"> (planes_b, pads_first)
whole_b = Pad <mode = "reflect"> (part_b, pads_second)
"""

# colour.recombine
_RECOMBINE = """
least_red_green = Min (red, green)
least = Min (least_red_green, blue)
below = Sub (grey_b, least)
above_safe = Max (above, tiny)
below_safe = Max (below, tiny)
room = Sub (one, y)
share_above = Div (room, above_safe)
share_below = Div (y, below_safe)
share_both = Min (share_above, share_below)
share = Min (share_both, one)
chroma = Sub (unit_b, grey_b)
chroma_kept = Mul (chroma, share)
coloured = Add (chroma_kept, y)
shown = Clip (coloured, zero, one)
"""


def _unit(name: str, form: Form, *, last: bool) -> str:
    """normalise.unit. The cast is first, because TensorRT does not transpose uint8."""
    lines = [f"given_{name} = {'Identity' if form.dtype == 'float32' else 'Cast <to = 1>'} ({name})"]
    order = "Transpose <perm = [0, 3, 1, 2]>" if last else "Identity"
    lines.append(f"values_{name} = {order} (given_{name})")
    if not form.ranges:
        return "\n".join([*lines, f"unit_{name} = Div (values_{name}, white8)"])
    return "\n".join(
        [
            *lines,
            f"low_{name}, high_{name} = Split <axis = 0> (range_{name})",
            f"span_{name} = Sub (high_{name}, low_{name})",
            f"over_{name} = Sub (values_{name}, low_{name})",
            f"part_of_{name} = Div (over_{name}, span_{name})",
            f"unit_{name} = Clip (part_of_{name}, zero, one)",
        ]
    )


def _values(form: Form) -> str:
    """normalise.from_unit, in a's range."""
    if form.ranges:
        lines = ["spread = Mul (shown, span_a)", "scaled = Add (spread, low_a)"]
    else:
        lines = ["scaled = Mul (shown, white8)"]
    order = "Transpose <perm = [0, 2, 3, 1]>" if form.layout == "rgb-last" else "Identity"
    lines.append(f"ordered = {order} (scaled)")
    if form.dtype == "float32":
        return "\n".join([*lines, f"{OUTPUT} = Identity (ordered)"])
    number, white = (2, "white8") if form.dtype == "uint8" else (4, "white16")  # of onnx.TensorProto
    lines += ["rounded = Round (ordered)", f"held = Clip (rounded, zero, {white})"]
    return "\n".join([*lines, f"{OUTPUT} = Cast <to = {number}> (held)"])
