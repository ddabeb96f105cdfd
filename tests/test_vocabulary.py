"""One word for one thing: words that names, docs and messages avoid, and what they say instead."""

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks", "common", "configs", "data", "docs", "engine", "eval", "latte")
FOLDERS += ("scripts", "tests", "vae")
SUFFIXES = {".css", ".html", ".js", ".md", ".py", ".sh", ".toml", ".yaml"}

WORDS = {
    # Names of the field
    "all_from": "all_trained_from",
    "autoencoding": "evaluate_reconstruction",
    "exchange_gradients": "sync_gradients",
    "for_(model|discriminator)": "generator_loss, discriminator_loss",
    "foreign": "external",
    "glances?": "probe_header",
    "intervals?": "stride",
    "[kmgt]ib": "kB, MB, GB: powers of ten",
    "knowing": "exact_prediction",
    "opponents?": "discriminator",
    "players?": "trained modules",
    "rehears(e|ed|es|al|ing)": "measure_step_memory",
    "samples_per_shard": "videos_per_shard",
    "shard_items": "items_per_shard",
    "time_at": "timestep_at",
    "video_inception": "inception_protocol",
    # Prose
    "of old": "earlier",
    "so many": "the number, by its name",
    "somebody|whoever": "the frame, process or caller that is meant",
    # American spelling
    "[a-z]*(behaviour|centre|colour|favour|grey|honour|neighbour)[a-z]*": "American spelling",
    "[a-z]*(cancel|label|model|signal|travel)l(ed|ing)": "one l",
    "analys(e|ed|ing)|artefacts?|catalogues?|defence|judgement|licence": "American spelling",
    "[a-z]+is(e|ed|es|er|ers|ing|ation|ations)": "-ize",
}
"""Regular expression of whole words, where `_` and a capital start a new one, to what is said."""

IDENTIFIERS = {
    "beside": "companion, or what it holds",
    "exchange": "sync_gradients",
    "filled": "unsharded",
    "give": "the verb of what it does",
    "mine": "local_indices, ours",
    "own": "center, ours, target",
    "told": "message, match, reason",
}
"""Names in Python, where a sentence may have the word, to what they are called."""

EXEMPT = [
    ("*", "aria-labelledby", "HTML's attribute"),
    ("*", r"guidance[_ ]intervals?", "Kynkäänniemi et al. 2024 call it so"),
    ("latte/*|tests/test_samplers.py|tests/test_traffic.py", "intervals?", "of guidance, as above"),
    ("*", "percentile intervals?", "statistics"),
    ("eval/report/*|tests/test_report.py|tests/builders/browser.py", "players?", "of videos"),
    (
        "*",
        "((de)?nois|rais|ris|aris|promis|precis|exercis|supervis|surpris|compris)(e|ed|es|er|ing)"
        "|(clock|element|frame|like|other|pair|point)wise",
        "American spelling too",
    ),
    ("tests/test_vocabulary.py", ".*", "names the words"),
]
"""Files, what they may say, and why."""


def files() -> list[str]:
    """Text files of the project, by their path in it."""
    paths = [*ROOT.glob("*"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))]
    return sorted(str(path.relative_to(ROOT)) for path in paths if path.suffix in SUFFIXES)


def found(path: str, text: str) -> Iterator[str]:
    """Where a text says a word that it must not, and what to say."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", text).lower()
    for files, allowed, _ in EXEMPT:
        if any(fnmatch(path, each) for each in files.split("|")):
            text = re.sub(_whole(allowed), " ", text)
    for match in re.finditer(_whole("|".join(WORDS)), text):
        instead = next(say for word, say in WORDS.items() if re.fullmatch(word, match[0]))
        yield f"{path}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]!r}; say {instead}"


def found_names(path: str, text: str) -> Iterator[str]:
    """Where Python code uses a name that it must not."""
    for node in ast.walk(ast.parse(text)):
        names = {getattr(node, part, None) for part in ("id", "attr", "arg", "name")}
        for name in names & IDENTIFIERS.keys():
            yield f"{path}:{node.lineno}: name {name!r}; use {IDENTIFIERS[name]}"


def _whole(words: str) -> str:
    return rf"(?<![a-z])(?:{words})(?![a-z])"


def test_the_project_keeps_to_its_words():
    troubles = []
    for path in files():
        text = (ROOT / path).read_text()
        troubles += found(path, text)
        if path.endswith(".py"):
            troubles += found_names(path, text)
    assert not troubles, "\n".join(troubles)


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("class MeanColour:", "colour"),
        ("def normalise(x):", "normalise"),
        ("unlabelled videos", "unlabelled"),
        ("the neighbours' centre", "neighbours"),
        ("held_out_player = 1", "player"),
        ("of so many channels", "so many"),
        ("Behaviour, as of old", "of old"),
        ("frame_interval: 3", "interval"),
        ("raise the noise otherwise; a promise", None),
        ("prayer, exhibition, intervally", None),
        ('<table aria-labelledby="x">', None),
        ("guidance_interval", None),
    ],
)
def test_which_words_are_found(line, word):
    troubles = list(found("eval/x.py", line))
    assert any(repr(word) in each for each in troubles) if word else not troubles


def test_which_names_are_found():
    text = 'own = f(mine=1)  # its own\n"""Told beside."""'
    assert [each.split("'")[1] for each in found_names("a.py", text)] == ["own", "mine"]
