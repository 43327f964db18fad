"""Pictures of multispectral and radar images: colours by hand, and what models are shown and told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from embedders import colours

from tilewright.errors import KernelError
from tilewright.kernels.ask import LevelInfo, Request, Scene, View
from tilewright.kernels.vlm.looks import Look
from tilewright.kernels.vlm.renderings import RAMPS, RENDERINGS, SPANS, Renderer, available
from tilewright.kernels.vlm.retrieval import Retrieval
from tilewright.kernels.vlm.zoom import ZoomIn

if TYPE_CHECKING:
    from tilewright.kernels.vlm.answerers import Turn

S2 = ("blue", "green", "red", "nir", "nir08", "swir16", "swir22")


def scene(*bands: str, dates: int = 1, units: str | None = None, side: int = 2) -> Scene:
    return Scene((LevelInfo(1, (side, side)),), bands, 10.0, dates, units=units)


def seen(values: Sequence[float], dtype: Any = np.float32, valid: bool = True) -> Look:
    """A box of one pixel."""
    return Look(np.array(values, np.float32).reshape(-1, 1, 1), np.full((1, 1), valid), np.dtype(dtype))


def pixel(
    bands: Sequence[str], values: Sequence[float], name: str, dtype: Any = np.float32, **options: Any
) -> list[int]:
    dates = len(values) // len(bands)
    rendered = Renderer(scene(*bands, dates=dates), name, **options).render(seen(values, dtype))
    (picture,) = rendered.pictures
    assert picture.dtype == np.uint8
    return [int(value) for value in picture[0, 0]]


def test_composites_by_hand() -> None:
    bands, values = ("blue", "green", "red", "nir"), (0.06, 0.12, 0.3, 0.2)
    assert pixel(bands, values, "true-colour") == [255, 102, 51]  # 0.3, 0.12 and 0.06 of 0.3
    assert pixel(bands, values, "false-colour") == [102, 255, 102]  # 0.2 of 0.5
    assert pixel(bands, (-0.1, 0.0, 0.6, 9.0), "true-colour") == [255, 0, 0]
    assert pixel(("swir22", "nir", "nir08", "red"), (0.08, 0.5, 0.2, 0.12), "swir") == [51, 102, 102]


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("ndvi", "nir", "red"),
        ("ndwi", "green", "nir"),
        ("mndwi", "green", "swir16"),
        ("ndmi", "nir08", "swir16"),
        ("ndbi", "swir16", "nir"),
        ("nbr", "nir08", "swir22"),
    ],
)
def test_indices_are_those_of_spyndex(name: str, first: str, second: str) -> None:
    spyndex = pytest.importorskip("spyndex")
    letters = {"green": "G", "red": "R", "nir": "N", "nir08": "N", "swir16": "S1", "swir22": "S2"}
    rng = np.random.default_rng(4)
    pixels = rng.uniform(0.01, 0.6, (len(S2), 30, 30)).astype(np.float32)
    params = {letters[band]: pixels[S2.index(band)].astype(float) for band in (first, second)}
    expected = spyndex.computeIndex(name.upper(), params=params)
    look = Look(pixels, np.ones((30, 30), bool), np.dtype(np.float32))
    (picture,) = Renderer(scene(*S2), name).render(look).pictures
    one: Any = RENDERINGS[name]
    np.testing.assert_allclose(RAMPS[one.ramp].values(picture), expected, atol=0.005)


def test_ends_of_ramps_and_what_has_no_index() -> None:
    assert pixel(("red", "nir"), (0.0, 0.4), "ndvi") == [0, 95, 0]
    assert pixel(("red", "nir"), (0.4, 0.0), "ndvi") == [30, 60, 255]
    assert pixel(("red", "nir"), (0.2, 0.2), "ndvi") == [245, 235, 200]
    assert pixel(("red", "nir"), (-0.01, 0.4), "ndvi") == [0, 95, 0]  # beyond 1
    assert pixel(("red", "nir"), (0.0, 0.0), "ndvi") == [0, 0, 0]


def test_numbers_are_reflectance_by_their_type() -> None:
    bands, name = ("red", "green", "blue"), "true-colour"
    assert pixel(bands, (0.12, 0.3, 0), name) == [102, 255, 0]
    assert pixel(bands, (1200, 3000, 0), name, np.uint16) == [102, 255, 0]
    assert pixel(bands, (1200, 3000, 0), name, np.int16) == [102, 255, 0]
    assert pixel(bands, (2200, 4000, 1000), name, np.uint16, offset=-0.1) == [102, 255, 0]
    assert pixel(bands, (12100, 18000, 7272), name, np.uint16, scale=2.75e-5, offset=-0.2) == [113, 251, 0]
    assert pixel(bands, (7, 200, 0), name, np.uint8) == [7, 200, 0]  # bytes as they are
    assert pixel(bands, (60, 150, 0), name, np.uint8, scale=0.002) == [102, 255, 0]
    assert pixel(("nir", "red", "green"), (7, 200, 0), "false-colour", np.uint8) == [7, 200, 0]


def test_radar_by_hand() -> None:
    values = (0.1, 0.01)  # -10 and -20 dB, 10 dB apart
    assert pixel(("vv", "vh"), values, "sar") == [128, 76, 170]
    assert pixel(("vh", "vv"), values[::-1], "sar") == [128, 76, 170]
    assert pixel(("vv", "vh"), (-10, -20), "sar", decibels=True) == [128, 76, 170]
    assert pixel(("vv", "vh"), (0.0, 0.0), "sar") == [0, 0, 0]
    in_db = Renderer(scene("vv", "vh", units="gamma0 dB"), "sar").render(seen((-10, -20)))
    assert in_db.pictures[0][0, 0].tolist() == [128, 76, 170]
    with pytest.raises(KernelError, match="radar in bytes"):
        pixel(("vv", "vh"), (10, 20), "sar", np.uint8)


def test_dates_follow_each_other() -> None:
    bands = ("red", "nir")
    values = (0.2, 0.2, 0.0, 0.4)
    assert pixel(bands, values, "ndvi", date=0) == [245, 235, 200]
    assert pixel(bands, values, "ndvi") == [0, 95, 0]


def test_what_was_not_measured_is_black() -> None:
    for name in available(S2):
        rendered = Renderer(scene(*S2), name).render(seen([0.2] * len(S2), valid=False))
        assert all((picture == 0).all() for picture in rendered.pictures)
        assert rendered.text.endswith("Black is where nothing was measured.")


def test_triplets_repeat_the_last_band() -> None:
    values = (0.06, 0.12, 0.18, 0.2, 0.1, 0.3, 0.4)
    rendered = Renderer(scene(*S2), "triplets").render(seen(values), first=5)
    assert [picture[0, 0].tolist() for picture in rendered.pictures] == [
        [51, 102, 153],
        [102, 51, 153],
        [255, 255, 255],
    ]
    lines = rendered.text.splitlines()
    assert lines[0].startswith(
        "Image 5 is a composite of three bands. Red shows blue light (0 to 0.3 reflectance), green "
    )
    assert lines[2].startswith("Image 7 ")
    assert lines[2].count("2.2 um (0 to 0.4 reflectance)") == 3
    unknown = Renderer(scene("blue", "tree_height", "vv"), "triplets").render(seen((0.06, 12, 0.1)))
    assert unknown.pictures[0][0, 0].tolist() == [51, 128, 128]


def test_words_name_the_colours() -> None:
    text = Renderer(scene(*S2), ["false-colour", "ndvi"]).render(seen([0.2] * 7)).text.splitlines()
    assert text[0].startswith(
        "Image 1 is a false-colour composite. Red shows near infrared (0 to 0.5 reflectance), green shows red light "
        "(0 to 0.3 reflectance), blue shows green light (0 to 0.3 reflectance). Healthy vegetation is bright red"
    )
    assert text[1].startswith("Image 2 is the vegetation index NDVI. From blue (-1")
    bytes_ = Renderer(scene(*S2), "false-colour").render(seen([20] * 7, np.uint8)).text
    assert "reflectance" not in bytes_
    radar = Renderer(scene("vv", "vh"), "sar").render(seen((0.1, 0.01))).text
    assert "Red shows radar VV (-20 to 0 dB), green shows radar VH (-26 to -6 dB), blue how far" in radar


def test_what_the_bands_allow() -> None:
    assert available(("red", "green", "blue")) == ["true-colour", "triplets"]
    assert available(S2) == [name for name in RENDERINGS if name != "sar"] + ["triplets"]
    assert available(("vv", "vh")) == ["sar", "triplets"]
    assert available(("band_1", "band_2")) == []
    for everything in ("all", ("all",)):
        assert len(Renderer(scene("red", "green", "blue"), everything).render(seen((0, 0, 0))).pictures) == 2
    assert set(SPANS) >= set(S2)


@pytest.mark.parametrize(
    ("names", "bands", "match"),
    [
        ("nbr", ("red", "nir"), "rendering nbr needs the band swir22; the image has red, nir"),
        (("ndvi",), ("band_1", "band_2"), "needs the band nir or nir08"),
        ("ndvii", ("red", "nir"), "did you mean 'ndvi'"),
        ("all", ("band_1",), "no rendering for the bands band_1"),
        ("triplets", ("height",), "knows none of the bands"),
    ],
)
def test_errors_are_one_clear_line(names: Any, bands: tuple[str, ...], match: str) -> None:
    with pytest.raises(KernelError, match=match) as caught:
        Renderer(scene(*bands), names)
    assert "\n" not in str(caught.value)


class Talker:
    """Asks for a box first, then answers; keeps what it was shown."""

    name = "talker"

    def __init__(self, *said: str) -> None:
        self.said = list(said)
        self.turns: list[list[Turn]] = []

    def answer(self, images: Sequence[np.ndarray], prompt: str, max_tokens: int = 256) -> str:
        raise AssertionError("it knows dialogues")

    def converse(self, turns: Sequence[Turn], max_tokens: int = 256) -> str:
        self.turns.append(list(turns))
        return self.said.pop(0)


def drive(asking: Any, pixels: np.ndarray) -> Any:
    """Answer a policy's requests of level 0 from an array."""
    try:
        wanted = next(asking)
        while True:
            wanted = asking.send([view(request, pixels) for request in wanted])
    except StopIteration as done:
        return done.value


