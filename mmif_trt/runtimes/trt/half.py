"""The FP32 ONNX network as a strongly typed mixed-precision graph: the graph says what runs in half.

TensorRT 11 and TensorRT-RTX use the types as they are. In half: convolutions, projections, both products of
attention and the element-wise work between them. In float32, between casts: softmax, LayerNorm, and all that
follows the head's convolution, where max(a, b) + r min(a, v) rounded to half would cost levels near white.
Input and output are float32; normalisation to [0, 1] is outside the graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from mmif_trt.image import InputError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

IN_FLOAT = ("LayerNormalization", "Softmax")
HALF_MAX = 65504.0
INPUTS = ("a", "b")


def half(model: ModelProto) -> ModelProto:
    """A mixed-precision copy of the exported FP32 LAGN, any batch and size.

    Raises InputError for a graph without LAGN's inputs and end, and for weights that half cannot hold.
    """
    import onnx

    received = tuple(x.name for x in model.graph.input)
    if received != INPUTS:
        raise InputError(f"ONNX graph: inputs {received}; expected {INPUTS}")
    out = onnx.ModelProto()
    out.CopyFrom(model)
    graph = out.graph
    end = _float_end(graph)
    nodes = [_cast(name, f"{name}_half", onnx.TensorProto.FLOAT16) for name in INPUTS]
    constants = {x.name: x for x in graph.initializer}
    for node in graph.node:
        if node.output[0] in end:
            nodes.append(node)
        elif node.op_type in IN_FLOAT:
            nodes += _between_casts(node)
        else:
            nodes.append(_with_half_types(node, constants))
    del graph.node[:], graph.value_info[:]  # value_info names the old types
    graph.node.extend(nodes)
    onnx.checker.check_model(out)
    return out


def static(model: ModelProto, batch: int, height: int, width: int) -> ModelProto:
    """A copy whose inputs and output have this one shape."""
    import onnx

    out = onnx.ModelProto()
    out.CopyFrom(model)
    for value in (*out.graph.input, *out.graph.output):
        sizes = shape_at(value, batch, height, width)
        for dim, size in zip(value.type.tensor_type.shape.dim, sizes, strict=True):
            dim.dim_value = size
    del out.graph.value_info[:]
    return out


def shape_at(value: Any, batch: int, height: int, width: int) -> tuple[int, ...]:
    """The shape of a graph's input or output; its open dimensions are named."""
    sizes = {"batch": batch, "height": height, "width": width}
    return tuple(
        sizes[dim.dim_param] if dim.dim_param else dim.dim_value for dim in value.type.tensor_type.shape.dim
    )


def _float_end(graph: Any) -> set[str]:
    """The tensors computed in float32 at the end: those after the network's Cast of r, and what of it is made
    of a and of b's planes alone, up to their max and min."""
    made_by = {output: node for node in graph.node for output in node.output}
    ends: list[str] = []
    before = [name for node in graph.node if node.op_type == "Tanh" for name in node.input]
    while before:  # back from the Tanh: r may be bent on its way (LAGNConfig.below)
        name = before.pop()
        node = made_by.get(name)
        if node is not None and node.op_type == "Cast":
            ends += [] if name in ends else [name]
        elif node is not None and node.op_type in ("Max", "Mul", "Div"):
            before += node.input
    if len(ends) != 1:
        raise InputError(f"ONNX graph: {len(ends)} ends of Cast and Tanh; expected LAGN's one")
    float_end = set(ends)
    of_inputs = {"a"}
    for node in graph.node:  # in order of execution
        plane = node.op_type == "Slice" and "b" in node.input
        if plane or (node.op_type in ("Add", "Max", "Min") and of_inputs.issuperset(node.input)):
            of_inputs |= set(node.output)
        if of_inputs & set(node.output) or float_end & set(node.input):
            float_end |= set(node.output)
    used = {name for node in graph.node if node.output[0] in float_end for name in node.input}
    return float_end | {n.output[0] for n in graph.node if n.op_type == "Constant" and n.output[0] in used}


def _between_casts(node: NodeProto) -> Iterator[NodeProto]:
    from onnx import TensorProto

    result = node.output[0]
    yield _cast(node.input[0], f"{result}_in", TensorProto.FLOAT)
    node.input[0], node.output[0] = f"{result}_in", f"{result}_float"
    yield node
    yield _cast(f"{result}_float", result, TensorProto.FLOAT16)


def _with_half_types(node: NodeProto, constants: dict[str, Any]) -> NodeProto:
    """`node` on half inputs; converts the float32 constants it uses, and the type it makes or casts to."""
    from onnx import TensorProto

    for i, name in enumerate(node.input):
        if name in INPUTS:
            node.input[i] = f"{name}_half"
        elif name in constants:
            _to_half(constants[name])
    for attribute in node.attribute:
        if attribute.name == "value":
            _to_half(attribute.t)
        elif attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
    return node


def _to_half(tensor: Any) -> None:
    """In place; other types than float32 (indices, shapes) stay."""
    from onnx import TensorProto, numpy_helper

    if tensor.data_type != TensorProto.FLOAT:
        return
    values = numpy_helper.to_array(tensor)
    if not (np.abs(values) <= HALF_MAX).all():
        raise InputError(f"weight {tensor.name}: beyond {HALF_MAX:g}; expected values that half can hold")
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), tensor.name))


def _cast(source: str, target: str, to: int) -> NodeProto:
    from onnx import helper

    return helper.make_node("Cast", [source], [target], name=f"cast_to_{target}", to=to)
