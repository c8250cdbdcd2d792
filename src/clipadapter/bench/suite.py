"""A suite: a study as a TOML file that states only what differs from the defaults. The papers' suites are here."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from typing_extensions import Self

from clipadapter.bench.methods import default_heads
from clipadapter.bench.protocols import list_protocols, protocol_rules
from clipadapter.bench.suite_files import read_suite
from clipadapter.errors import DataError, InputError, brief
from clipadapter.features import PER_EPOCH
from clipadapter.heads import Head, create_head, head_info, list_heads
from clipadapter.persistence.format import FrozenModel
from clipadapter.utils.files import check_file_name
from clipadapter.utils.registry import unknown

Scalar = bool | int | float | str
Recipe = Literal["official", "paper"]

ALL = 1_000_000
"""The number of shots per class for "all" in a suite: more than any class has, so that each gives all pictures."""
OWN = "own"  # in place of the name of a preset: the preset of the data set
ShotCount = Annotated[int, BeforeValidator(lambda value: ALL if value == "all" else value)]


class Variant(FrozenModel):
    """A head with some parameters, or at several values of one parameter.

    Args:
        head: name as in ``clipadapter heads``.
        label: its name in tables; made of the name and the parameters if empty.
        preset: published parameters to start from; "own" for those of the data set, where the head has them, and else
            those of the recipe, or the defaults.
        recipe: start from the parameters of the authors' code, "official", or of the paper, "paper".
        params: parameters that differ from the default.
        vary: values of one parameter, as ``vary = { alpha = [0.2, 0.6] }``: each value is a row of the tables, and the
            figure "axis" plots accuracy over the values.
        mode: in streams of tasks "stream": the head continues from its state, and gets only the shots of the new task;
            "joint": it is fitted again to the shots of all tasks so far. None: "stream" if the head can.
    """

    head: str
    label: str = ""
    preset: str | None = None
    recipe: Recipe | None = None
    params: dict[str, Scalar] = Field(default_factory=dict)
    vary: dict[str, Annotated[list[Scalar], Field(min_length=1)]] = Field(default_factory=dict, max_length=1)
    mode: Literal["stream", "joint"] | None = None

    def each(self) -> list[Self]:
        """A variant for each value of the parameter that varies, or this one."""
        values = [(name, value) for name, own in self.vary.items() for value in own]
        return [self.model_copy(update={"vary": {name: [value]}}) for name, value in values] or [self]

    def for_data(self, name: str) -> Self:
        """The variant for one data set: with its preset in place of "own"."""
        if self.preset != OWN:
            return self
        has_preset = name in head_info(self.head).cls.presets
        changes = {"preset": name, "recipe": None} if has_preset else {"preset": None}
        return self.model_copy(update={**changes, "label": self.title})

    @property
    def value(self) -> float | str | None:
        """The value of the parameter that varies, if one does."""
        (value,) = next(iter(self.vary.values()), [None])
        return value if value is None or isinstance(value, str) else float(value)

    @property
    def title(self) -> str:
        """The label, or one made of what differs."""
        if self.label:
            return self.label
        if self.vary:
            return " ".join([*([self.recipe] if self.recipe else []), *(f"{k}={v[0]}" for k, v in self.vary.items())])
        parts = [self.preset or "", self.recipe or ""]
        parts += [f"{key}={value}" for key, value in self.params.items()] + [self.mode or ""]
        details = ", ".join(part for part in parts if part)
        return f"{self.head} ({details})" if details else self.head


HeadEntry = Annotated[Variant, BeforeValidator(lambda entry: {"head": entry} if isinstance(entry, str) else entry)]


class Order(FrozenModel):
    """An order of tasks.

    Args:
        name: its name in tables.
        data: data sets in their order; empty for the order in which the user named them.
        shuffle: "none"; "classes": the seed shuffles the classes within each data set, and the order of the data sets
            stays; "all": the seed shuffles the tasks, too.
    """

    name: str
    data: list[str] = Field(default_factory=list)
    shuffle: Literal["none", "classes", "all"] = "none"


ORDERS = {
    "given": Order(name="as given"),
    "classes": Order(name="classes by seed", shuffle="classes"),
    "seed": Order(name="by seed", shuffle="all"),
}
"""Orders for any data sets."""


class StreamRules(FrozenModel):
    """How data sets become a stream of tasks, and among which classes heads predict.

    Args:
        task_known: heads predict among the classes of the picture's task (MTIL); else among those of all tasks
            (X-TAIL).
        classes_per_task: about how many classes a task has; each data set is divided as evenly as possible. 0 makes
            each data set one task.
        orders: of the tasks; there is a stream for each.
        same_names: how classes of several data sets with the same name are treated. "share": they are one class,
            learned from the shots of all, and its text is the mean of theirs; "apart": each is a separate class,
            called "NAME (DATA SET)".
    """

    task_known: bool = False
    classes_per_task: int = Field(default=0, ge=0)
    orders: list[Order] = Field(default_factory=lambda: [ORDERS["given"]], min_length=1)
    same_names: Literal["share", "apart"] = "share"

    def title(self, order: Order) -> str:
        """The name of a stream in tables. Plans store it, so it must not change."""
        return order.name + (f", about {self.classes_per_task} classes a task" if self.classes_per_task else "")


class Prompts(FrozenModel):
    """How sentences are made of class names.

    Args:
        label: their name in tables.
        templates: name of a template set, or texts; ``"own"`` for those of the data set's papers.
        descriptions: use the sentences of the file given with ``--descriptions`` (CuPL form).
    """

    label: str
    templates: str | list[str] = "own"
    descriptions: bool = False


class Suite(FrozenModel):
    """What is measured, as a TOML file says it: heads, data sets, shots and seeds.

    Args:
        name: the file's name. Files of records, tables and plots are called by it.
        title: one line.
        question: the question that it answers.
        source: the paper's table or figure.
        protocol: how the data sets become fits and test parts; a name of `list_protocols`, such as "few-shot" or
            "cross-validation".
        options: of the protocol, such as ``folds = 10`` of "cross-validation".
        figure: the plot of the report: "curves" over shots; "axis", over the varied parameter; "bars"; "efficiency",
            accuracy over seconds of a fit; or "projection", features in the plane.
        heads: names as in ``clipadapter heads``, ``"all"`` for every head, and tables of heads with parameters.
        recipe: of all heads that have it and name no other one: "official" or "paper".
        prompts: how class text is made; by default with the data set's own templates.
        shots: shots per class; in streams also "all".
        seeds: each draws other shots; tables have mean and standard deviation over them.
        views: views of each picture, the plain one included; "per-epoch" gives each head the plain one and a view for
            each of its epochs, and a head without epochs the plain one alone.
        crop: crop scale of the views: "tip" for 0.5 to 1 of the picture's area, "coop" for 0.08 to 1.
        data: data sets, if the suite is about certain ones.
        encoders: encoders, likewise.
        stream: how streams of tasks are made; for the protocol "stream" only.
    """

    name: Annotated[str, AfterValidator(check_file_name)]
    title: str
    question: str = ""
    source: str = ""
    protocol: str = "few-shot"
    options: dict[str, int] = Field(default_factory=dict)
    figure: Literal["curves", "axis", "bars", "efficiency", "projection"] = "curves"
    heads: list[HeadEntry] = Field(min_length=1)
    recipe: Recipe | None = None
    prompts: list[Prompts] = Field(default_factory=lambda: [Prompts(label="")], min_length=1)
    shots: list[ShotCount] = Field(default_factory=lambda: [1, 2, 4, 8, 16], min_length=1)
    seeds: list[int] = Field(default_factory=lambda: [1, 2, 3], min_length=1)
    views: Annotated[int, Field(ge=1, le=1000)] | Literal["per-epoch"] = 1
    crop: Literal["tip", "coop"] = "tip"
    data: list[str] = Field(default_factory=list)
    encoders: list[str] = Field(default_factory=list)
    stream: StreamRules = Field(default_factory=StreamRules)

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if min(self.shots) < 1:
            raise ValueError("shots must be 1 or more")
        if self.protocol not in list_protocols():
            raise ValueError(str(unknown("protocol", self.protocol, list_protocols())))
        protocol = protocol_rules(self.protocol)
        if ALL in self.shots and not protocol.accepts_all_shots:
            raise ValueError(f'shots = "all" does not suit protocol = "{self.protocol}"')
        if not self.is_stream and (self.stream != StreamRules() or any(one.mode for one in self.heads)):
            raise ValueError('stream and mode are only for protocol = "stream"')
        if unknown_options := sorted(self.options.keys() - protocol.options.keys()):
            listed = ", ".join(protocol.options) or "none"
            raise ValueError(f"options of protocol '{self.protocol}' are {listed}, not {', '.join(unknown_options)}")
        if self.is_stream and self.views == PER_EPOCH:
            raise ValueError('views = "per-epoch" does not work for a stream of tasks: give a number of views')
        return self

    @property
    def is_stream(self) -> bool:
        """Whether the suite has streams of tasks."""
        return self.protocol == "stream"

    def all_variants(self) -> list[Variant]:
        """Every head of the suite with its parameters, each title once."""
        protocol = protocol_rules(self.protocol)
        variants: list[Variant] = []
        for entry in self.heads:
            if entry.head == "all":  # which imports the module of every head
                names = [name for name in default_heads() if not protocol.why_not(head_info(name).cls)]
                variants += [Variant(head=name) for name in names]
            elif entry.head not in list_heads():
                raise unknown("head", entry.head, list_heads())
            else:
                variants += entry.each()
        variants = [one for i, one in enumerate(variants) if one not in variants[:i]]
        for i, variant in enumerate(variants):
            cls = head_info(variant.head).cls
            if cls.tunes_encoder:
                raise InputError(
                    f"suite '{self.name}' works from features, but {variant.head} tunes the encoder on each draw: "
                    "use 'clipadapter compare'"
                )
            protocol.check_head(variant.head, cls)
            if self.recipe in cls.recipes and variant.recipe is None and variant.preset is None:
                variants[i] = variant.model_copy(update={"recipe": self.recipe, "label": variant.title})
        titles = [variant.title for variant in variants]
        repeated = sorted({title for title in titles if titles.count(title) > 1})
        if repeated:
            raise DataError(f"suite '{self.name}' has more than one head called {', '.join(repeated)}: give labels")
        return variants


# ---- The tasks of a stream ----


def count_tasks(classes: int, classes_per_task: int) -> int:
    """The number of tasks that a data set is divided into."""
    return max(1, round(classes / classes_per_task)) if classes_per_task else 1


def order_tasks(
    sets: Mapping[str, Sequence[str]], rules: StreamRules, order: Order, seed: int
) -> list[tuple[str, str, list[str]]]:
    """The tasks of a stream: (name, data set, classes). ``sets`` has classes by data set, in the order of the user."""
    if order.data and (unordered := [name for name in sets if name not in order.data]):
        raise InputError(
            f"the order '{order.name}' lacks {', '.join(unordered)}; it has: {', '.join(order.data)}. "
            "With --order given the data sets come in the order in which you name them"
        )
    rng, tasks = random.Random(seed), []
    for name in [name for name in order.data if name in sets] or sets:
        classes = list(sets[name])
        n = count_tasks(len(classes), rules.classes_per_task)
        if n > 1 and order.shuffle != "none":
            rng.shuffle(classes)
        for i in range(n):
            task_classes = classes[i * len(classes) // n : (i + 1) * len(classes) // n]
            tasks.append((name if n == 1 else f"{name} {i + 1}/{n}", name, task_classes))
    if order.shuffle == "all":
        rng.shuffle(tasks)
    return tasks


# ---- Heads and files ----


def make_head(variant: Variant) -> Head:
    """The unfitted head of a variant."""
    variant = variant.for_data("")
    cls = head_info(variant.head).cls
    params = {**variant.params, **{name: value for name, (value,) in variant.vary.items()}}
    if variant.preset is not None and variant.recipe is not None:
        raise InputError(f"{variant.head}: give 'preset' or 'recipe', not both. {cls.preset_note}")
    try:
        if variant.preset is not None:
            return cls.preset(variant.preset, **params)
        if variant.recipe is not None:
            return cls.from_recipe(variant.recipe, **params)
        return create_head(variant.head, **params)
    except TypeError as error:
        raise InputError(f"{variant.title}: {error}") from error


def load_suite(name: str | Path) -> Suite:
    """A suite of the package by its name, or from the path of a ``.toml`` file.

    Raises:
        UnknownNameError: if there is no such suite.
        DataError: if the file is damaged, or has an unknown field.

    >>> load_suite("bottleneck").heads[1].vary["reduction"]
    [1, 2, 4, 8, 16, 32]
    """
    return make_suite(*read_suite(name))


def make_suite(name: str, fields: Mapping[str, Any]) -> Suite:
    """A suite from the fields of its file; an error says which one is wrong."""
    try:
        return Suite(**{"name": name, **fields})
    except ValidationError as error:
        raise DataError(f"suite '{name}': {_explain(error)}") from error


TABLES: dict[str, type[FrozenModel]] = {"heads": Variant, "prompts": Prompts, "stream": StreamRules, "orders": Order}
"""The tables in a suite, by the field that they stand in."""
FIELD_NAMES = {*Suite.model_fields, *(name for model in TABLES.values() for name in model.model_fields)}


def _explain(error: ValidationError) -> str:
    """What is wrong with the first wrong value of a suite."""
    first = error.errors()[0]
    message, location = first["msg"].removeprefix("Value error, "), first["loc"]
    if not location:
        return message
    if first["type"] == "extra_forbidden":
        table = next((part for part in reversed(location[:-1]) if part in TABLES), None)
        where = "a suite" if table is None else f"a table of '{table}'"
        model: type[FrozenModel] = TABLES.get(str(table), Suite)
        return str(unknown(f"field of {where}", str(location[-1]), list(model.model_fields)))
    # Between the names of fields stand the types that a value may have, which say nothing to the author of a suite.
    parts = [part for part in location if isinstance(part, int) or part in FIELD_NAMES]
    where = ", ".join(f"entry {part + 1}" if isinstance(part, int) else f"'{part}'" for part in parts)
    if first["type"] == "missing":
        return f"{where} is missing; docs/studies.md has the fields and examples"
    return f"{where} is {brief(first['input'])}: {message[0].lower()}{message[1:]}; see docs/studies.md"