def view(request: Request, pixels: np.ndarray) -> View:
    part = pixels[:, request.row0 : request.row1, request.col0 : request.col1]
    return View(request, part, np.ones(part.shape[1:], bool))


def field_and_lake() -> np.ndarray:
    """Red, green, blue and near infrared of a green field with a lake in its east, as ten-thousandths."""
    pixels = np.empty((4, 280, 280), np.uint16)
    pixels[:] = np.array([400, 800, 400, 4000])[:, None, None]
    pixels[:, :, 140:] = np.array([200, 400, 600, 100])[:, None, None]
    return pixels


def test_a_closer_look_is_shown_in_the_same_renderings() -> None:
    call = '<tool_call>\n{"name": "image_zoom_in", "arguments": {"bbox": [0, 0, 140, 140]}}\n</tool_call>'
    model = Talker(call, "a field")
    policy = ZoomIn(model, renderings=("true-colour", "ndvi"), min_pixels=784, max_pixels=78_400)
    bands = ("red", "green", "blue", "nir")
    answer = drive(policy.ask("What is there?", scene(*bands, side=280)), field_and_lake())
    assert answer.text == "a field"
    assert answer.trace["renderings"] == ["true-colour", "ndvi"]
    first, second = model.turns[0][-1], model.turns[1][-1]
    assert len(first.images) == len(second.images) == 2
    assert first.text.startswith("What is there?\nImage 1 is a true-colour picture.")
    assert "\nImage 2 is the vegetation index NDVI." in first.text
    assert "\nImage 4 is the vegetation index NDVI." in second.text
    assert second.images[0][0, 0].tolist() == [34, 68, 34]  # 0.04, 0.08 and 0.04 of 0.3
    index = RAMPS["vegetation"].values(first.images[1])
    assert index[100, 50] == pytest.approx((4000 - 400) / 4400, abs=0.005)
    assert index[100, 250] == pytest.approx((100 - 200) / 300, abs=0.005)
    refused = ZoomIn(Talker(), renderings=("nbr",))
    with pytest.raises(KernelError, match="needs the band swir22"):
        drive(refused.ask("?", scene(*bands, side=280)), field_and_lake())


