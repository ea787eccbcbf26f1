"""The shapes of a model's KV cache and of the pool that holds it. Dtypes are strings, so this module needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from abkt.ranges import bound

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1}
LARGEST = 1 << 31  # of a size of a model's shape
FP4_BYTES = {"float4_e2m1": 0.5}  # 4 bits a value; the scales of a block are not counted
KV_BYTES = {**DTYPE_BYTES, **FP4_BYTES}  # a cache in 4 bits has costs, but no codec here
WEIGHT_BYTES = {
    **KV_BYTES,
    "fp8_block": 1 + 4 / 128**2,  # 8 bits for each weight, and one 32-bit scale for 128 x 128 weights
    "mxfp4": 17 / 32,  # 4 bits for each weight, and one 8-bit scale for 32 weights
    "nvfp4": 9 / 16,  # 4 bits for each weight, and one 8-bit scale for 16 weights
}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The properties of a causal language model on which KV transfer and its costs depend. K and V of unequal width are not supported.

    Parameters
    ----------
    name : the model's name.
    layers, kv_heads, head_dim : number of layers, number of KV heads in a layer, and values in a head.
    dtype : type of the KV cache; a key of KV_BYTES.
    weight_dtype : type of the weights, a key of WEIGHT_BYTES; empty: `dtype`.
    hidden, heads : width of the residual stream, and number of query heads.
    parameters, active_parameters : number of all parameters, and of those that one token uses; equal in dense models. A tied embedding
        table is not counted.
    max_tokens : longest context.
    kv_kinds : 2 if K and V of one token and layer are [kv_heads, head_dim] each; 1 for multi-head latent attention, where one latent of
        head_dim values stands for both (in DeepSeek-V3: 512 values, and 64 that carry the position).
    inner, vocabulary : width of a dense MLP, and number of tokens in the vocabulary. These fields and all below serve to compute costs from
        kernel tables; 0: the model has none.
    experts, experts_active, expert_inner, shared_experts, expert_dtype : a mixture of experts: number of experts, experts per token, width
        of an expert, number of shared experts, and type of the experts' weights (empty: weight_dtype).
    dense_layers : number of layers without experts.
    query_latent, key_dim, value_dim : widths in latent attention.
    window, window_layers : tokens of the attention window, and number of layers with sliding-window or chunked attention.
    layer_windows : tokens that a query of each layer sees, itself included, 0 for all; empty if it is not known which layers have a window.
    weight_bytes : bytes of all weights, if they are not all of `weight_dtype` and `expert_dtype`.

    Raises
    ------
    ValueError : one line, if a size or dtype is impossible.
    """

    name: str
    layers: int
    kv_heads: int
    head_dim: int
    dtype: str = "bfloat16"
    hidden: int = 0
    heads: int = 0
    parameters: float = 0.0
    active_parameters: float = 0.0
    max_tokens: int = 131_072
    kv_kinds: int = 2
    inner: int = 0
    vocabulary: int = 0
    experts: int = 0
    experts_active: int = 0
    expert_inner: int = 0
    shared_experts: int = 0
    expert_dtype: str = ""
    dense_layers: int = 0
    query_latent: int = 0
    key_dim: int = 0
    value_dim: int = 0
    window: int = 0
    window_layers: int = 0
    weight_bytes: float = 0.0
    layer_windows: tuple[int, ...] = ()
    weight_dtype: str = ""

    def __post_init__(self) -> None:
        bound(self, "layers", "kv_heads", "head_dim", "max_tokens", least=1, most=LARGEST)
        bound(self, "hidden", "heads", "inner", "vocabulary", "experts", "experts_active", "expert_inner", least=0, most=LARGEST)
        bound(self, "shared_experts", "dense_layers", "query_latent", "key_dim", "value_dim", "window", least=0, most=LARGEST)
        bound(self, "parameters", "active_parameters", "weight_bytes", least=0)
        if self.kv_kinds not in (1, 2):
            raise ValueError(f"model {self.name}: kv_kinds is {self.kv_kinds}; it must be 2 (K and V) or 1 (one latent)")
        if self.dtype not in KV_BYTES:
            raise ValueError(f"model {self.name}: dtype {self.dtype} is not one of {', '.join(KV_BYTES)}")
        if self.weight_dtype and self.weight_dtype not in WEIGHT_BYTES:
            raise ValueError(f"model {self.name}: weight_dtype {self.weight_dtype} is not one of {', '.join(WEIGHT_BYTES)}")
        if self.expert_dtype and self.expert_dtype not in WEIGHT_BYTES:
            raise ValueError(f"model {self.name}: expert_dtype {self.expert_dtype} is not one of {', '.join(WEIGHT_BYTES)}")
        if not 0 <= self.window_layers <= self.layers or (self.window_layers > 0) != (self.window > 0):
            raise ValueError(f"model {self.name}: window_layers must be at most layers, and needs a window of at least 1 token")
        if self.layer_windows and (len(self.layer_windows) != self.layers or max(self.layer_windows) != self.window):
            raise ValueError(f"model {self.name}: layer_windows must name a window for each layer, the largest being window")

    @property
    def values_per_token(self) -> int:
        return self.layers * self.kv_kinds * self.kv_heads * self.head_dim

    @property
    def kv_bytes_per_token(self) -> int:
        return int(self.values_per_token * KV_BYTES[self.dtype])

    def kv_bytes(self, tokens: int) -> int:
        """Bytes of a sequence's KV. Layers with a window hold only the last tokens of the sequence."""
        if tokens <= self.window or not self.window_layers:
            return tokens * self.kv_bytes_per_token
        each = self.kv_bytes_per_token // self.layers
        return each * ((self.layers - self.window_layers) * tokens + self.window_layers * self.window)

    def first_kept(self, layer: int, tokens: int) -> int:
        """The first of a sequence's `tokens` tokens whose KV in this layer any later token sees; earlier ones need not be kept or sent."""
        window = self.layer_windows[layer] if self.layer_windows else 0
        return max(0, tokens - window + 1) if window else 0

    def part(self, first: int, stop: int) -> ModelSpec:
        """The model of some of the layers: `first` to `stop`."""
        windows = self.layer_windows[first:stop]
        largest = max(windows, default=0)
        windows = windows if largest else ()
        return replace(
            self, layers=stop - first, window=largest, window_layers=sum(window > 0 for window in windows), layer_windows=windows
        )

    @property
    def weights(self) -> str:
        """The type of the weights, of experts apart."""
        return self.weight_dtype or self.dtype

    @property
    def expert_weights(self) -> str:
        """The type of the experts' weights."""
        return self.expert_dtype or self.weights

    @property
    def dtype_of_head(self) -> str:
        """The type of the lm_head and the routers, which published checkpoints leave in 16 bits."""
        return self.weights if self.weights in DTYPE_BYTES and DTYPE_BYTES[self.weights] > 1 else "bfloat16"

    @property
    def expert_parameters(self) -> float:
        """Weights of all experts that are chosen by a router; shared experts are not among them."""
        return 3.0 * (self.layers - self.dense_layers) * self.experts * self.hidden * self.expert_inner if self.experts else 0.0

    @property
    def bytes_of_weights(self) -> float:
        if self.weight_bytes:
            return self.weight_bytes
        routed = min(self.expert_parameters, self.parameters)
        return (self.parameters - routed) * WEIGHT_BYTES[self.weights] + routed * WEIGHT_BYTES[self.expert_weights]


