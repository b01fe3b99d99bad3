"""Networks, and adapters that make a `Model` of any network."""

from jmeta.models.adapters import from_linen, from_nnx
from jmeta.models.conv4 import conv4
from jmeta.models.mlp import mlp
from jmeta.models.resnet12 import resnet12

__all__ = ["conv4", "from_linen", "from_nnx", "mlp", "resnet12"]
