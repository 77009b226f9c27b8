# The runs: tasks -> partition -> cost, score -> federate -> precision, baseline -> collect; swap, measured on one run's
# walk; and tune, for the tuning grids.


rule results:
    input:
        [run.folder for run in PLAN.runs("default")],
        "data/results/metrics.csv",
        expand("data/results/{table}.csv", table=FIGURE_TABLES),


rule tuning:
    input:
        [f"data/tuning/{setting}/{method}.csv" for setting, method in PLAN.tuned()],


rule partition:
    input:
        tasks=above("tasks", "data/tasks/{variant}"),
    output:
        directory("data/partition/{variant}/seed{seed}"),
    log:
        "logs/partition/{variant}/seed{seed}.log",
    benchmark:
        "logs/partition/{variant}/seed{seed}.tsv"
    conda:
        "../../environment.yml"
    resources:
        mem_mb=1000,
    params:
        sections=sections("partition"),
        code=code_sha("partition"),
    shell:
        "assyllm partition --params {params.sections:q} --code {params.code} --tasks {input.tasks}"
        " --seed {wildcards.seed} --out {output} &> {log}"


rule cost:
    input:
        same_step=same_step,
    output:
        table="data/cost/{variant}/{method}.csv",
        curves="data/cost/{variant}/{method}.curves.csv",
    log:
        "logs/cost/{variant}/{method}.log",
    benchmark:
        "logs/cost/{variant}/{method}.tsv"
    conda:
        "../../environment.yml"
    resources:
        mem_mb=1500,
    params:
        sections=sections("cost"),
        code=code_sha("cost"),
        same_step=lambda w, input: (
            f"--same-step {input.same_step}" if input.same_step else ""
        ),
    shell:
        "assyllm cost --params {params.sections:q} --code {params.code} --method {wildcards.method}"
        " {params.same_step} --out {output.table} --curves {output.curves} &> {log}"


rule score:
    input:
        pool=above("quantize", "data/quantized/{variant}/zoo{zoo}"),
        tasks=above("tasks", "data/tasks/{variant}"),
        partition=above("partition", "data/partition/{variant}/seed{seed}"),
    output:
        directory("data/scores/{variant}/zoo{zoo}_seed{seed}/shard{shard}"),
    log:
        "logs/score/{variant}/zoo{zoo}_seed{seed}/shard{shard}.log",
    benchmark:
        "logs/score/{variant}/zoo{zoo}_seed{seed}/shard{shard}.tsv"
    conda:
        "../../environment.yml"
    resources:
        mem_mb=3000,
    params:
        sections=sections("score"),
        code=code_sha("score"),
    shell:
        "assyllm score --params {params.sections:q} --code {params.code} --pool {input.pool}"
        " --tasks {input.tasks} --partition {input.partition}"
        " --shard {wildcards.shard} --out {output} &> {log}"


rule federate:
    input:
        pool=above("quantize", "data/quantized/{variant}/zoo{zoo}"),
        tasks=above("tasks", "data/tasks/{variant}"),
        partition=above("partition", "data/partition/{variant}/seed{seed}"),
        scores=score_folders,
        cost=above("cost", "data/cost/{variant}/{method}.csv"),
    output:
        directory("data/runs/{setting}/{method}/zoo{zoo}_seed{seed}"),
    log:
        "logs/federate/{setting}/{method}/zoo{zoo}_seed{seed}.log",
    benchmark:
        "logs/federate/{setting}/{method}/zoo{zoo}_seed{seed}.tsv"
    wildcard_constraints:
        method="|".join(ASSEMBLING),
    conda:
        "../../environment.yml"
    resources:
        mem_mb=3000,
    params:
        sections=sections("federate"),
        code=code_sha("federate"),
        scores=lambda w, input: " ".join(
            f"--scores {folder}" for folder in input.scores
        ),
        setting=lambda w: PLAN.setting_text(w.setting, int(w.zoo)),
        checkpoint="data/checkpoints/{setting}/{method}/zoo{zoo}_seed{seed}",
    shell:
        "assyllm federate --params {params.sections:q} --code {params.code} --method {wildcards.method}"
        " --setting-name {wildcards.setting} --setting={params.setting:q} --pool {input.pool}"
        " --tasks {input.tasks} --partition {input.partition} {params.scores} --cost {input.cost}"
        " --zoo-seed {wildcards.zoo} --seed {wildcards.seed} --checkpoint {params.checkpoint}"
        " --out {output} &> {log}"


rule precision:
    input:
        run="data/runs/{setting}/{method}/zoo{zoo}_seed{seed}",
        pools=precision_pools,
        tasks=above("tasks", "data/tasks/{variant}"),
    output:
        "data/precision/{size}/{setting}/{method}/zoo{zoo}_seed{seed}.csv",
    log:
        "logs/precision/{size}/{setting}/{method}/zoo{zoo}_seed{seed}.log",
    benchmark:
        "logs/precision/{size}/{setting}/{method}/zoo{zoo}_seed{seed}.tsv"
    wildcard_constraints:
        method="|".join(ASSEMBLING),
    conda:
        "../../environment.yml"
    resources:
        mem_mb=2000,
    params:
        sections=sections("precision"),
        code=code_sha("precision"),
        pools=precision_options,
    shell:
        "assyllm precision --params {params.sections:q} --code {params.code} --run {input.run}"
        " {params.pools} --tasks {input.tasks} --seed {wildcards.seed} --out {output} &> {log}"


