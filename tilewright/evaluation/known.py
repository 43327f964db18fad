"""The layouts in which the datasets of the field are published, and the plain folders of everybody else."""

from __future__ import annotations

from .layout import LabelFile, Layout, PictureFile

__all__ = ["LAYOUTS"]

_RGB = ("red", "green", "blue")
_CHANGE = ("no-change", "change")
_MASK = {0: 0, 255: 1}
_ONES = {0: 0, 1: 1, 255: 1}


def _rgb(path: str) -> tuple[PictureFile, ...]:
    return (PictureFile(path=path, bands=_RGB, units="8-bit"),)


def _pair(name: str, about: str, before: str, after: str, label: str, **more: object) -> Layout:
    given = {"dates": (_rgb(before), _rgb(after)), "labels": (LabelFile(path=label, values=_MASK),), **more}
    return Layout.model_validate(
        {"name": name, "about": about, "task": "change", "classes": _CHANGE, **given}
    )


_LISTED = ("A/{name}.*", "B/{name}.*", "label/{name}.*")
_PLAIN = tuple((PictureFile(path=path),) for path in _LISTED[:2])
_SPLIT = tuple((PictureFile(path=f"{{split}}/{path}"),) for path in _LISTED[:2])
_WHU = "{year}/whole_image/{{split}}/image/{year}_{{split}}.tif"

_OSCD = "Onera Satellite Change Detection dataset - "
_S2_L1C = {
    "B01": "coastal", "B02": "blue", "B03": "green", "B04": "red", "B05": "rededge1", "B06": "rededge2",
    "B07": "rededge3", "B08": "nir", "B8A": "nir08", "B09": "nir09", "B10": "cirrus", "B11": "swir16",
    "B12": "swir22",
}  # fmt: skip


def _oscd_date(number: int) -> tuple[PictureFile, ...]:
    folder = f"{_OSCD}Images/{{name}}/imgs_{number}_rect"
    return tuple(
        PictureFile(path=f"{folder}/{native}.tif", bands=(band,), scale=1e-4, units="reflectance")
        for native, band in _S2_L1C.items()
    )


_SECOND_COLOURS = {
    "255,255,255": 0, "0,0,255": 1, "128,128,128": 2, "0,128,0": 3, "0,255,0": 4, "128,0,0": 5, "255,0,0": 6,
}  # fmt: skip

