"""The command line as a user types it: streams, exit codes, messages."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from embedx import sample
from embedx.cli.app import run
from embedx.store.format.manifest import Manifest
from tests import runs
from tests.cli.calls import Embedx
from tests.cli.test_untrusted_text import on_terminal

SAMPLE = ("--backbone", sample.BACKBONE, "--weights", "sample", "-j", "0")


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images of each class, in one split."""
    root = tmp_path_factory.mktemp("few")
    for folder in sorted((sample.IMAGES / "val").iterdir()):
        (root / folder.name).mkdir()
        for image in sorted(folder.iterdir())[:2]:
            (root / folder.name / image.name).write_bytes(image.read_bytes())
    return root


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, few: Path) -> Path:
    out = tmp_path_factory.mktemp("stores") / "store"
    done = runs.run("extract", *SAMPLE, "--data", few, "--out", out, "--group-key", "class")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}/manifest.json\n"
    assert "16 rows, 0 rejected" in done.stderr
    assert "\x1b" not in done.stderr and "16 of 16 inputs" in done.stderr  # no bar where there is no terminal
    return out


def test_help_lists_the_commands_and_every_flag(embedx: Embedx) -> None:
    top = embedx("--help")
    assert top.code == 0 and all(
        name in top.stdout for name in ("extract", "info", "verify", "probe", "backbones", "layers")
    )
    text = embedx("extract", "--help").stdout
    flags = (
        "--backbone --weights --checkpoint --data --out --group-key --batch-size -b --workers -j --device --runtime "
        "--precision --dtype --layer --pool --image-size --shard-size --overwrite --on-error --max-errors --seed "
        "--dry-run --json --quiet --debug --config --no-exif --normalize --resize --crop --mean --std --interpolation "
        "--max-pixels --timeout"
    )
    for flag in flags.split():
        assert flag in text, flag


def test_without_data_the_sample_is_used_with_a_notice(embedx: Embedx, tmp_path: Path) -> None:
    done = embedx("extract", *SAMPLE, "--out", tmp_path / "store", "--json")
    assert done.code == 0
    summary = json.loads(done.stdout)
    assert set(summary["splits"]) == {"train", "val"} and summary["rejected"] == 0 and done.stdout.count("\n") == 1
    assert "using the bundled sample" in done.stderr


def test_quiet_leaves_stderr_empty_and_a_rerun_says_up_to_date(embedx: Embedx, store: Path, few: Path) -> None:
    arguments = ("extract", *SAMPLE, "--data", few, "--out", store, "--group-key", "class")
    again = embedx(*arguments)
    assert (again.code, again.stdout) == (0, f"{store}/manifest.json\n") and "up to date: 16 rows" in again.stderr
    assert embedx(*arguments, "--quiet").stderr == ""


def test_dry_run_prints_the_plan_and_writes_nothing(embedx: Embedx, tmp_path: Path, few: Path) -> None:
    arguments = ("extract", *SAMPLE, "--data", f"mine={few}", "--out", tmp_path / "store", "--group-key", "class")
    plan = json.loads(embedx(*arguments, "--dry-run", "--json", "-b", "4", "--shard-size", "16KiB").stdout)
    assert plan["splits"]["mine"]["inputs"] == 16 and {"group": "star", "inputs": 2} in plan["splits"]["mine"]["groups"]
    assert plan["rows_per_unit"] == 4 and plan["splits"]["mine"]["units"] == 4
    assert plan["splits"]["mine"]["input_bytes"] == sum(path.stat().st_size for path in few.rglob("*.*"))
    assert plan["splits"]["mine"]["output_bytes"] == 16 * (1024 * 4 + 8)
    assert plan["preprocessing"]["resize"] == 256 and plan["device"] in ("cpu", "cuda")
    assert plan["weights"]["name"] == "sample"
    text = embedx(*arguments, "--dry-run").stdout
    assert all(word in text for word in ("mine", "star", "rows_per_unit", "sample", "bilinear"))
    assert not (tmp_path / "store").exists()


