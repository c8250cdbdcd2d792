"""ProLIP: the projection at the end of the image tower, fine-tuned with a penalty on its change.

Paper: Fahes et al., https://arxiv.org/abs/2410.05270.
What is learned is the change of the projection: pictures' features from before and after it are all that this takes,
and the bias of CLIP's ResNets stays as it is, as in the released code.
Differs from the paper as `clipadapter.heads.rla` does: by default the penalty is one on the change of the logits, steps
take 256 pictures at most, and each draws a view of each picture; `ProLip.official` does as the released code does.
"""

from __future__ import annotations

from clipadapter.heads import register_head
from clipadapter.heads.linear_adapter import LinearAdapterHead


@register_head("prolip", version=2, paper="https://arxiv.org/abs/2410.05270", compare=False)
class ProLip(LinearAdapterHead):
    """Zero-shot with the image tower's projection W trained by cross-entropy plus ``penalty * ||W - W0||_F^2``.

    It reads the block ``final``, and the block ``unprojected`` that ``final`` is the projection of. Without the second
    one the features themselves are projected, and W0 is the identity: this is RLA with this recipe.

    Args:
        lr: highest learning rate of Adam, whose epsilon is 1e-4 as in the released code. The paper reports that rates
            from 1e-5 to 1e-2 work with its penalty.

    Fidelity: verified: `ProLip.official` gives the projection, loss and logits of the authors' code. The default has a
    penalty relative to the logit scale and a shorter recipe, and adjusts logits for unequal shots.
    """

    reads = "unprojected"
    recipes = {"official": {"penalty": "1/n", "batch_size": None, "cycle_views": True, "logit_adjustment": 0.0}}
    """The recipe of the authors' released code: 300 full-batch steps through the views in turn."""
