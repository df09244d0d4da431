"""Snakemake wrapper: train DR-A on counts, and write cells with their embedding."""

__author__ = "The dra_scvi developers"
__license__ = "BSD-3-Clause"

from shlex import quote

from snakemake.shell import shell

# Snakemake defines this name when it runs a wrapper
snakemake = snakemake  # noqa: F821

extra = snakemake.params.get("extra", "")
log = snakemake.log_fmt_shell(stdout=True, stderr=True)

options = {"model": "--model-dir", "json": "--json", "report": "--report"}
outputs = {option: snakemake.output.get(name) for name, option in options.items()}
more = " ".join(f"{option} {quote(path)}" for option, path in outputs.items() if path)

# a job that was stopped goes on from its checkpoint
shell(
    "dra-scvi train {snakemake.input.cells:q} --output {snakemake.output.h5ad:q}"
    " {more} --threads {snakemake.threads} --resume {extra} {log}"
)
