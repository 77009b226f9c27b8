# assyllm: the study as a table of contents. `snakemake --cores all` runs it, params.yaml steers it.
#
#   workflow/rules/pool.smk      download -> split -> sensitivity -> quantize: models become a pool of blocks
#   workflow/rules/runs.smk      tasks -> partition -> cost, score -> federate, baseline -> collect: the runs
#   workflow/rules/figures.smk   figure: the result tables become figures
#
# Targets: all (default), pool, results, figures, full, zoos, worlds, choosing, ablations, non_iid, dropouts, check, tuning.


include: "workflow/rules/common.smk"


# The runs themselves are asked for, not only the tables: a fresh clone holds the committed tables, and without
# this they would pass for the study. `make figures` redraws from them and runs nothing.
rule all:
    input:
        [run.folder for run in PLAN.runs("default")],
        "data/results/metrics.csv",
        [f"figures/{name}.png" for name in PLAN.figures("default")],


rule full:
    input:
        products("full"),


rule zoos:
    input:
        products("zoos"),


rule worlds:
    input:
        products("worlds"),


rule choosing:
    input:
        products("choosing"),


rule ablations:
    input:
        products("ablations"),


rule non_iid:
    input:
        products("non_iid"),


rule dropouts:
    input:
        products("dropouts"),


rule check:
    input:
        products("check"),


include: "workflow/rules/pool.smk"
include: "workflow/rules/runs.smk"
include: "workflow/rules/figures.smk"
