"""The trained models that come with the package, known by name: what a newcomer begins with.

All of one small world, `moving_shapes`: 16x16 pixels, enlarged to 64x64. `experiments.ship` made
them.
"""

from pathlib import Path

FOLDER = Path(__file__).parent.parent / "shipped"
VIDEO_MODEL = "shapes"  # text to video; also fills in around given pixels
UPSCALER = "shapes-ssr"
STYLE = "shapes-duotone"
NAMES = (VIDEO_MODEL, UPSCALER, STYLE)
