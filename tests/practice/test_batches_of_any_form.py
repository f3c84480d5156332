"""Batches as projects make them: any layout, any type, any third item; scores are right, by the ids that are ids."""

import pytest
import torch
from torch.utils.data import DataLoader, Subset

from ifloo.attribution import GradientDot, TrainedModel
from ifloo.errors import InputError
from ifloo.models import Adapted
from ifloo.objective import Objective, preflight
from ifloo.stages import AttributionSettings, InfluenceCallback, InfluencePredictor
from ifloo.store import influences
from tests.gallery.dense import Dense, off, singles
from tests.practice import batches
from tests.practice.base import IN_FILES, IN_MEMORY, Project


def engine_scores(predictor):
    predictor.build_engine()
    return predictor.engine.scores(predictor.queries).value


def test_texts_with_time_first_are_scored_by_column(tmp_path):
    project = Project.trained(tmp_path, batches.Bigram, batches.TextsInColumns)
    project.assert_right(project.influence())


def test_a_query_with_time_first_is_one_query_of_forty_scores(tmp_path):
    project = Project.trained(tmp_path, batches.Bigram, batches.TextsInColumns)
    query = batches.in_columns([batches.Texts()[3]])
    predictor = InfluencePredictor(project.model, project.data.train_dataloader(), queries=query)
    scores = engine_scores(predictor)
    assert off(scores, project.dense().scores([query])) <= IN_MEMORY


def test_the_callback_takes_queries_with_time_first_from_a_dataset(tmp_path):
    callback = InfluenceCallback(
        Subset(batches.Texts(), [3]), method=GradientDot(), num_queries=1, output_dir=tmp_path / "o"
    )
    project = Project.trained(tmp_path, batches.Bigram, batches.TextsInColumns, callbacks=[callback])
    stored = influences.load(next((tmp_path / "o").rglob("influences_test_*.npz")))
    truth = project.dense().dots([batches.in_columns([batches.Texts()[3]])])
    assert off(torch.as_tensor(stored.scores)[None], truth) <= IN_FILES


@pytest.mark.parametrize(
    ("net", "data"),
    [(batches.NamedBigram, batches.TokensUnderIdx), (batches.OfDicts, batches.NamesUnderIdx)],
    ids=["tokens", "names"],
)
def test_what_is_no_number_per_sample_is_no_id_whatever_its_key(net, data, tmp_path):
    project = Project.trained(tmp_path, net, data)
    done = project.influence()
    project.assert_right(done)
    stored = influences.load(tmp_path / "outputs/experiment/influences_test_0.npz")
    assert stored.train_ids.tolist() == list(range(len(stored.scores)))


@pytest.mark.parametrize("data", [batches.LengthsThird, batches.UniqueThird], ids=["repeated", "unique"])
def test_a_third_item_that_is_not_the_position_is_data_and_that_is_noted(data, tmp_path):
    project = Project.trained(tmp_path, batches.Divided, data)
    done = project.influence()
    project.assert_right(done)
    stored = influences.load(tmp_path / "outputs/experiment/influences_test_0.npz")
    assert stored.train_ids.tolist() == list(range(120))
    assert "third" in done.out + done.err


def test_a_third_item_is_the_id_where_that_was_asked_for(tmp_path):
    project = Project.trained(tmp_path, batches.Divided, batches.UniqueThird)
    done = project.run("influence", "--adapt.ids=third", "--attribution.test_ids=[500]")
    assert done.code == 0, done.err
    stored = influences.load(tmp_path / "outputs/experiment/influences_test_500.npz")
    assert stored.train_ids.tolist() == [500 - 3 * i for i in range(120)]
    assert off(torch.as_tensor(stored.scores)[None], project.truth()) <= IN_FILES


def test_a_mapping_keeps_its_type(tmp_path):
    project = Project.trained(tmp_path, batches.OfBags, batches.Bags)
    project.assert_right(project.influence())


@pytest.mark.parametrize("data", [batches.PriorInBatch, batches.PriorAsLongAsTheBatch], ids=["short", "as long"])
def test_a_tensor_that_all_samples_of_a_batch_share_is_shared(data, tmp_path):
    project = Project.trained(tmp_path, batches.WithPrior, data, max_epochs=5)
    project.assert_right(project.influence())


def by_predictor(project, query):
    return engine_scores(InfluencePredictor(project.model, project.data.train_dataloader(), queries=query))


def by_dots(project, query):
    objective = Objective.of(Adapted(project.model), project.data.train_dataloader())
    preflight(objective, objective.losses.theta())
    return GradientDot().scores(TrainedModel(objective, objective.losses.theta()), query)


@pytest.mark.parametrize("scores", [by_predictor, by_dots])
def test_a_loss_that_is_no_number_names_its_sample(scores, tmp_path):
    project = Project.trained(tmp_path, batches.Segmenter, batches.VoidImage)
    query = tuple(part[:1] for part in batches.pixels(9, 1))
    with pytest.raises(InputError, match=r"(?s)training (id|sample) 30\b.*nan|nan.*training (id|sample) 30\b"):
        scores(project, query)


def test_a_file_of_scores_names_the_sample_whose_loss_is_no_number(tmp_path):
    project = Project.trained(tmp_path, batches.Segmenter, batches.VoidImage)
    refused = project.influence()
    assert refused.code == 2, refused.err
    assert "30" in refused.err
    assert "ignore_index" in refused.err


def test_texts_padded_batch_by_batch_are_scored_whatever_their_lengths(tmp_path):
    torch.manual_seed(0)
    model = batches.MeanOfWords(words=12, width=3)
    model.double()
    loader = DataLoader(batches.Ragged(300, 12), batch_size=32, collate_fn=batches.padded)
    query = batches.padded([batches.Ragged(300, 12)[3]])
    predictor = InfluencePredictor(model, loader, AttributionSettings(damping=1.0, batch_size=32), queries=query)
    scores = engine_scores(predictor)
    assert off(scores, Dense(model, singles(loader)).scores([query], 1.0)) <= IN_MEMORY


@pytest.mark.slow
def test_many_parameters_of_texts_padded_batch_by_batch_are_scored(tmp_path):
    torch.manual_seed(0)
    model = batches.MeanOfWords()
    loader = DataLoader(batches.Ragged(), batch_size=32, collate_fn=batches.padded)
    query = batches.padded([batches.Ragged()[3]])
    predictor = InfluencePredictor(model, loader, AttributionSettings(damping=1.0, batch_size=32), queries=query)
    scores = engine_scores(predictor)
    dense = Dense(model, singles(loader))
    solved = dense.solve(dense.gradients([query]), 1.0)
    assert off(scores, -solved @ dense.weighted().T / 300) <= IN_MEMORY


def test_a_list_of_samples_given_as_queries_is_a_dataset(tmp_path):
    queries = [batches.NamedRows(9, 1)[i] for i in range(3)]
    callback = InfluenceCallback(queries, num_queries=1, output_dir=tmp_path / "o")
    project = Project.trained(tmp_path, batches.OfDicts, batches.NamesUnderIdx, callbacks=[callback])
    stored = influences.load(next((tmp_path / "o").rglob("influences_test_0.npz")))
    truth = project.truth(stored.damping)
    assert off(torch.as_tensor(stored.scores)[None], truth) <= IN_FILES
