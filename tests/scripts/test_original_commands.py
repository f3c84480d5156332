"""The commands of the original tool, word for word, and what they leave behind."""

import importlib
import shlex
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.cli.running import CHECKOUT, Outcome, call, done
from tests.cli.test_pipeline import lines, read_json

ORIGINAL = (
    "python3 -u scripts/train_base.py --experiment mnist --mnist_root ./mnist --mnist_train_limit 55000 "
    "--optimizer lbfgs --l2_reg 0.01 --epochs 1 --batch_size 55000 --save_path ./models/mnist_base.pth",
    "python3 -u scripts/run_if.py --experiment mnist --ckpt_path ./models/mnist_base.pth --test_id 0 "
    "--recursion_depth 1000 --damp 0.01 --scale 25.0 --save_scores_npy ./outputs/mnist/if_scores_test_0.npy "
    "--save_topk_ids_txt ./outputs/mnist/topk_ids_test_0.txt --topk 500",
    "python3 -u scripts/run_if.py --experiment mnist --ckpt_path ./models/mnist_base.pth --all_test_ids 1 "
    "--save_all_dir ./outputs/mnist/all_tests --resume_all_test 1",
    "python3 -u scripts/run_loo.py --experiment mnist --topk_ids_txt ./outputs/mnist/topk_ids_test_0.txt --test_id 0 "
    "--save_jsonl ./outputs/mnist/loo_losses_test_0.jsonl --optimizer lbfgs --l2_reg 0.01 --epochs 1",
)
TRAIN, LISSA, ALL, LOO = ORIGINAL
N, TESTS = 40, 12
SMALL = f" --mnist_train_limit {N} --mnist_test_limit {TESTS}"  # the last of two flags counts


