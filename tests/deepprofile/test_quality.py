import cv2
import numpy as np
import pandas as pd
import pytest
import scipy.fft
import scipy.ndimage
import tifffile

from deepprofile.quality import WHY, focus_slope, quality_line, quality_table, robust_z, site_quality

KEYS = ["Metadata_Plate", "Metadata_Well", "Metadata_Site"]


def keys(n):
    return pd.DataFrame(
        {"Metadata_Plate": "P1", "Metadata_Well": [f"A{i:02}" for i in range(1, n + 1)], "Metadata_Site": "1"}
    )


def by_cellprofiler(image):
    """centrosome.radial_power_spectrum.rps and CellProfiler's fit of a line, the whole spectrum in float64."""
    image = image.astype(float)
    square = np.arange(image.shape[0])[:, None] ** 2 + np.arange(image.shape[1]) ** 2
    square = np.minimum(square, np.flipud(square))
    square = np.minimum(square, np.fliplr(square))
    image = image / np.median(np.abs(image - image.mean()))
    power = np.abs(scipy.fft.fft2(image - image.mean())) ** 2
    radii = np.floor(np.sqrt(square)).astype(int) + 1
    labels = np.arange(2, int(min(image.shape) / 8.0))
    return np.polyfit(np.log(labels), np.log(scipy.ndimage.sum(power, radii, labels)), 1)[0]


def cells(seed=0, shape=(240, 320), n=60):
    rng = np.random.default_rng(seed)
    image = np.zeros(shape)
    for y, x in zip(rng.integers(0, shape[0], n), rng.integers(0, shape[1], n), strict=True):
        cv2.circle(image, (int(x), int(y)), int(rng.integers(4, 9)), 3000 * rng.uniform(0.5, 1.5), -1)
    return image


def photograph(image, blur=1.0, seed=0, gain=1.0):
    noise = np.random.default_rng(seed).normal(0, 20, image.shape)
    return (gain * (500 + cv2.GaussianBlur(image, (0, 0), blur)) + noise).clip(0, 65535).astype(np.uint16)


# --- parity
@pytest.mark.data
def test_the_slope_is_cellprofilers_on_real_images(data):
    for path in sorted((data / "cpg0000_BR00116991" / "A01-1").glob("*.tiff")):
        image = tifffile.imread(path)
        assert focus_slope(image) == pytest.approx(by_cellprofiler(image), abs=0.03)
        blurred = cv2.GaussianBlur(image, (0, 0), 3)
        assert focus_slope(blurred) == pytest.approx(by_cellprofiler(blurred), abs=0.06)
        assert focus_slope(blurred) < focus_slope(image) - 0.8


@pytest.mark.parametrize("blur", [0.8, 3])
@pytest.mark.parametrize("shape", [(240, 320), (241, 321), (200, 333)])
def test_the_slope_is_that_of_the_whole_spectrum(shape, blur):
    """With negative frequencies where they belong; CellProfiler has them one off, which small images show."""
    image = photograph(cells(shape=shape), blur).astype(float)
    power = np.abs(scipy.fft.fft2(image - image.mean())) ** 2
    down, across = (np.abs(scipy.fft.fftfreq(side) * side) for side in shape)
    radii = np.hypot(down[:, None], across).astype(int) + 1
    labels = np.arange(2, min(shape) // 8)
    expected = np.polyfit(np.log(labels), np.log(scipy.ndimage.sum(power, radii, labels)), 1)[0]
    assert focus_slope(image) == pytest.approx(expected, abs=0.03)


# --- property
def test_blur_lowers_the_slope_and_little_else_does():
    sharp = [focus_slope(photograph(cells(seed, n=n), seed=seed)) for seed, n in enumerate([20, 40, 60, 80, 120])]
    blurred = [focus_slope(photograph(cells(seed, n=n), 4, seed)) for seed, n in enumerate([20, 40, 60, 80, 120])]
    assert max(blurred) < min(sharp) - 0.4
    image = photograph(cells()).astype(np.float32)
    assert focus_slope(3 * image + 100) == pytest.approx(focus_slope(image), abs=1e-4)


def test_too_small_and_flat_images_have_no_slope():
    assert np.isnan(focus_slope(np.random.default_rng(0).random((40, 400))))
    assert np.isnan(focus_slope(np.full((64, 64), 7, np.uint16)))


def test_a_plate_with_two_blurred_sites():
    found = [site_quality(photograph(cells(i), 4 if i in (3, 7) else 1, i)[..., None]) for i in range(12)]
    table = quality_table(keys(12), found, ["DNA"], np.dtype("uint16"))
    assert (table.index[table["FocusZ_DNA"] < -3.5] == [3, 7]).all()
    assert quality_line(table).startswith("12 sites, 0 with over 1% saturated pixels, 2 out of focus")


# --- golden
def test_columns_of_a_table():
    image = np.zeros((10, 10, 2), np.uint16)
    image[..., 1] = 7
    image[:2, :, 0] = 4095
    dim = image // 2
    table = quality_table(
        keys(3), [site_quality(image), "no such image", site_quality(dim)], ["DNA", "ER"], np.dtype("uint16")
    )
    assert list(table) == [*KEYS, WHY] + [
        f"{n}_{c}" for c in ("DNA", "ER") for n in ("Mean", "Saturated", "Focus", "FocusZ")
    ]
    assert table[WHY].tolist() == ["", "no such image", ""]
    np.testing.assert_allclose(table["Mean_DNA"], [819, np.nan, 409.4])
    np.testing.assert_allclose(
        table["Saturated_DNA"], [0.2, np.nan, 0]
    )  # 12 bits: the ceiling is what the plate reaches
    line = quality_line(table)
    assert line == "3 sites, 1 with over 1% saturated pixels, 0 out of focus (robust z < -3.5), 1 unreadable"


def test_robust_z_has_a_floor():
    np.testing.assert_allclose(robust_z(np.array([-2.0, -2.0, -2.0, -2.06, np.nan])), [0, 0, 0, -2, np.nan], atol=1e-9)
    assert np.isnan(robust_z(np.array([np.nan]))).all()
    assert len(quality_table(keys(0), [], ["DNA"], None)) == 0
