import os
import shutil

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import tifffile
from study_factory import CHANNELS, SIDE, configure, derived, draw_site, edit_index, made, make_wells, run, write_images

from cytominer_tools.errors import InputError
from deepprofile import simulate
from deepprofile.features import CARD, profile_cells
from deepprofile.illumination import area_thumbnail, read_correction, unevenness
from deepprofile.intensities import measure_intensities, plate_correction, read_levels
from deepprofile.locations import locate_cells
from deepprofile.percentiles import Counts, Sample
from deepprofile.simulator import Camera
from deepprofile.sites import site_image, site_rows
from deepprofile.study import read_study

METHODS = ("deepprofiler", "smooth", "files")
SMALL = {"window": 40, "downscale": 4}  # px: the images of the tiny study have 128
pytestmark = pytest.mark.filterwarnings("ignore:spherizing learns from")


def light_of(side=SIDE, loss=0.5):
    rows, columns = np.mgrid[:side, :side] / (side - 1) * 2 - 1
    return 1 - loss * (rows**2 + columns**2) / 2


def shade(root, plates=("P1", "P2")):
    """Take light from the corners of every image, and write the functions as CellProfiler does."""
    function = light_of() / light_of().min()
    for path in sorted((root / "images").glob("*/*.tif")):
        tifffile.imwrite(path, np.rint(tifffile.imread(path) * light_of()).astype(np.uint16))
        os.utime(path, ns=(10**18, 10**18))
    for plate in plates:
        for channel in CHANNELS:
            (root / "illum" / plate).mkdir(parents=True, exist_ok=True)
            np.save(root / "illum" / plate / f"{plate}_Illum{channel}.npy", function)


def section(method, **more):
    files = {"files": "illum/{plate}/{plate}_Illum{channel}.npy"} if method == "files" else {}
    return {"method": method, **files, **(SMALL if method in ("deepprofiler", "smooth") else {}), **more}


def told(caplog):
    return "\n".join(record.getMessage() for record in caplog.records)


@pytest.fixture
def shaded(fresh):
    shade(fresh.root)
    return fresh.root


def rows_of(study, plate="P1"):
    index = pd.read_csv(study.root / "index.csv", dtype=str)
    return site_rows(index[index["Metadata_Plate"] == plate])


# --- percentiles of a sample
def test_a_sample_of_everything_has_the_percentiles_of_everything():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 5000, (3, 20, 30, 2)).astype(np.uint16)
    function = rng.uniform(1, 2, (20, 30, 2)).astype(np.float32)
    sample = Sample(images.shape[1:], 3)
    for image in images:
        sample.add(image)
    q = (0.1, 50, 99.9)
    expected = np.percentile(images / function, q, axis=(0, 1, 2), method="inverted_cdf")
    np.testing.assert_allclose(sample.percentiles(q, function), expected, rtol=1e-6)
    assert sample.percentiles(q, function).dtype == np.float32


def test_a_sample_is_bounded_and_sees_every_column():
    images = np.random.default_rng(0).gamma(2, 500, (50, 64, 64, 1)).astype(np.uint16)
    sample, counts = Sample((64, 64, 1), 50, most=20_000), Counts(1)
    for image in images:
        sample.add(image)
        counts.add(image)
    kept = [len(pixels) for _, pixels in sample.kept]
    assert sum(kept) <= 20_000
    assert min(kept) >= 360
    columns = np.unique(np.concatenate([np.arange(start, 64 * 64, sample.step) % 64 for start, _ in sample.kept]))
    assert len(columns) == 64
    q = (1, 50, 99)
    np.testing.assert_allclose(sample.percentiles(q, np.ones((64, 64, 1))), counts.percentiles(q), rtol=0.05)
    assert (Sample((64, 64, 2), 1).percentiles(q, np.ones((64, 64, 2))) == 0).all()


# --- no correction
def test_without_a_correction_nothing_is_added(fresh, finished):
    measure_intensities(fresh)
    assert sorted(p.name for p in (fresh.root / "illumination").iterdir()) == ["P1.npz", "P2.npz", "manifest.json"]
    with np.load(fresh.root / "illumination" / "P1.npz") as file:
        assert list(file) == ["levels"]
    assert plate_correction(fresh, "P1") is None
    assert site_image(fresh, rows_of(fresh)[0]).dtype == np.uint16


