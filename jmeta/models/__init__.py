"""Networks, and adapters that make a `Model` from any network."""

from jmeta.models.adapters import from_linen, from_nnx
from jmeta.models.conv4 import conv4
from jmeta.models.full_context import attention_lstm, bidirectional_lstm
from jmeta.models.mann import mann
from jmeta.models.mlp import mlp
from jmeta.models.relation import relation_encoder, relation_module
from jmeta.models.resnet12 import resnet12
from jmeta.models.snail import snail
from jmeta.models.transformer import transformer

__all__ = [
    "attention_lstm",
    "bidirectional_lstm",
    "conv4",
    "from_linen",
    "from_nnx",
    "mann",
    "mlp",
    "relation_encoder",
    "relation_module",
    "resnet12",
    "snail",
    "transformer",
]
