"""The networks that read sequences."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmeta import models
from jmeta.functional.memory import access, empty_memory

KEY = jax.random.key(0)


def built(model, tokens):
    params, state = jax.jit(model.init)(KEY, tokens)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)  # biases start at zero
    return params, state, jax.jit(model.apply)


def softmax(x):
    return np.exp(x) / np.exp(x).sum()


@pytest.mark.parametrize("length", [1, 5])  # shorter and longer than the convolutions reach
def test_snail_is_the_papers_network_token_by_token_with_each_query_the_last(x64, length):
    prompt, queries = jax.random.normal(KEY, (length, 3)), jax.random.normal(jax.random.key(1), (4, 3))
    model = models.snail(2, filters=2, attention=[(4, 2), (3, 2)], length=4)
    params, state, apply = built(model, (queries, prompt, jnp.ones(length)))
    outputs, _ = apply(params, state, (queries, prompt, jnp.ones(length)))
    for query, output in zip(np.asarray(queries), outputs, strict=True):
        expected = snail_of_the_paper(params, np.concatenate([prompt, query[None]]))
        np.testing.assert_allclose(output, expected[-1], rtol=1e-10, atol=1e-12)

    padded = jnp.concatenate([jnp.full((2, 3), 7.0), prompt]), jnp.concatenate([jnp.zeros(2), jnp.ones(length)])
    np.testing.assert_allclose(apply(params, state, (queries, *padded))[0], outputs, rtol=1e-10, atol=1e-12)


def snail_of_the_paper(params, tokens):
    """In NumPy: two attentions, with two convolutions of dilations 1 and 2 between them."""

    layers = iter([params[f"Dense_{number}"] for number in range(8)])

    def affine(layer, x):
        return x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])

    def attend(x):
        query, key, value = (affine(next(layers), x) for _ in range(3))
        reads = [softmax(key[: t + 1] @ query[t] / query.shape[1] ** 0.5) @ value[: t + 1] for t in range(len(x))]
        return np.concatenate([x, reads], axis=1)

    def convolve(x, dilation):
        layer = next(layers)
        rows = []
        for t in range(len(x)):
            before = x[t - dilation] if t >= dilation else np.zeros(x.shape[1])
            hidden = affine(layer, np.concatenate([before, x[t]]))
            rows.append(np.tanh(hidden[:2]) / (1 + np.exp(-hidden[2:])))
        return np.concatenate([x, rows], axis=1)

    return affine(params["head"], attend(convolve(convolve(attend(tokens), 1), 2)))


@pytest.mark.parametrize(("length", "layers"), [(2, 1), (6, 3), (8, 3), (26, 5)])
def test_a_stack_of_convolutions_spans_the_length(length, layers):
    model = models.snail(2, filters=2, attention=[(2, 2), (2, 2)], length=length)
    params, _ = jax.eval_shape(model.init, KEY, (jnp.ones((1, 4)), jnp.ones((3, 4)), jnp.ones(3)))
    assert len(params) == 3 + layers + 3 + 1
    assert 2**layers >= length > 2 ** (layers - 1)


def test_a_transformer_sees_a_set_and_a_query_no_other(x64):
    prompt, queries = jax.random.normal(KEY, (5, 3)), jax.random.normal(jax.random.key(1), (4, 3))
    model = models.transformer(2, width=8, depth=2, heads=2)
    params, state, apply = built(model, (queries, prompt, jnp.ones(5)))

    def outputs(queries, prompt, mask):
        return apply(params, state, (queries, prompt, mask))[0]

    found = outputs(queries, prompt, jnp.ones(5))
    np.testing.assert_allclose(
        outputs(queries, prompt[jnp.array([3, 1, 4, 0, 2])], jnp.ones(5)), found, rtol=1e-10, atol=1e-12
    )
    np.testing.assert_allclose(outputs(queries[2:3], prompt, jnp.ones(5)), found[2:3], rtol=1e-10, atol=1e-12)
    some = outputs(queries, prompt, jnp.array([0, 1, 1, 0, 1]))
    np.testing.assert_allclose(
        some, outputs(queries, prompt[jnp.array([1, 2, 4])], jnp.ones(3)), rtol=1e-10, atol=1e-12
    )


def test_mann_writes_the_key_of_the_token_before_and_what_it_makes_of_this_one(x64):
    tokens = jax.random.normal(KEY, (4, 5))
    model = models.mann(2, controller=5, slots=4, width=3, heads=2, decay=0.9)
    params, start, apply = built(model, tokens)
    outputs, _ = apply(params, start, tokens)

    layers, head = jax.tree.map(np.asarray, (params["ScanAccess_0"], params["head"]))
    cell = layers["OptimizedLSTMCell_0"]

    def affine(layer, x):
        return x @ layer["kernel"] + layer.get("bias", 0.0)

    def logistic(x):
        return 1 / (1 + np.exp(-x))

    held = hidden = np.zeros(5)
    memory, read, expected = empty_memory(4, 3, 2), np.zeros((2, 3)), []
    for token in np.asarray(tokens):
        x = affine(layers["target"], token[:2]) + affine(layers["features"], token[2:])
        x, before = np.concatenate([x, read.reshape(-1)]), hidden
        i, f, g, o = (affine(cell[f"i{gate}"], x) + affine(cell[f"h{gate}"], hidden) for gate in "ifgo")
        held = logistic(f) * held + logistic(i) * np.tanh(g)
        hidden = logistic(o) * np.tanh(held)
        written = np.tanh(affine(layers["keys"], before) + affine(layers["content"], hidden))
        keys = np.tanh(affine(layers["keys"], hidden))
        strengths = 1 + np.log1p(np.exp(8 + affine(layers["strengths"], hidden)))
        gates = logistic(affine(layers["gates"], hidden))
        read, memory = access(memory, written.reshape(2, 3), keys.reshape(2, 3), strengths, gates, decay=0.9)
        expected.append(affine(head, np.concatenate([hidden, np.asarray(read).reshape(-1)])))
    np.testing.assert_allclose(outputs, expected, rtol=1e-10, atol=1e-12)


def test_mann_stops_and_goes_on_where_it_was(x64):
    tokens = jax.random.normal(KEY, (6, 3))
    model = models.mann(2, controller=5, slots=4, width=3, heads=2)
    params, start, apply = built(model, tokens)
    outputs, end = apply(params, start, tokens)
    first, carry = apply(params, start, tokens[:4])
    last, after = apply(params, carry, tokens[4:])
    np.testing.assert_allclose(jnp.concatenate([first, last]), outputs, rtol=1e-10, atol=1e-12)
    chex.assert_trees_all_close(after, end, rtol=1e-10, atol=1e-12)
    _, skipped = apply(params, start, tokens, mask=jnp.array([1, 1, 1, 1, 0, 0]))
    chex.assert_trees_all_close(skipped, carry, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        (models.transformer, {"depth": 0}, "depth is 0"),
        (models.transformer, {"width": 6, "heads": 4}, "heads is 4; it must divide the width, 6"),
        (models.snail, {"attention": []}, "attention is empty"),
        (models.snail, {"length": 1}, "length is 1"),
        (models.snail, {"filters": 0}, "filters is 0"),
        (models.snail, {"attention": ((64, 0),)}, r"attention is \(\(64, 0\),\); a layer's width"),
        (models.mlp, {"hidden": (40, 0)}, r"hidden is \(40, 0\); a layer's width"),
        (models.mann, {"slots": 2}, "slots is 2; it must be at least the number of heads, 4"),
        (models.mann, {"decay": 1.5}, "decay is 1.5"),
    ],
)
def test_refuses_what_no_network_can_be(factory, options, message):
    with pytest.raises(ValueError, match=message):
        factory(outputs=5, **options)