def test_on_a_terminal_the_notice_of_the_preparation_is_gone_before_the_plan(
    tmp_path: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("extract", *SAMPLE, "--data", few, "--out", tmp_path / "store", "--dry-run")
    monkeypatch.setattr(sys, "argv", ["embedx", *map(str, arguments)])
    monkeypatch.setenv("TERM", "xterm-256color")
    with on_terminal() as end:
        assert run() == 0
        notice, _, plan = end().partition("backbone  ")
    hides_the_cursor, shows_it = "\x1b[?25l", "\x1b[?25h"
    assert notice.startswith(hides_the_cursor) and notice.count(shows_it) == 1
    assert "rows_per_unit" in plan and shows_it not in plan


def test_a_config_file_gives_the_settings_and_flags_win(embedx: Embedx, tmp_path: Path, few: Path) -> None:
    config = tmp_path / "embedx.toml"
    config.write_text(
        f'backbone = "{sample.BACKBONE}"\nweights = "sample"\nbatch-size = 8\nworkers = 0\nexif = false\n'
        f'data = ["{few}"]\nout = "{tmp_path}/store"\nshard-size = "1MiB"\nlayer = ["stage2"]\n'
        'resize = [240, 320]\nmean = "0.5,0.5,0.5"\nstd = [0.5, 0.5, 0.25]\n'
    )
    plan = json.loads(embedx("extract", "--config", config, "--batch-size", "4", "--dry-run", "--json").stdout)
    assert plan["batch_size"] == 4 and plan["preprocessing"]["exif"] is False
    assert plan["preprocessing"]["resize"] == [240, 320] and plan["preprocessing"]["std"] == [0.5, 0.5, 0.25]
    assert list(plan["tensors"]) == ["embeddings", "stage2"] and plan["rows_per_unit"] < 256
    config.write_text(
        f'backbone = "{sample.BACKBONE}"\nweights = "sample"\nworkers = 0\ndata = "{few}"\nout = "{tmp_path}/store"\n'
        "dry-run = true\njson = true\nquiet = true\ndebug = true\n"
    )
    dry = embedx("extract", "--config", config)
    assert list(json.loads(dry.stdout)["splits"]) == ["all"] and dry.stderr == ""
    failed = embedx("extract", "--config", config, "-b", "0")
    assert failed.code == 2 and "Traceback" in failed.stderr
    assert not (tmp_path / "store").exists()
    config.write_text('backbon = "resnet50"\n')
    wrong = embedx("extract", "--config", config)
    assert wrong.code == 2 and "names that begin so: backbone, backbone-arg" in wrong.stderr
    config.write_text('backbone = "resnet18"\nbatch-size = "many"\nworkers = 1.5\nexif = "maybe"\n')
    wrong = embedx("extract", "--config", config)
    assert wrong.code == 2
    assert f"--config {config}: batch-size: 'many' is not a number of images" in wrong.stderr
    assert f"--config {config}: workers: " in wrong.stderr and f"--config {config}: exif: " in wrong.stderr
    config.write_text("backbone = \n")
    assert embedx("extract", "--config", config).code == 2


def test_info_shows_a_store(embedx: Embedx, store: Path) -> None:
    text = embedx("info", store).stdout
    assert all(word in text for word in (sample.BACKBONE, "sample", "star", "16", "yes"))
    described = json.loads(embedx("info", store, "--json").stdout)
    assert described["complete"] and described["splits"]["all"]["rows"] == 16
    assert {"group": "star", "rows": 2} in described["splits"]["all"]["groups"]
    assert embedx("info", store, "--rejected").stdout == ""


def test_names_are_shown_as_they_are(embedx: Embedx, tmp_path: Path, few: Path) -> None:
    """Neither markup nor emoji codes nor line ends of a name do anything; an image in the root has no group."""
    images = tmp_path / "[bold]images"
    for name in ("[red]", ":smile:", "."):
        (images / name).mkdir(parents=True, exist_ok=True)
        (images / name / "1.png").write_bytes((few / "star").iterdir().__next__().read_bytes())
    (images / "two\nlines.png").write_bytes(b"")
    arguments = ("extract", *SAMPLE, "--data", images, "--out", tmp_path / "[store]", "--group-key", "class")
    plan = embedx(*arguments, "--dry-run").stdout
    assert all(name in plan for name in ("[red]", ":smile:", "no group"))
    done = embedx(*arguments)
    assert (done.code, done.stdout) == (3, f"{tmp_path}/[store]/manifest.json\n")
    text = "".join(embedx("info", tmp_path / "[store]").stdout.split())  # as a long path goes on in the next line
    assert all(name in text for name in ("[store]", "[red]", ":smile:", "nogroup"))
    rejected = embedx("info", tmp_path / "[store]", "--rejected").stdout.splitlines()
    assert len(rejected) == 1 and "two\\nlines.png" in rejected[0]
    assert "[store] is whole" in embedx("verify", tmp_path / "[store]").stderr


def test_all_faults_of_a_call_are_told_at_once(embedx: Embedx, tmp_path: Path) -> None:
    faulty = embedx("extract", "--backbone", "resnet51", "-b", "0", "--data", tmp_path / "no", "--out", tmp_path / "s")
    assert faulty.code == 2 and not (tmp_path / "s").exists()
    for part in ("--batch-size is 0", "there is no folder", "did you mean resnet50?"):
        assert part in faulty.stderr


def test_verify_is_silent_on_stdout_or_names_what_is_wrong(embedx: Embedx, store: Path, tmp_path: Path) -> None:
    import shutil

    good = embedx("verify", store)
    assert (good.code, good.stdout) == (0, "") and "is whole" in good.stderr
    damaged = tmp_path / "damaged"
    shutil.copytree(store, damaged)
    shard = damaged / "all/star/shard-00000.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    bad = embedx("verify", damaged)
    assert bad.code == 1 and bad.stdout.startswith("all/star/shard-00000.safetensors: the sha256")
    assert json.loads(embedx("verify", damaged, "--json").stdout)["ok"] is False
    shutil.copytree(store, tmp_path / "begun")
    dataclasses.replace(Manifest.read(store), complete=False).write(tmp_path / "begun")
    begun = embedx("verify", tmp_path / "begun")
    assert begun.code == 1 and "has no damage" in begun.stderr and "remove" not in begun.stderr
    nowhere = embedx("info", tmp_path / "nowhere")
    assert nowhere.code == 2 and "is not a store" in nowhere.stderr


def test_backbones_lists_all_of_torchvision_s(embedx: Embedx) -> None:
    names = [line.split("\t")[0] for line in embedx("backbones").stdout.splitlines()]
    of_each_kind = {"resnet50", "vit_b_16", "fcn_resnet50", "ssd300_vgg16", "quantized_resnet50"}
    assert len(names) >= 110 and of_each_kind <= set(names)
    weights = {entry["name"]: entry["weights"] for entry in json.loads(embedx("backbones", "--json").stdout)}
    assert weights["resnet50"] == ["IMAGENET1K_V1", "IMAGENET1K_V2"]


def test_layers_lists_names_and_shapes(embedx: Embedx) -> None:
    lines = [line.split("\t") for line in embedx("layers", "resnet18", "--image-size", "64").stdout.splitlines()]
    assert ["layer4", "512x2x2"] in lines and all(len(line) == 2 for line in lines)
    listed = json.loads(embedx("layers", "resnet18", "--json").stdout)
    assert {"name": "layer4", "shape": [512, 7, 7]} in listed
    made = embedx("layers", "torchvision.models:resnet18", "--image-size", "64", "--backbone-arg", "num_classes=3")
    assert "fc\t3" in made.stdout.splitlines()
    unknown = embedx("layers", "resnet1")
    assert unknown.code == 2 and "unknown backbone 'resnet1'" in unknown.stderr
    useless = embedx("layers", "resnet18", "--backbone-arg", "num_classes=3")
    assert useless.code == 2 and "--backbone-arg is for backbones given as" in useless.stderr
    unsized = embedx("layers", "torchvision.models:resnet18")
    assert unsized.code == 2 and "give --image-size" in unsized.stderr


def test_rejected_inputs_give_exit_code_3_unless_allowed(embedx: Embedx, tmp_path: Path, few: Path) -> None:
    import shutil

    shutil.copytree(few, tmp_path / "images")
    (tmp_path / "images" / "star" / "broken.png").write_bytes(b"\x89PNG\r\n")
    arguments = ("extract", *SAMPLE, "--data", tmp_path / "images", "--out", tmp_path / "store")
    done = embedx(*arguments)
    assert done.code == 3 and done.stdout.endswith("manifest.json\n")
    assert "1 input rejected" in done.stderr and "--rejected" in done.stderr
    assert embedx(*arguments, "--max-errors", "1").code == 0
    listed = embedx("info", tmp_path / "store", "--rejected").stdout
    assert listed.startswith("all\t") and "broken.png" in listed
    stopped = embedx(*arguments[:-1], tmp_path / "strict", "--on-error", "fail")
    assert stopped.code == 1 and "star/broken.png: " in stopped.stderr and stopped.stdout == ""


PLACES = ["--data", "{few}", "--out", "{tmp}/store"]
GOOD = [*SAMPLE, *PLACES]
BAD_USAGE = {
    "unknown backbone": (["--backbone", "resnet5", "--weights", "random", *PLACES], "did you mean resnet50?"),
    "missing folder": ([*GOOD, "--data", "x={few}s"], "did you mean {few}?"),
    "empty folder": ([*GOOD, "--data", "x={tmp}/empty"], "no images in"),
    "one source twice": ([*GOOD, "--data", "{few}"], "as in NAME={few}"),
    "split named index": ([*GOOD, "--data", "index={few}"], "can't be named 'index'"),
    "output is a file": ([*GOOD, "--out", "{tmp}/file"], "is not a folder"),
    "output below a file": ([*GOOD, "--out", "{tmp}/file/x"], "is not a folder"),
    "output where nothing can be made": ([*GOOD, "--out", "/proc/embedx"], "/proc/embedx"),
    "output is not a store": ([*GOOD, "--out", "{tmp}/mine"], "not a store"),
    "overwriting what is not a store": ([*GOOD, "--out", "{tmp}/mine", "--overwrite"], "not a store"),
    "unknown group key": ([*GOOD, "--group-key", "clas"], "did you mean class?"),
    "batch size 0": ([*GOOD, "-b", "0"], "--batch-size is 0"),
    "batch size in words": ([*GOOD, "-b", "many"], "'many' is not a number"),
    "unknown weights": ([*GOOD, "--weights", "IMAGENET1K_V2"], "did you mean IMAGENET1K_V1?"),
    "unknown dtype": ([*GOOD, "--dtype", "float8"], "float16"),
    "unknown flag": ([*GOOD, "--bach-size", "3"], "--batch-size"),
    "no such device": ([*GOOD, "--device", "cuda:9"], "torch sees"),
    "tf32 on a CPU": ([*GOOD, "--device", "cpu", "--precision", "tf32"], "is for CUDA devices"),
    "no such checkpoint": (["--backbone", "resnet50", "--checkpoint", "no.pth", *PLACES], "no such file"),
    "unknown layer": ([*GOOD, "--layer", "stage9"], "did you mean stage"),
    "bad shard size": ([*GOOD, "--shard-size", "huge"], "is not a size"),
    "two numbers for three": ([*GOOD, "--mean", "0.5,0.5"], "is not three numbers"),
    "cls of a map": ([*GOOD, "--layer", "stage2", "--pool", "cls"], "needs tokens"),
    "output of bytes that are no text": ([*GOOD, "--out", "{tmp}/caf\udce9"], "has bytes that are no text"),
    "overwriting what others call manifest.json": ([*GOOD, "--out", "{tmp}/web", "--overwrite"], "not a store"),
    "output without a name": ([*GOOD, "--out", ""], "no path is empty"),
    "a path with a NUL byte": ([*GOOD, "--config", "a\0b"], "no path is empty, or has a NUL byte"),
    "a shard of more bytes than there are": ([*GOOD, "--shard-size", "9" * 40], "is not a size"),
    "a link that leads nowhere": ([*GOOD, "--data", "x={tmp}/dangling"], "is a link that leads to no folder"),
    "no backbone": (["--out", "{tmp}/store"], "--backbone"),
}
"""Arguments and a part of the message; `{tmp}` and `{few}` are filled in."""


@pytest.mark.parametrize("case", BAD_USAGE)
def test_bad_usage_is_one_clear_message_and_writes_nothing(
    embedx: Embedx, tmp_path: Path, few: Path, case: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").touch()
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "manifest.json").write_text('{"name": "app"}')
    arguments, message = BAD_USAGE[case]
    arguments = [argument.format(tmp=tmp_path, few=few) for argument in arguments]
    message = message.format(few=few)
    before = sorted(tmp_path.rglob("*"))
    done = embedx("extract", *arguments)
    assert (done.code, done.stdout) == (2, ""), done.stderr
    assert message in done.stderr.replace("\n", " "), done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("error:") <= 1
    assert sorted(tmp_path.rglob("*")) == before


def test_debug_shows_the_traceback(embedx: Embedx, tmp_path: Path, few: Path) -> None:
    done = embedx(
        "extract", *SAMPLE, "--data", few, "--out", tmp_path / "s", "--on-error", "fail", "-b", "0", "--debug"
    )
    assert done.code == 2 and "Traceback" in done.stderr and "ConfigError" in done.stderr


@pytest.mark.soak
def test_a_reader_of_stderr_that_goes_away_ends_the_talk_and_not_the_run(tmp_path: Path, few: Path) -> None:
    import os
    import subprocess

    read_end, write_end = os.pipe()
    os.close(read_end)
    arguments = [*runs.EMBEDX, "extract", *SAMPLE, "--data", str(few), "--out", "store"]
    done = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=write_end, text=True, timeout=60, cwd=tmp_path)
    os.close(write_end)
    assert (done.returncode, done.stdout) == (0, "store/manifest.json\n")


