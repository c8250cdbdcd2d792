"""Tuners of prompts that start from a given context and record each step, for comparison with the authors' code."""


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
