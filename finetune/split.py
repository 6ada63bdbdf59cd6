"""A model and its freeze plan -> the frozen prefix, computed once, and the live part, trained.

A node of the graph is live if a trainable parameter reaches it, if it updates statistics, or if it
draws at random; what is computed from the image and is not live is the frozen prefix. What depends
on no image (a table of position biases, say) and what is no tensor (a batch size) is no output of
the prefix: the live part computes it itself.

The live part is made of the model's own modules, so that training it trains the model, and the
model's ``state_dict`` stays the whole checkpoint. The prefix is a copy: eval mode, no gradients,
convolutions folded with their batch norms.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse
from torch.fx.node import map_arg
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torchvision.models.swin_transformer import ShiftedWindowAttention
from torchvision.ops import StochasticDepth

from finetune.tracing import Tracer

Features = Tensor | tuple[Tensor, ...]
"""What crosses the cut: one tensor, or several; the first dimension counts images."""

WORTH_KEEPING_BYTES = 2**20
"""Features above this size an image cost more to read than a photo costs to decode."""


@dataclass(frozen=True)
class Split:
    """The two parts of a model.

    Attributes:
        prefix: Images to features; None where nothing can be computed once, because the first
            layer trains or the graph differs between training and evaluation.
        live: Features (or images, without a prefix) to logits, in the modules' own modes.
        last: Name of the last node of the prefix.
        crossing: Shape of each tensor that crosses, for one image.
        widest: Numbers in the largest tensor within the prefix, for one image.
    """

    prefix: nn.Module | None
    live: nn.Module
    last: str | None
    crossing: tuple[tuple[int, ...], ...]
    widest: int = 0


class Live(nn.Module):
    """The part that trains, fed with one tensor or several."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, features: Features) -> Any:
        """Logits ``(N, num_classes)``."""
        if isinstance(features, Tensor):
            return self.graph(features)
        return self.graph(*features)


