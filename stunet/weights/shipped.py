"""The trained models that come with the package, known by name: what a newcomer begins with.

All of one small world, `moving_shapes`: 16x16 pixels, enlarged to 64x64. `experiments.ship` made
them; `stunet/shipped` may hold 24 MB.
"""

from pathlib import Path

FOLDER = Path(__file__).parent.parent / "shipped"
VIDEO_MODEL = "shapes"
CONDITIONAL_MODEL = (
    "shapes-fill"  # the same image model inside, tuned to fill in around given pixels
)
UPSCALER = "shapes-ssr"
STYLE_MODEL = "shapes-duotone"  # the image model, tuned to pictures in two inks
NAMES = (VIDEO_MODEL, CONDITIONAL_MODEL, UPSCALER, STYLE_MODEL)
