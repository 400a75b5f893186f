"""Classes of the images of a source: each image keeps its own, whatever holds them."""

import json
from importlib.resources import files

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Pillow
from support.runs import finished

import fmprobe
from fmprobe.images import load_images, load_labels
from fmprobe.probes.ood.probe import Sets
from fmprobe.probes.ood.table import BY_NAME

DEMO = str(files("fmprobe.demo") / "vit-mae-digits")
SHAPE = (1, 8, 8)
GREYS = np.arange(10, 250, 12, dtype=np.uint8)  # image i is of one grey, which says which image it is
NAMES = [("cat", "ant", "bee")[i % 3] for i in range(len(GREYS))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same images and classes in a folder of folders, in an .npz file and in a parquet file."""
    place = tmp_path_factory.mktemp("classes")
    images = np.broadcast_to(GREYS[:, None, None], (len(GREYS), 8, 8))
    for i, name in enumerate(NAMES):
        (place / "tree" / name).mkdir(parents=True, exist_ok=True)
        Pillow.fromarray(np.ascontiguousarray(images[i])).save(place / "tree" / name / f"{i:02}.png")
    (place / "flat").mkdir()
    Pillow.fromarray(np.ascontiguousarray(images[0])).save(place / "flat" / "0.png")
    numbers, fewer = np.array([sorted(set(NAMES)).index(name) for name in NAMES]), np.arange(3)
    objects = np.array([{}] * len(NAMES), dtype=object)
    np.savez(
        place / "all.npz", images=images, y=np.array(NAMES), n=numbers, fewer=fewer, means=numbers / 2, objects=objects
    )
    cells = [{"path": str(place / "tree" / name / f"{i:02}.png")} for i, name in enumerate(NAMES)]
    rows = {"image": cells, "label": NAMES, "word": NAMES, "weight": [0.5] * len(NAMES), "none": [None] * len(NAMES)}
    kinds = Features(
        image=Image(),
        label=ClassLabel(names=["ant", "bee", "cat"]),
        word=Value("string"),
        weight=Value("float32"),
        none=Value("int64"),
    )
    Dataset.from_dict(rows, kinds).to_parquet(place / "all.parquet")
    return place


@pytest.mark.parametrize("n", [None, 7])
@pytest.mark.parametrize(
    ("source", "labels"),
    [("tree", "folders"), ("all.npz", "y"), ("all.npz", "n"), ("all.parquet", "label"), ("all.parquet", "word")],
)
def test_each_image_has_its_own_class(folder, source, labels, n):
    source = str(folder / source)
    images, classes = load_images(source, n, image_shape=SHAPE), load_labels(source, labels, n)
    shown = [int(np.argmin(abs(GREYS / 255 - float(image.mean())))) for image in images]
    assert classes.tolist() == [sorted(set(NAMES)).index(NAMES[i]) for i in shown]
    assert len(classes) == (n or len(NAMES))


@pytest.mark.parametrize(
    ("source", "labels", "said"),
    [
        ("tree", "label", "is a folder of images: its classes are 'folders', not label"),
        ("flat", "folders", "a single class: expected two or more"),
        ("all.npz", "z", "has no classes 'z': name one of images, y, n"),
        ("all.npz", "fewer", "holds 20 images, and 'fewer' 3 values"),
        ("all.npz", "means", r"means is float64 \(20,\): expected a number or a name"),
        ("all.npz", "images", r"images is uint8 \(20, 8, 8\): expected a number or a name"),
        ("all.npz", "objects", r"objects is object .*: expected a number or a name"),
        ("all.parquet", "z", "has no column 'z' of classes: name one of image, label"),
        ("all.parquet", "weight", "holds Value.*: expected a number or a name"),
        ("all.parquet", "none", "holds Value.*: expected a number or a name"),
        ("procedural", "label", "procedural holds no classes of its images: leave 'label' out"),
    ],
)
def test_what_holds_no_classes_is_said_in_one_line(folder, source, labels, said):
    with pytest.raises(fmprobe.InputError, match=said) as caught:
        load_labels(source if source == "procedural" else str(folder / source), labels)
    assert "\n" not in str(caught.value)


def test_classes_follow_their_images_into_the_part_that_is_fitted_on():
    greys = torch.arange(100) / 100
    sets = Sets.split(greys[:, None, None, None].expand(100, *SHAPE), {}, False, 0, np.arange(100) % 7)
    assert sets.labels == [round(100 * float(image.mean())) % 7 for image in sets.fit]
    assert len(set(sets.labels or ())) == 7


@pytest.mark.parametrize(("labels", "said"), [(np.arange(100), "50 classes"), (np.zeros(100, int), "1 class:")])
def test_classes_that_nothing_can_be_learned_from_end_before_the_fit(labels, said):
    with pytest.raises(fmprobe.InputError, match=said):
        Sets.split(torch.rand(100, *SHAPE), {}, False, 0, labels)


@pytest.mark.parametrize("left", [0, 1])
def test_a_set_that_is_in_distribution_ends_before_the_fit(left):
    known = torch.rand(100, *SHAPE)
    other = torch.cat([known[:30], torch.rand(left, *SHAPE)])
    with pytest.raises(fmprobe.InputError, match=f"far has {left} images that are not in-distribution"):
        Sets.split(known, {"far": other}, False, 0)


@pytest.mark.parametrize("n", [0, -3, 21])
def test_a_number_of_images_that_there_is_not_has_no_classes(folder, n):
    with pytest.raises(fmprobe.InputError, match="expected 1 to 20"):
        load_labels(str(folder / "tree"), "folders", n)


def test_the_comparison_has_the_scores_that_need_classes(tmp_path):
    from sklearn.datasets import load_digits

    digits, classes = load_digits(return_X_y=True)
    digits = np.round(digits.reshape(-1, 8, 8) / 16 * 255).astype(np.uint8)[:80]
    np.savez(tmp_path / "known.npz", images=digits, y=classes[:80])
    np.savez(tmp_path / "other.npz", images=digits[:20].transpose(0, 2, 1)[:, ::-1])
    given = ["ood", DEMO, "--data", tmp_path / "known.npz", "--ood", f"turned={tmp_path / 'other.npz'}"]
    given += ["--max-steps", 2, "--images", 80, "--ood-images", 16, "--no-controls", "--device", "cpu"]
    scores = {}
    for labels in ((), ("--labels", "y")):
        done = finished(*given, *labels, "-o", tmp_path / f"run{len(labels)}")
        assert done.returncode == 0, done.stderr
        results = json.loads((tmp_path / f"run{len(labels)}" / "results.json").read_text())
        assert results["protocol"].get("labels") == (labels[1] if labels else None)
        scores[len(labels)] = {row["name"]: row for row in results["ood"]["scores"]}
    added = scores[2].keys() - scores[0].keys()
    assert added
    assert added == {name for name in BY_NAME if name.startswith("rmd") and name in scores[2]}
    again = finished(*given, "--labels", "images", "-o", tmp_path / "third")
    assert (again.returncode, (tmp_path / "third").exists()) == (2, False)