class Prefix(nn.Module):
    """The part that is computed once: always in eval mode, always without gradients."""

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.graph = graph
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Prefix:  # noqa: ARG002
        """Stays in eval mode, whoever asks."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Features:
        """Features of images ``(N, 3, H, W)``."""
        features: Features = self.graph(images)
        return features


@dataclass(frozen=True)
class Cut:
    """Where a model is cut; a plan for `split_model`, made without a copy of anything.

    Attributes:
        crossing: Nodes whose values cross; none where there is no prefix.
        kept: Nodes that the live part computes itself.
        widest: As in `Split`.
    """

    graph: fx.Graph
    crossing: tuple[fx.Node, ...]
    kept: frozenset[fx.Node]
    shapes: tuple[tuple[int, ...], ...]
    widest: int = 0

    @property
    def after(self) -> str | None:
        """Path of the module that the prefix ends in or behind."""
        return _path_of(self.crossing[-1]) if self.crossing else None


def find_cut(model: nn.Module, *, crop: int, skeleton: nn.Module | None = None) -> Cut:
    """Find the frozen prefix of a model whose flags and modes are set for training.

    Args:
        crop: Side of the input, in pixels, at which shapes are read off.
        skeleton: The same network on the meta device, where there is one already.
    """
    graph = Tracer().trace(model)
    none = Cut(graph, (), frozenset(), ())
    if _graph_depends_on_mode(model, graph):
        return none
    live = _live_nodes(model, graph)
    if any(node in live for node in _first_users(graph)):
        return none
    shapes = _shapes(skeleton or copy.deepcopy(model).to("meta"), graph, crop)
    moving = _on_images(graph)
    wanted = _needed_by_live(graph, live, {n for n in graph.nodes if n in moving and n in shapes})
    crossing = tuple(node for node in graph.nodes if node in wanted.crossing)
    if any(node.op == "placeholder" for node in crossing):
        return none
    return Cut(
        graph,
        crossing,
        frozenset(wanted.kept),
        tuple(shapes[node] for node in crossing),
        max(math.prod(shape) for node, shape in shapes.items() if node not in live),
    )


def split_model(model: nn.Module, *, crop: int, skeleton: nn.Module | None = None) -> Split:
    """Cut a model in two; the arguments are those of `find_cut`."""
    cut = find_cut(model, crop=crop, skeleton=skeleton)
    if not cut.crossing:
        return Split(None, model, None, ())
    return Split(
        prefix=_prefix_module(model, cut),
        live=Live(_live_module(model, cut)),
        last=cut.after,
        crossing=cut.shapes,
        widest=cut.widest,
    )


def _first_users(graph: fx.Graph) -> list[fx.Node]:
    """Nodes that read the image, the cheapest place to see that nothing can be computed once."""
    return [user for node in graph.nodes if node.op == "placeholder" for user in node.users]


def _graph_depends_on_mode(model: nn.Module, graph: fx.Graph) -> bool:
    """Whether evaluation runs another graph: auxiliary heads that only train mode computes."""
    modes = {module: module.training for module in model.modules()}
    try:
        other = Tracer().trace(model.eval())
    finally:
        for module, mode in modes.items():
            module.training = mode
    return [_signature(node) for node in graph.nodes] != [_signature(node) for node in other.nodes]


def _signature(node: fx.Node) -> tuple[str, ...]:
    # Each tracing numbers the constants that it meets anew.
    words = (str(node.target), str(node.args), str(node.kwargs))
    return node.op, *(re.sub(r"_tensor_constant\d+", "_tensor_constant", word) for word in words)


def _live_nodes(model: nn.Module, graph: fx.Graph) -> set[fx.Node]:
    live: set[fx.Node] = set()
    modules = dict(model.named_modules())
    parameters = dict(model.named_parameters())
    for node in graph.nodes:
        own = False
        if node.op == "call_module":
            own = _is_live(modules[str(node.target)])
        elif node.op == "get_attr" and str(node.target) in parameters:
            own = parameters[str(node.target)].requires_grad
        if own or any(argument in live for argument in node.all_input_nodes):
            live.add(node)
    return live


def _is_live(module: nn.Module) -> bool:
    if any(parameter.requires_grad for parameter in module.parameters()):
        return True
    return any(_updates_or_draws(part) for part in module.modules())


def _updates_or_draws(module: nn.Module) -> bool:
    if not module.training:
        return False
    if isinstance(module, _NormBase):
        return True  # its output depends on the batch, and its statistics move
    if isinstance(module, _DropoutNd | StochasticDepth):
        return bool(module.p > 0)
    if isinstance(module, nn.MultiheadAttention):
        return bool(module.dropout > 0)
    if isinstance(module, ShiftedWindowAttention):
        return bool(module.attention_dropout > 0 or module.dropout > 0)
    return False


def _on_images(graph: fx.Graph) -> set[fx.Node]:
    moving: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(a in moving for a in node.all_input_nodes):
            moving.add(node)
    return moving


class _ShapeReader(fx.Interpreter):
    """Runs the graph on the meta device and notes the shape of each tensor, for one image."""

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        super().__init__(module, garbage_collect_values=True, graph=graph)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n] = tuple(result.shape[1:])
        return result


def _shapes(skeleton: nn.Module, graph: fx.Graph, crop: int) -> dict[fx.Node, tuple[int, ...]]:
    reader = _ShapeReader(skeleton, graph)
    with torch.no_grad():
        dtype = next(skeleton.parameters()).dtype
        reader.run(torch.empty(2, 3, crop, crop, dtype=dtype, device="meta"))
    return reader.shapes


@dataclass(frozen=True)
class _Wanted:
    crossing: set[fx.Node]
    kept: set[fx.Node]
    """Nodes that the live part computes itself."""


def _needed_by_live(graph: fx.Graph, live: set[fx.Node], may_cross: set[fx.Node]) -> _Wanted:
    """What the live part computes itself, and what it is given.

    Args:
        may_cross: Nodes that are tensors computed from images.
    """
    wanted = _Wanted(set(), set())
    stack = [node for node in graph.nodes if node in live or node.op == "output"]
    while stack:
        node = stack.pop()
        if node in wanted.kept:
            continue
        wanted.kept.add(node)
        for argument in node.all_input_nodes:
            if argument in may_cross and argument not in live:
                wanted.crossing.add(argument)
            else:
                stack.append(argument)
    return wanted


def _prefix_module(model: nn.Module, cut: Cut) -> Prefix:
    needed = _ancestors(cut.crossing)
    out = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for node in cut.graph.nodes:
        if node.op == "placeholder" or node in needed:
            copied[node] = out.node_copy(node, lambda n: copied[n])
    results = tuple(copied[node] for node in cut.crossing)
    out.output(results[0] if len(results) == 1 else results)
    # In eval mode before it is folded; a copy, so that the model's own modules keep theirs.
    frozen = copy.deepcopy(fx.GraphModule(model, out)).eval()
    return Prefix(fuse(frozen, inplace=True, no_trace=True))


def _ancestors(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack += node.all_input_nodes
    return found


def _live_module(model: nn.Module, cut: Cut) -> fx.GraphModule:
    out = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for index, node in enumerate(cut.crossing):
        copied[node] = out.placeholder(f"features_{index}")
    rename: Callable[[fx.Node], fx.Node] = lambda n: copied[n]  # noqa: E731
    for node in cut.graph.nodes:
        if node.op == "output":
            out.output(map_arg(node.args[0], rename))
        elif node in cut.kept and node not in copied:
            copied[node] = out.node_copy(node, rename)
    return fx.GraphModule(model, out)


def _path_of(node: fx.Node) -> str:
    """The module that a node is, or stands in."""
    if node.op == "call_module":
        return str(node.target)
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = stack[-1][0] if stack else ""
    return path or node.name
