"""Help of the commands: options in sections, in the order in which an analysis needs them."""

from __future__ import annotations

import click

HELP_NAMES = {"help_option_names": ["-h", "--help"]}

# what is in none of them comes last, as "Other"
SECTIONS = {
    "Data": (
        "--layer --batch-key --label-key --categorical-covariate-keys --continuous-covariate-keys"
        " --n-genes --model --reference --use-rep --n-cells --batch --file-key"
        " --out-of-core"
    ),
    "Model": (
        "--models --n-latent --n-hidden --n-hidden-discriminator --dropout-rate --prior"
        " --divergence --gene-likelihood --dispersion --preset --leak --batch-norm"
    ),
    "Types": "--n-neighbors --threshold --far-quantile --any-distance --balanced --unknown",
    "Training": (
        "--max-epochs --early-stopping --batch-size --learning-rate --beta1 --seed --seeds --quick"
        " --accelerator --devices --nodes --parallel --resume"
    ),
    "Output": (
        "--output --model-dir --leiden --resolution --umap --report --key-added --metrics-log"
        " --json --force"
    ),
    "Program": "--config --threads --quiet --debug --help",
}


class Command(click.Command):
    """A command whose options are shown in sections."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each section that has an option, in its order."""
        records = {
            max(param.opts, key=len): record
            for param in self.get_params(ctx)
            if isinstance(param, click.Option)
            and (record := param.get_help_record(ctx)) is not None
        }
        sections = {title: names.split() for title, names in SECTIONS.items()}
        known = {name for names in sections.values() for name in names}
        sections["Other"] = [name for name in records if name not in known]
        for title, names in sections.items():
            rows = [records[name] for name in names if name in records]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)
