import json

import numpy as np
import pytest
import tokenizers

from stunet.errors import UserError
from stunet.text import Tokenizer, load_tokenizer, parse_tokenizer, train_tokenizer

CAPTIONS = [
    "A red circle moves left on a blue background.",
    "a green star is spinning on a grey background",
    "the yellow square bounces, a red star swings",
]
STRANGE = "Ein Würfel dreht sich: 立方体 \U0001f4a1\n\tzzz"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(CAPTIONS, 300, path)
    return path


def test_captions_are_padded_and_end_with_eos(path):
    tokenizer = load_tokenizer(path, max_tokens=12)
    ids, mask = tokenizer(["a red star", ""])
    assert ids.dtype == np.int32 and mask.dtype == bool and ids.shape == mask.shape == (2, 12)
    length = mask[0].sum()
    assert 1 < length < 12 and mask[0, :length].all()
    assert ids[0, length - 1] == 1 and (ids[0, : length - 1] > 2).all()
    assert (ids[~mask] == 0).all()
    assert ids[1].tolist() == [1] + [0] * 11 and mask[1].tolist() == [True] + [False] * 11


def test_lower_case_captions_as_in_deepfloyd_if():
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "dog": 4, "Dog": 5}
    vocabulary = tokenizers.Tokenizer(tokenizers.models.WordPiece(words))
    vocabulary.model.unk_token = "<unk>"
    vocabulary.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    content = vocabulary.to_str().encode()
    plain, lower = (parse_tokenizer(content, 4, "t", lower) for lower in (False, True))
    assert plain(["a Dog"])[0].tolist() == [[3, 5, 1, 0]]
    assert lower(["  A Dog \n", "a dog"])[0].tolist() == [[3, 4, 1, 0]] * 2
    assert plain.unknown_words_warning(["A dog"], "prompts") is not None
    assert lower.unknown_words_warning(["A dog"], "prompts") is None


def test_truncation_keeps_eos(path):
    full, _ = load_tokenizer(path)([CAPTIONS[0]])
    tokenizer = load_tokenizer(path, max_tokens=5)
    ids, mask = tokenizer([CAPTIONS[0]])
    assert ids[0].tolist() == [*full[0, :4], 1] and mask.all()


def test_truncated_texts_are_counted(path):
    length = int(load_tokenizer(path)([CAPTIONS[0]])[1].sum())
    longest = CAPTIONS[0] + " a"
    texts = [CAPTIONS[0], "", longest, CAPTIONS[0]]
    for max_tokens, count in ((length, 1), (length - 1, 3)):
        tokenizer = load_tokenizer(path, max_tokens=max_tokens)
        warning = tokenizer.truncation_warning(texts, "captions")
        for part in ("captions: ", f"{count} of 4", f"{max_tokens} tokens", f"{length + 1} tokens"):
            assert part in warning
        assert longest in warning
    assert load_tokenizer(path, max_tokens=length + 1).truncation_warning(texts, "captions") is None


def test_words_without_tokens_are_listed(path):
    vocabulary = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "dog": 4})
    )
    vocabulary.model.unk_token = "<unk>"
    vocabulary.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    words = Tokenizer(vocabulary, 77)
    assert words.unknown_words_warning(["a dog", "dog a"], "prompts") is None
    warning = words.unknown_words_warning(["a Hund", "a dog", "Hund \u732b"], "prompts")
    assert warning.startswith("prompts: ") and "'Hund', '\u732b'" in warning
    many = words.unknown_words_warning([" ".join(f"w{i}" for i in range(30))], "prompts")
    assert "'w9'" in many and "'w10'" not in many and "20 others" in many
    assert load_tokenizer(path).unknown_words_warning([STRANGE], "prompts") is None  # byte level


def test_default_length_is_that_of_deepfloyd_if(path):
    assert load_tokenizer(path)(["x"])[0].shape == (1, 77)


@pytest.mark.parametrize("text", [STRANGE, *CAPTIONS])
def test_captions_survive_a_round_trip(path, text):
    tokenizer = load_tokenizer(path, max_tokens=200)
    ids, mask = tokenizer([text])
    tokens = ids[mask][:-1].tolist()
    assert 2 not in tokens and max(tokens) < tokenizer.vocab_size <= 300
    assert tokenizer.vocabulary.decode(tokens).strip() == text.lower()


def test_invalid_utf8_is_replaced_by_question_marks(path):
    tokenizer = load_tokenizer(path)
    np.testing.assert_array_equal(tokenizer(["red \udcff"])[0], tokenizer(["red ?"])[0])


def test_frequent_words_are_one_token_at_any_position(path):
    tokenizer = load_tokenizer(path)
    first, second = tokenizer(["red", "a Red"])[0]
    assert first[1] == 1 and second[2] == 1 and first[0] == second[1]


def test_special_tokens_and_determinism(path, tmp_path):
    vocabulary = json.loads(path.read_text())["model"]["vocab"]
    assert [vocabulary[token] for token in ("<pad>", "</s>", "<unk>")] == [0, 1, 2]
    again = tmp_path / "again.json"
    train_tokenizer(iter(CAPTIONS), 300, again)
    assert again.read_bytes() == path.read_bytes()


def test_truncation_and_padding_settings_of_the_file_are_ignored(path, tmp_path):
    vocabulary = load_tokenizer(path).vocabulary
    vocabulary.enable_truncation(3)
    vocabulary.enable_padding(length=10)
    vocabulary.save(str(tmp_path / "t.json"))
    expected = load_tokenizer(path)(CAPTIONS)
    np.testing.assert_array_equal(load_tokenizer(tmp_path / "t.json")(CAPTIONS), expected)


def test_errors(path, tmp_path):
    with pytest.raises(UserError, match=r"missing\.json: .*No such file"):
        load_tokenizer(tmp_path / "missing.json")
    broken = tmp_path / "broken.json"
    broken.write_text('{"model": 3}')
    with pytest.raises(UserError, match=r"broken\.json: .*tokenizer\.json \("):
        load_tokenizer(broken)
    foreign = tmp_path / "foreign.json"
    foreign.write_text(path.read_text().replace("<pad>", "[PAD]"))
    with pytest.raises(UserError, match=r"foreign\.json: .*<pad>.* None, .* 0"):
        load_tokenizer(foreign)
    with pytest.raises(UserError, match=r"max_tokens.* 1, .* 2 "):
        load_tokenizer(path, max_tokens=1)
    with pytest.raises(UserError, match=r"vocab_size.* 258, .* 259 "):
        train_tokenizer(CAPTIONS, 258, tmp_path / "small.json")
    with pytest.raises(UserError, match=r"t\.json: .*No such file"):
        train_tokenizer(CAPTIONS, 300, tmp_path / "no_folder" / "t.json")