def script(name: str) -> ModuleType:
    """A script as its own folder sees it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(CHECKOUT / "scripts"))
        return importlib.import_module(name)


def run(folder: Path, line: str) -> Outcome:
    python, unbuffered, path, *arguments = shlex.split(line)
    assert (python, unbuffered) == ("python3", "-u")
    return call(script(Path(path).stem).main, folder, arguments)


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> tuple[Path, dict[str, Outcome]]:
    """A folder in which the four commands ran, one after the other, and what each said."""
    folder = tmp_path_factory.mktemp("original")
    embedded = {TRAIN: " --mnist_source embedded", LOO: " --mnist_source embedded"}
    said = {line: done(run(folder, line + SMALL + embedded.get(line, ""))) for line in ORIGINAL}
    return folder, said


@pytest.fixture
def copied(ran, tmp_path) -> Path:
    return Path(shutil.copytree(ran[0], tmp_path / "copy"))


def loaded(path: Path) -> dict[str, np.ndarray]:
    """An npz, read and closed."""
    with np.load(path) as content:
        return {name: content[name] for name in content.files}


def test_the_base_model_is_at_its_minimum(ran):
    folder, said = ran
    assert (folder / "models" / "mnist_base.pth").is_file()
    fit = read_json(folder / "outputs" / "mnist" / "manifest.json")["fit"]
    assert fit["recorded"]["grad_norm"] <= 1e-10
    assert said[TRAIN].out.splitlines()[-1] == "checkpoint: models/mnist_base.pth"


def test_lissa_flags_are_lissa_with_the_damping_they_amount_to(ran):
    folder, said = ran
    assert "LiSSA: damp 0.01 x scale 25 is damping δ = 0.25 on the Hessian\n" in said[LISSA].out
    scores = np.load(folder / "outputs/mnist/if_scores_test_0.npy")
    beside = loaded(folder / "outputs/mnist/influences_test_0.npz")
    np.testing.assert_array_equal(scores, beside["scores"], strict=True)
    assert scores.dtype == np.float32
    assert scores.shape == (N,)
    np.testing.assert_array_equal(beside["damping"], 0.25)
    assert str(beside["status"]) == "FIXED_STEPS"
    assert int(beside["steps"]) == 1000
    solver = read_json(folder / "outputs/mnist/manifest.json")["influence"]["compared"]["solver"]
    assert solver.items() >= {"class": "LiSSA", "depth": 1000, "repeats": 10, "batch": 1, "scale": 25.0}.items()
    ids = (folder / "outputs/mnist/topk_ids_test_0.txt").read_text()
    assert ids == "".join(f"{i}\n" for i in np.lexsort((np.arange(N), -np.abs(scores))))


def test_lissa_agrees_with_the_solution_of_its_damped_system(copied):
    done(run(copied, f"{LISSA.split(' --recursion_depth')[0]} --damping 0.25 --save_scores_npy ./cg/scores.npy"))
    lissa, cg = loaded(copied / "outputs/mnist/influences_test_0.npz"), np.load(copied / "cg/scores.npy")
    # A stochastic recursion: its true residual says how far off it is, and with it the scores are.
    apart = np.linalg.norm(lissa["scores"] - cg) / np.linalg.norm(cg)
    assert apart < 3 * float(lissa["residual"]) < 1.0


def test_all_tests_have_their_file_and_a_row_in_the_index(ran):
    folder, said = ran
    root = folder / "outputs/mnist/all_tests"
    assert f"{TESTS} tests scored now, {TESTS} in all: outputs/mnist/all_tests/index.jsonl" in said[ALL].out
    rows = lines(root / "index.jsonl")
    assert [(row["test_id"], row["path"]) for row in rows] == [(t, f"if_scores_test_{t}.npy") for t in range(TESTS)]
    assert {p.name for p in root.iterdir()} == {"index.jsonl", *(row["path"] for row in rows)}
    assert all(np.load(root / row["path"]).shape == (N,) for row in rows)


def test_all_tests_are_resumed_or_made_anew(copied):
    root = copied / "outputs/mnist/all_tests"
    (root / "if_scores_test_3.npy").unlink()
    before = {p.name: p.stat().st_mtime_ns for p in root.glob("*.npy")}
    assert f"1 tests scored now, {TESTS} in all" in done(run(copied, ALL + SMALL)).out
    assert {name: (root / name).stat().st_mtime_ns for name in before} == before
    anew = ALL.replace("--resume_all_test 1", "--resume_all_test 0")
    assert f"{TESTS} tests scored now, {TESTS} in all" in done(run(copied, anew + SMALL)).out
    assert all((root / name).stat().st_mtime_ns > stamp for name, stamp in before.items())


def test_all_tests_of_other_settings_are_refused(copied):
    refused = run(copied, f"{ALL} --damping 0.5" + SMALL)
    assert refused.code == 2
    assert "  damping: stored 0.0, asked 0.5\n" in refused.err


def test_leave_one_out_losses_follow_the_file_of_ids(ran):
    folder, _ = ran
    base, *rows = lines(folder / "outputs/mnist/loo_losses_test_0.jsonl")
    assert base["id"] == -1
    assert [str(row["id"]) for row in rows] == (folder / "outputs/mnist/topk_ids_test_0.txt").read_text().split()
    assert len(rows) == N
    assert max(row["grad_norm"] for row in (base, *rows)) <= 1e-10


def test_leave_one_out_resumes(copied):
    path = copied / "outputs/mnist/loo_losses_test_0.jsonl"
    whole = lines(path)
    path.write_bytes(path.read_bytes()[:-60])
    done(run(copied, LOO + SMALL + " --mnist_source embedded"))
    again = lines(path)
    assert again[:-1] == whole[:-1]
    # Two ‖∇J‖ <= 1e-10 over λ = 0.01, times ‖∇L_t‖ up to 10 in the directions that a refit moves along.
    assert again[-1]["loss"] == pytest.approx(whole[-1]["loss"], abs=1e-7)


def test_refits_from_scratch_reach_the_same_optimum(copied):
    ids = (copied / "outputs/mnist/topk_ids_test_0.txt").read_text().split()[:3]
    (copied / "three.txt").write_text("\n".join(ids) + "\n")
    cold = LOO.replace("./outputs/mnist/topk_ids_test_0.txt", "three.txt").replace("./outputs/mnist/", "./cold/")
    done(run(copied, cold + SMALL + " --mnist_source embedded --init cold"))
    found = {row["id"]: row["loss"] for row in lines(copied / "cold/loo_losses_test_0.jsonl")}
    warm = {row["id"]: row["loss"] for row in lines(copied / "outputs/mnist/loo_losses_test_0.jsonl")}
    assert list(found) == [-1, *map(int, ids)]
    assert found == pytest.approx({i: warm[i] for i in found}, abs=1e-7)  # what two ‖∇J‖ <= 1e-10 may leave


def test_vis_draws_what_the_others_made(copied):
    said = done(run(copied, "python3 -u scripts/vis.py --experiment mnist --test_id 0 --topk 20"))
    assert "test 0: predicted against actual change of its loss, removal drop" in said.out
    verdict = read_json(copied / "outputs/mnist/verdict.json")["tests"]["0"]
    assert verdict["n_refits"] == N
    assert verdict["top_k"]["n_refits"] == 20
    assert verdict["method"].startswith("Damped(Hessian, 0.25) / LiSSA(")
    assert len(list((copied / "outputs/mnist/figs").glob("*_test_0.png"))) == 3
    drawn = [copied / "outputs/mnist" / name for name in ("verdict.json", "report.html")]
    assert all(path.exists() for path in drawn)
    done(run(copied, LISSA + SMALL))  # scores anew
    assert not any(path.exists() for path in drawn)


def test_the_solver_flags_name_the_solver(tmp_path, monkeypatch):
    commands: list[list[str]] = []
    monkeypatch.setattr(script("run_if"), "run", lambda command, work: commands.append(command) or 0)
    line = "python3 -u scripts/run_if.py --experiment mnist --ckpt_path base.pth --test_id 3"
    for flags in ("--solver exact", "--solver cg --damping 0.5", "--solver lissa", ""):
        done(run(tmp_path, f"{line} {flags}"))
    solvers = [[flag for flag in c if "solver" in flag or "damping" in flag] for c in commands]
    assert solvers == [
        ["--attribution.solver=ifloo.solvers.Cholesky"],
        ["--attribution.solver=ifloo.solvers.CG", "--attribution.damping=0.5"],
        ["--attribution.solver=ifloo.solvers.LiSSA"],
        [],
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--test_id 0 --solver cg --damp 0.01", "with --solver cg, leave out the flags of LiSSA: --damp"),
        (
            "--test_id 0 --solver exact --recursion_depth 10 --scale 5",
            "with --solver exact, leave out the flags of LiSSA: --recursion_depth, --scale",
        ),
        (
            "--test_id 0 --damp 0.01",
            "--damp 0.01 is in units of the scale (δ = damp * scale): give --scale too",
        ),
        (
            "--test_id 0 --scale 25 --damp 0.01 --damping 0.1",
            "--damp and --damping both set the δ added to the curvature (δ = damp * scale): give one",
        ),
        ("", "give --test_id, or --all_test_ids 1"),
        ("--test_id 0 --recursion_dept 5", "unrecognized arguments: --recursion_dept 5"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(tmp_path, flags, message):
    said = run(tmp_path, f"python3 -u scripts/run_if.py --experiment mnist --ckpt_path nowhere.pth {flags}")
    assert (said.code, said.out) == (2, "")
    assert said.err.splitlines()[-1].split(": error: ", 1)[1] == message


@pytest.mark.parametrize("name", ["train_base", "run_if", "run_loo", "vis"])
def test_every_script_takes_the_common_flags(tmp_path, name):
    said = run(tmp_path, f"python3 -u scripts/{name}.py --help")
    assert said.code == 0
    for flag in ("--experiment", "--mnist_root", "--mnist_train_limit", "--mnist_test_limit", "--seed"):
        assert flag in said.out
    for flag in ("--train_jsonl", "--test_jsonl", "--image_root", "--embed_dim", "--num_heads", "--max_seq_len"):
        assert flag in said.out


def test_scripts_leave_no_trace_on_the_import_path():
    assert str(CHECKOUT / "scripts") not in sys.path
