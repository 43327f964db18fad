"""Bad input: one clear line that says where, what and what to change; status 2; nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import torch
import yaml
from commands import CATALOG, KERNELS, ROOT, command, refused, unfinished, write_recipe, write_tif


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of rasters and kernels, good and bad."""
    folder = tmp_path_factory.mktemp("files")
    noise = np.random.default_rng(0).random((1, 512, 512), dtype="float32")
    write_tif(folder / "good.tif")
    write_tif(folder / "two.tif", np.ones((2, 64, 64), "float32"), names=("green", "red"))
    write_tif(folder / "shifted.tif", shift=15)
    write_tif(folder / "elsewhere.tif", crs="EPSG:32620")
    write_tif(folder / "nowhere.tif", crs=None)
    write_tif(folder / "whole.tif", noise, tiled=True, blockxsize=128, blockysize=128)
    (folder / "truncated.tif").write_bytes((folder / "whole.tif").read_bytes()[:500_000])
    (folder / "text.tif").write_text("hello")
    write_tif(folder / "bytes.tif", np.ones((1, 64, 64), "uint8"))
    (folder / "fraction.vrt").write_text(
        '<VRTDataset rasterXSize="64" rasterYSize="64"><SRS>EPSG:32621</SRS>'
        "<GeoTransform>700000,30,0,5000000,0,-30</GeoTransform>"
        '<VRTRasterBand dataType="Byte" band="1"><NoDataValue>0.5</NoDataValue><SimpleSource>'
        '<SourceFilename relativeToVRT="1">bytes.tif</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>'
    )
    (folder / "mine.py").write_text(KERNELS)
    (folder / "raises.py").write_text("answer = 1\nanswer / 0\n")
    (folder / "typo.py").write_text("def kernel(:\n")
    torch.save({"first.weight": torch.zeros(1, 1, 1, 1), "head": torch.zeros(1)}, folder / "other.pt")
    (folder / "garbage.pt").write_text("bla")
    (folder / "file").write_text("")
    return folder


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def says(line: str, *words: str) -> None:
    for word in words:
        assert word in line, line


# -- names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["apply", "run", "kernels"])
def test_unknown_kernel(where, files, tmp_path, out):
    if where == "apply":
        line = refused("apply", "ir-madd", files / "good.tif", out=out)
    elif where == "run":
        line = refused("run", write_recipe(tmp_path / "r.yaml", kernel="ir-madd"), out=out)
    else:
        line = refused("kernels", "ir-madd")
    says(line, "unknown kernel 'ir-madd'", "did you mean 'ir-mad'?")


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        ("mine.py:twise", ["mine.py:twise", "has no 'twise'", "did you mean 'twice'?"]),
        ("mine.py", ["mine.py", "name the kernel in the file"]),
        ("absent.py:twice", ["absent.py", "no such file"]),
        ("raises.py:kernel", ["raises.py:kernel", "ZeroDivisionError", "raises.py, line 2", "repair"]),
        ("typo.py:kernel", ["typo.py:kernel", "invalid syntax", "line 1", "repair"]),
        (
            "mine.py:broken",
            ["kernel broken", "NameError", "name 'nothing' is not defined", "mine.py, line 22"],
        ),
    ],
)
def test_a_kernel_file_that_does_not_work(kernel, words, files, out):
    says(refused("apply", files / kernel, files / "good.tif", out=out), *words)


def test_a_module_that_is_not_there(files, out):
    line = refused("apply", "nonesuch.module:kernel", files / "good.tif", out=out)
    says(line, "No module named 'nonesuch'", "package.module:name or file.py:name")


