"""A key changes with every part, its type, its shape and its place."""

import itertools

import pytest
import torch

from fmprobe.digests import digest


def test_every_part_its_type_shape_and_place_count():
    zeros = torch.zeros(4)
    lists = [
        (),
        (None,),
        (zeros,),
        (zeros.double(),),
        (zeros.reshape(2, 2),),
        (zeros[:2], zeros[2:]),
        (zeros[2:], zeros[:1], zeros[:1]),
        (b"\0" * 16,),
        (0,),
        (False,),
        ("0",),
        ({"a": 0},),
        ({"a": None},),
        ("a", "b"),
        ("ab",),
        (["a", "b"],),
    ]
    keys = [digest(*parts) for parts in lists]
    for (i, a), (j, b) in itertools.combinations(enumerate(keys), 2):
        assert a != b, (lists[i], lists[j])


def test_equal_content_has_one_key():
    a = torch.arange(6.0).reshape(2, 3)
    assert digest(a.T) == digest(a.T.contiguous())
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest(a.bfloat16()) == digest(a.bfloat16().clone())


def test_what_is_neither_is_refused():
    with pytest.raises(TypeError):
        digest(object())
