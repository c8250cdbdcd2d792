"""One fit of CoOp that prints each step, waits if it is to, and prints a digest of what it learned."""

import hashlib
import sys
import time

from clipadapter.testing import toy_features
from clipadapter.tuners.coop import CoOp


class Slow(CoOp):
    """CoOp whose steps can be counted."""

    seconds_per_step = 0.0

    def _loss(self, batch):
        sys.stdout.write("step\n")
        sys.stdout.flush()
        time.sleep(self.seconds_per_step)
        return super()._loss(batch)


def main(seconds_per_step):
    X, y, text = toy_features((8, 8, 8), noise=2.0)
    views = X[:, None].repeat(3, axis=1) * [[[1.0], [1.01], [0.99]]]
    head = Slow(n_ctx=4, epochs=8, batch_size=7, checkpoint=0.0)
    head.seconds_per_step = seconds_per_step
    head.fit(views, y, text=text)
    learned = head.context_.numpy().tobytes() + head.weight_.numpy().tobytes() + repr(head.loss_).encode()
    sys.stdout.write(f"done {hashlib.sha256(learned).hexdigest()}\n")
