"""What an optimizer remembers of parameters that go on training in the next stage of a run."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import Optimizer

from finetune.config_optimizer import KEEPING
from finetune.optimizer_state import Number, memory_of, remember


@dataclass(frozen=True)
class Memory:
    """Of an optimizer at the end of a stage.

    Attributes:
        keeps: Arguments that determine which tensors the optimizer keeps of a parameter.
        tensors, numbers: As `memory_of` gives them.
    """

    kind: type[Optimizer]
    keeps: dict[str, bool]
    tensors: dict[str, Tensor]
    numbers: dict[str, Number]

    @classmethod
    def of(cls, optimizer: Optimizer, named: Iterable[tuple[str, nn.Parameter]]) -> Memory:
        """Momentum, moments and step counts, by the parameters' names."""
        return cls(type(optimizer), _keeps(optimizer), *memory_of(optimizer, named))

    def hand_over(
        self,
        optimizer: Optimizer,
        named: Iterable[tuple[str, nn.Parameter]],
        *,
        plain: Collection[str],
    ) -> int:
        """Give it to a new optimizer, as far as both move the same parameters.

        Args:
            plain: Names in the plain network: an adapter begins anew, whatever it is called.

        Returns:
            How many parameters have a state now; none where the two optimizers are of different
            classes, or keep different things.
        """
        if type(optimizer) is not self.kind or _keeps(optimizer) != self.keeps:
            return 0
        named = list(named)
        moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
        held = {name for name, p in named if id(p) in moved and name in plain}
        tensors = {label: value for label, value in self.tensors.items() if _name(label) in held}
        numbers = {label: value for label, value in self.numbers.items() if _name(label) in held}
        remember(optimizer, named, tensors, numbers)
        return len({_name(label) for label in [*tensors, *numbers]})


def _name(label: str) -> str:
    return label.rpartition("/")[0]


def _keeps(optimizer: Optimizer) -> dict[str, bool]:
    # These keys alone: other arguments change nothing in the state, and loading a state adds
    # arguments to the defaults of some classes (torch.optim.Optimizer.__setstate__).
    return {key: bool(optimizer.defaults.get(key)) for key in ("momentum", *KEEPING)}
