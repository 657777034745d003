"""Reads the audio of a video and writes it beside other pictures."""

import io
from collections.abc import Iterator

import av

from stunet.errors import UserError
from stunet.paths import AnyPath, user_path
from stunet.video_io.decoding import time_origin
from stunet.video_io.ffmpeg import open_input

# Codecs that MP4 files can hold and players support; audio in others is encoded again, as AAC.
_MP4_CODECS = ("aac", "mp3", "ac3", "eac3", "opus", "alac", "flac")
_LAYOUTS = ("mono", "stereo", "2.1", "4.0", "5.0", "5.1", "6.1", "7.1")  # if a file names none
_AAC_FRAME = 1024  # samples
_AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)


def has_audio(path: str | AnyPath) -> bool:
    """Whether a file has an audio track."""
    try:
        with user_path(path).open("rb") as file, open_input(file) as container:
            return container.streams.best("audio") is not None
    except (OSError, av.error.FFmpegError):  # an image
        return False


def read_audio(path: str | AnyPath) -> bytes:
    """Returns the main audio track of a video as an MP4 file whose time 0 is the first frame.

    Copies the encoded audio if MP4 supports its codec, otherwise encodes it as AAC.

    Raises:
      UserError: The file has no audio, or it is damaged or in an unsupported format.
    """
    output = io.BytesIO()
    try:
        with (
            user_path(path).open("rb") as file,
            open_input(file) as source,
            av.open(output, "w", format="mp4") as target,
        ):
            stream = source.streams.best("audio")
            if stream is None:
                raise ValueError("no audio track")
            start = _video_start(source)
            if stream.codec_context.codec.canonical_name in _MP4_CODECS:
                _copy(source, stream, target, start)
            else:
                _encode(source, stream, target, start)
    except (OSError, ValueError, av.error.FFmpegError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: audio cannot be read ({reason})") from error
    return output.getvalue()


class AudioWriter:
    """Adds audio to an MP4 file that is being written.

    Args:
      container: The file, before anything is written to it.
      audio: Result of `read_audio`.
    """

    def __init__(self, container: av.container.OutputContainer, audio: bytes):
        self._container = container
        self._source = open_input(io.BytesIO(audio))
        track = self._source.streams.audio[0]
        self._stream = container.add_stream_from_template(track)
        self._packets = (packet for packet in self._source.demux(track) if packet.size)
        self._next = next(self._packets, None)

    def write_until(self, seconds: float) -> None:
        """Writes the audio that starts before a time, so that it lies beside the pictures."""
        while self._next is not None:
            packet = self._next
            if packet.pts is not None and packet.pts * packet.time_base >= seconds:
                return
            packet.stream = self._stream
            self._container.mux(packet)
            self._next = next(self._packets, None)

    def close(self) -> None:
        """Closes the source of the audio."""
        self._source.close()


def _video_start(container: av.container.InputContainer) -> float:
    """Returns the time of the first frame that `decode` returns, in seconds."""
    stream = container.streams.best("video")
    if stream is None or stream.start_time is None:
        return 0.0
    first_frame = float(stream.start_time * stream.time_base)
    return time_origin(container, first_frame, float(stream.average_rate or 25))


def _copy(
    source: av.container.InputContainer,
    stream: av.AudioStream,
    target: av.container.OutputContainer,
    start: float,
) -> None:
    copied = target.add_stream_from_template(stream)
    shift = round(start / stream.time_base)
    for packet in source.demux(stream):
        # Decoded as well, because copying alone notices no damage.
        if packet.is_corrupt or any(frame.is_corrupt for frame in packet.decode()):
            raise ValueError("truncated or damaged")
        if not packet.size or packet.is_discard or packet.pts is None:
            continue
        packet.pts -= shift
        packet.dts = packet.pts
        packet.stream = copied
        target.mux(packet)


def _encode(
    source: av.container.InputContainer,
    stream: av.AudioStream,
    target: av.container.OutputContainer,
    start: float,
) -> None:
    rate = min(_AAC_RATES, key=lambda rate: abs(rate - stream.codec_context.sample_rate))
    encoder = target.add_stream("aac", rate=rate)
    layout = stream.codec_context.layout.name
    if layout.endswith(" channels"):  # PCM in some containers
        count = stream.codec_context.layout.nb_channels
        layout = stream.codec_context.layout = _LAYOUTS[min(count, len(_LAYOUTS)) - 1]
    encoder.layout = layout
    for frame in _resampled(source, stream, layout, rate):
        if frame.pts is not None:
            frame.pts -= round(start / frame.time_base)
        target.mux(encoder.encode(frame))
    target.mux(encoder.encode())


def _resampled(
    source: av.container.InputContainer, stream: av.AudioStream, layout: str, rate: int
) -> Iterator[av.AudioFrame]:
    resampler = av.AudioResampler("fltp", layout, rate, frame_size=_AAC_FRAME)
    for frame in source.decode(stream):
        yield from resampler.resample(frame)
    yield from resampler.resample(None)
