"""One hash over everything a data set consists of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from torch import Tensor

from tlresearch.data.base import Fingerprint, SplitName
from tlresearch.data.table import Checked


def fingerprint(
    splits: Mapping[SplitName, Sequence[int]],
    *,
    labels: Tensor | Sequence[Tensor],
    names: Sequence[str],
    classes: Sequence[str],
    checked: Mapping[int, Checked],
) -> Fingerprint:
    """Hashes classes, then name, content, target and split of every sample, in the order of the splits.

    The order counts because stored activations are found by a sample's position in its split.
    """
    digest = hashlib.sha256(json.dumps(list(classes)).encode())
    files = {}
    for split, rows in splits.items():
        for row in rows:
            content = checked[row].digest
            digest.update(json.dumps([split, names[row], content, labels[row].tolist()]).encode())
            files[names[row]] = content
    return Fingerprint(digest.hexdigest(), files)
