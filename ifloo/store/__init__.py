"""Floor 5: files on disk, written atomically, never with results of different settings, and resumable.

- `atomic`, `jsonl`, `npz_record`: how files are written and read; `fingerprint`: hashes of tensors.
- `layout`: names of all files; `manifest`, `section`: the settings of stored results; `former_settings`: older names.
- `influences`, `all_tests` (with `all_tests_matrix` and `all_tests_topk`), `removals`, `self_influence`: scores.
- `losses`, `groups`: test losses after refits; `recorded_runs`: recorded training runs; `ids`: files of training ids.

`influences`, `removals`, `self_influence` and `jsonl` are used as modules: `influences.load(path)`,
`jsonl.append(path, row)`.
"""

from typing import TYPE_CHECKING

from ifloo.former_names import former_names
from ifloo.store import influences, jsonl, removals, self_influence
from ifloo.store.all_tests import AllTests, ScoredTest, ScoreFiles
from ifloo.store.all_tests_matrix import ScoreMatrix
from ifloo.store.all_tests_topk import ScoreTopK
from ifloo.store.atomic import JSON, replacing, write_json, write_npy, write_npz, write_text
from ifloo.store.fingerprint import sha256_of_tensors
from ifloo.store.groups import GroupFile, GroupRow
from ifloo.store.ids import read_ids, save_topk, top_k
from ifloo.store.influences import StoredInfluences
from ifloo.store.layout import CORRECTED, WEIGHTS, Layout
from ifloo.store.losses import FLAG_RATIO, NULL_ID, LossFile, LossRow
from ifloo.store.manifest import Manifest, environment
from ifloo.store.recorded_runs import RunFolder
from ifloo.store.removals import StoredRemovals
from ifloo.store.results_section import Section, has_results, settings_stamp
from ifloo.store.sample_contents import content_of, contents_of, refuse_other_samples
from ifloo.store.self_influence import StoredSelfInfluence

__all__ = [
    "CORRECTED",
    "FLAG_RATIO",
    "JSON",
    "NULL_ID",
    "WEIGHTS",
    "AllTests",
    "GroupFile",
    "GroupRow",
    "Layout",
    "LossFile",
    "LossRow",
    "Manifest",
    "RunFolder",
    "ScoreFiles",
    "ScoreMatrix",
    "ScoreTopK",
    "ScoredTest",
    "Section",
    "StoredInfluences",
    "StoredRemovals",
    "StoredSelfInfluence",
    "content_of",
    "contents_of",
    "environment",
    "has_results",
    "influences",
    "jsonl",
    "read_ids",
    "refuse_other_samples",
    "removals",
    "replacing",
    "save_topk",
    "self_influence",
    "settings_stamp",
    "sha256_of_tensors",
    "top_k",
    "write_json",
    "write_npy",
    "write_npz",
    "write_text",
]

if not TYPE_CHECKING:  # else every misspelt name would pass mypy
    __getattr__ = former_names(__name__, {"UNSURE": "ifloo.store.FLAG_RATIO"}, __all__)
