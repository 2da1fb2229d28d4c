"""Planning: from a geometry to masks, static group shapes and index arrays. NumPy only, no JAX.

Read in this order: tokens (the token order), masking, grouping (Algorithm 1), sites, plan, layout, planner.
"""

from greenjax.planning.layout import dense_plan, exact_plan
from greenjax.planning.plan import Grouping, Plan, StageSpec, Windows
from greenjax.planning.planner import Planner
from greenjax.planning.tokens import TokenGrid

__all__ = [
    "Grouping",
    "Plan",
    "Planner",
    "StageSpec",
    "TokenGrid",
    "Windows",
    "dense_plan",
    "exact_plan",
]
