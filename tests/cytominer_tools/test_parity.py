"""The same calls to pycytominer 1.7.1 and to ours, on real data (shared/reference/cytominer.md, section 3)."""

import inspect
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm, rankdata

import cytominer_tools as ours
from cytominer_tools.compat import PEER

pytestmark = [pytest.mark.data, pytest.mark.usefixtures("no_profile_warnings")]

SAMPLE, MOA, DOSE = "Metadata_broad_sample", "Metadata_moa", "Metadata_mg_per_ml"
DMSO = "Metadata_broad_sample == 'DMSO'"
METHODS = ("standardize", "robustize", "mad_robustize", "inverse_normal")


def features_of(table):
    return [name for name in table.columns if not name.startswith("Metadata_")]


def assert_same(result, expected, rtol=1e-9, atol=1e-9):
    assert list(result.columns) == list(expected.columns)
    pd.testing.assert_frame_equal(result, expected, check_dtype=False, rtol=rtol, atol=atol)


@pytest.fixture(scope="module")
def holed(lincs):
    """The LINCS plate with one value in twenty missing."""
    rng = np.random.default_rng(0)
    names = features_of(lincs)
    table = lincs.copy()
    table[names] = table[names].mask(rng.random((len(table), len(names))) < 0.05)
    return table


@pytest.fixture(scope="module")
def varying(jump_cells):
    """The names of Cells features that are not constant, in their order."""
    return [name for name in jump_cells if name.startswith("Cells_") and jump_cells[name].nunique() > 1]


