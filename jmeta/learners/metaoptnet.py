"""MetaOptNet: a support vector machine on learned features (Lee et al., 2019)."""

from jmeta import losses
from jmeta.checks import check_counts, check_positive
from jmeta.functional.encoders import shared_encoder
from jmeta.functional.heads import head_learner, learned_scalars, plain_head
from jmeta.functional.svm import crammer_singer
from jmeta.types import Learner, Model


def metaoptnet(model: Model, *, cost: float = 0.1, scale: float = 10.0, solver_steps: int = 100) -> Learner:
    """A multi-class support vector machine on the features of each task.

    Lee et al., 2019, "Meta-Learning with Differentiable Convex Optimization": the
    machine of Crammer & Singer, 2001, without a bias, and outputs with a learned scale,
    which starts at 1 in the paper and at 10 here. The quadratic program is solved in
    its dual by `solver_steps` steps of the alternating direction method of multipliers,
    through which the meta-gradient goes; the paper uses an interior-point method and
    its optimality conditions. Labels of the query set are not smoothed.

    Args:
        model: an encoder to features [K, D] (`outputs=None` in `jmeta.models`).
        cost: C, the cost of examples within the margin.
        scale: the scale of the outputs, where its learning starts; a margin is of size
            one, where the logits of a sure answer are far larger.
        solver_steps: steps of the solver, at least 1. With an encoder's 64 features,
            100 steps give the weights to within 2e-6 of the largest, from 5-way 1-shot
            to 20-way 5-shot, and at 5-way 20-shot (3e-5 there, for features that carry
            no class information); to within 1e-3 for features of mean 1 and standard
            deviation 0.1. More are needed if the deviation is below a hundredth of the
            mean, or if there are fewer features than examples: with 4 random features
            of 12 examples the error is 5e-3 after 100 steps and gone after 300; with 4
            features of 9 examples, deviation 30 and cost 0.1, it is still 0.3 after 300
            and 1e-2 after 1,000.

    Returns:
        A `Learner` for any number of ways; its parameters are `HeadParams`, and
        `adapt` gives `Fitted` with weights [D, N].

    Raises:
        ValueError: for a cost or scale that is not above 0, or a number of steps that is
            not whole and at least 1; from `init`, as for `functional.head_learner`.

    Example:
        >>> import jax
        >>> from jmeta import data, models
        >>> learner = metaoptnet(models.mlp(outputs=None))
        >>> task = data.glyphs(ways=5, shots=1, queries=2)(jax.random.key(0))
        >>> params, state = learner.init(jax.random.key(1), task)
        >>> learner.adapt(params, state, task.support).head.shape
        (40, 5)
    """
    check_positive(cost=cost, scale=scale)
    check_counts(least=1, solver_steps=solver_steps)

    def fit(params, support):
        return crammer_singer(*support, cost=cost, steps=solver_steps)

    def score(params, weights, features):
        return params["scale"] * (features @ weights)

    head = plain_head(learned_scalars(scale=scale), fit, score)
    return head_learner(shared_encoder(model), head, losses.objective(losses.cross_entropy))
