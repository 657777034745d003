"""The layouts in which captioned videos are kept, in one table, `LAYOUTS`.

`read_collection` recognises the layout of a folder and lists its clips. A layout yields rows: of
tables, of samples in tar archives, or of text files. It maps a row to a file and to clips.
"""

import math
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from data.captions import COLUMNS, read_caption_rows
from data.collection_files import CollectionFiles, stem
from data.filters import Condition, parse_filters, parse_list
from data.sources import Source, SourceClip
from data.tables import read_columns, read_rows
from stunet.errors import BucketError, UserError
from stunet.files import split_lines
from stunet.paths import AnyPath
from stunet.video_io.decoding import Span
from stunet.video_io.folders import printable_name

Values = Mapping[str, Any]

CAPTIONS = "captions.csv"
_NAMED = 5  # files and rows of a kind that are named in remarks
_TEXT_COLUMNS = ("text", "caption", "prompt")
_VIDEO_LIST = "videos.txt"
_CAPTION_LISTS = ("prompts.txt", "prompt.txt", "captions.txt", "caption.txt")


class Row(NamedTuple):
    """A row of a table, or what corresponds to it.

    Attributes:
      place: Where it stands ("OpenVid-1M.csv: line 3"), for messages.
      values: Values by the names of the columns in lower case.
      base: Sub-folder of the collection to which paths are relative.
      problem: Why the row cannot be used. None if nothing is known.
    """

    place: str
    values: Values
    base: str = ""
    problem: str | None = None


class Clip(NamedTuple):
    """A clip of a row.

    Attributes:
      captions: Captions. Empty if there are none.
      span: Start and end within the file in seconds. None for the whole file.
      index: Position of the clip in columns that contain a list with a value per clip.
    """

    captions: tuple[str, ...]
    span: Span | None = None
    index: int | None = None


Rows = Callable[[CollectionFiles, Sequence[str], bool], Iterator[Row]]


