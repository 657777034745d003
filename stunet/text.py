"""Captions to token ids, by T5's conventions, with a tokenizer read from a file."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from stunet.errors import UserError
from stunet.files import read_bytes

# T5's vocabulary starts with these three.
PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")

# DeepFloyd IF's caption length; its pooled text attends to exactly these 77 positions.
MAX_TOKENS = 77


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A vocabulary together with the one length that every caption gets."""

    vocabulary: tokenizers.Tokenizer
    max_tokens: int

    @property
    def vocab_size(self) -> int:
        """Number of token ids, special ones included."""
        return self.vocabulary.get_vocab_size()

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Encodes N captions, each closed by `</s>` (the empty one too), cut or padded.

        Returns:
          ids: `[N, max_tokens]` int32, 0 where padded.
          mask: `[N, max_tokens]` bool, True on tokens and on their `</s>`.
        """
        ids = np.full((len(texts), self.max_tokens), PAD_ID, np.int32)
        mask = np.zeros(ids.shape, bool)
        for row, text in enumerate(texts):
            tokens = [*self._encode(text)[: self.max_tokens - 1], EOS_ID]
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = True
        return ids, mask

    def num_truncated(self, texts: Sequence[str]) -> int:
        """How many captions are too long, for the caller to warn of."""
        return sum(len(self._encode(text)) >= self.max_tokens for text in texts)

    def truncation_warning(self, prompt: str) -> str | None:
        """What to tell of a prompt that is not read to its end; None of one that is."""
        if not self.num_truncated([prompt]):
            return None
        return f"the model reads {self.max_tokens} tokens; the prompt's end was cut"

    def _encode(self, text: str) -> list[int]:
        # One at a time: encoding in batches starts threads, which warn in forked workers.
        # A prompt from a command line may hold bytes that are not UTF-8, as lone surrogates.
        text = text.encode("utf-8", "replace").decode("utf-8")
        return self.vocabulary.encode(text, add_special_tokens=False).ids


def check_prompt(prompt: str) -> None:
    """Refuses a prompt that says nothing.

    Raises:
      UserError: it does.
    """
    if not prompt.strip():
        raise UserError("the prompt is empty; say what the video shows")


def load_tokenizer(path: str | Path, max_tokens: int = MAX_TOKENS) -> Tokenizer:
    """Reads a `tokenizer.json`, of a model trained here or of a published T5.

    Raises:
      UserError: the file is missing or unreadable; or as `parse_tokenizer`.
    """
    return parse_tokenizer(read_bytes(Path(path)), max_tokens, str(path))


def parse_tokenizer(content: bytes, max_tokens: int, where: str) -> Tokenizer:
    """The tokenizer that a `tokenizer.json` holds; `where` names it in errors.

    Raises:
      UserError: it is no tokenizer, its special tokens do not have T5's ids, or `max_tokens`
        leaves no room for a caption.
    """
    if max_tokens < 2:
        raise UserError(f"max_tokens must be at least 2 (a token and </s>), got {max_tokens}")
    try:
        vocabulary = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{where}: not a tokenizer.json: {error}") from error
    for token, expected in (("<pad>", PAD_ID), ("</s>", EOS_ID)):
        if (found := vocabulary.token_to_id(token)) != expected:
            raise UserError(f"{where}: token {token} must have T5's id {expected}, has {found}")
    # The file may ask for its own; cutting before </s> is appended is ours to do.
    vocabulary.no_truncation()
    vocabulary.no_padding()
    return Tokenizer(vocabulary, max_tokens)


def train_tokenizer(captions: Iterable[str], vocab_size: int, path: str | Path) -> None:
    """Learns a byte-level BPE vocabulary from captions and writes it as `tokenizer.json`.

    Every byte is a token, so words never seen in training can be encoded too. Case
    and Unicode variants of one character are folded: a small vocabulary has no room for them. The
    same captions give the same file; few captions may give fewer than `vocab_size` tokens.

    Raises:
      UserError: `vocab_size` is less than the bytes and special tokens need, or
        the file cannot be written.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(alphabet) + len(SPECIAL_TOKENS):
        raise UserError(
            f"vocab_size must be at least {len(alphabet) + len(SPECIAL_TOKENS)} "
            f"({len(alphabet)} bytes, {len(SPECIAL_TOKENS)} special tokens), got {vocab_size}"
        )
    vocabulary = tokenizers.Tokenizer(models.BPE())
    vocabulary.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    # The prefix space makes a word one token, whether or not it opens the caption.
    vocabulary.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    vocabulary.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    vocabulary.train_from_iterator(captions, trainer)
    try:
        Path(path).write_text(vocabulary.to_str(pretty=True), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot write the tokenizer: {error}") from error
