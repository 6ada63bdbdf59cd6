"""Graph split: divides a model into the frozen prefix, computed once, and the trainable part.

A node of the graph belongs to the trainable part if it depends on a trainable parameter, if it
updates statistics, or if it is random; all other nodes computed from the image are the frozen
prefix. Values that do not depend on the image (such as a table of position biases) and values that
are not tensors (such as a batch size) are no outputs of the prefix: the trainable part computes
them itself.

The trainable part consists of the model's own modules, so that training it trains the model, and
the model's ``state_dict`` is still complete. The prefix is a copy in eval mode, without gradients,
with batch norms folded into the convolutions.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterable, Sequence
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

from finetune.freezing.tracing import Tracer
from finetune.models.shapes import ShapesOnly

Features = tuple[Tensor, ...]
"""Outputs of the frozen prefix, or the images themselves; the first dimension is the batch."""

WORTH_KEEPING_BYTES = 2**20
"""Feature bytes per image above which reading features is slower than decoding the photo."""


@dataclass(frozen=True)
class GraphSplit:
    """Frozen prefix and trainable part of a model.

    Attributes:
        prefix: Module from images to features; None if nothing can be computed once, because the
            first layer is trainable or the graph differs between training and evaluation.
        trainable_part: Module from features (or images, without a prefix), one argument for each
            tensor, to logits; its modules keep their train or eval modes.
        last: Path of the last module of the prefix.
        crossing: Shape of each feature tensor, for one image.
        widest: Number of elements of the largest tensor within the prefix, for one image.
        reads: Paths of the modules and tensors of the model that the prefix consists of.
        point: Split point from which the parts were built; None without a prefix.
    """

    prefix: nn.Module | None
    trainable_part: nn.Module
    last: str | None
    crossing: tuple[tuple[int, ...], ...]
    widest: int = 0
    reads: tuple[str, ...] = ()
    point: SplitPoint | None = None


class TrainablePart(nn.Module):
    """Trainable part of a model; each feature tensor is one argument."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, *features: Tensor) -> Any:
        """Return logits ``(N, num_classes)``."""
        return self.graph(*features)


class FrozenPrefix(nn.Module):
    """Frozen prefix of a model, or a part of it: always in eval mode and without gradients."""

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.graph = graph
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> FrozenPrefix:  # noqa: ARG002
        """Stay in eval mode; ``mode`` is ignored."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, *inputs: Tensor) -> Features:
        """Return the features of images ``(N, 3, H, W)``, or of the outputs of an earlier part."""
        features: Features = self.graph(*inputs)
        return features


@dataclass(frozen=True)
class SplitPoint:
    """Split point of a model, from which `split_model` builds the two parts; copies nothing.

    Attributes:
        graph: Traced graph of the model.
        crossing: Nodes whose values are the features; empty without a prefix.
        kept: Nodes that the trainable part computes itself.
        shapes: Shape of each feature tensor, for one image.
        widest: Number of elements of the largest tensor within the prefix, for one image.
    """

    graph: fx.Graph
    crossing: tuple[fx.Node, ...]
    kept: frozenset[fx.Node]
    shapes: tuple[tuple[int, ...], ...]
    widest: int = 0

    @property
    def after(self) -> str | None:
        """Path of the module in or after which the prefix ends; None without a prefix."""
        return _path_of(self.crossing[-1]) if self.crossing else None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the nodes whose values are the features."""
        return tuple(node.name for node in self.crossing)


def find_split_point(
    model: nn.Module, *, crop: int, skeleton: nn.Module | None = None
) -> SplitPoint:
    """Find the split point of a model whose ``requires_grad`` and modes are set for training.

    Args:
        crop: Side of the input, in pixels, for which shapes are computed.
        skeleton: The same network on the meta device, if it was built before.
    """
    graph = Tracer().trace(model)
    none = SplitPoint(graph, (), frozenset(), ())
    if _graph_depends_on_mode(model, graph):
        return none
    trainable_part = _trainable_nodes(model, graph)
    if any(node in trainable_part for node in _first_users(graph)):
        return none
    shapes = _shapes(skeleton or copy.deepcopy(model).to("meta"), graph, crop)
    moving = _on_images(graph)
    wanted = _needed_by_live(
        graph, trainable_part, {n for n in graph.nodes if n in moving and n in shapes}
    )
    crossing = tuple(node for node in graph.nodes if node in wanted.crossing)
    if any(node.op == "placeholder" for node in crossing):
        return none
    return SplitPoint(
        graph,
        crossing,
        frozenset(wanted.kept),
        tuple(shapes[node] for node in crossing),
        max(math.prod(shape) for node, shape in shapes.items() if node not in trainable_part),
    )


