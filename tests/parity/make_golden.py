"""Writes the outputs of PyTorch for `cases` and `metric_cases` to `golden/`.

Needs torch, diffusers, transformers and sentencepiece (the extra `parity`).

    python -m tests.parity.make_golden
"""

import io
import json

import numpy as np
import sentencepiece

from data.moving_shapes.vocabulary import draw_prompts
from tests.parity import cases, torch_metrics, torch_reference

VOCAB_SIZE = 300


def main():
    """Computes and writes all golden files."""
    cases.GOLDEN.mkdir(exist_ok=True)
    model = io.BytesIO()  # with a file, the model would contain its path
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([prompt.text for prompt in draw_prompts("train", 500)]),
        model_writer=model,
        vocab_size=VOCAB_SIZE,
        hard_vocab_limit=False,
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (cases.GOLDEN / "spiece.model").write_bytes(model.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = {text: pieces.encode(text) for text in cases.SENTENCES}
    (cases.GOLDEN / "spiece_ids.json").write_text(json.dumps(ids, indent=2) + "\n")
    for name, output in torch_reference.outputs().items():
        np.save(cases.GOLDEN / f"{name}.npy", output)
    for name, output in torch_metrics.OUTPUTS.items():
        np.save(cases.GOLDEN / f"{name}.npy", output())
    tokenizer, ids = torch_metrics.clip_tokenizer()
    (cases.GOLDEN / "clip_tokenizer.json").write_bytes(tokenizer)
    (cases.GOLDEN / "clip_ids.json").write_text(json.dumps(ids) + "\n")


if __name__ == "__main__":
    main()
