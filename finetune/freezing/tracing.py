"""torch.fx tracer for `finetune.freezing.graph_split`."""

from __future__ import annotations

import threading
from typing import Any

from torch import fx, nn
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2
from torchvision.ops import StochasticDepth

from finetune.core.locks import lock_across_forks
from finetune.freezing.lora import is_adapter

# Their forward reads ``self.training``: tracing into them would fix the mode in the graph.
_LEAVES = (StochasticDepth, ShiftedWindowAttention, ShiftedWindowAttentionV2)


_tracing = lock_across_forks()


class Tracer(fx.Tracer):
    """Tracer that is safe while other threads run their own networks.

    During tracing, torch.fx replaces methods of ``nn.Module`` for the whole process.
    """

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Return the graph of a network."""
        with _tracing:  # two at once would restore each other's replaced methods
            self._thread = threading.get_ident()
            return super().trace(root, concrete_args)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Record a module call of this thread; execute those of other threads."""
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Return an attribute: proxied for this thread, unchanged for other threads."""
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one node of the graph, not traced into."""
        if is_adapter(m):  # its forward depends on its mode, and on whether it is merged
            return True
        return isinstance(m, _LEAVES) or super().is_leaf_module(m, module_qualified_name)
