"""Fingerprint of named tensors."""

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor

from ifloo.objective.forms import dense


def sha256_of_tensors(named: Mapping[str, Tensor]) -> str:
    """Computes the SHA-256 (hex) of names, shapes, dtypes and bytes, independent of order, device and memory layout."""
    digest = hashlib.sha256()
    for name in sorted(named):
        tensor = dense(named[name].detach()).cpu().resolve_conj().resolve_neg().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode() + b"\n")
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
