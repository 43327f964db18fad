"""The classic kernels against slow twins in numpy and scipy, written from the papers without the kernels' code."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tilewright.kernels.classic import change_vector, ir_mad, refined_lee
from tilewright.kernels.classic.thresholds import em_mixture, otsu
from tilewright.kernels.contract import Context, Kernel


def run(kernel: Kernel, image: np.ndarray, valid: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Fit on all valid pixels of ``[T, C, H, W]`` and map once, in float32."""
    valid = np.ones(image.shape[-2:], bool) if valid is None else valid
    statistics = {}
    if kernel.fit is not None:
        statistics = dict(kernel.fit({"image": np.moveaxis(image, (0, 1), (-2, -1))[valid].astype(float)}))
    none = torch.zeros(1, image.shape[0])
    context = Context(torch.zeros(1, 2, dtype=torch.int64), none, none[:, :2], 10.0, statistics)
    tensor = torch.from_numpy(image.astype(np.float32))[None]
    mask = torch.from_numpy(np.broadcast_to(valid, (1, image.shape[0], 1, *valid.shape)).copy())
    return {n: v[0].numpy() for n, v in kernel.apply({"image": tensor}, {"image": mask}, context).items()}


def pair(rng: np.random.Generator, bands: int, side: int = 90, noise: float = 0.2) -> np.ndarray:
    """Two dates that share a scene, with noise and a square of change; ``[2, C, side, side]``."""
    scene = rng.normal(size=(3, side, side))
    mix = rng.normal(size=(2, bands, 3))
    image = np.einsum("tbk,kyx->tbyx", mix, scene) + noise * rng.normal(size=(2, bands, side, side))
    image[1, :, 10:30, 10:30] += rng.normal(size=(bands, 1, 1)) * 3
    return image


# --- refined Lee --------------------------------------------------------------------------------------------


def slow_refined_lee(
    power: np.ndarray, valid: np.ndarray, looks: float, window: int, homogeneous: float
) -> np.ndarray:
    half = window // 2
    side, step = {5: (3, 1), 7: (3, 2), 9: (5, 2), 11: (5, 3)}[window]
    rows, cols = np.mgrid[-half : half + 1, -half : half + 1]
    # Direction in which a half-window lies -> its pixels.
    masks = {
        (0, 1): cols >= 0, (0, -1): cols <= 0, (-1, 0): rows <= 0, (1, 0): rows >= 0,
        (-1, 1): cols >= rows, (1, -1): cols <= rows, (-1, -1): rows + cols <= 0, (1, 1): rows + cols >= 0,
    }  # fmt: skip
    padded = np.pad(np.where(valid, power, np.nan).astype(float), half, constant_values=np.nan)
    out = np.full(power.shape, np.nan)
    for y, x in np.argwhere(valid):
        box = padded[y : y + window, x : x + window]
        var, mean = np.nanvar(box), np.nanmean(box)
        if var > homogeneous * mean**2 / looks:
            means = {}
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    top, left = half + dy * step - side // 2, half + dx * step - side // 2
                    part = box[top : top + side, left : left + side]
                    means[dy, dx] = np.nan if np.isnan(part).all() else np.nanmean(part)
            means = {k: means[0, 0] if np.isnan(v) else v for k, v in means.items()}
            ring = [(0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1)]
            steep = [
                abs(
                    sum(means[ring[(i + j) % 8]] for j in (-1, 0, 1))
                    - sum(means[ring[(i + 4 + j) % 8]] for j in (-1, 0, 1))
                )
                for i in range(4)
            ]
            one = ring[max((0, 2, 1, 3), key=steep.__getitem__)]
            other = (-one[0], -one[1])
            near, far = abs(means[one] - means[0, 0]), abs(means[other] - means[0, 0])
            chosen = box if near == far else box[masks[one if near < far else other]]
            var, mean = np.nanvar(chosen), np.nanmean(chosen)
        signal = max((var - mean**2 / looks) / (1 + 1 / looks), 0)
        out[y, x] = mean + (signal / var if signal > 0 else 0) * (power[y, x] - mean)
    return out


