"""Recipes: what is done to the wells of a study, step by step, until there is a profile of each treatment."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from cytominer_tools.errors import InputError

Scope = str | tuple[str, ...]
Fit = Literal["controls", "all"] | None  # the wells that a step learns from; None: as profiles.fit says


class Step(BaseModel, frozen=True, extra="forbid"):
    """A step of a recipe. `by` and `fit` say its scope: which wells are treated together, and which it learns from."""


class Normalize(Step):
    """Each feature for itself, against the wells that it learns from."""

    step: Literal["normalize"] = "normalize"
    # inverse_normal goes by rank
    method: Literal["standardize", "robustize", "mad_robustize", "inverse_normal"]
    by: Scope = "all"  # all wells at once; each plate; each batch; or each value of a column
    fit: Fit = None


class Spherize(Step):
    """All features together: how the wells that it learns from vary is taken out, eigenvalues raised by the ridge."""

    step: Literal["spherize"] = "spherize"
    method: Literal["ZCA", "ZCA-cor"] = "ZCA-cor"
    by: Scope = "all"
    fit: Fit = None
    ridge: float = Field(1.0, gt=0)  # added to every eigenvalue, in multiples of their mean


class Select(Step):
    """Drop features, as `cytominer_tools.feature_select` does, by all rows of the table."""

    step: Literal["select"] = "select"
    operation: tuple[
        Literal[
            "variance_threshold",
            "frequency_threshold",
            "correlation_threshold",
            "drop_na_columns",
            "blocklist",
            "drop_outliers",
        ],
        ...,
    ] = Field(min_length=1)
    min_variance: float = Field(1e-6, ge=0)
    freq_cut: float = Field(0.05, ge=0, le=1)
    unique_cut: float = Field(0.01, ge=0, le=1)
    corr_threshold: float = Field(0.9, ge=0, le=1)
    na_cutoff: float = Field(0.05, ge=0, le=1)
    outlier_cutoff: float = Field(500.0, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _one_operation(cls, value: Any) -> Any:
        one = isinstance(value, dict) and isinstance(value.get("operation"), str)
        return {**value, "operation": [value["operation"]]} if one else value


class Pca(Step):
    """Principal components in place of the features, strongest first."""

    step: Literal["pca"] = "pca"
    components: int = Field(64, ge=1)  # at most as many as there are
    fit: Fit = None


class Correct(Step):
    """What batches, well positions or cell counts put into the features is taken out: `cytominer_tools.correct`."""

    step: Literal["correct"] = "correct"
    method: Literal["tvn", "combat", "harmony", "well_position", "cell_count", "median_polish"]
    by: Scope = "batch"  # of tvn, combat and harmony; median_polish goes by plate
    fit: Fit = None
    components: int | None = Field(None, ge=1)  # of tvn

    @model_validator(mode="after")
    def _keys_of_a_method(self) -> "Correct":
        if not self.batched and "by" in self.model_fields_set:
            raise ValueError(f"by: {self.method} has a scope of its own; leave it out")
        if self.method != "tvn" and self.components is not None:
            raise ValueError("components belongs to the method tvn; leave it out, or put a step pca before")
        if self.method == "harmony" and self.fit == "controls":
            raise ValueError("fit: harmony goes by all wells; leave it out")
        return self

    @property
    def batched(self) -> bool:
        """Whether the method has batches, which `by` says."""
        return self.method in ("tvn", "combat", "harmony")


class Concatenate(Step):
    """Features of another table beside those of the network, joined by plate and well, each set scaled to one size."""

    step: Literal["concatenate"] = "concatenate"
    table: str  # relative to study.yaml
    fit: Fit = None


class Consensus(Step):
    """One profile for each treatment: its wells in one."""

    step: Literal["consensus"] = "consensus"
    operation: Literal["median", "mean", "modz"] = "median"


def _tagged(value: Any) -> Any:
    """`{normalize: {method: ..}}` with its name beside the options, and `consensus` with the default ones."""
    if isinstance(value, str):
        return {"step": value}
    if isinstance(value, Mapping) and len(value) == 1:
        name, options = next(iter(value.items()))
        if isinstance(options, Mapping) and "step" not in options:
            return {"step": name, **options}
        if options is None:
            return {"step": name}
    if isinstance(value, Step):
        return value
    raise ValueError(f"expected a step such as `consensus`, or `spherize: {{ridge: 1}}`, got {str(value)[:60]!r}")


STEPS: tuple[type[Step], ...] = (Normalize, Spherize, Select, Pca, Correct, Concatenate, Consensus)
AnyStep = Annotated[
    Annotated[Normalize | Spherize | Select | Pca | Correct | Concatenate | Consensus, Field(discriminator="step")],
    BeforeValidator(_tagged),
]


class Recipe(BaseModel, frozen=True, extra="forbid"):
    """The steps from wells to treatments, in their order; in study.yaml the list of them."""

    steps: tuple[AnyStep, ...]

    @model_validator(mode="before")
    @classmethod
    def _list_alone(cls, value: Any) -> Any:
        return {"steps": value} if isinstance(value, list | tuple) else value

    @model_validator(mode="after")
    def _one_consensus(self) -> "Recipe":
        count = sum(isinstance(step, Consensus) for step in self.steps)
        if count != 1:
            raise ValueError(f"has {count} consensus steps; one of them makes treatments of wells")
        return self

    @property
    def of_wells(self) -> tuple[AnyStep, ...]:
        """The steps that make normalized.parquet (level 4a): to the last one before the consensus that is no select."""
        return self._before[: len(self._before) - len(self.selection)]

    @property
    def selection(self) -> tuple[AnyStep, ...]:
        """The steps that make selected.parquet (level 4b): the selects right before the consensus, if there are any."""
        n = 0
        while n < len(self._before) and isinstance(self._before[-1 - n], Select):
            n += 1
        return self._before[len(self._before) - n :]

    @property
    def of_treatments(self) -> tuple[AnyStep, ...]:
        """The steps that make consensus.parquet (level 5): the consensus and what comes after it."""
        return self.steps[len(self._before) :]

    @property
    def operation(self) -> Literal["median", "mean", "modz"]:
        """How the consensus makes one profile of several wells."""
        return next(step.operation for step in self.steps if isinstance(step, Consensus))

    @property
    def _before(self) -> tuple[AnyStep, ...]:
        return self.steps[: next(i for i, step in enumerate(self.steps) if isinstance(step, Consensus))]


_SELECT = {
    "select": {
        "operation": ["variance_threshold", "correlation_threshold", "drop_na_columns", "blocklist"],
        "na_cutoff": 0,
    }
}

BUILT_IN: Mapping[str, Recipe] = {
    name: Recipe.model_validate(steps)
    for name, steps in {
        # deep features: one unit, little to drop; ridge and scope as benchmarks/recipes.py finds them
        "deep": [{"spherize": {"ridge": 1.0}}, "consensus"],
        # CellProfiler features: Bornholdt 2021, section 3.3.1 and table 4.2
        "cellprofiler": [
            {"normalize": {"method": "mad_robustize", "by": "plate"}},
            _SELECT,
            "consensus",
            {"select": {"operation": "drop_outliers", "outlier_cutoff": 40}},
        ],
        # as broadinstitute/jump-profiling-recipe has them for compounds and for ORFs; Arevalo et al. 2024,
        # doi:10.1038/s41467-024-50613-5. Harmony runs on components there too
        "jump-compound": [
            {"select": {"operation": ["drop_na_columns", "variance_threshold"], "na_cutoff": 0}},
            {"normalize": {"method": "mad_robustize", "by": "plate"}},
            {"select": {"operation": "drop_na_columns", "na_cutoff": 0}},
            {"normalize": {"method": "inverse_normal", "fit": "all"}},
            {"select": {"operation": ["variance_threshold", "correlation_threshold", "blocklist"]}},
            {"pca": {"components": 64, "fit": "all"}},
            {"correct": {"method": "harmony", "by": "plate"}},
            "consensus",
        ],
        "jump-orf": [
            {"select": {"operation": ["drop_na_columns", "variance_threshold"], "na_cutoff": 0}},
            {"correct": {"method": "well_position", "fit": "all"}},
            {"correct": {"method": "cell_count", "fit": "all"}},
            {"normalize": {"method": "mad_robustize", "by": "plate", "fit": "all"}},
            {"select": {"operation": ["drop_na_columns", "drop_outliers"], "na_cutoff": 0, "outlier_cutoff": 100}},
            {"select": {"operation": ["variance_threshold", "correlation_threshold", "blocklist"]}},
            {"spherize": {"ridge": 1.0}},
            {"pca": {"components": 64, "fit": "all"}},
            {"correct": {"method": "harmony", "by": "plate"}},
            "consensus",
        ],
        "plate-pca": [
            {"normalize": {"method": "standardize", "by": "plate", "fit": "all"}},
            {"pca": {"components": 64, "fit": "all"}},
            {"normalize": {"method": "mad_robustize", "by": "plate", "fit": "all"}},
            "consensus",
        ],
    }.items()
}


def find_recipe(name: str, own: Mapping[str, Recipe]) -> Recipe:
    """The recipe called `name`, of the study's `own` or built in.

    Raises
    ------
    InputError
        There is none; it lists those that there are.
    """
    if name in own:
        return own[name]
    if name in BUILT_IN:
        return BUILT_IN[name]
    raise InputError(f"no recipe is called {name!r}; there are {', '.join([*BUILT_IN, *own])}")
