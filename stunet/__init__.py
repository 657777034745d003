"""stunet: a Space-Time U-Net for text-to-video generation, in JAX and Flax.

    import stunet

    model = stunet.load("shapes")
    result = stunet.generate(model, "a red circle moving right on a dark background")
    result.save("circle.mp4")

Names are imported on first use, so that `import stunet` is quick. What `__all__` does not list is
internal and may change.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from stunet.api import (
        animate,
        cinemagraph,
        edit,
        generate,
        inpaint,
        interpolate,
        upscale,
    )
    from stunet.engine.cascade import stylize
    from stunet.engine.request import Progress, Request, Result, Sampling
    from stunet.model import Model, load

_MODULES = {
    "Model": "stunet.model",
    "Progress": "stunet.engine.request",
    "Request": "stunet.engine.request",
    "Result": "stunet.engine.request",
    "Sampling": "stunet.engine.request",
    "animate": "stunet.api",
    "cinemagraph": "stunet.api",
    "edit": "stunet.api",
    "generate": "stunet.api",
    "inpaint": "stunet.api",
    "interpolate": "stunet.api",
    "load": "stunet.model",
    "stylize": "stunet.engine.cascade",
    "upscale": "stunet.api",
}

__all__ = [
    "Model",
    "Progress",
    "Request",
    "Result",
    "Sampling",
    "animate",
    "cinemagraph",
    "edit",
    "generate",
    "inpaint",
    "interpolate",
    "load",
    "stylize",
    "upscale",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'stunet' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
