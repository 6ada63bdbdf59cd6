"""torch.fx's tracer, as `split` uses it."""

from __future__ import annotations

import threading
from typing import Any

from torch import fx, nn
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2
from torchvision.ops import StochasticDepth

from finetune.adapters import is_adapter
from finetune.locks import lock_across_forks

# Their forward reads ``self.training``: traced through, the mode would be baked into the graph.
_LEAVES = (StochasticDepth, ShiftedWindowAttention, ShiftedWindowAttentionV2)


_tracing = lock_across_forks()


class Tracer(fx.Tracer):
    """Traces a network while other threads compute with theirs.

    Meanwhile torch.fx has replaced methods of ``nn.Module`` for the whole process.
    """

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """The graph of a network."""
        with _tracing:  # of two at once, one would put back what the other had put there
            self._thread = threading.get_ident()
            return super().trace(root, concrete_args)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Record a call of a module; compute those of other threads."""
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """A parameter as the graph has it; as it is for other threads."""
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is called as a whole."""
        if is_adapter(m):  # reads its mode, and whether it is merged
            return True
        return isinstance(m, _LEAVES) or super().is_leaf_module(m, module_qualified_name)