def test_a_reader_of_stdout_that_goes_away_is_no_fault() -> None:
    import subprocess

    command = f"{' '.join(runs.EMBEDX)} backbones | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert (
        done.stdout == "alexnet\tIMAGENET1K_V1\n" and "Traceback" not in done.stderr and "Exception" not in done.stderr
    )


LOUD = """
import os, sys, torch

class Loud(torch.nn.Module):
    preprocessing = dict(resize=(16, 16), crop=16, interpolation="bilinear", mean=(0.0,) * 3, std=(1.0,) * 3)

    def forward(self, images):
        print("forward")
        return images.flatten(1)

def build():
    print("python")
    os.write(1, b"descriptor\\n")
    os.system("echo child")
    return Loud()
"""


def test_stdout_holds_the_data_alone_whatever_foreign_code_prints(tmp_path: Path, few: Path) -> None:
    (tmp_path / "loud.py").write_text(LOUD)
    done = runs.run("extract", "--backbone", "loud:build", "--data", few, "--out", "store", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == 16
    assert {"python", "descriptor", "child", "forward"} <= set(done.stderr.splitlines())


def test_a_name_that_stdout_s_encoding_lacks_is_escaped(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "žlutý\udcff.png").write_bytes(b"no image")
    ascii_only = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = runs.run("extract", *SAMPLE, "--data", "photos", "--out", "store", cwd=tmp_path, env=ascii_only)
    assert done.returncode == 3, done.stderr
    done = runs.run("info", "store", "--rejected", cwd=tmp_path, env=ascii_only)
    assert done.returncode == 0 and "\\u017elut\\xfd" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("RESNET5", ["resnet50", "wide_resnet50_2"]),
        ("timm:convnext_tiny.dino*", ["timm:convnext_tiny.dinov3_lvd1689m"]),
        ("convnext_atto_rms", ["timm:convnext_atto_rms"]),
        ("openclip:RN50-*", ["openclip:RN50-quickgelu/openai", "openclip:RN50-quickgelu/cc12m"]),
    ],
)
def test_backbones_are_found_by_a_part_or_a_pattern(embedx: Embedx, pattern: str, names: list[str]) -> None:
    lines = embedx("backbones", pattern).stdout.splitlines()
    assert set(names) <= {line.split("\t")[0] for line in lines}
    assert ("timm:convnext_atto_rms\tno pretrained weights" in lines) == (pattern == "convnext_atto_rms")
    found = {each["name"]: each["weights"] for each in json.loads(embedx("backbones", pattern, "--json").stdout)}
    assert all(name.rpartition(".")[2] in found.get(name.rpartition(".")[0], [name]) or name in found for name in names)
    assert embedx("backbones", "no such model").code == 2


def test_the_tested_models_are_told_with_their_options(embedx: Embedx) -> None:
    assert "\t--backbone timm:vit_small_patch14_dinov2.lvd142m\n" in embedx("backbones", "--tested").stdout
    (uni,) = json.loads(embedx("backbones", "uni ", "--tested", "--json").stdout)
    assert uni["arguments"][:2] == ["--backbone", "timm.models:create_model"]
