"""Stage ``score``: what does not depend on any chain, for one shard of the clients.

Per task ``<task>.safetensors`` (pooled native states of every block, HSIC sums of all block pairs by client,
activation histograms by client) and ``<task>.public.safetensors`` (the same on public text, without clients). The first
names the pool it is of, by the hash of the pool's manifest, and the partition, by that of its file.
"""

from __future__ import annotations

import json
from pathlib import Path

from assyllm.params import parse_sections

SECTIONS = ("tasks", "partition", "comparator", "swapper")
UNREAD = {"comparator.cka_weight": 0.5}  # CKA and COR are kept apart


def run(params: str, code_sha: str, pool: Path, tasks: Path, partition: Path, shard: int, out: Path) -> None:
    """Score shard ``shard`` of ``comparator.shards``: the clients whose number leaves that remainder."""
    p = parse_sections(params, SECTIONS)
    import torch
    from safetensors.torch import save_file

    from assyllm.artifacts import manifest_sha, output_folder, read_lines, sha256_file, verify_folder
    from assyllm.comparator.native import score_clients
    from assyllm.comparator.public import cloze_questions, public_statistics
    from assyllm.quantizer.pool import open_pool
    from assyllm.swapper.swapper import lend
    from assyllm.tasks.partition import read_owned
    from assyllm.tasks.record import read_questions
    from assyllm.zoo.load import check_length

    torch.set_num_threads(1)
    opened = lend(open_pool(Path(pool), keep=p.swapper.budget_gb is None), p.swapper)
    verify_folder(Path(tasks))
    for name in opened.models:
        check_length(opened.config(name), name, p.tasks.lengths)
    pool_sha = manifest_sha(Path(pool))
    with output_folder(out) as folder:
        for task in p.tasks.names:
            train = read_questions(Path(tasks) / task / "train.jsonl")
            dealt = p.partition
            held = Path(partition) / f"{task}.csv"
            owned = read_owned(held, train, dealt.clients, dealt.items_per_client)
            # one entry: safetensors writes several in any order
            made_of = {"made_of": json.dumps({"pool": pool_sha, "partition": sha256_file(held)})}
            lines = read_lines(Path(tasks) / task / "public.txt")
            length = p.tasks.max_tokens[task]
            public = public_statistics(opened, cloze_questions(lines, p.comparator.public_texts), length)
            clients = [c for c in range(p.partition.clients) if c % p.comparator.shards == shard]
            tensors = score_clients(opened, train, owned, clients, public, p.comparator, length)
            save_file(tensors, folder / f"{task}.safetensors", metadata=made_of)
            save_file(
                {n: t.contiguous() for n, t in public.tensors().items()},
                folder / f"{task}.public.safetensors",
            )
            print(f"score {task}: {len(clients)} clients, {len(opened.ids)} blocks", flush=True)
