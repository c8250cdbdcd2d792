"""Tuners that start from given values and keep what they trained, for comparison with the authors' code."""

import torch
from torch.nn.functional import normalize

from clipadapter.encoders import open_tunable_copy
from clipadapter.tuners.tower_tuner import Step, class_embeddings, image_features

from .golden_figures import prompts_of


def recorded(tuner):
    """A subclass of a tuner that starts from the attribute `given`, and records the loss and gradient of every step."""

    class Recorded(tuner):
        def _initial_prompts(self, shots):
            self.losses, self.gradients = [], []
            prompts, context = super()._initial_prompts(shots)
            return prompts, self.given.clone().reshape(context.shape)

        def _backward(self, parameters, value):
            super()._backward(parameters, value)
            self.losses.append(value.detach().clone())
            self.gradients.append(parameters[0].grad.clone())

    return Recorded


def starting_from_given(tuner, names):
    """A subclass of a tuner of deep prompts that begins where the authors' run began, and keeps what it trains.

    ``names`` are those of its arrays among the figures.
    """

    class Given(tuner):
        def _attach(self, tunable, generator):
            trainable = super()._attach(tunable, generator)
            self.trained = list(trainable.arrays.values())
            with torch.no_grad():
                for array, name in zip(self.trained, names, strict=True):
                    array.copy_(self.figures[0][f"start_{name}"])
            return trainable

        def tune_as_authors(self, encoder):
            """Trained on the pictures of the figures."""
            tensors, parameters = self.figures
            labels = [parameters["class_names"][i] for i in tensors["labels"]]
            return self.tune(
                encoder, tensors["squares"][:, None].numpy(), labels, prompts_of(parameters["class_names"])
            )

        def first_step(self, encoder):
            """The step with the prompts at their start."""
            tensors, parameters = self.figures
            tunable = open_tunable_copy(encoder)
            self._attach(tunable, torch.Generator())
            rows, views = torch.arange(6), torch.zeros(6, dtype=torch.int64)
            squares, prompts = tensors["squares"][:, None].numpy(), prompts_of(parameters["class_names"])
            features = normalize(image_features(tunable, squares, frozen=False)(rows, views), dim=1)
            weight = class_embeddings(tunable, prompts, frozen=False)()
            logits = encoder.info.logit_scale * features @ weight.T
            return Step(features, weight, logits, tensors["labels"], rows, views)

    def create(figures, **params):
        parameters = figures[1]
        asked = {name: parameters[name] for name in ("n_ctx", "depth", "lr", "weight_decay")}
        asked |= {"batch_size": len(figures[0]["labels"]), "schedule": "constant", "warmup_epochs": 0}
        head = Given(**{**asked, "checkpoint": None, **params})
        head.figures = figures
        return head

    return create
