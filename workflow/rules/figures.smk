# The result tables become figures. On its own (-s workflow/rules/figures.smk) it draws from the tables that are
# there and runs nothing else.
include: "common.smk"


rule figures:
    input:
        [f"figures/{name}.png" for name in PLAN.figures()],


rule figure:
    input:
        expand("data/results{{full}}/{table}.csv", table=TABLES),
        lambda w: (
            f"data/results{w.full}/{w.name}.csv" if w.name in FIGURE_TABLES else []
        ),
    output:
        multiext("figures{full}/{name}", ".png", ".pdf", ".csv"),
    log:
        "logs/figure{full}/{name}.log",
    benchmark:
        "logs/figure{full}/{name}.tsv"
    conda:
        "../../environment.yml"
    resources:
        mem_mb=1000,
    params:
        sections=sections("figure"),
        code=lambda w: code_sha("figure", f"figures/{w.name}.py"),
        results=lambda w, input: str(Path(input[0]).parent),
        out=lambda w, output: str(Path(output[0]).parent),
    shell:
        "assyllm figure --params {params.sections:q} --code {params.code} --name {wildcards.name}"
        " --results {params.results} --out {params.out} &> {log}"
