"""The benchmark command, on layers that take no time."""

import json
import subprocess
import sys
from importlib import util

import jax
import jax.numpy as jnp
import pytest
from small import ONE_STAGE, small_config

from benchmarks import (
    __main__,
    detection,
    families,
    inputs,
    listing,
    measure,
    peers,
    precision,
    programs,
    sparse,
    step,
    whole_run,
)
from greenjax import benchmark
from greenjax.backbones import geometry
from greenjax.data.sources import image_files, kept_listing
from greenjax.errors import InputError
from greenjax.planning.plan import GroupLayout

LAYERS = (
    sparse.Layer("depth-wise", 2, 3, 1, (8, 8), 8),
    sparse.Layer("dense", 2, 3, 1, (8, 8)),
    sparse.Layer("block", 2, 2, 2, (8, 16)),
    sparse.Layer("overlapping", 2, 3, 2, (8, 16)),
)
RGB = dict(model__in_channels=3, data__mean=(0.3,) * 3, data__std=(0.4,) * 3)
WHOLE_RUN = {"first_step_seconds": {"cold": 9.0, "cached": 4.0}, "images_per_second": 2.0, "waited": 0.01}
WHOLE_RUN |= {"input_images_per_second": 99.0}


@pytest.mark.spconv
def test_the_sparse_suite_compares_all_backends(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sparse, "LAYERS", LAYERS)
    __main__.main(["", "sparse", "--batch=1", "--repeats=2", f"--json={tmp_path / 'figures.json'}"])
    report = json.loads((tmp_path / "figures.json").read_text())
    assert report["suite"] == "sparse" and report["batch"] == 1 and not report["left_out"]
    rows = {(row["layer"], row["backend"]): row for row in report["rows"]}
    everyone = set(sparse.BACKENDS)
    assert {name: {b for n, b in rows if n == name} for name, _ in rows} == {
        "depth-wise": {"native", "masked"},  # spconv has no groups
        **dict.fromkeys(("dense", "block", "overlapping"), everyone),
    }
    assert all(row["difference"] < 1e-5 and row["forward_ms"] > 0 and row["both_ms"] > 0 for row in rows.values())
    # Tokens (48), taps, channels in and out, one multiplication and one addition each; a loop is counted whole.
    assert 48 * 9 * 8 * 8 * 2 <= rows["dense", "native"]["forward_flops"] < 1.2 * 48 * 9 * 8 * 8 * 2
    assert rows["dense", "spconv pure"]["forward_flops"] is None
    assert "overlapping" in capsys.readouterr().out


