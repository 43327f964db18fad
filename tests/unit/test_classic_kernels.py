"""Options, masks, errors and properties of the classic kernels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tilewright.errors import KernelError
from tilewright.kernels.classic import change_vector, ir_mad, refined_lee, spectral_index
from tilewright.kernels.classic.irmad_fit import shrinkage
from tilewright.kernels.contract import Context, Kernel
from tilewright.testing import check_kernel


def context(statistics: dict | None = None, count: int = 1) -> Context:
    zero = torch.zeros(count, 2, dtype=torch.int64)
    return Context(zero, zero[:, :1], zero.double(), 10.0, statistics or {})


def apply(kernel: Kernel, image: np.ndarray, valid: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Fit on the valid pixels of ``[T, C, H, W]``, map, and return each output ``[C, H, W]``."""
    mask = np.ones((image.shape[0], *image.shape[2:]), bool) if valid is None else valid
    statistics = {}
    if kernel.fit is not None:
        pixels = np.moveaxis(image, (0, 1), (-2, -1))[mask.all(0)].astype(float)
        statistics = dict(kernel.fit({"image": pixels}))
    tensors = torch.from_numpy(image.astype(np.float32))[None], torch.from_numpy(mask[None, :, None])
    out = kernel.apply({"image": tensors[0]}, {"image": tensors[1]}, context(statistics))
    return {name: value[0].numpy() for name, value in out.items()}


# --- index --------------------------------------------------------------------------------------------------

pytest.importorskip("spyndex")


def test_index_describes_its_bands_and_range() -> None:
    spec = spectral_index(name="NDVI").spec
    assert spec.inputs["image"].bands == ("nir", "red")
    assert spec.inputs["image"].units is None  # a ratio takes digital numbers too
    assert spectral_index(name="EVI").spec.inputs["image"].units == "reflectance"
    assert spec.outputs["ndvi"].range == (-1, 1)
    assert spec.radius == 0
    assert spectral_index(name="GRNDVI").spec.outputs["grndvi"].range == (-1, 1)
    assert spectral_index(name="EVI").spec.outputs["evi"].range is None
    assert spectral_index(name="NDVI", bands="nir08,red").spec.inputs["image"].bands == ("nir08", "red")
    assert spectral_index(name="S2REP").spec.inputs["image"].bands == (
        "rededge3",
        "red",
        "rededge1",
        "rededge2",
    )


def test_index_of_zero_by_zero_and_of_invalid_pixels_is_nothing() -> None:
    image = np.array([[[[0.4, 0.0, 0.5]], [[0.2, 0.0, 0.1]]]])
    out = apply(spectral_index(name="NDVI"), image, np.array([[[True, True, False]]]))["ndvi"][0, 0]
    assert out[0] == pytest.approx(1 / 3)
    assert np.isnan(out[1:]).all()


def test_index_holds_a_normalised_difference_to_its_range() -> None:
    image = np.array([[[[0.10]], [[-0.01]]]])
    assert apply(spectral_index(name="NDVI"), image)["ndvi"][0, 0, 0] == 1


def test_index_difference_is_before_minus_after() -> None:
    image = np.array([[[[0.4]], [[0.1]]], [[[0.2]], [[0.3]]]])
    kernel = spectral_index(name="NBR", difference=True)
    assert kernel.spec.inputs["image"].dates == 2
    assert kernel.spec.outputs["dnbr"].range == (-2, 2)
    assert apply(kernel, image)["dnbr"][0, 0, 0] == pytest.approx(0.6 + 0.2)


def test_index_takes_constants() -> None:
    image = np.array([[[[0.4]], [[0.1]]]])
    for soil in (0.5, 0.0):
        want = (1 + soil) * 0.3 / (0.5 + soil)
        assert apply(spectral_index(name="SAVI", L=soil), image)["savi"][0, 0, 0] == pytest.approx(want)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "NVDI"}, "did you mean"),
        ({"name": "bai"}, "BAI or BaI"),
        ({"name": "NDVI", "L": 0.5}, "does not use L"),
        ({"name": "FAI"}, "--set lambdaN=NUMBER"),
        ({"name": "NDVI", "bands": "nir"}, "does not rename nir, red"),
        ({"name": "kNDVI", "kernel": "rbf"}, "RBF"),
    ],
)
def test_index_refuses(options: dict, words: str) -> None:
    with pytest.raises(KernelError) as error:
        spectral_index(**options)
    assert words in str(error.value)


# --- change vector ------------------------------------------------------------------------------------------


def scene(seed: int, bands: int, side: int = 60) -> np.ndarray:
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(bands, side, side))
    image = np.stack([base, base]) + 0.1 * rng.normal(size=(2, bands, side, side))
    image[1, :, :10, :10] += 5
    return image


@pytest.mark.parametrize("method", ["otsu", "em"])
def test_change_vector_finds_a_planted_square(method: str) -> None:
    change = apply(change_vector(bands=3, method=method), scene(0, 3))["change"][0] == 1
    assert change[:10, :10].mean() > 0.97
    assert change.mean() < 0.05


