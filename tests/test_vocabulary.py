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

DEFINED = {
    "Process": "DiffusionProcess",
    "Shell": "MetaCopy",
    "agree": "check_identity",
    "agreed": "reduced",
    "claim": "write_identity",
    "identify": "write_identity",
    "of": "wrap, layout, read: what it does",
    "reserve": "allocate_optimizer_state",
    "top": "max_timestep",
    "whole": "full_state, or what of it is whole",
}
"""Names in Python that a variable may have, but no class or function, to what they are called."""

MODULES = {
    "autoencoding": "evaluate_reconstruction",
    "kernel": "kvd",
    "networks": "metric_networks",
    "notes": "training_metadata",
    "packets": "container",
    "packing": "pack_video",
    "player": "optimization",
    "process": "diffusion_process",
    "reading": "container",
    "records": "video_record",
    "sampled": "sample_fvd",
    "samples": "sample_table",
    "sources": "record_frames, packing_run",
    "stats": "feature_cache",
    "stores": "video_stores",
}
"""Names of files, to what they are called."""

OPTIONS = {
    "bad": "on_error",
    "batch": "batch_size",
    "clips": "num_clips",
    "count": "num_clips, or of what else",
    "held_out_clips": "num_held_out_clips",
    "items": "num_clips, items_per_shard",
    "local_batch": "local_batch_size",
    "plan": "dry_run",
    "preview": "preview_sampler",
    "previews": "num_previews",
    "scores": "metric_networks",
    "short": "short_clips",
    "strict": "strict_decoding",
    "too_short": "short_clips",
}
"""Names of options, to what they are called."""

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
        defined = isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name
        if defined in DEFINED:
            yield f"{path}:{node.lineno}: defines {defined!r}; use {DEFINED[defined]}"


def found_options(texts: dict[str, str]) -> Iterator[str]:
    """Where a config has an option that it must not call so."""
    nodes = [(path, node) for path, text in texts.items() for node in ast.walk(ast.parse(text))]
    classes = [(path, node) for path, node in nodes if isinstance(node, ast.ClassDef)]
    configs, before = {"Config"}, 0
    while before < (before := len(configs)):
        configs |= {c.name for _, c in classes if configs & {ast.unparse(b) for b in c.bases}}
    for path, node in classes:
        names = [ast.unparse(x.target) for x in node.body if isinstance(x, ast.AnnAssign)]
        is_config = configs & {ast.unparse(b) for b in node.bases}
        for name in OPTIONS.keys() & names if is_config else ():
            yield f"{path}:{node.lineno}: option {name!r} of {node.name}; use {OPTIONS[name]}"


def _whole(words: str) -> str:
    return rf"(?<![a-z])(?:{words})(?![a-z])"


def test_the_project_keeps_to_its_words():
    texts = {path: (ROOT / path).read_text() for path in files()}
    troubles = [each for path, text in texts.items() for each in found(path, text)]
    code = {path: text for path, text in texts.items() if path.endswith(".py")}
    for path, text in code.items():
        troubles += found_names(path, text)
        if (stem := Path(path).stem) in MODULES:
            troubles.append(f"{path}: file {stem!r}; use {MODULES[stem]}")
    troubles += found_options(code)
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
    text = 'own = f(mine=1)  # its own\n"""Told beside."""\ndef whole(top): ...'
    found = [each.split("'")[1] for each in found_names("a.py", text)]
    assert sorted(found) == ["mine", "own", "whole"]


def test_which_options_are_found():
    one = "class A(Config):\n    clips: int\nclass C:\n    clips: int"
    two = "class B(A):\n    batch: int = 1\n    num_clips: int"
    found = list(found_options({"a.py": two, "b.py": one}))
    assert [each.split("; ")[0] for each in found] == [
        "a.py:1: option 'batch' of B",
        "b.py:1: option 'clips' of A",
    ]
