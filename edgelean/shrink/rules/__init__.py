"""How labels flow through each ATen operator; what has no rule here is left alone and named in the log."""

from edgelean.shrink.rules import layers, pointwise, products, recurrent, reductions, scattered, shapes, spectral
from edgelean.shrink.rules.call import RULES as RULES
from edgelean.shrink.rules.call import Call as Call
from edgelean.shrink.rules.call import Extent as Extent
from edgelean.shrink.rules.call import Flow as Flow
from edgelean.shrink.rules.call import summed_dim as summed_dim
from edgelean.shrink.rules.call import unknown as unknown

REGISTERED = (layers, pointwise, products, reductions, recurrent, scattered, shapes, spectral)
"""Modules whose import registers their rules."""
