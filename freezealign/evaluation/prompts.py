"""What is asked for each class: its name in templates, or descriptions of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from freezealign.evaluation.base import by_language, embed, owners_mean
from freezealign.inputs import shorten

ClassNames = Sequence[str | None]
Template = str | Callable[[str], str]
Templates = Sequence[Template]


class ClassPrompts:
    """The prompts of each class in each language, and the vectors a model makes of them.

    A class vector is the mean of its prompts' unit vectors, made a unit vector again (Radford et al. 2021).

    Args:
        class_names: The C names, ``None`` where a language has none; or such a list for each language.
        templates: Prompts with ``{}`` (or ``{c}``) where the name goes, or functions from the name to the prompt, as
            open_clip has them; or such a list for each language.
        descriptions: For each class name what it looks like, in sentences that replace the templates (Menon and
            Vondrick 2023; VDT in Maniparambil et al. 2023). Names that it lacks are asked with the templates.
        renormalize: ``False`` leaves the mean as it is, as the paper's code does.

    Raises:
        ValueError: If a name, template or description is no text, a template has no place for the name, a language has
            no templates, languages have different numbers of classes, or no class has a description.
    """

    def __init__(
        self,
        class_names: ClassNames | Mapping[str, ClassNames],
        templates: Template | Templates | Mapping[str, Templates] = ("{}",),
        descriptions: Mapping[str, str | Sequence[str]] | None = None,
        renormalize: bool = True,
    ) -> None:
        self.class_names: dict[str, ClassNames] = by_language(class_names)
        some = [templates] if isinstance(templates, str) or callable(templates) else templates
        self.templates = by_language(some) if isinstance(some, Mapping) else dict.fromkeys(self.class_names, some)
        described = {} if descriptions is None else descriptions
        if not isinstance(described, Mapping):
            raise ValueError(f"descriptions are a dict from class name to sentences, got {shorten(described)}.")
        self.descriptions = {key: [texts] if isinstance(texts, str) else texts for key, texts in described.items()}
        self.renormalize = renormalize
        self._check_names()
        self._check_prompts()

    @property
    def languages(self) -> list[str]:
        """Codes of the languages."""
        return list(self.class_names)

    @property
    def count(self) -> int:
        """The number of classes."""
        return len(next(iter(self.class_names.values())))

    @property
    def protocol(self) -> str:
        """How class vectors are made, in words."""
        counts = ", ".join(str(len(self.templates[language])) for language in self.languages)
        asked = f"templates: {counts}"
        if self.descriptions:
            asked = f"descriptions of {len(self._described())} of {self.count} classes; {asked} for the others"
        return f"class vector = mean over prompts, {'' if self.renormalize else 'not '}re-normalised; {asked}"

    def named(self, language: str) -> list[int]:
        """Return which classes have a name in ``language``."""
        return [index for index, name in enumerate(self.class_names[language]) if name]

    def prompts(self, language: str) -> list[list[str]]:
        """Return the prompts of each class that :meth:`named` gives."""
        names = [str(self.class_names[language][index]) for index in self.named(language)]
        templates = self.templates[language]
        return [
            list(self.descriptions.get(name, ())) or [_filled(template, name) for template in templates]
            for name in names
        ]

    def vectors(self, model: Any, language: str, **options: Any) -> Tensor:
        """Return the vectors (C', d) of the classes that :meth:`named` gives; all prompts are encoded together."""
        prompts = self.prompts(language)
        texts = [text for some in prompts for text in some]
        owners = [owner for owner, some in enumerate(prompts) for _ in some]
        embeddings = embed(model, "text", texts, **options)
        means = owners_mean(embeddings, torch.tensor(owners, device=embeddings.device), len(prompts))
        return normalize(means, dim=-1) if self.renormalize else means

    def _described(self) -> set[str | None]:
        return {name for names in self.class_names.values() for name in names if self.descriptions.get(str(name))}

    def _check_names(self) -> None:
        for language, names in self.class_names.items():
            check_texts(names, "class name", f" in {language}" * bool(language), lambda name: name is None)
            if not self.named(language):
                raise ValueError(f"no class has a name{f' in {language}' * bool(language)}.")
            if len(names) != self.count:
                raise ValueError(
                    f"{len(names)} class names in '{language}' but {self.count} in '{self.languages[0]}'; put None "
                    "where a language has no name."
                )
            if not self.templates.get(language):
                raise ValueError(
                    f"there are names in '{language}', but no templates; there are {list(self.templates)}."
                )

    def _check_prompts(self) -> None:
        for language, templates in self.templates.items():
            check_texts(templates, "template", f" in {language}" * bool(language), callable)
            for template in templates:
                try:
                    has_place = "\0" in _filled(template, "\0")
                except (KeyError, IndexError, ValueError):
                    has_place = False
                if not has_place:
                    raise ValueError(
                        f"the template {template!r} needs {{}} or {{c}} where the class name goes, and no other."
                    )
        for name, texts in self.descriptions.items():
            check_texts(texts, "description", f" of {name!r}")
        if self.descriptions and not self._described():
            raise ValueError(
                f"none of the {self.count} classes has a description; they are for {list(self.descriptions)[:3]}…"
            )


def check_texts(values: Any, what: str, where: str, other: Callable[[Any], bool] = lambda value: False) -> None:
    """Raise a ``ValueError`` unless ``values`` are a list of texts, or of what ``other`` allows."""
    if isinstance(values, str):
        raise ValueError(f"{what}s are a list, and {values!r} is a text: pass [{values!r}, …].")
    if isinstance(values, (bytes, Mapping)) or not isinstance(values, Iterable):
        raise ValueError(f"the {what}s{where} are a list of texts, got {shorten(values)}.")
    for index, value in enumerate(values):
        if not isinstance(value, str) and not other(value):
            kind = type(value).__name__
            raise ValueError(f"{what} {index}{where} is {shorten(value)} ({kind}), not a text; write it in quotes.")


def _filled(template: Template, name: str) -> str:
    return template(name) if callable(template) else template.format(name, c=name)
