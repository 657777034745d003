"""Conversion of SentencePiece's `spiece.model` to `tokenizer.json`."""

import struct
from collections.abc import Iterator

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from stunet.errors import UserError
from stunet.files import read_bytes
from stunet.paths import AnyPath
from stunet.text import UNK_ID

_EXTRA_IDS = 100  # T5's sentinel tokens, which its spiece.model does not contain

# Field numbers of sentencepiece_model.proto.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_PIECE, _SCORE = 1, 2
_MODEL_TYPE, _UNIGRAM = 3, 1
_CHARSMAP = 2


def tokenizer_json(path: AnyPath) -> bytes:
    """Converts T5's unigram `spiece.model` to the contents of a `tokenizer.json`.

    Raises:
      UserError: The file is missing or not a unigram model.
    """
    content = read_bytes(path)
    try:
        return _parse_model(content).to_str().encode("utf-8")
    except Exception as error:  # tokenizers raises plain Exception
        raise UserError(f"{path}: not a unigram model of SentencePiece ({error})") from error


def _parse_model(content: bytes) -> tokenizers.Tokenizer:
    vocabulary, charsmap = [], b""
    for field, value in _fields(content):
        if field == _PIECES:
            piece = dict(_fields(value))
            score = struct.unpack("<f", piece[_SCORE])[0] if _SCORE in piece else 0.0
            vocabulary.append((piece[_PIECE].decode("utf-8"), score))
        elif field == _TRAINER and dict(_fields(value)).get(_MODEL_TYPE, _UNIGRAM) != _UNIGRAM:
            raise ValueError("its type is not unigram")
        elif field == _NORMALIZER:
            charsmap = dict(_fields(value)).get(_CHARSMAP, b"")
    if len(vocabulary) <= UNK_ID:
        raise ValueError(f"{len(vocabulary)} pieces, expected more than {UNK_ID}")
    vocabulary += [(f"<extra_id_{i}>", 0.0) for i in reversed(range(_EXTRA_IDS))]
    tokenizer = tokenizers.Tokenizer(models.Unigram(vocabulary, UNK_ID, byte_fallback=False))
    # SentencePiece strips spaces at both ends and collapses repeated ones.
    steps = [normalizers.Strip(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    if charsmap:
        steps.insert(0, normalizers.Precompiled(charsmap))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    # Special tokens are matched in the text as a unit; otherwise they would be split into pieces.
    specials = [piece for piece, _ in vocabulary[: UNK_ID + 1]]
    specials += [piece for piece, _ in vocabulary[-_EXTRA_IDS:]]
    tokenizer.add_special_tokens(specials)
    return tokenizer


def _fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Yields (field number, value) of a protobuf message."""
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = message[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    def take(length: int) -> bytes:
        nonlocal position
        if position + length > len(message):
            raise IndexError("a field ends beyond its message")
        position += length
        return message[position - length : position]

    while position < len(message):
        key = varint()
        wire_type = key & 7
        if wire_type == 0:
            value = varint()
        elif wire_type in (1, 5):
            value = take(8 if wire_type == 1 else 4)
        elif wire_type == 2:
            value = take(varint())
        else:
            raise ValueError(f"unknown wire type {wire_type}")
        yield key >> 3, value
