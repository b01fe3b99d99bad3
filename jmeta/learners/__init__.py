"""The learners, one algorithm per file."""

from jmeta.learners.fomaml import fomaml
from jmeta.learners.maml import maml
from jmeta.learners.protonet import protonet

__all__ = ["fomaml", "maml", "protonet"]
