"""Attention to a prompt, by its own tokens and by queries that do not see each other."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jmeta.types import Array


def prompt_attention(query: Array, key: Array, value: Array, *, seen: Array, real: Array) -> Array:
    """Attention of the tokens of a prompt among themselves, and of each query to the prompt and itself.

    Args:
        query: [K + Q, heads, D], with the prompt's first.
        key: [K + Q, heads, D].
        value: [K + Q, heads, D].
        seen: [K, K], which tokens of the prompt each token of the prompt (row) may see.
        real: [K], which tokens of the prompt are seen at all; every token sees itself.

    Returns:
        [K + Q, heads, D]. Nothing passes from one query to another.
    """
    length = len(real)
    prompt_keys, prompt_values = key[:length], value[:length]
    seen = seen & real[None] | jnp.eye(length, dtype=bool)
    of_prompt = nn.dot_product_attention(query[:length], prompt_keys, prompt_values, mask=seen[None])
    mask = jnp.concatenate([real, jnp.ones(1, bool)])[None, None]

    def of_query(query, key, value):
        keys, values = (jnp.concatenate(pair) for pair in ((prompt_keys, key[None]), (prompt_values, value[None])))
        return nn.dot_product_attention(query[None], keys, values, mask=mask)[0]

    return jnp.concatenate([of_prompt, jax.vmap(of_query)(query[length:], key[length:], value[length:])])
