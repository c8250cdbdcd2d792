"""CoOp: the words around the class name are learned as vectors, through the frozen text tower.

Paper: Zhou et al., IJCV 2022, https://arxiv.org/abs/2109.01134.
The defaults are the paper's: 16 vectors from N(0, 0.02^2) for all classes, the name at the end, SGD by the schedule for
the number of shots. Differs from it in precision (fp32), in that ImageNet has no epochs of its own (the paper: 50), and
in that pictures are augmented once, as views, not anew each epoch. Other numbers of shots than the paper's take the
epochs of the nearest.
"""

from __future__ import annotations

from clipadapter.heads import register_head
from clipadapter.tuners.prompt_tuner import PromptTuner


@register_head("coop", paper="https://arxiv.org/abs/2109.01134", compare=False)
class CoOp(PromptTuner):
    """Context vectors before the class name, trained by cross-entropy through the text tower.

    Args:
        n_ctx: context vectors if ``ctx_init`` is None; 16 or 4 in the paper.

    >>> from clipadapter.encoders import create_encoder
    >>> from clipadapter.features import encode_classes
    >>> text = encode_classes(create_encoder("toy"), {"red": ["red"], "blue": ["blue"]})
    >>> head = CoOp(n_ctx=4, epochs=5).fit(text.embeddings, ["red", "blue"], text=text)
    >>> head.predict(text.embeddings), head.context_.shape
    (array(['red', 'blue'], dtype='<U4'), torch.Size([4, 32]))

    Fidelity: verified: Class vectors, gradients and the context after some steps are those of the authors' code. Views
    are made once, where that code augments in each epoch.
    """
