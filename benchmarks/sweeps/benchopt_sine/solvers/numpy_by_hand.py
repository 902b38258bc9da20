"""Gradients by hand."""

from benchopt import BaseSolver

STEPS, RATE = 2000, 1e-6


class Solver(BaseSolver):
    name = "numpy"
    sampling_strategy = "run_once"

    def set_objective(self, basis, y, start):
        self.basis, self.y, self.start = basis, y, start

    def run(self, _):
        w, basis, y = self.start.copy(), self.basis, self.y
        for _ in range(STEPS):
            residual = w @ basis - y
            w -= RATE * 2 * (basis @ residual)
        self.w = w

    def get_result(self):
        return {"w": self.w}
