"""Messages name a setting as the reader gives it: flags within a command, arguments for a caller from Python."""

import ast
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

import ifloo
from ifloo.errors import SETTINGS, InputError, WorkError, arguments_named, command_line, settings_named
from ifloo.refit.execution.dask_runner import Failure, train
from ifloo.stages import AttributionSettings, InfluencePredictor
from tests.stages.certificate import modules

TEXT = (
    "give --adapt.l2 0.02. State --adapt.sample_losses and --adapt.penalty, or --adapt.accept_objective true; "
    "`--adapt.ids third`, --attribution.damping 1e-05, --attribution.parameters \"['lin.*', 'body.*']\", "
    "--attribution.test_ids '[0, 8]'. Run `ifloo fit --overwrite` with --attribution.self_influence true."
)
ARGUMENTS = (
    "give l2=0.02. State `sample_losses` and `penalty`, or accept_objective=True; "
    "`ids='third'`, damping=1e-05, parameters=['lin.*', 'body.*'], "
    "test_ids=[0, 8]. Run `ifloo fit --overwrite` with --attribution.self_influence true."
)


@pytest.mark.parametrize("kind", [InputError, WorkError])
def test_an_error_has_flags_within_a_command_and_arguments_elsewhere(kind):
    assert str(kind(TEXT)) == ARGUMENTS
    with command_line():
        error = kind(TEXT)
        assert settings_named(TEXT) == TEXT
        assert str(error) == TEXT
    assert str(error) == ARGUMENTS
    assert settings_named(TEXT) == ARGUMENTS
    assert str(kind(ARGUMENTS)) == ARGUMENTS


FORMS = {
    "--adapt.draws 8.": "draws=8.",
    "--adapt.draws, or --adapt.draws K": "`draws`, or draws=K",
    "--adapt.ids positions": "ids='positions'",
    "--adapt.ids=third": "ids='third'",
    "`--adapt.ids`": "`ids`",
    "--adapt.ids are": "`ids` are",
    "--adapt.accept_objective=false": "accept_objective=False",
    "--adapt.l2=.001 or --adapt.l2 -1.5E-3": "l2=.001 or l2=-1.5E-3",
    "--adapt.memory_share 0.5": "share=0.5",
    "--adapt.penalty my.code.penalty, --adapt.penalty and": "penalty=my.code.penalty, `penalty` and",
    "--attribution.damping 5 times": "`damping` 5 times",
    "--attribution.damping 12.5 times": "`damping` 12.5 times",
    "--attribution.dtype float32": "dtype='float32'",
    "--attribution.method.class_path ifloo.attribution.GradientDot.": "method=ifloo.attribution.GradientDot().",
    "--attribution.test_ids all": "test_ids='all'",
    "--attribution.test_ids=[0, 8]": "test_ids=[0, 8]",
    "--attribution.damping_of": "--attribution.damping_of",
    "another --output_dir, or --overwrite.": "another output_dir, or overwrite=True.",
    "`ifloo fit` with --overwrite. Or --adapt.l2 1.": "`ifloo fit` with --overwrite. Or l2=1.",
    "the seed (--seed_everything)": "the seed (`lightning.seed_everything`)",
}


@pytest.mark.parametrize(("text", "expected"), FORMS.items(), ids=FORMS)
def test_each_form_of_a_value_is_one_that_python_takes(text, expected):
    assert arguments_named(text) == expected


def test_a_folder_of_results_is_named_as_a_flag_but_by_the_callback():
    text = "Give another --output_dir, or --overwrite."
    assert str(InputError(text)) == settings_named(text) == text


def test_threads_and_processes_of_a_command_name_flags():
    with command_line(), ThreadPoolExecutor(1) as threads:
        assert threads.submit(lambda: str(InputError(TEXT))).result() == TEXT
    sent = pickle.dumps(WorkError(TEXT))  # made by a caller from Python
    with command_line():
        assert str(pickle.loads(sent)) == TEXT
    assert str(pickle.loads(sent)) == ARGUMENTS


class Refused:
    """Work that a worker process refuses."""

    def run(self, unit):
        raise InputError(f"{InputError(TEXT)}")  # an error that quotes another


@pytest.mark.parametrize(("by_command", "expected"), [(True, TEXT), (False, ARGUMENTS)])
def test_a_worker_process_names_settings_as_its_sender_does(by_command, expected):
    failure = train(pickle.dumps(Refused()), f"told {by_command}", (), by_command)
    assert failure == Failure(expected, wrong_input=True)


def literals():
    """Yields the file and the text of each string of ifloo that names a setting of scores or modules."""
    for path in sorted(Path(ifloo.__file__).parent.rglob("*.py")):
        if path.name == "errors.py" or "cli" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                text = "".join(str(x.value) if isinstance(x, ast.Constant) else "7" for x in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            else:
                continue
            if re.search(r"--(adapt|attribution)\.", text):
                yield path.name, text


def test_every_flag_in_a_message_is_in_the_table():
    found = list(literals())
    assert len(found) > 30
    names = "|".join(name for name, _ in SETTINGS.values())
    left = re.compile(rf"`({names})`[ =]([\d.\[]|true\b|false\b|float|third|positions|all\b|\w+\.\w)")
    for name, text in found:
        for flag in re.findall(r"--(?:adapt|attribution)\.\w+(?:\.\w+)*", text):
            assert flag in SETTINGS, f"{name}: {flag} has no argument"
        said = arguments_named(text)
        rest = re.sub(r"`ifloo .*", "", said) if "`ifloo " in text else said
        assert not re.search(r"--(adapt|attribution)\.|``", rest), f"{name}: {said}"
        assert not left.search(said), f"{name}: {said}"


def test_a_predict_stage_is_refused_in_arguments():
    L.seed_everything(0, verbose=False)
    data = modules.Data()
    trainer = L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = modules.Masked()
    trainer.fit(module, datamodule=data)
    loader = DataLoader(data.dataset, batch_size=16)
    queries = tuple(x[:2] for x in data.dataset.tensors)
    predictor = InfluencePredictor(module, loader, AttributionSettings(damping=1.0), queries=queries)
    with pytest.raises(InputError) as caught:
        trainer.predict(predictor, loader)
    assert "Scores of J as it is: accept_objective=True; every output" in str(caught.value)
    assert "--" not in str(caught.value)
    accepted = InfluencePredictor(
        module, loader, AttributionSettings(damping=1.0), queries=queries, accept_objective=True
    )
    scores = torch.cat(trainer.predict(accepted, loader), 1)
    assert scores.shape == (2, len(data.dataset))
    assert ", accepted by `accept_objective`" in accepted.examined().certificate.text
