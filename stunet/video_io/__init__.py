"""Reads and writes videos: PyAV for H.264 and everything that it decodes, Pillow for images.

Videos are `[T, H, W, 3]` float32 in [-1, 1]. To read one file at several resolutions, decode it
once:

    read_video_sizes(source, fps=None, resolutions=(16, 64), max_frames=None, margins=None,
                     multiple_of=None) -> VideoSizes(frames, fps, size, margin_masks, warnings)
"""

from stunet.video_io.audio import has_audio, read_audio
from stunet.video_io.decoding import Margins, VideoInfo, VideoSource, probe, read_comment, retime
from stunet.video_io.pixels import contact_sheet, to_float, to_uint8
from stunet.video_io.reading import (
    VideoSizes,
    decode_frames,
    frame_size,
    read_video,
    read_video_sizes,
)
from stunet.video_io.writing import (
    SUFFIXES,
    audio_warning,
    check_writable,
    write_image,
    write_video,
)

__all__ = [
    "SUFFIXES",
    "Margins",
    "VideoInfo",
    "VideoSizes",
    "VideoSource",
    "audio_warning",
    "check_writable",
    "contact_sheet",
    "decode_frames",
    "frame_size",
    "has_audio",
    "probe",
    "read_audio",
    "read_comment",
    "read_video",
    "read_video_sizes",
    "retime",
    "to_float",
    "to_uint8",
    "write_image",
    "write_video",
]
