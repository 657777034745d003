"""Audio of inputs: read from any container, written beside a video at the same time."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from stunet.errors import UserError
from stunet.video_io import (
    audio_warning,
    check_writable,
    has_audio,
    probe,
    read_audio,
    read_video,
    write_video,
)

FPS, FRAMES = 16, 16
ONSET = 0.5  # seconds of silence before the tone
VIDEO = np.zeros((FRAMES, 8, 8, 3), np.float32)


def make(
    path: Path,
    codec: str = "aac",
    *,
    rate: int = 48000,
    layout: str = "stereo",
    video_delay: float = 0.0,
    audio_delay: float = 0.0,
    tones: tuple[float, ...] = (440.0,),
) -> Path:
    """Writes a video whose frame i has the grey value 10 i, with a tone that begins at `ONSET`."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4" if path.suffix == ".avi" else "libx264", rate=FPS)
        video.width = video.height = 32
        video.pix_fmt = "yuv420p"
        tracks = []
        for _ in tones:
            track = container.add_stream(codec, rate=rate, options={"strict": "-2"})
            track.layout = layout
            tracks.append(track)
        for i in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 10 * i, np.uint8), "rgb24")
            frame.pts, frame.time_base = i + round(video_delay * FPS), Fraction(1, FPS)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        time = np.arange(rate) / rate
        for track, tone in zip(tracks, tones, strict=True):
            wave = np.where(time < ONSET, 0, 0.3 * np.sin(2 * np.pi * tone * time))
            channels = [wave.astype(np.float32)] * av.AudioLayout(layout).nb_channels
            sound = av.AudioFrame.from_ndarray(np.stack(channels), "fltp", layout)
            sound.sample_rate, sound.time_base = rate, Fraction(1, rate)
            sound.pts = round(audio_delay * rate)
            size = 0 if codec.startswith("pcm") else (track.codec_context.frame_size or 1024)
            resampler = av.AudioResampler(track.codec_context.format, layout, rate, size)
            for part in [*resampler.resample(sound), *resampler.resample(None)]:
                container.mux(track.encode(part))
            container.mux(track.encode())
    return path


