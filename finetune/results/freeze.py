"""Results of ``freeze-report``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PatternRow:
    """Pattern with the tensors that match it, and those of them that no later pattern matches."""

    pattern: str
    freezes: bool
    matched_tensors: int
    tensors: int
    parameters: int
    share: float
    """Fraction of the parameters of the network, including its new head."""


@dataclass(frozen=True)
class ParameterRow:
    """Parameter of the network, including its new head."""

    name: str
    shape: tuple[int, ...]
    numel: int
    frozen: bool
    pattern: str | None
    """Last matching pattern; None if no pattern matches, and for the head, which always trains."""
    head: bool


@dataclass(frozen=True)
class NormRow:
    """Normalisation layer during training.

    Attributes:
        mode: Module mode, ``eval`` or ``train``.
        statistics: ``kept``, ``updated``, or ``none`` if the layer has no running statistics.
    """

    name: str
    type: str
    frozen: bool
    mode: str
    statistics: str


@dataclass(frozen=True)
class Totals:
    """Sums over the parameter rows."""

    parameters: int
    trainable: int
    frozen: int
    tensors: int
    trainable_tensors: int
    frozen_tensors: int


@dataclass(frozen=True)
class Boundary:
    """End of the backward pass: no gradient is computed in or before ``last_without_backward``."""

    last_without_backward: str | None
    first_with_backward: str | None


@dataclass(frozen=True)
class Memory:
    """Memory of gradients and optimizer state in bytes, for float32."""

    optimizer: str
    gradient_bytes: int
    gradient_bytes_saved: int
    optimizer_bytes: int
    optimizer_bytes_saved: int


@dataclass(frozen=True)
class Operations:
    """Multiply-adds per image."""

    input_size: int
    forward: int
    forward_frozen: int
    forward_trainable: int
    backward: int
    backward_if_all_trained: int


@dataclass(frozen=True)
class Cut:
    """Split point, where the frozen prefix ends.

    Attributes:
        after: Last node of the prefix; None without a prefix: the whole network runs every time.
        crossing: Shape of each feature tensor, for one image.
        precision: Precision of cached features; float32, the larger, if it is yet to be timed.
        bytes_per_image: Size of the features of one image.
        forward_once: Fraction of the forward multiply-adds that are computed once.
        cache_bytes: Size of the cached features of the data in all views; None if the data is
            missing or every epoch draws new views.
    """

    after: str | None
    crossing: tuple[tuple[int, ...], ...]
    precision: str
    bytes_per_image: int
    forward_once: float
    cache_bytes: int | None


@dataclass(frozen=True)
class GroupRow:
    """Parameter group of the optimizer."""

    lr: float
    """Peak learning rate."""
    weight_decay: float
    tensors: int
    parameters: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class AdapterFacts:
    """Number of frozen weights with an adapter, and of the parameters of all adapters."""

    weights: int
    parameters: int


@dataclass(frozen=True)
class FreezeReport:
    """Frozen parameters, the patterns that freeze them, and the savings."""

    model: str
    num_classes: int
    head: str
    patterns: tuple[PatternRow, ...]
    parameters: tuple[ParameterRow, ...]
    totals: Totals
    norm_layers: tuple[NormRow, ...]
    backward_boundary: Boundary
    cut: Cut
    memory: Memory
    groups: tuple[GroupRow, ...]
    """Parameter groups of the optimizer, the head's first."""
    adapters: AdapterFacts
    operations: Operations
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class StagedFreezeReport:
    """Freeze reports of a run's stages.

    Attributes:
        epochs: Number of epochs of each stage; auto if it depends on data that is missing.
    """

    stages: tuple[FreezeReport, ...]
    epochs: tuple[int | str, ...]


@dataclass(frozen=True)
class DepthRow:
    """Linear probe on the pooled output of one block.

    Attributes:
        block: Path of the block.
        parameters: Number of parameters of the block.
        work: Share of the forward multiply-adds up to the end of the block.
        dimensions: Number of features of the probe.
        low, high: Confidence interval of ``top1``.
    """

    block: str
    parameters: int
    work: float
    dimensions: int
    num_correct: int
    top1: float
    low: float
    high: float


@dataclass(frozen=True)
class DepthReport:
    """Result of ``freeze-report --probe``: accuracy of a linear probe by depth.

    Attributes:
        num_train, num_val: Numbers of images that the probes were fitted and judged on.
        of_train, of_val: Numbers of images in the data.
        best: Block with the best probe, the first among ties.
        earliest: First block whose probe is within one standard error of the best.
        patterns: Freeze patterns that end the frozen part after ``earliest``.
        picture: Path of the plot; None if none was drawn.
    """

    model: str
    weights: str
    num_classes: int
    num_train: int
    num_val: int
    of_train: int
    of_val: int
    rows: tuple[DepthRow, ...]
    best: str
    earliest: str
    patterns: tuple[str, ...]
    picture: str | None
    elapsed_s: float
