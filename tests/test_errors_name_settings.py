"""Messages name a setting as the reader gives it: flags within a command, arguments for a caller from Python."""

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from ifloo.errors import InputError, WorkError, command_line, settings_named
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
    assert settings_named(TEXT) == ARGUMENTS
    assert str(kind(ARGUMENTS)) == ARGUMENTS


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
    assert accepted.examined().certificate.text.endswith(", accepted by `accept_objective`")