def test_unknown_band(files, tmp_path, out):
    line = refused(
        "apply", "index", files / "two.tif", "--set", "name=NGRDI", "--bands", "grene,red", out=out
    )
    says(line, "two.tif", "there is no band 'grene'", "did you mean 'green'?")
    line = refused("run", write_recipe(tmp_path / "r.yaml", bands=["grene", "red"]), out=out)
    says(line, "landsat-c1-l1", "no band 'grene'", "did you mean 'green'?")
    line = refused("apply", files / "mine.py:twice", files / "two.tif", out=out)
    says(line, "needs 1 band", "2 given (green, red)", "--bands")
    line = refused("apply", files / "mine.py:twice", files / "two.tif", "--bands", "3", out=out)
    says(line, "two.tif", "there is no band 3", "1..2")


def test_unknown_collection(tmp_path, out):
    line = refused("run", write_recipe(tmp_path / "r.yaml", collections="landsat-c2-l1"), out=out)
    says(line, "catalog.json", "unknown collection 'landsat-c2-l1'", "did you mean 'landsat-c1-l1'?")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"colections": "x"}, ["unknown key 'colections'", "did you mean 'collections'?"]),
        ({"grid": {"resolutoin": 30}}, ["unknown key 'grid.resolutoin'", "did you mean 'resolution'?"]),
        ({"grid": {"resolution": "thirty"}}, ["grid.resolution", "valid number"]),
        ({"grid": {"resolution": -30}}, ["grid.resolution", "greater than 0"]),
        ({"grid": ...}, ["key 'grid' is missing"]),
        ({"grid": {"resolution": 30, "crs": "EPSG:99999"}}, ["crs", "EPSG:99999", "write EPSG:n"]),
        ({"run": {"memory": "banana"}}, ["'banana' is no size", "8GiB"]),
        ({"run": {"stitch": "glue"}}, ["run.stitch", "'cut' or 'blend'"]),
        ({"cube": {"mask": "clowds"}}, ["mask", "clowds"]),
        ({"kernel": {"name": "index", "options": {"nam": "NGRDI"}}}, ["unknown option 'nam'", "did you mean 'name'?"]),
        ({"catalog": "absent/catalog.json"}, ["absent/catalog.json", "no such file"]),
    ],
)  # fmt: skip
def test_a_recipe_with_a_mistake(changes, words, tmp_path, out):
    says(refused("run", write_recipe(tmp_path / "r.yaml", **changes), out=out), *words)


def test_files_that_are_no_recipe(files, tmp_path, out):
    says(refused("run", tmp_path / "absent.yaml", out=out), "absent.yaml", "cannot be read: No such file")
    says(refused("run", tmp_path, out=out), str(tmp_path), "cannot be read: Is a directory")
    says(refused("plan", files / "good.tif"), "good.tif", "is no YAML")
    (tmp_path / "bad.yaml").write_text("name: [1\ngrid: }")
    says(refused("run", tmp_path / "bad.yaml", out=out), "bad.yaml", "is no YAML", "line 1")
    (tmp_path / "list.yaml").write_text("- a list\n")
    says(refused("run", tmp_path / "list.yaml", out=out), "holds no recipe", "recipe --schema")


