"""The start of a short run, third part: attention heads that look at what came before.

After the fits of `bigrams` and `trigrams` a model knows what follows the last tokens, but not what stood further back.
Induction heads (Olsson et al., arXiv:2209.11895) do: after "Mr. Darcy … Mr." they expect "Darcy". Training finds them
only after far more tokens than a short run has. Here their weights are written down:

1. A previous-token head in the first layer attends one token back, whatever stands there, and writes a code of that
   token into channels of its own.
2. Induction heads in the last layer attend to places whose previous token has the code of the current token, and raise
   the logit of the token at that place.

All weights are trained afterwards like any others.
"""

from typing import Any

import torch
import torch.nn.functional as F

from nanochat_hf.model.modeling_nanochat_hf import rotate

CODE = 28  # channels of the code of the previous token
FREE = CODE + 1  # the embedding's last channels: room for the code, and one with the same value for all tokens
LARGEST_SHARE = 1 / 4  # of the embedding that may be left free
HEADS = 2  # induction heads, at most; more gain nothing
DECAY = 0.75  # share of each rotary frequency in the previous-token head, of the share of the next faster one
SLOW = 1 / 400  # radians per token: slower rotary frequencies compare tokens at any distance
SIZE = 4.0  # of written queries and keys. A norm follows them; large weights keep their direction longer
STRENGTH = 10.0  # how much an induction head raises the logit of a token that has all of its attention
VALUE_STD = 0.1  # of written value embeddings, about that of new ones
VALUE_GATE = 1.5  # the factor on value embeddings in a new model, 3 · sigmoid(0)
RIDGE = 0.03  # of the mean variance, added to the variance of each direction that is whitened
SHORTEST = 1.0  # squared length of a token's code, in means: the logits of tokens with shorter codes rise less


def number_of_heads(config: Any) -> int:
    """Returns how many induction heads a model can begin with; 0 where it is too small or has another architecture.

    Args:
        config: a `NanochatHFConfig`.
    """
    channels = torch.arange(0, config.head_dim, 2)
    slow = config.rope_parameters["rope_theta"] ** (-channels / config.head_dim) < SLOW
    fits = (
        config.value_embeddings
        and config.num_hidden_layers > 1
        and config.num_key_value_heads == config.num_attention_heads
        and 2 * int(slow.sum()) >= CODE
        and FREE <= LARGEST_SHARE * config.hidden_size
    )
    return min(HEADS, config.num_attention_heads // 2) if fits else 0


@torch.no_grad()
def write_heads(model: Any, frequencies: torch.Tensor, heads: int = HEADS) -> None:
    """Writes a previous-token head and induction heads into a new model.

    Args:
        model: a new `NanochatHFForCausalLM` whose embedding and head are fitted to bigrams without the last `FREE`
            channels. There the embedding is 0, and 1 in the last one.
        frequencies: how often each token occurs, of any scale, [vocab].
        heads: number of induction heads.
    """
    base, width, size = model.model, model.config.hidden_size, model.config.head_dim
    code = slice(width - FREE, width - 1)
    weights = (frequencies.float().cpu() / frequencies.sum().item() + 1e-6).sqrt()
    weights /= weights.sum()
    coder = _coder(F.rms_norm(base.embed_tokens.weight.float().cpu(), (width,)), weights)
    angles = base.rotary_emb.inv_freq.float().cpu()

    query, key = one_token_back(base)
    value, output = (torch.zeros(size, width) for _ in range(2))
    value[:CODE] = coder
    output[:CODE, code] = torch.eye(CODE)
    write_head(base, 0, 0, query, key, value, output)

    query, key, value, output = (torch.zeros(size, width) for _ in range(4))
    slow = torch.arange(size // 2)[angles < SLOW][-CODE // 2 :]
    compared = torch.cat([slow, slow + size // 2])
    query[compared] = coder
    key[compared, code] = torch.eye(CODE)
    fitted = model.get_output_embeddings().weight.float().cpu()[:, : width - FREE]
    tokens, directions = _logit_codes(fitted, weights, rank=heads * size)
    scale = VALUE_STD / tokens.std()
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        output[:, : width - FREE] = directions[:, part].T * (STRENGTH / VALUE_GATE / scale)
        write_head(base, len(base.layers) - 1, head, query, key, value, output, tokens[:, part] * scale)


def one_token_back(base: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns queries and keys [head_dim, width] of a head that looks one token back, whatever stands there.

    The key is the query turned by one position: turned by their positions, the two agree one token apart.
    """
    width, size, angles = base.config.hidden_size, base.config.head_dim, base.rotary_emb.inv_freq.float().cpu()
    query, key = torch.zeros(size, width), torch.zeros(size, width)
    query[: size // 2, -1] = DECAY ** (torch.arange(size // 2) / 2)
    key[:, -1] = rotate(query[:, -1], angles.cos(), angles.sin())
    return query, key


@torch.no_grad()
def write_head(
    base: Any,
    layer: int,
    head: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    tokens: torch.Tensor | None = None,
) -> None:
    """Overwrites an attention head: matrices [head_dim, width] and value embeddings [vocab, head_dim], None for 0."""
    attention, rows = base.layers[layer].self_attn, slice(head * len(query), (head + 1) * len(query))
    for weight, written in (
        (attention.q_proj.weight, SIZE * query),
        (attention.k_proj.weight, SIZE * key),
        (attention.v_proj.weight, value),
        (attention.o_proj.weight.T, output),
    ):
        weight[rows] = written.to(weight)
    if str(layer) in base.value_embeds:
        table = base.value_embeds[str(layer)].weight
        table[:, rows] = 0.0 if tokens is None else tokens.to(table)


def _coder(states: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Returns the linear map from embeddings to codes, [CODE, width]: random directions of the whitened embedding.

    Args:
        states: normed embeddings, [vocab, width].
        weights: of the tokens, [vocab].
    """
    fitted = states[:, :-FREE]
    mean = weights @ fitted
    variances, directions = torch.linalg.eigh((weights[:, None] * (fitted - mean)).T @ (fitted - mean))
    whitening = directions * (variances + RIDGE * variances.mean()).rsqrt() @ directions.T
    drawn = torch.randn(len(mean), CODE, generator=torch.Generator().manual_seed(0))
    chosen = torch.linalg.qr(drawn).Q.T @ whitening
    coder = torch.zeros(CODE, states.shape[1])
    coder[:, :-FREE] = chosen
    coder[:, -1] = -chosen @ mean / (weights @ states[:, -1])  # the constant channel subtracts the mean
    return coder / (states @ coder.T).std()


def _logit_codes(head: torch.Tensor, weights: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns codes of the tokens, and directions so that head · directions · code raises that token's logit by 1.

    The codes are the head's rows in its `rank` largest directions, whitened, so other logits rise little.

    Args:
        head: [vocab, channels].
        weights: of the tokens, [vocab].
        rank: length of a code, at most the number of channels.

    Returns:
        Codes [vocab, rank] and directions [channels, rank].
    """
    centered = head - weights @ head
    variances, vectors = torch.linalg.eigh((weights[:, None] * centered).T @ centered)
    directions = vectors[:, -rank:] / (variances[-rank:] + RIDGE * variances.mean()).sqrt()
    codes = centered @ directions
    lengths = codes.square().sum(1, keepdim=True)
    return codes / lengths.clamp_min(SHORTEST * rank), directions
