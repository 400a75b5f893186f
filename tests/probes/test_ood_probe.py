"""The comparison around the detector: splits, controls, the table."""

import warnings

import pytest
import torch
from support.maps import double_well
from support.ood import compare

import fmprobe
from fmprobe.probes.ood.controls import control_images
from fmprobe.probes.ood.split import content_hashes, split_by_content, without


def images(n, seed=0):
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_parts_never_overlap_and_do_not_depend_on_order():
    pictures = torch.cat([images(100), images(20)])  # the second twenty are the first of the hundred
    with pytest.warns(UserWarning, match="20 of 120"):
        parts, dropped = split_by_content(pictures, (2, 1, 1))
    assert dropped == 20
    assert [len(part) for part in parts] == [50, 25, 25]
    hashes = [set(content_hashes(part)) for part in parts]
    assert not hashes[0] & hashes[1] | hashes[0] & hashes[2] | hashes[1] & hashes[2]
    shuffled = images(100)[torch.randperm(100, generator=torch.Generator().manual_seed(1))]
    again, none = split_by_content(shuffled, (2, 1, 1))
    assert none == 0
    assert all(torch.equal(a, b) for a, b in zip(parts, again, strict=True))
    other, _ = split_by_content(shuffled, (2, 1, 1), seed=1)
    assert not torch.equal(other[0], parts[0])


def test_images_found_on_both_sides_are_dropped():
    with pytest.warns(UserWarning, match="3 images of clouds"):
        kept, dropped = without(torch.cat([images(3), images(4, seed=1)]), [images(10)], "clouds")
    assert dropped == 3
    assert torch.equal(kept, images(4, seed=1))


def test_controls_are_what_they_say():
    pictures = images(6)
    made = control_images(pictures, seed=3)
    assert set(made) == {"constant", "noise", "blurred", "inverted"}
    for control in made.values():
        assert control.shape == pictures.shape
        assert 0 <= control.min() <= control.max() <= 1
    assert (made["constant"].flatten(2).std(2) == 0).all()
    assert len(set(content_hashes(made["constant"]))) == 6
    assert torch.equal(made["inverted"], 1 - pictures)
    assert made["blurred"].flatten(1).var(1).max() < pictures.flatten(1).var(1).min()
    fewer = control_images(pictures[:2], seed=3)
    assert torch.equal(fewer["noise"], made["noise"][:2])


def smooth(n, seed=0):
    """Images of two colours from left to right."""
    g = torch.Generator().manual_seed(seed)
    ramp = torch.linspace(0, 1, 8)
    a, b = torch.rand(n, 3, 1, 1, generator=g), torch.rand(n, 3, 1, 1, generator=g)
    return (a * ramp + b * (1 - ramp)).expand(-1, -1, 8, -1).contiguous()


def model():
    return fmprobe.from_functions(
        lambda x: double_well(2 * x.flatten(1) - 1),
        lambda z: (z.reshape(-1, 3, 8, 8) + 1) / 2,
        image_shape=(3, 8, 8),
        latent_shape=(192,),
    )


def test_the_table_holds_every_score_and_tells_noise_from_ramps():
    facts = compare(model(), smooth(160), {"uniform": images(40, seed=5)}, bootstrap=50, steps=20)
    rows = {row["name"]: row for row in facts["scores"]}
    test = facts["split"]["test"]
    assert facts["sets"]["control: noise"]["images"] == test == 40
    assert {row["group"] for row in rows.values()} == {"trajectory", "part", "baseline", "two-sided", "profile"}
    assert "knn-all mean z normalised" in rows  # a weak score, which one split in two takes below 0.9
    for name in ("trajectory", "first", "knn-1 z", "mahalanobis z", "joined"):
        assert rows[name]["sets"]["uniform"]["auroc"] > 0.9, name
    counts = facts["histograms"]["trajectory"]["counts"]
    assert all(sum(values) == facts["sets"][name]["images"] for name, values in counts.items())
    assert facts["sets"]["in-distribution"]["accepted_share"] > 0.8
    assert facts["sets"]["uniform"]["accepted_share"] < 0.2


def test_a_comparison_is_repeated_to_the_last_digit_whatever_the_order():
    one = compare(model(), smooth(100), {"uniform": images(20, seed=5)}, steps=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = compare(model(), smooth(100).flip(0), {"uniform": images(20, seed=5)}, steps=5)
    assert one == other


def test_too_few_images_are_refused():
    with pytest.raises(fmprobe.InputError, match="too few"):
        compare(model(), smooth(40), {})