def test_an_unreadable_folder(tmp_path, out, monkeypatch):
    """Root may read everything, so the refusal of the system is made."""

    def denied(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied", str(out))

    monkeypatch.setattr(Path, "mkdir", denied)
    line = refused("run", write_recipe(tmp_path / "r.yaml"), out=out)
    says(line, str(out), "Permission denied", "check the path and its permissions")


# -- region and dates ----------------------------------------------------------------------------------------


def geojson(path: Path, *ring: tuple[float, float]) -> Path:
    path.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    return path


def test_region_without_area(tmp_path, out):
    recipe = write_recipe(tmp_path / "r.yaml")
    (tmp_path / "empty.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    says(refused("run", recipe, "--region", tmp_path / "empty.geojson", out=out), "empty.geojson", "is empty")
    says(refused("run", recipe, "--region", "-54.8,-25.2,-54.8,-25.1", out=out), "west equals east", "widen")
    says(refused("run", recipe, "--region", "-54.8,-25.1,-54.7,-25.2", out=out), "south", "W,S,E,N")


def test_region_that_crosses_itself(tmp_path, out):
    a, b, c, d = (-54.85, -25.2), (-54.84, -25.19), (-54.84, -25.2), (-54.85, -25.19)
    region = geojson(tmp_path / "bow.geojson", a, b, c, d, a)
    line = refused("run", write_recipe(tmp_path / "r.yaml"), "--region", region, out=out)
    says(line, "bow.geojson", "crosses itself", "make_valid")


@pytest.mark.filterwarnings("ignore:'crs' was not provided")
def test_region_without_crs(tmp_path, out):
    box = shapely.box(-54.85, -25.2, -54.84, -25.19)
    geopandas.GeoDataFrame(geometry=[box]).to_file(tmp_path / "plain.gpkg")
    line = refused("run", write_recipe(tmp_path / "r.yaml"), "--region", tmp_path / "plain.gpkg", out=out)
    says(line, "plain.gpkg", "has no CRS", "write the file with its CRS")


def test_region_absent(tmp_path, out):
    recipe = write_recipe(tmp_path / "r.yaml", region=...)
    says(refused("run", recipe, out=out), "recipe corner", "no region is given", "--region")
    says(refused("run", recipe, "--region", "no.geojson", out=out), "no.geojson", "no such region file")
    says(refused("run", recipe, "--region", "a,b,c,d", out=out), "a,b,c,d", "four numbers")


def test_region_off_the_scenes(tmp_path, out):
    line = refused("run", write_recipe(tmp_path / "r.yaml"), "--region", "10,40,10.1,40.1", out=out)
    says(line, "catalog.json", "no Items found", "bbox 10,40,10.1,40.1", "it holds", "widen the region")


def test_region_that_the_footprint_touches_and_no_pixel_reaches(tmp_path, out):
    """An Item whose footprint is wrong: the search finds it, its pixels lie elsewhere."""
    path = next((CATALOG.parent / "landsat-c1-l1").rglob("LC08_L1TP_224077*.json"))
    item = json.loads(path.read_text())
    for asset in item["assets"].values():
        asset["href"] = str((path.parent / asset["href"]).resolve())
    item["bbox"] = [10, 40, 10.1, 40.1]
    item["geometry"] = shapely.geometry.mapping(shapely.box(*item["bbox"]))
    item["links"] = []
    (tmp_path / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": [item]}))
    recipe = write_recipe(tmp_path / "r.yaml", catalog="items.json", region=[10.0, 40.0, 10.01, 40.01])
    done = command("run", recipe, "--out", out)
    assert done.status == 0
    report = json.loads((out / "report.json").read_text())
    assert report["reasons"] == {"no_scene": report["pixels"]}
    assert f"note: no pixel has a result: {report['pixels']:,} no scene" in done.out


def test_dates_reversed_or_nonsense(tmp_path, out):
    line = refused("run", write_recipe(tmp_path / "r.yaml", dates="2020-06-01/2020-05-01"), out=out)
    says(line, "datetime", "dates are reversed", "write the earlier one first")
    line = refused("run", write_recipe(tmp_path / "r.yaml", dates="last week"), out=out)
    says(line, "'last week' is not a date", "2024-05-01")


def test_no_items_found_says_what_was_searched(tmp_path, out):
    recipe = write_recipe(
        tmp_path / "r.yaml", dates="2019-01-01/2019-02-01", search={"cloud_cover": 20, "filter": "gsd < 20"}
    )
    says(
        refused("run", recipe, out=out), str(CATALOG), "no Items found", "collections landsat-c1-l1", "2019-02-01",
        "bbox -54.852,-25.2013,-54.834,-25.1847", "gsd", "cloud_cover", "it holds 78 Items", "widen",
    )  # fmt: skip


# -- rasters -------------------------------------------------------------------------------------------------


def test_a_kernel_for_two_dates_given_one(files, tmp_path, out):
    line = refused("apply", "change-vector", files / "good.tif", out=out)
    says(line, "kernel change-vector", "needs 2 dates, 1 given", "oldest first")
    line = refused("run", write_recipe(tmp_path / "r.yaml", kernel="change-vector"), out=out)
    says(line, "kernel change-vector", "needs 2 dates, 1 given")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("elsewhere.tif", ["another CRS (EPSG:32620 against EPSG:32621)", "gdalwarp"]),
        ("shifted.tif", ["0.5 px elsewhere", "gdalwarp"]),
        ("whole.tif", ["another shape (512 x 512 against 64 x 64)", "gdalwarp"]),
    ],
)
def test_inputs_of_another_crs_or_grid(name, words, files, out):
    line = refused("apply", "change-vector", files / "good.tif", files / name, out=out)
    says(line, f"{name}: ", *words)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("truncated.tif", ["is truncated", "500,000", "fetch it again"]),
        ("text.tif", ["not a readable raster", "not recognized", "give a GeoTIFF"]),
        ("absent.tif", ["no such file", "name a raster file"]),
        ("", ["is a folder", "name a raster file"]),
        ("nowhere.tif", ["has no CRS", "rio edit-info --crs"]),
        ("fraction.vrt", ["nodata is stated as 0.5", "uint8 cannot hold", "0..255"]),
    ],
)
def test_files_that_cannot_be_read(name, words, files, out):
    says(refused("apply", files / "mine.py:twice", files / name, out=out), str(files / name), *words)