@dataclass(frozen=True, slots=True)
class KVLayout:
    """A block-contiguous KV pool, so that a run of adjacent blocks is one piece of memory.

    Parameters
    ----------
    model : the model whose KV the pool holds.
    blocks : number of blocks in the pool.
    block_tokens : tokens in one block.

    The shape is [block, layer, kind, kv_head, token, head_dim]; kind is K or V. Raises ValueError if a size is below 1.

    Source: FlowKV (arXiv 2504.03775), section 3.
    """

    model: ModelSpec
    blocks: int
    block_tokens: int = 16

    def __post_init__(self) -> None:
        bound(self, "blocks", "block_tokens", least=1)

    @property
    def shape(self) -> tuple[int, int, int, int, int, int]:
        model = self.model
        return (self.blocks, model.layers, model.kv_kinds, model.kv_heads, self.block_tokens, model.head_dim)

    @property
    def block_bytes(self) -> int:
        return self.block_tokens * self.model.kv_bytes_per_token

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def kept_layers(self, tokens: int) -> list[list[tuple[int, int]]]:
        """For each block of a sequence, the spans of layers (first, layer after the last) whose KV any later token sees.

        These are all layers, but in blocks before the window of some.
        """
        layers = self.model.layers
        if not self.model.layer_windows:
            return [[(0, layers)]] * self.blocks_for(tokens)
        first = [self.model.first_kept(layer, tokens) for layer in range(layers)]
        found: dict[tuple[bool, ...], list[tuple[int, int]]] = {}
        blocks = []
        for end in range(self.block_tokens, self.blocks_for(tokens) * self.block_tokens + 1, self.block_tokens):
            kept = tuple(each < end for each in first)
            if kept not in found:
                edges = [layer for layer in range(layers + 1) if (layer > 0 and kept[layer - 1]) != (layer < layers and kept[layer])]
                found[kept] = list(zip(edges[::2], edges[1::2], strict=True))
            blocks.append(found[kept])
        return blocks

    def kept_bytes(self, tokens: int, first: int = 0, stop: int | None = None) -> int:
        """Bytes of the KV of kept_layers, in whole blocks, of the layers `first` to `stop`: what a raw transfer sends."""
        stop = self.model.layers if stop is None else stop
        kept = sum(max(0, min(b, stop) - max(a, first)) for spans in self.kept_layers(tokens) for a, b in spans)
        return kept * self.block_bytes // self.model.layers
