"""What commands do with a table of profiles in place of a study: each one call of a public function."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import click

from cytominer_tools.errors import InputError

_SUFFIXES = (".parquet", ".csv", ".tsv", ".txt", ".gz", ".h5ad", ".zarr")


class TableCommand(NamedTuple):
    """`function` of `module` (of cytominer_tools; of deepprofile for `recipe`) takes a path and the options."""

    module: str
    function: str
    options: tuple[Callable[..., Any], ...]
    doc: str = ""


_PEERS = (
    "aggregate",
    "annotate",
    "normalize",
    "feature_select",
    "consensus",
)  # whose output_type goes before the suffix


def _many(flag: str, argument: str, text: str, *, required: bool = False) -> Callable[..., Any]:
    return click.option(flag, argument, multiple=True, required=required, help=f"{text}; may be repeated.")


_by = _many("--by", "by", "A column whose values are treated apart, such as Metadata_Plate")
_samples = click.option("--samples", help="A pandas query for the rows that it learns from; by default all.")
_controls = click.option("--controls", help="A pandas query for the control wells.")
_output = click.option(
    "--output", "output_file", type=click.Path(path_type=Path), help="The table to write: .parquet, .csv, .csv.gz .."
)

TABLES = {
    "aggregate": TableCommand(
        "aggregation",
        "aggregate",
        (
            _many("--by", "strata", "A column that says what becomes one row; by default plate and well"),
            click.option("--operation", type=click.Choice(["median", "mean"]), help="By default the median."),
            _output,
        ),
    ),
    "annotate": TableCommand(
        "annotation",
        "annotate",
        (
            click.option("--platemap", type=click.Path(path_type=Path), required=True, help="A row a well."),
            click.option("--join-on", nargs=2, help="The column of wells in the map, and in the table."),
            click.option("--external-metadata", type=click.Path(path_type=Path), help="A row a compound or such."),
            click.option("--external-join-on", help="Its column, which the annotated table has too."),
            _output,
        ),
        "Put the columns of a plate map beside the profiles of TABLE.",
    ),
    "normalize": TableCommand(
        "normalization",
        "normalize",
        (
            click.option(
                "--method",
                type=click.Choice(["standardize", "robustize", "mad_robustize", "inverse_normal"]),
                help="By default standardize.",
            ),
            _samples,
            _by,
            _output,
        ),
    ),
    "spherize": TableCommand(
        "normalization",
        "spherize",
        (
            _controls,
            click.option("--method", type=click.Choice(["ZCA", "ZCA-cor"]), help="By default ZCA-cor."),
            click.option("--ridge", type=float, help="Added to every eigenvalue, in multiples of their mean; 1."),
            _by,
            _output,
        ),
        "Take out of the wells of TABLE how its control wells vary.",
    ),
    "select": TableCommand(
        "selection",
        "feature_select",
        (
            _many("--operation", "operation", "Such as variance_threshold or correlation_threshold"),
            _samples,
            click.option("--na-cutoff", type=float, help="Of drop_na_columns: share of missing values, 0.05."),
            click.option("--corr-threshold", type=float, help="Of correlation_threshold, 0.9."),
            click.option("--outlier-cutoff", type=float, help="Of drop_outliers, 500."),
            _output,
        ),
        "Drop features of TABLE: constant, correlated, incomplete, extreme.",
    ),
    "consensus": TableCommand(
        "aggregation",
        "consensus",
        (
            _many("--by", "replicate_columns", "A column that says what replicates share"),
            click.option("--operation", type=click.Choice(["median", "mean", "modz"]), help="By default the median."),
            _output,
        ),
    ),
    "correct": TableCommand(
        "correction",
        "correct",
        (
            click.option(
                "--method",
                type=click.Choice(["tvn", "combat", "harmony", "well_position", "cell_count", "median_polish"]),
                required=True,
            ),
            _many("--batch", "batch", "A column that says what a batch (or plate) is"),
            _samples,
            click.option("--count", help="The column of the number of cells; Metadata_Count."),
            _output,
        ),
        "Take out of TABLE what batches, well positions or cell counts put there.",
    ),
    "recipe": TableCommand(
        "steps",
        "apply_recipe",
        (
            click.option("--recipe", required=True, help="Built in, such as deep, or a .yaml file with steps."),
            _controls,
            click.option("--fit", type=click.Choice(["controls", "all"]), help="The wells that steps learn from."),
            click.option("--batch", help="The column of the batch."),
            _many("--by", "by", "A column that names a treatment, such as Metadata_Compound", required=True),
            click.option("--output", "output_folder", type=click.Path(path_type=Path), help="The folder to write."),
        ),
        "All steps of a recipe on the wells of TABLE: its normalised wells, and its treatments.",
    ),
}


def is_table(path: Path) -> bool:
    """Whether `path` is meant as a table, rather than as a study."""
    return path.suffix in _SUFFIXES


def run_table(name: str, path: Path, chosen: dict[str, Any]) -> None:
    """Call the function of the command `name` on the table at `path`, with the options that were given."""
    known = TABLES[name]
    given = {argument: value for argument, value in chosen.items() if value is not None and value != ()}
    if (path / "study.yaml").is_file():
        raise InputError(
            f"{path} is a study, and {name} takes a table of profiles; a study's recipe stands in study.yaml"
        )
    target = "output_folder" if name == "recipe" else "output_file"
    if target not in given:
        raise InputError("--output: say where the result is to be written")
    if "operation" in given and isinstance(given["operation"], tuple):
        given["operation"] = list(given["operation"])
    if known.function in _PEERS:
        from cytominer_tools.output import options_of_suffix

        given |= options_of_suffix(given[target])
    if name == "recipe":
        module = import_module(f"deepprofile.{known.module}")
    else:
        module = import_module(f"cytominer_tools.{known.module}")
    getattr(module, known.function)(path, **given)
    click.echo(str(given[target]))
