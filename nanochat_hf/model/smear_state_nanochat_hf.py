"""Where the model finds each token's predecessor, which smear mixes in: in a cache, or in the paged cache.

A cache of `generate` keeps the last token's normed embedding. The paged cache of continuous batching keeps the ids of
all tokens. Either stands in one more layer behind the model's own, so that whatever is done to a cache (reorder, crop,
fork, share, offload) is done to this state too. This file travels to the Hub beside the checkpoint.

Shapes: B batch, T tokens, C hidden_size, V vocab_size.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from transformers.cache_utils import Cache, DynamicSlidingWindowLayer, StaticCache, StaticSlidingWindowLayer
from transformers.configuration_utils import PreTrainedConfig

# Engines that load models through transformers and put their own paged attention in. They name it in the configuration
# (`attn_implementation`) and pass its layers to `forward`. Their memory holds keys and values, not smear's state.
PAGED_ENGINES = {"vllm": "vLLM", "vllm_mla": "vLLM", "sglang": "SGLang", "tgi": "text-generation-inference"}
LAYERS_OF_ENGINES = "attention_instances"


def check_engine(attn_implementation: str | None, kwargs: dict[str, Any] | None = None) -> None:
    """Refuses to run smear inside an engine that would lose the token before each step's first one.

    Args:
        attn_implementation: name of the attention function in the configuration.
        kwargs: what `forward` was given beside the model's own arguments.

    Raises:
        ValueError: it is such an engine.
    """
    engine = PAGED_ENGINES.get(attn_implementation or "")
    if engine is None and kwargs and LAYERS_OF_ENGINES in kwargs:
        engine = "this engine"
    if engine is not None:
        raise ValueError(
            f"{engine} cannot run this model: it mixes the previous token into each token (smear), and {engine} keeps "
            "no more than keys and values, so its answers would be wrong. Use `nanochat-hf serve`, or transformers' "
            "generate and continuous batching; or train a model of the classic preset, which has no smear"
        )


def previous_states(x: torch.Tensor, past_key_values: Cache, layer_idx: int) -> torch.Tensor:
    """Returns each token's predecessor [B, T, C]; the first one comes from the cache, into which the last token goes.

    The state is a stock key/value layer of window two. A cache without that layer gets it here.

    Args:
        x: [B, T, C] normed embeddings of the new tokens.
        past_key_values: any cache of transformers but the paged one.
        layer_idx: number of the state's layer, that is of the model's own layers.
    """
    if len(past_key_values.layers) <= layer_idx:
        _add_state_layer(past_key_values, layer_idx)
    keys = x.unsqueeze(1)  # [B, 1, T, C]
    states, _ = past_key_values.update(keys, keys[..., :0], layer_idx)
    states, tokens = states.squeeze(1), x.shape[1]
    if states.shape[1] > tokens:  # the last T + 1 states are the cached one and the new ones
        return states[:, -tokens - 1 : -1]
    return F.pad(states[:, :-1], (0, 0, 1, 0))


def _add_state_layer(past_key_values: Cache, layer_idx: int) -> None:
    layers = past_key_values.layers
    while len(layers) < layer_idx:  # a cache that was made without a configuration grows its layers on first use
        layers.append(past_key_values.layer_class_to_replicate())
    if isinstance(past_key_values, StaticCache):
        layers.append(StaticSlidingWindowLayer(max_cache_len=2, sliding_window=2))
    else:
        layers.append(DynamicSlidingWindowLayer(sliding_window=2))
        # A cache that is rolled back (assisted generation) keeps its past. Only sliding layers tell whether it is one.
        # Where there are none, the past is kept: one state per token, beside the keys and values of all layers.
        telling = [index for index in range(layer_idx) if hasattr(layers[index], "activate_past_recording")]
        if not telling or any(past_key_values.is_recording_past(index) for index in telling):
            layers[-1].activate_past_recording()


def paged_previous_tokens(input_ids: torch.Tensor, layer_idx: int, kwargs: dict[str, Any]) -> torch.Tensor:
    """Returns the id before each token [1, T], in the one row that continuous batching makes of many requests.

    Smear sees no more of the past than one embedding, so ids are all the past it needs. An id is kept as digits of
    base 256, which bfloat16 holds exactly, in the keys and values of one more layer of the paged cache.

    Args:
        input_ids: [1, T]; the tokens of all requests, end to end.
        layer_idx: number of the state's layer.
        kwargs: the engine's arguments: `cache`, where each request begins in the queries (`cu_seq_lens_q`) and in the
            keys (`cu_seq_lens_k`), and where the cache is read and written.

    Returns:
        Ids [1, T]; meaningless where a request begins (position 0).
    """
    cache, places = kwargs["cache"], dict(kwargs)  # the cache writes into the dictionary
    allocator = cache.layer_to_allocator[layer_idx]
    keys = torch.zeros(
        (1, allocator.num_key_value_heads, input_ids.shape[1], allocator.head_dim),
        dtype=cache.dtype,
        device=input_ids.device,
    )
    values = keys.clone()
    keys[:, 0, :, 0], keys[:, 0, :, 1] = input_ids % 256, input_ids // 256 % 256
    values[:, 0, :, 0] = input_ids // 65536
    keys, values = cache.update(keys, values, layer_idx, places)
    tokens = keys[:, 0, :, 0].long() + 256 * keys[:, 0, :, 1].long() + 65536 * values[:, 0, :, 0].long()  # [1, keys]
    queries_end, keys_end = kwargs["cu_seq_lens_q"][1:], places["cu_seq_lens_k"][1:]
    index = torch.arange(input_ids.shape[1], device=input_ids.device)
    request = torch.searchsorted(queries_end, index, right=True).clamp(max=queries_end.shape[0] - 1)
    before = keys_end[request] - queries_end[request] + index - 1
    return tokens[:, before.clamp(0, tokens.shape[1] - 1)]


def give_state_layer(manager: Any, model: Any) -> None:
    """Makes a manager of continuous batching build its paged cache with the state's layer.

    transformers sizes the paged cache by the model's configuration and has no public hook for more layers, so the
    configuration has one more layer while the cache is built. Kernels that write the cache themselves (block tables)
    would not write that layer, so they are turned off.

    Args:
        manager: transformers' `ContinuousBatchingManager`.
        model: the model it belongs to.
    """
    if "_create_batch_processor" in vars(manager):  # transformers keeps the manager of an earlier call
        return
    manager.continuous_batching_config.max_blocks_per_request = 0
    create = manager._create_batch_processor

    def create_with_state_layer() -> Any:
        config = model.config
        model.config = _with_state_layer(config)
        try:
            return create()
        finally:
            model.config = config

    manager._create_batch_processor = create_with_state_layer


def _with_state_layer(config: PreTrainedConfig) -> PreTrainedConfig:
    config = copy.deepcopy(config)
    kind = "sliding_attention" if "sliding_attention" in config.layer_types else "full_attention"
    config.layer_types = [*config.layer_types, kind]
    config.num_hidden_layers += 1
    return config
