"""Tuners that start from given values and keep what they trained, for comparison with the authors' code."""

import torch


def recorded(tuner):
    """A subclass of a tuner that starts from the attribute `given`, and records the loss and gradient of every step."""

    class Recorded(tuner):
        def _initial_prompts(self, shots):
            self.losses, self.gradients = [], []
            return super()._initial_prompts(shots)[0], self.given.clone()

        def _backward(self, parameters, value):
            super()._backward(parameters, value)
            self.losses.append(value.detach().clone())
            self.gradients.append(parameters[0].grad.clone())

    return Recorded


def starting_from_given(tuner):
    """A subclass of a tuner of deep prompts that starts from the arrays `given`, and keeps those that it trains."""

    class Given(tuner):
        def _attach(self, tunable, generator):
            trainable = super()._attach(tunable, generator)
            self.trained = list(trainable.arrays.values())
            with torch.no_grad():
                for array, value in zip(self.trained, self.given, strict=True):
                    array.copy_(value)
            return trainable

    return Given
