"""Which earlier tokens each query of a layer may see, as transformers itself says it.

A model asks transformers for one mask per kind of layer and passes it to the attention function. Here that mask is a `LayerMask`: the
function of (query, key) positions that transformers made, not a tensor. So it is evaluated for the positions of each row in the pool, and a
window or a chunk is never guessed from a config.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from abkt.serve.engine.features import Unsupported

SAMPLED = (0, 1, 2, 3, 63, 64, 257, 1000, 4097)


class LayerMask:
    """The mask of one kind of layer.

    Parameters
    ----------
    function : transformers' mask function, (batch, head, query position, key position) -> whether the query may see the key.
    window : a query sees at most this many tokens, itself included; 0: no bound.
    device : where the tensors inside of the function are.
    """

    def __init__(self, function: Callable[..., torch.Tensor], window: int = 0, device: torch.device | str = "cpu") -> None:
        self.function, self.window, self.device = function, window, device
        self._first: dict[int, int] = {}

    def seen(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """[queries, keys] bool, for these positions."""
        zero = torch.zeros((), dtype=torch.long, device=self.device)
        return self.function(zero, zero, queries[:, None], keys[None, :]).expand(len(queries), len(keys))

    def first(self, query: int) -> int:
        """The first token that this query sees; it sees all from there to itself."""
        if not self.window:
            return 0
        if query not in self._first:
            bound = max(0, query - self.window + 1)
            seen = self.seen(self._at([query]), self._at(range(bound, query + 1)))[0]
            self._first[query] = bound + int(seen.to(torch.uint8).argmax())
        return self._first[query]

    @property
    def is_causal(self) -> bool:
        """Whether this is transformers' plain causal mask."""
        from transformers.masking_utils import causal_mask_function

        return self.function is causal_mask_function

    def check(self) -> None:
        """Raise Unsupported unless every query sees an unbroken span of tokens that ends with itself and is no longer than the window."""
        if self.is_causal:
            return
        width = self.window or max(SAMPLED)
        for query in sorted({*SAMPLED, width - 1, width, width + 1, 2 * width, 3 * width + 5}):
            seen = self.seen(self._at([query]), self._at(range(query + width + 2)))[0]
            if seen[query + 1 :].any():
                raise Unsupported("bidirectional attention")
            first = int(seen.to(torch.uint8).argmax())
            bound = max(0, query - self.window + 1) if self.window else 0
            if not seen[first : query + 1].all() or (first != bound if not self.window else first < bound):
                raise Unsupported("an attention mask that is neither causal, nor a window, nor a chunk")

    def _at(self, positions: Iterable[int]) -> torch.Tensor:
        return torch.tensor(list(positions), device=self.device)


def layer_mask(
    *,
    mask_function: Callable[..., torch.Tensor],
    local_size: int | None = None,
    attention_mask: Any = None,
    device: torch.device | str = "cpu",
    **_of_a_tensor: Any,
) -> LayerMask:
    """The mask function with transformers' interface (`AttentionMaskInterface`).

    The lengths, offsets and dtypes that it also passes say how to make a tensor for a pass without a cache; a row's own positions in the
    pool are used instead.
    """
    if attention_mask is not None:
        raise Unsupported("an attention mask that the model makes itself")
    return LayerMask(mask_function, int(local_size or 0), device)
