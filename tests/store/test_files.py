"""Names of files, fingerprints, files of ids."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ifloo.errors import InputError
from ifloo.store import Layout, read_ids, save_topk, sha256_of_tensors, top_k


def test_layout_is_the_documented_one():
    at = Layout.of("mnist")
    names = {
        at.checkpoint("mnist"): "models/mnist_base.pth",
        at.scores(8): "outputs/mnist/influences_test_8.npz",
        at.topk_ids(8): "outputs/mnist/topk_ids_test_8.txt",
        at.all_tests: "outputs/mnist/all_tests",
        at.all_scores(8): "outputs/mnist/all_tests/if_scores_test_8.npy",
        at.all_scores(8, ".npz"): "outputs/mnist/all_tests/if_scores_test_8.npz",
        at.index: "outputs/mnist/all_tests/index.jsonl",
        at.all_scores_matrix: "outputs/mnist/all_tests/if_scores.npy",
        at.all_topk: "outputs/mnist/all_tests/topk.npz",
        at.loo_losses(8): "outputs/mnist/loo_losses_test_8.jsonl",
        at.null_losses(8): "outputs/mnist/null/loo_losses_test_8.jsonl",
        at.folder("warm").loo_losses(8): "outputs/mnist/warm/loo_losses_test_8.jsonl",
        at.group_losses(8): "outputs/mnist/group_losses_test_8.jsonl",
        at.method_scores("trak", 8): "outputs/mnist/methods/trak/influences_test_8.npz",
        at.figure("influence_vs_loo", 8): "outputs/mnist/figs/influence_vs_loo_test_8.png",
        at.verdict: "outputs/mnist/verdict.json",
        at.manifest: "outputs/mnist/manifest.json",
    }
    assert all(path == Path(name) for path, name in names.items())


def test_fingerprint_depends_on_content_alone():
    named = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(True)}
    same = sha256_of_tensors(named)
    assert same == sha256_of_tensors({"b": named["b"], "a": named["a"].t().contiguous().t()})
    assert same == sha256_of_tensors({"b": named["b"], "a": torch.nn.Parameter(named["a"])})
    others = [
        {"b": named["b"], "c": named["a"]},
        {**named, "a": named["a"].reshape(3, 2)},
        {**named, "a": named["a"].view(torch.int32)},
        {**named, "a": named["a"].nextafter(torch.tensor(9.0))},
        {**named, "c": torch.zeros(0, 3)},
    ]
    hashes = [same, *map(sha256_of_tensors, others)]
    assert len(set(hashes)) == len(hashes)
    assert all(len(h) == 64 for h in hashes)
    assert sha256_of_tensors({"z": torch.ones(2, dtype=torch.bfloat16)}) != same
    conjugate = torch.tensor([1 + 2j]).conj()
    assert sha256_of_tensors({"z": conjugate}) == sha256_of_tensors({"z": conjugate.resolve_conj()})


def test_top_k_is_by_size_then_id():
    scores = np.array([0.1, -0.5, 0.5, 0.0, -0.1], dtype=np.float32)
    ids = np.array([9, 7, 3, 1, 4])
    assert top_k(scores, ids, 3).tolist() == [3, 7, 4]
    assert top_k(scores, ids, 99).tolist() == [3, 7, 4, 9, 1]
    assert top_k(scores, ids, 0).tolist() == []


@pytest.mark.parametrize(
    ("scores", "ids", "k", "message"),
    [
        ([1.0], [1], -1, "top_k is -1; it must be 0 or more."),
        ([1.0], [1, 2], 1, "top_k needs one id per score, both [n]; scores are (1,), ids (2,)."),
        ([1.0, np.nan], [1, 2], 1, "1 of 2 scores are not finite: there is no order among them."),
    ],
)
def test_top_k_refuses(scores, ids, k, message):
    with pytest.raises(InputError) as caught:
        top_k(scores, ids, k)
    assert str(caught.value) == message


def test_ids_come_back_in_order(tmp_path):
    path = tmp_path / "topk.txt"
    save_topk(path, np.array([30, 2, 14]))
    assert path.read_text() == "30\n2\n14\n"
    found = read_ids(path, np.arange(31))
    assert found.dtype == np.int64
    assert found.tolist() == [30, 2, 14]
    path.write_bytes(b"\xef\xbb\xbf 30\r\n2 \r\n14")  # as an editor on Windows leaves it
    assert read_ids(path, range(31)).tolist() == [30, 2, 14]


NOT_AN_ID = "is not an id.\n  Each line holds one training id, a whole number."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "{path} holds no ids.\n  Give a text file with one training id per line."),
        ("1\n\n2\n", "{path}, line 2: blank line.\n  Each line holds one training id. Delete this line."),
        ("1\n2.5\n", "{path}, line 2: '2.5' " + NOT_AN_ID),
        ("1_0\n", "{path}, line 1: '1_0' " + NOT_AN_ID),
        ("\xff" * 50, "{path}, line 1: '" + "\ufffd" * 40 + "...' " + NOT_AN_ID),
        (
            "4\n1\n4\n",
            "{path}, line 3: id 4 was given on line 1 already.\n"
            "  A sample can be removed once. Delete one of the two lines.",
        ),
        (
            "1\n10\n",
            "{path}, line 2: id 10 is not in the training data (10 samples, ids 0 to 9).\n"
            "  Were these ids made with other data, or with a larger train_limit?",
        ),
        (
            "-1",
            "{path}, line 1: id -1 is not in the training data (10 samples, ids 0 to 9).\n"
            "  Were these ids made with other data, or with a larger train_limit?",
        ),
    ],
)
def test_bad_ids_are_named_with_their_line(tmp_path, content, message):
    path = tmp_path / "topk.txt"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError) as caught:
        read_ids(path, range(10))
    assert str(caught.value) == message.format(path=path)


def test_missing_ids_file(tmp_path):
    path = tmp_path / "topk.txt"
    with pytest.raises(InputError) as caught:
        read_ids(path, range(10))
    assert str(caught.value) == (
        f"Could not read the ids in {path}: No such file or directory.\n"
        "  Give a text file with one training id per line, such as the topk_ids file that `ifloo influence` writes."
    )
