"""Fingerprint: a digest of what decides a model's values. Its origin and author do not count.

For files these are the weights, the configuration of the model and that of its image processor. For a module in memory
they are its weights and buffers, its classes, hyper-parameters, functions and hooks, and its processor. A thing counts
where it is not certain that it decides no value: a cache missed costs time, but a cache wrongly hit gives a wrong
value.
"""

import enum
import functools
import json
import secrets
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmprobe.digests import digest, file_digest

if TYPE_CHECKING:
    import torch

    from fmprobe.autoencoder import Autoencoder

FORMAT = 1  # raise this number when the content of the digest changes
# Entries of a model in memory that say where it came from and who wrote it down.
ORIGIN = frozenset(
    {"_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "_diffusers_version", "_processor_class"}
)
# Entries of configuration files that are ignored: the origin, names of classes, and texts about the model.
BOOKKEEPING = ORIGIN | {
    "architectures",
    "finetuning_task",
    "hf_hub_filename",
    "hf_hub_id",
    "id2label",
    "label2id",
    "label_descriptions",
    "label_names",
    "license",
    "notes",
    "origin_url",
    "paper_ids",
    "paper_name",
    "problem_type",
    "processor_class",
    "tag",
    "url",
}
# Attributes of every torch module that are described separately or have no effect on a forward pass.
OF_TORCH = frozenset(
    {
        "_parameters",
        "_buffers",
        "_modules",
        "_non_persistent_buffers_set",
        "_backward_hooks",
        "_compiled_call_impl",
        "_backward_pre_hooks",
        "_is_full_backward_hook",
        "_state_dict_hooks",
        "_state_dict_pre_hooks",
        "_load_state_dict_pre_hooks",
        "_load_state_dict_post_hooks",
        "_is_hf_initialized",
        "training",  # `load` evaluates a module in evaluation mode, whatever its own mode is
        "warnings_issued",
    }
)
OF_THE_PROCESS = {"_io", "_thread", "_weakref", "io", "logging", "threading", "weakref"}  # no value depends on these
LIBRARIES = ("torch", "torchvision", "transformers", "timm", "diffusers", "accelerate", "numpy", "PIL", "fmprobe")
LIBRARIES += ("fmprobe_adapters",)  # what these hold is identified by its name
UNWRITTEN = ("__dict__", "__doc__", "__weakref__", "__module__", "__annotations__", "__firstlineno__")
PROCESS = secrets.token_hex(8)


def of_files(weights: Sequence[Path], config: Mapping[str, Any], processors: Iterable[Path | None] = ()) -> str:
    """Fingerprint of a checkpoint: its safetensors files, its config.json, and the files of its processor.

    A missing file of the processor is None.
    """
    written = [path and _without_bookkeeping(_read(path)) for path in processors]
    return digest("files", FORMAT, [file_digest(path) for path in weights], _without_bookkeeping(config), *written)


def of_memory(*things: Any) -> str:
    """Fingerprint of modules, processors and settings as they are at the time of the call.

    It is the same in another process with the same versions of Python and of the libraries. A thing whose content
    cannot be read counts as different in each process.
    """
    from torch.nn.modules import module as everywhere

    walk = _Walk()
    hooks = (everywhere._global_forward_pre_hooks, everywhere._global_forward_hooks)
    parts = [*things, *(list(of_one_kind.values()) for of_one_kind in hooks)]
    return digest("memory", FORMAT, [walk.describe(part) for part in parts])


def of_weights(module: "torch.nn.Module") -> str:
    """Fingerprint of a module's weights and buffers alone, by their names, for a module whose class is known."""
    state = module.state_dict()
    return digest("weights", FORMAT, sorted(state), *(state[name] for name in sorted(state)))


def is_of(recorded: str | None, model: "Autoencoder") -> bool:
    """Whether a decoder or a detector that recorded this fingerprint was made with `model`.

    Earlier versions recorded the commit of a hub model instead. It is accepted for exactly this commit as it was
    published.
    """
    if (recorded or None) == model.fingerprint:
        return True
    about = model.provenance
    as_published = about.get("random_weights") is None and about.get("processor") is None
    return recorded is not None and as_published and recorded == about.get("revision")


def _read(path: Path) -> Any:
    """The content of a JSON file. If it is not JSON, its bytes; refusing it is left to its reader."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return path.read_bytes()


def _without_bookkeeping(value: Any) -> Any:
    """A configuration without the entries that decide no value."""
    if isinstance(value, Mapping):
        return {str(k): _without_bookkeeping(v) for k, v in value.items() if k not in BOOKKEEPING}
    return [_without_bookkeeping(one) for one in value] if isinstance(value, list | tuple) else value


class _Walk:
    """Describes values as JSON can hold them, the same in every process; compound values by their digests."""

    def __init__(self) -> None:
        self.known: dict[int, Any] = {}
        self.kept: list[Any] = []  # keeps temporary objects alive, so that their ids are not used again
        loaded = [getattr(sys.modules.get(name), "__file__", None) for name in LIBRARIES]
        self.roots = (sysconfig.get_path("stdlib"), "<frozen", *(str(Path(one).parent) + "/" for one in loaded if one))

    def describe(self, value: Any) -> Any:
        if value is None or isinstance(value, bool | int | float | complex | str | bytes | range | Path):
            return [_name(type(value)), repr(value)]
        if id(value) not in self.known:
            self.known[id(value)] = f"within {len(self.kept)}"  # describes a value that contains itself
            self.kept.append(value)
            self.known[id(value)] = digest(self._compound(value))
        return self.known[id(value)]

    def _compound(self, value: Any) -> Any:
        import torch

        kind = _name(type(value))
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, torch.nn.Module):
            return self._module(value)
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, types.ModuleType):
            return [kind, value.__name__]
        if isinstance(value, enum.Enum):
            return [kind, value.name]
        if isinstance(value, dict):
            entries = [(k, v) for k, v in value.items() if not (isinstance(k, str) and k in ORIGIN)]
            return [kind, [[self.describe(k), self.describe(v)] for k, v in entries]]
        if isinstance(value, list | tuple):
            return [kind, [self.describe(one) for one in value]]
        if isinstance(value, set | frozenset):
            return [kind, sorted(map(str, map(self.describe, value)))]
        if isinstance(value, types.MethodType):
            return [kind, self.describe(value.__func__), self.describe(value.__self__)]
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, property | staticmethod | classmethod | functools.cached_property):
            parts = (getattr(value, name, None) for name in ("fget", "__func__", "func"))
            return [kind, [self.describe(part) for part in parts]]
        return self._object(value)

    def _tensor(self, tensor: "torch.Tensor") -> Any:
        import torch

        about = [_name(type(tensor)), str(tensor.dtype), list(tensor.shape)]
        # A quantised weight keeps the meaning of its numbers in attributes.
        held = {} if type(tensor) in (torch.Tensor, torch.nn.Parameter) else getattr(tensor, "__dict__", {})
        about.append(self._named({name: one for name, one in held.items() if name not in OF_TORCH}))
        if tensor.is_meta:
            return about
        plain = tensor.detach().dequantize() if tensor.is_quantized else tensor.detach()
        return [*about, digest((plain if plain.layout == torch.strided else plain.to_dense()).resolve_conj())]

    def _module(self, module: "torch.nn.Module") -> Any:
        hooks = ("_forward_pre_hooks", "_forward_hooks")
        attributes = {k: v for k, v in vars(module).items() if k not in OF_TORCH and not k.startswith(hooks)}
        tensors = [*module._parameters.items(), *module._buffers.items()]
        return [
            self.describe(type(module)),
            [[name, self.describe(tensor)] for name, tensor in tensors],
            [[name, self.describe(child)] for name, child in module._modules.items()],
            self._named(attributes),
            [self._hooks(vars(module), kind) for kind in hooks],
        ]

    def _hooks(self, held: Mapping[str, Any], kind: str) -> Any:
        """Hooks in their order, without their keys, which count all hooks that the process has ever had."""
        named = held.get(f"{kind}_with_kwargs", {})
        return [[self.describe(hook), key in named] for key, hook in held.get(kind, {}).items()]

    def _class(self, kind: type) -> Any:
        """A class by its name and by its own code and settings, with whatever was patched into a library's class."""
        held = {}
        for base in reversed(kind.__mro__):
            of_library = self._of_library(getattr(sys.modules.get(base.__module__), "__file__", None), base.__module__)
            for name, one in vars(base).items():
                function = getattr(one, "fget", None) or getattr(one, "__func__", one)
                code = getattr(function, "__code__", None)
                foreign = code is not None and not self._of_library(code.co_filename)
                if name not in UNWRITTEN and (foreign or not of_library or (name == "forward" and code is not None)):
                    held[name] = self.describe(one)
        return [_name(kind), held]

    def _function(self, function: types.FunctionType) -> Any:
        """A function by its name, code, defaults and closure, and by the globals that it reads.

        A library's function reads what its own library holds, which its name identifies.
        """
        code = function.__code__
        read: dict[str, Any] = {}
        if not self._of_library(code.co_filename):
            names = sorted(_names(code))
            read = {name: function.__globals__[name] for name in names if name in function.__globals__}
            for module in [one for one in read.values() if isinstance(one, types.ModuleType)]:
                if not self._of_library(getattr(module, "__file__", None), module.__name__):
                    held = vars(module)
                    read |= {f"{module.__name__}.{name}": held[name] for name in names if name in held}
        return [
            [function.__module__, "" if "<" in function.__qualname__ else function.__qualname__],
            _code(code),
            self.describe(function.__defaults__),
            self.describe(function.__kwdefaults__),
            [self.describe(_content(cell)) for cell in function.__closure__ or ()],
            self._named(read),
            self._named(vars(function)),
        ]

    def _object(self, value: Any) -> Any:
        """An object of any other class by what pickle would write of it, shallowly; else by its identity."""
        kind = type(value)
        if kind.__module__.split(".")[0] in OF_THE_PROCESS or isinstance(value, types.GeneratorType):
            return _name(kind)
        if callable(value) and hasattr(value, "__qualname__"):  # a function written in C
            owner = getattr(value, "__self__", None)
            owner = None if isinstance(owner, type | types.ModuleType) else self.describe(owner)
            named = [getattr(value, "__module__", None), value.__qualname__]
            return [_name(kind), named, owner, self.describe(getattr(value, "__wrapped__", None))]
        try:
            written = value.__reduce_ex__(2)
        except Exception:  # a class may raise any error to say that it cannot be pickled
            held = getattr(value, "__dict__", None)
            return [self.describe(kind), self._named(held) if held else f"{PROCESS} {id(value)}"]
        if isinstance(written, str):
            return [_name(kind), written]
        parts = [list(one) if isinstance(one, Iterator) else one for one in written]
        return [self.describe(kind), [self.describe(one) for one in parts]]

    def _named(self, values: Mapping[str, Any]) -> Any:
        return [[name, self.describe(values[name])] for name in sorted(values) if name not in ORIGIN]

    def _of_library(self, path: str | None, module: str = "") -> bool:
        """Whether a file, or else a module, belongs to an installed package or to Python's standard library."""
        if path is None:
            top = module.split(".")[0]
            return top in LIBRARIES or top in sys.stdlib_module_names
        return path.startswith(self.roots) or "site-packages" in path or "dist-packages" in path


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _code(code: types.CodeType) -> str:
    """The digest of compiled code, without where it was written."""
    constants = [_code(one) if isinstance(one, types.CodeType) else _constant(one) for one in code.co_consts]
    names = [list(one) for one in (code.co_names, code.co_varnames, code.co_freevars)]
    return digest(code.co_code, constants, names)


def _constant(value: Any) -> str:
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)


def _names(code: types.CodeType) -> set[str]:
    """The names that a function and the functions inside it may read from around them."""
    inner = [_names(one) for one in code.co_consts if isinstance(one, types.CodeType)]
    return set(code.co_names).union(*inner)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # the cell is still empty
        return None