def split_model(model: nn.Module, *, crop: int, skeleton: nn.Module | None = None) -> GraphSplit:
    """Split a model into frozen prefix and trainable part; arguments as in `find_split_point`."""
    cut = find_split_point(model, crop=crop, skeleton=skeleton)
    if not cut.crossing:
        return GraphSplit(None, model, None, ())
    return GraphSplit(
        prefix=_frozen_module(model, cut.graph, _images(cut.graph), cut.crossing),
        trainable_part=TrainablePart(_trainable_module(model, cut)),
        last=cut.after,
        crossing=cut.shapes,
        widest=cut.widest,
        reads=_read_by(cut.crossing),
        point=cut,
    )


@dataclass(frozen=True)
class DividedPrefix:
    """Frozen prefix in two parts, of which the second continues from the outputs of the first.

    Attributes:
        first: Module from images to the tensors between the parts; equal to the prefix of a model
            that is split there.
        rest: Module from these tensors to the features, one argument for each tensor.
        reads: Paths of the modules and tensors of the model that the first part consists of.
        end: Index of the last node of the first part in the graph.
    """

    first: FrozenPrefix
    rest: FrozenPrefix
    reads: tuple[str, ...]
    end: int


def divide_prefix(model: nn.Module, cut: SplitPoint, names: Sequence[str]) -> DividedPrefix | None:
    """Divide a model's frozen prefix at an earlier split point.

    Both parts are built from the model's own graph, in which no batch norm is folded into a
    convolution yet: the value of a node there does not depend on where the prefix ends.

    Args:
        model: Model whose frozen tensors are those that the prefix was built from.
        names: Names of the nodes whose values cross the earlier split point.

    Returns:
        None if there are no such nodes in the prefix, or if they do not determine the features.
    """
    nodes = {node.name: (index, node) for index, node in enumerate(cut.graph.nodes)}
    found = [nodes[name] for name in names if name in nodes]
    inner = tuple(node for _, node in found)
    if not inner or len(inner) < len(names) or inner == cut.crossing:
        return None
    if not _ancestors(cut.crossing).issuperset(inner):
        return None
    images = _images(cut.graph)
    if not _ancestors(cut.crossing, inner).isdisjoint(images):
        return None
    return DividedPrefix(
        first=_frozen_module(model, cut.graph, images, inner),
        rest=_frozen_module(model, cut.graph, inner, cut.crossing),
        reads=_read_by(inner),
        end=max(index for index, _ in found),
    )


