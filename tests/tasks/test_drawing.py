"""Masks and boxes are told in a few words and drawn so that a program and a person can read them."""

from __future__ import annotations

import numpy as np
import torch

from tlresearch.tasks.detection import box_pictures, shown_boxes
from tlresearch.tasks.segmentation import mask_pictures, shown_shares

CLASSES = ("back", "square", "disc")


def test_a_mask_keeps_its_numbers_and_lies_over_the_image() -> None:
    image = torch.full((3, 6, 8), 200, dtype=torch.uint8)
    mask = np.zeros((6, 8), int)
    mask[2:4, 3:6] = 2
    found = mask_pictures(image, mask.tolist(), CLASSES)
    assert (np.asarray(found["mask"]) == mask).all()
    colours = np.asarray(found["mask"].convert("RGB"))
    assert (colours[2, 3] != colours[0, 0]).any()
    overlay = np.asarray(found["overlay"]).astype(int)
    assert overlay.shape == (6, 8, 3)
    assert (overlay == (200 + colours.astype(int)) // 2).all()
    assert set(mask_pictures(image, mask[:4].tolist(), CLASSES)) == {"mask"}  # of another size than the image


def test_boxes_that_are_sure_are_counted_and_drawn() -> None:
    row = {"boxes": [[4, 5, 30, 34], [20, 20, 38, 38]], "classes": ["disc", "square"], "scores": [0.91, 0.2]}
    assert shown_boxes(row) == ("1 disc", 0.91)
    image = torch.zeros((1, 40, 50), dtype=torch.uint8)
    drawn = np.asarray(box_pictures(image, row, CLASSES)["overlay"])
    assert drawn.shape == (40, 50, 3)
    assert drawn[20, 4].any()  # the box's left edge
    assert not drawn[36:39, 36:39].any()  # the corner of the unsure one
    nothing = {"boxes": [], "classes": [], "scores": []}
    assert shown_boxes(nothing)[1] is None
    assert not np.asarray(box_pictures(image, nothing, CLASSES)["overlay"]).any()


def test_masks_of_objects_are_drawn_with_their_boxes() -> None:
    objects = np.zeros((40, 50), int)
    objects[10:20, 10:20], objects[25:30, 30:40] = 1, 2
    row = {"boxes": [[10, 10, 20, 20], [30, 25, 40, 30]], "classes": ["disc"] * 2, "scores": [0.9, 0.1]}
    found = box_pictures(torch.zeros((3, 40, 50), dtype=torch.uint8), row | {"mask": objects.tolist()}, CLASSES)
    assert (np.asarray(found["mask"]) == objects).all()
    overlay = np.asarray(found["overlay"])
    assert overlay[15, 15].any()
    assert not overlay[27, 35].any()  # the unsure one
    assert not overlay[2, 2].any()


def test_shares_are_told_largest_first() -> None:
    row = {"share(back)": 0.25, "share(square)": 0.75, "share(disc)": 0.0001}
    assert shown_shares(row, CLASSES) == ("square 75.0%, back 25.0%", None)
