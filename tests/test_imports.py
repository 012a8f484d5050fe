"""Which package may import which, what an import costs, and what each package offers."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# each may import itself and what stands below it
FLOORS = ("plugins", "deepprofile", "evaluation", "cytominer_tools")
HEAVY = {"keras", "tensorflow", "torch", "pandas", "numpy"}
BACKENDS = {"tensorflow", "torch", "jax"}
ALLOWED = {("deepprofile/devices.py", name) for name in BACKENDS}  # several GPUs, and compiled networks
PUBLIC = {
    "cytominer_tools": [
        "AggregateDeepProfiler",
        "AnnDataLike",
        "Blocklist",
        "CellCountRegression",
        "CellLocation",
        "ComBat",
        "DeepProfilerData",
        "Harmony",
        "InputError",
        "InverseNormal",
        "InverseNormalTransform",
        "MedianPolish",
        "PCA",
        "PerBatch",
        "ProfileWarning",
        "RobustMAD",
        "Robustize",
        "SingleCellDeepProfiler",
        "SingleCells",
        "Spherize",
        "Standardize",
        "TVN",
        "WellPosition",
        "aggregate",
        "aggregate_fields_count",
        "aggregate_image_count_features",
        "aggregate_image_features",
        "aggregate_parquet",
        "annotate",
        "annotate_cmap",
        "assert_linking_cols_complete",
        "calculate_frequency",
        "check_aggregate_operation",
        "check_compartments",
        "check_compression_method",
        "check_consensus_operation",
        "check_correlation_method",
        "check_fields_of_view",
        "check_fields_of_view_format",
        "check_image_features",
        "collate",
        "concatenate",
        "consensus",
        "control_drift",
        "convert_compartment_format_to_list",
        "correct",
        "correlation_threshold",
        "count_na_features",
        "cp_clean",
        "determine_high_cor_pair",
        "drop_outlier_features",
        "extract_image_features",
        "feature_select",
        "flag_rows",
        "frequency_threshold",
        "get_blocklist_features",
        "get_default_compartments",
        "get_default_linking_cols",
        "get_na_columns",
        "get_pairwise_correlation",
        "infer_cp_features",
        "infer_delim",
        "is_anndata",
        "is_path_a_parquet_dataset_dir",
        "is_path_a_parquet_file",
        "label_compartment",
        "load_cytotable_profiles",
        "load_known_metadata_dictionary",
        "load_npz_features",
        "load_npz_locations",
        "load_platemap",
        "load_profiles",
        "load_transformer",
        "missing_wells",
        "modz",
        "modz_base",
        "noise_removal",
        "normalize",
        "normalize_parquet",
        "output",
        "plate_map",
        "position_effects",
        "prepare_external_metadata_for_annotate",
        "provide_linking_cols_feature_name_update",
        "read_anndata",
        "read_ledger",
        "read_table",
        "resolve_cytotable_profiles_target",
        "resolve_parquet_path",
        "run_check_errors",
        "save_transformer",
        "search_ridge",
        "set_compression_method",
        "spherize",
        "transform_profiles",
        "variance_threshold",
        "write_anndata",
        "write_gct",
        "write_table",
        "write_to_file_if_user_specifies_output_details",
    ],
    "deepprofile": [
        "Crops",
        "Preprocess",
        "Study",
        "aggregate_wells",
        "apply_recipe",
        "build_network",
        "check_study",
        "compare_studies",
        "consensus_profiles",
        "export_crops",
        "export_npz",
        "export_png",
        "find_neighbours",
        "init_study",
        "load_index",
        "locate_cells",
        "measure_intensities",
        "normalize_wells",
        "plan_study",
        "profile_cells",
        "read_npz",
        "read_study",
        "register",
        "run_study",
        "score_profiles",
        "search_recipes",
        "simulate",
        "train_network",
        "write_report",
    ],
    "evaluation": [
        "Result",
        "Scores",
        "Wells",
        "activity",
        "activity_figure",
        "average_precision",
        "bootstrap",
        "class_calls",
        "class_precision",
        "class_similarity",
        "cluster",
        "cluster_enrichment",
        "cluster_figure",
        "cluster_table",
        "compare_runs",
        "comparison_figure",
        "component_association",
        "cosine",
        "curves_figure",
        "dose_figure",
        "dose_responses",
        "edge_effect",
        "enrichment",
        "enrichment_curve",
        "evaluate",
        "fit_dose_response",
        "group_association",
        "hit_curve",
        "largest_classes",
        "lisi",
        "map_figure",
        "match_ranks",
        "mean_average_precision",
        "mean_average_precision_hierarchical",
        "mixing",
        "mixing_scores",
        "moa_accuracy",
        "montage_figure",
        "multilabel_average_precision",
        "nearest_class",
        "nearest_profiles",
        "neighbour_map",
        "nested_search",
        "percent_replicating",
        "phenotype_strength",
        "plate_figure",
        "precision_at_r",
        "precision_recall_curve",
        "principal_components",
        "replicate_figure",
        "replicate_similarity",
        "report",
        "robust_enrichment",
        "score",
        "score_curves",
        "score_figure",
        "similarity_figure",
        "split_labels",
        "strongest",
        "subset_scores",
        "target_ranks",
        "task_metrics",
        "task_summary",
        "training_figure",
        "unrelated_similarities",
        "venkatraman",
        "wilcoxon",
        "write_treatments",
    ],
    "plugins": [],
}


def imported(path):
    """(line, top-level package) of every import in a file, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, path.relative_to(ROOT).parts[0] if node.level else str(node.module).split(".")[0]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "import_module",
            "importlib.import_module",
            "__import__",
        ):
            name = node.args[0].values[0] if isinstance(node.args[0], ast.JoinedStr) else node.args[0]  # f"package.{x}"
            yield node.lineno, name.value.split(".")[0] if isinstance(name, ast.Constant) else "a computed name"