class _WithHeadInput(nn.Module):
    """Trainable part that returns its logits and the input of its head in one tensor."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, *features: Tensor) -> Tensor:
        """Return ``(N, num_classes + d)``."""
        logits, inputs = (tensor.float() for tensor in self.graph(*features))
        # A convolutional head, as in squeezenet, takes a map and pools behind it.
        return torch.cat([logits, inputs.flatten(2).mean(2) if inputs.dim() > 2 else inputs], dim=1)


def with_head_input(trainable_part: nn.Module, head: str) -> nn.Module:
    """Return a module that computes the logits of a trainable part, and the input of its head.

    Its modules are those of the trainable part. For each image it returns the logits, followed by
    the input of the head; of a map the mean over all positions.

    Args:
        trainable_part: Trainable part in eval mode; the whole model if there is no prefix.
        head: Path of the head.
    """
    if isinstance(trainable_part, TrainablePart):
        root: nn.Module = trainable_part.graph
        graph = trainable_part.graph.graph
    else:
        root, graph = trainable_part, Tracer().trace(trainable_part)
    out = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    logits = out.graph_copy(graph, copied)
    [call] = [node for node in graph.nodes if node.op == "call_module" and node.target == head]
    out.output((logits, copied[call.all_input_nodes[0]]))
    return _WithHeadInput(fx.GraphModule(root, out)).eval()


def _first_users(graph: fx.Graph) -> list[fx.Node]:
    """Nodes that read the image; if one of them is trainable, there is no frozen prefix."""
    return [user for node in graph.nodes if node.op == "placeholder" for user in node.users]


def _graph_depends_on_mode(model: nn.Module, graph: fx.Graph) -> bool:
    """Whether the graph differs in eval mode, as with auxiliary heads, used in train mode only."""
    modes = {module: module.training for module in model.modules()}
    try:
        other = Tracer().trace(model.eval())
    finally:
        for module, mode in modes.items():
            module.training = mode
    return [_signature(node) for node in graph.nodes] != [_signature(node) for node in other.nodes]


def _signature(node: fx.Node) -> tuple[str, ...]:
    # Each trace renumbers the tensor constants.
    words = (str(node.target), str(node.args), str(node.kwargs))
    return node.op, *(re.sub(r"_tensor_constant\d+", "_tensor_constant", word) for word in words)


def _trainable_nodes(model: nn.Module, graph: fx.Graph) -> set[fx.Node]:
    trainable_part: set[fx.Node] = set()
    modules = dict(model.named_modules())
    parameters = dict(model.named_parameters())
    for node in graph.nodes:
        own = False
        if node.op == "call_module":
            own = _is_live(modules[str(node.target)])
        elif node.op == "get_attr" and str(node.target) in parameters:
            own = parameters[str(node.target)].requires_grad
        if own or any(argument in trainable_part for argument in node.all_input_nodes):
            trainable_part.add(node)
    return trainable_part


def _is_live(module: nn.Module) -> bool:
    if any(parameter.requires_grad for parameter in module.parameters()):
        return True
    return any(_updates_or_draws(part) for part in module.modules())


def _updates_or_draws(module: nn.Module) -> bool:
    if not module.training:
        return False
    if isinstance(module, _NormBase):
        return True  # its output depends on the batch, and its statistics change
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
    """Runs the graph on the meta device and records the shape of each tensor, for one image."""

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
    with torch.no_grad(), ShapesOnly():
        dtype = next(skeleton.parameters()).dtype
        reader.run(torch.empty(2, 3, crop, crop, dtype=dtype, device="meta"))
    return reader.shapes


@dataclass(frozen=True)
class _Wanted:
    crossing: set[fx.Node]
    kept: set[fx.Node]
    """Nodes that the trainable part computes itself."""


def _needed_by_live(
    graph: fx.Graph, trainable_part: set[fx.Node], may_cross: set[fx.Node]
) -> _Wanted:
    """Find the nodes that the trainable part computes itself, and its inputs.

    Args:
        may_cross: Nodes whose values are tensors computed from images.
    """
    wanted = _Wanted(set(), set())
    stack = [node for node in graph.nodes if node in trainable_part or node.op == "output"]
    while stack:
        node = stack.pop()
        if node in wanted.kept:
            continue
        wanted.kept.add(node)
        for argument in node.all_input_nodes:
            if argument in may_cross and argument not in trainable_part:
                wanted.crossing.add(argument)
            else:
                stack.append(argument)
    return wanted


def _images(graph: fx.Graph) -> tuple[fx.Node, ...]:
    return tuple(node for node in graph.nodes if node.op == "placeholder")


def _read_by(nodes: Iterable[fx.Node]) -> tuple[str, ...]:
    """Paths of the modules and tensors that nodes are computed with."""
    reading = [node for node in _ancestors(nodes) if node.op in ("call_module", "get_attr")]
    return tuple(sorted({str(node.target) for node in reading}))


def _frozen_module(
    model: nn.Module, graph: fx.Graph, inputs: Sequence[fx.Node], outputs: Sequence[fx.Node]
) -> FrozenPrefix:
    """Return a copy of the part of a graph that computes some nodes from others."""
    needed = _ancestors(outputs, inputs)
    out = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for node in inputs:
        is_image = node.op == "placeholder"
        copied[node] = out.node_copy(node) if is_image else out.placeholder(node.name)
    for node in graph.nodes:
        if node in needed and node not in copied:
            copied[node] = out.node_copy(node, lambda n: copied[n])
    out.output(tuple(copied[node] for node in outputs))
    # Folding requires eval mode; on a copy, so that the model's own modules keep their modes.
    frozen = copy.deepcopy(fx.GraphModule(model, out)).eval()
    return FrozenPrefix(fuse(frozen, inplace=True, no_trace=True))


def _ancestors(nodes: Iterable[fx.Node], known: Iterable[fx.Node] = ()) -> set[fx.Node]:
    """Return nodes and all that they are computed from; what is known is not gone beyond."""
    found: set[fx.Node] = set()
    ends = frozenset(known)
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            if node not in ends:
                stack += node.all_input_nodes
    return found


def _trainable_module(model: nn.Module, cut: SplitPoint) -> fx.GraphModule:
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
    """Path of the module that a node calls, or else of the one whose forward contains it."""
    if node.op == "call_module":
        return str(node.target)
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = stack[-1][0] if stack else ""
    return path or node.name
