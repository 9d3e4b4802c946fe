"""Tracing a module as a graph of steps, in which its submodules are single steps."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

from torch import Tensor, fx, nn


def trace_steps(module: nn.Module, x: Tensor) -> tuple[fx.Graph, dict[fx.Node, Any]]:
    """The steps of a module's forward pass, and their values for an input.

    Code may depend on the values, as for example on the length of a batch, and is traced as it runs for this input.

    Args:
        module: a module of one input.
        x: the input (B, ...); the module may overwrite it.

    Raises:
        Exception: the module's code cannot be traced; of any type.
    """
    tracer = _Tracer(x)
    return tracer.trace(module), tracer.values


class _Proxy(fx.Proxy):
    """A value whose length is known."""

    tracer: _Tracer

    def __len__(self) -> int:
        return len(self.tracer.value(self.node))


class _Tracer(fx.Tracer):
    """Records calls of submodules as they are, and computes all values, so that code can depend on them."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x, self.values, self.evaluating = x, dict[fx.Node, Any](), False

    def value(self, node: fx.Node) -> Any:
        """The value of a node of the graph."""
        return operator.attrgetter(str(node.target))(self.root) if node.op == "get_attr" else self.values[node]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        return root_fn, [self.root, self.create_proxy("placeholder", "x", (), {})]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *options: Any, **named: Any) -> Any:
        proxy = super().create_proxy(kind, target, args, kwargs, *options, **named)
        node = proxy.node
        self.evaluating = True
        try:
            positional, keywords = fx.node.map_arg((node.args, node.kwargs), self.value)
            match kind:
                case "placeholder":
                    self.values[node] = self.x
                case "call_module":
                    self.values[node] = self.root.get_submodule(str(target))(*positional, **keywords)
                case "call_method":
                    self.values[node] = getattr(positional[0], str(target))(*positional[1:], **keywords)
                case "call_function":
                    self.values[node] = target(*positional, **keywords)
        finally:
            self.evaluating = False
        return proxy

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        return forward(*args, **kwargs) if self.evaluating else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        return attr_val if self.evaluating else super().getattr(attr, attr_val, parameter_proxy_cache)

    def iter(self, obj: Any) -> Iterator[Any]:
        return (obj[index] for index in range(len(self.value(obj.node))))

    def to_bool(self, obj: fx.Proxy) -> bool:
        return bool(self.value(obj.node))
