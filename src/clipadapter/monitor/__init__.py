"""Whether pictures that come in are still such as a model was made for.

`watch` asks three things of a stream of pictures without labels: do they look as usual, are the classes as frequent as
usual, and are more of them none of the classes.
"""

from clipadapter.monitor.covariate_shift import Looks, compare_looks
from clipadapter.monitor.detection import LEAST, watch
from clipadapter.monitor.drift import CHECKS, ClassShare, Drift, Finding, NoneShare, Window, holm
from clipadapter.monitor.order import in_order
from clipadapter.monitor.priors import adjusted, estimate_priors, prior_intervals

__all__ = [
    "CHECKS",
    "LEAST",
    "ClassShare",
    "Drift",
    "Finding",
    "Looks",
    "NoneShare",
    "Window",
    "adjusted",
    "compare_looks",
    "estimate_priors",
    "holm",
    "in_order",
    "prior_intervals",
    "watch",
]
