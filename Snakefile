# assyllm: the study as a table of contents. `snakemake --cores all` runs it, params.yaml steers it.
#
#   workflow/rules/pool.smk      download -> split -> quantize: pre-trained models become a pool of blocks
#   workflow/rules/runs.smk      tasks -> partition -> cost, score -> federate, baseline -> collect: the runs
#   workflow/rules/figures.smk   figure: the result tables become figures
#
# Targets: all (default), pool, results, figures, full, tuning.


include: "workflow/rules/common.smk"


rule all:
    input:
        "data/results/metrics.csv",
        [f"figures/{name}.png" for name in PLAN.figures()],


rule full:
    input:
        "data/results/full/metrics.csv",
        [f"figures/full/{name}.png" for name in PLAN.figures()],


include: "workflow/rules/pool.smk"
include: "workflow/rules/runs.smk"
include: "workflow/rules/figures.smk"