def test_locating_without_a_correction_needs_no_illumination(fresh):
    assert locate_cells(fresh).made == 12
    assert not (fresh.root / "illumination").exists()


def test_quality_is_written_when_it_is_asked_for(fresh, caplog):
    measure_intensities(fresh)
    plain = {plate: read_levels(fresh, plate) for plate in ("P1", "P2")}
    image = np.full((SIDE, SIDE, 3), 500, np.uint16)
    image[:40] = 65535
    write_images(fresh.root, "P1", "B01", 2, image)
    study = configure(fresh.root, illumination={"qc": True})
    caplog.set_level("INFO")
    assert measure_intensities(study).rows == 24
    for plate, levels in plain.items():
        np.testing.assert_array_equal(read_levels(study, plate), levels)  # those of the controls
    table = pd.read_parquet(study.root / "illumination" / "P1_sites.parquet")
    assert len(table) == 12
    assert table.loc[table["Saturated_DNA"] > 0.01, "Metadata_Well"].tolist() == ["B01"]
    assert "illumination: plate P1: 12 sites, 1 with over 1% saturated pixels" in told(caplog)
    measure_intensities(configure(fresh.root))
    assert not (study.root / "illumination" / "P1_sites.parquet").exists()  # it would be of other images some day


# --- corrected studies
@pytest.mark.parametrize("method", METHODS)
def test_images_levels_and_files_of_a_corrected_plate(shaded, method, caplog):
    study = configure(shaded, illumination=section(method))
    caplog.set_level("INFO")
    done = measure_intensities(study)
    assert done.rows == (8 if method == "files" else 24)  # controls, or all
    row = rows_of(study)[0]
    raw, image = site_image(study, row, corrected=False), site_image(study, row)
    full = read_correction(study, "P1").expand()
    np.testing.assert_allclose(image, raw / full, rtol=1e-6)
    assert (image.dtype, raw.dtype) == (np.float32, np.uint16)
    np.testing.assert_array_equal(site_image(study, row, ["Mito"]), image[..., 2:])
    controls = [r for r in rows_of(study) if r["Metadata_Compound"] == "DMSO"]
    pixels = np.concatenate([site_image(study, r).reshape(-1, 3) for r in controls])
    expected = np.percentile(pixels, (0.1, 99.9), axis=0, method="inverted_cdf")
    np.testing.assert_allclose(read_levels(study, "P1"), expected, rtol=1e-6)
    mean = np.mean([site_image(study, r, corrected=False) for r in rows_of(study)], axis=0)
    for channel in range(3):
        before, after = (unevenness(area_thumbnail(m, 4)[..., channel]) for m in (mean, mean / full))
        assert after < 0.75 * before  # the cells of this study stand on a grid, which is no light
    names = {p.name for p in (study.root / "illumination").iterdir()}
    assert ("P1_sites.parquet" in names) == (method != "files")
    assert {"P1.npz", "P1.png"} < names
    assert "illumination: plate P1: DNA uneven by " in told(caplog)
    assert measure_intensities(study).made == 0


@pytest.mark.parametrize("method", METHODS)
def test_workers_do_not_change_a_byte(shaded, method, monkeypatch):
    study = configure(shaded, illumination=section(method))
    measure_intensities(study)
    before = derived(study.root)
    shutil.rmtree(study.root / "illumination")
    monkeypatch.setattr("cytominer_tools.threads.workers", lambda: 7)
    monkeypatch.setattr("deepprofile.intensities.workers", lambda: 5)
    measure_intensities(study)
    assert derived(study.root) == before


def test_the_order_of_the_sites_changes_no_function(shaded):
    study = configure(shaded, illumination=section("deepprofiler"))
    measure_intensities(study)
    before = read_correction(study, "P1"), read_levels(study, "P1")
    edit_index(shaded, lambda t: t.iloc[::-1])
    measure_intensities(study)
    np.testing.assert_array_equal(read_correction(study, "P1").function, before[0].function)
    np.testing.assert_array_equal(read_levels(study, "P1"), before[1])


