"""The original tool's commands on image-text rows of one's own, and the script that does everything in one go."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.cli.running import CHECKOUT, Outcome, done
from tests.cli.test_pipeline import lines, read_json
from tests.data.multimodal.rows import conversation, write_image, write_jsonl
from tests.scripts.test_original_commands import loaded, run, script

TRAIN = (
    "python3 -u scripts/train_base.py --experiment multimodal --train_jsonl ./data/train_data_new.jsonl "
    "--image_root ./ --epochs 10 --batch_size 32 --save_path ./models/multimodal_base.pth"
)
SCORE = (
    "python3 -u scripts/run_if.py --experiment multimodal --ckpt_path ./models/multimodal_base.pth --test_id 3 "
    "--topk 3 --save_scores_npy ./outputs/multimodal/if_scores_test_3.npy "
    "--save_topk_ids_txt ./outputs/multimodal/topk_ids_test_3.txt"
)
REFIT = (
    "python3 -u scripts/run_loo.py --experiment multimodal --train_jsonl ./data/train_data_new.jsonl --image_root ./ "
    "--topk_ids_txt ./outputs/multimodal/topk_ids_test_3.txt --test_id 3 "
    "--save_jsonl ./outputs/multimodal/loo_losses_test_3.jsonl"
)
SHOW = "python3 -u scripts/vis.py --experiment multimodal --test_id 3 --topk 3"
N = 6
SMALL = " --embed_dim 8 --num_heads 2 --num_layers 1 --epochs 2 --batch_size 3"  # the last of two flags counts
THERE = "models/multimodal_base.pth"


def write_rows(folder: Path) -> None:
    """Six rows, each with a picture of its own, as the original tool's users have them."""
    draw = np.random.default_rng(0)
    (folder / "data").mkdir()
    for i in range(N):
        write_image(folder / f"data/images/{i}.png", draw.integers(0, 256, (28, 28)))
    rows = [conversation("<image>\nWhich?", str(i % 3), image=f"data/images/{i}.png") for i in range(N)]
    write_jsonl(folder / "data/train_data_new.jsonl", rows)


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> tuple[Path, dict[str, Outcome]]:
    """A folder in which the commands ran, one after the other, and what each said."""
    folder = tmp_path_factory.mktemp("multimodal")
    write_rows(folder)
    small = {TRAIN: SMALL, REFIT: SMALL}
    return folder, {line: done(run(folder, line + small.get(line, ""))) for line in (TRAIN, SCORE, REFIT, SHOW)}


@pytest.fixture
def copied(ran, tmp_path) -> Path:
    return Path(shutil.copytree(ran[0], tmp_path / "copy"))


def test_without_a_file_of_tests_the_training_rows_are_the_tests(ran):
    _, found = ran
    told = (
        "No --test_jsonl: the rows of ./data/train_data_new.jsonl are the tests too. Test t is the row in line t + 1, "
        "which the model was trained on.\n"
    )
    for line in (TRAIN, REFIT):
        assert found[line].out.startswith(told)


def test_scores_are_those_of_the_recorded_run(ran):
    folder, found = ran
    assert (folder / THERE).is_file()
    assert (folder / "models/multimodal_base.run").is_dir()
    scores = np.load(folder / "outputs/multimodal/if_scores_test_3.npy")
    assert scores.dtype == np.float32
    assert scores.shape == (N,)
    assert str(loaded(folder / "outputs/multimodal/influences_test_3.npz")["method"]) == "unrolled"
    ids = (folder / "outputs/multimodal/topk_ids_test_3.txt").read_text()
    assert ids == "".join(f"{i}\n" for i in np.argsort(-np.abs(scores), kind="stable")[:3])
    assert "test 3 (row Which? -> 0): influence in nats per unit weight" in found[SCORE].out


