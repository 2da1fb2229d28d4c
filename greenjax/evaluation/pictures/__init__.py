"""Pictures of what a model does: reconstructions, curves, mistakes."""
