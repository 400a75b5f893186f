"""Tensors that lie in a file: the part that has been read or written need not stay in memory."""

import mmap
from weakref import WeakValueDictionary

from torch import Tensor

_files: WeakValueDictionary[int, mmap.mmap] = WeakValueDictionary()  # by the address of a tensor's first number


def lies_in(tensor: Tensor, file: mmap.mmap) -> Tensor:
    """Register that the memory of a tensor is `file`, and return the tensor."""
    _files[tensor.untyped_storage().data_ptr()] = file
    return tensor


def forget(tensor: Tensor) -> None:
    """Give back the memory of a tensor that lies in a file, or of a part of such a tensor.

    Its numbers stay in the file, or on their way there, and are read again when they are needed. Any other tensor is
    left alone.
    """
    file = _files.get(tensor.untyped_storage().data_ptr())
    if file is not None and hasattr(mmap, "MADV_DONTNEED"):
        file.madvise(mmap.MADV_DONTNEED)