def test_a_truncated_asset_of_an_item(tmp_path, out):
    """A header that is whole, and pixels that end too early: seen mid-run, when they are read."""
    shutil.copytree(CATALOG.parent / "landsat-c1-l1", tmp_path / "landsat-c1-l1")
    for asset in (tmp_path / "landsat-c1-l1").rglob("*224077*_B4.tif"):
        asset.write_bytes(asset.read_bytes()[:20_000])
    line = command(
        "run", write_recipe(tmp_path / "r.yaml", catalog="landsat-c1-l1/collection.json"), "--out", out
    ).line
    says(
        line,
        "LC08_L1TP_224077_20200518_20200518_01_RT",
        "band red",
        "_B4.tif rows",
        "check that the file is whole",
    )
    assert unfinished(out)


def test_a_halo_that_leaves_no_core(files, out):
    line = refused("apply", files / "mine.py:wide", files / "good.tif", "--tile", 64, out=out)
    says(line, "radius of 40 px", "no core in a tile of 64 px", "use a tile of at least 81 px")


# -- options -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--stitch", "foo"], ["--stitch", "'foo'", "cut, blend"]),
        (["--device", "tpu"], ["--device", "'tpu'", "auto, cpu or cuda:N"]),
        (["--device", "cuda:77"], ["--device", "torch sees no device 'cuda:77'", "--device cpu"]),
        (["--memory", "banana"], ["--memory", "'banana' is no size", "8GiB"]),
        (["--memory", "10MB"], ["may use 10 MiB", "the run would need", "--memory"]),
        (["--precision", "fp8"], ["--precision", "'fp8'", "fp32, bf16, fp16"]),
        (["--boundary", "wrap"], ["--boundary", "'wrap'", "reflect, fill"]),
        (["--only", "jpg"], ["--only", "'jpg'", "cog, zarr"]),
        (["--tile", "0"], ["--tile", "at least 1"]),
        (["--tile", "big"], ["--tile", "valid integer", "--help"]),
        (["--batch", "-1"], ["--batch", "at least 1"]),
        (["--tyle", "3"], ["--tyle", "--tile", "--help"]),
        (["--set", "gain=2"], ["mine.py:twice", "unknown option 'gain'", "no options"]),
        (["--set", "gain"], ["--set", "'gain' is no option", "key=value"]),
        (["--weights", "absent.pt"], ["absent.pt", "no such file", "hf://"]),
    ],
)
def test_an_option_that_is_wrong(options, words, files, out):
    line = refused("apply", files / "mine.py:twice", files / "good.tif", *options, out=out)
    says(line, *words)