def _table_rows(files: CollectionFiles, tables: Sequence[str], filtered: bool) -> Iterator[Row]:
    for table in tables:
        base = posixpath.dirname(table)
        for place, values in read_rows(files.folder / table):
            yield Row(f"{table}: {place}", values, base)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A layout of captioned videos.

    Attributes:
      title: Name in messages.
      columns: Columns of its tables in lower case, with alternatives. Empty for layouts that have
        no tables.
      videos: Returns the names under which the video of a row may be stored, for
        `CollectionFiles.find_video`. May raise KeyError, TypeError or ValueError.
      clips: Returns the clips of a row. May raise the same.
      rows: Yields the rows of a collection and its tables. The third argument is whether columns
        other than those of file and caption are needed, for filters.
      is_present: Whether a collection without tables of a layout has this layout.
      table_name: Name that its table must have. None for any.
      lists_all: Whether rows without files and videos without captions are listed as skipped
        clips, one by one, instead of being counted.
    """

    title: str
    columns: tuple[tuple[str, ...], ...] = ()
    videos: Callable[[Values], Sequence[str]]
    clips: Callable[[Values, CollectionFiles], Iterable[Clip]]
    rows: Rows = _table_rows
    is_present: Callable[[CollectionFiles], bool] = lambda files: False
    table_name: str | None = None
    lists_all: bool = False

    def missing(self, columns: Iterable[str]) -> list[str]:
        """Returns the columns that a table lacks for this layout."""
        columns = set(columns)
        return [" or ".join(names) for names in self.columns if columns.isdisjoint(names)]

    def matches(self, table: str, columns: Iterable[str]) -> bool:
        """Returns whether a table has this layout."""
        if self.table_name is not None and table.lower() != self.table_name:
            return False
        return bool(self.columns) and not self.missing(columns)


def read_collection(
    folder: AnyPath, num_frames: int, layout: str | None = None, filters: str | None = None
) -> Source:
    """Lists the clips of a collection of captioned videos.

    Several rows for one clip give it several captions.

    Args:
      folder: Folder of the collection.
      num_frames: With 1, images count as videos.
      layout: Key of `LAYOUTS`. None detects it from names and columns.
      filters: Conditions on numeric columns that all must hold, such as
        "aesthetic score>5,motion score<=20". None for none.

    Raises:
      UserError: the folder has no videos, its layout is unknown or ambiguous, a table is damaged,
        a filter is invalid, or no clip can be used.
    """
    conditions = parse_filters(filters)
    if layout is not None and layout not in LAYOUTS:
        raise UserError(f"config.data.layout: {layout!r}, expected {' or '.join(LAYOUTS)}")
    files = CollectionFiles(folder, num_frames)
    key, tables, remarks = _find_layout(files, layout)
    collector = _Collector(files, LAYOUTS[key], conditions)
    for row in LAYOUTS[key].rows(files, tables, bool(conditions)):
        collector.add(row)
    return collector.source(remarks)


@dataclass
class _Collector:
    """Collects the clips of the rows of a collection."""

    files: CollectionFiles
    layout: Layout
    conditions: tuple[Condition, ...]
    rows: int = 0
    clips: dict[tuple[str, Span | None], dict[str, None]] = field(default_factory=dict)
    selected: set[tuple[str, Span | None]] = field(default_factory=set)
    problems: dict[str, str] = field(default_factory=dict)
    missing_captions: dict[str, dict[str, None]] = field(default_factory=dict)  # by name
    missing_rows: list[str] = field(default_factory=list)  # rows without a file
    invalid_rows: list[str] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Adds the clips of a row."""
        self.rows += 1
        try:
            names = self.layout.videos(row.values)
            name = self.files.find_video(names, row.base)
            if name is None:
                self.missing_rows.append(f"{row.place}: no file {names[0].removeprefix('**/')}")
                if not self.layout.lists_all:
                    return  # without parsing time spans
            clips = list(self.layout.clips(row.values, self.files))
        except (KeyError, TypeError, ValueError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            self.invalid_rows.append(f"{row.place}: {reason}")
            return
        if name is None:
            texts = self.missing_captions.setdefault(names[0], {})
            texts.update((text, None) for clip in clips for text in clip.captions)
            return
        if row.problem is not None:
            self.problems[name] = row.problem
        for clip in clips:
            texts = self.clips.setdefault((name, clip.span), {})
            if all(c.holds(row.values, clip.index, row.place) for c in self.conditions):
                self.selected.add((name, clip.span))
                texts.update(dict.fromkeys(clip.captions))

    def source(self, remarks: Sequence[str]) -> Source:
        """Returns the clips, with remarks on what was not read.

        Raises:
          UserError: no clip can be used.
        """
        files, folder = self.files, self.files.folder
        with_row = {name for name, _ in self.clips}
        without_row = [name for name in files.videos if name not in with_row]
        clips = [
            SourceClip(name, files.media(name), tuple(texts), span, self.problems.get(name))
            for (name, span), texts in self.clips.items()
            if (name, span) in self.selected
        ]
        lines = [*files.skipped, *remarks, *_first(self.invalid_rows)]
        if texts := files.unread_texts({clip.name for clip in clips if clip.captions}):
            reason = f"not read, {self.layout.title} has captions of their videos"
            lines.append(f"{len(texts)} .txt files: {reason} ({texts[0]}, ...)")
        if self.layout.lists_all:
            for name, texts in self.missing_captions.items():
                media, problem = files.media(name), files.problem(name)
                clips.append(SourceClip(name, media, tuple(texts), None, problem))
            clips += [SourceClip(name, files.media(name), ()) for name in without_row]
        else:
            lines += _first(self.missing_rows)
            lines += _first([f"{name}: no row" for name in without_row])
        clips.sort(key=lambda clip: (clip.name, clip.span or ()))
        unit = "row" if self.layout.columns and not self.layout.lists_all else "caption"
        counts = [
            (self.rows, f"{unit}s"),
            (len(with_row), "files"),
            (len(self.clips) if any(span for _, span in self.clips) else 0, "clips"),
            (len(self.missing_rows), "missing"),
            (len(without_row), f"without a {unit}"),
            (len(self.invalid_rows), "invalid"),
        ]
        counts_text = [f"{n} {what}" for n, what in counts if n or what in (f"{unit}s", "files")]
        if self.conditions:
            names = ",".join(map(str, self.conditions))
            counts_text.append(f"{len(self.selected)} of {len(self.clips)} after {names}")
        summary = f"{self.layout.title}: {', '.join(counts_text)}"
        if not any(clip.captions for clip in clips):
            details = (*self.invalid_rows, *self.missing_rows, *remarks)
            first = next((f" ({line})" for line in details), "")
            if self.clips and not self.selected:
                raise UserError(f"config.data.filter: {summary}, expected at least one clip")
            if not self.layout.lists_all:
                raise UserError(
                    f"{folder}: no clip with a caption; {summary}{first}, expected videos below "
                    "this folder and captions of them"
                )
            raise _no_captions(folder)
        if clip_names := [clip.name for clip in clips if "\ufffd" in "".join(clip.captions)]:
            reason = f"captions contain characters that are not UTF-8 ({clip_names[0]}, ...)"
            lines.append(f"{len(clip_names)} videos: {reason}")
        return Source(clips, tuple(lines), summary)


def _no_captions(folder: AnyPath) -> UserError:
    return UserError(
        f"{folder}: no captions, expected {CAPTIONS} with columns "
        f"{','.join(COLUMNS)}, a .txt file beside each video, or another layout "
        f"({', '.join(LAYOUTS)})"
    )


def _first(lines: Sequence[str]) -> list[str]:
    """Returns the first few lines and how many others there are."""
    others = [f"... and {len(lines) - _NAMED} others"] * (len(lines) > _NAMED)
    return [*map(printable_name, lines[:_NAMED]), *others]


def _find_layout(files: CollectionFiles, override: str | None) -> tuple[str, list[str], list[str]]:
    """Returns the key of the layout, its tables, and remarks on other tables.

    Raises:
      UserError: no layout or several fit, or a table is damaged.
    """
    columns, problems = _read_headers(files)
    layouts = {table: _layout_of(table, names, override) for table, names in columns.items()}
    keys = sorted({key for key in layouts.values() if key is not None})
    if len(keys) > 1:
        first = {key: next(table for table, k in layouts.items() if k == key) for key in keys}
        names = " and ".join(f"{first[key]} ({key})" for key in keys)
        raise UserError(
            f"{files.folder}: tables of different layouts: {names}, expected one layout; choose "
            f"it by config.data.layout={keys[0]}"
        )
    candidates = LAYOUTS if override is None else {override: LAYOUTS[override]}
    present = (key for key, layout in candidates.items() if layout.is_present(files))
    key = keys[0] if keys else next(present, None)
    tables = [table for table, other in layouts.items() if other is not None and other == key]
    # Without captions.csv and `override`, a damaged table may be a part of the collection.
    if key is None or (tables and override is None and key != "captions"):
        for error in problems.values():
            raise error
    if key is None:
        if columns:
            raise _nearest_layout(files.folder, columns, candidates)
        raise _no_captions(files.folder)
    reasons = {table: f"columns {', '.join(names)}" for table, names in columns.items()}
    for table, error in problems.items():
        reasons[table] = str(error).removeprefix(f"{files.folder / table}: ")
    others = [f"{table}: not read ({reasons[table]})" for table in columns if table not in tables]
    return key, tables, _first(others)


def _read_headers(
    files: CollectionFiles,
) -> tuple[dict[str, tuple[str, ...]], dict[str, UserError]]:
    """Returns the columns of all tables, and the errors of those that have none."""
    tables = [path.name for path in files.folder.iterdir() if path.name.lower() == CAPTIONS]
    tables = sorted(name for name in tables if (files.folder / name).is_file())
    if len(tables) > 1:
        raise UserError(
            f"{files.folder}: contains {' and '.join(tables)}, expected one table of captions"
        )
    columns: dict[str, tuple[str, ...]] = {}
    problems = {}
    for table in dict.fromkeys((*tables, *files.tables)):
        try:
            names = read_columns(files.folder / table)
        except BucketError:
            raise
        except UserError as error:
            names, problems[table] = (), error
        if names or table in problems:
            columns[table] = names
    return columns, problems


def _layout_of(table: str, columns: tuple[str, ...], override: str | None) -> str | None:
    """Returns the key of a table's layout, or None."""
    keys = LAYOUTS if override is None else (override,)
    default = "captions" if table.lower() == CAPTIONS and "captions" in keys else None
    return next((key for key in keys if LAYOUTS[key].matches(table, columns)), default)


def _nearest_layout(
    folder: AnyPath, columns: Mapping[str, tuple[str, ...]], layouts: Mapping[str, Layout]
) -> UserError:
    """Returns the error of a collection whose tables have no layout."""
    distances = {
        (table, key): (len(layout.columns) - len(missing), -len(missing))
        for table, names in columns.items()
        for key, layout in layouts.items()
        if layout.table_name is None
        for missing in [layout.missing(names)]
    }
    table, key = max(distances, key=distances.__getitem__, default=(next(iter(columns)), ""))
    prefix = f"{folder / table}: columns {', '.join(columns[table])}"
    if key not in layouts or not layouts[key].columns:
        return UserError(f"{prefix}, but no files of layout {' or '.join(layouts)}")
    missing = ", ".join(layouts[key].missing(columns[table]))
    return UserError(
        f"{prefix}, expected those of a layout; the nearest, {key} ({layouts[key].title}), "
        f"also has {missing}"
    )


# Rows of the layouts.


def _caption_rows(files: CollectionFiles, tables: Sequence[str], filtered: bool) -> Iterator[Row]:
    """Yields the rows of `captions.csv`, and text files of videos without captions in it."""
    names = set()
    for table in tables:
        for number, values in read_caption_rows(files.folder / table):
            yield Row(f"{table}: line {number}", values)
            if values["caption"]:
                names.add(files.find_video((values["file"],)))
    if not filtered:  # text files have no columns
        yield from _texts_beside(files, (name for name in files.videos if name not in names))


def _text_rows(files: CollectionFiles, tables: Sequence[str], filtered: bool) -> Iterator[Row]:
    yield from _texts_beside(files, files.videos)


def _texts_beside(files: CollectionFiles, videos: Iterable[str]) -> Iterator[Row]:
    """Yields a row for each video with a text file beside it."""
    for name in videos:
        if (text := files.text_for(stem(name))) is not None:
            yield _with_text(files, Row(text, {"file": name}), text)


def _sample_rows(files: CollectionFiles, tables: Sequence[str], filtered: bool) -> Iterator[Row]:
    """Yields a row for each KEY.mp4 with KEY.txt or KEY.json, and for keys without a video."""
    columns: dict[str, Values] = {}
    for row in _table_rows(files, tables, filtered):
        if row.values.get("key") in (None, ""):
            yield row._replace(values={})
        else:
            columns[str(row.values["key"])] = row.values if filtered else {}
    for name in files.videos:
        key = stem(name)
        values = {**columns.pop(posixpath.basename(key), {}), "file": name}
        text, description = files.text_for(key), files.text_for(key, ".json")
        row = Row(name, values)
        if description is not None and (filtered or text is None):
            try:
                row = row._replace(values={**values, **files.read_json(description), "file": name})
            except BucketError:
                raise
            except UserError as error:
                row = row._replace(problem=f"caption: {error}")
        if text is not None:
            row = _with_text(files, row, text)
        if text is not None or description is not None:
            yield row
    yield from (Row(f"key {key}", {"file": f"**/{key}.*"}) for key in columns)


def _with_text(files: CollectionFiles, row: Row, text: str) -> Row:
    """Adds the caption in a text file, on one line, or the reason why it cannot be read."""
    try:
        return row._replace(values={**row.values, "caption": files.read_text(text)})
    except BucketError:
        raise
    except UserError as error:
        return row._replace(problem=f"caption: {error}")


def _line_rows(files: CollectionFiles, tables: Sequence[str], filtered: bool) -> Iterator[Row]:
    """Yields line i of the list of videos with line i of the list of captions."""
    videos, captions = _line_files(files)
    lines = {name: split_lines(files.read_text(name).rstrip()) for name in (videos, captions)}
    if len(lines[videos]) != len(lines[captions]):
        counts = " and ".join(f"{name}: {len(text)}" for name, text in lines.items())
        raise UserError(f"{files.folder}: lines of {counts}, expected as many")
    for number, pair in enumerate(zip(lines[videos], lines[captions], strict=True), 1):
        yield Row(f"{videos}: line {number}", {"file": pair[0].strip(), "caption": pair[1]})


def _line_files(files: CollectionFiles) -> tuple[str, str] | None:
    """Returns the names of the lists of videos and captions, or None."""
    names = {name.lower(): name for name in files.texts(".txt")}
    lists = [names[name] for name in _CAPTION_LISTS if name in names]
    if _VIDEO_LIST not in names or not lists:
        return None
    if len(lists) > 1:
        raise UserError(f"{files.folder}: contains {' and '.join(lists)}, expected one of them")
    return names[_VIDEO_LIST], lists[0]


# Videos and clips of a row.


def _path(*columns: str) -> Callable[[Values], Sequence[str]]:
    """Returns a function that returns the path in one of these columns."""

    def videos(row: Values) -> Sequence[str]:
        path = next((row[column] for column in columns if row.get(column)), "")
        if not str(path).strip():
            raise ValueError(f"no {' or '.join(columns)}, expected the name of a file")
        return (str(path).strip(),)

    return videos


def _openvid_videos(row: Values) -> Sequence[str]:
    (name,) = _path("video")(row)
    return (f"video/{name}", name, f"**/{name}")


def _webvid_videos(row: Values) -> Sequence[str]:
    (number,) = _path("videoid")(row)
    return (f"{row['page_dir']}/{number}.*", f"**/{number}.*")


def _id_videos(row: Values) -> Sequence[str]:
    """Returns the names of a source video, stored under the id in its address or in a column."""
    ids = (video_id(str(row["url"])), row.get("videoid"), row.get("video_id"))
    names = tuple(dict.fromkeys(f"**/{name}.*" for name in ids if name))
    if not names:
        raise ValueError("no url, expected the address of a video")
    return names


def video_id(url: str) -> str:
    """Returns the id in a YouTube address, else the stem of the last part of its path."""
    parts = urlsplit(url)
    if ids := parse_qs(parts.query).get("v"):
        return ids[0]
    return stem(posixpath.basename(parts.path))


def _whole(*columns: str) -> Callable[[Values, CollectionFiles], Iterable[Clip]]:
    """Returns a function that returns the whole file, with the captions of one of these columns."""

    def clips(row: Values, files: CollectionFiles) -> Iterable[Clip]:
        return (Clip(_texts(next((row[c] for c in columns if row.get(c)), None))),)

    return clips


def _timestamped(row: Values, files: CollectionFiles) -> Iterator[Clip]:
    """Yields a clip per time span. Several are in lists, one is a list of its start and end."""
    spans = parse_list(row["timestamp"])
    if not spans or not isinstance(spans[0], list | tuple):
        yield Clip(_texts(row["caption"]), _span(spans))
        return
    captions = parse_list(row["caption"])
    if len(captions) != len(spans):
        raise ValueError(f"{len(spans)} timestamps, {len(captions)} captions, expected as many")
    for index, (span, caption) in enumerate(zip(spans, captions, strict=True)):
        yield Clip(_texts(caption), _span(span), index)


def _hd_vila(row: Values, files: CollectionFiles) -> Iterator[Clip]:
    """Yields the clips, with captions in text files named after the clip or the video."""
    for clip in parse_list(row["clip"]):
        names = (clip["clip_id"], stem(clip["clip_id"]), row["video_id"])
        texts = (files.text_for(f"**/{name}") for name in names)
        text = next((name for name in texts if name), None)
        yield Clip(_texts(files.read_text(text) if text else None), _span(clip["span"]))


def parse_seconds(value: Any) -> float:
    """Parses a number of seconds or "[[HOURS:]MINUTES:]SECONDS".

    Raises:
      ValueError: the value is neither.
    """
    seconds = 0.0
    for part in str(value).strip().split(":"):
        seconds = 60 * seconds + float(part)
    return seconds


def _span(value: Any) -> Span:
    try:
        start, end = map(parse_seconds, parse_list(value))
    except ValueError:
        start = end = math.nan
    if not 0 <= start < end < math.inf:
        raise ValueError(f"time span {str(value)[:60]}, expected [start, end] in seconds or H:M:S")
    return start, end


def _texts(caption: Any) -> tuple[str, ...]:
    """Returns one or several captions, each on one line, without empty ones."""
    texts = caption if isinstance(caption, list | tuple) else (caption,)
    lines = (" ".join(text.split()) for text in texts if isinstance(text, str))
    return tuple(line for line in lines if line)


def _has_descriptions(files: CollectionFiles) -> bool:
    return any(files.text_for(stem(name), ".json") for name in files.videos)


# The first layout that a table fits is used.
LAYOUTS: dict[str, Layout] = {
    "captions": Layout(
        title=CAPTIONS,
        columns=(("file",), ("caption",)),
        table_name=CAPTIONS,
        rows=_caption_rows,
        videos=_path("file"),
        clips=_whole("caption"),
        lists_all=True,
    ),
    "video_folder": Layout(
        title="VideoFolder",
        columns=(("file_name", "file", "video_path"), _TEXT_COLUMNS),
        videos=_path("file_name", "file", "video_path"),
        clips=_whole(*_TEXT_COLUMNS),
    ),
    "openvid": Layout(
        title="OpenVid-1M",
        columns=(("video",), ("caption",)),
        videos=_openvid_videos,
        clips=_whole("caption"),
    ),
    "panda_70m": Layout(
        title="Panda-70M",
        columns=(("url",), ("timestamp",), ("caption",), ("matching_score",)),
        videos=_id_videos,
        clips=_timestamped,
    ),
    "koala_36m": Layout(
        title="Koala-36M",
        columns=(("videoid",), ("url",), ("timestamp",), ("caption",)),
        videos=_id_videos,
        clips=_timestamped,
    ),
    "webvid": Layout(
        title="WebVid",
        columns=(("videoid",), ("page_dir",), ("name",)),
        videos=_webvid_videos,
        clips=_whole("name"),
    ),
    "hd_vila": Layout(
        title="HD-VILA",
        columns=(("video_id",), ("url",), ("clip",)),
        videos=_id_videos,
        clips=_hd_vila,
    ),
    "open_sora": Layout(
        title="Open-Sora",
        columns=(("path",), ("text",)),
        videos=_path("path"),
        clips=_whole("text"),
    ),
    "webdataset": Layout(
        title="WebDataset",
        columns=(("key",), ("status",)),
        is_present=lambda files: bool(files.archives) or _has_descriptions(files),
        rows=_sample_rows,
        videos=_path("file", "key"),
        clips=_whole("caption", "text", "prompt"),
    ),
    "video_list": Layout(
        title=_VIDEO_LIST,
        is_present=lambda files: _line_files(files) is not None,
        rows=_line_rows,
        videos=_path("file"),
        clips=_whole("caption"),
    ),
    "text_files": Layout(
        title="text files",
        is_present=lambda files: any(True for _ in _texts_beside(files, files.videos)),
        rows=_text_rows,
        videos=_path("file"),
        clips=_whole("caption"),
        lists_all=True,
    ),
}