def refused(package):
    above = set(FLOORS[: FLOORS.index(package)])
    return (
        above | BACKENDS | ({"keras"} if package in ("evaluation", "cytominer_tools") else set()) | {"a computed name"}
    )


@pytest.mark.parametrize("package", FLOORS)
def test_imports_go_down(package):
    paths = sorted((ROOT / package).rglob("*.py"))
    assert paths
    found = [(path, line, name) for path in paths for line, name in imported(path)]
    bad = [(p.relative_to(ROOT).as_posix(), line, name) for p, line, name in found if name in refused(package)]
    assert [f"{p}:{line} imports {name}" for p, line, name in bad if (p, name) not in ALLOWED] == []


def test_the_walk_sees_imports_inside_functions(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "evaluation").mkdir()
    path = tmp_path / "evaluation" / "a.py"
    path.write_text(
        "import numpy.linalg as n, os\ndef f():\n    from keras import ops\n    from .b import c\n"
        "    import_module('deepprofile.cli')\n    __import__(x)\n    import_module(f'plugins.{x}')\n"
    )
    names = {name for _, name in imported(path)}
    assert names == {"numpy", "os", "keras", "evaluation", "deepprofile", "plugins", "a computed name"}
    assert names & refused("evaluation") == {"keras", "deepprofile", "plugins", "a computed name"}


@pytest.mark.parametrize("package", ["cytominer_tools", "evaluation", "deepprofile", "plugins"])
def test_an_import_is_light_and_quiet(package):
    code = f"import sys, {package}; print(HEAVY & set(sys.modules))".replace("HEAVY", repr(HEAVY))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("set()\n", "")


@pytest.mark.parametrize("package", FLOORS)
def test_what_a_package_offers(package):
    module = import_module(package)
    names = [name for name in dir(module) if not name.startswith("_")]
    assert sorted(names) == sorted(getattr(module, "__all__", names))
    if package == "plugins":
        return
    assert names == PUBLIC[package]
    for name in names:
        assert getattr(module, name).__name__ == name
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = module.no_such_name
