"""Tasks by name; each is a class, which says everything else about itself. No torch."""

from __future__ import annotations

from collections.abc import Mapping

TASKS: Mapping[str, str] = {
    "classification": "tlresearch.tasks.classification.ClassificationTask",
    "regression": "tlresearch.tasks.regression.RegressionTask",
    "tokens": "tlresearch.tasks.tokens.TokensTask",
    "speech_recognition": "tlresearch.tasks.speech.SpeechRecognitionTask",
    "segmentation": "tlresearch.tasks.segmentation.SegmentationTask",
    "detection": "tlresearch.tasks.detection.DetectionTask",
    "instances": "tlresearch.tasks.detection.InstancesTask",
}
"""The line of a task: its name in a config, and the dotted path of its class; see `tlresearch.tasks.base.Task`."""
