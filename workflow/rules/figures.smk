# The result tables become figures. On its own (-s workflow/rules/figures.smk) it draws from the tables that are
# there and runs nothing else.
include: "common.smk"


report: "../report/workflow.rst"


rule figures:
    input:
        [f"figures/{name}.png" for name in PLAN.figures("default")],


# every study's figures whose tables are there (`make figures`)
rule redraw:
    input:
        drawable(),


rule figure:
    input:
        lambda w: [f"data/results{w.study}/{table}.csv" for table in reads(w.name)],
    output:
        report(
            "figures{study}/{name}.png",
            caption="../report/figure.rst",
            category=lambda w: topic(w.name),
            labels={"figure": "{name}"},
        ),
        "figures{study}/{name}.pdf",
        "figures{study}/{name}.csv",
    log:
        "logs/figure{study}/{name}.log",
    benchmark:
        "logs/figure{study}/{name}.tsv"
    conda:
        "../../environment.yml"
    resources:
        mem_mb=1000,
    params:
        sections=sections("figure"),
        code=lambda w: code_sha("figure", w.name),
        about=lambda w: about(w.name),
        # what only the sweeps measured, where they were run
        beside=lambda w: (
            contents(
                *[f"data/results/{study}/claims.csv" for study in (SEEDS, *SWEEPS)]
            )
            if w.name == "claims"
            else ""
        ),
        results="data/results{study}",
        out=lambda w, output: str(Path(output[0]).parent),
    shell:
        "assyllm figure --params {params.sections:q} --name {wildcards.name} --code {params.code}"
        " --results {params.results} --out {params.out} &> {log}"
