"""SentencePiece's `spiece.model` as the `tokenizer.json` that a model folder holds."""

import struct
from collections.abc import Iterator
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from stunet.errors import UserError
from stunet.files import read_bytes
from stunet.text import UNK_ID

_EXTRA_IDS = 100  # T5's sentinels, which its vocabulary has and its spiece.model has not

# Numbers of fields in sentencepiece_model.proto.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_PIECE, _SCORE = 1, 2
_MODEL_TYPE, _UNIGRAM = 3, 1
_CHARSMAP = 2


def tokenizer_json(path: Path) -> bytes:
    """Converts a unigram `spiece.model` of T5's.

    Raises:
      UserError: the file is missing or is no such model.
    """
    content = read_bytes(path)
    try:
        return _converted(content).to_str().encode("utf-8")
    except Exception as error:  # of this reading, or the library's, which raises nothing narrower
        raise UserError(f"{path}: not a unigram model of SentencePiece's: {error}") from error


def _converted(content: bytes) -> tokenizers.Tokenizer:
    vocabulary, charsmap = [], b""
    for field, value in _fields(content):
        if field == _PIECES:
            piece = dict(_fields(value))
            score = struct.unpack("<f", piece[_SCORE])[0] if _SCORE in piece else 0.0
            vocabulary.append((piece[_PIECE].decode("utf-8"), score))
        elif field == _TRAINER and dict(_fields(value)).get(_MODEL_TYPE, _UNIGRAM) != _UNIGRAM:
            raise ValueError("it is of another type")
        elif field == _NORMALIZER:
            charsmap = dict(_fields(value)).get(_CHARSMAP, b"")
    if len(vocabulary) <= UNK_ID:
        raise ValueError(f"it has {len(vocabulary)} pieces")
    vocabulary += [(f"<extra_id_{i}>", 0.0) for i in reversed(range(_EXTRA_IDS))]
    tokenizer = tokenizers.Tokenizer(models.Unigram(vocabulary, UNK_ID, byte_fallback=False))
    # SentencePiece drops spaces at both ends and doubled ones.
    steps = [normalizers.Strip(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    if charsmap:
        steps.insert(0, normalizers.Precompiled(charsmap))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    # Whole in a text, not spelt out: a piece of this name would otherwise be cut up.
    specials = [piece for piece, _ in vocabulary[: UNK_ID + 1]]
    specials += [piece for piece, _ in vocabulary[-_EXTRA_IDS:]]
    tokenizer.add_special_tokens(specials)
    return tokenizer


def _fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    """(field number, value) of a protobuf message's wire format."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    def take(length: int) -> bytes:
        nonlocal at
        if at + length > len(message):
            raise IndexError("a field ends beyond its message")
        at += length
        return message[at - length : at]

    while at < len(message):
        key = varint()
        kind = key & 7
        if kind == 0:
            value = varint()
        elif kind in (1, 5):
            value = take(8 if kind == 1 else 4)
        elif kind == 2:
            value = take(varint())
        else:
            raise ValueError(f"wire type {kind}")
        yield key >> 3, value
