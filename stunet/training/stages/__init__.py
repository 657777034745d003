"""The stages of training.

To add a stage, subclass `Stage` in a new module and enter it in `STAGES`. A class outside of this
package needs no entry: its name in a config is "package.module:name".
"""

from stunet.training.stages.conditional import Conditional
from stunet.training.stages.distill import Distill
from stunet.training.stages.stage import SampleTools, Stage
from stunet.training.stages.style import Style
from stunet.training.stages.super_resolution import SpatialSuperResolution
from stunet.training.stages.text_to_image import TextToImage
from stunet.training.stages.text_to_video import TextToVideo

STAGES: dict[str, type[Stage]] = {
    "t2i": TextToImage,
    "style": Style,
    "t2v": TextToVideo,
    "conditional": Conditional,
    "ssr": SpatialSuperResolution,
    "distill": Distill,
}

__all__ = [
    "STAGES",
    "Conditional",
    "Distill",
    "SampleTools",
    "SpatialSuperResolution",
    "Stage",
    "Style",
    "TextToImage",
    "TextToVideo",
]