rule baseline:
    input:
        zoo=zoo_folders,
        tasks=above("tasks", "data/tasks/{variant}"),
        partition=above("partition", "data/partition/{variant}/seed{seed}"),
        cost=above("cost", "data/cost/{variant}/{method}.csv"),
        shared=shared_run,
    output:
        directory("data/runs/{setting}/{method}/zoo{zoo}_seed{seed}"),
    log:
        "logs/baseline/{setting}/{method}/zoo{zoo}_seed{seed}.log",
    benchmark:
        "logs/baseline/{setting}/{method}/zoo{zoo}_seed{seed}.tsv"
    wildcard_constraints:
        method="|".join(BASELINES),
    conda:
        "../../environment.yml"
    resources:
        mem_mb=3000,
    params:
        sections=sections("baseline"),
        code=code_sha("baseline"),
        zoo=lambda w, input: str(Path(input.zoo[0]).parent),
        setting=lambda w: PLAN.setting_text(w.setting, int(w.zoo)),
        checkpoint="data/checkpoints/{setting}/{method}/zoo{zoo}_seed{seed}",
        shared=lambda w, input: f"--shared {input.shared}" if input.shared else "",
    shell:
        "assyllm baseline --params {params.sections:q} --code {params.code} --method {wildcards.method}"
        " --setting-name {wildcards.setting} --setting={params.setting:q} --zoo {params.zoo}"
        " --zoo-seed {wildcards.zoo} --tasks {input.tasks} --partition {input.partition}"
        " --cost {input.cost} --seed {wildcards.seed} --checkpoint {params.checkpoint}"
        " {params.shared} --out {output} &> {log}"


rule swap:
    input:
        unpack(walked),
    output:
        "data/results{study}/swap_timeline.csv",
        "data/results{study}/swap_ablation.csv",
    log:
        "logs/swap{study}/swap.log",
    benchmark:
        "logs/swap{study}/swap.tsv"
    conda:
        "../../environment.yml"
    threads: workflow.cores  # it takes one, but what runs beside it would show in its times
    resources:
        mem_mb=2000,
    params:
        sections=sections("swap"),
        code=code_sha("swap"),
        scores=lambda w, input: " ".join(
            f"--scores {folder}" for folder in input.scores
        ),
        out=lambda w, output: str(Path(output[0]).parent),
    shell:
        "assyllm swap --params {params.sections:q} --code {params.code} --pool {input.pool}"
        " --walked {input.walked} {params.scores} --out {params.out} &> {log}"


rule features:
    input:
        pool=lambda w: walked(w)["pool"],
        tasks="data/tasks/base",
        walked=lambda w: walked(w)["walked"],
    output:
        "data/results{study}/feature_differences.csv",
        "data/results{study}/compatibility_heatmaps.csv",
    log:
        "logs/features{study}/features.log",
    benchmark:
        "logs/features{study}/features.tsv"
    conda:
        "../../environment.yml"
    resources:
        mem_mb=2000,
    params:
        sections=sections("features"),
        code=code_sha("features"),
        out=lambda w, output: str(Path(output[0]).parent),
    shell:
        "assyllm features --params {params.sections:q} --code {params.code} --pool {input.pool}"
        " --tasks {input.tasks} --walked {input.walked} --out {params.out} &> {log}"


rule tune:
    input:
        zoo=zoo_folders,
        tasks=above("tasks", "data/tasks/{variant}"),
        partition=above(
            "partition", f"data/partition/{{variant}}/seed{PLAN.params.tune.seed}"
        ),
        cost=above("cost", "data/cost/{variant}/{method}.csv"),
    output:
        "data/tuning/{setting}/{method}.csv",
    log:
        "logs/tune/{setting}/{method}.log",
    benchmark:
        "logs/tune/{setting}/{method}.tsv"
    wildcard_constraints:
        method="|".join(TUNED),
    conda:
        "../../environment.yml"
    resources:
        mem_mb=3000,
    params:
        sections=sections("tune"),
        code=code_sha("tune"),
        zoo=lambda w, input: str(Path(input.zoo[0]).parent),
    shell:
        "assyllm tune --params {params.sections:q} --code {params.code} --method {wildcards.method}"
        " --zoo {params.zoo} --tasks {input.tasks} --partition {input.partition} --cost {input.cost}"
        " --out {output} &> {log}"


rule collect:
    input:
        runs=run_folders,
        cost=cost_tables,
        precision=precision_tables,
        curves=curve_tables,
    output:
        expand("data/results{{study}}/{table}.csv", table=TABLES),
        "data/results{study}/summary.json",
        "data/results{study}/timings.csv",
    log:
        "logs/collect{study}/collect.log",
    benchmark:
        "logs/collect{study}/collect.tsv"
    conda:
        "../../environment.yml"
    resources:
        mem_mb=1000,
    params:
        sections=sections("collect"),
        code=code_sha("collect"),
        size=size_of,
        runs=lambda w, input: " ".join(f"--run {folder}" for folder in input.runs),
        cost=lambda w, input: " ".join(f"--cost {table}" for table in input.cost),
        precision=lambda w, input: " ".join(
            f"--precision {table}" for table in input.precision
        ),
        curves=lambda w, input: " ".join(f"--curves {table}" for table in input.curves),
        out=lambda w, output: str(Path(output[0]).parent),
    shell:
        "assyllm collect --params {params.sections:q} --code {params.code} --size {params.size}"
        " {params.runs} {params.cost} {params.curves} {params.precision} --out {params.out} &> {log}"
