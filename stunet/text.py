"""Tokenizes captions with T5's conventions; reads and trains `tokenizer.json` files."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from stunet.errors import UserError
from stunet.files import read_bytes
from stunet.paths import AnyPath, user_path

# The first ids of T5's vocabulary.
PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")

# Caption length of DeepFloyd IF, whose text pooling attends to exactly 77 positions.
MAX_TOKENS = 77

_MAX_WORDS = 10  # unknown words that a warning lists


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A vocabulary and a fixed caption length.

    Attributes:
      vocabulary: Tokenizer without truncation and padding.
      max_tokens: Length of every encoded caption, including `</s>`.
      lower_case: Whether captions are lower-cased and stripped first.
    """

    vocabulary: tokenizers.Tokenizer
    max_tokens: int
    lower_case: bool = False

    @property
    def vocab_size(self) -> int:
        """Number of token ids, including special tokens."""
        return self.vocabulary.get_vocab_size()

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Encodes N captions, appends `</s>` to each (also to an empty one), truncates or pads.

        Returns:
          ids: `[N, max_tokens]` int32, 0 in the padding.
          mask: `[N, max_tokens]` bool, True for tokens including `</s>`.
        """
        ids = np.full((len(texts), self.max_tokens), PAD_ID, np.int32)
        mask = np.zeros(ids.shape, bool)
        for row, text in enumerate(texts):
            tokens = [*self._encode(text)[: self.max_tokens - 1], EOS_ID]
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = True
        return ids, mask

    def warnings(self, texts: Sequence[str], what: str) -> list[str]:
        """Returns warnings about texts that are truncated or contain unknown words.

        Args:
          texts: Texts to check.
          what: Name of the texts, such as "prompts" or "config.data: captions".
        """
        found = (self.truncation_warning(texts, what), self.unknown_words_warning(texts, what))
        return [warning for warning in found if warning is not None]

    def truncation_warning(self, texts: Sequence[str], what: str) -> str | None:
        """Returns a warning if texts are truncated, else None.

        Args:
          texts: Texts to check.
          what: Name of the texts, such as "prompts" or "config.data: captions".
        """
        lengths = {text: len(self._encode(text)) + 1 for text in dict.fromkeys(texts)}  # with </s>
        count = sum(lengths[text] > self.max_tokens for text in texts)
        if not count:
            return None
        longest = max(lengths, key=lengths.__getitem__)
        return (
            f"{what}: {count} of {len(texts)} truncated to the {self.max_tokens} tokens that the "
            f"model reads; the longest has {lengths[longest]} tokens ({_shorten(longest)})"
        )

    def unknown_words_warning(self, texts: Sequence[str], what: str) -> str | None:
        """Returns a warning that lists the words without a token, else None.

        The model reads `<unk>` in their place. Byte-level vocabularies have tokens for any text.

        Args:
          texts: Texts to check.
          what: Name of the texts, such as "prompts" or "config.data: captions".
        """
        words = dict.fromkeys(word for text in dict.fromkeys(texts) for word in text.split())
        unknown = [word for word in words if UNK_ID in self._encode(word)]
        if not unknown:
            return None
        shown = ", ".join(map(_shorten, unknown[:_MAX_WORDS]))
        more = f" and {len(unknown) - _MAX_WORDS} others" if len(unknown) > _MAX_WORDS else ""
        return f"{what}: the model's vocabulary has no token for parts of {shown}{more}"

    def _encode(self, text: str) -> list[int]:
        # Not in batches, which start threads that warn in forked workers. A prompt from a command
        # line can contain lone surrogates (bytes that are not UTF-8).
        text = text.encode("utf-8", "replace").decode("utf-8")
        if self.lower_case:
            text = text.lower().strip()
        return self.vocabulary.encode(text, add_special_tokens=False).ids


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def check_prompt(prompt: str) -> None:
    """Checks that a prompt contains text.

    Raises:
      UserError: The prompt is empty.
    """
    if not prompt.strip():
        raise UserError("the prompt is empty, expected a description of the video")


def load_tokenizer(path: str | AnyPath, max_tokens: int = MAX_TOKENS) -> Tokenizer:
    """Reads a `tokenizer.json`, of a model of this package or a published T5.

    Args:
      path: File to read.
      max_tokens: Length of every encoded caption.

    Raises:
      UserError: The file is missing, unreadable or invalid; see `parse_tokenizer`.
    """
    return parse_tokenizer(read_bytes(user_path(path)), max_tokens, str(path))


def parse_tokenizer(
    content: bytes, max_tokens: int, where: str, lower_case: bool = False
) -> Tokenizer:
    """Parses the contents of a `tokenizer.json`.

    Args:
      content: Contents of the file.
      max_tokens: Length of every encoded caption.
      where: Name of the file, for error messages.
      lower_case: Whether captions are lower-cased and stripped first.

    Raises:
      UserError: The contents are not a tokenizer, its special tokens do not have T5's ids, or
        `max_tokens` is less than 2.
    """
    if max_tokens < 2:
        raise UserError(f"max_tokens is {max_tokens}, expected at least 2 (a token and </s>)")
    try:
        vocabulary = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{where}: not a tokenizer.json ({error})") from error
    for token, expected in (("<pad>", PAD_ID), ("</s>", EOS_ID)):
        if (found := vocabulary.token_to_id(token)) != expected:
            raise UserError(f"{where}: token {token} has id {found}, expected T5's id {expected}")
    # Ignore the file's settings: `Tokenizer` truncates before it appends </s>.
    vocabulary.no_truncation()
    vocabulary.no_padding()
    return Tokenizer(vocabulary, max_tokens, lower_case)


def train_tokenizer(captions: Iterable[str], vocab_size: int, path: str | AnyPath) -> None:
    """Trains a byte-level BPE vocabulary on captions and writes it as `tokenizer.json`.

    Every byte is a token, so that unseen words can be encoded. Folds case and Unicode variants of a
    character to save tokens. Deterministic.

    Args:
      captions: Training text.
      vocab_size: Maximum number of tokens. Few captions can give fewer.
      path: Output file.

    Raises:
      UserError: `vocab_size` is less than the number of bytes and special tokens, or the file
        cannot be written.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(alphabet) + len(SPECIAL_TOKENS):
        raise UserError(
            f"vocab_size is {vocab_size}, expected at least {len(alphabet) + len(SPECIAL_TOKENS)} "
            f"({len(alphabet)} bytes and {len(SPECIAL_TOKENS)} special tokens)"
        )
    vocabulary = tokenizers.Tokenizer(models.BPE())
    vocabulary.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    # The prefix space gives the first word of a caption the same token as later ones.
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
        user_path(path).write_text(vocabulary.to_str(pretty=True), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error})") from error