def test_change_vector_with_fixed_threshold_makes_no_pass() -> None:
    kernel = change_vector(bands=2, threshold=5.0, normalise=False)
    assert kernel.fit is None
    assert kernel.spec.statistics is None
    image = np.array([[[[0.0, 0.0]], [[0.0, 0.0]]], [[[3.0, 3.0]], [[4.0, 3.9]]]])
    out = apply(kernel, image)
    assert out["magnitude"][0, 0, 0] == 5
    assert out["change"][0, 0].tolist() == [1, 0]


def test_change_vector_direction_runs_from_brightening_to_darkening() -> None:
    step = np.array([[1.0, -1.0, 1.0, 0.0], [1.0, -1.0, -1.0, 0.0]])
    image = np.stack([np.zeros((2, 1, 4)), step[:, None]])
    out = apply(change_vector(bands=2, threshold=1.0, normalise=False, direction=True), image)
    np.testing.assert_allclose(out["direction"][0, 0], [0, np.pi, np.pi / 2, np.nan], atol=1e-3)


def test_change_vector_without_magnitude_gives_the_same_classes() -> None:
    image = scene(0, 3)
    classes = apply(change_vector(bands=3, magnitude=False), image)
    assert list(classes) == ["change"]
    np.testing.assert_array_equal(classes["change"], apply(change_vector(bands=3), image)["change"])


def test_change_vector_names_the_constant_band() -> None:
    image = scene(1, 3)
    image[1, 2] = 7
    with pytest.raises(KernelError, match=r"band 3 \(nir\) of date 2 has the one value 7"):
        apply(change_vector(bands="red,green,nir"), image)


def test_without_the_statistics_pass_the_forward_says_so() -> None:
    image, valid = torch.zeros(1, 2, 1, 4, 4), torch.ones(1, 2, 1, 4, 4, dtype=torch.bool)
    for kernel in (change_vector(), ir_mad()):
        with pytest.raises(KernelError, match="statistics pass"):
            kernel.apply({"image": image}, {"image": valid}, context())