def test_the_kernel_option_of_a_wrong_name_or_type(files, out):
    given = ("apply", "index", files / "two.tif", "--set")
    says(refused(*given, "nam=NGRDI", out=out), "unknown option 'nam'", "did you mean 'name'?")
    says(refused(*given, "name=NGRDIX", out=out), "no spectral index 'NGRDIX'", "did you mean NGRDI")
    line = refused(*given, "name=NGRDI", "--set", "difference=perhaps", out=out)
    says(line, "option difference", "'perhaps'", "boolean")


def test_commands_that_do_not_exist_or_lack_something(files):
    says(refused("aply", "index"), "No such command 'aply'", "apply")
    says(refused("apply", "index"), "Missing argument", "tilewright apply --help")
    says(refused("recipe"), "nothing to do", "--schema")


def test_memory_that_a_part_of_the_run_exceeds(tmp_path, out):
    recipe = write_recipe(tmp_path / "r.yaml")
    for line in (
        refused("run", recipe, "--memory", "20MB", out=out),
        refused("plan", recipe, "--memory", "20MB"),
    ):
        says(line, "the run would need", "may use 19 MiB", "allow more by --memory")


# -- the output folder ---------------------------------------------------------------------------------------


def test_an_output_folder_that_is_a_file(files, tmp_path):
    arguments = ("apply", files / "mine.py:twice", files / "good.tif", "--out")
    says(refused(*arguments, files / "file"), str(files / "file"), "is a file", "name a folder")
    says(refused(*arguments, files / "file" / "x"), "Not a directory", "check the path")
    recipe = write_recipe(tmp_path / "r.yaml")
    says(refused("run", recipe, "--out", files / "file"), "is a file", "name a folder")
    assert (files / "file").read_text() == ""


def test_the_output_folder_of_another_run(files, tmp_path, out):
    """The first run stays as it was; a recipe leaves no list of Items in the folder of another run."""
    first = ("apply", files / "mine.py:twice", files / "good.tif", "--out", out)
    assert command(*first).status == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    other = ("apply", files / "mine.py:twice", files / "bytes.tif", "--out", out)
    for arguments in (
        other,
        ("run", write_recipe(tmp_path / "r.yaml"), "--out", out),
        (*first, "--shard", "32"),
    ):
        says(command(*arguments).line, str(out), "holds another run", "resume", "another --out", "--fresh")
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before
    done = command(*other, "--fresh", "--memory", "10MB")  # refused before anything is removed
    says(done.line, "the run would need")
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before
    assert command(*other, "--fresh").status == 0


def test_fresh_keeps_the_list_of_items(tmp_path, out):
    recipe = write_recipe(tmp_path / "r.yaml")
    for more in ([], ["--fresh"]):
        assert command("run", recipe, "--out", out, *more).status == 0
        assert len(json.loads((out / "items.json").read_text())["features"]) == 2


# -- a full disk ---------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """Return a function that mounts a tmpfs of a size, and makes it larger when called again."""
    place = tmp_path / "disk"
    place.mkdir()

    def resize(size: str) -> Path:
        how = f"remount,size={size}" if os.path.ismount(place) else f"size={size}"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", how, "tmpfs", place], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
        return place

    yield resize
    if os.path.ismount(place):
        subprocess.run(["umount", place], check=True)


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """4 MiB that do not compress, four shards of 512 px."""
    data = np.random.default_rng(1).random((1, 1024, 1024), dtype="float32")
    return write_tif(tmp_path_factory.mktemp("noise") / "noise.tif", data)


