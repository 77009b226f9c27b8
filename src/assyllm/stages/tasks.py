"""Stage ``tasks``: every task's train, dev and test questions, and the server's unlabelled text."""

from __future__ import annotations

from pathlib import Path

from assyllm import params as P
from assyllm.artifacts import output_folder, write_text

SECTIONS = ("world", "tasks")
PUBLIC_TEXTS = 1000  # lines of the generated world's public text


def run(params: str, code_sha: str, out: Path) -> None:
    """Write ``<task>/{train,dev,test}.jsonl`` and ``<task>/public.txt`` (one unlabelled text a line).

    ``passages.txt`` holds the passages of the training questions, once each (``zoo.pretrain.corpus: passages``).
    """
    from assyllm.tasks import sources, synthetic
    from assyllm.tasks.record import SPLITS, write_questions
    from assyllm.tasks.world import World

    p = P.parse_sections(params, SECTIONS)
    if p.tasks.source == "world":
        world = World.build(p.world)
        tasks = synthetic.build(world, p.tasks, p.world, p.world.seed)
        text = world.public_text(p.world.seed, PUBLIC_TEXTS)
        public = {task: text for task in tasks}
    else:
        tasks, public = {}, {}
        for task in p.tasks.names:
            published = sources.load(task, p.tasks.source, p.tasks.local_dir)
            tasks[task] = sources.cut(task, published, p.tasks)
            public[task] = sources.public_texts(tasks[task]["dev"])
    with output_folder(out) as folder:
        for task, splits in tasks.items():
            for split in SPLITS:
                write_questions(folder / task / f"{split}.jsonl", splits[split])
            write_text(folder / task / "public.txt", "".join(f"{' '.join(t.split())}\n" for t in public[task]))
        passages = dict.fromkeys(q.context for splits in tasks.values() for q in splits["train"] if q.context)
        write_text(folder / "passages.txt", "".join(f"{passage}\n<|endoftext|>\n" for passage in passages))
