"""The moving-shapes world: procedural clips of one shape in one motion, with captions.

Modules: `vocabulary` (words, tones, captions), `silhouettes` and `backdrops` (geometry),
`render` (pixels), `clips` and `moving_shapes_builder` (datasets), `duotone` (a style), and `judge`
with `shape_matching` and `motion_fitting` (reads the words back out of pixels).
"""