# --- IR-MAD -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bands", [1, 2, 4])
def test_irmad_is_invariant_to_affine_transforms_of_either_date(bands: int) -> None:
    rng = np.random.default_rng(bands)
    image = scene(3, bands)
    mixed = np.stack(
        [np.einsum("ij,jyx->iyx", rng.normal(size=(bands, bands)) + 2 * np.eye(bands), d) for d in image]
    )
    mixed += rng.normal(size=(2, bands, 1, 1)) * 10
    one, two = apply(ir_mad(bands=bands), image), apply(ir_mad(bands=bands), mixed)
    np.testing.assert_allclose(two["chi2"], one["chi2"], rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(np.abs(two["mad"]), np.abs(one["mad"]), atol=2e-3)


@pytest.mark.parametrize("bands", [1, 3, 6])
def test_irmad_probability_means_what_it_says_where_nothing_changed(bands: int) -> None:
    rng = np.random.default_rng(bands)
    base = rng.normal(size=(bands, 200, 200))
    image = np.stack([base + 0.3 * rng.normal(size=base.shape) for _ in range(2)])
    nochange = apply(ir_mad(bands=bands), image)["nochange"]
    for p in (0.5, 0.1, 0.01):
        assert (nochange < p).mean() == pytest.approx(p, rel=0.15)
    published = apply(ir_mad(bands=bands, consistent=False), image)["nochange"]
    assert (published < 0.01).mean() > 0.2


def test_shrinkage_of_one_band_in_closed_form() -> None:
    assert shrinkage(1) == pytest.approx(1 - 2 / np.pi, abs=1e-6)
    assert shrinkage(2) == pytest.approx(0.5, abs=1e-6)


def test_irmad_of_an_exact_copy_finds_no_change_and_of_a_copy_with_a_patch_the_patch() -> None:
    base = np.random.default_rng(0).normal(size=(3, 50, 50))
    image = np.stack([base, 2 * base + 1])
    assert apply(ir_mad(bands=3), image)["change"].sum() == 0
    image[1, :, :8, :8] = np.random.default_rng(1).normal(size=(3, 8, 8))
    change = apply(ir_mad(bands=3), image)["change"][0] == 1
    assert change[:8, :8].mean() > 0.9
    change[:8, :8] = False
    assert not change.any()


def test_irmad_fit_is_deterministic() -> None:
    sample = {"image": np.moveaxis(scene(5, 4), (0, 1), (-2, -1)).reshape(-1, 2, 4)}
    assert ir_mad(bands=4).fit(sample) == ir_mad(bands=4).fit(sample)


def test_irmad_names_degenerate_bands() -> None:
    image = scene(2, 3)
    image[0, 1] = 4
    with pytest.raises(KernelError, match=r"band 2 of date 1 has the one value 4"):
        apply(ir_mad(bands=3), image)
    image = scene(2, 3)
    image[1, 2] = image[1, 0] - 2 * image[1, 1]
    with pytest.raises(KernelError, match=r"band 3 \(c\) of date 2 is a linear combination"):
        apply(ir_mad(bands="a,b,c"), image)
    assert np.isfinite(apply(ir_mad(bands=3, regularisation=1e-3), image)["chi2"]).all()
    with pytest.raises(KernelError, match="at least 60"):
        ir_mad(bands=3).fit({"image": np.zeros((10, 2, 3))})


# --- refined Lee --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("looks", [1.0, 4.4, 20.0])
def test_refined_lee_smooths_even_areas_and_keeps_the_mean(looks: float) -> None:
    power = np.random.default_rng(0).gamma(looks, 1 / looks, (1, 1, 300, 300))
    out = apply(refined_lee(looks=looks), power)["filtered"]
    assert out.mean() == pytest.approx(power.mean(), rel=0.005)
    assert out.mean() ** 2 / out.var() > 20 * looks


@pytest.mark.parametrize("angle", range(0, 180, 45))
def test_refined_lee_keeps_edges_that_a_boxcar_blurs(angle: int) -> None:
    y, x = np.mgrid[-100:101, -100:101]
    away = x * np.cos(np.radians(angle)) + y * np.sin(np.radians(angle))
    truth = np.where(away > 0, 1.0, 0.1)
    power = truth * np.random.default_rng(angle).gamma(4.4, 1 / 4.4, truth.shape)
    out = apply(refined_lee(), power[None, None])["filtered"][0]
    boxcar = torch.nn.functional.avg_pool2d(torch.from_numpy(power)[None], 7, 1, 3, count_include_pad=False)
    near = (np.abs(away) < 2.5) & (np.maximum(abs(x), abs(y)) < 90)
    error = lambda got: np.sqrt(np.mean((np.log(got) - np.log(truth))[near] ** 2))  # noqa: E731
    assert error(out) < 0.35 * error(boxcar[0].numpy())


def test_refined_lee_reaches_three_pixels_and_ignores_invalid_ones() -> None:
    rng = np.random.default_rng(2)
    power = rng.gamma(1, 1, (1, 2, 21, 21))
    base = apply(refined_lee(bands=2, homogeneous=0), power)["filtered"]
    far = power.copy()
    far[..., :7, :] *= 9
    moved = apply(refined_lee(bands=2, homogeneous=0), far)["filtered"]
    assert np.array_equal(base[:, 10:], moved[:, 10:])
    assert not np.array_equal(base[:, 9], moved[:, 9])
    valid = np.ones((1, 21, 21), bool)
    valid[0, 8:12, 3:9] = False
    holes = power.copy()
    holes[:, :, ~valid[0]] = 1e6
    out, other = (apply(refined_lee(bands=2), p, valid)["filtered"] for p in (power, holes))
    assert np.array_equal(np.isnan(out), np.broadcast_to(~valid, out.shape))
    assert np.array_equal(out, other, equal_nan=True)


@pytest.mark.parametrize("options", [{"window": 8}, {"looks": 0.0}, {"homogeneous": -1.0}, {"bands": 0}])
def test_refined_lee_refuses(options: dict) -> None:
    with pytest.raises(KernelError):
        refined_lee(**options)


# --- all ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [change_vector, ir_mad, refined_lee, spectral_index])
def test_a_tile_does_not_depend_on_its_batch(make) -> None:  # type: ignore[no-untyped-def]
    kernel = make() if make is spectral_index else make(bands=2)
    image = torch.rand(4, kernel.spec.inputs["image"].dates, 2, 33, 35)
    valid = torch.ones(4, image.shape[1], 1, 33, 35, dtype=torch.bool)
    statistics = {}
    if kernel.fit is not None:
        statistics = dict(
            kernel.fit({"image": image.permute(0, 3, 4, 1, 2).reshape(-1, 2, 2).double().numpy()})
        )
    whole = kernel.apply({"image": image}, {"image": valid}, context(statistics, 4))
    alone = kernel.apply({"image": image[2:3]}, {"image": valid[2:3]}, context(statistics))
    for name, value in whole.items():
        assert torch.equal(value[2:3], alone[name])


@pytest.mark.parametrize(
    "kernel",
    [
        spectral_index(name="NDVI"),
        spectral_index(name="EVI", difference=True),
        spectral_index(name="kNDVI"),
        change_vector(bands=3, direction=True),
        change_vector(bands=2, threshold=1.0, normalise=False),
        ir_mad(bands=3),
        refined_lee(bands=2),
        refined_lee(window=11, homogeneous=0),
    ],
    ids=lambda kernel: kernel.spec.name,
)
def test_the_kernels_are_what_they_say(kernel: Kernel) -> None:
    report = check_kernel(kernel)
    report.raise_for_findings()
    assert report.radius == kernel.spec.radius


@pytest.mark.parametrize(
    ("bands", "want"), [("4", 4), (3, 3), ("red, nir", ("red", "nir")), (("a", "b"), ("a", "b"))]
)
def test_bands_option(bands, want) -> None:  # type: ignore[no-untyped-def]
    assert change_vector(bands=bands).spec.inputs["image"].bands == want


@pytest.mark.parametrize("bands", ["", "red,red", "red,,nir", 0, -2])
def test_bands_option_refuses(bands) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(KernelError, match="bands="):
        change_vector(bands=bands)
