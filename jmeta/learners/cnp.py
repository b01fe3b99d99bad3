"""Conditional neural processes (Garnelo et al., 2018)."""

from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from jmeta import losses, models
from jmeta.checks import check_model
from jmeta.functional.encoders import shared_encoder
from jmeta.functional.heads import check_stateless, Head, head_learner
from jmeta.functional.prototypes import prototypes
from jmeta.networks import apply_model, model_of_width
from jmeta.types import Array, Learner, Model, Objective

# The smallest standard deviation that is predicted, as in the paper's code.
LEAST_DEVIATION = 0.1

# The networks of the authors' notebook, on curves; the paper's text has three layers here and five in the decoder.
SUMMARY = models.mlp(hidden=(128, 128, 128), outputs=128)


def decoder_mlp(outputs: int) -> Model:
    """The decoder of the authors' notebook."""
    return models.mlp(hidden=(128, 128), outputs=outputs)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Representation:
    """The support set as summarised by a conditional neural process.

    Attributes:
        values: [N, R] for classification, the mean summary of each class; [1, R]
            for regression, that of the support set.
        width: the width of the targets.
    """

    values: Array
    width: int = field(metadata={"static": True})


def cnp(
    model: Model,
    *,
    summary: Model = SUMMARY,
    decoder: Callable[[int], Model] = decoder_mlp,
    loss_fn: Callable = losses.cross_entropy,
) -> Learner:
    """Decodes each query beside the mean of a network's summaries of the support examples.

    Garnelo et al., 2018, "Conditional Neural Processes". For regression `predict` gives
    a `losses.Gaussian`, the mean [Q, D] and the standard deviation [Q, D] of each
    query's target; the deviation is at least 0.1, as in the paper's code, so scale
    targets to order one. For classification each class has its own mean, and the
    decoder sees all of them side by side. The loss is on the query set alone; the paper
    adds the support set.

    Args:
        model: an encoder to features [K, D]; for curves the paper uses none:
            `models.mlp(hidden=(), outputs=None)`.
        summary: a network from targets beside the features of their examples [K, N + D]
            to summaries [K, R].
        decoder: `(outputs) -> Model`, a network from the representation beside the
            features of a query [Q, R + D], or [Q, N R + D], to [Q, outputs]: a logit
            for each class, or two numbers for each dimension of the target.
        loss_fn: `losses.gaussian_nll` for regression; one over classes,
            `(outputs, targets, mask) -> scalar`, for classification.

    Returns:
        A `Learner` for the number of ways of the task it is initialised with and
        any number of shots; `adapt` gives `Fitted` with a `Representation`. For
        regression its metrics include the `"squared_error"`.

    Raises:
        ValueError: for another loss, or if `summary` is not a `Model`; from `init`, as
            for `functional.head_learner`, and if `decoder` does not return a `Model`
            with the outputs it is asked for, or a network other than the encoder
            normalises by batch statistics.

    Example:
        >>> from jmeta import data
        >>> learner = cnp(models.mlp(hidden=(), outputs=None), loss_fn=losses.gaussian_nll)
        >>> task = data.sinusoid(shots=5, queries=3)(jax.random.key(0))
        >>> params, state = learner.init(jax.random.key(1), task)
        >>> adapted = learner.adapt(params, state, task.support)
        >>> learner.predict(params, state, adapted, task.query.inputs).deviation.shape
        (3, 1)
    """
    if losses.is_classification(loss_fn):
        head = _aggregator(
            summary, decoder, groups=lambda support: support.targets, numbers=1, answer=lambda decoded: decoded
        )
        return head_learner(shared_encoder(model), head, losses.objective(loss_fn))
    if loss_fn is not losses.gaussian_nll:
        raise ValueError(
            f"loss_fn is {getattr(loss_fn, '__name__', loss_fn)}; a conditional neural process predicts classes, "
            "with a loss over classes, or a variance, with losses.gaussian_nll."
        )
    head = _aggregator(summary, decoder, groups=_one_group, numbers=2, answer=_gaussian)
    return head_learner(shared_encoder(model), head, Objective(losses.gaussian_nll, _metrics, lambda support: None))


def _one_group(support):
    return jnp.ones_like(support.mask, shape=(support.mask.size, 1))


def _gaussian(outputs):
    mean, raw = jnp.split(outputs, 2, axis=-1)
    return losses.Gaussian(mean, LEAST_DEVIATION + (1 - LEAST_DEVIATION) * jax.nn.softplus(raw))


def _metrics(outputs, targets, mask):
    return {"squared_error": losses.squared_error(outputs.mean, targets, mask)}


def _aggregator(summary, decoder, *, groups, numbers, answer):
    """A head that averages summaries over `groups(support)` [K, G], and decodes `numbers` outputs per target.

    `answer` turns these into the prediction.
    """
    check_model(summary=summary)

    def outputs_of(fitted):
        return numbers * fitted.width

    def pairs(support):
        return jnp.concatenate([support.targets, support.inputs], axis=1)

    def fit(params, support, *, train=False, key=None):
        options = {"mask": support.mask, "train": train, "key": key}
        summaries, _ = apply_model(summary, params["summary"], {}, pairs(support), **options)
        return Representation(prototypes(summaries, groups(support), support.mask), support.targets.shape[1])

    def beside(features, fitted):
        values = jnp.broadcast_to(fitted.values.reshape(1, -1), (len(features), fitted.values.size))
        return jnp.concatenate([values, features], axis=1)

    def init(key, support):
        summary_key, decoder_key = jax.random.split(key)
        read, read_state = summary.init(summary_key, pairs(support))
        fitted = fit({"summary": read}, support)
        network = model_of_width("decoder", decoder, outputs_of(fitted))
        written, written_state = network.init(decoder_key, beside(support.inputs, fitted))
        check_stateless("the summary or the decoder", (read_state, written_state))
        return {"summary": read, "decoder": written}

    def score(params, fitted, features, *, train=False, key=None):
        rows, network = beside(features, fitted), decoder(outputs_of(fitted))
        decoded, _ = apply_model(network, params["decoder"], {}, rows, train=train, key=key)
        if decoded.shape[-1] != outputs_of(fitted):
            raise ValueError(
                f"the decoder's outputs have width {decoded.shape[-1]}; it was asked for {outputs_of(fitted)}, "
                "the number it is called with."
            )
        return answer(decoded)

    return Head(init, fit, score)
