"""greenjax: green masked-image-modelling pre-training for hierarchical vision transformers, in JAX.

The public names are resolved on first use, so that planning and data workers never import JAX.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from greenjax.config.file import load_config
    from greenjax.config.resolve import default_config, flatten, resolve  # the site's tool reads this: not the module
    from greenjax.interop.loading import load, load_torch
    from greenjax.interop.onnx.saving import save_onnx
    from greenjax.interop.pretrained import load_pretrained
    from greenjax.interop.saving import save_torch
    from greenjax.models import build, features
    from greenjax.tasks.inference.embed import embed
    from greenjax.tasks.inference.reconstruct import show
    from greenjax.tasks.python import finetune, pretrain

__version__ = "0.1.0"

_PUBLIC = {
    "default_config": "greenjax.config",
    "load_config": "greenjax.config",
    "resolve": "greenjax.config",
    "flatten": "greenjax.config",
    "build": "greenjax.models",
    "pretrain": "greenjax.tasks.python",
    "finetune": "greenjax.tasks.python",
    "features": "greenjax.models",
    "embed": "greenjax.tasks.inference.embed",
    "show": "greenjax.tasks.inference.reconstruct",
    "load": "greenjax.interop.loading",
    "load_pretrained": "greenjax.interop.pretrained",
    "load_torch": "greenjax.interop.loading",
    "save_onnx": "greenjax.interop.onnx.saving",
    "save_torch": "greenjax.interop.saving",
}

__all__ = [
    "__version__",
    "build",
    "default_config",
    "embed",
    "features",
    "finetune",
    "flatten",
    "load",
    "load_config",
    "load_pretrained",
    "load_torch",
    "pretrain",
    "resolve",
    "save_onnx",
    "save_torch",
    "show",
]


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'greenjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
