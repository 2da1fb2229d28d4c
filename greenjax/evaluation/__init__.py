"""Evaluation: how well a model does on images it was not trained on, as numbers and as pictures.

held_out.py has the masked loss and what to compare it with, reconstruct.py draws what the model fills in,
curve.py the course of the loss.
"""

from greenjax.evaluation.curve import draw_loss_curve, read_metrics, result
from greenjax.evaluation.held_out import HeldOut, Pictures
from greenjax.evaluation.reconstruct import draw_reconstructions

__all__ = ["HeldOut", "Pictures", "draw_loss_curve", "draw_reconstructions", "read_metrics", "result"]
