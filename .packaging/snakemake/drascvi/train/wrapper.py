"""Snakemake wrapper: train DR-A on counts, and write cells with their embedding."""

__author__ = "The dra_scvi developers"
__license__ = "BSD-3-Clause"

from shlex import quote

from snakemake.shell import shell

# Snakemake defines this name when it runs a wrapper
snakemake = snakemake  # noqa: F821

extra = snakemake.params.get("extra", "")
log = snakemake.log_fmt_shell(stdout=True, stderr=True)

model = snakemake.output.get("model")
figures = snakemake.output.get("json")
model = f"--model-dir {quote(model)}" if model else ""
figures = f"--json {quote(figures)}" if figures else ""

# a job that was stopped goes on from its checkpoint
shell(
    "dra-scvi train {snakemake.input.cells:q} --output {snakemake.output.h5ad:q}"
    " {model} {figures} --threads {snakemake.threads} --resume {extra} {log}"
)
