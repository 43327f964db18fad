"""Every command at work, what a start costs, and that `plan` opens no pixel."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import rasterio
from commands import CORNER, KERNELS, ROOT, command, write_recipe, write_tif

HEAVY = (
    "torch",
    "dask",
    "prefect",
    "rasterio",
    "geopandas",
    "matplotlib",
    "xarray",
    "zarr",
    "pandas",
    "pystac",
)


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine.py").write_text(KERNELS)
    return tmp_path / "mine.py"


def loaded_after(code: str) -> set[str]:
    """Return the heavy modules that a new process has loaded after ``code``."""
    text = f"{code}\nimport sys\nprint('LOADED', *[m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split("LOADED")[1].split())


# -- what a start costs --------------------------------------------------------------------------------------


def test_the_import_is_light():
    """Under one second of processor time, which other load on the machine does not change."""
    code = "import time; t = time.process_time(); import tilewright; print(time.process_time() - t)"
    seconds = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(2)
    ]
    assert min(seconds) < 1
    assert loaded_after("import tilewright") == set()


def test_help_loads_nothing_heavy():
    code = (
        "import sys; sys.argv = ['tilewright', '--help']\n"
        "from tilewright.cli import main\ntry:\n    main()\nexcept SystemExit:\n    pass"
    )
    assert loaded_after(code) == set()


def test_the_module_and_the_script_are_the_same_program():
    ends = [
        subprocess.run(start, capture_output=True, text=True, cwd=ROOT)
        for start in (
            [sys.executable, "-m", "tilewright", "recipe", "--schema"],
            [sys.executable, "-c", "from tilewright.cli import main; main()", "recipe", "--schema"],
        )
    ]
    assert [end.returncode for end in ends] == [0, 0]
    assert ends[0].stdout == ends[1].stdout


# -- help ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("demo", ["--out"]),
        ("plan", ["RECIPE", "--region", "--json", "--table", "--memory"]),
        ("run", ["RECIPE", "--region", "--out", "--device", "--weights", "--only", "--fresh"]),
        (
            "apply",
            ["KERNEL", "INPUTS", "--out", "--set", "--stitch", "--tile", "--shard", "--bands", "--boundary"],
        ),
        ("kernels", ["NAME", "--json"]),
        ("recipe", ["--schema"]),
        ("why", ["OUT", "X,Y"]),
        ("verify", ["OUT", "--sample", "--all", "--seed", "--anyway", "--json"]),
        ("diff", ["A", "B", "--tolerance", "--out", "--json"]),
    ],
)
def test_help(name, words):
    everything = command("--help")
    assert everything.status == 0
    assert name in everything.out
    done = command(name, "--help")
    assert done.status == 0
    assert [word for word in words if word.lower() not in done.out.lower()] == []


def test_no_arguments_show_the_help():
    done = command()
    assert "Usage" in done.out + done.err


# -- the commands --------------------------------------------------------------------------------------------


def test_kernels():
    table = command("kernels")
    assert table.status == 0
    listed = json.loads(command("kernels", "--json").out)
    names = [one["name"] for one in listed]
    assert {"index", "change-vector", "ir-mad", "refined-lee", "dist-s1"} <= set(names)
    assert all(name in table.out for name in names)
    one = json.loads(command("kernels", "change-vector", "--json").out)
    assert one["spec"]["inputs"]["image"]["dates"] == 2
    assert "threshold" in one["options"]
    shown = command("kernels", "change-vector").out
    assert "--set threshold" in shown
    assert "radius: 0" in shown


def test_recipe(tmp_path):
    schema = json.loads(command("recipe", "--schema").out)
    assert schema["additionalProperties"] is False
    models = [schema, *schema["$defs"].values()]
    silent = [
        (model["title"], key)
        for model in models
        for key, field in model.get("properties", {}).items()
        # A part whose key is described in the words of its own model is described there.
        if not field.get("description")
        and not schema["$defs"].get(field.get("$ref", "").rpartition("/")[2], {}).get("description")
    ]
    assert silent == []
    checked = json.loads(command("recipe", write_recipe(tmp_path / "r.yaml")).out)
    assert checked["region"] == CORNER


@pytest.mark.parametrize("example", sorted(p.name for p in (ROOT / "examples").glob("*.yaml")))
def test_the_examples_are_recipes(example):
    assert command("recipe", ROOT / "examples" / example).status == 0


@pytest.fixture
def no_pixels(monkeypatch):
    """Make every read of a pixel fail; counts what was opened."""
    opened = []
    read_header = rasterio.open

    def denied(*_args, **_kwargs):
        raise AssertionError("a pixel was read")

    def counted(*args, **kwargs):
        opened.append(args[0])
        return read_header(*args, **kwargs)

    for name in ("read", "read_masks", "sample", "dataset_mask"):
        monkeypatch.setattr(rasterio.DatasetReader, name, denied)
        monkeypatch.setattr(rasterio.vrt.WarpedVRT, name, denied, raising=False)
    monkeypatch.setattr(rasterio, "open", counted)
    return opened


def test_plan_reads_no_pixel(tmp_path, no_pixels, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = write_recipe(tmp_path / "r.yaml")
    done = command("plan", recipe)
    assert done.status == 0, done.err
    assert all(word in done.out for word in ("items", "tiles", "memory", "read", "written", "inference"))
    plan = json.loads(command("plan", recipe, "--json", "--tile", 32).out)
    assert plan["items"] == 2
    assert plan["tile"] == plan["core"] == 32
    assert plan["tiles"] == -(-plan["shape"][0] // 32) * -(-plan["shape"][1] // 32)
    assert plan["projected_memory_bytes"] == sum(plan["memory"].values())
    assert no_pixels == []  # the Items say all that a plan needs: not even a header is opened
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


def test_plan_compares_tiles(tmp_path):
    recipe = write_recipe(tmp_path / "r.yaml")
    shown = command("plan", recipe, "--table")
    assert shown.status == 0
    assert shown.out.count("best") == 1
    table = json.loads(command("plan", recipe, "--table", "--json").out)["table"]
    assert {row["tile"] for row in table} >= {128, 256, 512}
    (best,) = [row for row in table if row["best"]]
    assert best["seconds"] == min(row["seconds"] for row in table if row["fits"])


def test_run_and_resume(tmp_path):
    recipe, out = write_recipe(tmp_path / "r.yaml", outputs={"catalog": "maps"}), tmp_path / "out"
    done = command("run", recipe, "--out", out, "--tile", 32, "--shard", 32)
    assert (done.status, done.err) == (0, "")
    assert "work factor 1.00" in done.out
    products = {
        "ngrdi.tif",
        "result.zarr",
        "item.json",
        "items.json",
        "ledger.jsonl",
        "report.json",
        "quicklook.png",
    }
    assert products <= {path.name for path in out.iterdir()}
    report = json.loads((out / "report.json").read_text())
    assert report["tiles_run"] == report["tiles_needed"]
    assert report["reasons"].keys() == {"valid", "no_scene"}
    item = json.loads((out / "item.json").read_text())
    assert len([link for link in item["links"] if link["rel"] == "derived_from"]) == 2
    assert list((tmp_path / "maps").rglob(f"{item['id']}.json"))
    again = command("run", recipe, "--out", out, "--tile", 32, "--shard", 32)
    assert f"{report['shards']} shards ({report['shards']} kept from before)" in again.out


def test_a_recipe_may_leave_the_bands_to_the_items(tmp_path):
    """A kernel for any bands takes those that all Items have."""
    recipe = write_recipe(
        tmp_path / "r.yaml", kernel={"name": "ir-mad"}, periods=["2020-05-18"] * 2, dates=...
    )
    done = command("run", recipe, "--out", tmp_path / "out", "--only", "zarr")
    assert (done.status, done.err) == (0, "")
    ledger = [json.loads(line) for line in (tmp_path / "out" / "ledger.jsonl").read_text().splitlines()]
    assert ledger[0]["depends_on"]["kernel"]["options"]["bands"] == ["blue", "green", "red"]


@pytest.mark.parametrize("kernel", ["change-vector", "ir-mad"])
def test_apply_a_kernel_with_statistics(kernel, tmp_path):
    """The plan times the forward before there are statistics of the scene."""
    generator = np.random.default_rng(0)
    base = generator.random((2, 64, 64), dtype="float32")
    dates = []
    for date in range(2):
        values = base + 0.02 * generator.standard_normal((2, 64, 64), dtype="float32")
        values[:, 20:40, 20:40] += 2 * date
        dates.append(write_tif(tmp_path / f"{date}.tif", values))
    done = command("apply", kernel, *dates, "--out", tmp_path / "out")
    assert (done.status, done.err) == (0, "")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["statistics"]
    changed = next(path for path in (tmp_path / "out").glob("*.tif") if "change" in path.stem)
    with rasterio.open(changed) as dataset:
        values = dataset.read(1).astype(float)
    inside = np.zeros((64, 64), bool)
    inside[20:40, 20:40] = True
    assert values[inside].mean() > values[~inside].mean()


def test_apply(mine, tmp_path):
    image = write_tif(tmp_path / "image.tif", np.arange(2 * 64 * 64, dtype="float32").reshape(2, 64, 64))
    out = tmp_path / "out"
    done = command(
        "apply", f"{mine}:twice", image, "--bands", 2, "--out", out, "--only", "cog", "--threads", 1
    )
    assert (done.status, done.err) == (0, "")
    assert not (out / "result.zarr").exists()
    with rasterio.open(out / "o.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(1).ravel(), 2 * np.arange(64 * 64, 2 * 64 * 64))
    report = json.loads((out / "report.json").read_text())
    assert report["extra"] == {
        "inputs": [[str(image)]],
        "bands": ["2"],
        "kernel": {"name": f"{mine}:twice", "weights": None, "options": {}},
    }
    assert report["threads"] == 1


def test_progress_in_a_log_is_a_line_a_tenth(mine, tmp_path):
    image = write_tif(tmp_path / "image.tif", np.zeros((1, 200, 200), "float32"))
    done = command("apply", f"{mine}:twice", image, "--tile", 16, "--shard", 16, "--out", tmp_path / "out")
    lines = [line for line in done.out.splitlines() if " shards" in line and " of " in line]
    assert 5 <= len([line for line in lines if "shards of" not in line and "169" in line]) <= 12
    told = [line for line in lines if line.startswith("169 of 169 shards, ")]
    assert len(told) == 1
    assert "Mpx/s" in told[0]
    assert "CPU" in told[0]
    assert "left" not in told[0]
    assert "pyramid (1 of 5 steps of the end)" in done.out
