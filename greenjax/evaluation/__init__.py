"""Evaluation: how well a model does on images it was not trained on, as numbers and as pictures.

held_out.py has the masked loss and what to compare it with, reconstruct.py draws what the model fills in.
"""

from greenjax.evaluation.held_out import HeldOut, Pictures
from greenjax.evaluation.reconstruct import draw_reconstructions

__all__ = ["HeldOut", "Pictures", "draw_reconstructions"]