LAYOUTS: tuple[Layout, ...] = (
    _pair(
        "whu-cd",
        "WHU building change detection, the whole images as published",
        _WHU.format(year=2012),
        _WHU.format(year=2016),
        "change_label/{split}/change_label.tif",
        roots=(
            "",
            "1. The two-period image data",
            "Building change detection dataset_add/1. The two-period image data",
        ),
        labels=(LabelFile(path="change_label/{split}/change_label.tif", values=_ONES),),
    ),
    Layout(
        name="oscd",
        about="Onera satellite change detection, 13 bands of Sentinel-2 L1C",
        task="change",
        dates=(_oscd_date(1), _oscd_date(2)),
        labels=(LabelFile(path=f"{_OSCD}{{Split}} Labels/{{name}}/cm/cm.png", values=_MASK),),
        classes=_CHANGE,
        listed=f"{_OSCD}Images/{{split}}.txt",
        list_form="commas",
        hint="unpack the images, the train labels and the test labels beside each other",
    ),
    Layout(
        name="sen1floods11",
        about="Sen1Floods11, the hand-labelled chips: Sentinel-1 in decibels and Sentinel-2 L1C",
        dates=(
            (
                PictureFile(
                    path="data/flood_events/HandLabeled/S1Hand/{name}_S1Hand.tif",
                    bands=("vv", "vh"),
                    units="dB",
                ),
                PictureFile(
                    path="data/flood_events/HandLabeled/S2Hand/{name}_S2Hand.tif",
                    bands=tuple(_S2_L1C.values()),
                    scale=1e-4,
                    units="reflectance",
                ),
            ),
        ),
        labels=(
            LabelFile(
                path="data/flood_events/HandLabeled/LabelHand/{name}_LabelHand.tif",
                values={0: 0, 1: 1},
                ignore=(-1,),
            ),
        ),
        classes=("no-water", "water"),
        listed="splits/flood_handlabeled/flood_{split}_data.csv",
        list_form="columns",
        list_suffix="_S1Hand",
        splits={"train": "train", "val": "valid", "test": "test", "bolivia": "bolivia"},
        roots=("", "v1.1"),
        hint="keep the folders data/ and splits/ of the bucket beside each other",
    ),
    Layout(
        name="landcover-ai",
        about="LandCover.ai, cut by its own split.py",
        dates=(_rgb("output/{name}.jpg"),),
        labels=(LabelFile(path="output/{name}_m.png", values={i: i for i in range(5)}),),
        classes=("background", "building", "woodland", "water", "road"),
        listed="{split}.txt",
        hint="run the dataset's split.py, which cuts the tiles into output/",
    ),
    Layout(
        name="second",
        about="SECOND, semantic change of six classes of land cover",
        task="semantic-change",
        dates=(_rgb("{split}/im1/{name}.*"), _rgb("{split}/im2/{name}.*")),
        labels=tuple(
            LabelFile(
                path=f"{{split}}/label{i}/{{name}}.*",
                values={i: i for i in range(7)},
                colours=_SECOND_COLOURS,
            )
            for i in (1, 2)
        ),
        classes=("unchanged", "water", "ground", "low vegetation", "tree", "building", "playground"),
    ),
    _pair(
        "clcd",
        "CLCD, change of cropland",
        "{split}/time1/{name}.*",
        "{split}/time2/{name}.*",
        "{split}/label/{name}.*",
        labels=(LabelFile(path="{split}/label/{name}.*", values=_ONES),),
    ),
    Layout(
        name="pairs",
        about="plain folders A/ B/ label/ in a folder for each split",
        task="change",
        dates=_SPLIT,
        labels=(LabelFile(path="{split}/label/{name}.*", values=_ONES),),
        classes=_CHANGE,
    ),
    Layout(
        name="pairs",
        about="plain folders A/ B/ label/, with the names of a split in list/SPLIT.txt",
        task="change",
        dates=_PLAIN,
        labels=(LabelFile(path="label/{name}.*", values=_ONES),),
        classes=_CHANGE,
        listed="list/{split}.txt",
    ),
    Layout(
        name="pairs",
        about="plain folders A/ B/ label/",
        task="change",
        dates=_PLAIN,
        labels=(LabelFile(path="label/{name}.*", values=_ONES),),
        classes=_CHANGE,
    ),
    Layout(
        name="images",
        about="plain folders image/ label/ in a folder for each split",
        dates=((PictureFile(path="{split}/image/{name}.*"),),),
        labels=(LabelFile(path="{split}/label/{name}.*"),),
    ),
    Layout(
        name="images",
        about="plain folders image/ label/",
        dates=((PictureFile(path="image/{name}.*"),),),
        labels=(LabelFile(path="label/{name}.*"),),
    ),
    Layout(
        name="enlarge",
        about="plain folders low/ high/: a picture and its finer truth, for super-resolution",
        task="pictures",
        dates=((PictureFile(path="low/{name}.*"),),),
        labels=(LabelFile(path="high/{name}.*"),),
    ),
    Layout(
        name="cloud-chips",
        about="the test pictures of ukis-csmask: six bands of reflectance and a label in one NumPy archive each",
        dates=(
            (
                PictureFile(
                    path="{name}.npz",
                    bands=("blue", "green", "red", "nir", "swir16", "swir22"),
                    units="reflectance",
                    array="img",
                ),
            ),
        ),
        labels=(LabelFile(path="{name}.npz", values={0: 2, 1: 0, 2: 0, 3: 0, 4: 1}, array="msk"),),
        classes=("clear", "cloud", "shadow"),
    ),
    # What follows lies as plain pairs do, so it is taken only by its name.
    _pair(
        "levir-cd",
        "LEVIR-CD as published: change of buildings in pictures of 1024 px",
        *(f"{{split}}/{path}" for path in _LISTED),
    ),
    _pair("levir-cd", "LEVIR-CD in tiles with lists", *_LISTED, listed="list/{split}.txt"),
    _pair("whu-cd", "WHU-CD in tiles with lists", *_LISTED, listed="list/{split}.txt"),
    _pair("whu-cd", "WHU-CD in tiles", *(f"{{split}}/{path}" for path in _LISTED)),
)
"""In the order in which they are tried; several of one name are forms of the same dataset."""
