"""CoOp: the words around the class name are learned as vectors, through the frozen text tower.

Paper: Zhou et al., IJCV 2022, https://arxiv.org/abs/2109.01134.
The defaults are the paper's: 16 vectors from N(0, 0.02^2) for all classes, the name at the end, SGD by the schedule for
the number of shots. Differs from it in precision (fp32), in that ImageNet has no epochs of its own (the paper: 50), and
in that pictures are augmented once, as views, not anew each epoch. Numbers of shots between the paper's take the next
one's epochs.
"""

from __future__ import annotations

from clipadapter.heads import register_head
from clipadapter.tuners.prompt_tuner import PromptTuner


@register_head(
    "coop",
    paper="https://arxiv.org/abs/2109.01134",
    compare=False,
    fidelity="verified: Class vectors, gradients and the context after some steps are those of the authors' code. "
    "Views are made once, where that code augments in each epoch.",
)
class CoOp(PromptTuner):
    """Context vectors before the class name, trained by cross-entropy through the text tower.

    Args:
        n_ctx: context vectors, 16 or 4 in the paper.
        ctx_init: words to start from, such as "a photo of a", with a vector for each of their tokens instead of
            ``n_ctx``; None draws from N(0, 0.02^2).
        class_token: where the name stands: "end", "middle" or "front".
        csc: class-specific context: each class has vectors of its own; needs more shots, and knows no new classes.
        lr: learning rate of SGD.
        momentum: of SGD.
        weight_decay: L2, on the context.
        schedule: "cosine-epoch" (the rate changes once an epoch), "cosine" or "constant".
        warmup_epochs: epochs at a constant 1e-5 before the schedule starts.
        epochs: passes over the shots; None for 50 with one shot per class, 100 with up to 4, else 200.
        batch_size: shots per step.
        patience: None trains all epochs on all shots; a number holds out a shot of each class that has two, stops after
            so many epochs without a lower loss on these, and keeps the best.
        precision: of the text tower while training: "fp32", or "bf16" where class vectors stay near to those of fp32.
            Those of the answer are made in fp32.
        memory: gigabytes that the text tower may keep for its gradient; where they don't suffice for all classes, it
            runs twice over parts of them, to the same gradient.
        checkpoint: seconds between two checkpoints in the user's cache folder, from which a killed `fit` goes on when
            it is called again; None keeps none.
        seed: of the first vectors, shuffling, the choice of views and of held-out shots.
        progress: show a bar on stderr while training.

    >>> from clipadapter.encoders import create_encoder
    >>> from clipadapter.features import encode_classes
    >>> text = encode_classes(create_encoder("toy"), {"red": ["red"], "blue": ["blue"]})
    >>> head = CoOp(n_ctx=4, epochs=5).fit(text.embeddings, ["red", "blue"], text=text)
    >>> head.predict(text.embeddings), head.context_.shape
    (array(['red', 'blue'], dtype='<U4'), torch.Size([4, 32]))
    """
