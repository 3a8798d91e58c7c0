"""Medical images: DICOM files and NIfTI volumes as samples of any source, and patients that stay in one split."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.medical_files import save_dicom, save_volume
from tlresearch.base.errors import ConfigError, DataError, MissingExtraError
from tlresearch.config.load import load_text
from tlresearch.data.base import Data
from tlresearch.modality.decoding import decode
from tlresearch.modality.dicom import read_dicom

pytest.importorskip("pydicom", reason="the extra medical is not installed")
pytest.importorskip("nibabel", reason="the extra medical is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:Python 3.14 will:DeprecationWarning")  # nibabel's own

Build = Callable[..., Data]
RAMP = np.arange(-1024, 1024, dtype=np.int16).reshape(32, 64)  # Hounsfield units


def shown(path: Path, *windows: tuple[float, float]) -> np.ndarray:
    return read_dicom(path.read_bytes(), windows)[..., 0].ravel()


def sample(name: str) -> bytes:
    from pydicom.data import get_testdata_file

    found = get_testdata_file(name, download=False)
    assert isinstance(found, str)
    return Path(found).read_bytes()


def test_values_are_rescaled_windowed_and_only_then_brought_to_8_bits(tmp_path: Path) -> None:
    # Stored with an offset, as scanners do.
    stored = (RAMP + 1024).astype(np.uint16)
    path = save_dicom(tmp_path / "a.dcm", stored, RescaleSlope=1, RescaleIntercept=-1024)
    whole = shown(path)
    assert (whole[0], whole[-1]) == (0, 255)
    brain = shown(path, (40, 80))  # from 0 to 80, of 2048 values: of 8 bits taken first, 10 levels were left
    assert (brain[1024], brain[1024 + 40], brain[1024 + 80]) == (0, 128, 255)
    assert len(np.unique(brain)) == 81
    own = save_dicom(
        tmp_path / "b.dcm",
        stored,
        RescaleSlope=1,
        RescaleIntercept=-1024,
        WindowCenter=[40, 300],
        WindowWidth=[80, 1500],
    )
    assert np.abs(shown(own).astype(int) - brain).max() <= 4  # its first window; DICOM's linear is one value narrower
    assert np.array_equal(shown(own, (300, 1500)), shown(path, (300, 1500)))


def test_inverted_pictures_and_three_windows(tmp_path: Path) -> None:
    plain = save_dicom(tmp_path / "a.dcm", RAMP)
    inverted = save_dicom(tmp_path / "b.dcm", RAMP, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(shown(inverted), 255 - shown(plain))
    windows = [(40.0, 80.0), (-600.0, 1500.0), (300.0, 1500.0)]
    channels = decode(plain.read_bytes(), 3, windows)
    assert channels.shape == (3, 32, 64)
    for channel, window in zip(channels, windows, strict=True):
        assert np.array_equal(channel.numpy().ravel(), shown(plain, window))


def test_real_files() -> None:
    ct, mr = decode(sample("CT_small.dcm"), 1), decode(sample("MR_small.dcm"), 3)
    assert (ct.shape, mr.shape, ct.dtype) == ((1, 128, 128), (3, 64, 64), torch.uint8)
    assert int(ct.max()) == 255
    assert len(mr.unique()) > 50
    rgb = decode(sample("SC_rgb_rle.dcm"), 3)  # colours, compressed
    assert rgb.shape == (3, 100, 100)
    assert not torch.equal(rgb[0], rgb[1])
    with pytest.raises(ValueError, match="it has 2 frames; save the ones you need as single images"):
        decode(sample("SC_rgb_rle_2frame.dcm"), 3)
    with pytest.raises(ValueError, match="a DICOM file that cannot be read"):
        decode(sample("MR_truncated.dcm"), 3)


def test_a_folder_and_a_table_of_dicom_files(tmp_path: Path, build: Build) -> None:
    lines = ["image,finding,patient"]
    for number in range(24):
        cls, patient = "ab"[number % 2], number // 4
        save_dicom(tmp_path / cls / f"p{patient}_{number}.dcm", RAMP + np.int16(number))
        lines.append(f"{cls}/p{patient}_{number}.dcm,{cls},{patient}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    plain = build(tmp_path)
    assert plain.classes == ("a", "b")
    assert len(plain.splits["train"]) + len(plain.splits["val"]) == 24
    windowed = build(tmp_path, options={"window": [40, 80]})
    assert windowed.fingerprint.digest != plain.fingerprint.digest  # or old activations would be read
    assert not torch.equal(windowed.splits["train"].raw(0), plain.splits["train"].raw(0))
    by_name = build(tmp_path, group_pattern=r"(p\d+)_", val_fraction=0.3)
    by_column = build(tmp_path, name="image_csv", label_column="finding", group_column="patient", val_fraction=0.3)
    for data in (by_name, by_column):
        patients = {split: {name[2:4] for name in part.names} for split, part in data.splits.items()}
        assert not patients["train"] & patients["val"]
        assert len(patients["val"]) == 2
    with pytest.raises(
        DataError, match=r"data\.options: image_folder has no option 'windows' \(did you mean 'window'\?\)"
    ):
        build(tmp_path, options={"windows": [40, 80]})
    with pytest.raises(DataError, match=r"data\.options\.window: takes \[centre, width\].* but got \[40\]"):
        build(tmp_path, options={"window": [40]})
    with pytest.raises(DataError, match=r"names in which data\.group_pattern .* finds no group \(24\)"):
        build(tmp_path, group_pattern=r"(subject\d+)")


def test_a_group_in_two_given_splits_is_refused(folder: Callable[..., Path], build: Build) -> None:
    with pytest.raises(DataError, match=r"groups in more than one split .*'cat1' in train and val"):
        build(folder({"cat": 2, "dog": 2}, splits=("train", "val")), group_pattern=r"/(\w+\d)\w+\.png")


def test_slices_lie_as_a_reader_expects_them(tmp_path: Path, build: Build) -> None:
    values = np.zeros((10, 12, 8), np.int16)
    values[0, 11, :] = 1000  # left, in front
    values[5, 5, 7] = 500  # on top
    for cls, patients in {"sick": "abc", "well": "def"}.items():
        for patient in patients:
            # Every other scanner stores the axes the other way round.
            turned = ord(patient) % 2 == 0
            stored = values[::-1, ::-1, ::-1] if turned else values
            save_volume(
                tmp_path / cls / f"{patient}.nii.gz",
                stored + np.int16(ord(patient)),
                (-1, -1, -1) if turned else (1, 1, 1),
            )
    data = build(tmp_path, val_fraction=0.3, options={"slices": [2, None]})
    assert {split: len(part) for split, part in data.splits.items()} == {"train": 4 * 6, "val": 2 * 6}
    where = {split: {name.partition("[")[0] for name in part.names} for split, part in data.splits.items()}
    assert not where["train"] & where["val"]  # no subject in two splits
    assert {name.partition("[")[2] for name in data.splits["train"].names} == {f":,:,{n}]" for n in range(2, 8)}
    picture = data.splits["train"].raw(0)[0]
    assert picture.shape == (12, 10)
    assert divmod(int(picture.argmax()), 10) == (0, 0)  # the front is up, left is left
    side = build(tmp_path, val_fraction=0.3, options={"axis": 0, "window": [500, 1000]}).splits["train"]
    assert side.raw(0)[0].shape == (8, 12)
    assert side.names[0].endswith("[0,:,:]")
    top = next(index for index, name in enumerate(side.names) if "[5," in name)
    assert divmod(int(side.raw(top)[0].argmax()), 12) == (0, 5)  # the top is up


def test_volumes_with_masks_are_split_by_subject(tmp_path: Path, build: Build) -> None:
    generator = np.random.default_rng(0)
    for subject in range(5):
        values = generator.normal(100, 20, (16, 16, 6)).astype(np.float32)
        mask = np.zeros(values.shape, np.uint8)
        mask[4:9, 3:12, 1:4] = 1
        values[mask > 0] += 300
        save_volume(tmp_path / f"images/sub.{subject}.nii.gz", values)
        save_volume(tmp_path / f"masks/sub.{subject}_seg.nii", mask.astype(np.float64))  # as many tools save it
    options = {"mask_suffix": "_seg", "classes": {"rest": 0, "organ": 1}}
    data = build(tmp_path, name="masks", val_fraction=0.2, test_fraction=0.2, options=options, image_size=16)
    assert {split: len(part) for split, part in data.splits.items()} == {"train": 18, "val": 6, "test": 6}
    train = data.splits["train"]
    inside = [float(train.raw(n)[0][train.targets[n] == 1].float().mean()) for n in range(6) if train.targets[n].any()]
    assert len(inside) == 3
    assert min(inside) > 180  # image and mask lie on one another
    again = build(
        tmp_path, name="masks", options={**options, "slices": [1, 4]}, image_size=16, group_pattern=r"sub\.(\d)"
    )
    assert sum(map(len, again.splits.values())) == 15
    save_volume(tmp_path / "masks/sub.4_seg.nii", np.zeros((16, 16, 5), np.uint8))
    with pytest.raises(DataError, match=r"another number of slices .*sub\.4\.nii\.gz has 6, masks/sub\.4_seg\.nii 5"):
        build(tmp_path, name="masks", options=options, image_size=16)


def test_volumes_that_cannot_be_used_are_named(tmp_path: Path, build: Build) -> None:
    for number in range(3):
        save_volume(tmp_path / f"a/{number}.nii", np.zeros((4, 4, 3), np.uint8))
        save_volume(tmp_path / f"b/{number}.nii", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(DataError, match=r"a/0\.nii: it has 3 slices, none of them in \[5, None\]"):
        build(tmp_path, options={"slices": [5, None]})
    save_volume(tmp_path / "b/1.nii", np.zeros((4, 4, 3, 2), np.uint8))
    (tmp_path / "b/2.nii").write_bytes(b"no volume")
    with pytest.raises(DataError, match=r"b/1\.nii: it has 4 dimensions.*b/2\.nii: a NIfTI volume that cannot be read"):
        build(tmp_path)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: Build) -> None:
    path = save_dicom(tmp_path / "x/a.dcm", RAMP)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(MissingExtraError, match=r"pydicom is not installed: .*tlresearch\[medical\]"):
        decode(path.read_bytes(), 1)


def test_keys_that_do_not_fit_are_refused() -> None:
    data = "{name: digits, group_column: patient, group_pattern: 'p[0-9]+'}"
    with pytest.raises(ConfigError) as caught:
        load_text(f"data: {data}")
    assert "data.group_column: is only read by image_csv" in str(caught.value)
    assert "data.group_pattern: give it or data.group_column, not both" in str(caught.value)
    assert "data.group_pattern: needs a group in parentheses" in str(caught.value)
    with pytest.raises(ConfigError, match=r"data\.group_pattern: '\(p' is no regular expression"):
        load_text("data: {name: digits, group_pattern: '(p'}")