def test_a_gain_changes_no_function(shaded):
    study = configure(shaded, illumination=section("smooth"))
    measure_intensities(study)
    before = read_correction(study, "P1").function
    for path in (shaded / "images" / "P1").glob("*.tif"):
        tifffile.imwrite(path, tifffile.imread(path) * np.uint16(4))
    assert measure_intensities(study).made == 1
    np.testing.assert_allclose(read_correction(study, "P1").function, before, rtol=1e-4)


def test_the_light_of_the_simulator_is_found(tmp_path):
    """The same cells with and without vignetting: what the functions differ by is the vignetting."""
    found = []
    for name, loss in (("even", 0.0), ("uneven", 0.3)):
        root = tmp_path / name
        camera = Camera(offset=0, read_noise=1, vignetting=loss)
        simulate(
            root, plates=1, sites=2, size=(160, 200), cells=8, moas=2, compounds_per_moa=3, controls=4, camera=camera
        )
        (root / "study.yaml").write_text(
            "images: {index: index.csv}\nchannels: {DNA: DNA, Mito: Mito}\nillumination: {method: smooth, window: 60}\n"
        )
        study = read_study(root)
        measure_intensities(study)
        rows = site_rows(pd.read_csv(root / "index.csv", dtype=str))
        mean = np.mean([site_image(study, row, corrected=False) for row in rows], axis=0)
        found.append((read_correction(study, rows[0]["Metadata_Plate"]).expand(), mean))
    (flat, flat_mean), (uneven, uneven_mean) = found
    light, ratio = uneven_mean / flat_mean, uneven / flat
    for channel in range(2):
        truth = area_thumbnail(light, 4)[2:-2, 2:-2, channel]
        measured = area_thumbnail(ratio, 4)[2:-2, 2:-2, channel]
        assert np.ptp(truth) > 0.15
        assert np.abs(measured / measured.mean() / (truth / truth.mean()) - 1).mean() < 0.02


# --- what depends on it
def test_a_corrected_run_goes_from_images_to_scores(shaded, finished):
    study = configure(shaded, illumination=section("smooth"))
    told = run(study)
    assert told["illumination"].made == 2
    assert set(made(run(study)).values()) == {0}
    card = pq.read_schema(study.features / "P1" / "cells.parquet").metadata[CARD].decode()
    assert '"illumination": {"downscale": 4, "filter": "median", "method": "smooth", "window": 40.0}' in card
    cells = pq.read_table(study.features / "P1" / "cells.parquet")
    assert np.isfinite(np.stack(cells["features"].to_numpy())).all()


def test_another_method_runs_what_depends_on_it_again(shaded):
    study = configure(shaded, illumination=section("smooth"))
    run(study)
    assert set(made(run(configure(shaded, illumination=section("smooth", qc=True)))).values()) == {
        0,
        2,
    }  # the table alone
    again = made(run(configure(shaded, illumination=section("deepprofiler"))))
    assert (again["illumination"], again["locate"], again["profile"]) == (2, 12, 12)
    back = made(run(configure(shaded)))
    assert (back["illumination"], back["locate"], back["profile"]) == (2, 12, 12)


def test_a_changed_function_file_runs_its_plate_again(shaded):
    study = configure(shaded, illumination=section("files"))
    run(study)
    path = shaded / "illum" / "P2" / "P2_IllumDNA.npy"
    np.save(path, np.load(path) ** 1.1)
    again = made(run(study))
    assert (again["illumination"], again["locate"], again["profile"]) == (1, 6, 6)


@pytest.mark.parametrize("stage", [locate_cells, profile_cells])
def test_a_correction_that_is_not_made_is_asked_for(done, stage):
    study = configure(done.root, illumination=section("smooth"))
    with pytest.raises(InputError, match=r"run `deepprofile (illumination|locate)`"):
        stage(study)
    shutil.rmtree(done.root / "illumination")
    if stage is locate_cells:
        with pytest.raises(InputError, match=r"1 of 1 part.*run `deepprofile illumination`"):
            stage(study)


