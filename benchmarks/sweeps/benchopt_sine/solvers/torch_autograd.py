"""Gradients by autograd."""

import torch
from benchopt import BaseSolver

STEPS, RATE = 2000, 1e-6


class Solver(BaseSolver):
    name = "torch"
    sampling_strategy = "run_once"

    def set_objective(self, basis, y, start):
        self.basis, self.y, self.start = map(torch.as_tensor, (basis, y, start))

    def run(self, _):
        w = self.start.clone().requires_grad_()
        for _ in range(STEPS):
            residual = w @ self.basis - self.y
            (gradient,) = torch.autograd.grad(residual @ residual, w)
            with torch.no_grad():
                w -= RATE * gradient
        self.w = w

    def get_result(self):
        return {"w": self.w.detach().numpy()}
