"""The built-in networks and the adapters."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jmeta import models
from jmeta.functional import conv, max_pool
from jmeta.models.layers import Dense, Normalise, NORMS
from jmeta.types import Normalisation, normalisations

KEY = jax.random.key(0)


def built(model, inputs):
    params, state = jax.jit(model.init)(KEY, inputs)
    return params, state, jax.jit(model.apply, static_argnames="train")


@pytest.mark.parametrize("size", [(28, 28, 1), (9, 6, 3)])
@pytest.mark.parametrize("strided", [False, True])
def test_conv4_takes_images_of_any_size_and_channels(size, strided):
    model, images = models.conv4(outputs=5, width=4, strided=strided), jnp.ones((2, *size))
    outputs, _ = jax.eval_shape(lambda: model.apply(*model.init(KEY, images), images))
    assert outputs.shape == (2, 5)


@pytest.mark.parametrize("factory", [models.mlp, models.conv4, models.resnet12])
def test_networks_take_numpys_inputs_of_double_precision_in_that_of_jax(factory):
    """A warning of JAX would be an error here."""
    model, images = factory(), np.ones((2, 9, 9, 3))
    features, _ = jax.eval_shape(lambda: model.apply(*model.init(KEY, images), images))
    assert features.dtype == jnp.float32


@pytest.mark.parametrize("hidden", [range(4, 6), np.array([4, 5]), [4, 5]])
def test_widths_may_be_any_sequence(hidden):
    params, _ = jax.eval_shape(lambda: models.mlp(hidden=hidden).init(KEY, jnp.ones((2, 3))))
    assert [params[f"Dense_{i}"]["kernel"].shape for i in range(2)] == [(3, 4), (4, 5)]


def test_a_conv4_as_an_accelerator_would_run_it_has_the_same_gradient(x64, as_an_accelerator_would):
    model = models.conv4(outputs=3, width=10)  # more filters than terms: on a CPU moments are those of the images
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
    params, state = model.init(jax.random.key(0), images)

    def slope(params):
        return jax.grad(lambda params: jnp.sin(model.apply(params, state, images)[0]).sum())(params)

    found, expected = as_an_accelerator_would(slope, params), jax.jit(slope)(params)
    chex.assert_trees_all_close(found, expected, rtol=1e-10, atol=1e-10)


def test_a_conv4_encoder_of_omniglot_images_has_64_features():
    model, images = models.conv4(), jnp.ones((1, 28, 28, 1))
    features, _ = jax.eval_shape(lambda: model.apply(*model.init(KEY, images), images))
    assert features.shape == (1, 64)


def test_resnet12_is_metaoptnets():
    images = jnp.ones((1, 16, 16, 3))
    params, _ = jax.eval_shape(models.resnet12().init, KEY, images)
    kernels = [leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params) if path[-1].key == "kernel"]
    assert len(kernels) == 16  # three convolutions and a shortcut in each of four blocks
    assert {shape[-1] for shape in kernels} == {64, 160, 320, 640}
    outputs, _ = jax.eval_shape(models.resnet12(outputs=5).apply, *_with_head(images), images)
    assert outputs.shape == (1, 5)


def _with_head(images):
    return jax.eval_shape(models.resnet12(outputs=5).init, KEY, images)


def test_resnet12_takes_images_that_are_one_pixel_before_the_last_block():
    images = jax.random.normal(KEY, (2, 8, 8, 1))
    params, state, apply = built(models.resnet12(widths=(2, 3, 4, 5)), images)
    outputs, _ = apply(params, state, images)
    assert outputs.shape == (2, 5)
    assert np.isfinite(outputs).all()


def test_a_block_of_resnet12_is_three_convolutions_a_shortcut_and_a_pool(x64):
    images = jax.random.normal(KEY, (2, 5, 4, 3))
    params, state, apply = built(models.resnet12(widths=(2,), norm="none"), images)
    kernels = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params) if path[-1].key == "kernel"]
    convolve = functools.partial(
        jax.lax.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    leaky = functools.partial(jax.nn.leaky_relu, negative_slope=0.1)
    (*path, last), (shortcut,) = ([kernel for kernel in kernels if kernel.shape[0] == size] for size in (3, 1))
    y = images
    for kernel in path:
        y = leaky(convolve(y, kernel))
    y = leaky(convolve(y, last) + convolve(images, shortcut))
    pooled = y[:, :4].reshape(2, 2, 2, 2, 2, 2).max((2, 4))
    np.testing.assert_allclose(apply(params, state, images)[0], pooled.mean((1, 2)), rtol=1e-10)


@pytest.mark.parametrize("use_bias", [False, True])
def test_a_dense_layer_is_flaxs_in_names_initial_values_and_outputs(x64, use_bias):
    inputs = jax.random.normal(KEY, (2, 4, 3))
    layers = Dense(5, use_bias=use_bias), nn.Dense(5, use_bias=use_bias, param_dtype=jnp.float64)
    (ours, params), (theirs, expected) = (layer.init_with_output(KEY, inputs) for layer in layers)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_every_norm_policy_is_named_in_the_state_and_normalises(norm):
    inputs = 10 + 3 * jax.random.normal(KEY, (32, 6))
    params, state, apply = built(models.mlp(hidden=(16,), outputs=None, norm=norm), inputs)
    assert state["normalisation policy"] == Normalisation(norm)
    features, _ = apply(params, state, inputs, train=True)
    assert (float(features.std()) < 1) == (norm != "none")
    assert float(features.std(0).max()) > 0.1  # what is left tells the inputs apart


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_a_layer_before_a_normalisation_of_each_example_keeps_its_bias(norm):
    """Without it a network would not see the size of a number, but its sign alone."""
    inputs = jnp.array([[1.0], [3.0]])
    params, state, apply = built(models.mlp(hidden=(16,), outputs=None, norm=norm), inputs)
    assert params["Dense_0"]["bias"].shape == (16,)
    params["Dense_0"]["bias"] += jnp.linspace(-1, 1, 16)
    one, three = apply(params, state, inputs)[0]
    assert float(jnp.abs(one - three).max()) > 0.1


@pytest.mark.parametrize(("channels", "groups"), [(8, 1), (20, 2), (64, 8), (512, 32)])
def test_a_group_has_at_least_eight_channels(channels, groups):
    images = jax.random.normal(KEY, (1, 2, 2, channels))
    normalised, _ = Normalise("group").init_with_output(KEY, images)
    parts = normalised.reshape(4, groups, -1)
    np.testing.assert_allclose(parts.mean((0, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(parts.var((0, 2)), 1, atol=1e-3)


@pytest.mark.parametrize(("norm", "train"), [("batch", True), ("running", True), ("running", False)])
def test_pooling_within_a_normalisation_by_channel_is_pooling_after_it(x64, norm, train):
    keys = iter(jax.random.split(KEY, 6))
    images, mask = jax.random.normal(next(keys), (3, 5, 6, 4)), jnp.array([1.0, 1, 0])
    variables = Normalise(norm).init(KEY, images)
    # Two tasks with scales of both signs: where one is negative, the largest pixel becomes the smallest.
    params = jax.tree.map(lambda leaf: jax.random.normal(next(keys), (2, *leaf.shape)), variables["params"])
    at = params, images
    direction = jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape), at)

    def derivatives(pool):
        """Value, running statistics, gradients and a Hessian-vector product."""

        def task(params, images):
            layer, given = Normalise(norm, pool=pool), {**variables, "params": params}
            outputs, state = layer.apply(given, images, train=train, mask=mask, mutable=["batch_stats"])
            return jnp.sin(outputs if pool else max_pool(outputs)).sum(), state

        def total(params, images):
            values, state = jax.vmap(task, (0, None))(params, images)
            return values.sum(), state

        gradient = jax.grad(total, argnums=(0, 1), has_aux=True)
        return total(*at), jax.jvp(lambda *at: gradient(*at)[0], at, direction)

    results = [jax.jit(lambda pool=pool: derivatives(pool))() for pool in (True, False)]
    chex.assert_trees_all_close(*results, rtol=1e-10, atol=1e-10)


def test_a_scale_of_zero_before_a_pooling_has_the_derivative_from_above(x64):
    images, layer = jax.random.normal(KEY, (3, 4, 6, 2)), Normalise("batch", pool=True)

    @jax.jit
    def total(scale):
        return layer.apply({"params": {"scale": jnp.full(2, scale), "bias": jnp.zeros(2)}}, images).sum()

    slope = jax.grad(total)(0.0)
    np.testing.assert_allclose(total(1e-3) / 1e-3, slope, rtol=1e-12)
    assert total(-1e-3) / -1e-3 < 0 < slope


@pytest.mark.parametrize(("context", "strided"), [(0, False), (3, False), (3, True)])
def test_conv4_is_convolution_normalisation_modulation_relu_and_pooling_in_this_order(x64, context, strided):
    images = jax.random.normal(KEY, (3, 16, 17, 2))
    params, state, apply = built(models.conv4(width=4, context=context, strided=strided), images)
    # Scales of both signs, of the normalisations and of the modulation.
    params = jax.tree.map(lambda leaf: 2 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), params)

    x, params_of = images, jax.tree.map(np.asarray, params)
    for block in range(4):
        x = np.asarray(conv(x, params[f"Conv_{block}"]["kernel"], stride=2 if strided else 1))
        norm = params_of[f"Normalise_{block}"]
        x = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5) * norm["scale"] + norm["bias"]
        if context and block == 2:
            film = params_of["Modulate_0"]
            scale, shift = np.split(film["context"] @ film["Dense_0"]["kernel"] + film["Dense_0"]["bias"], 2)
            assert (1 + scale).min() < 0
            x = x * (1 + scale) + shift
        x = np.maximum(x, 0)
        x = x if strided else nn.max_pool(x, (2, 2), (2, 2))
    expected = x.mean((1, 2)) if strided else x.reshape(3, -1)
    np.testing.assert_allclose(apply(params, state, images)[0], expected, atol=1e-9)


def test_running_statistics_approach_those_of_the_data_and_are_used_in_test(x64):
    inputs = 5 + 2 * jax.random.normal(KEY, (64, 3))
    params, state, apply = built(models.mlp(hidden=(4,), outputs=None, norm="running"), inputs)
    for _ in range(200):
        trained, state = apply(params, state, inputs, train=True)
    tested, after = apply(params, state, inputs)
    np.testing.assert_allclose(tested, trained, atol=1e-6)
    alone, _ = apply(params, state, inputs[:1])
    np.testing.assert_allclose(alone, tested[:1], rtol=1e-10, atol=1e-12)
    jax.tree.map(np.testing.assert_array_equal, after, state)


@pytest.mark.parametrize(
    "model",
    [models.conv4(width=4), models.conv4(width=4, norm="running"), models.resnet12(widths=(3,))],
    ids=["conv4", "conv4, running", "resnet12"],
)
def test_padding_does_not_reach_batch_statistics(x64, model):
    images = jax.random.normal(KEY, (3, 8, 8, 1))
    params, state, apply = built(model, images)
    padded = jnp.concatenate([images, jnp.full((2, 8, 8, 1), 9.0)])
    mask = jnp.array([1.0, 1, 1, 0, 0])
    outputs, after = apply(params, state, padded, train=True, mask=mask)
    expected, expected_after = apply(params, state, images, train=True)
    np.testing.assert_allclose(outputs[:3], expected, rtol=1e-10, atol=1e-12)
    chex.assert_trees_all_close(after, expected_after, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("factory", [models.mlp, models.conv4, models.resnet12])
def test_an_unknown_norm_is_refused(factory):
    with pytest.raises(ValueError, match="norm is 'instance'; it must be one of batch, running"):
        factory(norm="instance")


def test_a_linen_module_with_dropout_gets_its_key():
    class Dropped(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return nn.Dropout(0.5, deterministic=not train)(x)

    model = models.from_linen(Dropped())
    params, state = model.init(KEY, jnp.ones((2, 50)))
    assert (model.apply(params, state, jnp.ones((2, 50)))[0] == 1).all()
    assert (model.apply(params, state, jnp.ones((2, 50)), train=True, key=KEY)[0] == 0).any()


def test_a_linen_module_that_takes_any_keyword_is_told_of_training_and_padding():
    class Telling(nn.Module):
        @nn.compact
        def __call__(self, x, **told):
            return x * told["train"] * (1 if told["mask"] is None else told["mask"][:, None])

    model = models.from_linen(Telling())
    params, state = model.init(KEY, jnp.ones((2, 3)))
    outputs, _ = model.apply(params, state, jnp.ones((2, 3)), train=True, mask=jnp.array([1.0, 0.0]))
    np.testing.assert_array_equal(outputs[:, 0], [1, 0])


@pytest.mark.parametrize("train", [True, False])
def test_statistics_of_the_set_at_hand_may_be_a_modules_own_choice(train):
    model, inputs = models.from_linen(nn.BatchNorm(use_running_average=False)), jnp.array([[1.0], [3.0]])
    params, state = model.init(KEY, inputs)
    outputs, after = model.apply(params, state, inputs, train=train)
    np.testing.assert_allclose(outputs, [[-1], [1]], rtol=1e-4)
    assert jnp.array_equal(*(of["batch_stats"]["mean"] for of in (state, after))) is not train


@pytest.mark.parametrize("module", [nn.Dense, nnx.Linear(4, 3, rngs=nnx.Rngs(0))], ids=["class", "nnx"])
def test_what_is_no_linen_module_is_refused(module):
    with pytest.raises(ValueError, match=r"module is (Dense|Linear); it must be a Linen module with its sizes"):
        models.from_linen(module)


def test_images_too_small_to_be_halved_keep_their_size_in_a_relation_encoder():
    model, images = models.relation_encoder(width=2), jnp.ones((2, 3, 3, 1))
    params, state = model.init(KEY, images)
    assert model.apply(params, state, images)[0].shape == (2, 1, 1, 2)


def test_a_linen_sequence_of_layers_is_a_model():
    model = models.from_linen(nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)]))
    params, state = model.init(KEY, jnp.ones((3, 5)))
    assert model.apply(params, state, jnp.ones((3, 5)), train=True, mask=jnp.ones(3))[0].shape == (3, 2)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.BatchNorm(use_running_average=not train)(x)


@pytest.mark.parametrize(
    "module",
    [nn.Sequential([Block(), nn.relu]), nn.jit(Block, static_argnames="train")()],
    ids=["sequence", "lifted"],
)
def test_a_module_within_one_of_linens_own_is_told_of_training(module):
    model = models.from_linen(module)
    params, state = model.init(KEY, jnp.ones((3, 5)))
    _, after = model.apply(params, state, jnp.ones((3, 5)), train=True)
    assert not jnp.array_equal(*(jax.tree.leaves(of)[0] for of in (state, after)))


class OwnNorm(nn.LayerNorm):
    pass


@pytest.mark.parametrize(
    "module",
    [
        nn.LayerNorm(),
        nn.Sequential([nn.LayerNorm(), nn.Dense(3)]),
        nn.Sequential([nn.Sequential([nn.Dense(3), nn.relu]), nn.Dense(3)]),
        nn.WeightNorm(nn.Dense(3)),
        OwnNorm(),
    ],
    ids=["norm", "norm first", "nested", "wrapper", "subclass"],
)
def test_a_layer_of_linens_own_gets_no_keyword(module):
    """By its `mask` it would mean features."""
    model, inputs = models.from_linen(module), jax.random.normal(KEY, (3, 3))
    params, state = model.init(KEY, inputs)
    outputs, _ = model.apply(params, state, inputs)
    told, _ = model.apply(params, state, inputs, train=True, mask=jnp.array([1.0, 1, 0]))
    np.testing.assert_array_equal(told, outputs)


class Trained(nn.Module):
    @nn.compact
    def __call__(self, x, is_training=False, training=False):
        assert is_training is training
        return nn.BatchNorm(use_running_average=not training)(x)


class Deterministic(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic=True):
        return nn.Dropout(0.5, deterministic=deterministic)(x)


class Running(nn.Module):
    @nn.compact
    def __call__(self, x, use_running_average=True):
        return nn.BatchNorm(use_running_average=use_running_average)(x)


class Fixed(nn.Module):
    deterministic: bool | None = None

    @nn.compact
    def __call__(self, x, deterministic=None):
        return nn.Dropout(0.5)(x, nn.merge_param("deterministic", self.deterministic, deterministic))


class Set(nn.Module):
    train: bool | None = None

    @nn.compact
    def __call__(self, x, train=None):
        return nn.BatchNorm(use_running_average=not nn.merge_param("train", self.train, train))(x)


class Frozen(nn.Module):
    @nn.compact
    def __call__(self, x, train=False, use_running_average=True):
        return nn.BatchNorm(use_running_average=use_running_average)(x)


@pytest.mark.parametrize("network", [Fixed(True), Set(False), Frozen()])
def test_a_switch_that_is_the_modules_own_is_left_as_it_is(network):
    model, inputs = models.from_linen(network), jnp.arange(1.0, 9.0).reshape(4, 2)
    params, state = model.init(KEY, inputs)
    outputs, _ = model.apply(params, state, inputs, train=True, key=KEY)
    np.testing.assert_allclose(outputs, inputs, rtol=1e-4)


@pytest.mark.parametrize("network", [Trained, Deterministic, Running])
def test_a_linen_module_is_told_of_training_by_the_name_it_has_for_it(network):
    model, inputs = models.from_linen(network()), jnp.arange(1.0, 9.0).reshape(4, 2)
    params, state = model.init(KEY, inputs)
    np.testing.assert_allclose(model.apply(params, state, inputs)[0], inputs, rtol=1e-4)  # as statistics start
    outputs, after = model.apply(params, state, inputs, train=True, key=KEY)
    assert np.abs(outputs - inputs).max() > 0.5
    assert jax.tree.structure(after) == jax.tree.structure(state)


def test_batch_statistics_that_are_to_stay_are_taken_as_they_are():
    model = models.from_linen(nn.Sequential([nn.Dense(3), nn.BatchNorm(use_running_average=True)]))
    params, state = model.init(KEY, jnp.ones((2, 3)))
    _, after = model.apply(params, state, jnp.ones((2, 3)), train=True)
    jax.tree.map(np.testing.assert_array_equal, after, state)


def test_a_linen_module_draws_from_streams_of_any_name_and_no_two_alike():
    class Drawing(nn.Module):
        @nn.compact
        def __call__(self, x):
            return [jax.random.normal(self.make_rng(name), (3,)) for name in ("dropout", "noise", "noise", "params")]

    draws, _ = models.from_linen(Drawing()).apply({}, {}, jnp.ones(1), train=True, key=KEY)
    assert len(np.unique(draws)) == 12


def test_a_linen_module_whose_norm_is_a_layer_states_no_policy():
    class Network(nn.Module):
        norm: type = nn.LayerNorm

        @nn.compact
        def __call__(self, x):
            return self.norm()(x)

    _, state = models.from_linen(Network()).init(KEY, jnp.ones((2, 3)))
    assert normalisations(state) == ()


class NNXNetwork(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(nnx.relu(self.norm(self.hidden(x))))


class NNXTrained(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(2, rngs=rngs)

    def __call__(self, x, train=False):
        return self.norm(x, use_running_average=not train)


class NNXDeterministic(nnx.Module):
    def __init__(self, rngs):
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x, *, deterministic):
        return self.dropout(x, deterministic=deterministic)


@pytest.mark.parametrize("network", [NNXTrained, NNXDeterministic])
def test_an_nnx_module_is_told_of_training_by_the_name_it_has_for_it(network):
    model, inputs = models.from_nnx(network), jnp.arange(1.0, 9.0).reshape(4, 2)
    params, state = model.init(KEY, inputs)
    np.testing.assert_allclose(model.apply(params, state, inputs)[0], inputs, rtol=1e-4)  # as statistics start
    outputs, _ = model.apply(params, state, inputs, train=True, key=KEY)
    assert np.abs(outputs - inputs).max() > 0.5


def test_each_random_stream_of_an_nnx_module_is_seeded_by_the_key_in_its_own_way():
    class Drawing(nnx.Module):
        def __init__(self, rngs):
            self.dropouts = nnx.List([nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)])
            self.rngs = nnx.Rngs(noise=rngs())

        def __call__(self, x):
            return jnp.stack(
                [*(dropout(x) for dropout in self.dropouts), jax.random.normal(self.rngs.noise(), x.shape)]
            )

    model, inputs = models.from_nnx(Drawing), jnp.ones(50)
    draws = [model.apply({}, {}, inputs, train=True, key=jax.random.key(seed))[0] for seed in (0, 1)]
    assert len(np.unique(np.concatenate(draws), axis=0)) == 6


class NNXBlock(nnx.Module):
    def __init__(self, rngs):
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(x)


class NNXStack(nnx.Module):
    """Three layers made by one vmap and run by one scan."""

    def __init__(self, rngs):
        create = nnx.split_rngs(splits=3)(nnx.vmap(NNXBlock, in_axes=(0,), out_axes=0))
        self.blocks = create(rngs)

    def __call__(self, x):
        return nnx.scan(lambda block, x: block(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(self.blocks, x)


def test_stacked_layers_of_an_nnx_module_each_have_a_random_stream_of_their_own():
    model, inputs = models.from_nnx(NNXStack), jnp.ones(4000)
    params, state = model.init(KEY, inputs)
    left = np.asarray(model.apply(params, state, inputs, train=True, key=KEY)[0] > 0).mean()
    np.testing.assert_allclose(left, 1 / 8, atol=0.03)  # were all three the same, half would be left


def test_an_nnx_module_that_takes_a_mask_is_told_of_padding():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.BatchNorm(2, rngs=rngs)

        def __call__(self, x, mask=None):
            return self.norm(x, mask=None if mask is None else mask[:, None] > 0)

    model, mask = models.from_nnx(Network), jnp.array([1.0, 1, 0])
    params, state = model.init(KEY, jnp.ones((3, 2)))
    found = [
        model.apply(params, state, jnp.array([[1.0, 2], [3, 4], [padding] * 2]), train=True, mask=mask)
        for padding in (0.0, 100.0)
    ]
    (one, kept), (other, others) = found
    np.testing.assert_array_equal(one[:2], other[:2])
    jax.tree.map(np.testing.assert_array_equal, kept, others)


def test_an_nnx_module_that_hands_any_keyword_on_is_not_told_of_padding():
    class Forwarding(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(3, 2, rngs=rngs)

        def __call__(self, x, **options):
            return self.linear(x, **options)

    model = models.from_nnx(Forwarding)
    params, state = model.init(KEY, jnp.ones((2, 3)))
    assert model.apply(params, state, jnp.ones((2, 3)), mask=jnp.ones(2))[0].shape == (2, 2)


def test_a_module_of_flax_gets_no_mask_of_padding():
    model = models.from_nnx(lambda rngs: nnx.BatchNorm(2, rngs=rngs))
    params, state = model.init(KEY, jnp.ones((3, 2)))
    assert model.apply(params, state, jnp.ones((3, 2)), train=True, mask=jnp.ones(3))[0].shape == (3, 2)


@pytest.mark.parametrize("module", [nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nn.Dense(3)], ids=["nnx", "linen"])
def test_a_module_in_place_of_its_constructor_is_refused(module):
    with pytest.raises(ValueError, match=r"constructor is of type \w+; it must be a function from nnx\.Rngs"):
        models.from_nnx(module)


def test_an_nnx_module_is_a_pure_function():
    model = models.from_nnx(NNXNetwork)
    inputs = jax.random.normal(KEY, (16, 4))
    params, state = model.init(KEY, inputs)
    loss = jax.jit(lambda p, s: (lambda y, s: (y.sum(), s))(*model.apply(p, s, inputs, train=True, key=KEY)))
    gradient, after = jax.grad(loss, has_aux=True)(params, state)
    assert jax.tree.structure(gradient) == jax.tree.structure(params)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), after["norm"], state["norm"])
    assert all(jax.tree.leaves(moved))
    tested, unchanged = model.apply(params, after, inputs)
    assert unchanged is after
    lone, _ = model.apply(params, after, inputs[:1], key=jax.random.key(1))  # neither the others nor a draw matter
    np.testing.assert_allclose(lone, tested[:1], rtol=1e-5)


def test_an_nnx_module_states_its_normalisation_policy_too():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.norm, self.normalisation = "running", nnx.BatchNorm(2, rngs=rngs)

        def __call__(self, x):
            return self.normalisation(x)

    model = models.from_nnx(Network)
    params, state = model.init(KEY, jnp.ones((3, 2)))
    _, after = model.apply(params, state, jnp.ones((3, 2)), train=True)
    assert normalisations(state) == normalisations(after) == ("running",)


@pytest.mark.parametrize("norm", ["none", "running", "batch"])
@pytest.mark.parametrize("network", [models.mlp, *(functools.partial(models.conv4, width=width) for width in (4, 64))])
def test_no_examples_have_no_outputs(network, norm):
    model = network(outputs=2, norm=norm)
    images = jnp.zeros((1, 16, 16, 1))
    params, state = model.init(jax.random.key(0), images)
    assert model.apply(params, state, images[:0])[0].shape == (0, 2)