def test_patches_are_shown_in_every_rendering() -> None:
    embedder = colours(side=32).embedder({"gain": torch.ones(1)})
    model = Talker("a lake")
    policy = Retrieval(embedder, model, keywords=("blue",), threshold=0.001, renderings=("ndvi", "triplets"))
    bands = ("red", "green", "blue", "nir")
    answer = drive(policy.ask("What is in the east?", scene(*bands, side=280)), field_and_lake())
    (turn,) = model.turns[0]
    places = len(turn.images) // 3 - 1
    assert answer.trace["shown"] == len(turn.images) == 3 * (places + 1) > 3
    assert turn.text.startswith("Image 1 is the vegetation index NDVI.")
    assert "\nImages 1 to 3 are the whole.\n" in turn.text
    assert ": images 4 to 6, in the same renderings\n" in turn.text


def test_the_released_way_of_zooming_cuts_every_rendering() -> None:
    call = '<tool_call>\n{"name": "image_zoom_in", "arguments": {"bbox": [140, 0, 280, 140]}}\n</tool_call>'
    model = Talker(call, "a lake")
    policy = ZoomIn(
        model, renderings=("true-colour", "ndvi"), crop="overview", min_pixels=784, max_pixels=78_400
    )
    drive(policy.ask("?", scene("red", "green", "blue", "nir", side=280)), field_and_lake())
    before, after = model.turns[0][-1].images, model.turns[1][-1].images
    for overview, closer in zip(before, after, strict=True):
        assert (closer == overview[0, -1]).all()
