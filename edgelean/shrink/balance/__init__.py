"""Balanced reduction of diagonal systems: fewer states, nearly the same map from inputs to outputs.

A layer with complex states and real outputs, ``y = Re(C x)``, is reduced as the real system of order 2N that it is.
A complex reduction would treat a mode and its conjugate as different, although they do the same to a real output.
Everything is in double precision, on the device of the system, for one system or a whole bank of equal sizes at once.

References
----------
Moore, "Principal component analysis in linear systems", 1981.
Laub, Heath, Paige & Ward, "Computation of system balancing transformations", 1987: the square-root method.
Lall, Marsden & Glavaski, "Empirical model reduction of controlled nonlinear systems", 1999: measured covariances.
Chahine, Nazari, Rus & Rusch, "The curious case of in-training compression of state space models", 2026.
"""

from edgelean.shrink.balance.energy import Factors, Gramians, factors, gramians, measured_gramians
from edgelean.shrink.balance.error import (
    measured_prices,
    output_error,
    prices,
    recorded_energy,
    recorded_error,
)
from edgelean.shrink.balance.form import coordinates, hankel_singular_values
from edgelean.shrink.balance.gain import largest_gain
from edgelean.shrink.balance.general import (
    LinearReduction,
    LinearSystem,
    diagonalised,
    lyapunov_factor,
    reduce_general,
)
from edgelean.shrink.balance.refit import refitted, refitted_to
from edgelean.shrink.balance.truncation import Reduction, residualise, truncate

__all__ = [
    "Factors",
    "Gramians",
    "LinearReduction",
    "LinearSystem",
    "Reduction",
    "coordinates",
    "diagonalised",
    "factors",
    "gramians",
    "hankel_singular_values",
    "largest_gain",
    "lyapunov_factor",
    "measured_gramians",
    "measured_prices",
    "output_error",
    "prices",
    "recorded_energy",
    "recorded_error",
    "reduce_general",
    "refitted",
    "refitted_to",
    "residualise",
    "truncate",
]
