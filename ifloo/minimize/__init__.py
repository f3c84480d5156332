"""Floor 4: minimisers of J(θ; w) to a certified gradient norm, in plain torch without a Trainer."""

from ifloo.minimize.newton_cg import FitEnd, NewtonSystem, newton_cg
from ifloo.minimize.trust_region import trust_region

__all__ = ["FitEnd", "NewtonSystem", "newton_cg", "trust_region"]
