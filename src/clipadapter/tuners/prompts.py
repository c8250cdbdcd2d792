"""Prompts with a context of learned vectors, and the class vectors that a text tower gives them.

A prompt is ``[mark] v_1 ... v_M name . [mark]``: its vectors take the places of tokens' embeddings (CoOp, Zhou et al.
2022, equation 2). The tower is run over a few prompts at a time, so that memory does not grow with the classes; what
all of them begin with, such as a context that they share, is run once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from clipadapter.data import clean_name
from clipadapter.errors import InputError
from clipadapter.utils.towers import Prefix, TextTower

CLASS_TOKENS = ("end", "middle", "front")
PRECISIONS = ("fp32", "bf16")
MIN_BF16_COSINE = 0.999  # least cosine of class vectors in bf16 to those in fp32


class Prompts:
    """The prompts of some classes (c), with places left open for M context vectors.

    The name stands at the "end", in the "middle" (after the first half of the context) or in "front". ``memory`` is the
    bytes that the tower may keep for its gradient. A prompt that is longer than the tower's context is refused.
    """

    def __init__(
        self,
        tower: TextTower,
        names: Sequence[str],
        n_ctx: int,
        class_token: str = "end",
        memory: float = 2e9,
        precision: str = "fp32",
    ) -> None:
        self.tower = tower
        self.n_ctx = n_ctx
        self._memory = memory
        self._uses_bf16 = precision == "bf16"
        self._n_before_name = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[class_token]  # context before the name
        rows, positions = zip(*(self._tokenize(name) for name in names), strict=True)
        self.lengths = torch.tensor([len(row) for row in rows])
        longest = int(self.lengths.max())
        ids = torch.tensor([row + row[:1] * (longest - len(row)) for row in rows])
        with torch.no_grad():
            self._fixed = tower.embed(ids).detach()  # (c, l, w), rows of any token where the context goes
        self._context_positions = torch.tensor(positions, device=self._fixed.device)  # (c, M)
        self._bytes: dict[bool, int] = {}

    def _tokenize(self, name: str) -> tuple[list[int], list[int]]:
        """Tokens of one prompt, any token standing for the context; and the positions of the context."""
        text = clean_name(name)
        sentence, name_tokens = self.tower.tokenize([f"{text}.", text])
        n_prefix, n_suffix = self.tower.special_token_counts
        body = sentence[n_prefix : len(sentence) - n_suffix]
        # As in CoOp: the name's tokens are counted by themselves, since the full stop may join its last token.
        count = min(len(name_tokens) - n_prefix - n_suffix, len(body))
        n_before, n_after = self._n_before_name, self.n_ctx - self._n_before_name
        row = sentence[:n_prefix] + sentence[:1] * n_before + body[:count] + sentence[:1] * n_after
        row += body[count:] + sentence[len(sentence) - n_suffix :]
        if len(row) > self.tower.context_length:
            raise InputError(
                f"the prompt of class {name!r} has {len(row)} tokens or more with {self.n_ctx} context vectors, but "
                f"the text tower takes {self.tower.context_length}: shorten the name, or learn fewer vectors"
            )
        after_name = n_prefix + n_before + count
        return row, [*range(n_prefix, n_prefix + n_before), *range(after_name, after_name + n_after)]

    def __len__(self) -> int:
        return len(self.lengths)

    def class_vectors(self, context: Tensor, classes: Tensor | None = None) -> Tensor:
        """Raw class vectors (k, d), with a gradient in the context; exact however many passes are made.

        The context is (M, w) for all prompts, or (k, M, w) one for each; by default all classes are taken in order.
        Where one pass would store more activations than the memory allows, each part stores none and is run again in
        the backward pass.
        """
        classes = torch.arange(len(self)) if classes is None else classes
        shared = context.ndim == 2
        prefix = self._encode_prefix(context) if shared else None
        order = self.lengths[classes].argsort(stable=True)
        parts = order.split(self.batch_size(shared))
        recompute = len(parts) > 1 and torch.is_grad_enabled() and context.requires_grad
        outputs = []
        for part in parts:
            inputs = (context if shared else context[part], classes[part], prefix)
            if recompute:
                outputs.append(checkpoint(self._encode, *inputs, use_reentrant=False, preserve_rng_state=False))
            else:
                outputs.append(self._encode(*inputs))
        vectors = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return vectors.index_select(0, order.argsort().to(vectors.device))

    def fall_back_to_fp32(self, context: Tensor) -> None:
        """Run in fp32 from now on if bf16 gives class vectors of this context that are too far from those of fp32."""
        if self._uses_bf16:
            with torch.no_grad():
                low = self.class_vectors(context)
                self._uses_bf16 = False
                cosines = torch.cosine_similarity(low, self.class_vectors(context), dim=1)
            self._uses_bf16 = bool((cosines >= MIN_BF16_COSINE).all())

    def batch_size(self, shared: bool) -> int:
        """Prompts of a pass; `shared` says whether they have one context."""
        return max(1, int(self._memory / self.bytes_per_prompt(shared)))

    def bytes_per_prompt(self, shared: bool) -> int:
        """Bytes of the activations that a pass stores for one of the longest prompts: measured, since towers differ."""
        if shared not in self._bytes:
            self._bytes[shared] = self._measure_bytes(shared)
        return self._bytes[shared]

    def _encode_prefix(self, context: Tensor) -> Prefix:
        """What all prompts begin with, if they share the context (M, w)."""
        marks = self._fixed[0, : self.tower.special_token_counts[0]]
        with self._precision():
            return self.tower.encode_prefix(torch.cat([marks, context[: self._n_before_name].to(marks.dtype)]))

    def _encode(self, context: Tensor, classes: Tensor, prefix: Prefix | None) -> Tensor:
        lengths, positions = self.lengths[classes], self._context_positions[classes]
        embeddings = self._fixed[classes, : int(lengths.max())]
        if prefix is not None:
            n_prefix = len(prefix.embeddings)
            lengths, embeddings = lengths - n_prefix, embeddings[:, n_prefix:]
            context, positions = context[self._n_before_name :], positions[:, self._n_before_name :] - n_prefix
        if positions.numel():
            k, _, width = embeddings.shape
            index = positions[:, :, None].expand(-1, -1, width)
            embeddings = embeddings.scatter(1, index, context.to(embeddings.dtype).expand(k, -1, width))
        with self._precision():
            if prefix is None:
                output = self.tower.encode(embeddings, lengths)
            else:
                output = self.tower.encode_after_prefix(prefix, embeddings, lengths)
        return output.to(embeddings.dtype)

    def _precision(self) -> torch.autocast:
        return torch.autocast(self._fixed.device.type, torch.bfloat16, enabled=self._uses_bf16)

    def _measure_bytes(self, shared: bool) -> int:
        longest = self.lengths.argmax()[None]
        context = self._fixed.new_zeros(self.n_ctx, self._fixed.shape[2]).requires_grad_()
        saved_bytes = []
        with torch.enable_grad():
            prefix = self._encode_prefix(context) if shared else None
            for k in (1, 2):  # the difference leaves out the weights and the beginning, which are stored anyway
                storages: dict[int, int] = {}

                def pack(tensor: Tensor, storages: dict[int, int] = storages) -> Tensor:
                    storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                    return tensor

                with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                    self._encode(context, longest.expand(k), prefix)
                saved_bytes.append(sum(storages.values()))
        return max(1, saved_bytes[1] - saved_bytes[0])


def random_context(prompts: Prompts, width: int, seed: int, class_specific: bool) -> Tensor:
    """Context vectors drawn from N(0, 0.02^2): (M, w), or (c, M, w) if each class has its own."""
    shape = (len(prompts), prompts.n_ctx, width) if class_specific else (prompts.n_ctx, width)
    return 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def context_from_words(tower: TextTower, text: str) -> Tensor:
    """The embeddings (M, w) of the tokens of some words, which must have one."""
    n_prefix, n_suffix = tower.special_token_counts
    (tokens,) = tower.tokenize([text])
    inner = tokens[n_prefix : len(tokens) - n_suffix]
    if not inner:
        raise InputError(f"ctx_init must be words, but {text!r} has no token; say None for random vectors")
    with torch.no_grad():
        return tower.embed(torch.tensor(inner)).detach().clone()
