"""What a run says before its first step and after its last."""

import json
import shlex
from pathlib import Path

import pytest
from small import small_config, small_run

from greenjax import convert, load_config
from greenjax.config import flags
from greenjax.data.sources import SOURCES
from greenjax.tasks.summary import end_lines, next_lines, start_lines


def said(config, workdir, total=400, **changes):
    lines = start_lines(small_run(config, workdir, total, 20, **changes))
    return {line[:12].strip(): line[14:] for line in lines}


def test_the_first_lines_say_what_is_going_to_happen(tmp_path):
    config = small_config(steps=400, data__batch_size=64, data__eval_split="test", optim__base_lr=1e-3, mesh__data=1)
    lines = said(config, tmp_path)
    assert len(lines) <= 10
    assert lines["model"].startswith("swin_t, ") and lines["model"].endswith(" parameters, float32")
    assert lines["weights"] == "drawn by seed 0"
    assert lines["images"] == "1,500 of train; 297 of test (digits), 32x32 pixels"
    assert lines["masks"] == "8 an update, each for 8 images; 16 of 64 units visible"
    assert lines["updates"] == "400 of 64 images each: 17.1 epochs; warm-up 20 (5%)"
    assert lines["rate"] == "up to 0.00025 (optim.base_lr 0.001 x 64/256)"
    assert lines["devices"].startswith("1 x cpu, ")
    assert lines["results"] == f"{tmp_path}, checkpoints there every 1,000 updates"
    assert said(small_config(log__checkpoint_every=0), tmp_path)["results"].endswith(", a checkpoint there at the end")
    assert lines["exports to"].startswith("swin")


@pytest.mark.parametrize(
    ("place", "where"),
    [
        ({}, "digits"),
        ({"data__source": "tfds"}, "imagenet2012"),
        ({"data__source": "folder", "data__path": ("/a", "/b")}, "/a, /b"),
    ],
)
def test_the_data_set_goes_by_what_its_source_reads(tmp_path, place, where):
    config = small_config(data__name="imagenet2012", mesh__data=1, **place)
    assert f" ({where}), " in said(config, tmp_path)["images"]


def test_a_classifier_tells_its_classes_and_no_masks(tmp_path):
    config = small_config(task="finetune", model__num_classes=10, init="runs/before")
    lines = said(config, tmp_path, classes=tuple(map(str, range(10))))
    assert lines["classes"] == "10" and "masks" not in lines and lines["weights"] == "of runs/before"


def test_a_finished_run_has_nothing_to_announce(tmp_path):
    assert said(small_config(), tmp_path, total=0) == {}


def test_the_last_lines_name_what_is_there(tmp_path):
    for name in ("loss.png", "metrics.jsonl", "reconstructions/00000000.png", "reconstructions/00000400.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert end_lines(tmp_path, "done") == [
        f"done; in {tmp_path}:",
        "  pictures    loss.png, reconstructions/00000400.png",
        "  metrics     metrics.jsonl",
    ]


CONFIGS_OF = Path("configs").resolve()
CONFIGS = [path for path in sorted(Path("configs").glob("*.py")) if not path.stem.startswith(("eval", "knn"))]


@pytest.mark.parametrize("file", CONFIGS, ids=lambda path: path.stem)
def test_the_next_commands_can_be_typed(file):
    where = "/data/my images" if "data.path" in SOURCES[load_config(file).data.source].place else ""
    config, workdir = load_config(file, {"data.path": where}), Path("runs/my run")
    lines = next_lines(config, workdir, str(file))[1:]
    commands = {line[:12].strip(): shlex.split(line[14:]) for line in lines}
    if words := commands.get("export"):
        assert words[:3] == ["python", "-m", "greenjax.convert"]
        assert convert.make_parser().parse_args(words[3:]).workdir == "runs/my run"
    assert words or file.stem in ("detect_digits", "detect_twins_l")  # torchvision has no such detectors
    if words := commands.get("fine-tune"):
        path, overrides, rest = flags.split(words[3:])
        found = load_config(path, overrides)
        assert found.task == "finetune" and found.model.name == config.model.name
        assert (found.init, rest) == ("runs/my run", ["--workdir", "runs/my run_finetuned"])
        assert (found.data.source, found.data.path) == (config.data.source, where)
        assert found.data.batch_size == min(config.data.batch_size, load_config(path).data.batch_size)
    assert (file.with_name(f"finetune_{file.name}").exists()) <= ("fine-tune" in commands)


def test_a_run_says_how_it_reads_pixels_and_the_next_command_reads_them_so(tmp_path):
    """Also where the recipe reads others, or augments as these cannot be: the printed line itself is tried."""
    reading = {"data.dtype": "uint16", "data.no_data": "0", "data.scale": 10000.0, "data.channels": (2, 1, 0)}
    config = load_config("swin_t", {"data.source": "python", "mesh.data": 1} | reading)
    told = ", data.dtype=uint16, data.channels=2,1,0, data.no_data=0, data.scale=10000.0"
    assert said(config, tmp_path)["images"].endswith(f" pixels{told}")
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    (tmp_path / "mine.py").write_text("")
    recipe = "from greenjax import load_config\n\n\ndef get_config():\n    config = load_config('finetune_swin_t')\n"
    for own in ("", "    config.data.channels = (0, 1, 2)\n"):
        (tmp_path / "finetune_mine.py").write_text(
            f"{recipe}    config = config.copy_and_resolve_references().unlock()\n{own}    return config\n"
        )
        _, tune, _ = next_lines(config, tmp_path, str(tmp_path / "mine.py"))
        path, overrides, _ = flags.split(shlex.split(tune[14:])[3:])
        found = load_config(path, overrides)
        assert {f"data.{key}": found.data[key] for key in ("dtype", "no_data", "scale", "channels")} == reading
        assert (found.data.mixup, found.data.randaugment, found.data.cutmix) == (0, 0, 1)


@pytest.mark.parametrize(
    ("workdir", "name"), [(".", "here"), ("..", "above"), ("deeper/..", "here"), ("/", "run"), ("runs/a.pt", "a.pt")]
)
def test_commands_after_a_run_in_any_folder_write_beside_it(workdir, name, tmp_path, monkeypatch):
    (tmp_path / "above" / "here" / "deeper").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "above" / "here")
    file = CONFIGS_OF / "digits.py"
    _, *lines = next_lines(load_config(file), Path(workdir), str(file))
    tune, export = (shlex.split(line[14:]) for line in lines)
    output = Path(convert.make_parser().parse_args(export[3:]).output)
    assert output.name == f"{name}.safetensors" and output.resolve().parent == Path(workdir).resolve().parent
    assert Path(flags.split(tune[3:]).rest[1]) == output.with_name(f"{name}_finetuned")


def test_a_model_without_a_recipe_or_a_layout_gets_no_command(tmp_path):
    config = small_config(task="eval", init="runs/before", model__num_classes=10, data__eval_split="test")
    assert next_lines(config, tmp_path, str(tmp_path / "mine.py")) == []