def test_losses_are_of_trainings_without_each_id_and_of_nothing_else(ran):
    folder, _ = ran
    written = lines(folder / "outputs/multimodal/loo_losses_test_3.jsonl")
    ids = (folder / "outputs/multimodal/topk_ids_test_3.txt").read_text().split()
    assert [row["id"] for row in written] == [-1, *map(int, ids)]
    compared = read_json(folder / "outputs/multimodal/manifest.json")["loo"]["compared"]
    assert (compared["removal"], compared["init"]) == ("zero_weight", "cold")
    kinds = {path.name for path in (folder / "outputs/multimodal").iterdir() if "losses" in path.name or path.is_dir()}
    assert kinds == {"loo_losses_test_3.jsonl", "figs"}


def test_the_null_refit_is_the_base_model_again(ran):
    """Same seed, start and batches, one replica among others: its gradient ends as small as that of the fit."""
    folder, _ = ran
    null = lines(folder / "outputs/multimodal/loo_losses_test_3.jsonl")[0]
    fitted = read_json(folder / "outputs/multimodal/manifest.json")["fit"]["recorded"]
    assert null["grad_norm"] == pytest.approx(fitted["grad_norm"], rel=1e-9)


def test_vis_compares_the_two(ran):
    folder, found = ran
    assert "test 3: predicted against actual change of its loss, removal zero_weight" in found[SHOW].out
    assert read_json(folder / "outputs/multimodal/verdict.json")["tests"]["3"]["n_refits"] == 3


def test_refits_leave_the_record_of_the_base_fit_alone(copied):
    record = {path: path.read_bytes() for path in (copied / "models/multimodal_base.run").iterdir()}
    elsewhere = REFIT.replace("--save_jsonl ./outputs/multimodal", "--save_jsonl ./other")
    done(run(copied, elsewhere + SMALL + " --lr 0.01 --optimizer adamw --l2_reg 0.01 --removal drop"))
    assert {path: path.read_bytes() for path in (copied / "models/multimodal_base.run").iterdir()} == record
    compared = read_json(copied / "other/manifest.json")["loo"]["compared"]
    assert compared["removal"] == "drop"
    assert compared["objective"].items() >= {"lr": 0.01, "optimizer": "adamw", "l2_reg": 0.01}.items()


def test_a_solver_is_one_of_gauss_newton(copied):
    told = done(run(copied, f"{SCORE} --solver cg --damping 0.5"))
    assert "of the system damped by 0.5, " in told.out
    found = loaded(copied / "outputs/multimodal/influences_test_3.npz")
    assert str(found["method"]) == "gauss_newton_cg"
    np.testing.assert_array_equal(found["damping"], 0.5)
    assert found["residual"] <= 1e-10 < found["undamped_residual"]
    done(run(copied, f"{SCORE} --all_test_ids 1 --solver cg --damping 0.5"))
    of_all = np.load(copied / "outputs/multimodal/all_tests/if_scores_test_3.npy")
    np.testing.assert_allclose(of_all, found["scores"], rtol=0, atol=1e-6 * np.abs(found["scores"]).max())


@pytest.mark.parametrize(
    ("flags", "made"),
    [
        ("", ["method=ifloo.attribution.Unrolled"]),
        (
            "--recursion_depth 20 --damp 0.01 --scale 25",
            [
                "method=ifloo.attribution.InfluenceFunction",
                "method.label=gauss_newton_lissa",
                "method.solver=ifloo.solvers.LiSSA",
                "method.damping=0.25",
                "method.solver.depth=20",
                "method.solver.scale=25.0",
            ],
        ),
        (
            "--damping 0.1",
            ["method=ifloo.attribution.InfluenceFunction", "method.label=gauss_newton", "method.damping=0.1"],
        ),
        (
            "--all_test_ids 1 --solver exact --damping 2",
            ["curvature=ifloo.curvature.GaussNewton", "solver=ifloo.solvers.Cholesky", "damping=2.0"],
        ),
    ],
)
def test_the_solver_flags_name_the_method(tmp_path, monkeypatch, flags, made):
    commands: list[list[str]] = []
    monkeypatch.setattr(script("run_if"), "run", lambda command, work: commands.append(command) or 0)
    done(run(tmp_path, f"{SCORE} {flags}"))
    how = [flag.removeprefix("--attribution.") for flag in commands[0] if flag.startswith("--attribution.")]
    assert [flag for flag in how if not flag.startswith(("test_ids", "top_k"))] == made


