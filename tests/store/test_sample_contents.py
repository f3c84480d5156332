"""The content of a test sample does not depend on the other samples of a batch."""

import torch
from torch.nn.utils.rnn import pad_sequence

from ifloo.store import contents_of

SAMPLES = [torch.tensor([1, 2]), torch.tensor([3, 4, 5, 6]), torch.tensor([1, 3])]


class Padded:
    """Rows of a batch are as long as its longest."""

    def test_batch(self, ids):
        return {"tokens": pad_sequence([SAMPLES[i] for i in ids], batch_first=True), "idx": torch.tensor(ids)}


def test_the_neighbours_of_a_sample_do_not_show_in_its_content():
    data = Padded()
    assert data.test_batch([0, 1])["tokens"].shape != data.test_batch([0])["tokens"].shape
    together = contents_of(data.test_batch, [0, 1, 2])
    assert together == {t: content for i in (0, 1, 2) for t, content in contents_of(data.test_batch, [i]).items()}
    assert len(set(together.values())) == 3
