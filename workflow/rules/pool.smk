# Tasks, and pre-trained models that become a pool of blocks: tasks; download -> split -> sensitivity -> quantize.


rule pool:
    input:
        sorted(
            {
                f"data/quantized/{PLAN.variant('quantize', setting)}/zoo{zoo}"
                for setting, zoo in PLAN.pools("default")
            }
            | {
                f"data/tasks/{PLAN.variant('tasks', run.setting)}"
                for run in PLAN.runs("default")
            }
        ),


rule tasks:
    output:
        directory("data/tasks/{variant}"),
    log:
        "logs/tasks/{variant}.log",
    benchmark:
        "logs/tasks/{variant}.tsv"
    conda:
        "../../environment.yml"
    resources:
        mem_mb=2000,
    params:
        sections=sections("tasks"),
        code=code_sha("tasks"),
        files=lambda w: contents(*PLAN.local_tasks(w.variant)),
    shell:
        "assyllm tasks --params {params.sections:q} --code {params.code} --out {output} &> {log}"


rule download:
    input:
        base=base_model,
        tasks=passages,
    output:
        directory("data/zoo/{variant}/seed{zoo}/{model}"),
    log:
        "logs/download/{variant}/seed{zoo}/{model}.log",
    benchmark:
        "logs/download/{variant}/seed{zoo}/{model}.tsv"
    conda:
        "../../environment.yml"
    resources:
        mem_mb=2000,
    params:
        sections=lambda w: kept(PLAN.sections("download", w.variant, model=w.model)),
        code=code_sha("download"),
        files=lambda w: contents(*PLAN.local_files(w.variant, w.model)),
        base=lambda w, input: f"--base {input.base}" if input.base else "",
        corpus=lambda w, input: (
            f"--corpus {input.tasks}/passages.txt" if input.tasks else ""
        ),
    shell:
        "assyllm download --params {params.sections:q} --code {params.code} --model {wildcards.model}"
        " --zoo-seed {wildcards.zoo} {params.base} {params.corpus} --out {output} &> {log}"


rule split:
    input:
        zoo_folders,
    output:
        directory("data/pool/{variant}/zoo{zoo}"),
    log:
        "logs/split/{variant}/zoo{zoo}.log",
    benchmark:
        "logs/split/{variant}/zoo{zoo}.tsv"
    conda:
        "../../environment.yml"
    resources:
        mem_mb=2000,
    params:
        sections=sections("split"),
        code=code_sha("split"),
        zoo=lambda w, input: str(Path(input[0]).parent),
    shell:
        "assyllm split --params {params.sections:q} --code {params.code} --zoo {params.zoo}"
        " --out {output} &> {log}"


rule sensitivity:
    input:
        pool=above("split", "data/pool/{variant}/zoo{zoo}"),
        tasks=above("tasks", "data/tasks/{variant}"),
    output:
        directory("data/sensitivity/{variant}/zoo{zoo}"),
    log:
        "logs/sensitivity/{variant}/zoo{zoo}.log",
    benchmark:
        "logs/sensitivity/{variant}/zoo{zoo}.tsv"
    conda:
        "../../environment.yml"
    resources:
        mem_mb=2000,
    params:
        sections=sections("sensitivity"),
        code=code_sha("sensitivity"),
    shell:
        "assyllm sensitivity --params {params.sections:q} --code {params.code} --pool {input.pool}"
        " --tasks {input.tasks} --out {output} &> {log}"


rule quantize:
    input:
        pool=above("split", "data/pool/{variant}/zoo{zoo}"),
        sensitivity=sensitivity_folder,
    output:
        directory("data/quantized/{variant}/zoo{zoo}"),
    log:
        "logs/quantize/{variant}/zoo{zoo}.log",
    benchmark:
        "logs/quantize/{variant}/zoo{zoo}.tsv"
    conda:
        "../../environment.yml"
    resources:
        mem_mb=2000,
    params:
        sections=sections("quantize"),
        code=code_sha("quantize"),
        sensitivity=lambda w, input: (
            f"--sensitivity {input.sensitivity}" if input.sensitivity else ""
        ),
    shell:
        "assyllm quantize --params {params.sections:q} --code {params.code} --pool {input.pool}"
        " {params.sensitivity} --out {output} &> {log}"