def track_of(path: Path) -> dict:
    """Codec, layout, rate, number of tracks, and the tone: its start in seconds and its pitch."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        frames = list(container.decode(stream))
        begin, rate = frames[0].time, stream.rate
        resampler = av.AudioResampler("fltp", "mono", rate)
        if frames[0].layout.name.endswith("channels"):  # not named, which the resampler refuses
            samples = np.concatenate([f.to_ndarray()[0, :: f.layout.nb_channels] for f in frames])
            samples = samples / 2**15
        else:
            mono = [part for frame in frames for part in resampler.resample(frame)]
            samples = np.concatenate([part.to_ndarray()[0] for part in mono])
        start = np.argmax(np.abs(samples) > 0.05) / rate
        tone = samples[int((start + 0.1) * rate) : int((start + 0.3) * rate)]
        spectrum = np.abs(np.fft.rfft(tone * np.hanning(len(tone))))
        return {
            "codec": stream.codec_context.codec.canonical_name,
            "channels": stream.codec_context.layout.nb_channels,
            "rate": rate,
            "tracks": len(container.streams.audio),
            "start": begin + start,
            "pitch": np.argmax(spectrum) * rate / len(tone),
        }


def packets_of(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(p) for p in container.demux(container.streams.audio[0]) if p.size]


@pytest.mark.parametrize(
    ("name", "codec", "written"),
    [
        ("a.mp4", "aac", "aac"),
        ("a.mov", "aac", "aac"),
        ("a.mkv", "aac", "aac"),
        ("a.ts", "aac", "aac"),
        ("a.mp4", "libmp3lame", "mp3"),
        ("a.avi", "libmp3lame", "mp3"),
        ("a.mkv", "ac3", "ac3"),
        ("a.mkv", "eac3", "eac3"),
        ("a.mkv", "libopus", "opus"),
        ("a.mkv", "flac", "flac"),
        ("a.mov", "alac", "alac"),
        ("a.mov", "pcm_s16le", "aac"),
        ("a.avi", "pcm_s16le", "aac"),
        ("a.mkv", "pcm_s16le", "aac"),
        ("a.ts", "mp2", "aac"),
    ],
)
def test_audio_of_any_codec_is_written_at_its_time(tmp_path, name, codec, written):
    source, out = make(tmp_path / name, codec), tmp_path / "out.mp4"
    assert has_audio(source)
    write_video(out, VIDEO, FPS, audio=read_audio(source))
    before, after = track_of(source), track_of(out)
    assert after["codec"] == written and after["tracks"] == 1
    assert (after["rate"], after["channels"]) == (48000, 2)
    with av.open(str(source)) as container:
        video = container.streams.video[0]
        begin = float((video.start_time or 0) * video.time_base)
    assert after["start"] == pytest.approx(before["start"] - begin, abs=0.005)
    assert after["pitch"] == pytest.approx(440, abs=6)
    frames, fps = read_video(out)
    assert (len(frames), fps) == (FRAMES, FPS)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_encoded_audio_is_copied(tmp_path, name):
    source, out = make(tmp_path / name), tmp_path / "out.mp4"
    write_video(out, VIDEO, FPS, audio=read_audio(source))
    packets = packets_of(out)
    assert len(packets) > 40
    assert packets == packets_of(source)[-len(packets) :]  # MP4 hides the encoder's first one


@pytest.mark.parametrize(("layout", "channels"), [("mono", 1), ("stereo", 2), ("5.1", 6)])
@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "aac"), ("a.mkv", "pcm_s16le")])
def test_channels_stay(tmp_path, name, codec, layout, channels):
    source, out = make(tmp_path / name, codec, layout=layout), tmp_path / "out.mp4"
    write_video(out, VIDEO, FPS, audio=read_audio(source))
    assert track_of(out)["channels"] == channels


@pytest.mark.parametrize("rate", [8000, 22050, 96000])
def test_sampling_rates_stay(tmp_path, rate):
    source = make(tmp_path / "a.mov", "pcm_s16le", rate=rate, layout="mono")
    write_video(tmp_path / "out.mp4", VIDEO, FPS, audio=read_audio(source))
    after = track_of(tmp_path / "out.mp4")
    assert after["rate"] == rate and after["pitch"] == pytest.approx(440, abs=6)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
@pytest.mark.parametrize("codec", ["aac", "flac"])
def test_audio_that_starts_late_stays_late(tmp_path, name, codec):
    source, out = make(tmp_path / name, codec, audio_delay=0.25), tmp_path / "out.mp4"
    write_video(out, VIDEO, FPS, audio=read_audio(source))
    assert track_of(out)["start"] == pytest.approx(ONSET + 0.25, abs=0.005)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
@pytest.mark.parametrize("codec", ["aac", "pcm_s16le"])
def test_pictures_that_start_late_and_their_audio_stay_together(tmp_path, name, codec):
    """The reader shows the first picture from the start of the audio on."""
    if (name, codec) == ("a.mp4", "pcm_s16le"):
        name = "a.mov"
    source, out = make(tmp_path / name, codec, video_delay=0.25), tmp_path / "out.mp4"
    frames, fps = read_video(source)
    assert len(frames) / fps == probe(source).seconds == 1.25
    write_video(out, frames, fps, audio=read_audio(source))
    assert track_of(out)["start"] == pytest.approx(ONSET, abs=0.005)
    grey = (read_video(out)[0].mean((1, 2, 3)) + 1) * 127.5
    assert grey[12] == pytest.approx(80, abs=3)  # frame 8, at 0.25 + 8 / 16 = 12 / 16 s


def test_the_main_track_of_several(tmp_path):
    source, out = make(tmp_path / "a.mkv", tones=(440.0, 880.0)), tmp_path / "out.mp4"
    write_video(out, VIDEO, FPS, audio=read_audio(source))
    after = track_of(out)
    assert after["tracks"] == 1 and after["pitch"] == pytest.approx(440, abs=6)


def test_files_without_audio(tmp_path):
    write_video(tmp_path / "silent.mp4", VIDEO, FPS)
    write_video(tmp_path / "image.png", VIDEO[:1], FPS)
    assert not has_audio(tmp_path / "silent.mp4") and not has_audio(tmp_path / "image.png")


@pytest.mark.parametrize("name", ["out.gif", "out.png", "OUT.GIF"])
def test_formats_without_audio_are_warned_of(tmp_path, name):
    audio = read_audio(make(tmp_path / "a.mp4"))
    assert name in audio_warning(tmp_path / name, audio)
    assert audio_warning(tmp_path / name, None) is None
    assert audio_warning(tmp_path / "OUT.MP4", audio) is None


@pytest.mark.parametrize(
    "name",
    ["12:30.mp4", "a%d.mp4", "-x.mp4", "http:x.mp4", "concat:a|b.mp4", "ü b.MP4"],
)
def test_names_that_resemble_addresses_and_patterns(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_video(name, VIDEO, FPS)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert len(read_video(name)[0]) == FRAMES


def test_names_may_be_as_long_as_the_file_system_permits(tmp_path):
    write_video(tmp_path / ("x" * 251 + ".mp4"), VIDEO, FPS)
    with pytest.raises(UserError, match="xxx.*too long"):
        check_writable(tmp_path / ("x" * 300 + ".mp4"))