@pytest.mark.parametrize(
    ("size", "shards"),
    [("100k", 0), ("2500k", 2), ("5000k", 4), ("9m", 4)],
    ids=["first", "third", "pyramid", "cog"],
)
def test_a_full_disk_and_the_run_after_space_was_made(size, shards, small_disk, files, noise, tmp_path):
    out = small_disk(size) / "out"
    run = ("apply", files / "mine.py:twice", noise, "--tile", 512, "--shard", 512, "--out")
    done = command(*run, out)
    says(done.line, "No space left", "free space")
    assert unfinished(out)
    small_disk("64m")
    assert command(*run, out).status == 0
    report = json.loads((out / "report.json").read_text())
    assert report["shards_reused"] == shards
    assert report["digest"] == json.loads(_clean(run, tmp_path).read_text())["digest"]


def _clean(run: tuple[object, ...], tmp_path: Path) -> Path:
    assert command(*run, tmp_path / "clean").status == 0
    return tmp_path / "clean" / "report.json"


def test_a_limit_on_files_counts_as_a_full_disk(files, noise, tmp_path):
    """For machines where nothing can be mounted: the same write fails, with another number."""
    code = f"""
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))
sys.argv = ["tilewright", "apply", {str(files / "mine.py:twice")!r}, {str(noise)!r}, "--tile", "512",
            "--shard", "512", "--out", {str(tmp_path / "out")!r}]
from tilewright.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("tilewright: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert unfinished(tmp_path / "out")


# -- weights -------------------------------------------------------------------------------------------------


def test_weights_with_other_keys(files, out):
    line = refused(
        "apply", files / "mine.py:net", files / "good.tif", "--weights", files / "other.pt", out=out
    )
    says(
        line,
        "other.pt",
        "do not fit net",
        "3 missing: first.bias, last.weight, last.bias",
        "1 unexpected: head",
    )
    says(line, "another model or of other options")


def test_weights_that_are_none(files, out):
    line = refused(
        "apply", files / "mine.py:net", files / "good.tif", "--weights", files / "garbage.pt", out=out
    )
    says(line, "garbage.pt", "not a whole torch file", "save the state_dict alone")


def test_weights_with_the_wrong_checksum(files, tmp_path, out):
    exported = torch.export.export(torch.nn.Identity(), (torch.zeros(1, 1, 64, 64),))
    torch.export.save(exported, tmp_path / "model.pt2")
    description = {
        "inputs": {"image": {"bands": 1}},
        "outputs": {"o": {"kind": "value"}},
        "radius": 0,
        "tile": 64,
        "sha256": "0" * 64,
    }
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(description))
    line = refused("apply", tmp_path / "model.pt2", files / "good.tif", out=out)
    says(line, "model.pt2", "wrong checksum: expected sha256 0000", "fetch the file again")


# -- why, and a real process ---------------------------------------------------------------------------------


def test_why_without_a_run(tmp_path):
    says(refused("why", tmp_path / "no", "1,2"), str(tmp_path / "no"), "no such folder", "folder of a run")
    says(refused("why", tmp_path, "1,2"), "holds no run", "--out")
    says(refused("why", tmp_path, "1;2"), "X,Y", "'1;2' is no place", "comma")


def test_at_the_prompt(files, tmp_path):
    """Libraries print on their own: nothing but the line may reach the terminal."""
    for arguments in (
        ("apply", files / "mine.py:twice", files / "truncated.tif"),
        ("run", write_recipe(tmp_path / "r.yaml"), "--region", "10,40,10.1,40.1"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "tilewright", *map(str, arguments), "--out", str(tmp_path / "out")],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=ROOT,
        )
        assert done.returncode == 2, done.stderr
        assert done.stdout == ""
        assert done.stderr.startswith("tilewright: ")
        assert done.stderr.count("\n") == 1, done.stderr
        assert not (tmp_path / "out").exists()


def test_a_good_run_says_nothing_on_the_standard_error(files, tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tilewright",
            "apply",
            files / "mine.py:twice",
            files / "good.tif",
            "--out",
            "out",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    with rasterio.open(tmp_path / "out" / "o.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(1).ravel(), 2 * np.arange(64 * 64))