def test_an_image_read_before_the_stage_has_run(fresh):
    study = configure(fresh.root, illumination=section("smooth"))
    row = rows_of(study)[0]
    with pytest.raises(
        InputError, match="the illumination of plate P1 is not measured; run `deepprofile illumination`"
    ):
        site_image(study, row)
    measure_intensities(study)
    with pytest.raises(InputError, match="other illumination settings; run `deepprofile illumination` again"):
        site_image(configure(fresh.root, illumination=section("deepprofiler")), row)
    measure_intensities(configure(fresh.root))
    with pytest.raises(InputError, match="other illumination settings"):
        site_image(study, row)


def test_counts_over_the_largest_of_their_type_stay_so(shaded):
    study = configure(shaded, illumination=section("smooth"), crops={"size": 32, "normalize": "none"})
    seen = []
    for stage in (measure_intensities, locate_cells, profile_cells):
        seen.append(stage(study))
    features = np.stack(pq.read_table(study.features / "P1" / "cells.parquet")["features"].to_numpy())
    assert plate_correction(study, "P1").dtype == np.uint16
    assert np.abs(features).max() < 1  # of an image in [0, 1], not of one in counts


# --- plates that are not whole
@pytest.mark.parametrize("method", METHODS)
def test_no_site_of_a_plate_can_be_read(shaded, method, caplog):
    for path in (shaded / "images" / "P2").glob("*_ER.tif"):
        path.write_bytes(b"")
    study = configure(shaded, illumination=section(method))
    told = run(study)
    assert "illumination: plate P2: none of its sites can be read: " in caplog.text
    assert told["aggregate"].rows == 6  # the other plate goes on
    assert plate_correction(study, "P2").size == (0, 0)
    mended = configure(shaded, illumination=section(method), channels={"DNA": "DNA"})
    assert measure_intensities(mended).made == 2


@pytest.mark.parametrize("method", METHODS)
def test_unreadable_controls_are_replaced_by_all_wells(shaded, method):
    for path in (shaded / "images" / "P1").glob("A0*_ER.tif"):
        path.unlink()
    study = configure(shaded, illumination=section(method))
    measure_intensities(study)
    assert (read_levels(study, "P1")[1] > read_levels(study, "P1")[0]).all()
    pixels = [site_image(study, r).reshape(-1, 3) for r in rows_of(study) if r["Metadata_Compound"] != "DMSO"]
    expected = np.percentile(np.concatenate(pixels), (0.1, 99.9), axis=0, method="inverted_cdf")
    np.testing.assert_allclose(read_levels(study, "P1"), expected, rtol=1e-6)


def test_an_unreadable_site_is_left_out_and_told(shaded):
    whole = configure(shaded, illumination=section("deepprofiler"))
    path = shaded / "images" / "P1" / "B01_s1_ER.tif"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match="cannot be read"):
        measure_intensities(whole, strict=True)
    assert measure_intensities(whole).rows == 23
    table = pd.read_parquet(shaded / "illumination" / "P1_sites.parquet").set_index(["Metadata_Well", "Metadata_Site"])
    why = table["Metadata_Unreadable"]
    assert "cannot be read" in why["B01", "1"]
    assert (why != "").sum() == 1
    assert np.isnan(table.loc[("B01", "1"), "Mean_DNA"])


def test_one_site_has_a_function_of_unknown_quality(shaded):
    edit_index(shaded, lambda t: t[(t["Metadata_Well"] == "A01") & (t["Metadata_Site"] == 1)])
    study = configure(shaded, illumination=section("deepprofiler"))
    measure_intensities(study)
    with np.load(shaded / "illumination" / "P1.npz") as file:
        assert np.isnan(file["unevenness"][2]).all()
        assert (file["unevenness"][1] < file["unevenness"][0]).all()


def test_too_few_sites_are_said_to_be(fresh, caplog):
    rng = np.random.default_rng(0)
    for path in (fresh.root / "images").glob("*/*.tif"):  # cells anywhere, and no vignetting
        tifffile.imwrite(path, np.roll(tifffile.imread(path), rng.integers(0, SIDE, 2), (0, 1)))
    measure_intensities(configure(fresh.root, illumination=section("smooth")))
    assert "its 12 sites are too few to tell the light from the cells" in caplog.text


