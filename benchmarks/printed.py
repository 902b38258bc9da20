"""What the first tutorial printed, and starting values from which its loop prints it again.

Its four starting values were random and are not in its text. But its problem is linear least
squares: in the eigenvectors of the Gram matrix each coordinate's distance from the best cubic
shrinks by a factor of its own in every step, so a loss is the best one plus a sum of the squares of
the four distances at the start, each with a known weight. The losses give the squares, the printed
polynomial the signs. The fastest coordinate is forgotten before the first printed loss.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

HostArray = npt.NDArray[np.float64]
POINTS, STEPS, RATE = 2000, 2000, 1e-6
LOSSES = np.array(
    [
        *(1492.5057618088194, 1002.2256853441451, 674.4275279389385, 455.12202377830056),
        *(308.3024735791412, 209.94159319197252, 143.997176182293, 99.75221862968547),
        *(70.04290050730032, 50.0775142692556, 36.64888317591081, 27.608903688323174),
        *(21.517782446281853, 17.409756012794574, 14.63651841936939, 12.762516724561959),
        *(11.494886608396293, 10.636535928150074, 10.05470628345867, 9.659890720665171),
    ]
)
"""The losses at steps 99, 199, ... 1999, counted from 0."""
RESULT = np.array(
    [-0.020418311837917504, 0.8356526383368988, 0.0035224985542163124, -0.0903307755544794]
)
"""a, b, c, d after the last step."""


def start() -> HostArray:
    """The four starting values that fit, of shape (4,).

    Two coordinates follow with their signs. The third shrinks to 0.92 times its size in a step: the
    losses give its size, but its sign is lost, and is taken as positive. The fourth shrinks to 0.44
    times its size, so nothing of it is left at the first printed loss: it is taken as zero.
    """
    x = np.linspace(-np.pi, np.pi, POINTS)
    powers = np.stack([x**k for k in range(4)])
    best, *_ = np.linalg.lstsq(powers.T, np.sin(x), rcond=None)
    least = np.square(best @ powers - np.sin(x)).sum()
    curvatures, axes = np.linalg.eigh(powers @ powers.T)  # the slowest first
    shrinks = 1 - 2 * RATE * curvatures
    seen = np.arange(3)
    # Scale rows by the loss, and columns to one size, as they differ by a factor of a million.
    weights = curvatures[seen] * shrinks[seen] ** (2 * np.arange(99, STEPS, 100)[:, None])
    weights /= LOSSES[:, None]
    scale = weights.max(axis=0)
    squares, *_ = np.linalg.lstsq(weights / scale, 1 - least / LOSSES, rcond=None)
    signs = np.sign(axes.T @ (RESULT - best))[seen]
    signs[2] = 1
    start: HostArray = best + axes[:, seen] @ (signs * np.sqrt(squares / scale))
    return start