# --- signatures
@pytest.mark.parametrize("name", ["aggregate", "annotate", "normalize", "feature_select", "consensus"])
def test_arguments_and_defaults(peer, name):
    theirs = inspect.signature(getattr(peer, name)).parameters
    mine = inspect.signature(getattr(ours, name)).parameters
    wanted = [p for p in theirs.values() if p.kind is not p.VAR_KEYWORD]
    got = [p for p in mine.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [p.name for p in got] == [p.name for p in wanted]
    for mine_one, their_one in zip(got, wanted, strict=True):
        default = list(mine_one.default) if isinstance(mine_one.default, tuple) else mine_one.default
        if their_one.name == "modz_args":  # theirs is {"method": "spearman"}, which is what ours stands for
            continue
        assert default == their_one.default, their_one.name


# --- aggregate, consensus: P1, P2, P6, P7, P9
@pytest.mark.parametrize("operation", ["median", "mean"])
@pytest.mark.parametrize("strata", [[SAMPLE], [SAMPLE, MOA], [SAMPLE, DOSE], "Metadata_Well"])
def test_aggregate(peer, lincs, operation, strata):
    assert_same(ours.aggregate(lincs, strata, operation=operation), peer.aggregate(lincs, strata, operation=operation))


@pytest.mark.parametrize("operation", ["median", "mean"])
def test_aggregate_of_cells_and_of_missing_values(peer, jump_cells, holed, operation):
    for table, strata in ((jump_cells, ["Metadata_Well"]), (holed, [SAMPLE])):
        assert_same(
            ours.aggregate(table, strata, operation=operation), peer.aggregate(table, strata, operation=operation)
        )


def test_object_counts(peer, lincs):
    options = {"strata": [SAMPLE, MOA], "compute_object_count": True, "object_feature": "Metadata_Well"}
    expected = peer.aggregate(lincs, **options)
    assert expected["Metadata_Object_Count"].isna().sum() == 4
    assert_same(ours.aggregate(lincs, **options, compat=PEER), expected)
    with pytest.warns(ours.ProfileWarning, match=r"Metadata_Object_Count: 4 group\(s\) have a missing key"):
        counts = ours.aggregate(lincs, **options)["Metadata_Object_Count"]
    assert counts.sum() == len(lincs)
    subset = lincs[[SAMPLE]].drop_duplicates().head(5)
    assert_same(
        ours.aggregate(lincs, [SAMPLE], subset_data_df=subset), peer.aggregate(lincs, [SAMPLE], subset_data_df=subset)
    )


@pytest.mark.parametrize(
    ("columns", "modz_args"),
    [
        pytest.param([SAMPLE, DOSE], {"method": "spearman"}, marks=pytest.mark.slow),
        ([SAMPLE], {}),
        ([SAMPLE], {"method": "pearson"}),
        ([SAMPLE], {"min_weight": 0, "precision": 10}),
    ],
)
def test_modz(peer, lincs, columns, modz_args):
    result = ours.consensus(lincs, columns, "modz", modz_args=modz_args)
    assert_same(result, peer.consensus(lincs, columns, "modz", modz_args=modz_args))


def test_modz_of_missing_values(peer, holed):
    toy = pd.DataFrame({"g": ["a"] * 3, "x": [1, 2, np.nan], "y": [2.0, 3, 1], "z": [0.0, 1, 5]})
    result = ours.modz(toy, "g", ["x", "y", "z"])
    np.testing.assert_allclose(result[["x", "y", "z"]].to_numpy()[0], [1.485, 2.4849, 0.5445])
    assert_same(ours.modz(holed, [SAMPLE]), peer.modz(holed, [SAMPLE]))


# --- normalize: P3, P4, P9
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("samples", ["all", DMSO])
def test_normalize(peer, lincs, holed, method, samples):
    for table in (lincs, holed):
        result = ours.normalize(table, samples=samples, method=method)
        assert_same(result, peer.normalize(table, samples=samples, method=method))


def test_numbers_of_the_reference(lincs):
    result = ours.normalize(lincs, samples=DMSO, method="mad_robustize")
    x = result[features_of(result)].to_numpy()
    np.testing.assert_allclose(
        [x.sum(), np.abs(x).sum(), x.max()], [2933.0314166929725, 284713.6702516845, 108.48385955314468]
    )


@pytest.mark.parametrize("method", ["ZCA", "ZCA-cor"])
@pytest.mark.parametrize("samples", [pytest.param("all", marks=pytest.mark.slow), DMSO])
def test_spherize(peer, lincs, method, samples):
    options = {"samples": samples, "method": "spherize", "spherize_method": method}
    assert_same(ours.normalize(lincs, **options), peer.normalize(lincs, **options), rtol=1e-6, atol=1e-6)
    if method == "ZCA":
        options["spherize_center"] = False
        assert_same(ours.normalize(lincs, **options), peer.normalize(lincs, **options), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("method", "norm"), [("PCA", 734.67961), ("PCA-cor", 787.81789)])
def test_principal_components_but_for_their_sign(peer, lincs, method, norm):
    options = {"samples": DMSO, "method": "spherize", "spherize_method": method}
    result, expected = ours.normalize(lincs, **options), peer.normalize(lincs, **options)
    assert list(result.columns) == list(expected.columns)
    x, y = (table.filter(regex="^PC").to_numpy() for table in (result, expected))
    np.testing.assert_allclose(np.abs(x[:, :23]), np.abs(y[:, :23]), rtol=1e-6, atol=1e-6)  # the rank of 24 controls
    np.testing.assert_allclose([np.linalg.norm(x), np.linalg.norm(y)], norm, rtol=1e-7)


@pytest.mark.parametrize("epsilon", [1e-6, 1e-2, 1.0])
@pytest.mark.parametrize("method", ["PCA", "ZCA", "PCA-cor", "ZCA-cor"])
def test_spherize_class_with_more_rows_than_features(peer, lincs, method, epsilon):
    table = lincs[features_of(lincs)[:40]]
    result = ours.Spherize(epsilon=epsilon, method=method).fit(table).transform(table)
    expected = quiet_spherize(epsilon, method, table)
    assert list(result.columns) == list(expected.columns)
    np.testing.assert_allclose(np.abs(result), np.abs(expected), rtol=1e-7, atol=1e-9)


def quiet_spherize(epsilon, method, table):
    from pycytominer.operations import Spherize

    return Spherize(epsilon=epsilon, method=method).fit(table).transform(table)


def test_dependent_features(peer, lincs):
    """P5: the peer's guard against them never fires, and a jitter of 0.001 becomes thousands."""
    names = features_of(lincs)[:5]
    table = lincs[names].assign(Cells_again=lincs[names[0]])
    moved = table.assign(Cells_again=table["Cells_again"] + 1e-3)
    expected = quiet_spherize(1e-6, "ZCA", table)
    assert expected.shape == table.shape
    as_peer = ours.Spherize(compat=PEER).fit(table)
    assert as_peer.transform(moved).abs().to_numpy().max() > 1000
    assert ours.Spherize().fit(table).transform(moved).abs().to_numpy().max() < 50


@pytest.mark.slow
def test_zero_mad(peer, jump_cells):
    expected = peer.normalize(jump_cells, method="mad_robustize")
    assert_same(ours.normalize(jump_cells, method="mad_robustize", compat=PEER), expected)
    result = ours.normalize(jump_cells, method="mad_robustize")
    exploded = expected[features_of(expected)].abs() > 1e6
    assert exploded.any().sum() == 103
    got = result[features_of(result)]
    assert got.abs().max().max() < 1e6
    assert got.isna().to_numpy()[exploded.to_numpy()].all()
    kept = got.notna()
    pd.testing.assert_frame_equal(got.where(kept), expected[features_of(expected)].where(kept))


# --- feature_select: P8
OPERATIONS = {
    "variance_threshold": 98,
    "frequency_threshold": 100,
    "get_na_columns": 0,
    "drop_outlier_features": 70,
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation(peer, jump_cells, holed, name):
    features = [column for column in jump_cells if column.startswith("Cells_")]
    result = getattr(ours, name)(jump_cells, features)
    assert len(result) == OPERATIONS[name]
    assert set(result) == set(getattr(peer, name)(jump_cells, features))
    assert set(getattr(ours, name)(holed)) == set(getattr(peer, name)(holed))


def test_noise_removal(peer, jump_cells):
    features = [column for column in jump_cells if column.startswith("Cells_")]
    result = ours.noise_removal(jump_cells, "Metadata_Well", features, noise_removal_stdev_cutoff=0.8)
    assert len(result) == 524
    assert set(result) == set(peer.noise_removal(jump_cells, "Metadata_Well", features))
    shifted = jump_cells.set_index(np.arange(125) + 1000)
    groups = jump_cells["Metadata_Well"].tolist()
    assert ours.noise_removal(shifted, groups, features, compat=PEER) == []
    assert peer.noise_removal(shifted, groups, features) == []
    with pytest.warns(ours.ProfileWarning, match="the list is taken in the order of the rows"):
        assert ours.noise_removal(shifted, groups, features) == result


def test_blocklist(peer, jump_cells):
    assert ours.get_blocklist_features() == peer.get_blocklist_features()
    assert len(ours.get_blocklist_features(population_df=jump_cells)) == 55


@pytest.mark.parametrize(
    ("method", "k", "count"),
    [("pearson", 200, 65), ("pearson", 400, 121), ("pearson", 800, 370), ("spearman", 400, 104)],
)
def test_correlation_threshold(peer, jump_cells, varying, method, k, count):
    result = ours.correlation_threshold(jump_cells, varying[:k], method=method, compat=PEER)
    assert len(result) == count
    assert set(result) == set(peer.correlation_threshold(jump_cells, varying[:k], method=method))


def test_correlation_threshold_of_missing_values(peer, holed):
    names = features_of(holed)
    result = ours.correlation_threshold(holed, names, threshold=0.7, compat=PEER)
    assert set(result) == set(peer.correlation_threshold(holed, names, threshold=0.7))


def test_feature_select(peer, jump_cells):
    names = [name for name in jump_cells if name.startswith("Cells_")][:800]
    table = ours.normalize(jump_cells[["Metadata_Well", *names]])
    operations = [
        "variance_threshold",
        "frequency_threshold",
        "correlation_threshold",
        "drop_na_columns",
        "blocklist",
        "drop_outliers",
    ]
    result = ours.feature_select(table, operation=operations, compat=PEER)
    assert result.shape == (125, 374)
    assert_same(result, peer.feature_select(table, operation=operations))
    noisy = ours.feature_select(
        table,
        operation="noise_removal",
        noise_removal_perturb_groups="Metadata_Well",
        noise_removal_stdev_cutoff=0.8,
    )
    assert noisy.shape == (125, 82)


# --- annotate
def test_annotate(peer, data):
    folder = data / "bbbc021_profiles"
    wells = pd.read_parquet(folder / "bbbc021_wells_raw.parquet")
    profiles = wells.drop(columns=["Metadata_Compound", "Metadata_Concentration", "Metadata_moa"])
    platemap = wells[["Metadata_Plate", "Metadata_Well", "Metadata_Compound", "Metadata_Concentration"]]
    platemap = platemap.rename(columns=lambda name: name.removeprefix("Metadata_")).sample(frac=1, random_state=0)
    moas = wells[["Metadata_Compound", "Metadata_moa"]].drop_duplicates().rename(columns={"Metadata_moa": "moa"})
    options = {
        "join_on": [["Metadata_Plate", "Metadata_Well"], ["Metadata_Plate", "Metadata_Well"]],
        "external_metadata": moas,
        "external_join_on": ["Metadata_Compound"],
    }
    result = ours.annotate(profiles, platemap, **options)
    assert_same(result, peer.annotate(profiles, platemap, **options))
    assert result["Metadata_moa"].notna().sum() == wells["Metadata_moa"].notna().sum()


def test_wells_that_a_plate_map_does_not_name(peer, lincs):
    platemap = pd.DataFrame({"well_position": ["A02", "A01", "P24"], "dose": [1, 2, 3]})
    few = lincs[lincs["Metadata_Well"].isin(["A01", "A02", "A03", "P24"])]
    few = few[["Metadata_Well", *features_of(lincs)[:3]]]
    assert_same(ours.annotate(few, platemap, compat=PEER), peer.annotate(few, platemap))
    with pytest.warns(ours.ProfileWarning, match=r"does not name A03 \(1 of 4 profiles\)"):
        result = ours.annotate(few, platemap)
    assert_same(result.head(3), peer.annotate(few, platemap))
    assert result["Metadata_Well"].tolist() == ["A02", "A01", "P24", "A03"]
    assert result["Metadata_dose"].isna().tolist() == [False, False, False, True]


def test_annotate_cmap(peer, lincs):
    table = lincs[[SAMPLE, "Metadata_Well", "Metadata_mg_per_ml", "Metadata_solvent"]].assign(Metadata_pert_iname="x")
    for mode in ("none", "chemical", "genetic"):
        with pytest.warns(DeprecationWarning, match="annotate_cmap"):
            result = ours.annotate_cmap(table, "Metadata_Well", "A549", mode)
        assert_same(result, peer.annotate_cmap(table, "Metadata_Well", "A549", mode))


# --- DeepProfiler's npz, CytoTable: P11, P12
@pytest.fixture(scope="module")
def index(data, tmp_path_factory):
    table = pd.read_csv(data / "deepprofiler_project" / "inputs" / "metadata" / "test_index.csv", dtype=str)
    here = (table["Metadata_Plate"] == "SQ00014812") & (table["Metadata_Well"] == "A01")
    path = tmp_path_factory.mktemp("index") / "index.csv"
    table[here & table["Metadata_Site"].isin(["5", "8"])].to_csv(path, index=False)
    return path, data / "deepprofiler_project" / "outputs" / "results" / "features"


def test_npz(peer, data):
    folder = data / "deepprofiler_project"
    path = folder / "outputs" / "results" / "features" / "SQ00014812" / "A01_5.npz"
    features = ours.load_npz_features(path)
    assert features.shape == (158, 6416)
    assert_same(features, peer.load_npz_features(path))
    assert_same(ours.load_npz_locations(path), peer.load_npz_locations(path))
    other = next((folder / "Week1_22123").glob("*.npz"))
    assert_same(ours.load_npz_features(other), peer.load_npz_features(other))
    assert ours.load_npz_features(other, metadata=False).shape == (206, 50)
    assert ours.load_npz_features("nowhere.npz").empty
    assert ours.load_npz_locations("nowhere.npz").empty


@pytest.mark.parametrize("level", ["site", "well", "plate"])
@pytest.mark.parametrize("operation", ["median", "mean"])
def test_aggregate_deepprofiler(peer, index, level, operation):
    result = ours.AggregateDeepProfiler(ours.DeepProfilerData(*index), operation, level).aggregate_deep()
    expected = peer.AggregateDeepProfiler(peer.DeepProfilerData(*index), operation, level)
    assert_same(result, quiet(expected.aggregate_deep), rtol=1e-5, atol=1e-6)


def quiet(function):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function()


@pytest.mark.slow
def test_single_cells_of_deepprofiler(peer, index):
    result = ours.SingleCellDeepProfiler(ours.DeepProfilerData(*index)).normalize_deep_single_cells()
    expected = peer.SingleCellDeepProfiler(peer.DeepProfilerData(*index))
    assert result.shape == (337, 6418)
    assert_same(result, quiet(expected.normalize_deep_single_cells), rtol=1e-4, atol=1e-5)


def test_layout_of_a_folder_a_well(index, tmp_path):
    source = index[1] / "SQ00014812"
    for site in ("5", "8"):
        target = tmp_path / "SQ00014812" / "A01" / f"{site}.npz"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source / f"A01_{site}.npz")
    result = ours.AggregateDeepProfiler(ours.DeepProfilerData(index[0], tmp_path, "/")).aggregate_deep()
    assert_same(result, ours.AggregateDeepProfiler(ours.DeepProfilerData(*index)).aggregate_deep())


def test_cytotable_warehouse(peer, data):
    root = data / "cytotable" / "examplehuman_iceberg_warehouse"
    for path in (root, root / "warehouse", root / "warehouse" / "profiles" / "joined_profiles"):
        result = ours.load_profiles(path)
        assert result.shape == (289, 313)
        pd.testing.assert_frame_equal(result, peer.load_profiles(path))
    assert len(ours.infer_cp_features(result)) == 299
    assert ours.infer_cp_features(result) == peer.infer_cp_features(result)
    assert_same(ours.aggregate(result, ["Metadata_ImageNumber"]), peer.aggregate(result, ["Metadata_ImageNumber"]))
    assert_same(ours.normalize(result), peer.normalize(result))


# --- files
def test_platemap_and_delimiters(peer, data, tmp_path):
    path = data / "jump_metadata" / "JUMP-Target-1_compound_platemap.txt"
    pd.testing.assert_frame_equal(ours.load_platemap(path), peer.load_platemap(path))
    assert ours.infer_delim(path) == peer.infer_delim(path) == "\t"
    lincs = data / "lincs_plate_SQ00015054" / "SQ00015054_normalized_feature_select.csv.gz"
    pd.testing.assert_frame_equal(ours.load_profiles(lincs), peer.load_profiles(lincs))


def test_gct(peer, lincs, tmp_path):
    few = lincs.head(7)
    extra = pd.DataFrame({"measure": ["name", "area"]}, index=["id", features_of(lincs)[0]])
    for options in ({}, {"feature_metadata": extra}):
        ours.write_gct(few, tmp_path / "ours.gct", **options)
        peer.write_gct(few, tmp_path / "peer.gct", **options)
        assert read_gct(tmp_path / "ours.gct") == read_gct(tmp_path / "peer.gct")


def read_gct(path: Path):
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    return [["" if value == "nan" else value for value in row] for row in rows]


# --- P20: MAD on the controls of each plate, then ranks over both plates, as the JUMP recipe has it
def test_jump_recipe(data):
    folder = data / "jump_profiling_recipe" / "tests" / "fixtures"
    files = sorted((folder / "inputs" / "profiles" / "source_5").rglob("*.parquet"))
    table = pd.concat([pd.read_parquet(path) for path in files], ignore_index=True)
    expected = pd.read_parquet(
        folder / "outputs" / "compound_trimmed_public" / "profiles_var_mad_int_featselect.parquet"
    )
    keys, names = ["Metadata_Plate", "Metadata_Well"], features_of(table)
    table = table.merge(expected[[*keys, "Metadata_JCP2022"]], on=keys)
    options = {"by": "Metadata_Plate", "samples": "Metadata_JCP2022 == 'JCP2022_033924'", "method": "mad_robustize"}
    result = expected[keys].merge(ours.normalize(table, names, **options), on=keys)
    for name in names:
        rank = rankdata(result[name], method="ordinal")
        score = norm.ppf((rank - 3 / 8) / (len(rank) + 1 / 4))
        # the recipe's MAD has no factor, and rounding to float32 swaps neighbours
        np.testing.assert_allclose(score, expected[name], atol=0.05)


# --- P21: well positions, cell counts and the MAD of each plate, as the JUMP recipe has it
def test_jump_recipe_of_orfs(data):
    folder = data / "jump_profiling_recipe"
    fixtures = folder / "tests" / "fixtures"
    files = sorted((fixtures / "inputs" / "profiles" / "source_4").rglob("*.parquet"))
    table = pd.concat([pd.read_parquet(path) for path in files], ignore_index=True)
    expected = pd.read_parquet(
        fixtures / "outputs" / "orf_trimmed_public" / "profiles_wellpos_cc_var_mad_outlier_featselect.parquet"
    )
    keys, names = ["Metadata_Plate", "Metadata_Well"], features_of(table)
    counts = pd.read_csv(folder / "inputs" / "cell_counts" / "orf_cell_counts.csv.gz", low_memory=False)
    table = table.merge(expected[keys], on=keys).merge(counts.drop(columns="Metadata_Source", errors="ignore"), on=keys)
    # these two steps by numpy, and ours for the scale of a plate
    table[names] -= table.groupby("Metadata_Well")[names].transform("mean")
    design = np.stack([np.ones(len(table)), table["Metadata_Count_Cells"]], axis=1)
    table[names] -= design @ np.linalg.lstsq(design, table[names].to_numpy(), rcond=None)[0]
    table["Cells_Count_Count"] = table["Metadata_Count_Cells"].astype("float64")
    names = [*names, "Cells_Count_Count"]
    result = expected[keys].merge(ours.normalize(table, names, by="Metadata_Plate", method="mad_robustize"), on=keys)
    # the recipe's MAD has no factor
    np.testing.assert_allclose(1.4826 * result[names], expected[names], rtol=1e-4, atol=1e-5)
