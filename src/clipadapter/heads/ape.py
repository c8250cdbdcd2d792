"""APE: Tip-Adapter on discriminative feature channels, with a weight for each shot.

Paper: Zhu et al., ICCV 2023, https://arxiv.org/abs/2304.01195, the training-free variant. With unit features x of a
query, class text W, logit scale s, the selected channels z and F of query and shots at unit length, and labels L:

    logits = s x W' + alpha exp(-beta (1 - z F')) diag(exp(gamma KL)) L

Differs from the paper, where the number of channels, their weights, alpha, beta and gamma are set per data set or
searched on validation or test images: there is one set of values for all data sets. Classes may have unequal numbers of
shots. The logits are those of the released code.
"""

from __future__ import annotations

from typing import Annotated

import torch

from clipadapter.heads.base import NOT_NEGATIVE, SupportSet, register_head
from clipadapter.heads.cache import ChannelCacheHead, cache_keys
from clipadapter.utils.functional import unit

EPSILON = 1e-6  # added to numerator and denominator of the divergence, as published


@register_head("ape", paper="https://arxiv.org/abs/2304.01195")
class Ape(ChannelCacheHead):
    """Training-free cache of shots on selected channels, with weighted shots, added to the zero-shot logits.

    Zero-shot logits use all channels. The criterion of a channel is ``variance_weight`` times the variance of class
    text, minus ``similarity_weight`` times the mean product of vectors of different classes.

    Args:
        gamma: exponent of the shots' weights: shots with a label that zero-shot finds unlikely count more; with 0 all
            shots count the same.
        channels: fraction of the channels to keep, above 0 and up to 1. The paper keeps 400 to 500 of 1024.
        similarity_weight: weight of the interclass similarity in the selection of channels.
        variance_weight: weight of the variance of class text in the selection of channels.

    >>> from clipadapter.heads import TextFeatures
    >>> text = TextFeatures(["cat", "dog"], [[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]], logit_scale=1.0)
    >>> head = Ape(channels=0.7).fit([[2.0, 1.0, 9.0], [1.0, 2.0, 9.0]], ["cat", "dog"], text=text)
    >>> sorted(head.channels_.tolist())
    [0, 1]

    Fidelity: verified: Channels, weights of the shots and logits are those of the authors' code. The default parameters
    are ours: one set of values for all data sets.
    """

    presets = {
        "imagenet": {"similarity_weight": 0.7, "variance_weight": 0.3},
        "dtd": {"similarity_weight": 0.5, "variance_weight": 0.5},
    }
    preset_note = (
        "The weights that the authors set for this data set in the choice of channels. The rest of their recipe is not "
        "part of it: they set the number of channels for each data set, and searched alpha, beta and gamma on "
        "validation pictures, for ImageNet on test pictures."
    )
    temperature_prior = (0.9, 0.9, 0.81, 0.81, 1.0)

    gamma: Annotated[float, NOT_NEGATIVE] = 0.1

    def _fit(self, shots: SupportSet) -> None:
        keys, text, labels = cache_keys(shots.views), self._set_text(shots), shots.labels
        self._select_channels(text, keys, labels)
        self.keys_, self.labels_ = unit(keys[:, self.channels_]), labels
        # KL divergence (n,) in bits of the one-hot label of each shot from the softmax of its cosines to class text;
        # no scale here, as published.
        softmax = (self.keys_ @ unit(text[:, self.channels_]).T).softmax(dim=1)
        divergence = torch.log2((1 + EPSILON) / (softmax[torch.arange(len(keys)), labels] + EPSILON))
        self.share_ = torch.exp(self.gamma * divergence)
