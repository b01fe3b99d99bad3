"""What a function takes from outside, worked out before it is called."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmeta.functional.hoisting import compute_invariants

FEATURES = np.linspace(-1, 1, 6)


def loss(w, features):
    layer = jax.jit(lambda x: jax.nn.relu(jnp.sin(x)))
    return {"loss": (layer(features) * w).sum() ** 2 + jnp.zeros(3).sum(), "features": jnp.cos(features)}


def primitives(function, *arguments):
    return [str(equation.primitive) for equation in jax.make_jaxpr(function)(*arguments).eqns]


def test_what_does_not_depend_on_the_arguments_is_left_out_of_the_function():
    function = compute_invariants(lambda w: loss(w, jnp.asarray(FEATURES)), 1.0)
    found = primitives(function, 1.0)
    assert "mul" in found
    assert not {"sin", "cos", "jit", "pjit"} & set(found)
    assert "broadcast_in_dim" in found  # a constant is made where it is needed


def test_values_and_derivatives_are_those_of_the_function(x64):
    def invariant(w, features):
        function = compute_invariants(lambda w: loss(w, features), 1.0)
        return function(w)["loss"], function(w)["features"].sum()

    def plain(w, features):
        outputs = loss(w, features)
        return outputs["loss"], outputs["features"].sum()

    many = jnp.asarray([FEATURES, 2 * FEATURES])
    for of in (lambda f: f, lambda f: jax.jacrev(f, argnums=(0, 1)), lambda f: jax.jacfwd(jax.jacrev(f, argnums=1))):
        one, other = (jax.jit(jax.vmap(of(function), (None, 0)))(0.7, many) for function in (invariant, plain))
        chex.assert_trees_all_close(one, other, rtol=1e-12)


def test_an_effect_happens_at_each_call_and_not_before(capfd):
    function = compute_invariants(lambda w: (jax.debug.print("called {}", jnp.asarray(FEATURES).sum()), w * w)[1], 1.0)
    jax.effects_barrier()
    assert not capfd.readouterr().out
    for _ in range(2):
        function(2.0)
    jax.effects_barrier()
    assert capfd.readouterr().out.count("called") == 2


@pytest.mark.parametrize("argument", [2.0, jnp.arange(3.0)])
def test_a_function_of_nothing_from_outside_is_left_as_it_is(argument):
    def square(x):
        return x * x

    assert primitives(compute_invariants(square, argument), argument) == primitives(square, argument)
