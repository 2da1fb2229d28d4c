"""Backbones: one folder a family, and the layers that families share. docs/new_backbone.md adds one."""
