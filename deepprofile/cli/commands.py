"""The commands. Each does what one call of a public function does."""

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cytominer_tools.errors import InputError

if TYPE_CHECKING:
    from deepprofile.study import Study
    from deepprofile.work import Done


class Commands(click.Group):
    """The one place where errors become exit codes, and where what the code says reaches a person."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of the work, not of the alphabet

    def invoke(self, ctx: click.Context) -> Any:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger = logging.getLogger("deepprofile")
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        warnings.showwarning = lambda message, *_, **__: click.echo(f"Warning: {message}", err=True)
        try:
            return super().invoke(ctx)
        except InputError as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(2)
        except KeyboardInterrupt:
            click.echo("Stopped. What was complete is kept; the same command goes on from there.", err=True)
            sys.exit(130)
        finally:
            logger.removeHandler(handler)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="deepprofile")
def main() -> None:
    """From microscope images of treated cells to profiles that a scientist decides with.

    STUDY is a folder with a study.yaml, by default the one you are in.
    """


def study_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.argument("study", type=click.Path(path_type=Path), default=".")(command)


def stage_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON."),
        click.option("--strict", is_flag=True, help="Stop at a site that cannot be read."),
    ):
        command = option(command)
    return study_argument(command)


@main.command()
@study_argument
@click.option("--index", type=click.Path(path_type=Path), help="A CSV or Parquet with a row per site.")
@click.option("--images", type=click.Path(path_type=Path), help="Instead: a folder of images.")
@click.option("--pattern", help="How their names are built: a regular expression with named groups.")
@click.option("--metadata", type=click.Path(path_type=Path), help="A CSV that says what each well was treated with.")
def init(study: Path, index: Path | None, images: Path | None, pattern: str | None, metadata: Path | None) -> None:
    """Write a commented study.yaml from an index or a folder of images."""
    from deepprofile.template import init_study

    path = init_study(study, index=index, images=images, pattern=pattern, metadata=metadata)
    click.echo(f"{path}: look it over, then `deepprofile check {study}` and `deepprofile run {study}`")


@main.command()
@study_argument
@click.option("--json", "as_json", is_flag=True, help="Print the problems as JSON.")
def check(study: Path, as_json: bool) -> None:
    """List every problem of a study, and what its layout confounds."""
    from deepprofile.checks import check_study

    problems = check_study(_study(study))
    errors = sum(problem.level == "error" for problem in problems)
    if as_json:
        click.echo(json.dumps([vars(problem) for problem in problems], indent=1))
    else:
        for level in ("error", "warning"):
            rows = [f"  {problem}" for problem in problems if problem.level == level]
            if rows:
                click.echo("\n".join([f"{len(rows)} {level}(s)", *_first(rows, "with --json", 30)]))
        if not errors:
            click.echo("Nothing keeps it from running." if problems else "Nothing is wrong.")
    sys.exit(2 if errors else 0)


def _stage(name: str, module: str, function: str, doc: str) -> None:
    @main.command(name, help=doc)
    @stage_options
    def command(study: Path, strict: bool, as_json: bool) -> None:
        from importlib import import_module

        settings = {"strict": strict} if module in ("intensities", "locations", "features") else {}
        with _quiet_keras() if module == "features" else _nothing():
            run = getattr(import_module(f"deepprofile.{module}"), function)
        _report([run(_study(study), **settings)], as_json)


@main.command()
@stage_options
def run(study: Path, strict: bool, as_json: bool) -> None:
    """All stages, from images to scores; what is current is left alone."""
    settings = _study(study)
    with _quiet_keras():
        from deepprofile.pipeline import run_study
    _report(run_study(settings, strict=strict), as_json)
    if not as_json:
        _show_scores(settings)


for _name, _module, _function, _doc in (
    ("illumination", "intensities", "measure_intensities", "Measure each plate's range of intensities."),
    ("locate", "locations", "locate_cells", "Find the cells."),
    ("profile", "features", "profile_cells", "Turn each cell into features by a network."),
    ("aggregate", "profiles", "aggregate_wells", "Make well profiles of single cells."),
    ("spherize", "profiles", "spherize_wells", "Spherize the wells by the controls."),
    ("consensus", "profiles", "consensus_profiles", "Make treatment profiles of wells."),
    ("score", "profiles", "score_profiles", "Score the profiles beside their baselines."),
):
    _stage(_name, _module, _function, _doc)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def models(as_json: bool) -> None:
    """List the installed networks, heads and locators with their options."""
    with _quiet_keras():
        from deepprofile.registry import describe

        rows = describe()
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        click.echo(f"{row['group']}  {row['name']}  ({row['package']}; {row['licence']}; {row['source']})")
        click.echo(f"    {row['about']}")
        click.echo(f"    options: {', '.join(row['options']) or 'none'}")


@main.command()
@click.argument("folder", type=click.Path(path_type=Path), default="deepprofile-demo")
def demo(folder: Path) -> None:
    """Simulate a small study in FOLDER and run it, in a few minutes."""
    with _quiet_keras():
        from deepprofile.demo import prepare_demo
        from deepprofile.pipeline import run_study
    settings = prepare_demo(folder)
    _report(run_study(settings), as_json=False)
    _show_scores(settings)


def _study(path: Path) -> "Study":
    from deepprofile.study import read_study

    return read_study(path)


def _report(steps: "Iterable[Done]", as_json: bool) -> None:
    rows = []
    left: dict[tuple[str, str], None] = {}
    try:
        for done in steps:
            rows.append({**vars(done), "skipped": [list(row) for row in done.skipped]})
            left |= dict.fromkeys(done.skipped)
            if not as_json:
                click.echo(str(done))
    finally:  # what was left out explains many an error
        if as_json:
            click.echo(json.dumps(rows, indent=1))
        elif left:
            shown = [f"  {what}: {why}" for what, why in left]
            click.echo("\n".join([f"Left out ({len(left)}):", *_first(shown, "in the manifests")]))


def _first(rows: list[str], where: str, most: int = 10) -> list[str]:
    return rows if len(rows) <= most else [*rows[:most], f"  ... and {len(rows) - most} more, {where}"]


def _show_scores(study: "Study") -> None:
    from deepprofile.profiles import score_lines

    click.echo("")
    click.echo("\n".join(score_lines(study)))
    click.echo("\nFiles, in " + str(study.root))
    for folder in (study.features, study.profiles_folder, study.scores_folder):
        names = sorted(p.name for p in folder.iterdir() if p.name != "manifest.json")
        click.echo(f"  {folder.relative_to(study.root).as_posix()}/: {', '.join(names)}")


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _quiet_keras() -> Iterator[None]:
    """Import Keras without the lines that TensorFlow's C++ prints whatever its log level is."""
    sys.stderr.flush()
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        import keras  # noqa: F401

        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)