def test_sizes_and_types_of_a_plate_must_be_one(shaded):
    small = draw_site(np.random.default_rng(0))[:100, :96]
    write_images(shaded, "P2", "C02", 2, small)
    study = configure(shaded, illumination=section("smooth"), images={"size": None})
    with pytest.raises(InputError, match=r"P2 C02 site 2: 100 x 96 pixels after 128 x 128 ones.*set images.size"):
        measure_intensities(study)
    told = run(configure(shaded, illumination=section("smooth")))
    assert [what for what, _ in told["locate"].skipped] == ["P2 C02 site 2"]
    write_images(shaded, "P2", "C02", 2, (draw_site(np.random.default_rng(0)) // 300).astype(np.uint8))
    with pytest.raises(InputError, match="P2 C02 site 2: uint8 pixels after uint16 ones"):
        measure_intensities(configure(shaded, illumination=section("smooth")))


def test_an_image_of_another_size_than_the_function(shaded):
    study = configure(shaded, illumination=section("smooth"), images={"size": None})
    measure_intensities(study)
    write_images(shaded, "P1", "C02", 2, draw_site(np.random.default_rng(0))[:100, :96])
    with pytest.raises(InputError, match="100 x 96 px, but the illumination of plate P1 is of 128 x 128"):
        site_image(study, rows_of(study)[-1])


# --- files of CellProfiler
def test_functions_of_another_scale_are_resized(shaded):
    for path in (shaded / "illum").glob("*/*.npy"):
        np.save(path, np.load(path)[2::4, 2::4])
    study = configure(shaded, illumination=section("files"))
    measure_intensities(study)
    expected = light_of() / light_of().min()
    np.testing.assert_allclose(read_correction(study, "P1").expand()[8:-8, 8:-8, 0], expected[8:-8, 8:-8], rtol=0.02)


@pytest.mark.parametrize("fault", ["missing", "shape", "differ"])
def test_functions_that_do_not_fit(shaded, fault):
    path = shaded / "illum" / "P1" / "P1_IllumER.npy"
    words = {
        "missing": "P1_IllumER.npy: no such illumination function; look at illumination.files",
        "shape": "P1_IllumER.npy: 100 x 96, which is no scale of the images, 128 x 128",
        "differ": "the functions of plate P1 differ in shape",
    }[fault]
    if fault == "missing":
        path.unlink()
    else:
        np.save(path, np.ones((100, 96) if fault == "shape" else (64, 64)))
    with pytest.raises(InputError, match=words):
        measure_intensities(configure(shaded, illumination=section("files")))


@pytest.mark.parametrize("name", ["{well}", "{plate.__class__}", "{channel!r}", "{plate:>999999999}", "{plate", "{}"])
def test_a_template_knows_plate_and_channel(shaded, name):
    study = configure(shaded, illumination={"method": "files", "files": f"illum/{name}.npy"})
    with pytest.raises(InputError, match=r"only \{plate\} and \{channel\} are filled in"):
        measure_intensities(study)


# --- study.yaml
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "files"}, "method files and the key files"),
        ({"files": "a.npy"}, "method files and the key files"),
        ({"method": "smooth", "window": 40, "window_um": 20}, "give either window"),
        ({"method": "smooth", "window_um": 20}, "give images.pixel_size_um too"),
        ({"method": "deepprofiler", "window": 100}, "100 px are 25 at 1/4 of the size"),
        ({"method": "deepprofile"}, "illumination.method"),
        ({"methods": "smooth"}, "illumination.methods: unknown key"),
    ],
)
def test_settings_that_cannot_be(fresh, settings, words):
    with pytest.raises(InputError, match=words):
        configure(fresh.root, illumination=settings)


def test_a_window_in_micrometres(fresh):
    study = configure(fresh.root, illumination={"method": "smooth", "window_um": 30}, images={"pixel_size_um": 0.5})
    assert study.illumination_window == 60
    assert configure(fresh.root, illumination={"method": "deepprofiler"}).illumination_window == 96
    assert configure(fresh.root).correction is None


def test_a_plate_drawn_by_hand(tmp_path):
    rows = make_wells(tmp_path, "P1", {"A01": "DMSO", "A02": "aaa"}, sites=1)
    pd.DataFrame(rows).to_csv(tmp_path / "index.csv", index=False)
    study = configure(tmp_path, illumination={"method": "smooth", "filter": "gaussian"})
    measure_intensities(study)
    assert read_correction(study, "P1").function.shape == (32, 32, 3)
