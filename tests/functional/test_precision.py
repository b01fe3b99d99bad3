"""What is solved, measured or averaged is not rounded by an accelerator, as the products of a layer may be."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax import lax
from jax.extend.core import subjaxprs

from jmeta import data, functional
from jmeta.functional.moments import moments
from jmeta.functional.prototypes import cosine_similarities, gaussians, squared_mahalanobis_distances
from jmeta.training import make_train_step
from jmeta.types import Examples, Learner, Task, TrainState

X, Y, MASK = jnp.linspace(-1, 2, 18).reshape(6, 3) ** 3, jax.nn.one_hot(jnp.arange(6) % 2, 2), jnp.ones(6)


def mahalanobis(x):
    return squared_mahalanobis_distances(x, gaussians(x, Y, MASK))


def meta_step(x):
    """By the meta-gradients of two tasks, which are without a product."""
    task = Task(*2 * [Examples(x[:2], Y[:2], MASK[:2])])
    learner = Learner(
        None, None, None, lambda params, state, task, key: ((params * task.support.inputs).sum(), ((), {}))
    )
    optimizer = optax.sgd(1.0)
    state = TrainState(x[:2], (), optimizer.init(()), jax.random.key(0), jnp.int32(0))
    tasks = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), task)
    return make_train_step(learner, optimizer, tasks_per_chunk=2)(state, tasks)[0].params


FUNCTIONS = {
    "ridge, few features": lambda x: functional.ridge_regression(x, Y, MASK, 0.1),
    "ridge, few examples": lambda x: functional.ridge_regression(x.T, Y[:3], MASK[:3], 0.1),
    "support vector machine": lambda x: functional.crammer_singer(x, Y, MASK, cost=0.1, steps=2),
    "logistic": lambda x: functional.logistic_regression(x, Y, MASK, 0.1, steps=2, cg_steps=2),
    "prototypes": lambda x: functional.prototypes(x, Y, MASK),
    "cosines": lambda x: cosine_similarities(x, x[:2]),
    "covariances": mahalanobis,
    "moments": lambda x: jnp.stack(moments(x, MASK)),
    "meta-step": meta_step,
}


def products(jaxpr):
    """The precision of every matrix product, in loops and custom rules too."""
    own = [eqn.params["precision"] for eqn in jaxpr.eqns if eqn.primitive is lax.dot_general_p]
    return own + [precision for inner in subjaxprs(jaxpr) for precision in products(inner)]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_products_and_those_of_derivatives_are_of_all_bits(name):
    value = lambda x: jnp.sin(FUNCTIONS[name](x)).sum()  # noqa: E731
    orders = {
        "support vector machine": value,  # optax's projection on a simplex has a product in its derivative
        "logistic": jax.grad(value),  # which has no forward mode
        "meta-step": value,
    }
    second = lambda x: jax.jvp(jax.grad(value), (x,), (x,))  # noqa: E731
    found = products(jax.make_jaxpr(orders.get(name, second))(X).jaxpr)
    assert found
    assert set(found) == {(lax.Precision.HIGHEST, lax.Precision.HIGHEST)}


def test_products_of_what_is_drawn_are_of_all_bits():
    found = products(jax.make_jaxpr(data.glyphs())(jax.random.key(0)).jaxpr)
    assert set(found) == {(lax.Precision.HIGHEST, lax.Precision.HIGHEST)}
