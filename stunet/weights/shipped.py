"""Names of the trained models that come with the package, in `stunet/shipped` (at most 60 MB).

`experiments.ship` trains them: those of `SHAPES` on the synthetic dataset `moving_shapes` at 16x16
pixels, or 64x64 after super-resolution; `EMOJI_MODEL`, an image model so far, on emoji at 32x32.
"""

from pathlib import Path

FOLDER = Path(__file__).parent.parent / "shipped"
VIDEO_MODEL = "shapes"  # text-to-video
CONDITIONAL_MODEL = "shapes-fill"  # completes known pixels; based on the same image model
UPSCALER = "shapes-ssr"  # spatial super-resolution
STYLE_MODEL = "shapes-duotone"  # the image model, fine-tuned to images in two inks
SHAPES = (VIDEO_MODEL, CONDITIONAL_MODEL, UPSCALER, STYLE_MODEL)
EMOJI_MODEL = "emoji"
NAMES = (*SHAPES, EMOJI_MODEL)
