"""2,000 points of a sine, the powers of x a row each, and a start."""

import math

import numpy as np
from benchopt import BaseDataset


class Dataset(BaseDataset):
    name = "sine"

    def get_data(self):
        x = np.linspace(-math.pi, math.pi, 2000)
        basis = np.stack([x**k for k in range(4)])
        start = np.random.default_rng(0).standard_normal(4)
        return {"basis": basis, "y": np.sin(x), "start": start}
