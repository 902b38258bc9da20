"""The sine fit of expkit/problems/sine.py for benchopt: the sum of squared errors."""

from benchopt import BaseObjective


class Objective(BaseObjective):
    name = "sine fit"
    sampling_strategy = "run_once"

    def set_data(self, basis, y, start):
        self.basis, self.y, self.start = basis, y, start

    def get_objective(self):
        return {"basis": self.basis, "y": self.y, "start": self.start}

    def evaluate_result(self, w):
        residual = w @ self.basis - self.y
        return {"value": float(residual @ residual)}

    def get_one_result(self):
        return {"w": self.start}
