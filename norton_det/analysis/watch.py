"""Shows what layers read while a network runs."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor, nn

Name = TypeVar("Name")


@contextmanager
def watch_inputs(layers: Mapping[Name, nn.Module], see: Callable[[Name, Tensor], object]) -> Iterator[None]:
    """Call `see` with a layer's name and first input before each call of one of the layers, inside the `with`
    block."""

    def teller(name: Name) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def tell(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            see(name, inputs[0])

        return tell

    hooks = [layer.register_forward_pre_hook(teller(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
