"""That a learner is trained, validated and tested, on classes of noise."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import jmeta
from benchmarks import omniglot
from jmeta import data


def noise(split, **_):
    """Eight classes of as many drawings as Omniglot's."""
    inputs = jax.random.bits(jax.random.key(0), (8 * 20, 28, 28, 1), "uint8")
    return data.class_table(inputs, np.repeat(np.arange(8), 20))


def test_a_configuration_is_trained_validated_and_tested(tmp_path, monkeypatch):
    model = {"width": 2, "strided": True}
    small = dataclasses.replace(omniglot.PROTONET, model=model, ways=5, steps=20, tests=((5, 1),))
    monkeypatch.setitem(omniglot.CONFIGURATIONS, "protonet", small)
    monkeypatch.setattr(omniglot, "TEST_EPISODES", 4)
    monkeypatch.setattr(omniglot, "VALIDATIONS", 2)
    monkeypatch.setattr(data, "omniglot", noise)
    omniglot.main("protonet", out=tmp_path)
    result = json.loads((tmp_path / "omniglot-protonet.json").read_text())
    assert [point["step"] for point in result["validation"]] == [10, 20]
    (test,) = result["tests"]
    assert (test["ways"], test["shots"], test["episodes"]) == (5, 1, 4)
    assert 0 <= test["accuracy"] <= 1


def test_a_training_that_is_stopped_leaves_no_result(tmp_path, monkeypatch):
    monkeypatch.setitem(omniglot.CONFIGURATIONS, "protonet", dataclasses.replace(omniglot.PROTONET, ways=5))
    monkeypatch.setattr(data, "omniglot", noise)
    monkeypatch.setattr(jmeta, "fit", lambda *_, **__: jmeta.TrainState({}, (), (), jax.random.key(0), 1))
    with pytest.raises(KeyboardInterrupt):
        omniglot.main("protonet", out=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("configuration", omniglot.CONFIGURATIONS.values(), ids=omniglot.CONFIGURATIONS)
def test_every_configuration_is_a_learner(configuration):
    learner, _ = omniglot.build(configuration)
    assert isinstance(learner, jmeta.Learner)
