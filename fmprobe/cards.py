"""Cards: the README.md of what is shared, with the metadata that the hub reads."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from fmprobe.errors import InputError
from fmprobe.places import name_of, without_places

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
DATA_SET = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*", re.ASCII)
TASK = "image-feature-extraction"  # the hub's name of the task that comes nearest
HERE = "THIS_FOLDER"  # in the snippet of a card that was not pushed
UNDECIDED = "No licence is stated: whoever shares this decides on one, and whoever uses it asks for it."


class Metric(NamedTuple):
    """A figure of an artefact: its name, its value, and the images that it was measured on, in words."""

    name: str
    value: float | None
    on: str


class Base(NamedTuple):
    """The model that an artefact was made of or for, with the commit of the hub that it was loaded at, if any."""

    name: str
    revision: str | None = None

    @property
    def on_hub(self) -> bool:
        """Whether the name is one of the hub: a model of the hub is always recorded with its commit."""
        return bool(self.revision) and HUB_ID.fullmatch(self.name) is not None

    @property
    def shown(self) -> str:
        """The name, which for a folder is that of the folder alone."""
        return self.name if self.on_hub else name_of(self.name)

    def load(self, **how: Any) -> str:
        """The call of `fmprobe.load` that loads it; arguments that are None are left out."""
        how = {"revision": self.revision if self.on_hub else None, **how}
        given = [f"{key}={json.dumps(value)}" for key, value in how.items() if value is not None]
        remark = "" if self.on_hub else "  # a folder: give its place on your machine"
        return f"fmprobe.load({', '.join([json.dumps(self.shown), *given])}){remark}"


class Licence(NamedTuple):
    """A licence by its name on the hub; `name` and `link` describe one that the hub calls "other"."""

    id: str | None = None
    name: str | None = None
    link: str | None = None
    of: str | None = None  # the base model that it is taken over from

    @property
    def said(self) -> str:
        if self.id is None:
            return UNDECIDED
        shown = f"The licence is {self.name or self.id}" + (f" ({self.link})" if self.link else "")
        return f"{shown}, that of the base model `{self.of}`." if self.of else f"{shown}."


@dataclass(frozen=True)
class Card:
    """What the card of an artefact says.

    Attributes:
        title: the heading.
        text: what the artefact is, in Markdown.
        load: Python that loads it, in which `{source}` stands for its name and revision.
        tags: tags beside "fmprobe".
        bases: the models that it was made of or for.
        sources: image sources that it was made with; those of the hub are listed.
        metrics: its figures. Those that are not finite are left out.
    """

    title: str
    text: str
    load: str
    tags: Sequence[str] = ()
    bases: Sequence[Base] = ()
    sources: Iterable[Any] = ()
    metrics: Sequence[Metric] = field(default=())

    def render(
        self, repository: str | None, revision: str | None, licence: Licence, known: Iterable[str]
    ) -> "ModelCard":
        """The card itself, without absolute paths.

        Args:
            repository: the hub id that it is pushed to, if it is.
            revision: the branch there.
            licence: the licence; none is made up.
            known: absolute paths that the text may hold.
        """
        from huggingface_hub import EvalResult, ModelCard, ModelCardData

        figures = [one for one in self.metrics if one.value is not None and math.isfinite(one.value)]
        title, text = (without_places(one, known) for one in (self.title, self.text))
        data = ModelCardData(
            base_model=list(dict.fromkeys(base.name for base in self.bases if base.on_hub)) or None,
            datasets=data_sets(self.sources) or None,
            library_name="fmprobe",
            license=licence.id,
            license_name=licence.name,
            license_link=licence.link,
            metrics=list(dict.fromkeys(one.name for one in figures)) or None,
            model_name=(repository or title).rpartition("/")[2] if figures else None,
            tags=["fmprobe", "model_hub_mixin", *self.tags],
            eval_results=[
                EvalResult(
                    task_type=TASK,
                    dataset_type=(data_sets(self.sources) or ["images"])[0],
                    dataset_name=without_places(one.on, known),
                    dataset_config=without_places(one.on, known),  # by which the hub tells sets apart
                    metric_type=one.name,
                    metric_value=float(f"{one.value:.6g}"),
                )
                for one in figures
            ]
            or None,
        )
        source = f'"{repository}", revision="{revision or "main"}"' if repository else f'"{HERE}"'
        load = self.load.replace("{source}", source)
        pinned = "A commit in place of the branch pins what is loaded.\n\n" if repository else ""
        return ModelCard(
            f"---\n{data.to_yaml()}\n---\n\n# {title}\n\n{text.strip()}\n\n## Load it\n\n{pinned}"
            f"```python\n{load.strip()}\n```\n\n## Licence\n\n{licence.said}\n"
        )


def data_sets(sources: Iterable[Any]) -> list[str]:
    """The data sets of the hub among sources of images, `ORG/NAME:split#column`; nothing that lies on a machine."""
    found = []
    for source in sources:
        name = str(source or "").removeprefix("streaming:").partition("#")[0].partition(":")[0]
        if DATA_SET.fullmatch(name) and name != "procedural":
            found.append(name)
    return list(dict.fromkeys(found))


def check_licence(licence: Any) -> None:
    """Raise InputError where this cannot be the name of a licence."""
    if licence is not None and (not isinstance(licence, str) or not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence)):
        raise InputError(f"license={licence!r}: expected a licence by its name on the hub, such as apache-2.0 or other")