def test_a_wrong_suite_ends_in_one_line():
    command = [sys.executable, "-m", "benchmarks", "dense"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("benchmarks: argument SUITE: invalid choice: 'dense'") and "sparse" in line


@pytest.mark.parametrize(
    ("flags", "name"),
    [([], "step"), (["--suite", "sparse"], "sparse"), (["--suite=study"], "study"), (["sparse"], "sparse")],
)
def test_the_command_of_the_package_forwards_its_flags_and_keeps_its_name(monkeypatch, flags, name):
    """`python -m greenjax.benchmark [--suite NAME] FLAGS`; only what trains may find compiled programs."""
    told, anew = [], []
    monkeypatch.setattr(__main__, "compile_anew", lambda: anew.append(name))  # the process of the tests goes on
    monkeypatch.setattr(__main__, "measure", lambda *values: told.append(values))
    benchmark.main(["", *flags, "--batch=3", "--config", "a.py"])
    ((found, suite, parser, rest),) = told
    assert (found, parser.name, rest) == (name, "greenjax.benchmark", ["--batch=3", "--config", "a.py"])
    assert suite.FLAGS.keys() <= parser._option_string_actions.keys() and callable(suite.run)
    assert bool(anew) == (name not in __main__.TRAINING)
    monkeypatch.setattr(util, "find_spec", lambda _: None)
    with pytest.raises(SystemExit, match=r"greenjax.benchmark: expected a checkout .* benchmarks/"):
        benchmark.main([])


def test_the_input_suite_compares_all_ways(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(inputs, "PHOTOGRAPHS", {"90 x 120": ((90, 120), 2), "900 x 1200": ((900, 1200), 1)})
    monkeypatch.setattr(inputs, "BATCH", 4)
    monkeypatch.setattr(inputs, "WORKERS", (0,))
    monkeypatch.setattr(inputs, "LOADED", 2)
    __main__.main(["", "input", "--batch=2", "--repeats=2", f"--json={tmp_path / 'figures.json'}"])
    report = json.loads((tmp_path / "figures.json").read_text())
    rows = {(row["photographs"], row["way"]): row for row in report["rows"]}
    from_jpeg = {"decode", "Pillow", "greenjax, JPEG files"}
    records = {f"greenjax, {encoding} records, {side}" for encoding, side in inputs.PREPARED}
    assert {name for size, name in rows if size == "90 x 120"} == from_jpeg | records
    assert {name for size, name in rows if size == "900 x 1200"} == from_jpeg
    assert rows["90 x 120", "greenjax, raw records, 256"]["bytes_per_image"] > 90 * 120 * 3
    assert all(row["images_per_second"] > 0 for row in [*report["rows"], *report["loader"]])
    assert {(row["source"], row["workers"]) for row in report["loader"]} == {("JPEG files", 0), ("raw records", 0)}
    printed = capsys.readouterr().out
    assert "greenjax, raw records" in printed and f"runs of 2 images, {inputs.LARGE_BATCH} of large ones" in printed


def test_the_listing_suite_starts_from_what_is_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(listing, "SETTLED", -1)
    monkeypatch.setattr(kept_listing, "SETTLED", -1)
    monkeypatch.setattr(image_files, "WORTH_KEEPING", 0)
    __main__.main(["", "listing", "--images=30", "--folders=3", f"--json={tmp_path / 'figures.json'}"])
    nothing, *rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert nothing["worker"] > 1 << 20 and [row["way"] for row in rows] == ["images", "images and labels"]
    assert all(row["first"] > 0 and row["later"] > 0 and row["worker"] > 1 << 20 for row in rows)


def test_the_step_suite_compares_with_the_dense_step_and_pytorch(monkeypatch, capsys):
    monkeypatch.setattr(step, "PARTS", ("update",))
    monkeypatch.setattr(measure, "SIDES", {"cpu": 64})
    monkeypatch.setattr(measure, "COPIED", {"cpu": 2**20})
    monkeypatch.setattr(step, "peak_flops", lambda kind, dtype: 1e9)
    monkeypatch.setattr(whole_run, "whole_run", lambda config, batch: WHOLE_RUN)
    report = step.run(small_config(model__depths=(1, 1)), batch=6, repeats=1)  # eight devices share no 6
    rows = {row["method"]: row for row in report["rows"]}
    assert set(rows) == {"green", "dense", "transformers"} and not report["left_out"]
    assert all(row["seconds"] > 0 for row in rows.values())
    assert 0 < rows["green"]["flops"] < rows["dense"]["flops"]
    for row in (rows["green"], rows["dense"]):
        assert row["limit_share"] * row["seconds"] == pytest.approx(row["flops"] / report["matmul_flops_per_second"])
        bytes_limit = row["bytes_accessed"] / report["copy_bytes_per_second"]
        assert row["bytes_limit_share"] * row["seconds"] == pytest.approx(bytes_limit)
    assert 0 < report["memory_slope_bytes"]["green"] < report["memory_slope_bytes"]["dense"]
    for name, row in rows.items():
        needed = rows["green" if name == "green" else "dense"]["unpadded_flops"]
        assert row["images_per_second"] * row["seconds"] == pytest.approx(6)
        assert row["mfu"] * row["seconds"] * 1e9 == pytest.approx(needed)
    assert report["memory_slope_ratio"] < 1 and report["peak_memory_bytes"] is None  # a CPU
    printed = capsys.readouterr().out
    assert "transformers / green, update" in printed and "first step after 9.0 s, 4.0 s with" in printed


def test_the_precision_suite_compares_types_methods_and_windows(monkeypatch, capsys):
    """Of programs that take no time; the step suite's test compiles and runs real ones."""
    there = peers.Peers({peers.PEER: lambda: {"update": lambda: jnp.zeros(())}}, {}, {}, lambda: None)
    monkeypatch.setattr(measure, "SIDES", {"cpu": 64})
    monkeypatch.setattr(precision, "find_peers", lambda config, batch, compiled: there)
    monkeypatch.setattr(precision, "memory_slope", lambda config, program: float(config.model.window))
    monkeypatch.setattr(precision, "compile_part", lambda config, part: programs.Program(None, 9, 9, 9.0, 9, 9, 9.0))
    monkeypatch.setattr(precision, "runner", lambda config, program, held: lambda: jnp.zeros(()))
    report = precision.run(small_config(), batch=6, repeats=1, windows=(2,))
    rows = {(row["method"], row["dtype"], row["window"]): row for row in report["rows"]}
    ours = {(method, dtype, window) for method in ("green", "dense") for dtype in precision.DTYPES for window in (4, 2)}
    assert set(rows) == ours | {("transformers", dtype, 4) for dtype in precision.DTYPES}
    for (method, dtype, window), row in rows.items():
        slower = report["ratios"].get(f"{method} / green, {dtype}, window {window}", 1)
        assert row["seconds"] == pytest.approx(slower * rows["green", dtype, window]["seconds"])
        if method != "transformers":
            assert row["limit_share"] * row["seconds"] * report["limits"][dtype]["flops_per_second"] == pytest.approx(9)
    assert [limit["product"].split()[0] for limit in report["limits"].values()] == list(precision.DTYPES)
    assert report["ratios"]["window 2 / 4, bfloat16, memory for each image"] == 0.5
    assert "transformers / green, bfloat16, window 4" in capsys.readouterr().out


def test_on_a_gpu_a_program_that_does_not_fit_is_a_row_without_a_time(monkeypatch):
    """Each method is made when the one before it is gone; what fails for another reason still fails."""
    monkeypatch.setattr(measure, "SIDES", {"cpu": 64})
    monkeypatch.setattr(measure, "COPIED", {"cpu": 2**20})
    order = []

    def fitting():
        order.append("made")
        return dict.fromkeys(step.PARTS, lambda: jnp.zeros(()))

    def too_large():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.")

    there = peers.Peers({"peer": lambda: fitting() | {"update": too_large}}, {}, {}, lambda: order.append("freed"))
    limit, seconds, rates = step.timed({"green": fitting}, there, "float32", 1, together=False)
    assert order == ["made", "freed", "made", "freed"] and min(rates) > 0 and limit == "float32 to float32"
    assert [key for key, time in seconds.items() if time is None] == [("peer", "update")]
    assert list(seconds) == [(name, part) for name in ("green", "peer") for part in step.PARTS]
    with pytest.raises(RuntimeError, match="a defect"):
        measure.medians_one_by_one({"x": (lambda: exec("raise RuntimeError('a defect')"), ())}, 1)


@pytest.mark.parametrize(("family", "part"), [("swin", "forward"), ("twins", "backward")])
def test_unpadded_flops_do_not_depend_on_the_layouts(monkeypatch, family, part):
    """More slots and more rows than needed add nothing (but products of the gradient of Swin's position bias)."""

    def counted():
        config = programs.sized(small_config(family), 8)
        return programs.compile_part(config, part)

    tight, known = counted(), geometry.cached_layouts

    def wider(*of):
        return tuple(tuple(GroupLayout(s + 8, g + 1) for s, g in stage) for stage in known(*of))

    monkeypatch.setattr(geometry, "cached_layouts", wider)
    wide = counted()
    assert wide.flops > tight.flops > tight.unpadded_flops == wide.unpadded_flops > 0


def test_a_copy_writes_over_one_array_what_another_holds():
    """Two arrays change places: no page is mapped anew, and what a copy reads is what the last one wrote."""
    (run, args), moved = measure.copy(size=2**16)
    copies = (run(*args) for _ in range(4))  # each is gone when the next but one is made
    addresses, values = zip(*((copied.unsafe_buffer_pointer(), float(copied[0])) for copied in copies))
    assert moved == 2 * 2**16 and values == (-1, 1, -1, 1)
    assert addresses[:2] == addresses[2:] and addresses[0] != addresses[1]


def test_the_peer_is_left_out_where_it_cannot_run():
    assert peers.why_no_peer(small_config("twins")) == "it has no twins_s"
    assert peers.why_no_peer(small_config("swinv2")) == "it has no swinv2_t"
    assert "window 10" in peers.why_no_peer(small_config(model__window=10))
    assert peers.why_no_peer(small_config()) is None


@pytest.mark.parametrize("data", ["folder", "records"])
def test_a_whole_run_tells_what_a_user_waits_for(monkeypatch, tmp_path, capsys, data):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(whole_run.tempfile, "tempdir", None)
    monkeypatch.setattr(whole_run, "PHOTOGRAPHS", {"500 x 375": ((75, 100), 2)})
    found = whole_run.run(small_config(**ONE_STAGE), batch=8, data=data)
    assert f"{found['images_per_second']:.1f} images/s" in capsys.readouterr().out
    assert min(found["first_step_seconds"].values()) > 0 and found["first_step_seconds"].keys() == {"cold", "cached"}
    assert found["images_per_second"] > 0 and found["input_images_per_second"] > 0 and 0 <= found["waited"] < 1
    assert not list(tmp_path.iterdir())


def test_a_whole_run_that_fails_says_why_in_one_line(tmp_path):
    file = whole_run.write_config(
        tmp_path / "config.py", whole_run.on_data(small_config(), 8, "folder", tmp_path / "missing")
    )
    with pytest.raises(InputError, match=r"code 1: greenjax: data.path is '.*missing'") as error:
        whole_run.measured_run(file, tmp_path / "run", tmp_path / "cache", 1)
    assert "\n" not in str(error.value)


def test_the_table_of_families_has_the_published_sizes():
    config = small_config(image_size=64, **RGB)
    (row,) = families.run(config, 8, ["convnextv2_atto"])["rows"]
    assert (row["parameters"], row["image_size"]) == (3_708_400, 64)
    assert row["ratio"] == pytest.approx(0.25, abs=0.05)  # one unit of four is visible
    assert families.named(config, "swinv2_b").image_size == (256, 256)
    with pytest.raises(InputError, match=r"model\.name is 'swin_x'"):
        families.run(config, 8, ["swin_x"])
    with pytest.raises(InputError, match=r"--memory is 'swin_b': expected some of --names, 'swin_t'"):
        families.run(config, 8, ["swin_t"], ["swin_b"])


def test_torchvision_is_left_out_where_it_would_compute_otherwise(monkeypatch):
    monkeypatch.setattr(detection, "find_spec", lambda name: name)  # torchvision is here
    config = small_config(**RGB)
    alone = "it runs here on a CPU in float32 alone"
    assert detection.why_not(config) == ""
    assert detection.why_not(small_config(model__dtype="bfloat16", **RGB)) == alone
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert detection.why_not(config) == alone


def test_noise_has_the_type_of_the_images():
    """Programs take no other type than the one that they were compiled for."""
    for dtype in ("uint8", "uint16", "float32"):
        config = small_config(data__dtype=dtype, data__scale=10.0)
        assert programs.random_batch(config).images.dtype == dtype
