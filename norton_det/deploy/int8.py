"""Says how an OpenVINO model is quantised, and puts parts of it back to floating point without quantising anew."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from norton_det.models.parts import REGION_KINDS

Preset = Literal["performance", "mixed"]
"""nncf's presets: all ranges are symmetric around zero, or those of activations are not."""
PRESETS: tuple[Preset, ...] = get_args(Preset)
_BODY = "/backbone/body/"
INT8_PARTS: dict[str, tuple[str, ...]] = {
    "stem": ("/transform/", f"{_BODY}conv1/"),
    **{f"stage {number}": (f"{_BODY}layer{number}/",) for number in range(1, 5)},
    "neck": ("/backbone/fpn/",),
    "rpn": ("/rpn/head/",),
    "heads": ("/places/head/",),
    **{f"{kind} head": (f"/roi_heads/{kind}_",) for kind in REGION_KINDS},
}
"""How the names of a part's nodes begin, as the ONNX file has them."""
_COMPUTING = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul")
_SHAPE = "ShapeOf"
_PASSING = ("MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Concat", "Pad")
"""Operations that only pass a quantised tensor on to those that compute."""


@dataclass(frozen=True)
class Int8Recipe:
    """Says how a model is quantised: nncf's preset, and which parts of INT8_PARTS stay in floating point."""

    preset: Preset = "performance"
    in_float: tuple[str, ...] = ()


PLAIN = Int8Recipe()


def quantised_parts(model: Any) -> list[str]:
    """Name the parts of a model that compute in int8."""
    names = [node.get_friendly_name() for node in _computing(model) if _is_stored_in_int8(node)]
    return [part for part, places in INT8_PARTS.items() if any(name.startswith(places) for name in names)]


def restore_parts(quantised: Any, original: Any, parts: Collection[str]) -> None:
    """Let parts of a quantised model compute in floating point, in place, with the weights of the original one.

    The inputs of a part are no longer rounded, unless other parts read them behind the same pooling or reshaping.
    """
    if not parts:
        return
    places = tuple(place for part in parts for place in INT8_PARTS[part])
    own = {node.get_friendly_name(): node for node in original.get_ops()}
    for node in quantised.get_ops():
        name = node.get_friendly_name()
        if not name.startswith(places):
            continue
        if node.get_type_name() in (*_COMPUTING, "Add") and name in own:
            _copy_constants(node, own[name])
    for quantiser in [node for node in quantised.get_ops() if node.get_type_name() == "FakeQuantize"]:
        source = quantiser.input(0).get_source_output()
        targets = [t for t in quantiser.output(0).get_target_inputs() if t.get_node().get_type_name() != _SHAPE]
        inside = [all(name.startswith(places) for name in _readers(target)) for target in targets]
        for target, is_inside in zip(targets, inside, strict=True):
            if is_inside:
                target.replace_source_output(source)


def _computing(model: Any) -> Iterator[Any]:
    return (node for node in model.get_ops() if node.get_type_name() in _COMPUTING)


def _is_stored_in_int8(node: Any) -> bool:
    """Tell whether a node's weights are computed from integers instead of being a constant of floats."""
    return len(node.inputs()) > 1 and node.input(1).get_source_output().get_node().get_type_name() != "Constant"


def _copy_constants(node: Any, original: Any) -> None:
    """Give a node the weights or the bias that the same node has in the original model."""
    for place, given in enumerate(original.inputs()):
        constant = given.get_source_output().get_node()
        if constant.get_type_name() == "Constant":
            node.input(place).replace_source_output(_copied(constant).output(0))


def _copied(constant: Any) -> Any:
    from openvino import opset13

    return opset13.constant(constant.get_data(), constant.get_element_type())


def _readers(target: Any) -> Iterator[str]:
    """Yield the names of the nodes that compute with an input, behind those that only pass it on."""
    node = target.get_node()
    if node.get_type_name() not in _PASSING:
        yield node.get_friendly_name()
        return
    for behind in node.output(0).get_target_inputs():
        if behind.get_node().get_type_name() != _SHAPE:
            yield from _readers(behind)
