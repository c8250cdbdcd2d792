"""One fit of CoOp in a process of its own: says each step, waits if told to, and prints what it learned.

killed_fit.py PATIENCE SECONDS_A_STEP
"""

import hashlib
import sys
import time

from clipadapter.testing import toy_features
from clipadapter.tuners.coop import CoOp


class Slow(CoOp):
    """CoOp whose steps can be counted."""

    def _loss(self, batch):
        sys.stdout.write("step\n")
        sys.stdout.flush()
        time.sleep(float(sys.argv[2]))
        return super()._loss(batch)


def main():
    X, y, text = toy_features((8, 8, 8), noise=2.0)
    views = X[:, None].repeat(3, axis=1) * [[[1.0], [1.01], [0.99]]]
    patience = int(sys.argv[1]) or None
    head = Slow(n_ctx=4, epochs=8, batch_size=7, patience=patience, checkpoint=0.0).fit(views, y, text=text)
    learned = head.context_.numpy().tobytes() + head.weight_.numpy().tobytes() + repr(head.loss_).encode()
    sys.stdout.write(f"done {hashlib.sha256(learned).hexdigest()}\n")


if __name__ == "__main__":
    main()
