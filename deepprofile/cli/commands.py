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
from deepprofile.cli.tables import TABLES, is_table, run_table

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
    return study_argument(click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")(command))


strict_option = click.option("--strict", is_flag=True, help="Stop at a site that cannot be read.")


@main.command()
@study_argument
@click.option("--index", type=click.Path(path_type=Path), help="A CSV, TSV or Parquet with a row per site.")
@click.option("--images", type=click.Path(path_type=Path), help="Instead: a folder of images.")
@click.option("--pattern", help="How their names are built: a regular expression with named groups.")
@click.option("--preset", help="Or the microscope: phenix, imagexpress, opera, incarta, yokogawa or generic.")
@click.option("--platemaps", type=click.Path(path_type=Path), help="A folder with barcode_platemap.csv and platemap/.")
@click.option(
    "--metadata",
    type=click.Path(path_type=Path),
    multiple=True,
    help="A table that says what each well was treated with, or about its compound; may be repeated.",
)
@click.option("--deepprofiler", type=click.Path(path_type=Path), help="Instead: a DeepProfiler project.")
@click.option("--config", help="Its file in inputs/config, where there are several.")
@click.option(
    "--normalize",
    type=click.Choice(["legacy_over_max", "minmax", "zscore"]),
    help="How its version scaled crops: 0.3.0 to 0.5.0 (the default), since August 2024, before September 2021.",
)
def init(
    study: Path,
    index: Path | None,
    images: Path | None,
    pattern: str | None,
    preset: str | None,
    platemaps: Path | None,
    metadata: tuple[Path, ...],
    deepprofiler: Path | None,
    config: str | None,
    normalize: Any,
) -> None:
    """Write a commented study.yaml from an index, a folder of images or a DeepProfiler project."""
    if deepprofiler is not None:
        from deepprofile.deepprofiler_project import init_deepprofiler

        if images or pattern or preset or platemaps or metadata:
            raise InputError(
                "with --deepprofiler only --config, --index (a file in inputs/metadata) and --normalize are read"
            )
        chosen = {"normalize": normalize} if normalize else {}
        made = init_deepprofiler(study, deepprofiler, config=config, index=str(index) if index else None, **chosen)
        path = made.path
        for note in made.notes:
            click.echo(f"- {note}")
    else:
        from deepprofile.template import init_study

        if config or normalize:
            given = "--config" if config else "--normalize"
            raise InputError(f"{given} is of a DeepProfiler project; give it with --deepprofiler")
        path = init_study(
            study,
            index=index,
            images=images,
            pattern=pattern,
            preset=preset,
            platemaps=platemaps,
            metadata=metadata,
        )
    made_study = _study(study)
    for what, found in (
        ("channels", ", ".join(made_study.channels)),
        ("treatment", made_study.treatment),
        ("controls", made_study.controls),
    ):
        click.echo(f"  {what}: {found or 'not guessed; name them in study.yaml'}")
    click.echo(f"{path}: look it over, then `deepprofile check {study}` and `deepprofile run {study}`")


@main.command()
@study_argument
@click.option("--json", "as_json", is_flag=True, help="Print the problems as JSON.")
def check(study: Path, as_json: bool) -> None:
    """List every problem of a study, and what its layout confounds."""
    from deepprofile.checks import check_study
    from deepprofile.problems import problem_lines

    problems = check_study(_study(study))
    errors = sum(problem.level == "error" for problem in problems)
    if as_json:
        click.echo(json.dumps([vars(problem) for problem in problems], indent=1))
    else:
        for level in ("error", "warning"):
            found = [problem for problem in problems if problem.level == level]
            if found:
                lines = [f"  {line}" for line in problem_lines(found)]
                click.echo("\n".join([f"{len(found)} {level}(s)", *_first(lines, "with --json", 60)]))
        if not errors:
            click.echo("Nothing keeps it from running." if problems else "Nothing is wrong.")
    sys.exit(2 if errors else 0)


@main.command()
@study_argument
@click.option("--price", type=click.FloatRange(min=0), help="Of an hour of this machine, in any currency.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def plan(study: Path, price: float | None, as_json: bool) -> None:
    """Say what a study will take: cells, disk, hours, money; by measuring for some seconds."""
    read = _study(study)
    with _quiet_keras():
        from deepprofile.plan import plan_study
    made = plan_study(read, price=price)
    click.echo(json.dumps(made.as_json(), indent=1) if as_json else "\n".join(made.lines()))


_preview_option = click.option(
    "--preview", is_flag=True, help="Draw the cells of six sites to locations/preview.png, and write nothing else."
)


_format_option = click.option(
    "--format",
    "layout",
    type=click.Choice(["arrow", "png"]),
    default="arrow",
    show_default=True,
    help="The crop store, or DeepProfiler's own layout: a PNG a cell, in single-cells/.",
)


_part_option = click.option(
    "--part", metavar="I/N", help="Only this share of the wells, such as 2/8: others have the rest, at the same time."
)
_epoch_option = click.option(
    "--epoch", metavar="N,N,..", help="With the networks that training kept after these epochs, in one pass."
)
_devices_option = click.option("--devices", metavar="N,N,..", help="A process for each of these GPUs, such as 0,1.")
_model_option = click.option(
    "--model", help="A folder in features/, such as MODEL-epoch8; by default that of profile in study.yaml."
)
_recipe_option = click.option("--recipe", help="One of profiles.recipe, or another; by default all of profiles.recipe.")
_AFTER = ("aggregate", "normalize", "consensus", "score")  # of a set of features
_sweep_option = click.option(
    "--sweep",
    type=click.Path(path_type=Path),
    help="A YAML file with lists of values, such as `train.batch: [32, 64]`: a training for each combination, and "
    "the table of all.",
)
_OPTIONS = {
    "train": (_sweep_option,),
    "locate": (_preview_option, _part_option),
    "export": (_format_option, _part_option),
    "profile": (_epoch_option, _part_option, _devices_option),
    **dict.fromkeys(_AFTER, (_model_option, _recipe_option)),
}


def _stage(name: str, module: str, function: str, doc: str) -> None:
    reads_images = module in ("intensities", "locations", "export", "features")
    table_options = TABLES[name].options if name in TABLES else ()
    of_tables = _arguments(table_options)

    @stage_options
    def command(study: Path, as_json: bool, strict: bool = False, **chosen: Any) -> None:
        from importlib import import_module

        of_table = {key: chosen.pop(key) for key in of_tables}
        if is_table(study) and name in TABLES:
            if given := [f"--{key}" for key, value in {**chosen, "json": as_json}.items() if value]:
                raise InputError(f"{', '.join(given)}: for a study, and {study} is a table of profiles; leave it out")
            run_table(name, study, of_table)
            return
        if given := [key for key, value in of_table.items() if value]:
            raise InputError(f"{', '.join(given)}: for a table of profiles; what a study does stands in its study.yaml")
        if chosen.get("preview"):
            from deepprofile.preview import preview_study

            path = str(preview_study(_study(study)))
            click.echo(json.dumps({"preview": path}) if as_json else f"{path}: look at it; no cells were written")
            return
        if chosen.get("sweep"):
            _sweep(_study(study), chosen["sweep"], as_json)
            return
        settings, model, recipe = _stage_settings(chosen), chosen.get("model"), chosen.get("recipe")
        if reads_images:
            settings["strict"] = strict
        read = _study(study)
        read = read.with_recipe(recipe) if recipe else read
        sets: tuple[Study, ...] = (read,)
        if name in _AFTER:
            sets = tuple(one for features in _feature_sets(read, model) for one in features.recipe_sets)
        with _quiet_keras() if module in ("features", "training") and "devices" not in settings else _nothing():
            place, called = module, function
            if chosen.get("layout") == "png":
                place, called = "deepprofiler_crops", "export_png"
            elif "devices" in settings:
                place, called = "processes", "profile_on"
            run = getattr(import_module(f"deepprofile.{place}"), called)
        _report((run(one, **settings) for one in sets), as_json)

    for option in (*_OPTIONS.get(name, ()), *((strict_option,) if reads_images else ()), *table_options):
        command = option(command)
    main.command(name, help=doc)(command)


def _feature_sets(study: "Study", model: str | None) -> "tuple[Study, ...]":
    """The study of the features that `model` names, or of all that `profile` makes."""
    return (study.with_features(model),) if model else study.feature_sets


def _arguments(options: "Iterable[Callable[..., Any]]") -> list[str]:
    """What click calls the values of `options`."""

    def probe(**_: Any) -> None: ...

    for option in options:
        probe = option(probe)
    return [str(one.name) for one in getattr(probe, "__click_params__", [])]


def _table_command(name: str) -> None:
    @click.argument("table", type=click.Path(path_type=Path))
    def command(table: Path, **chosen: Any) -> None:
        run_table(name, table, chosen)

    for option in reversed(TABLES[name].options):
        command = option(command)
    group, called = (recipe, "apply") if name == "recipe" else (main, name)
    group.command(called, help=TABLES[name].doc)(command)


def _stage_settings(chosen: dict[str, Any]) -> dict[str, Any]:
    """What the options of a command are to the function that it calls."""
    from deepprofile.parts import Share

    settings: dict[str, Any] = {}
    if chosen.get("part"):
        settings["share"] = Share.parse(chosen["part"])
        if chosen.get("layout") == "png":
            raise InputError("--part: the layout png is written by one process; leave it out")
    if chosen.get("devices"):
        if "share" in settings:
            raise InputError("--devices deals the wells to its processes itself; leave --part out")
        settings["devices"] = chosen["devices"].split(",")
    if chosen.get("epoch"):
        epochs = [one.strip() for one in chosen["epoch"].split(",")]
        if not all(one.isdecimal() for one in epochs):
            raise InputError(f"--epoch {chosen['epoch']}: expected numbers from 1, such as 8,16,25")
        settings["epochs"] = [int(one) for one in epochs]
    return settings


def _sweep(study: "Study", path: Path, as_json: bool) -> None:
    with _quiet_keras():
        from deepprofile.sweep import run_sweep
    from deepprofile.compare import compare_studies

    _report(run_sweep(study, path), as_json)
    found = compare_studies([study])
    if not as_json:
        click.echo("\n".join(["", *found.lines(), f"{found.folder}: compare.csv, compare.json, compare.png"]))


@main.command()
@strict_option
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
    (
        "illumination",
        "intensities",
        "measure_intensities",
        "Measure each plate's range of intensities and its uneven light.",
    ),
    ("locate", "locations", "locate_cells", "Find the cells."),
    ("export", "export", "export_crops", "Cut the cells out and keep them for training."),
    ("train", "training", "train_network", "Train a network to tell treatments apart."),
    ("profile", "features", "profile_cells", "Turn each cell into features by a network."),
    ("aggregate", "profiles", "aggregate_wells", "Make well profiles of single cells, of a study or in a table."),
    ("normalize", "profiles", "normalize_wells", "Normalise the wells, of a study as its recipe says, or in a table."),
    ("consensus", "profiles", "consensus_profiles", "Make treatment profiles of wells, of a study or in a table."),
    ("score", "profiles", "score_profiles", "Score the profiles beside their baselines."),
):
    _stage(_name, _module, _function, _doc)


class _Recipes(click.Group):
    """`recipe TABLE` is `recipe apply TABLE`."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        return super().resolve_command(ctx, args if args[0] in self.commands else ["apply", *args])


@main.group(cls=_Recipes, context_settings={"ignore_unknown_options": True})
def recipe() -> None:
    """Apply a recipe to a table (`recipe TABLE`), or choose among recipes (`recipe search STUDY`)."""


for _name in TABLES:
    if _name not in main.commands or _name == "recipe":
        _table_command(_name)


@main.command("report")
@study_argument
@click.option("--out", type=click.Path(path_type=Path), help="Where to; by default report.html in the study.")
def report_command(study: Path, out: Path | None) -> None:
    """Write report.html: scores and figures on one page that works offline."""
    from deepprofile.report import write_report

    path = write_report(_study(study), out)
    click.echo(f"{path}: {path.stat().st_size / 1e6:.1f} MB; open it in a browser")


@main.command()
@click.argument("studies", metavar="STUDY...", nargs=-1, type=click.Path(path_type=Path))
@click.option("--profiles", metavar="NAME=FILE", multiple=True, help="Profiles from elsewhere; may be repeated.")
@click.option(
    "--level",
    type=click.Choice(["treatments", "replicates"]),
    help="Treatments by MOA, or wells by treatment; by default treatments where a MOA is known.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Where to; by default scores/ of the first study.")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
def compare(studies: tuple[Path, ...], profiles: tuple[str, ...], level: Any, out: Path | None, as_json: bool) -> None:
    """Score all runs of some studies on the same profiles: one table, intervals, paired tests, curves."""
    read = [_study(path) for path in studies or (Path("."),)]
    from deepprofile.compare import compare_studies

    named = dict(one.partition("=")[::2] for one in profiles)
    if bad := [one for one in profiles if "=" not in one]:
        raise InputError(f"--profiles {bad[0]}: expected NAME=FILE")
    found = compare_studies(read, profiles=named, level=level, out=out)
    if as_json:
        click.echo((found.folder / "compare.json").read_text("utf-8"), nl=False)
    else:
        click.echo("\n".join([*found.lines(), f"{found.folder}: compare.csv, compare.json, compare.png"]))


@main.command()
@study_argument
@click.option("--of", help="A treatment, or a file of profiles; by default all treatments.")
@click.option("-k", default=10, show_default=True, type=click.IntRange(min=1), help="Neighbours of each.")
@click.option("--reverse", is_flag=True, help="The most opposite instead: what undoes a phenotype.")
@click.option("--among", type=click.Path(path_type=Path), help="Look among the profiles of this file, such as genes.")
@click.option("--targets", help="With --among: the column that names the known targets of a treatment.")
@_model_option
@_recipe_option
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def neighbours(
    study: Path,
    of: str | None,
    k: int,
    reverse: bool,
    among: Path | None,
    targets: str | None,
    model: str | None,
    recipe: str | None,
    as_json: bool,
) -> None:
    """Find the treatments most like one, or most opposite to it, and call the MOA of those without."""
    from deepprofile.neighbours import find_neighbours

    read = _study(study)
    read = read.with_features(model) if model else read.feature_sets[0]
    read = read.with_recipe(recipe or read.profiles.recipes[0])
    found = find_neighbours(read, of, k=k, reverse=reverse, among=among, targets=targets)
    if as_json:
        click.echo((found.folder / "neighbours.json").read_text("utf-8"), nl=False)
    else:
        click.echo(
            "\n".join([*found.lines(), f"{found.folder}: {', '.join(sorted(p.name for p in found.folder.iterdir()))}"])
        )


@recipe.command()
@stage_options
@_model_option
@click.option("--recipe", "names", multiple=True, help="Only these; by default the built-in ones and the study's own.")
@click.option("--folds", default=5, show_default=True, type=click.IntRange(min=2), help="Of the compounds.")
def search(study: Path, model: str | None, names: tuple[str, ...], folds: int, as_json: bool) -> None:
    """Rank recipes, and score the winner on compounds that had no say in the choice."""
    from deepprofile.recipe_search import search_recipes

    read = _study(study)
    found = search_recipes(read.with_features(model) if model else read.feature_sets[0], names, folds=folds)
    if as_json:
        click.echo(found.path.with_suffix(".json").read_text("utf-8"), nl=False)
    else:
        click.echo("\n".join([*found.lines(), f"{found.path}: the table; its splits in recipes.json"]))


@main.command()
@click.argument("study", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--layout",
    type=click.Choice(["granular", "site"]),
    default="granular",
    show_default=True,
    help="FOLDER/PLATE/WELL/SITE.npz, or FOLDER/PLATE/WELL_SITE.npz as before DeepProfiler 0.3.",
)
@_model_option
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
def npz(study: Path, folder: Path, layout: Any, model: str | None, as_json: bool) -> None:
    """Write the features of STUDY into FOLDER as DeepProfiler does, a .npz a site.

    Of several layers each has a folder of its own, FOLDER/MODEL-LAYER.
    """
    from deepprofile.deepprofiler_npz import export_npz

    sets = _feature_sets(_study(study), model)
    places = [folder] if len(sets) == 1 else [folder / one.profile.name for one in sets]
    _report((export_npz(one, place, layout) for one, place in zip(sets, places, strict=True)), as_json)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def models(as_json: bool) -> None:
    """List the installed networks and locators with their options."""
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
@click.argument("study", type=click.Path(path_type=Path))
@click.option(
    "--plates", default=3, show_default=True, help="Plates; each holds every compound once at each concentration."
)
@click.option("--sites", default=2, show_default=True, help="Sites per well.")
@click.option(
    "--size", type=(int, int), default=(360, 360), show_default=True, help="Height and width of an image, px."
)
@click.option("--cells", default=28, show_default=True, help="Cells per site of a control well.")
@click.option("--pixel-size", default=0.6, show_default=True, help="Edge of a pixel, um.")
@click.option("--moas", default=6, show_default=True, help="Mechanisms; half of them leave intensity and count alone.")
@click.option("--compounds", default=4, show_default=True, help="Compounds per mechanism.")
@click.option("--controls", default=8, show_default=True, help="DMSO wells per plate.")
@click.option("--concentration", type=float, default=(10.0,), show_default=True, multiple=True, help="uM; repeatable.")
@click.option(
    "--layout",
    type=click.Choice(["random", "fixed"]),
    default="random",
    show_default=True,
    help="Are wells shuffled on each plate, or the same on all.",
)
@click.option("--masks", is_flag=True, help="Write the nuclei as label images too.")
@click.option("--seed", default=0, show_default=True, help="Another seed, another study.")
def simulate(
    study: Path,
    plates: int,
    sites: int,
    size: tuple[int, int],
    cells: int,
    pixel_size: float,
    moas: int,
    compounds: int,
    controls: int,
    concentration: tuple[float, ...],
    layout: str,
    masks: bool,
    seed: int,
) -> None:
    """Simulate a study with known truth in the new folder STUDY."""
    from deepprofile.demo import simulate_study

    made = simulate_study(
        study,
        plates=plates,
        sites=sites,
        size=size,
        cells=cells,
        pixel_size_um=pixel_size,
        moas=moas,
        compounds_per_moa=compounds,
        controls=controls,
        concentrations=concentration,
        layout=layout,
        masks=masks,
        seed=seed,
    )
    click.echo(f"{made.root}: simulated images, truth in images/truth/; `deepprofile run {study}` runs it")


@main.command()
@click.argument("folder", type=click.Path(path_type=Path), default="deepprofile-demo")
def demo(folder: Path) -> None:
    """Simulate a small study in FOLDER and run it, in about a minute."""
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
    from deepprofile.work import by_reason

    rows = []
    left: dict[tuple[str, str], None] = {}
    try:
        for done in steps:
            skipped = [list(row) for row in done.skipped]
            rows.append({**vars(done), "skipped": skipped, "left_out": by_reason(done.skipped)})
            left |= dict.fromkeys(done.skipped)
            if not as_json:
                click.echo(str(done))
    finally:  # what was left out explains many an error
        if as_json:
            click.echo(json.dumps(rows, indent=1))
        elif left:
            click.echo("\n".join([f"Left out ({len(left)}):", *_reasons(list(left))]))


def _first(rows: list[str], where: str, most: int = 10) -> list[str]:
    return rows if len(rows) <= most else [*rows[:most], f"  ... and {len(rows) - most} more, {where}"]


def _reasons(left: list[tuple[str, str]]) -> list[str]:
    """Lines that say what was left out: all of it where that is little, else counts by reason and the first few."""
    from deepprofile.work import by_reason

    if len(left) <= 10:
        return [f"  {what}: {why}" for what, why in left]
    lines = []
    for group in by_reason(left):
        more = f" and {group['count'] - len(group['first'])} more" if group["count"] > len(group["first"]) else ""
        lines.append(f"  {group['count']:,} for {group['reason']!r}: {', '.join(group['first'])}{more}")
    return [*lines, "  each of them in manifest.json of its plate, and with --json"]


def _show_scores(study: "Study") -> None:
    from deepprofile.profiles import score_lines

    sets = [one for features in study.feature_sets for one in features.recipe_sets]
    for one in sets:
        click.echo("")
        click.echo("\n".join(score_lines(one)))
    click.echo("\nFiles, in " + str(study.root))
    folders = dict.fromkeys(f for one in sets for f in (one.features, one.profiles_folder, one.scores_folder))
    for folder in folders:
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
