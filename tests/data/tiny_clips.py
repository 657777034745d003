"""Small folders of captioned clips for tests."""

import numpy as np

from data import pipeline
from data.captions import read_caption_rows
from stunet.video_io import write_video

FIELDS = {
    "name": "video_folder",
    "split": "train",
    "resolution": 16,
    "fps": 8.0,
    "num_frames": 8,
    "seed": 0,
    "caption_dropout": 0.0,
    "workers": 0,
}


def write_clips(folder, count, num_frames=20):
    """Writes clips of moving gradients, `0.mp4` with the caption "clip 0" and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["file,caption"]
    x = np.linspace(0, 6, 24)
    for index in range(count):
        phase = np.arange(num_frames)[:, None] / 4 + index
        levels = np.sin(x + phase)[:, None, :, None] * [1.0, 0.5, -0.5]
        video = np.broadcast_to(levels, (num_frames, 24, 24, 3))
        write_video(folder / f"{index}.mp4", video, 8)
        rows.append(f"{index}.mp4,clip {index}")
    (folder / "captions.csv").write_text("\n".join(rows) + "\n")


def config_for(folder, data_dir, **changes):
    """Returns the data config of a folder of clips."""
    fields = {**FIELDS, "source": str(folder), "data_dir": str(data_dir), **changes}
    return pipeline.parse_config(fields)


def tokenize(texts):
    """Encodes a text as its length."""
    tokens = np.array([[len(text)] for text in texts], np.int32)
    return tokens, tokens > 0


def read_all(config):
    """Returns the content of all records of a dataset, in order."""
    records = pipeline.open_records(config)
    return [
        {name: np.asarray(value).tobytes() for name, value in records[index].items()}
        for index in range(len(records))
    ]


def read_caption_table(path):
    """Returns the captions in a table by its file names; see `read_caption_rows`."""
    captions = {}
    for _, row in read_caption_rows(path):
        texts = captions.setdefault(row["file"], {})
        if row["caption"]:
            texts[row["caption"]] = None
    return {name: tuple(texts) for name, texts in captions.items()}
