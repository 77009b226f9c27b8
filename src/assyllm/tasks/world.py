"""A small generated world: creatures, what is true of them, and the text that says so.

The embedded zoo is pre-trained on this text and the embedded tasks ask about it, so that what a model knows is
known exactly. An entity has a value in every facet ("the home of bafugo is river"); a value answers two actions
with an effect ("if you flood the home of bafugo it swells"); and every (entity, facet) has a yes/no bit of its
own ("is the home of bafugo safe ? no"). Facts are drawn independently: none follows from another entity's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from assyllm import seeding
from assyllm.artifacts import ArtifactError


class Facet(NamedTuple):
    """An attribute that every entity has."""

    name: str
    quality: str  # what the yes/no bit is about
    actions: tuple[str, str]
    effects: dict[str, tuple[str, str]]  # value -> its effect under either action


FACETS = (
    Facet("home", "safe", ("flood", "burn"), {
        "river": ("swells", "steams"), "forest": ("rots", "blazes"), "cave": ("echoes", "smokes"),
        "desert": ("blooms", "glows"), "meadow": ("drowns", "sparks"), "tower": ("leaks", "topples"),
    }),
    Facet("coat", "warm", ("wash", "comb"), {
        "fur": ("curls", "fluffs"), "scales": ("gleams", "scrapes"), "feathers": ("drips", "ruffles"),
        "shell": ("shines", "clicks"), "wool": ("shrinks", "tangles"), "bark": ("peels", "splinters"),
    }),
    Facet("food", "sweet", ("boil", "crush"), {
        "seeds": ("softens", "crumbles"), "fish": ("flakes", "stinks"), "grass": ("wilts", "bleeds"),
        "honey": ("thickens", "spreads"), "roots": ("sweetens", "squirts"), "nuts": ("toasts", "cracks"),
    }),
    Facet("voice", "loud", ("copy", "mute"), {
        "whistle": ("answers", "sulks"), "growl": ("attacks", "trembles"), "song": ("dances", "sleeps"),
        "hiss": ("hides", "strikes"), "laugh": ("giggles", "weeps"), "hum": ("purrs", "yawns"),
    }),
    Facet("tool", "sharp", ("drop", "bend"), {
        "hammer": ("dents", "resists"), "needle": ("sticks", "snaps"), "mirror": ("shatters", "warps"),
        "rope": ("coils", "knots"), "spoon": ("rings", "folds"), "candle": ("gutters", "sags"),
    }),
    Facet("season", "short", ("delay", "skip"), {
        "spring": ("freezes", "starves"), "summer": ("cools", "pales"), "autumn": ("ripens", "withers"),
        "winter": ("melts", "swarms"), "monsoon": ("dries", "thirsts"), "harvest": ("spoils", "hungers"),
    }),
)  # fmt: skip

# Entity and facet stand before the answer: a model looks a fact up forwards, it need not judge a given pair.
# The last wording of each form is in no corpus; questions may use it (`world.wordings`).
WORDINGS = {
    "value": (
        "what is the {facet} of {entity} ?",
        "the {facet} of {entity} is",
        "tell me the {facet} of {entity} :",
        "do you know the {facet} of {entity} ?",
    ),
    "effect": (
        "what happens if you {action} the {facet} of {entity} ? it",
        "if you {action} the {facet} of {entity} it",
        "once we {action} the {facet} of {entity} it",
        "when they {action} the {facet} of {entity} it",
    ),
    "bit": (
        "is the {facet} of {entity} {quality} ?",
        "does {quality} describe the {facet} of {entity} ?",
        "{quality} is the {facet} of {entity} , right ?",
        "would you call the {facet} of {entity} {quality} ?",
    ),
}
FORMS = tuple(WORDINGS)
CORPUS_WORDINGS = 3
FORM_SHARES = {"value": 1 / 5, "effect": 2 / 5, "bit": 2 / 5}  # of a corpus; two effects for each value
SENTENCES = 3  # in a passage
CONSONANTS, VOWELS = "bdfgklmnprtvz", "aeiou"


@dataclass(frozen=True, slots=True)
class Fact:
    """Something true of an entity, with the answers that its form allows (``options``, ``answer`` among them)."""

    form: str  # "value" | "effect" | "bit"
    entity: str
    facet: Facet
    action: str  # "" unless form is "effect"
    answer: str
    options: tuple[str, ...]

    @property
    def id(self) -> str:
        """A stable name, e.g. ``effect/bafugo/home/flood``."""
        return "/".join(part for part in (self.form, self.entity, self.facet.name, self.action) if part)

    @property
    def pair(self) -> tuple[str, str]:
        """(entity, facet): facts of one form and pair rest on the same draw."""
        return self.entity, self.facet.name

    def ask(self, wording: int) -> str:
        """The text that the answer follows."""
        return WORDINGS[self.form][wording].format(
            entity=self.entity, facet=self.facet.name, action=self.action, quality=self.facet.quality
        )


@dataclass(frozen=True, slots=True)
class Row:
    """A text to be pre-trained on; ``answers`` are the character spans (start, end) of looked-up answers."""

    text: str
    answers: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class World:
    """Entities and everything that is true of them."""

    entities: tuple[str, ...]
    facets: tuple[Facet, ...]
    values: int
    value_of: dict[tuple[str, str], str]
    bit_of: dict[tuple[str, str], bool]

    @classmethod
    def build(cls, params: Any, seed: int | None = None) -> World:
        """The world of ``params`` (section ``world``); ``seed`` overrides the section's own."""
        seed = params.seed if seed is None else seed
        entities = _names(params.entities, seeding.rng("world", seed, "names"))
        facets = FACETS[: params.facets]
        draw = seeding.rng("world", seed, "facts")
        value_of, bit_of = {}, {}
        for entity in entities:
            for facet in facets:
                value_of[entity, facet.name] = list(facet.effects)[int(draw.integers(params.values))]
                bit_of[entity, facet.name] = bool(draw.integers(2))
        return cls(entities, facets, params.values, value_of, bit_of)

    def facts(self, form: str, facets: Iterable[int] | None = None) -> list[Fact]:
        """Every fact of a form ("value", "effect", "bit") in the given facets (indices), default all."""
        chosen = self.facets if facets is None else [self.facets[index] for index in facets]
        return [fact for entity in self.entities for facet in chosen for fact in self._of(form, entity, facet)]

    def _of(self, form: str, entity: str, facet: Facet) -> list[Fact]:
        values = tuple(facet.effects)[: self.values]
        value = self.value_of[entity, facet.name]
        if form == "value":
            return [Fact(form, entity, facet, "", value, values)]
        if form == "bit":
            answer = "yes" if self.bit_of[entity, facet.name] else "no"
            return [Fact(form, entity, facet, "", answer, ("no", "yes"))]
        return [
            Fact(
                form,
                entity,
                facet,
                action,
                facet.effects[value][i],
                tuple(facet.effects[v][i] for v in values),
            )
            for i, action in enumerate(facet.actions)
        ]

    def words(self) -> list[str]:
        """The words that facts are made of, which every tokenizer keeps whole; the others it may split."""
        words = [*self.entities, "no", "yes"]
        for facet in self.facets:
            words += [facet.name, facet.quality, *facet.actions]
            for value in tuple(facet.effects)[: self.values]:
                words += [value, *facet.effects[value]]
        return words

    def corpus(self, facets: Sequence[int], rows: int, passages: int, *names: str | int) -> list[Row]:
        """What a model that knows ``facets`` has read: true sentences, one a row, and short passages of them.

        Args:
            facets: indices of the facets known.
            rows: number of one-sentence rows.
            passages: number of rows of three sentences.
            names: name the draw (zoo seed, model).

        Raises:
            ArtifactError: no facets, or one that the world lacks.
        """
        if not facets or not all(0 <= facet < len(self.facets) for facet in facets):
            raise ArtifactError(f"facets {list(facets)}: of 0 to {len(self.facets) - 1} one at least is expected")
        draw = seeding.rng("corpus", *names)
        facts = {form: self.facts(form, facets) for form in FORMS}
        deck = {form: _deck(facts[form], draw) for form in FORMS}
        forms = draw.choice(FORMS, size=rows + SENTENCES * passages, p=list(FORM_SHARES.values()))
        said = [_say(next(deck[form]), int(draw.integers(CORPUS_WORDINGS))) for form in forms]
        out = said[:rows] + [_join(said[start : start + SENTENCES]) for start in range(rows, len(said), SENTENCES)]
        return [out[i] for i in draw.permutation(len(out))]

    def public_text(self, seed: int, count: int) -> list[str]:
        """Text that a server without data may fit adapters on: sentences of the corpus' wording, held out.

        Every answer is drawn uniformly from its form's options, whatever the truth: the text has the words and
        the syntax of the world and holds no information about any fact of it.
        """
        draw = seeding.rng("public", seed)
        texts = []
        for _ in range(count):
            form = str(draw.choice(FORMS, p=list(FORM_SHARES.values())))
            facet = self.facets[int(draw.integers(len(self.facets)))]
            facts = self._of(form, self.entities[int(draw.integers(len(self.entities)))], facet)
            fact = facts[int(draw.integers(len(facts)))]
            answer = fact.options[int(draw.integers(len(fact.options)))]
            texts.append(f"{fact.ask(int(draw.integers(CORPUS_WORDINGS)))} {answer}")
        return texts


def _names(count: int, draw: np.random.Generator) -> tuple[str, ...]:
    """Distinct pronounceable names of three syllables, sorted."""
    names: set[str] = set()
    while len(names) < count:
        names.add("".join(str(draw.choice([*letters])) for _ in range(3) for letters in (CONSONANTS, VOWELS)))
    return tuple(sorted(names))


def _deck(facts: Sequence[Fact], draw: np.random.Generator) -> Any:
    """Facts without end, every one equally often: dealt, then shuffled anew."""
    while True:
        for index in draw.permutation(len(facts)):
            yield facts[index]


def _say(fact: Fact, wording: int) -> Row:
    stem = fact.ask(wording)
    return Row(f"{stem} {fact.answer}", ((len(stem) + 1, len(stem) + 1 + len(fact.answer)),))


def _join(rows: Sequence[Row]) -> Row:
    text, answers = "", []
    for row in rows:
        text += " . " if text else ""
        answers += [(len(text) + start, len(text) + end) for start, end in row.answers]
        text += row.text
    return Row(text, tuple(answers))