def test_settings_that_contradict_the_checkpoint_are_refused(ran):
    refused = run(ran[0], f"{SCORE} --max_seq_len 32 --embed_dim 16")
    assert refused.code == 2
    assert "  model.embed_dim: fitted with 8, asked 16\n" in refused.err
    assert (
        "  model.max_seq_len: fitted with 64, asked 32\n  data.max_seq_len: fitted with 64, asked 32\n" in refused.err
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            f"{TRAIN} --mnist_root . --mnist_train_limit 5",
            "only --experiment mnist has --mnist_root, --mnist_train_limit; leave out what is not of multimodal",
        ),
        (
            TRAIN.replace("multimodal", "mnist"),
            "only --experiment multimodal has --train_jsonl, --image_root; leave out what is not of mnist",
        ),
        (
            f"{SHOW.replace('multimodal', 'mnist')} --embed_dim 8",
            "only --experiment multimodal has --embed_dim; leave out what is not of mnist",
        ),
        (
            f"{TRAIN} --optimizer lbfgs",
            "--optimizer lbfgs is none of --experiment multimodal, which has sgd, adam, adamw",
        ),
        (
            f"{SCORE} --all_test_ids 1",
            "--all_test_ids 1 with multimodal is by Gauss-Newton: give --solver cg, and its --damping",
        ),
    ],
)
def test_flags_that_are_not_of_the_experiment_are_refused(tmp_path, line, message):
    told = run(tmp_path, line)
    assert (told.code, told.out) == (2, "")
    assert told.err.splitlines()[-1].split(": error: ", 1)[1] == message


@pytest.fixture
def shell(tmp_path) -> Path:
    """A checkout without an environment, and a python that is said to have everything and tells its arguments."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    shutil.copytree(CHECKOUT / "scripts", checkout / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    stub = tmp_path / "bin" / "python"
    stub.parent.mkdir()
    stub.write_text('#!/bin/sh\n[ "$1" = - ] && exit 0\npwd\nfor one in "$@"; do echo "$one"; done\n')
    stub.chmod(0o755)
    return checkout


def bash(checkout: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`bash ../checkout/scripts/run_multimodal.sh` from a folder beside the checkout."""
    here = checkout.parent / "bin"
    path = {"PATH": f"{here}{os.pathsep}{os.environ['PATH']}", **environment}
    script = ["bash", "../checkout/scripts/run_multimodal.sh", *flags]
    return subprocess.run(script, cwd=here, env=path, capture_output=True, text=True)


PIPELINE = ["-m", "ifloo", "pipeline", "--config", "configs/multimodal.yaml"]


def test_the_script_passes_flags_on(shell):
    found = bash(shell, "--refit.top_k", "5", TRAIN_JSONL="", IMAGE_ROOT="")
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines() == [str(shell), *PIPELINE, "--refit.top_k", "5"]


def test_the_script_takes_rows_from_where_it_is_called(shell):
    found = bash(shell, "--x", TRAIN_JSONL="my rows.jsonl", TEST_JSONL="/data/test.jsonl", IMAGE_ROOT="./")
    here = shell.parent / "bin"
    rows = ["--data.train_jsonl", f"{here}/my rows.jsonl", "--data.test_jsonl", "/data/test.jsonl"]
    rows += ["--data.image_root", f"{here}/./"]
    assert found.stdout.splitlines() == [str(shell), *PIPELINE, *rows, "--x"]


def test_the_script_wants_tests_with_rows(shell):
    found = bash(shell, TRAIN_JSONL="rows.jsonl")
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr == (
        "run_multimodal.sh: TRAIN_JSONL needs TEST_JSONL beside it: tests are explained from a file of their own\n"
    )
