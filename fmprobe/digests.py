"""SHA-256 digests of what decides a value. The key of every cache, resumed run and fingerprint is made here."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 2**24  # bytes of a tensor that are hashed at a time


def digest(*parts: Any) -> str:
    """SHA-256, in hexadecimal digits, of tensors, bytes and whatever JSON can hold, in this order.

    Tensors count with their dtype and shape, and None counts. Dicts with the same entries are equal in any order.

    Raises:
        TypeError: a part is none of these.
    """
    whole = hashlib.sha256()
    for part in parts:
        one = hashlib.sha256()
        _add(one, part)
        whole.update(one.digest())  # digests of fixed length, so that different lists of parts never look the same
    return whole.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _add(one: Any, part: Any) -> None:
    if isinstance(part, bytes):
        one.update(b"bytes\0" + part)
    elif hasattr(part, "untyped_storage"):
        _add_tensor(one, part)
    else:
        one.update(b"json\0" + json.dumps(part, sort_keys=True).encode())


def _add_tensor(one: Any, tensor: "Tensor") -> None:
    """Hash the dtype, the shape and the bytes in blocks, so that a large tensor is never copied whole."""
    import torch

    one.update(f"tensor\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
    flat = tensor.detach().reshape(-1)
    for block in flat.split(max(1, BLOCK // max(1, flat.element_size()))) if flat.numel() else ():
        one.update(block.cpu().contiguous().view(torch.uint8).numpy().data)
