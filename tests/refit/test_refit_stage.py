"""The leave-one-out stage by itself: plain objects go in, files and a section of the manifest come out."""

import dataclasses
import functools
import json

import pytest

from ifloo.data import MNISTDataModule
from ifloo.errors import InputError
from ifloo.models import LogisticRegression
from ifloo.refit import NewtonFinish, RefitSettings, RefitStage, TrainerSettings
from ifloo.refit.stage import LossFiles
from ifloo.solvers import Nystrom
from ifloo.store import Layout, LossFile, contents_of, write_text

N, TESTS = 31, 3


@functools.cache
def digits() -> MNISTDataModule:
    data = MNISTDataModule(source="embedded", train_limit=N, test_limit=TESTS)
    data.setup("fit")
    return data


def stage(folder, **changes) -> RefitStage:
    """Refits of a model whose large λ makes any weights a good start."""
    settings = RefitSettings(top_k=2, random=1, null_refits=1, **changes.pop("settings", {}))
    return RefitStage(
        module=LogisticRegression(l2_reg=1.0),
        datamodule=digits(),
        settings=settings,
        layout=Layout(folder),
        base_settings={"model": "LogisticRegression"},
        trainer_settings=TrainerSettings(accelerator="cpu"),
        finish=NewtonFinish(preconditioner=Nystrom(rank=4)),
        seed=0,
        **changes,
    )


def lines(folder, t: int) -> list[str]:
    return Layout(folder).loo_losses(t).read_text().splitlines()


def test_the_top_ids_of_each_test_and_the_controls_are_left_out_once(tmp_path):
    for t, ids in ((0, "3\n5\n7\n"), (2, "5\n9\n")):
        write_text(Layout(tmp_path).topk_ids(t), ids)
    stage(tmp_path).leave_out_top([0, 2])
    section = json.loads(Layout(tmp_path).manifest.read_text())["loo"]
    (control,) = section["recorded"]["random_ids"]
    for t in (0, 2):
        assert LossFile(Layout(tmp_path).loo_losses(t)).rows().keys() == {-1, 3, 5, 9, control}
    assert section["compared"]["queries"] == contents_of(digits().test_batch, [0, 2])
    assert section["compared"]["model"] == "LogisticRegression"
    assert section["recorded"]["test_ids"] == [0, 2]


def test_the_same_stage_goes_on_where_it_was_and_another_setting_is_refused(tmp_path):
    write_text(Layout(tmp_path).topk_ids(0), "3\n5\n")
    stage(tmp_path).leave_out_top([0])
    whole = lines(tmp_path, 0)
    write_text(Layout(tmp_path).loo_losses(0), "\n".join(whole[:-1]) + "\n")
    stage(tmp_path).leave_out_top([0])
    assert lines(tmp_path, 0)[:-1] == whole[:-1]
    assert json.loads(lines(tmp_path, 0)[-1])["id"] == json.loads(whole[-1])["id"]
    with pytest.raises(InputError, match='removal: stored "drop", asked "zero_weight"'):
        stage(tmp_path, settings={"removal": "zero_weight"}).leave_out_top([0])
    replaced = stage(tmp_path, settings={"removal": "zero_weight"}, overwrite=True)
    replaced.leave_out_top([0])
    assert lines(tmp_path, 0) != whole


def test_named_ids_go_to_named_files(tmp_path):
    files = {1: LossFiles(tmp_path / "mine.jsonl", tmp_path / "null" / "mine.jsonl")}
    one = dataclasses.replace(stage(tmp_path), settings=RefitSettings(random=0, null_refits=0))
    one.leave_out({1: [4, 8]}, files, "loo of mine.jsonl")
    assert LossFile(files[1].losses).rows().keys() == {-1, 4, 8}
    assert list(json.loads(Layout(tmp_path).manifest.read_text())) == ["loo of mine.jsonl"]


def test_refits_from_scratch_need_a_model_to_start_from(tmp_path):
    write_text(Layout(tmp_path).topk_ids(0), "3\n5\n")
    with pytest.raises(InputError) as caught:
        stage(tmp_path, settings={"init": "cold"}).leave_out_top([0])
    assert str(caught.value) == (
        "Refits with init = cold start from an untrained model, and RefitStage was given none to start from.\n"
        "  Give make_model, a function that makes the model, such as functools.partial(Model, ...); or init = warm."
    )
    assert not Layout(tmp_path).manifest.exists()
