"""Paths of a machine become names, and nothing else changes."""

import json

import pytest

from fmprobe.places import places_in, without_places

# What a text says, and what is left of it.
NAMED = {
    "/home/john doe/my models/dino": "dino",
    "/data/pictures/": "pictures",
    "/data/set.npz:train#image": "set.npz:train#image",
    "~/models/dino": "dino",
    "~john/models/dino": "dino",
    "local-dir:/home/john/dino": "dino",
    "file:///home/john/dino": "dino",
    "C:\\Users\\john\\dino": "dino",
    "C:/Users/john/dino": "dino",
    "\\\\server\\share\\dino": "dino",
    "x=/home/john/dino": "x=dino",
    "fmprobe probe '/home/john doe/dino' --out=/tmp/x -n 4": "fmprobe probe dino --out=x -n 4",
    "fmprobe ood m --ood 'far=/home/john doe/b.npz:x'": "fmprobe ood m --ood far=b.npz:x",
    "9 images of /home/john doe/pics; every tenth of 10 was held": "9 images of pics; every tenth of 10 was held",
    "cannot read (/home/john/a.png): skipped": "cannot read (a.png): skipped",
    'see /home/john/a.json, then "/tmp/b".': 'see a.json, then "b".',
    "at:/home/john/a": "at:a",
}
KEPT = [
    "facebook/dinov2-small",
    "timm/resnet50.a1_in1k",
    "hf-hub:ORG/NAME",
    "https://arxiv.org/abs/2505.22785",
    "models/dino",
    "./models/dino",
    "||E(D(z)) - z|| / ||z||",
    "h / (h + 1) of new ones, and n/2",
    "f(z)/2",
    "<b>bold</b>",
    "train and/or test",
    "12 of the 16 starts are chaotic: 0.3 nats/step",
    "~5 seconds",
    "",
    "fmprobe probe facebook/dinov2-small -n 4",
    "fmprobe 'broken",
    "two\nlines",
]


@pytest.mark.parametrize("text", NAMED)
def test_an_absolute_path_is_named_by_its_last_part_wherever_it_stands(text):
    content = [text, {"a": {text: 1}}, (text, None, 2.5, True)]
    known = set(places_in(content))
    name = NAMED[text]
    assert without_places(content, known) == [name, {"a": {name: 1}}, [name, None, 2.5, True]]
    assert without_places(name) == name


@pytest.mark.parametrize("text", KEPT)
def test_what_is_no_absolute_path_stays(text):
    content = {"a": [text, {text: text}]}
    assert set(places_in(content)) == set()
    assert without_places(content) == content


def test_a_path_with_spaces_is_known_in_a_sentence_by_where_it_stands_alone():
    content = {"model": "/home/john doe/my dino", "said": "the features of /home/john doe/my dino vary"}
    found = without_places(content, places_in(content))
    assert found == {"model": "my dino", "said": "the features of my dino vary"}
    assert "john" not in json.dumps(found)


@pytest.mark.parametrize("name", ["acme/data-digits", "acme/data", "facebook/data2vec", "https://x.y/data/a"])
def test_a_known_path_is_not_found_within_another_name(name):
    assert without_places({"source": "/data", "said": f"images of {name}"}, ["/data"]) == {
        "source": "data",
        "said": f"images of {name}",
    }