@pytest.mark.parametrize(("window", "homogeneous"), [(7, 1.5), (7, 0.0), (5, 1.5), (9, 0.0), (11, 1.0)])
def test_refined_lee_equals_its_slow_twin(window: int, homogeneous: float) -> None:
    rng = np.random.default_rng(window)
    scene = np.where(np.add.outer(np.arange(41), 1.7 * np.arange(37)) > 55, 0.4, 0.05)
    power = scene * rng.gamma(4.4, 1 / 4.4, scene.shape)
    valid = rng.random(scene.shape) > 0.1
    valid[5:16, 8:20] = False
    want = slow_refined_lee(power, valid, 4.4, window, homogeneous)
    got = run(refined_lee(window=window, homogeneous=homogeneous), power[None, None], valid)["filtered"][0]
    assert np.array_equal(np.isnan(got), ~valid)
    # A tie or a comparison within a rounding error may choose another window in float32.
    wrong = ~np.isclose(got, want, rtol=1e-4, atol=1e-6, equal_nan=True)
    assert wrong.mean() < 2e-3


# --- IR-MAD -------------------------------------------------------------------------------------------------


def slow_irmad(image: np.ndarray, rounds: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The published iteration by singular values of the whitened cross-covariance."""
    from scipy import linalg, stats

    x, y = image.reshape(2, image.shape[1], -1).astype(float)
    count = len(x)
    weight = np.ones(x.shape[1])
    for _ in range(rounds):
        joint = np.cov(np.vstack([x, y]), aweights=weight, ddof=0)
        root1 = linalg.fractional_matrix_power(joint[:count, :count], -0.5)
        root2 = linalg.fractional_matrix_power(joint[count:, count:], -0.5)
        u, rho, vt = linalg.svd(root1 @ joint[:count, count:] @ root2)
        a, b = (root1 @ u).T[::-1], (root2 @ vt.T).T[::-1]
        rho = rho[::-1]
        mx, my = (np.average(v, axis=1, weights=weight)[:, None] for v in (x, y))
        mad = a @ (x - mx) - b @ (y - my)
        z = (mad**2 / (2 * (1 - rho))[:, None]).sum(0)
        weight = stats.chi2.sf(z, count)
    return mad.reshape(image.shape[1:]), z.reshape(image.shape[2:]), rho


@pytest.mark.parametrize("rounds", [1, 6])
def test_irmad_equals_its_slow_twin(rounds: int) -> None:
    image = pair(np.random.default_rng(4), 5)
    mad, z, rho = slow_irmad(image, rounds)
    kernel = ir_mad(bands=5, iterations=rounds, consistent=False)
    got = run(kernel, image)
    sign = np.sign((got["mad"] * mad).sum((1, 2)))[:, None, None]
    np.testing.assert_allclose(got["mad"], sign * mad, atol=2e-4)
    np.testing.assert_allclose(got["chi2"][0], z, rtol=2e-3, atol=1e-3)
    fitted = kernel.fit({"image": np.moveaxis(image, (0, 1), (-2, -1)).reshape(-1, 2, 5)})
    np.testing.assert_allclose(fitted["rho"], rho, atol=1e-8)
    assert fitted["iterations"] == rounds


def test_irmad_probability_is_the_chi_square_tail() -> None:
    from scipy import stats

    got = run(ir_mad(bands=4), pair(np.random.default_rng(1), 4))
    np.testing.assert_allclose(got["nochange"], stats.chi2.sf(got["chi2"].astype(float), 4), atol=2e-6)
    assert np.array_equal(got["change"] == 1, got["nochange"] <= 0.001)


# --- change vector and its thresholds -----------------------------------------------------------------------


def test_change_vector_equals_numpy() -> None:
    image = pair(np.random.default_rng(2), 4)
    pixels = image.reshape(2, 4, -1)
    centre = np.median(pixels, axis=2, keepdims=True)
    spread = np.median(np.abs(pixels - centre), axis=2, keepdims=True) / 0.6744897501960817
    step = np.diff((pixels - centre) / spread, axis=0)[0]
    length = np.linalg.norm(step, axis=0)
    got = run(change_vector(bands=4, direction=True, method="otsu"), image)
    np.testing.assert_allclose(got["magnitude"].ravel(), length, rtol=1e-5)
    assert np.array_equal(got["change"].ravel() == 1, got["magnitude"].ravel() >= np.float32(otsu(length)))
    angle = np.arccos(np.clip(step.sum(0) / (2 * length), -1, 1))
    np.testing.assert_allclose(got["direction"].ravel(), angle, atol=2e-3)


def test_otsu_equals_scikit_image() -> None:
    filters = pytest.importorskip("skimage.filters")
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(1, 0.3, 4000), rng.normal(4, 0.8, 1000)])
    theirs = filters.threshold_otsu(values, nbins=256)
    assert otsu(values) == pytest.approx(theirs, abs=2 * np.ptp(values) / 256)

    def between(cut: float) -> float:
        high = values >= cut
        return float(high.mean() * (1 - high.mean()) * (values[high].mean() - values[~high].mean()) ** 2)

    assert between(otsu(values)) == max(between(cut) for cut in np.sort(values)[1:])


@pytest.mark.parametrize("changed", [0.03, 0.1, 0.4])
def test_em_recovers_a_mixture(changed: float) -> None:
    rng = np.random.default_rng(5)
    count = round(50_000 * changed)
    values = np.concatenate([rng.normal(2, 0.5, 50_000 - count), rng.normal(6, 1.0, count)])
    found = em_mixture(values)
    assert found.share[1] == pytest.approx(changed, rel=0.05)
    np.testing.assert_allclose(found.mean, (2, 6), atol=0.1)
    np.testing.assert_allclose(found.std, (0.5, 1.0), rtol=0.06)
    density = [
        s / d * math.exp(-(((found.threshold() - m) / d) ** 2) / 2)
        for s, m, d in zip((1 - changed, changed), (2, 6), (0.5, 1.0), strict=True)
    ]
    assert math.log(density[0] / density[1]) == pytest.approx(0, abs=0.35)


# --- a real pair --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def belize(shared_data: Path) -> tuple[np.ndarray, np.ndarray]:
    """Landsat 7, Belize 1999 and 2002: six reflective bands ``[2, 6, 250, 250]`` and where both are valid."""
    import rasterio

    folder = shared_data / "09_landsat" / "LE7_belize_1999_2002" / "example"
    names = ("LE70220491999322EDC01_stack.gtif", "LE70220492002106EDC00_stack.gtif")
    if not folder.is_dir():
        pytest.skip("the Landsat 7 pair is absent")
    dates = []
    for name in names:
        with rasterio.open(folder / name) as source:
            dates.append(source.read([1, 2, 3, 4, 5, 6]))
    image = np.stack(dates)
    return image, (image < 16000).all((0, 1))  # 16000 marks saturation and fill


def test_real_pair_methods_agree_on_the_strongest_change(belize: tuple[np.ndarray, np.ndarray]) -> None:
    image, valid = belize
    vector = run(change_vector(bands=6), image, valid)
    mad = run(ir_mad(bands=6), image, valid)
    for name, got in (("cva", vector), ("irmad", mad)):
        share = got["change"][0][valid].mean()
        assert 0.001 < share < 0.6, (name, share)
    assert np.isfinite(mad["mad"][:, valid]).all()
    top = vector["magnitude"][0] >= np.quantile(vector["magnitude"][0][valid], 0.99)
    assert mad["change"][0][top & valid].mean() > 0.8


def test_real_pair_is_invariant_to_recalibration(belize: tuple[np.ndarray, np.ndarray]) -> None:
    image, valid = belize
    other = image * np.array([1, 1.31])[:, None, None, None] + np.array([0, 250.0])[:, None, None, None]
    for kernel, name in ((change_vector(bands=6), "magnitude"), (ir_mad(bands=6), "chi2")):
        one, two = run(kernel, image, valid)[name][0][valid], run(kernel, other, valid)[name][0][valid]
        np.testing.assert_allclose(two, one, rtol=2e-3, atol=2e-3)
