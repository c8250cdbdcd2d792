"""RLA: a linear map on picture features that starts at the identity, with a penalty on the distance from it.

Paper: Fahes et al., https://arxiv.org/abs/2410.05270 (ProLIP), which compares with this regularised linear adapter.
Differs from the paper, whose encoders all have a logit scale of 100: by default the penalty is one on the change of the
logits, so that it means the same at any scale. Where classes have unequal shots, "shots per class" is their mean over
the classes that have any. Steps are 150 for 300, which end as well; they take 256 pictures at most where the released
code takes all, and each draws a view of each picture where that code takes the views in turn. `Rla.official` does as
that code does.
"""

from __future__ import annotations

from clipadapter.heads.linear_adapter import LinearAdapterHead
from clipadapter.heads.registry import register_head


@register_head("rla", version=2, paper="https://arxiv.org/abs/2410.05270")
class Rla(LinearAdapterHead):
    """Zero-shot on features ``M f``; M is trained by cross-entropy plus ``penalty * ||M - I||_F^2``.

    Args:
        steps: optimizer steps; the last pass over the shots is completed.

    >>> from clipadapter.heads import TextFeatures
    >>> text = TextFeatures(["cat", "dog"], [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> X = [[1.0, 0.9, 0.5], [0.9, 1.0, 0.0]]
    >>> Rla().fit(X, ["cat", "dog"], text=text).predict(X)
    array(['cat', 'dog'], dtype='<U3')

    Fidelity: verified: `Rla.official` gives the matrix, loss and logits of the authors' code. The default has a penalty
    relative to the logit scale and a shorter recipe, and adjusts logits for unequal shots.
    """

    temperature_prior = (0.67, 0.74, 0.67, 0.81, 1.0)
    recipes = {
        "official": {"penalty": "1/n", "steps": 300, "batch_size": None, "cycle_views": True, "logit_adjustment": 0.0}
    }
    """The recipe of the authors' released code: 300 full-batch steps through the views in turn."""

    steps: int = 150
