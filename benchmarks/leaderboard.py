"""LDS in the public leaderboard's setting: GPT-2, fine-tuned on 4,608 chunks of 512 tokens.

    hf download EleutherAI/bergson-wikitext-512-chunks --repo-type dataset --local-dir text
    hf download EleutherAI/bergson-wikitext-gpt2-leaderboard --local-dir model
    hf download EleutherAI/bergson-wikitext-gpt2-leaderboard-bank --repo-type dataset --local-dir bank
    python benchmarks/leaderboard.py text model bank [--out leaderboard] [--dim 8192] [--draws 8]
        [--checkpoints 36 48 60 72] [--queries 50] [--batch-size 16] [--device cuda]

(``--local-dir bank`` may hold several banks: give the folder that has ``subsets.json``.) GPT-2 was
trained by AdamW for 4 epochs, 72 steps of 256 chunks; each model of the bank was trained so without 1%
of the chunks, and has a loss of each of the first 50 test chunks. Their LDS is the mean over queries of
the Spearman correlation, over models, between those losses and the sums of scores. Features of the
checkpoints are made as language models have them by default, with drawn labels and a scale (by several
processes, under ``torchrun``; what was made stays under --out), and each line is an LDS with its
interval. The lines of the leaderboard itself are printed beside ours, as they were published in August
2026; they were not computed here.

It needs transformers and pyarrow, and a GPU to end within hours: 4,608 x (1 + draws) + 50 gradients of
124 million parameters for each checkpoint. Nobody has run it on the leaderboard's own files yet; the
tests run it on a made-up bank of the same layout.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch
from leaderboard_bank import Bank, checkpoints, language_model, read_chunks

import trakstore as ts
from trakstore.evaluation.lds import lds
from trakstore.features import Job, featurize_job

PUBLISHED = {
    "MAGIC": 0.93,
    "EK-FAC, conjugate gradients": 0.69,
    "EK-FAC": 0.45,
    "TrackStar": 0.28,
    "BM25": 0.22,
    "cosine": 0.16,
    "TRAK, 8 models": 0.14,
}


def featurized(options: argparse.Namespace, train: Any, queries: Any) -> ts.FeatureStore:
    """Write the features of all checkpoints; what is there already stays."""
    weights = checkpoints(options.model, options.checkpoints)
    splits = {"train": train, "test": queries}
    job = Job(
        language_model(list(weights.values())[-1]),
        {
            name: [{"input_ids": torch.from_numpy(one)} for one in ids]
            for name, ids in splits.items()
        },
        checkpoints=weights,
        output="causal_lm",
        projector=ts.ProjectionSpec("sjlt", dim=options.dim, per_epoch=True),
        scale="samples",
        sampled=options.draws,
        batch_size=options.batch_size,
        dtype="float16",
    )
    place = options.out / f"gpt2-{options.dim}-{options.draws}-{'-'.join(map(str, weights))}.zarr"
    featurize_job(job, place, device=options.device)
    return ts.open_store(place)


def main() -> None:
    """Print a line for each method."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("text", type=Path, help="folder of the data set")
    parser.add_argument("model", type=Path, help="folder of the model's repository")
    parser.add_argument("bank", type=Path, help="folder with subsets.json")
    parser.add_argument("--out", type=Path, default=Path("leaderboard"))
    parser.add_argument("--dim", type=int, default=8192)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--checkpoints", type=int, nargs="*", default=[36, 48, 60, 72])
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    train = read_chunks(options.text, "train")
    queries = read_chunks(options.text, "test")[: options.queries]
    store = featurized(options, train, queries)
    if os.environ.get("RANK", "0") != "0":
        return  # the rest is asked of the store, by one process
    kept = options.out / f"losses-{len(queries)}.npy"
    bank = Bank.read(options.bank, len(train), queries, kept)
    last = {"epochs": list(store.epochs)[-1]}
    methods = {
        "trak_scores": ts.trak_scores(store),
        "influence_scores": ts.influence_scores(store),
        "trak_scores, last checkpoint": ts.trak_scores(store, **last),
        "trak_scores, kernel of train rows": ts.trak_scores(store, kernel="train"),
        "grad_dot_scores": ts.grad_dot_scores(store),
        "grad_cos_scores": ts.grad_cos_scores(store),
    }
    print(f"{len(bank.subsets)} models, {len(queries)} queries, {len(store.epochs)} checkpoints, "
          f"{options.dim} numbers a row, {options.draws} draws")  # fmt: skip
    lines = {}
    for name, scores in methods.items():
        one = lds(scores, bank.subsets, -bank.losses)
        lines[name] = [one.mean, one.low, one.high]
        print(f"{name:36} {one.mean:.3f} [{one.low:.3f}, {one.high:.3f}]", flush=True)
    (options.out / "leaderboard.json").write_text(json.dumps(lines, indent=1))
    print("as published:", ", ".join(f"{name} {value}" for name, value in PUBLISHED.items()))


if __name__ == "__main__":
    main()
