"""Data sets from pairs of arrays and from PyTorch datasets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset, random_split

import tutelage
from tutelage.data import CropsAndFlips, Data, open_data
from tutelage.errors import TutelageWarning

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randint(256, (40, 8, 8, 3), generator=GENERATOR, dtype=torch.uint8)
LABELS = torch.arange(40) % 4
PAIR, TEST = (IMAGES, LABELS), (IMAGES[:8], LABELS[:8])


class Items(Dataset):
    """A dataset whose images and labels are computed by a function."""

    def __init__(self, make, size=40):
        self.make, self.size = make, size

    def __len__(self):
        return self.size

    def __getitem__(self, number):
        return self.make(number)


class Indexed:
    """A map-style dataset that does not inherit from ``torch.utils.data.Dataset``."""

    def __len__(self):
        return 40

    def __getitem__(self, number):
        return IMAGES[number].numpy(), int(LABELS[number])


def pil(number):
    return Image.fromarray(IMAGES[number].numpy()), int(LABELS[number])


def channels_first(number):
    return IMAGES[number].permute(2, 0, 1) / 255, LABELS[number]


def same(data: Data) -> None:
    assert torch.equal(data.train.inputs, IMAGES)
    assert torch.equal(data.train.labels, LABELS)
    assert torch.equal(data.test.inputs, IMAGES[:8])
    assert data.classes == tuple("0123")
    assert data.views == CropsAndFlips(pad=1, flip=True)


def test_arrays_and_tensors_are_accepted():
    same(Data.from_arrays(PAIR, TEST))
    same(open_data((list(PAIR), TEST)))
    same(Data.from_arrays(tuple(a.numpy() for a in PAIR), tuple(a.numpy() for a in TEST)))
    data = Data.from_arrays(
        (IMAGES / 255, LABELS.int()), TEST, TEST, classes=list("abcd"), name="mine", views=CropsAndFlips()
    )
    assert torch.equal(data.train.inputs, IMAGES)
    assert data.record == ({"rounded_to_uint8": ["train"]},)
    assert (data.classes, data.name, data.views, len(data.validation)) == (tuple("abcd"), "mine", CropsAndFlips(), 8)


@pytest.mark.parametrize(
    "value",
    [
        (PAIR, TEST),
        (TensorDataset(*PAIR), TensorDataset(*TEST)),
        [TensorDataset(*PAIR), TensorDataset(*TEST)],
        (TensorDataset(IMAGES.permute(0, 3, 1, 2), LABELS), TEST),
        (Items(pil), Items(pil, 8)),
        (Items(channels_first), Items(channels_first, 8)),
        (torch.utils.data.Subset(Items(pil), range(40)), TEST),
        (DataLoader(Items(pil), 7, shuffle=True, drop_last=True), DataLoader(TensorDataset(*TEST), 3)),
        (Indexed(), TEST),
    ],
    ids=["pairs", "TensorDataset", "list", "channels first", "PIL", "tensors", "Subset", "DataLoader", "no Dataset"],
)
def test_every_kind_of_dataset_gives_the_same_data(value):
    same(open_data(value))


def test_single_dataset_is_split_by_class():
    with pytest.warns(TutelageWarning, match=r"no test split: 8 of its 40 samples"):
        data = open_data(PAIR)
    assert data.test.labels.bincount().tolist() == [2] * 4
    assert torch.equal(data.train.inputs, IMAGES[data.train.index])
    assert data.record == ({"test_from": "train", "test_share": 0.2},)
    assert len(open_data(TensorDataset(*PAIR), test=0.5).test) == 20


def test_unlabelled_samples_stay_in_the_training_split():
    labels = LABELS.clone()
    labels[::2] = -1
    data = open_data((IMAGES, labels), test=0.2)
    assert (data.test.labels >= 0).all()
    assert len(data.test) == 4
    assert (data.train.labels == -1).sum() == 20


def test_the_class_names_of_a_dataset_are_used():
    train = Items(pil)
    train.classes = ["ant", "bee", "cat", "dog"]
    assert open_data((train, TEST)).classes == ("ant", "bee", "cat", "dog")
    assert open_data(tuple(random_split(train, [32, 8]))).classes == ("ant", "bee", "cat", "dog")
    assert open_data(tuple(map(DataLoader, random_split(train, [32, 8])))).classes == ("ant", "bee", "cat", "dog")


def test_repr_of_data_is_short():
    data = open_data((PAIR, TEST))
    assert repr(data) == "Data('arrays', 4 classes, 40 train, 8 test, images (3, 8, 8))"
    assert repr(data.train) == "Split(40 samples, images (40, 8, 8, 3), classes (40,))"


class Endless(IterableDataset):
    def __iter__(self):
        yield IMAGES[0], 0


@pytest.mark.parametrize(
    ("value", "pieces"),
    [
        (DataLoader(TensorDataset(*PAIR), collate_fn=list), ("DataLoader", "collate_fn", "loader.dataset")),
        (DataLoader(TensorDataset(*PAIR), sampler=[1, 2]), ("DataLoader", "list of its own", "loader.dataset")),
        (
            DataLoader(TensorDataset(*PAIR), sampler=RandomSampler(range(40), num_samples=9)),
            ("draws other samples", "loader.dataset"),
        ),
        (DataLoader(Endless()), ("Endless", "iterable", "map-style")),
        (Endless(), ("Endless", "iterable", "map-style")),
        ((IMAGES.permute(0, 3, 1, 2), LABELS), ("channels first", "NHWC", "(40, 3, 8, 8)")),
        ((IMAGES, LABELS.float()[:, None]), ("regression", "(40, 1)")),
        ((IMAGES, LABELS[:5]), ("(40, 8, 8, 3)", "(5,)")),
        (IMAGES, ("Tensor of shape (8, 8, 3)", "items are pairs")),
        ((IMAGES,), ("tuple", "no data set", "map-style")),
        ({"train": PAIR}, ("dict", "no data set")),
        (17, ("int 17", "no data set")),
        (None, ("NoneType", "no data set")),
        ((image for image in IMAGES), ("generator", "no data set")),
        (TensorDataset(IMAGES), ("item 0", "pairs (image, label)")),
        (TensorDataset(IMAGES[:0], LABELS[:0]), ("no test split", "0 samples")),
        (Items(pil, 0), ("Items", "no sample")),
        (Items(lambda n: {"image": IMAGES[n]}), ("item 0 of Items", "dict", "pairs")),
        (Items(lambda n: (IMAGES[n, : 4 + n % 2], 0)), ("2 shapes", "resize")),
        (Items(lambda n: (IMAGES[n], "cat")), ("labels of the train split", "integers")),
        (Items(lambda n: (IMAGES[n], [0, 1, 1])), ("multi-label", "one class per sample")),
        (Items(lambda n: (IMAGES[n], list(range(n + 1)))), ("labels of Items", "one class number per sample")),
        (Items(lambda n: (torch.randn(3, 8, 8), 0)), ("another image each time", "random transforms")),
        (Items(lambda n: 1 // 0), ("item 0 of Items", "division")),
        (Items(lambda n: (IMAGES[n].float() - 128, n % 4)), ("[0, 1]", "divide by 255")),
    ],
)
def test_unsupported_objects_are_refused_and_supported_ones_are_listed(refused, value, pieces):
    with refused(*pieces):
        open_data(value, test=0.2)


def test_invalid_pairs_are_refused(refused):
    with refused("train split", "not a pair (images, labels)"):
        Data.from_arrays(IMAGES)
    with refused("a test split already", "0.3"):
        Data.from_arrays(PAIR, TEST, test_share=0.3)


def test_network_is_trained_on_adapted_data_in_one_call(refused, tmp_path: Path):
    run = {"epochs": 1, "batch_size": 8, "device": "cpu", "precision": "float32"}
    first = tutelage.train("resnet8", (PAIR, TEST), out=tmp_path / "run", **run)
    assert tutelage.train("resnet8", (PAIR, TEST), out=tmp_path / "run", **run).metrics == first.metrics
    assert first.metrics["data"]["samples"] == {"train": 36, "validation": 4, "test": 8}
    splits = tutelage.train("resnet8", TensorDataset(*PAIR), test=0.5, **run).metrics["data"]["samples"]
    assert splits == {"train": 18, "validation": 2, "test": 20}
    loaders = DataLoader(TensorDataset(*PAIR), 8, shuffle=True), DataLoader(TensorDataset(*TEST), 8)
    assert tutelage.train("resnet8", loaders, **run).metrics["test"] == first.metrics["test"]
    with refused("test apply to data opened by name"):
        tutelage.train("resnet8", open_data((PAIR, TEST)), test=0.2, **run)


def test_path_objects_are_accepted_as_names(tmp_path: Path):
    np.savez(tmp_path / "d.npz", train_images=IMAGES, train_labels=LABELS, test_images=IMAGES, test_labels=LABELS)
    assert open_data(tmp_path / "d.npz").name == f"npz:{tmp_path / 'd.npz'}"
    for part in ("train", "test"):
        for number in range(8):
            file = tmp_path / "images" / part / str(number % 2) / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(IMAGES[number].numpy()).save(file)
    assert open_data(tmp_path / "images").name == f"folder:{tmp_path / 'images'}"
    result = tutelage.train("resnet8", tmp_path / "d.npz", epochs=1, noise=0.4, device="cpu", precision="float32")
    assert result.config.data == f"npz:{tmp_path / 'd.npz'}"
    assert result.config.noise == "0.4"
